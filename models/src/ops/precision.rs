//! Half precision for the products with a frozen base, where a GPU has matrix units for it.

use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::{DType, Tensor};

use super::frozen::{FEW_ROWS, FrozenMatrix};

/// Whether a model's products with its frozen weights take half-precision operands; off at first.
///
/// Sums stay in single precision, as do adapters, norms, attention and the optimizer (Micikevicius et
/// al. 2018, arXiv 1710.03740). Gradients then need a scaled loss, see [`crate::train`]. Clones share
/// the setting: it belongs to the model.
#[derive(Clone, Debug, Default)]
pub struct MixedPrecision(Arc<AtomicBool>);

impl MixedPrecision {
    /// Whether it is on.
    pub fn is_on(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Turns it on or off, for all of the model's products from now on.
    pub fn set(&self, on: bool) {
        self.0.store(on, Ordering::Relaxed);
    }

    /// `x · Wᵀ`.
    pub(super) fn forward(&self, x: &Tensor<2>, matrix: &FrozenMatrix) -> Tensor<2> {
        let factor = self.factor(x, slice::from_ref(matrix));
        matrix.forward(factor.with(matrix))
    }

    /// `g · W`.
    pub(super) fn backward(&self, g: &Tensor<2>, matrix: &FrozenMatrix) -> Tensor<2> {
        let factor = self.factor(g, slice::from_ref(matrix));
        matrix.backward(factor.with(matrix))
    }

    /// `x` as factor of products with several matrices, converted once.
    pub(super) fn factor<'a>(&self, x: &'a Tensor<2>, parts: &[FrozenMatrix]) -> Factor<'a> {
        let wanted = self.is_on() && x.dims()[0] > FEW_ROWS;
        let half = wanted && parts.iter().any(FrozenMatrix::takes_halves);
        Factor {
            single: x,
            half: half.then(|| x.clone().cast(DType::F16)),
        }
    }
}

/// The left side of products: in half precision too, if some of them take it.
pub(super) struct Factor<'a> {
    single: &'a Tensor<2>,
    half: Option<Tensor<2>>,
}

impl Factor<'_> {
    /// As a product with this matrix takes it.
    pub(super) fn with(&self, matrix: &FrozenMatrix) -> &Tensor<2> {
        match &self.half {
            Some(half) if matrix.takes_halves() => half,
            _ => self.single,
        }
    }
}
