//! Which rows make up each step's batch.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::sample::shuffle;

/// Hands out the units of a shard in batches, epoch after epoch, without end.
///
/// The units of a shard of examples are its rows; of preferences, its pairs, whose rows
/// [`Shard::rows_of`](super::Shard::rows_of) tells. Here both are called rows. They are numbered in file order, or in an order shuffled anew for each epoch: a Fisher-Yates
/// shuffle by ChaCha8, seeded with the seed and the epoch only, so that the same seed gives the
/// same batches on every machine. A batch that reaches the end of an epoch goes on with the next
/// one, so every batch has the same size. Without rows there are no batches.
///
/// # Examples
///
/// ```
/// let batches: Vec<_> = fedllm_client::Batcher::new(3, 2, 0, false).take(3).collect();
/// assert_eq!(batches, [[0, 1], [2, 0], [1, 2]]);
/// ```
#[derive(Clone, Debug)]
pub struct Batcher {
    rows: usize,
    batch: usize,
    seed: u64,
    shuffle: bool,
    epoch: u64,
    next: usize,
    /// This epoch's order; empty in file order.
    order: Vec<u32>,
}

impl Batcher {
    /// Batches of `batch` rows out of `rows`.
    pub fn new(rows: usize, batch: usize, seed: u64, shuffle: bool) -> Self {
        let mut batcher = Self {
            rows,
            batch,
            seed,
            // Row numbers of an epoch's order are u32: a shard of more rows is read in file order.
            shuffle: shuffle && u32::try_from(rows).is_ok(),
            epoch: 0,
            next: 0,
            order: Vec::new(),
        };
        batcher.start_epoch();
        batcher
    }

    fn start_epoch(&mut self) {
        self.next = 0;
        if !self.shuffle {
            return;
        }
        self.order.clear();
        self.order.extend(0..self.rows as u32);
        let mut rng = epoch_rng(self.seed, self.epoch);
        shuffle(&mut self.order, &mut rng);
    }

    fn next_row(&mut self) -> usize {
        if self.next == self.rows {
            self.epoch += 1;
            self.start_epoch();
        }
        let at = self.next;
        self.next += 1;
        self.order.get(at).map_or(at, |&row| row as usize)
    }
}

impl Iterator for Batcher {
    type Item = Vec<usize>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rows == 0 || self.batch == 0 {
            return None;
        }
        Some((0..self.batch).map(|_| self.next_row()).collect())
    }
}

fn epoch_rng(seed: u64, epoch: u64) -> ChaCha8Rng {
    let mut key = *b"fedllm batcher, seed and epoch: ";
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&epoch.to_le_bytes());
    ChaCha8Rng::from_seed(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_has_every_row_once() {
        let mut rows: Vec<usize> = Batcher::new(10, 4, 7, true).take(5).flatten().collect();
        let (first, second) = rows.split_at_mut(10);
        assert_ne!(first, second, "each epoch has its own order");
        assert!(!first.is_sorted());
        first.sort_unstable();
        second.sort_unstable();
        assert_eq!(first, (0..10).collect::<Vec<_>>());
        assert_eq!(second, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn seed_decides_the_order() {
        let take = |seed| -> Vec<_> { Batcher::new(100, 8, seed, true).take(30).collect() };
        assert_eq!(take(1), take(1));
        assert_ne!(take(1), take(2));
    }

    #[test]
    fn batch_larger_than_shard_wraps() {
        let mut batcher = Batcher::new(2, 5, 0, false);
        assert_eq!(batcher.next(), Some(vec![0, 1, 0, 1, 0]));
        assert_eq!(batcher.next(), Some(vec![1, 0, 1, 0, 1]));
    }

    #[test]
    fn no_rows_no_batches() {
        assert_eq!(Batcher::new(0, 4, 0, true).next(), None);
        assert_eq!(Batcher::new(4, 0, 0, true).next(), None);
    }

    #[test]
    fn shuffle_is_uniform() {
        // 24 orders of 4 rows, 200 draws each: a chi-square of 60 has a probability of 4e-5.
        let mut counts = std::collections::HashMap::new();
        for order in Batcher::new(4, 4, 3, true).take(4800) {
            *counts.entry(order).or_insert(0u32) += 1;
        }
        let chi: f64 = counts
            .values()
            .map(|&n| (f64::from(n) - 200.0).powi(2) / 200.0)
            .sum();
        assert_eq!(counts.len(), 24);
        assert!(chi < 60.0, "{chi}");
    }
}
