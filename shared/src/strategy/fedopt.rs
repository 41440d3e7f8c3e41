//! FedAdagrad, FedYogi and FedAdam: Reddi et al. 2021, arXiv 2003.00295,
//! Algorithm 2.
//!
//! The mean Δ is even, `m ← β₁·m + (1-β₁)·Δ`, and `x ← x + η·m/(√v + τ)`;
//! they differ in how v takes in Δ². FedAdagrad's β₁ is 0 in the paper's
//! experiments, and here by default.

use super::{
    Compat, LocalChoice, Parameter, Preset, SecondMoment, ServerOptimizer, Values, WeightBy,
};

const ETA: Parameter = Parameter {
    name: "eta",
    default: 1e-3,
    range: (1e-9, 100.0),
    about: "the server's learning rate η",
};
const TAU: Parameter = Parameter {
    name: "tau",
    default: 1e-3,
    range: (1e-12, 1.0),
    about: "the degree of adaptivity τ; v begins at τ²",
};
const BETA1: Parameter = Parameter {
    name: "beta1",
    default: 0.9,
    range: (0.0, 0.999_999),
    about: "the decay of the first moment",
};
const BETA2: Parameter = Parameter {
    name: "beta2",
    default: 0.99,
    range: (0.0, 0.999_999_9),
    about: "the decay of the second moment",
};

pub(super) const ADAGRAD: Preset = Preset {
    parameters: &[
        ETA,
        TAU,
        Parameter {
            default: 0.0,
            ..BETA1
        },
    ],
    // OpenFedLLM uses no momentum here, whatever beta1 says.
    server: |values, compat| match compat {
        Compat::Paper => adaptive(SecondMoment::Adagrad, values.of("beta1"), values, compat),
        Compat::OpenFedLlm => adaptive(SecondMoment::Adagrad, 0.0, values, compat),
    },
    ..YOGI
};

pub(super) const YOGI: Preset = Preset {
    paper: "Reddi et al. 2021, arXiv 2003.00295, Algorithm 2",
    parameters: &[ETA, TAU, BETA1, BETA2],
    weight_by: |_| WeightBy::Uniform,
    local: |_, _| LocalChoice::Plain,
    server: |values, compat| adaptive(SecondMoment::Yogi, values.of("beta1"), values, compat),
};

pub(super) const ADAM: Preset = Preset {
    server: |values, compat| adaptive(SecondMoment::Adam, values.of("beta1"), values, compat),
    ..YOGI
};

fn adaptive(rule: SecondMoment, beta1: f64, values: &Values, compat: Compat) -> ServerOptimizer {
    ServerOptimizer::Adaptive {
        rule,
        eta: values.of("eta"),
        tau: values.of("tau"),
        beta1,
        beta2: match rule {
            SecondMoment::Adagrad => 0.0,
            SecondMoment::Yogi | SecondMoment::Adam => values.of("beta2"),
        },
        compat,
    }
}
