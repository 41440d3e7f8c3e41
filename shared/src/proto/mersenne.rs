//! Python's `random.sample` after `random.seed`: how OpenFedLLM chooses a
//! round's clients.
//!
//! The generator is MT19937 (Matsumoto and Nishimura 1998); seeding, bounded
//! numbers and sampling follow the documented behaviour of CPython 3.

const WORDS: usize = 624;
const SHIFT: usize = 397;

/// `random.sample(range(population), count)` after `random.seed(seed)`.
///
/// At most `population` numbers are given.
pub(super) fn sample(seed: u64, population: usize, count: usize) -> Vec<usize> {
    let mut random = Mersenne::seeded(seed);
    let count = count.min(population);
    // Above this size Python remembers what it drew instead of copying the population.
    let mut limit = 21usize;
    if count > 5 {
        let digits = ((count * 3) as f64).log(4.0).ceil();
        limit += 4usize.saturating_pow(digits as u32);
    }
    match population <= limit {
        true => from_pool(&mut random, population, count),
        false => from_set(&mut random, population, count),
    }
}

fn from_pool(random: &mut Mersenne, population: usize, count: usize) -> Vec<usize> {
    let mut pool: Vec<usize> = (0..population).collect();
    (0..count)
        .map(|drawn| {
            let last = population - drawn - 1;
            pool.swap(random.below(last + 1), last);
            pool[last]
        })
        .collect()
}

fn from_set(random: &mut Mersenne, population: usize, count: usize) -> Vec<usize> {
    let mut drawn: Vec<usize> = Vec::with_capacity(count);
    while drawn.len() < count {
        let next = random.below(population);
        if !drawn.contains(&next) {
            drawn.push(next);
        }
    }
    drawn
}

struct Mersenne {
    state: [u32; WORDS],
    next: usize,
}

impl Mersenne {
    fn seeded(seed: u64) -> Self {
        let (low, high) = (seed as u32, (seed >> 32) as u32);
        match high {
            0 => Self::of_key(&[low]),
            _ => Self::of_key(&[low, high]),
        }
    }

    fn of_word(seed: u32) -> Self {
        let mut state = [seed; WORDS];
        for i in 1..WORDS {
            let before = state[i - 1];
            state[i] = 1_812_433_253u32
                .wrapping_mul(before ^ (before >> 30))
                .wrapping_add(i as u32);
        }
        Self { state, next: WORDS }
    }

    fn of_key(key: &[u32]) -> Self {
        let mut random = Self::of_word(19_650_218);
        let state = &mut random.state;
        let mut i = 1;
        let mix = |state: &[u32; WORDS], i: usize, factor: u32| {
            let before = state[i - 1];
            state[i] ^ (before ^ (before >> 30)).wrapping_mul(factor)
        };
        let step = |state: &mut [u32; WORDS], i: usize| {
            if i + 1 < WORDS {
                return i + 1;
            }
            state[0] = state[WORDS - 1];
            1
        };
        for k in 0..WORDS.max(key.len()) {
            let j = k % key.len();
            let mixed = mix(state, i, 1_664_525);
            state[i] = mixed.wrapping_add(key[j]).wrapping_add(j as u32);
            i = step(state, i);
        }
        for _ in 1..WORDS {
            state[i] = mix(state, i, 1_566_083_941).wrapping_sub(i as u32);
            i = step(state, i);
        }
        state[0] = 1 << 31;
        random
    }

    fn word(&mut self) -> u32 {
        if self.next == WORDS {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    fn twist(&mut self) {
        for i in 0..WORDS {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % WORDS] & 0x7fff_ffff);
            let odd = if y & 1 == 0 { 0 } else { 0x9908_b0df };
            self.state[i] = self.state[(i + SHIFT) % WORDS] ^ (y >> 1) ^ odd;
        }
        self.next = 0;
    }

    /// A number below `bound`, which is at least 1 and below 2³².
    fn below(&mut self, bound: usize) -> usize {
        let bits = usize::BITS - bound.leading_zeros();
        loop {
            let drawn = (self.word() >> (32 - bits)) as usize;
            if drawn < bound {
                return drawn;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `random.seed(r); random.sample(range(n), k)` in CPython 3.11.
    #[test]
    fn it_is_the_sample_of_python() {
        assert_eq!(sample(0, 5, 3), [3, 4, 0]);
        assert_eq!(sample(1, 5, 3), [1, 0, 4]);
        assert_eq!(sample(7, 20, 2), [10, 4]);
        assert_eq!(sample(199, 20, 2), [11, 12]);
        assert_eq!(sample(3, 100, 10), [30, 75, 69, 16, 47, 77, 60, 80, 74, 8]);
        assert_eq!(sample(12_345, 1000, 5), [426, 750, 10, 839, 845]);
        assert_eq!(
            sample(1_099_511_627_793, 300, 7),
            [123, 234, 56, 227, 211, 253, 71]
        );
        assert_eq!(sample(5, 4, 4), [2, 3, 1, 0]);
        assert_eq!(sample(2, 21, 6), [1, 2, 19, 11, 5, 9]);
    }
}
