//! FedAvg: McMahan et al. 2017, arXiv 1602.05629, Algorithm 1.

use super::{
    Aggregate, ReduceRule, RoundConfig, RoundReport, ServerOptimizer, ServerState, Strategy,
};
use crate::adapter::{Adapter, AdapterError};
use crate::id::RoundId;
use crate::wire::LocalRule;

/// Plain local training, the mean weighted by the size of the shards, one
/// step along it.
///
/// With `server_lr` 1 the new adapter is the clients' weighted mean, as in
/// the paper. The factors A and B are averaged apart, which is not the
/// average of their products; the manual says what follows from that.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FedAvg {
    /// What the mean is multiplied with; the paper has 1.
    pub server_lr: f32,
}

impl Strategy for FedAvg {
    fn name(&self) -> &'static str {
        "fedavg"
    }

    fn configure(&self, _round: RoundId) -> RoundConfig {
        RoundConfig {
            rule: LocalRule::Plain,
        }
    }

    fn reduce(&self) -> ReduceRule {
        ReduceRule::Mean
    }

    fn apply(
        &self,
        adapter: &mut Adapter,
        aggregate: &Aggregate,
        state: &mut ServerState,
    ) -> Result<RoundReport, AdapterError> {
        let optimizer = ServerOptimizer::Sgd { lr: self.server_lr };
        let step_norm = optimizer.step(adapter, &aggregate.delta, state)?;
        Ok(RoundReport {
            updates: aggregate.updates,
            total_weight: aggregate.total_weight,
            delta_norm: aggregate.delta.l2_norm(),
            step_norm,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::adapter::{Delta, Layout, TensorSpec};
    use crate::id::{ClientId, ModelVersion};
    use crate::reduce::weighted_mean;
    use crate::strategy::StrategySpec;

    fn layout() -> Arc<Layout> {
        let spec = TensorSpec {
            name: "a".to_owned(),
            rows: 1,
            cols: 2,
        };
        Arc::new(Layout::new(vec![spec]).unwrap())
    }

    /// With a learning rate of 1 the server ends where the clients are on average.
    #[test]
    fn the_new_adapter_is_the_weighted_mean_of_the_clients() {
        let adapter = |values: [f32; 2]| Adapter::new(layout(), values.to_vec()).unwrap();
        let mut global = adapter([1.0, 1.0]);
        let locals = [adapter([2.0, 0.0]), adapter([5.0, 4.0])];
        let deltas = locals.map(|local| Delta::between(&local, &global).unwrap());
        let updates = [
            (ClientId([1; 32]), 3.0, &deltas[0]),
            (ClientId([2; 32]), 1.0, &deltas[1]),
        ];
        let aggregate = Aggregate {
            round: RoundId(0),
            base_version: ModelVersion(0),
            delta: weighted_mean(&updates).unwrap(),
            updates: 2,
            total_weight: 4.0,
        };
        let strategy = StrategySpec::FedAvg { server_lr: 1.0 }.build();
        let mut state = ServerState::default();
        let report = strategy.apply(&mut global, &aggregate, &mut state).unwrap();
        // (3 * 2 + 5) / 4 and (3 * 0 + 4) / 4.
        assert_eq!(global.values(), [2.75, 1.0]);
        assert_eq!((report.delta_norm, report.step_norm), (1.75, 1.75));
        assert_eq!(state, ServerState::default());
    }

    #[test]
    fn a_step_that_is_not_finite_is_not_taken() {
        let mut global = Adapter::new(layout(), vec![f32::MAX; 2]).unwrap();
        let before = global.clone();
        let aggregate = Aggregate {
            round: RoundId(0),
            base_version: ModelVersion(0),
            delta: Delta::new(layout(), vec![f32::MAX; 2]).unwrap(),
            updates: 1,
            total_weight: 1.0,
        };
        let strategy = FedAvg { server_lr: 1.0 };
        let result = strategy.apply(&mut global, &aggregate, &mut ServerState::default());
        assert!(matches!(result, Err(AdapterError::NonFinite { .. })));
        assert_eq!(global, before);
    }
}
