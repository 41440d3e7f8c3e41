//! How the server steps along the aggregate.

use crate::adapter::{Adapter, AdapterError, Delta};
use crate::strategy::ServerState;

/// The server's optimizer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ServerOptimizer {
    /// Adds `lr` times the aggregate. It keeps no state.
    Sgd {
        /// The learning rate; 1 replaces the adapter by the clients' mean.
        lr: f32,
    },
}

impl ServerOptimizer {
    /// Moves `adapter` and says how far (L2).
    ///
    /// # Errors
    ///
    /// [`AdapterError`] if the layouts differ or a value would not be finite;
    /// the adapter and the state are then unchanged.
    pub fn step(
        &self,
        adapter: &mut Adapter,
        aggregate: &Delta,
        _state: &mut ServerState,
    ) -> Result<f64, AdapterError> {
        match *self {
            Self::Sgd { lr } => {
                adapter.apply(aggregate, lr)?;
                Ok(f64::from(lr) * aggregate.l2_norm())
            }
        }
    }
}
