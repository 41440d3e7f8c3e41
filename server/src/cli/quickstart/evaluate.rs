//! Measures a model on held-out rows: loss, and whether greedy decoding gives the answer.

use std::ops::Range;

use fedllm_client::Shard;
use fedllm_models::{Batch, CausalLm, Lora};

use super::report::{OwnerRows, Score};

/// Tokens that go through the model at once.
const BATCH_TOKENS: usize = 1024;

/// Each owner's held-out rows.
pub(super) type HeldOut = [(&'static str, Shard)];

/// Scores a model, with or without an adapter, on every owner's held-out rows.
///
/// A row's loss is the mean over its labels. A row counts as answered exactly if every label is the
/// most probable token after the ones before it, which is when greedy decoding writes that answer.
pub(super) fn score(model: &CausalLm, lora: Option<&Lora>, held_out: &HeldOut) -> Score {
    let owners = held_out
        .iter()
        .map(|(owner, shard)| owner_rows(model, lora, owner, shard));
    Score::over(owners.collect())
}

fn owner_rows(model: &CausalLm, lora: Option<&Lora>, owner: &str, shard: &Shard) -> OwnerRows {
    let rows: Vec<(f64, bool)> = batches(shard)
        .into_iter()
        .flat_map(|rows| score_batch(model, lora, shard, rows))
        .collect();
    let count = rows.len().max(1) as f64;
    OwnerRows {
        owner: owner.to_owned(),
        rows: rows.len(),
        loss: rows.iter().map(|(loss, _)| loss).sum::<f64>() / count,
        exact_match: rows.iter().filter(|(_, exact)| *exact).count() as f64 / count,
    }
}

/// The rows of a shard in runs of about [`BATCH_TOKENS`] tokens.
fn batches(shard: &Shard) -> Vec<Range<usize>> {
    let mut batches = Vec::new();
    let (mut start, mut tokens) = (0, 0);
    for row in 0..shard.rows() {
        let len = shard.row(row).ids.len();
        if tokens + len > BATCH_TOKENS && row > start {
            batches.push(start..row);
            (start, tokens) = (row, 0);
        }
        tokens += len;
    }
    batches.push(start..shard.rows());
    batches
}

/// Mean loss of each row, and whether all of its labels are the model's first choice.
fn score_batch(
    model: &CausalLm,
    lora: Option<&Lora>,
    shard: &Shard,
    rows: Range<usize>,
) -> Vec<(f64, bool)> {
    let mut batch = Batch::default();
    let mut labels = Vec::with_capacity(rows.len());
    for row in rows {
        let row = shard.row(row);
        let before = batch.loss_tokens();
        batch.push(row.ids, |i| row.loss[i] != 0);
        labels.push(before..batch.loss_tokens());
    }
    let scores = model.score(&batch, lora);
    labels
        .into_iter()
        .map(|range| {
            let targets = &batch.targets[range.clone()];
            let scores = &scores[range];
            let sum: f64 = scores.iter().map(|s| -f64::from(s.log_prob)).sum();
            let exact = scores.iter().zip(targets).all(|(s, t)| s.top == *t);
            (sum / scores.len().max(1) as f64, exact)
        })
        .collect()
}
