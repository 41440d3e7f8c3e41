//! RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467, equation 4) and its gradient.

use super::host::{Host, host_tensor, is_cpu};
use super::kernels;
use super::simd::{dot, vectorized};
use burn::tensor::Tensor;
use rayon::prelude::*;

/// Rows that one task handles.
const ROWS: usize = 16;

/// The result of [`rms_norm`].
pub struct Normed {
    /// `x / rms(x) · weight`, `[rows, features]`.
    pub y: Tensor<2>,
    /// `1 / rms(x)` of each row, `[rows, 1]`; the backward pass needs it.
    pub inv: Tensor<2>,
}

/// Normalises each row of `x` `[rows, features]` by its root mean square and scales it
/// by `weight` `[features]`.
pub fn rms_norm(x: &Tensor<2>, weight: &Tensor<1>, eps: f32) -> Normed {
    if !is_cpu(&x.device()) {
        return kernels::rms_norm(x, weight, eps)
            .unwrap_or_else(|| composed::rms_norm(x, weight, eps));
    }
    let [rows, features] = x.dims();
    let mut inv = vec![0.0; rows];
    let y = scale_rows(
        x,
        weight,
        &mut inv,
        #[inline(always)]
        |inv, x| *inv = 1.0 / (dot(x, x) / features as f32 + eps).sqrt(),
    );
    Normed {
        y,
        inv: host_tensor(inv, [rows, 1]),
    }
}

/// The `y` of [`rms_norm`] again, from the `inv` that it left.
pub fn rms_norm_again(x: &Tensor<2>, weight: &Tensor<1>, inv: &Tensor<2>) -> Tensor<2> {
    if !is_cpu(&x.device()) {
        return kernels::rms_norm_again(x, weight, inv)
            .unwrap_or_else(|| composed::rms_norm_again(x, weight, inv));
    }
    let mut inv = Host::of(inv.clone()).into_values();
    scale_rows(
        x,
        weight,
        &mut inv,
        #[inline(always)]
        |_, _| {},
    )
}

/// `x · inv · weight`, where `find` may set the `inv` of a row before it is used.
fn scale_rows(
    x: &Tensor<2>,
    weight: &Tensor<1>,
    inv: &mut [f32],
    find: impl Fn(&mut f32, &[f32]) + Sync,
) -> Tensor<2> {
    let [rows, features] = x.dims();
    let (input, weight) = (Host::of(x.clone()), Host::of(weight.clone()));
    let weight = weight.values();
    let mut y = vec![0.0; rows * features];
    y.par_chunks_mut(ROWS * features)
        .zip(inv.par_chunks_mut(ROWS))
        .zip(input.values().par_chunks(ROWS * features))
        .for_each(|((y, inv), x)| {
            vectorized(
                #[inline(always)]
                || {
                    for ((y, inv), x) in y.chunks_mut(features).zip(inv).zip(x.chunks(features)) {
                        find(inv, x);
                        for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
                            *y = x * *inv * w;
                        }
                    }
                },
            );
        });
    host_tensor(y, [rows, features])
}

/// The gradient of [`rms_norm`] with respect to `x`, given that of `y`.
///
/// With `r = inv` and `n` features: `dx = r · (dy·w) - x · r³/n · Σ(dy·w·x)`.
pub fn rms_norm_backward(
    dy: &Tensor<2>,
    x: &Tensor<2>,
    weight: &Tensor<1>,
    inv: &Tensor<2>,
) -> Tensor<2> {
    if !is_cpu(&x.device()) {
        return kernels::rms_norm_backward(dy, x, weight, inv)
            .unwrap_or_else(|| composed::rms_norm_backward(dy, x, weight, inv));
    }
    let [rows, features] = x.dims();
    let mut dx = vec![0.0; rows * features];
    differentiate::<false>(&mut dx, dy, x, weight, inv);
    host_tensor(dx, [rows, features])
}

/// `onto` and [`rms_norm_backward`] together; takes the place of `onto` if nobody else holds it.
pub fn rms_norm_backward_onto(
    onto: Tensor<2>,
    dy: &Tensor<2>,
    x: &Tensor<2>,
    weight: &Tensor<1>,
    inv: &Tensor<2>,
) -> Tensor<2> {
    if !is_cpu(&x.device()) {
        return kernels::rms_norm_backward_onto(onto, dy, x, weight, inv)
            .unwrap_or_else(|onto| onto + composed::rms_norm_backward(dy, x, weight, inv));
    }
    let mut sum = Host::of(onto).into_values();
    differentiate::<true>(&mut sum, dy, x, weight, inv);
    host_tensor(sum, x.dims())
}

/// Writes the gradient to `dx`, or adds it.
fn differentiate<const ADD: bool>(
    dx: &mut [f32],
    dy: &Tensor<2>,
    x: &Tensor<2>,
    weight: &Tensor<1>,
    inv: &Tensor<2>,
) {
    let features = x.dims()[1];
    let (dy, input) = (Host::of(dy.clone()), Host::of(x.clone()));
    let (weight, inv) = (Host::of(weight.clone()), Host::of(inv.clone()));
    let weight = weight.values();
    dx.par_chunks_mut(ROWS * features)
        .zip(dy.values().par_chunks(ROWS * features))
        .zip(input.values().par_chunks(ROWS * features))
        .zip(inv.values().par_chunks(ROWS))
        .for_each(|(((dx, dy), x), inv)| {
            vectorized(
                #[inline(always)]
                || {
                    let mut scaled = vec![0.0; features];
                    let rows = dx
                        .chunks_mut(features)
                        .zip(dy.chunks(features))
                        .zip(x.chunks(features))
                        .zip(inv);
                    for (((dx, dy), x), inv) in rows {
                        for ((scaled, dy), w) in scaled.iter_mut().zip(dy).zip(weight) {
                            *scaled = dy * w;
                        }
                        let pull = dot(&scaled, x) * inv * inv * inv / features as f32;
                        for ((dx, scaled), x) in dx.iter_mut().zip(&scaled).zip(x) {
                            let gradient = scaled * inv - x * pull;
                            *dx = if ADD { *dx + gradient } else { gradient };
                        }
                    }
                },
            );
        });
}

/// The same out of burn's operations: for a device of another kind, and the twin that tests
/// hold the fused code against.
pub(super) mod composed {
    use super::Normed;
    use burn::tensor::Tensor;

    pub(in crate::ops) fn rms_norm(x: &Tensor<2>, weight: &Tensor<1>, eps: f32) -> Normed {
        let inv = (x.clone() * x.clone())
            .mean_dim(1)
            .add_scalar(eps)
            .sqrt()
            .recip();
        let y = rms_norm_again(x, weight, &inv);
        Normed { y, inv }
    }

    pub(in crate::ops) fn rms_norm_again(
        x: &Tensor<2>,
        weight: &Tensor<1>,
        inv: &Tensor<2>,
    ) -> Tensor<2> {
        x.clone() * inv.clone() * weight.clone().unsqueeze::<2>()
    }

    pub(in crate::ops) fn rms_norm_backward(
        dy: &Tensor<2>,
        x: &Tensor<2>,
        weight: &Tensor<1>,
        inv: &Tensor<2>,
    ) -> Tensor<2> {
        let scaled = dy.clone() * weight.clone().unsqueeze::<2>();
        let cube = inv.clone() * inv.clone() * inv.clone();
        let pull = (scaled.clone() * x.clone()).mean_dim(1) * cube;
        scaled * inv.clone() - x.clone() * pull
    }
}
