//! What models and rounds are measured by: pure figures of losses, labels and texts, and how sure
//! they are.

mod assignment;
mod bleu;
mod classification;
mod maths;
mod pass_at_k;
mod reading;
mod statistics;

pub use bleu::{Bleu, BleuCounts};
pub use classification::{Average, Classification, LabelScores};
pub use maths::{last_boxed, last_number, marked_number, maths_equal, numbers_equal};
pub use pass_at_k::pass_at_k;
pub use reading::{ReadingScore, drop_score, squad_score};
pub use statistics::{Bootstrap, Comparison, Estimate, PairedTest, average_ranks};

use serde::{Deserialize, Serialize};

/// A mean that can be merged with others: a sum and how much went into it.
///
/// ```
/// use fedllm_shared::Mean;
///
/// let mut loss = Mean::default();
/// loss.add(2.0, 3.0);
/// loss.merge(&Mean { sum: 2.0, count: 1.0 });
/// assert_eq!(loss.value(), Some(2.0));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct Mean {
    /// The sum of values times weights.
    pub sum: f64,
    /// The sum of weights.
    pub count: f64,
}

impl Mean {
    /// Adds `value` with `weight`.
    pub fn add(&mut self, value: f64, weight: f64) {
        self.sum += value * weight;
        self.count += weight;
    }

    /// Takes in another mean.
    pub fn merge(&mut self, other: &Self) {
        self.sum += other.sum;
        self.count += other.count;
    }

    /// The mean, unless there is nothing to take it of.
    pub fn value(&self) -> Option<f64> {
        (self.count > 0.0).then(|| self.sum / self.count)
    }
}

/// The perplexity of a mean loss in nats for each token: its exponential.
pub fn perplexity(mean_loss: f64) -> f64 {
    mean_loss.exp()
}

/// Whether an answer is the expected one, white space around and between words aside.
pub fn exact_match(answer: &str, expected: &str) -> bool {
    answer.split_whitespace().eq(expected.split_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_is_adding_in_any_order() {
        let values = [(1.0, 1.0), (5.0, 3.0), (-2.0, 2.0)];
        let mut whole = Mean::default();
        values
            .iter()
            .for_each(|(value, weight)| whole.add(*value, *weight));
        let mut merged = Mean::default();
        for (value, weight) in values.iter().rev() {
            let mut part = Mean::default();
            part.add(*value, *weight);
            merged.merge(&part);
        }
        assert_eq!(whole, merged);
        assert_eq!(whole.value(), Some(2.0));
        assert_eq!(Mean::default().value(), None);
    }

    #[test]
    fn perplexity_is_the_exponential_of_the_loss() {
        assert_eq!(perplexity(0.0), 1.0);
        assert!((perplexity(256f64.ln()) - 256.0).abs() < 1e-9);
    }

    #[test]
    fn white_space_does_not_matter_and_all_else_does() {
        assert!(exact_match(" a  b\n", "a b"));
        assert!(exact_match("", " "));
        assert!(!exact_match("ab", "a b"));
        assert!(!exact_match("A b", "a b"));
    }
}
