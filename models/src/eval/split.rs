//! Which rows of a set without a test split are asked.

use std::collections::BTreeSet;

/// The rows that `train_test_split(share, seed=seed)` of Hugging Face `datasets` puts in `test`.
///
/// That is the beginning of numpy's `default_rng(seed).permutation(rows)`.
pub(super) fn test_rows(rows: usize, share: f64, seed: u32) -> BTreeSet<usize> {
    let count = (rows as f64 * share).ceil() as usize;
    permutation(rows, seed).into_iter().take(count).collect()
}

/// Whether a sentence is in the quarter that `fedllm-client prepare finance-sentiment` does not
/// train on.
///
/// It is chosen by the hash of the sentence, so that a sentence that comes twice is on one side and
/// every order and selection of a file is split alike.
pub fn is_held_out(sentence: &str) -> bool {
    blake3::hash(sentence.trim().as_bytes()).as_bytes()[0] < 64
}

/// `numpy.random.default_rng(seed).permutation(rows)`: Fisher and Yates from the end.
fn permutation(rows: usize, seed: u32) -> Vec<usize> {
    let mut random = Pcg64::seeded(seed);
    let mut order: Vec<usize> = (0..rows).collect();
    for last in (1..rows).rev() {
        order.swap(random.up_to(last as u32) as usize, last);
    }
    order
}

/// numpy's default generator: PCG XSL RR 128/64 (O'Neill 2014).
struct Pcg64 {
    state: u128,
    increment: u128,
    /// The upper half of the last number, if only the lower was used.
    half: Option<u32>,
}

impl Pcg64 {
    const MULTIPLIER: u128 = 0x2360_ed05_1fc6_5da4_4385_df64_9fcc_f645;

    fn seeded(seed: u32) -> Self {
        let [a, b, c, d] = seed_words(seed).map(u128::from);
        let mut random = Self {
            state: 0,
            increment: (((c << 64) | d) << 1) | 1,
            half: None,
        };
        random.step();
        random.state = random.state.wrapping_add((a << 64) | b);
        random.step();
        random
    }

    fn step(&mut self) {
        let product = self.state.wrapping_mul(Self::MULTIPLIER);
        self.state = product.wrapping_add(self.increment);
    }

    fn next_u64(&mut self) -> u64 {
        self.step();
        let folded = (self.state >> 64) as u64 ^ self.state as u64;
        folded.rotate_right((self.state >> 122) as u32)
    }

    fn next_u32(&mut self) -> u32 {
        if let Some(half) = self.half.take() {
            return half;
        }
        let number = self.next_u64();
        self.half = Some((number >> 32) as u32);
        number as u32
    }

    /// A number up to `last`, as numpy's `random_interval` draws it.
    fn up_to(&mut self, last: u32) -> u32 {
        let mask = u32::MAX.checked_shr(last.leading_zeros()).unwrap_or(0);
        loop {
            let number = self.next_u32() & mask;
            if number <= last {
                return number;
            }
        }
    }
}

/// The four words that numpy's `SeedSequence(seed)` makes for PCG64.
fn seed_words(seed: u32) -> [u64; 4] {
    let mut constant = 0x43b0_d7e5_u32;
    let mut hash = |value: u32| {
        let value = value ^ constant;
        constant = constant.wrapping_mul(0x931e_8875);
        let value = value.wrapping_mul(constant);
        value ^ (value >> 16)
    };
    let mut pool = [seed, 0, 0, 0].map(&mut hash);
    for from in 0..pool.len() {
        for to in (0..pool.len()).filter(|to| *to != from) {
            let mixed = pool[to]
                .wrapping_mul(0xca01_f9dd)
                .wrapping_sub(hash(pool[from]).wrapping_mul(0x4973_f715));
            pool[to] = mixed ^ (mixed >> 16);
        }
    }
    let mut constant = 0x8b51_f9dd_u32;
    let mut word = |i: usize| {
        let value = pool[i % pool.len()] ^ constant;
        constant = constant.wrapping_mul(0x58f3_8ded);
        let value = value.wrapping_mul(constant);
        u64::from(value ^ (value >> 16))
    };
    std::array::from_fn(|i| word(2 * i) | (word(2 * i + 1) << 32))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of numpy 2.4: `SeedSequence(42).generate_state(4, uint64)` and
    /// `default_rng(42).permutation(n)`.
    #[test]
    fn it_is_the_permutation_of_numpy() {
        let words = [
            11_465_652_750_463_011_511,
            15_382_171_918_060_459_190,
            9_018_504_550_953_525_431,
            3_703_499_796_004_394_495,
        ];
        assert_eq!(seed_words(42), words);
        assert_eq!(permutation(10, 42), [5, 6, 0, 7, 3, 2, 4, 9, 1, 8]);
        let order = permutation(4846, 42);
        assert_eq!(order[..5], [1855, 4392, 2806, 651, 1168]);
        assert_eq!(order[1207..1212], [3464, 4438, 3942, 267, 289]);
    }

    /// Of datasets 5.2: `Dataset.from_dict({"i": range(n)}).train_test_split(share, seed=42)`.
    #[test]
    fn it_is_the_split_of_datasets() {
        let sum = |rows: &BTreeSet<usize>| rows.iter().sum::<usize>();
        let phrases = test_rows(4846, 0.25, 42);
        assert_eq!((phrases.len(), sum(&phrases)), (1212, 2_983_152));
        let sentences = test_rows(1213, 0.226, 42);
        assert_eq!((sentences.len(), sum(&sentences)), (275, 159_757));
        assert_eq!(Vec::from_iter(test_rows(10, 0.25, 42)), [0, 5, 6]);
    }

    #[test]
    fn about_a_quarter_is_held_out() {
        let count = (0..4000)
            .filter(|i| is_held_out(&format!(" Sentence {i}.")))
            .count();
        assert!((900..1100).contains(&count), "{count}");
        assert_eq!(is_held_out("a"), is_held_out(" a\n"));
    }
}
