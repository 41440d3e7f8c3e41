//! Random numbers that follow from a seed, a purpose, and whom or what they are for.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// A generator for one purpose: the same for the same arguments, and unrelated otherwise.
pub(super) fn generator(seed: u64, purpose: &str, parts: &[u64]) -> ChaCha8Rng {
    let mut hasher = blake3::Hasher::new_derive_key("fedllm 1 simulation seeds");
    hasher.update(&seed.to_le_bytes());
    hasher.update(&(purpose.len() as u64).to_le_bytes());
    hasher.update(purpose.as_bytes());
    for part in parts {
        hasher.update(&part.to_le_bytes());
    }
    ChaCha8Rng::from_seed(hasher.finalize().into())
}

#[cfg(test)]
mod tests {
    use rand::Rng;

    use super::*;

    #[test]
    fn each_argument_makes_another_generator() {
        let first = |seed, purpose, parts: &[u64]| generator(seed, purpose, parts).next_u64();
        let base = first(1, "split", &[2, 3]);
        assert_eq!(base, first(1, "split", &[2, 3]));
        assert_ne!(base, first(2, "split", &[2, 3]));
        assert_ne!(base, first(1, "spli", &[2, 3]));
        assert_ne!(base, first(1, "split", &[3, 2]));
        assert_ne!(base, first(1, "split", &[2, 3, 0]));
    }
}
