//! FedAvgM: Hsu, Qi and Brown 2019, arXiv 1909.06335, section 4.3.
//!
//! `v ← β·v + Δ`, `w ← w + v` with Δ the clients' mean weighted by rows.
//! OpenFedLLM has `v ← β·v + (1-β)·Δ`, and `v ← Δ` in the first round: its
//! steady step is `1-β` of the paper's.

use super::fedavg::SERVER_LR;
use super::{LocalChoice, Parameter, Preset, ServerOptimizer, WeightBy};

pub(super) const PRESET: Preset = Preset {
    paper: "Hsu et al. 2019, arXiv 1909.06335, section 4.3",
    parameters: &[
        Parameter {
            name: "beta",
            default: 0.9,
            range: (0.0, 0.999_999),
            about: "the decay of the server's momentum",
        },
        SERVER_LR,
    ],
    weight_by: |_| WeightBy::Rows,
    local: |_, _| LocalChoice::Plain,
    server: |values, compat| ServerOptimizer::Momentum {
        beta: values.of("beta"),
        lr: values.of("server_lr"),
        compat,
    },
};
