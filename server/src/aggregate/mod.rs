//! Updates, one at a time: checked as they arrive, averaged when a round closes.
//!
//! Both stream: of all the deltas of a round, a block of each of a few is decoded at any moment.

mod check;
mod error;
mod exact;
mod gap;
mod matrix;
mod mean;
mod pairs;
mod round;
mod rows;
mod sums;
mod svd;
#[cfg(test)]
mod testing;

use std::sync::Arc;

use fedllm_shared::{Codec, Layout};

pub(crate) use check::check_update;
pub use error::AggregateError;
pub use exact::{ExactMean, exact_mean, truncate};
pub use gap::product_gap;
pub use mean::{Held, Source, weighted_sum, weighted_sum_held};
pub use pairs::RankedSource;
pub(crate) use round::{
    Layouts, NextVersion, RoundError, RoundJob, RoundRules, culprit, first_version,
};

/// What an update must be to be counted.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    pub(crate) layout: Arc<Layout>,
    /// How many of its values are the adapter's delta; a control variate's may follow.
    pub(crate) split: usize,
    pub(crate) codec: Codec,
    /// The longest delta (L2) that clients should send.
    pub(crate) max_norm: Option<f32>,
}
