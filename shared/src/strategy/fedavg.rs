//! FedAvg: McMahan et al. 2017, arXiv 1602.05629, Algorithm 1.
//!
//! Plain local training, the mean weighted by the rows n_k of the shards:
//! `w ← Σ n_k/n · w_k`. With `server_lr` 1, as in the paper, the new adapter
//! is that mean; OpenFedLLM computes the same.

use super::{LocalChoice, Parameter, Preset, ServerOptimizer, WeightBy};

/// What the mean of the updates is multiplied with.
pub(super) const SERVER_LR: Parameter = Parameter {
    name: "server_lr",
    default: 1.0,
    range: (1e-6, 100.0),
    about: "what the mean of the updates is multiplied with; the paper has 1",
};

pub(super) const PRESET: Preset = Preset {
    paper: "McMahan et al. 2017, arXiv 1602.05629, Algorithm 1",
    parameters: &[SERVER_LR],
    weight_by: |_| WeightBy::Rows,
    local: |_, _| LocalChoice::Plain,
    server: |values, _| ServerOptimizer::Sgd {
        lr: values.of("server_lr"),
    },
};
