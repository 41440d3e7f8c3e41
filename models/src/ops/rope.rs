//! Rotary position embedding (Su et al. 2021, arXiv 2104.09864), in the half-split form
//! of the Hugging Face models: feature `i` pairs with feature `i + head_dim / 2`.

use super::host::{Host, host_tensor, is_cpu, tensor_on};
use super::kernels;
use super::simd::vectorized;
use burn::tensor::{Device, Tensor};
use rayon::prelude::*;

/// Cosines and sines of every token's angles, each `[tokens, head_dim / 2]`.
#[derive(Clone)]
pub struct Rotation {
    cos: Tensor<2>,
    sin: Tensor<2>,
}

impl Rotation {
    /// The angles `position · inverse_frequency` of tokens at the given positions.
    pub fn new(positions: &[u32], inverse_frequencies: &[f32], device: &Device) -> Self {
        let shape = [positions.len(), inverse_frequencies.len()];
        let angles: Vec<f32> = positions
            .iter()
            .flat_map(|&position| {
                inverse_frequencies
                    .iter()
                    .map(move |frequency| position as f32 * frequency)
            })
            .collect();
        let of = |f: fn(f64) -> f64| {
            angles
                .iter()
                .map(|&angle| f(f64::from(angle)) as f32)
                .collect()
        };
        Self {
            cos: tensor_on(of(f64::cos), shape, device),
            sin: tensor_on(of(f64::sin), shape, device),
        }
    }

    /// The cosines.
    pub(super) fn cos(&self) -> &Tensor<2> {
        &self.cos
    }

    /// The sines.
    pub(super) fn sin(&self) -> &Tensor<2> {
        &self.sin
    }
}

/// Which way [`rotate`] turns: the backward pass of a rotation is its inverse.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// By the angle.
    Forward,
    /// By its negative.
    Backward,
}

/// Rotates the first `heads` heads of each row of `x` `[tokens, width]`; what lies to
/// the right of `heads · head_dim` passes unchanged, so query, key and value can share
/// one tensor.
pub fn rotate(x: Tensor<2>, rotation: &Rotation, heads: usize, turn: Turn) -> Tensor<2> {
    if !is_cpu(&x.device()) {
        return kernels::rotate(x, rotation, heads, turn)
            .unwrap_or_else(|x| composed::rotate(x, rotation, heads, turn));
    }
    let [tokens, width] = x.dims();
    let half = rotation.cos.dims()[1];
    let sign = if turn == Turn::Forward { 1.0 } else { -1.0 };
    let (cos, sin) = (
        Host::of(rotation.cos.clone()),
        Host::of(rotation.sin.clone()),
    );
    let mut values = Host::of(x).into_values();
    values
        .par_chunks_mut(width)
        .zip(cos.values().par_chunks(half))
        .zip(sin.values().par_chunks(half))
        .with_min_len(16)
        .for_each(|((row, cos), sin)| {
            vectorized(
                #[inline(always)]
                || {
                    for head in row[..heads * 2 * half].chunks_exact_mut(2 * half) {
                        let (low, high) = head.split_at_mut(half);
                        for i in 0..half {
                            let (a, b, s) = (low[i], high[i], sin[i] * sign);
                            low[i] = a * cos[i] - b * s;
                            high[i] = b * cos[i] + a * s;
                        }
                    }
                },
            );
        });
    host_tensor(values, [tokens, width])
}

/// The same out of burn's operations; see [`super::norm`].
pub(super) mod composed {
    use super::{Rotation, Turn};
    use burn::tensor::Tensor;

    pub(in crate::ops) fn rotate(
        x: Tensor<2>,
        rotation: &Rotation,
        heads: usize,
        turn: Turn,
    ) -> Tensor<2> {
        let [tokens, width] = x.dims();
        let half = rotation.cos.dims()[1];
        let turned = heads * 2 * half;
        let cos = rotation.cos.clone().reshape([tokens, 1, half]);
        let sin = rotation.sin.clone().reshape([tokens, 1, half]);
        let sin = if turn == Turn::Forward {
            sin
        } else {
            sin.neg()
        };
        let pairs = x
            .clone()
            .slice([0..tokens, 0..turned])
            .reshape([tokens, heads, 2 * half]);
        let low = pairs.clone().slice([0..tokens, 0..heads, 0..half]);
        let high = pairs.slice([0..tokens, 0..heads, half..2 * half]);
        let new_low = low.clone() * cos.clone() - high.clone() * sin.clone();
        let new_high = high * cos + low * sin;
        let turned_part = Tensor::cat(vec![new_low, new_high], 2).reshape([tokens, turned]);
        if turned == width {
            return turned_part;
        }
        Tensor::cat(vec![turned_part, x.slice([0..tokens, turned..width])], 1)
    }
}
