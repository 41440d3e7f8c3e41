//! SCAFFOLD: Karimireddy et al. 2020, arXiv 1910.06378, Algorithm 1, option II.
//!
//! Clients correct by control variates, `y ← y - η_l·(g(y) - c_i + c)`, and
//! keep `c_i⁺ = c_i - c + (x - y)/(K·η_l)`: for plain SGD that is the mean of
//! the gradients along the way, and that mean is what clients keep whatever
//! their optimizer. The server takes `x ← x + η_g/|S|·Σ Δy_i` and
//! `c ← c + 1/N·Σ Δc_i` with N the size of the population.
//!
//! OpenFedLLM corrects the parameters after each AdamW step,
//! `w ← w - η_l·(c - c_i)`, takes option II's formula as it stands, and
//! weights Δy_i by rows.

use super::{Compat, LocalChoice, Parameter, Preset, ServerOptimizer, WeightBy};
use crate::wire::VariateForm;

pub(super) const PRESET: Preset = Preset {
    paper: "Karimireddy et al. 2020, arXiv 1910.06378, Algorithm 1, option II",
    parameters: &[Parameter {
        name: "eta_g",
        default: 1.0,
        range: (1e-6, 100.0),
        about: "the server's learning rate",
    }],
    weight_by: |compat| match compat {
        Compat::Paper => WeightBy::Uniform,
        Compat::OpenFedLlm => WeightBy::Rows,
    },
    local: |_, compat| LocalChoice::ControlVariate {
        form: match compat {
            Compat::Paper => VariateForm::Gradient,
            Compat::OpenFedLlm => VariateForm::AfterStep,
        },
    },
    server: |values, _| ServerOptimizer::Sgd {
        lr: values.of("eta_g"),
    },
};
