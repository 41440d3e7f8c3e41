//! Why a round could not be averaged.

use fedllm_shared::{AdapterError, ClientId, LowRankError};
use thiserror::Error;

/// Why a round could not be averaged. Updates were checked when they came, so this is our fault.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AggregateError {
    /// No update, or none with a weight.
    #[error("there is nothing to average: the weights sum to {0}")]
    NoWeight(f64),
    /// A share that is infinite or no number.
    #[error("the share of client {client} is {share}")]
    Share {
        /// Whose it is.
        client: ClientId,
        /// The share.
        share: f64,
    },
    /// An update cannot be read back.
    #[error("the update of client {client}: {source}")]
    Update {
        /// Whose it is.
        client: ClientId,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The result is not finite: the updates are too large.
    #[error("the mean of the updates: {0}")]
    Mean(#[from] AdapterError),
    /// The layout is not one of low-rank factors.
    #[error(transparent)]
    LowRank(#[from] LowRankError),
    /// Two adapters that differ in more than their rank.
    #[error("{0} is not the same in both adapters")]
    Projections(String),
    /// An adapter that should be cut to a higher rank than it has.
    #[error("{tensor} has rank {got}, which cannot be cut to {wanted}")]
    Rank {
        /// The name of its A.
        tensor: String,
        /// The rank it has.
        got: usize,
        /// The rank that was asked for.
        wanted: usize,
    },
    /// The device failed.
    #[error("the device that averages: {0}")]
    Device(String),
}

impl AggregateError {
    /// Something is wrong with a client's update.
    pub(super) fn update(
        client: ClientId,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self::Update {
            client,
            source: Box::new(source),
        }
    }

    pub(super) fn device(error: &dyn std::fmt::Display) -> Self {
        Self::Device(error.to_string())
    }
}
