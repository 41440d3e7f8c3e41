//! Algorithms, each a choice on three axes: what clients correct, how their
//! updates reduce to one, and how the server steps.

use serde::{Deserialize, Serialize};

/// An algorithm and its parameters, as configured. Grows at the end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StrategySpec {
    /// FedAvg: plain local training, weighted mean, one step along it.
    #[serde(rename = "fedavg")]
    FedAvg {
        /// What the mean is multiplied with.
        server_lr: f32,
    },
}

/// What an update weighs in the mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Weighting {
    /// The figure that is taken.
    pub by: WeightBy,
    /// The most it may count.
    pub max: u64,
}

/// The figure an update's weight is taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightBy {
    /// Rows of the client's shard: the n of the FedAvg paper.
    Rows,
    /// Label tokens of the client's shard.
    LossTokens,
    /// One for everyone.
    Uniform,
}
