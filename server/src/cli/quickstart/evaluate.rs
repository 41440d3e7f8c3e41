//! Measures a model on every owner's held-out rows.

use fedllm_client::{Shard, score_rows};
use fedllm_models::{CausalLm, Lora};

use super::report::{OwnerRows, Score};

/// Each owner's held-out rows.
pub(super) type HeldOut = [(&'static str, Shard)];

/// Scores a model, with or without an adapter, on every owner's held-out rows.
pub(super) fn score(model: &CausalLm, lora: Option<&Lora>, held_out: &HeldOut) -> Score {
    let owners = held_out
        .iter()
        .map(|(owner, shard)| owner_rows(model, lora, owner, shard));
    Score::over(owners.collect())
}

fn owner_rows(model: &CausalLm, lora: Option<&Lora>, owner: &str, shard: &Shard) -> OwnerRows {
    let rows = score_rows(model, lora, shard);
    let count = rows.len().max(1) as f64;
    OwnerRows {
        owner: owner.to_owned(),
        rows: rows.len(),
        loss: rows.iter().map(|row| row.loss).sum::<f64>() / count,
        exact_match: rows.iter().filter(|row| row.exact).count() as f64 / count,
    }
}
