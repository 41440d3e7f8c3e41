//! What the model says of tokens: log-probabilities, and the tokens that it would rather see.

use burn::tensor::{Device, Tensor};
use rayon::prelude::*;

use super::host::Host;
use super::loss::Head;

/// What the model says of one target token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenScore {
    /// Natural logarithm of the target's probability.
    pub log_prob: f32,
    /// The most probable token.
    pub top: u32,
}

/// What the model says of one target token, and of those that it would rather see.
///
/// A token that is both has one and the same log-probability in both places.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogProbs {
    /// Natural logarithm of the target's probability.
    pub log_prob: f32,
    /// The most probable tokens and their log-probabilities, the largest first; of equals, the
    /// first token.
    pub top: Vec<(u32, f32)>,
}

impl TokenLogProbs {
    /// What one row of logits says of `target`, with the `top` most probable tokens.
    pub(crate) fn of_row(logits: &[f32], target: u32, top: usize) -> Self {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let largest = f64::from(largest);
        let sum: f64 = logits
            .iter()
            .map(|logit| (f64::from(*logit) - largest).exp())
            .sum();
        let log_sum = sum.ln();
        let log_prob = |logit: f32| (f64::from(logit) - largest - log_sum) as f32;
        let top = most_probable(logits, top).into_iter();
        Self {
            log_prob: log_prob(logits[target as usize]),
            top: top.map(|(token, logit)| (token, log_prob(logit))).collect(),
        }
    }
}

impl Head {
    /// The log-probability of each target and the most probable token in its place.
    pub fn score(&self, h: &Tensor<2>, targets: &[u32]) -> Vec<TokenScore> {
        let said = self.token_log_probs(h, targets, 1).into_iter();
        said.map(|said| TokenScore {
            log_prob: said.log_prob,
            // There is one, because a vocabulary is never empty.
            top: said.top.first().map_or(0, |(token, _)| *token),
        })
        .collect()
    }

    /// What the model says of each target under the hidden states `h` `[n, features]`, with the
    /// `top` most probable tokens in its place.
    pub fn token_log_probs(
        &self,
        h: &Tensor<2>,
        targets: &[u32],
        top: usize,
    ) -> Vec<TokenLogProbs> {
        let vocabulary = self.weight.rows();
        let mut all = Vec::with_capacity(targets.len());
        for (h, targets) in self.chunks(h, targets, 1.0) {
            let logits = Host::of(self.logits(&h).to_device(&Device::flex())).into_values();
            let rows = logits.par_chunks(vocabulary).zip(targets);
            all.par_extend(rows.map(|(row, &target)| TokenLogProbs::of_row(row, target, top)));
        }
        all
    }
}

/// The `count` largest logits with their tokens, in falling order.
fn most_probable(logits: &[f32], count: usize) -> Vec<(u32, f32)> {
    let mut best: Vec<(u32, f32)> = Vec::with_capacity(count.min(logits.len()) + 1);
    for (token, &logit) in logits.iter().enumerate() {
        let full = best.len() == count;
        if full && best.last().is_none_or(|(_, least)| logit <= *least) {
            continue;
        }
        let place = best.partition_point(|(_, other)| *other >= logit);
        best.insert(place, (token as u32, logit));
        best.truncate(count);
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_probable_tokens_come_first_and_agree_with_the_target() {
        // Probabilities 0.2, 0.5, 0.1, 0.2.
        let logits = [
            0.2f32.ln() + 3.0,
            0.5f32.ln() + 3.0,
            0.1f32.ln() + 3.0,
            0.2f32.ln() + 3.0,
        ];
        let said = TokenLogProbs::of_row(&logits, 3, 3);
        let tokens: Vec<u32> = said.top.iter().map(|(token, _)| *token).collect();
        assert_eq!(tokens, [1, 0, 3]);
        assert_eq!(said.top[2].1, said.log_prob);
        for ((_, log_prob), expected) in said.top.iter().zip([0.5f32, 0.2, 0.2]) {
            assert!((log_prob - expected.ln()).abs() < 1e-6);
        }
        assert!(TokenLogProbs::of_row(&logits, 0, 0).top.is_empty());
        assert_eq!(TokenLogProbs::of_row(&logits, 0, 9).top.len(), 4);
    }
}
