//! Frozen weight matrices and the two products that training needs of them:
//! `x · Wᵀ` forward and `g · W` backward, from the stored form.
//!
//! On the CPU a quantized matrix stays as it is in its file; a product unpacks the part that it is
//! about to use, see [`product`](mod@super::product).

use super::gemm::{Mat, Write};
use super::host::{Host, host_tensor, is_cpu, tensor_on};
use super::matmul::matmul;
use super::packed::PackedMatrix;
use super::product::{Straight, Term, Transposed, few_rows, product};
use crate::quant::{Int8Rows, Nf4Matrix, QuantMatrix};
use burn::tensor::{DType, Device, Tensor};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// Up to this many input rows a product multiplies each weight row at once, instead of unpacking it
/// into panels.
pub(super) const FEW_ROWS: usize = 8;

/// A frozen `[out, in]` matrix on some device.
#[derive(Clone, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "a model has a few hundred of them, read at every step"
)]
pub enum FrozenMatrix {
    /// In host memory or in the mapped file.
    Host(HostMatrix),
    /// Dense on a GPU, in single or half precision.
    Dense(Tensor<2>),
    /// Quantized on a GPU.
    Packed(PackedMatrix),
}

impl FrozenMatrix {
    /// Output features.
    pub fn rows(&self) -> usize {
        match self {
            Self::Host(matrix) => matrix.rows(),
            Self::Dense(tensor) => tensor.dims()[0],
            Self::Packed(matrix) => matrix.rows(),
        }
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        match self {
            Self::Host(matrix) => matrix.cols(),
            Self::Dense(tensor) => tensor.dims()[1],
            Self::Packed(matrix) => matrix.cols(),
        }
    }

    /// Whether nothing is lost by multiplying it in half precision but what the other factor loses.
    pub(super) fn takes_halves(&self) -> bool {
        match self {
            Self::Host(_) => false,
            Self::Dense(weight) => weight.dtype() == DType::F16,
            Self::Packed(_) => true,
        }
    }

    /// `x · Wᵀ`: `[rows, in]` to `[rows, out]`; on a GPU `x` may be in half precision.
    pub fn forward(&self, x: &Tensor<2>) -> Tensor<2> {
        match self {
            Self::Host(matrix) => {
                let [rows, _] = x.dims();
                let input = Host::of(x.clone());
                let mut out = vec![0.0; rows * matrix.rows()];
                let input = Mat::new(input.values(), rows, matrix.cols());
                forward_into(matrix, input, &[], &mut out, matrix.rows());
                host_tensor(out, [rows, matrix.rows()])
            }
            Self::Dense(weight) => matmul(x.clone(), weight.clone().transpose()),
            Self::Packed(matrix) => matrix.matmul_t(x.clone()),
        }
    }

    /// `g · W`: `[rows, out]` to `[rows, in]`; on a GPU `g` may be in half precision.
    pub fn backward(&self, g: &Tensor<2>) -> Tensor<2> {
        match self {
            Self::Host(matrix) => {
                let [rows, _] = g.dims();
                let grad = Host::of(g.clone());
                let mut out = vec![0.0; rows * matrix.cols()];
                let grad = Mat::new(grad.values(), rows, matrix.rows());
                backward_into(matrix, grad, &mut out);
                host_tensor(out, [rows, matrix.cols()])
            }
            Self::Dense(weight) => matmul(g.clone(), weight.clone()),
            Self::Packed(matrix) => matrix.matmul(g.clone()),
        }
    }
}

/// A frozen matrix that the CPU reads, in any storage form. Cloning copies no weights.
#[derive(Clone, Debug)]
pub enum HostMatrix {
    /// As a file stores it.
    Stored(QuantMatrix),
    /// Eight bits a value, one scale a row.
    Int8(Arc<Int8Rows>),
    /// Four-bit NormalFloat.
    Nf4(Arc<Nf4Matrix>),
}

impl HostMatrix {
    /// Rows: outputs of a projection, tokens of an embedding.
    pub fn rows(&self) -> usize {
        match self {
            Self::Stored(matrix) => matrix.rows(),
            Self::Int8(matrix) => matrix.rows(),
            Self::Nf4(matrix) => matrix.rows(),
        }
    }

    /// Values in a row.
    pub fn cols(&self) -> usize {
        match self {
            Self::Stored(matrix) => matrix.cols(),
            Self::Int8(matrix) => matrix.cols(),
            Self::Nf4(matrix) => matrix.cols(),
        }
    }

    /// Values that cannot be unpacked one without the other, side by side in a row.
    pub(super) fn block(&self) -> usize {
        match self {
            Self::Stored(matrix) => matrix.format().block_size(),
            Self::Int8(_) | Self::Nf4(_) => 1,
        }
    }

    /// Writes some columns of some rows to `out`, row-major. Columns begin and end between blocks.
    ///
    /// # Panics
    ///
    /// If `out` is of another size or there are no such rows or columns.
    pub fn dequantize(&self, rows: Range<usize>, columns: Range<usize>, out: &mut [f32]) {
        match self {
            Self::Stored(matrix) => {
                if let Err(error) = matrix.dequantize(rows, columns, out) {
                    panic!("a caller asked for values that are not there: {error}");
                }
            }
            Self::Int8(matrix) => matrix.dequantize(rows, columns, out),
            Self::Nf4(matrix) => matrix.dequantize(rows, columns, out),
        }
    }
}

/// Looks up embedding rows: `[ids, features]` on `device`.
pub fn embed(table: &HostMatrix, ids: &[u32], device: &Device) -> Tensor<2> {
    let features = table.cols();
    let mut out = vec![0.0; ids.len() * features];
    out.par_chunks_mut(features)
        .zip(ids)
        .with_min_len(8)
        .for_each(|(row, &id)| {
            let id = id as usize;
            table.dequantize(id..id + 1, 0..features, row);
        });
    let shape = [ids.len(), features];
    if is_cpu(device) {
        host_tensor(out, shape)
    } else {
        tensor_on(out, shape, device)
    }
}

/// Writes `x · Wᵀ` and the sum of `more` into the first `W.rows` columns of `out`, whose rows are
/// `stride` long.
pub(super) fn forward_into(
    matrix: &HostMatrix,
    x: Mat,
    more: &[Term],
    out: &mut [f32],
    stride: usize,
) {
    let width = matrix.rows();
    if x.rows() <= FEW_ROWS {
        few_rows(&[matrix], x, out, stride);
        return product(out, stride, width, Write::Add, more);
    }
    let b = Transposed(matrix);
    let terms: Vec<Term> = std::iter::once(Term { a: x, b: &b })
        .chain(more.iter().copied())
        .collect();
    product(out, stride, width, Write::Set, &terms);
}

/// Writes `g · W` to `out` `[g.rows, W.cols]`.
pub(super) fn backward_into(matrix: &HostMatrix, g: Mat, out: &mut [f32]) {
    let term = Term {
        a: g,
        b: &Straight(matrix),
    };
    product(out, matrix.cols(), matrix.cols(), Write::Set, &[term]);
}
