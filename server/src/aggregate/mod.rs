//! Updates, one at a time: checked as they arrive, averaged when a round closes.
//!
//! Both stream: of all the deltas of a round, one block of one of them is decoded at any moment.

mod check;
mod mean;

use std::sync::Arc;

use fedllm_shared::{Codec, Layout};

pub(crate) use check::check_update;
pub use mean::{AggregateError, Source, weighted_mean};

/// Values in a block: 4 MiB of `f32`, large enough for a GPU and small enough to stay cheap.
const BLOCK: usize = 1 << 20;

/// What an update must be to be counted.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    pub(crate) layout: Arc<Layout>,
    pub(crate) codec: Codec,
    /// The longest delta (L2) that clients should send.
    pub(crate) max_norm: Option<f32>,
}
