//! Dropout by counter-based random numbers: the mask is a function of the seed and the
//! position, so the backward pass makes it again instead of keeping it.

use super::host::{Host, host_tensor, is_cpu, tensor_on};
use super::kernels;
use burn::tensor::Tensor;
use rayon::prelude::*;

/// The constants of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number
/// generators"), which turns a position into random bits.
pub(super) const INCREMENT: u64 = 0x9E37_79B9_7F4A_7C15;
pub(super) const FIRST_MULTIPLIER: u64 = 0xBF58_476D_1CE4_E5B9;
pub(super) const SECOND_MULTIPLIER: u64 = 0x94D0_49BB_1331_11EB;

/// Which values are dropped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Probability that a value becomes 0; the others grow by `1 / (1 - rate)`.
    pub rate: f32,
    /// Names the mask: run, step, layer and group.
    pub seed: u64,
    /// The row of the mask that a tensor's first row gets: a part of a batch is masked as it is in
    /// the whole.
    pub first_row: usize,
}

impl Dropout {
    /// The mask's factor at a row-major position: 0 or `1 / (1 - rate)`.
    fn factor(&self, position: usize) -> f32 {
        let mut z = self
            .seed
            .wrapping_add((position as u64 + 1).wrapping_mul(INCREMENT));
        z = (z ^ (z >> 30)).wrapping_mul(FIRST_MULTIPLIER);
        z = (z ^ (z >> 27)).wrapping_mul(SECOND_MULTIPLIER);
        z ^= z >> 31;
        let uniform = (z >> 40) as f32 / (1u64 << 24) as f32;
        if uniform < self.rate {
            0.0
        } else {
            self.grown()
        }
    }

    /// The factor of what is not dropped.
    pub(super) fn grown(&self) -> f32 {
        1.0 / (1.0 - self.rate)
    }
}

/// Applies the mask; its own gradient, as it is linear.
pub fn dropout(x: &Tensor<2>, mask: &Dropout) -> Tensor<2> {
    if !is_cpu(&x.device()) {
        return kernels::dropout(x, mask).unwrap_or_else(|| composed::dropout(x, mask));
    }
    let shape = x.dims();
    let first = mask.first_row * shape[1];
    let input = Host::of(x.clone());
    let dropped = input
        .values()
        .par_iter()
        .enumerate()
        .with_min_len(4096)
        .map(|(i, x)| x * mask.factor(first + i))
        .collect();
    host_tensor(dropped, shape)
}

/// The same out of burn's operations, with a mask made on the host; see [`super::norm`].
mod composed {
    use super::{Dropout, tensor_on};
    use burn::tensor::Tensor;

    pub(super) fn dropout(x: &Tensor<2>, mask: &Dropout) -> Tensor<2> {
        let shape = x.dims();
        let first = mask.first_row * shape[1];
        let places = first..first + shape[0] * shape[1];
        let factors = places.map(|i| mask.factor(i)).collect();
        x.clone() * tensor_on(factors, shape, &x.device())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_mean_and_repeats_itself() {
        let mask = Dropout {
            rate: 0.25,
            seed: 7,
            first_row: 0,
        };
        let x = host_tensor(vec![1.0; 40_000], [200, 200]);
        let (once, again) = (Host::of(dropout(&x, &mask)), Host::of(dropout(&x, &mask)));
        assert_eq!(once.values(), again.values());
        let mean = once.values().iter().sum::<f32>() / 40_000.0;
        assert!((mean - 1.0).abs() < 0.02, "{mean}");
        assert!(
            once.values()
                .iter()
                .all(|v| *v == 0.0 || (*v - 4.0 / 3.0).abs() < 1e-6)
        );
        let rest = Dropout {
            first_row: 150,
            ..mask
        };
        let rest = Host::of(dropout(&x.slice([150..200, 0..200]), &rest));
        assert_eq!(rest.values(), &once.values()[150 * 200..]);
    }
}
