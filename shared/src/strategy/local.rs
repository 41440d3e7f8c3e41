//! Local training: every owner alone, the baseline of every comparison.
//!
//! Nothing is averaged. Each client's next round begins with the adapter that
//! its own last one ended with, so that all owners train at once, in the same
//! rounds and with as many steps as under any other algorithm.

use super::{LocalChoice, Preset, ServerOptimizer, WeightBy};

pub(super) const PRESET: Preset = Preset {
    paper: "no aggregation",
    parameters: &[],
    weight_by: |_| WeightBy::Rows,
    local: |_, _| LocalChoice::Plain,
    server: |_, _| ServerOptimizer::Sgd { lr: 1.0 },
};
