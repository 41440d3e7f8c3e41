//! Algorithms, each a choice on three axes: what clients correct, how their
//! updates reduce to one, and how the server steps.
//!
//! | axis | type | in this version |
//! |---|---|---|
//! | clients correct | [`LocalRule`](crate::LocalRule) | plain |
//! | updates reduce | [`ReduceRule`] | weighted mean |
//! | the server steps | [`ServerOptimizer`] | SGD |

mod fedavg;
mod optimizer;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use fedavg::FedAvg;
pub use optimizer::ServerOptimizer;

use crate::adapter::{Adapter, AdapterError, Delta, Layout, LayoutError};
use crate::id::{ModelVersion, RoundId};
use crate::wire::LocalRule;

/// An algorithm. Presets make three choices; a new idea that does not fit
/// implements the trait directly.
pub trait Strategy: Debug + Send + Sync {
    /// Its name in configuration files.
    fn name(&self) -> &'static str;

    /// What clients do in `round`, beyond what the federation says anyway.
    fn configure(&self, round: RoundId) -> RoundConfig;

    /// What an update's values mean: the adapter's layout, unless clients
    /// send more than their delta.
    ///
    /// # Errors
    ///
    /// [`LayoutError`] if what is sent would be too large for a layout.
    fn update_layout(&self, adapter: &Arc<Layout>) -> Result<Arc<Layout>, LayoutError> {
        Ok(adapter.clone())
    }

    /// How updates become one.
    fn reduce(&self) -> ReduceRule;

    /// Moves the adapter by what the updates became.
    ///
    /// # Errors
    ///
    /// [`AdapterError`] if the result would not be finite; the adapter and
    /// the state are then unchanged.
    fn apply(
        &self,
        adapter: &mut Adapter,
        aggregate: &Aggregate,
        state: &mut ServerState,
    ) -> Result<RoundReport, AdapterError>;
}

/// What a strategy asks of clients in one round.
#[derive(Clone, Debug, PartialEq)]
pub struct RoundConfig {
    /// What corrects their gradients.
    pub rule: LocalRule,
}

/// How updates become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReduceRule {
    /// The weighted mean of each value.
    Mean,
}

impl ReduceRule {
    /// Whether it must see each client's update, rather than their sum only.
    ///
    /// A rule that must cannot work under secure aggregation.
    pub fn needs_individual_updates(self) -> bool {
        match self {
            Self::Mean => false,
        }
    }
}

/// What the updates of a round became.
#[derive(Clone, Debug, PartialEq)]
pub struct Aggregate {
    /// The round.
    pub round: RoundId,
    /// The version they started from.
    pub base_version: ModelVersion,
    /// The reduced delta. Its negation is the pseudo-gradient.
    pub delta: Delta,
    /// How many updates went into it.
    pub updates: u32,
    /// The sum of their weights.
    pub total_weight: f64,
}

/// What a server optimizer keeps from round to round: named vectors, each as
/// long as the adapter. FedAvg keeps none.
///
/// It belongs to a version as the adapter does: both are made durable together.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct ServerState {
    /// The vectors by name, for example the momentum.
    pub vectors: BTreeMap<String, Vec<f32>>,
}

/// What a round did to the adapter.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct RoundReport {
    /// How many updates were averaged.
    pub updates: u32,
    /// The sum of their weights.
    pub total_weight: f64,
    /// The length (L2) of the reduced delta.
    pub delta_norm: f64,
    /// The length (L2) of the step the server took.
    pub step_norm: f64,
}

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

impl StrategySpec {
    /// The algorithm itself.
    pub fn build(&self) -> Box<dyn Strategy> {
        match *self {
            Self::FedAvg { server_lr } => Box::new(FedAvg { server_lr }),
        }
    }
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

impl Weighting {
    /// The weight of an update from a shard of this size. Zero means that it
    /// cannot be averaged.
    pub fn weight(&self, shard_rows: u64, shard_loss_tokens: u64) -> u64 {
        let figure = match self.by {
            WeightBy::Rows => shard_rows,
            WeightBy::LossTokens => shard_loss_tokens,
            WeightBy::Uniform => 1,
        };
        figure.min(self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_counts_up_to_the_cap() {
        let weighting = |by| Weighting { by, max: 1000 };
        assert_eq!(weighting(WeightBy::Rows).weight(7, 90), 7);
        assert_eq!(weighting(WeightBy::LossTokens).weight(7, 90), 90);
        assert_eq!(weighting(WeightBy::Uniform).weight(7, 90), 1);
        assert_eq!(weighting(WeightBy::Rows).weight(u64::MAX, 1), 1000);
        assert_eq!(weighting(WeightBy::Rows).weight(0, 1), 0);
    }
}
