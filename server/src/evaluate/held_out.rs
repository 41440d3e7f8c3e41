//! Measures a model on held-out rows: what it loses, what it gets right, what it prefers.

use std::ops::Range;

use fedllm_client::Shard;
use fedllm_models::objective::{PairReference, pair_scores};
use fedllm_models::{Batch, CausalLm, Lora};
use fedllm_shared::{Estimate, RowKind};

/// Tokens that go through the model at once.
const BATCH_TOKENS: usize = 1024;

/// What a model makes of one held-out example.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct RowScore {
    /// The mean loss over the row's labels.
    pub(crate) loss: f64,
    /// Whether every label is the most probable token after the ones before it, which is when
    /// greedy decoding writes that answer.
    pub(crate) exact: bool,
}

/// Scores every example of a shard, with or without an adapter.
pub(crate) fn score_rows(model: &CausalLm, lora: Option<&Lora>, shard: &Shard) -> Vec<RowScore> {
    batches(shard)
        .into_iter()
        .flat_map(|units| score_batch(model, lora, shard, units))
        .collect()
}

/// By how much each pair's chosen answer gains on the rejected one, in nats: the `h` of preference
/// losses. The reference is the base, or another adapter on it.
pub(crate) fn score_pairs(
    model: &CausalLm,
    lora: Option<&Lora>,
    reference: Option<&Lora>,
    shard: &Shard,
) -> Vec<f64> {
    let reference = reference.map_or(PairReference::Base, PairReference::Adapter);
    batches(shard)
        .into_iter()
        .flat_map(|units| {
            let (batch, _) = pack(shard, units);
            // A shard of preferences has pairs, each with labels: it cannot be written otherwise.
            pair_scores(model, &batch, lora, reference).unwrap_or_default()
        })
        .map(|score| f64::from(score.margin()))
        .collect()
}

/// The mean and its standard error, 0 where they are not known.
pub(crate) fn mean_and_error(figures: &[f64]) -> (f64, f64) {
    let estimate = Estimate::of(figures.iter().copied());
    (
        estimate.mean.unwrap_or(0.0),
        estimate.standard_error.unwrap_or(0.0),
    )
}

/// The units of a shard in runs of about [`BATCH_TOKENS`] tokens.
fn batches(shard: &Shard) -> Vec<Range<usize>> {
    let mut batches = Vec::new();
    let (mut start, mut tokens) = (0, 0);
    for unit in 0..shard.units() {
        let rows = shard.rows_of(unit);
        let len: usize = rows.map(|row| shard.row(row).ids.len()).sum();
        if tokens + len > BATCH_TOKENS && unit > start {
            batches.push(start..unit);
            (start, tokens) = (unit, 0);
        }
        tokens += len;
    }
    batches.push(start..shard.units());
    batches
}

/// The rows of some units, and where each row's labels are among the batch's.
fn pack(shard: &Shard, units: Range<usize>) -> (Batch, Vec<Range<usize>>) {
    let mut batch = Batch::default();
    let mut labels = Vec::new();
    for row in units.flat_map(|unit| shard.rows_of(unit)) {
        let row = shard.row(row);
        let before = batch.loss_tokens();
        batch.push(row.ids, |i| row.loss[i] != 0);
        labels.push(before..batch.loss_tokens());
    }
    (batch, labels)
}

fn score_batch(
    model: &CausalLm,
    lora: Option<&Lora>,
    shard: &Shard,
    units: Range<usize>,
) -> Vec<RowScore> {
    debug_assert_eq!(shard.kind(), RowKind::Examples);
    let (batch, labels) = pack(shard, units);
    let scores = model.score(&batch, lora);
    labels
        .into_iter()
        .map(|range| {
            let targets = &batch.targets[range.clone()];
            let scores = &scores[range];
            let sum: f64 = scores.iter().map(|s| -f64::from(s.log_prob)).sum();
            RowScore {
                loss: sum / scores.len().max(1) as f64,
                exact: scores.iter().zip(targets).all(|(s, t)| s.top == *t),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_of_a_mean_is_that_of_the_sample() {
        // Variance 1, four figures: 1/√4.
        let (mean, error) = mean_and_error(&[1.0, 3.0, 2.0, 2.0]);
        assert_eq!(mean, 2.0);
        assert!((error - (2.0f64 / 3.0 / 4.0).sqrt()).abs() < 1e-12);
        assert_eq!(mean_and_error(&[5.0]), (5.0, 0.0));
    }
}
