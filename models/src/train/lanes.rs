//! A step's rows in lanes: parts that the CPU's threads train side by side.
//!
//! The base is frozen, so lanes share nothing but the adapter they read. A thread that has a lane
//! of its own waits for no other between the first block and the last, which is where a step whose
//! operations are parallel one by one loses a fifth of its time. On a GPU the device has one queue,
//! and a micro-batch stays whole.

use crate::batch::Batch;
use rayon::prelude::*;

/// Tokens below which a lane is not worth having: products get too small to be fast.
const FEWEST_TOKENS: usize = 16;

/// Consecutive rows of a step.
pub(crate) struct Lane {
    pub(crate) batch: Batch,
    /// Where it begins in the step.
    pub(crate) first_row: usize,
    pub(crate) first_token: usize,
    /// Its part of the memory that is set aside for the lanes beside it.
    pub(crate) share: f32,
}

/// The lanes of all rows: micro-batches of at most `tokens` tokens, and each of them in at most
/// `threads` lanes. Groups of `rows` rows stay whole.
pub(super) fn lanes(batch: &Batch, tokens: usize, rows: usize, threads: usize) -> Vec<Vec<Lane>> {
    let (mut first_row, mut first_token) = (0, 0);
    let of_micro_batch = |micro: Batch| {
        let most = threads.min(micro.tokens() / FEWEST_TOKENS).max(1);
        let parts = micro.share_out(most, rows);
        let share = 1.0 / parts.len() as f32;
        let lane = |batch: Batch| {
            let lane = Lane {
                first_row,
                first_token,
                share,
                batch,
            };
            first_row += lane.batch.segments.len();
            first_token += lane.batch.tokens();
            lane
        };
        parts.into_iter().map(lane).collect()
    };
    let micro_batches = batch.split_groups(tokens, rows).into_iter();
    micro_batches.map(of_micro_batch).collect()
}

/// Does `work` for all lanes of a micro-batch: at once in rayon's pool, a single one too, since each
/// of its operations would enter the pool otherwise; or on the calling thread. The results are in
/// the order of the lanes.
pub(crate) fn side_by_side<T: Send, R: Send>(
    lanes: Vec<T>,
    in_pool: bool,
    work: impl Fn(T) -> R + Sync,
) -> Vec<R> {
    match in_pool {
        true => lanes.into_par_iter().map(&work).collect(),
        false => lanes.into_iter().map(work).collect(),
    }
}
