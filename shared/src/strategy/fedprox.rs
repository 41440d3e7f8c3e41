//! FedProx: Li et al. 2018, arXiv 1812.06127, Algorithm 2.
//!
//! Clients minimize `h_k(w) = F_k(w) + μ/2·‖w - w_t‖²` (eq. 2); the rest is
//! FedAvg. The paper draws clients with probability n_k/n and averages them
//! evenly; here they are drawn evenly and weighted by n_k, as OpenFedLLM
//! does: in expectation both are the same.

use super::fedavg::SERVER_LR;
use super::{LocalChoice, Parameter, Preset, ServerOptimizer, WeightBy};

pub(super) const PRESET: Preset = Preset {
    paper: "Li et al. 2018, arXiv 1812.06127, Algorithm 2",
    parameters: &[
        Parameter {
            name: "mu",
            default: 0.01,
            range: (0.0, 1e6),
            about: "how strongly clients are pulled to the adapter that the round began with",
        },
        SERVER_LR,
    ],
    weight_by: |_| WeightBy::Rows,
    local: |values, _| LocalChoice::Proximal {
        mu: values.of("mu") as f32,
    },
    server: |values, _| ServerOptimizer::Sgd {
        lr: values.of("server_lr"),
    },
};
