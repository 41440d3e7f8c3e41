//! Rows that nobody trains on: held out of a shard, and scored with a model.

use std::ops::Range;

use fedllm_models::objective::{PairReference, PairScore, pair_scores};
use fedllm_models::{Batch, CausalLm, Lora, device};
use fedllm_shared::{HeldOutScore, RowKind};
use thiserror::Error;

use crate::governor::StopFlag;
use crate::shard::{Shard, sample_units};

/// Tokens that go through the model at once.
const BATCH_TOKENS: usize = 1024;
/// Decides which units are held out: the same of one shard at every start, or they would be trained
/// on in another.
const SEED: u64 = 0;

/// Divides a shard into what is trained on and what is held out, a `share` of it drawn at random.
/// There is nothing to hold out if that is less than [`HeldOutScore::MIN_ROWS`], or everything.
pub fn hold_out(shard: &Shard, share: f64) -> Option<(Shard, Shard)> {
    let units = shard.units();
    let count = (units as f64 * share).round() as usize;
    if count < HeldOutScore::MIN_ROWS as usize || count >= units {
        return None;
    }
    let mut drawn = sample_units(units, usize::MAX, SEED);
    let mut trained = drawn.split_off(count);
    // As they stand in the shard, for training that does not shuffle.
    trained.sort_unstable();
    Some((shard.subset(&trained), shard.subset(&drawn)))
}

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
    /// The means.
    pub fn mean(&self) -> HeldOutScore {
        let rows = self.losses.len().max(1) as f64;
        let right = self.right.iter().filter(|right| **right).count();
        HeldOutScore {
            loss: (self.losses.iter().sum::<f64>() / rows) as f32,
            accuracy: (right as f64 / rows) as f32,
            rows: u32::try_from(self.losses.len()).unwrap_or(u32::MAX),
        }
    }

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
    use fedllm_shared::Digest;

    use super::*;
    use crate::shard::{RowSink, ShardBuilder, ShardOrigin};

    fn shard(rows: u32) -> Shard {
        let mut builder = ShardBuilder::new();
        for row in 0..rows {
            builder.push(&[1, row], &[0, 1]).unwrap();
        }
        builder.finish(ShardOrigin {
            tokenizer: Digest::default(),
            template: Digest::default(),
            max_tokens: 8,
        })
    }

    fn rows(shard: &Shard) -> Vec<u32> {
        (0..shard.rows()).map(|row| shard.row(row).ids[1]).collect()
    }

    #[test]
    fn what_is_held_out_is_not_trained_on_and_stays_the_same() {
        let whole = shard(100);
        let (trained, held_out) = hold_out(&whole, 0.1).unwrap();
        assert_eq!((trained.units(), held_out.units()), (90, 10));
        assert!(rows(&trained).is_sorted());
        let mut all = [rows(&trained), rows(&held_out)].concat();
        all.sort_unstable();
        assert_eq!(all, rows(&whole));
        let again = hold_out(&shard(100), 0.1).unwrap();
        assert_eq!(rows(&again.1), rows(&held_out));
    }

    #[test]
    fn a_few_rows_are_not_held_out() {
        assert!(hold_out(&shard(100), 0.04).is_none());
        assert!(hold_out(&shard(100), 0.05).is_some());
        assert!(hold_out(&shard(6), 1.0).is_none());
        assert!(hold_out(&shard(0), 0.5).is_none());
    }

    #[test]
    fn means_are_over_units() {
        let mut scores = UnitScores::default();
        scores.add_rows(&[
            RowScore {
                loss: 1.0,
                exact: true,
            },
            RowScore {
                loss: 2.0,
                exact: false,
            },
        ]);
        let mean = scores.mean();
        assert_eq!((mean.loss, mean.accuracy, mean.rows), (1.5, 0.5, 2));

        let mut scores = UnitScores::default();
        scores.add_pairs(vec![0.0, 800.0, -800.0]);
        let expected = [2f64.ln(), 0.0, 800.0];
        let near = scores.losses.iter().zip(expected);
        assert!(
            near.clone()
                .all(|(got, expected)| (got - expected).abs() < 1e-12)
        );
        assert_eq!(scores.right, [false, true, false]);
    }
}
