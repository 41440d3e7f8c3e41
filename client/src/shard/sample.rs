//! Draws some units out of many.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// `limit` of the numbers below `units`, in random order; all of them if there are fewer.
///
/// The first `limit` of a Fisher-Yates shuffle by ChaCha8, so a larger limit only adds to what a
/// smaller one draws, and the same seed draws the same units on every machine. OpenFedLLM shuffles
/// with numpy's generator and seed 2023 before it takes the first rows; its draw differs from any
/// seed here, its distribution does not.
///
/// # Examples
///
/// ```
/// let all = fedllm_client::sample_units(100, usize::MAX, 2023);
/// assert_eq!(fedllm_client::sample_units(100, 20, 2023), all[..20]);
/// ```
pub fn sample_units(units: usize, limit: usize, seed: u64) -> Vec<u32> {
    let mut key = *b"fedllm sample of units, by seed:";
    key[..8].copy_from_slice(&seed.to_le_bytes());
    // A shard of more units than u32 counts is sampled from its beginning.
    let mut order: Vec<u32> = (0..u32::try_from(units).unwrap_or(u32::MAX)).collect();
    shuffle(&mut order, &mut ChaCha8Rng::from_seed(key));
    order.truncate(limit);
    order
}

/// A Fisher-Yates shuffle.
pub(super) fn shuffle(order: &mut [u32], rng: &mut impl Rng) {
    for i in (1..order.len()).rev() {
        order.swap(i, below(rng, i as u64 + 1) as usize);
    }
}

/// A number below `bound`, each equally likely (Lemire 2019, arXiv 1805.10941).
fn below(rng: &mut impl Rng, bound: u64) -> u64 {
    loop {
        let product = u128::from(rng.next_u64()) * u128::from(bound);
        if product as u64 >= bound.wrapping_neg() % bound {
            return (product >> 64) as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_the_start_of_a_shuffle() {
        let all = sample_units(1000, 1000, 7);
        assert_eq!(sample_units(1000, 30, 7), all[..30]);
        assert_eq!(sample_units(1000, 5000, 7), all, "there are no more");
        assert_ne!(sample_units(1000, 1000, 8), all);
        assert!(!all.is_sorted());
        let mut sorted = all;
        sorted.sort_unstable();
        assert_eq!(sorted, (0..1000).collect::<Vec<u32>>());
        assert!(sample_units(0, 5, 7).is_empty());
    }
}
