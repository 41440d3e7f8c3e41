//! Further directions for a factor that has too few.

use super::matrix::dot;

/// What rows of a tensor are drawn by.
pub(super) fn seed(name: &str) -> u64 {
    let hash = blake3::hash(name.as_bytes());
    let first = hash.as_bytes().first_chunk();
    u64::from_le_bytes(first.copied().unwrap_or_default())
}

/// Adds rows of `len` values and length 1 until there are `count`, each orthogonal to all before.
///
/// Beyond `len` rows no more can be orthogonal; those have length 1 only. `rows` are orthonormal.
pub(super) fn complete(rows: &mut Vec<Vec<f64>>, count: usize, len: usize, seed: u64) {
    let mut random = Random(seed);
    while rows.len() < count {
        let mut row: Vec<f64> = (0..len).map(|_| random.next()).collect();
        if rows.len() < len {
            // Twice is enough: what rounding leaves after the first time is gone after the second.
            for _ in 0..2 {
                rows.iter().for_each(|other| remove(&mut row, other));
            }
        }
        let length = dot(&row, &row).sqrt();
        // A row that was almost within the others is mostly rounding: another one is drawn.
        if length > 1e-3 {
            row.iter_mut().for_each(|value| *value /= length);
            rows.push(row);
        }
    }
}

/// Takes from `row` what is along `other`, which has length 1.
fn remove(row: &mut [f64], other: &[f64]) {
    let along = dot(row, other);
    let pairs = row.iter_mut().zip(other);
    pairs.for_each(|(value, other)| *value -= along * other);
}

/// SplitMix64 (Steele et al. 2014), for values that need no more than look random.
pub(super) struct Random(pub(super) u64);

impl Random {
    /// Uniform in ±1.
    pub(super) fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        (bits >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_orthonormal_as_long_as_there_is_room() {
        for (len, count) in [(5, 5), (40, 7), (3, 6), (1, 1)] {
            let mut rows = Vec::new();
            complete(&mut rows, count, len, seed("a"));
            assert_eq!(rows.len(), count);
            for (at, row) in rows.iter().enumerate() {
                assert!((dot(row, row) - 1.0).abs() < 1e-14);
                for other in &rows[..at.min(if at < len { at } else { 0 })] {
                    assert!(dot(row, other).abs() < 1e-12, "{len} {at}");
                }
            }
        }
    }

    #[test]
    fn rows_depend_on_the_seed_and_keep_what_is_there() {
        let drawn = |seed| {
            let mut rows = vec![vec![0.0, 1.0, 0.0, 0.0]];
            complete(&mut rows, 3, 4, seed);
            rows
        };
        assert_eq!(drawn(1), drawn(1));
        assert_ne!(drawn(1)[1], drawn(2)[1]);
        assert_eq!(drawn(1)[0], [0.0, 1.0, 0.0, 0.0]);
        assert_ne!(seed("a"), seed("b"));
    }
}
