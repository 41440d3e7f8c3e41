//! Rows that nobody trains on, scored with a model.

use std::ops::Range;

use fedllm_models::objective::{PairReference, PairScore, pair_scores};
use fedllm_models::{Batch, CausalLm, Lora, device};
use fedllm_shared::RowKind;
use thiserror::Error;

use crate::governor::StopFlag;
use crate::shard::Shard;

/// Tokens that go through the model at once.
const BATCH_TOKENS: usize = 1024;

/// What a model makes of one held-out example.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowScore {
    /// The mean loss over the row's labels.
    pub loss: f64,
    /// Whether every label is the most probable token after the ones before it, which is when
    /// greedy decoding writes that answer.
    pub exact: bool,
}

/// Scores every example of a shard, with or without an adapter.
pub fn score_rows(model: &CausalLm, lora: Option<&Lora>, shard: &Shard) -> Vec<RowScore> {
    batches(shard)
        .into_iter()
        .flat_map(|units| score_batch(model, lora, shard, units))
        .collect()
}

/// What the rewards of pairs are: β times what an answer gains on the reference.
#[derive(Clone, Copy, Default)]
pub struct Rewards<'a> {
    /// The β of preference losses.
    pub beta: f32,
    /// The adapter that the policy is compared with; the base if absent.
    pub reference: Option<&'a Lora>,
}

/// What a model makes of held-out units: examples, or pairs of a chosen and a rejected answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UnitScores {
    /// The loss of each in nats: a token's of an example, the sigmoid loss of a pair.
    pub losses: Vec<f64>,
    /// Whether each is right: an answer that greedy decoding writes, or a chosen answer with the
    /// larger reward.
    pub right: Vec<bool>,
    /// The reward of each pair's chosen answer minus that of the rejected one.
    pub margins: Vec<f64>,
}

impl UnitScores {
    fn add_rows(&mut self, rows: &[RowScore]) {
        self.losses.extend(rows.iter().map(|row| row.loss));
        self.right.extend(rows.iter().map(|row| row.exact));
    }

    fn add_pairs(&mut self, margins: Vec<f64>) {
        // -log σ(m), written so that it neither overflows nor cancels.
        let loss = |m: &f64| (-m.abs()).exp().ln_1p() + (-m).max(0.0);
        self.losses.extend(margins.iter().map(loss));
        self.right.extend(margins.iter().map(|m| *m > 0.0));
        self.margins.extend(margins);
    }
}

/// Why held-out rows have no scores.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ScoreError {
    /// It was asked to stop.
    #[error("scoring held-out rows was stopped")]
    Stopped,
    /// The device failed.
    #[error("the device failed: {0}")]
    Device(String),
}

/// Scores every unit of a shard, with or without an adapter. `rewards` are those of pairs.
///
/// # Errors
///
/// [`ScoreError`]. It looks at `stop` between batches.
pub fn score_units(
    model: &CausalLm,
    lora: Option<&Lora>,
    rewards: Rewards<'_>,
    shard: &Shard,
    stop: &StopFlag,
) -> Result<UnitScores, ScoreError> {
    let mut scores = UnitScores::default();
    for units in batches(shard) {
        if stop.is_stopped() {
            return Err(ScoreError::Stopped);
        }
        let batch = || match shard.kind() {
            RowKind::Examples => scores.add_rows(&score_batch(model, lora, shard, units)),
            RowKind::Preferences => {
                scores.add_pairs(batch_margins(model, lora, rewards, shard, units));
            }
        };
        device::run_checked(model.device(), batch)
            .map_err(|error| ScoreError::Device(error.to_string()))?;
    }
    Ok(scores)
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

fn batch_margins(
    model: &CausalLm,
    lora: Option<&Lora>,
    rewards: Rewards<'_>,
    shard: &Shard,
    units: Range<usize>,
) -> Vec<f64> {
    let reference = rewards.reference;
    let reference = reference.map_or(PairReference::Base, PairReference::Adapter);
    let (batch, _) = pack(shard, units);
    // A shard of preferences has pairs, each with labels: it cannot be written otherwise.
    let scores = pair_scores(model, &batch, lora, reference).unwrap_or_default();
    let margin = |score: &PairScore| f64::from(rewards.beta) * f64::from(score.margin());
    scores.iter().map(margin).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_of_pairs_neither_overflow_nor_cancel() {
        let mut scores = UnitScores::default();
        scores.add_pairs(vec![0.0, 800.0, -800.0]);
        let expected = [2f64.ln(), 0.0, 800.0];
        let mut near = scores.losses.iter().zip(expected);
        assert!(near.all(|(got, expected)| (got - expected).abs() < 1e-12));
        assert_eq!(scores.right, [false, true, false]);
    }
}
