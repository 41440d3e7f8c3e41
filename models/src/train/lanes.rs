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
pub(super) struct Lane {
    pub(super) batch: Batch,
    /// Where it begins in the step.
    pub(super) first_row: usize,
    pub(super) first_token: usize,
    /// Its part of the memory that is set aside for the lanes beside it.
    pub(super) share: f32,
}

/// Does `work` for all rows: in micro-batches of at most `tokens` tokens one after the other, and
/// each of them in at most `threads` lanes at once on rayon's pool; without `threads` whole and on
/// the calling thread. Groups of `rows` rows stay whole. The results are in the order of the rows.
pub(super) fn in_lanes<R: Send>(
    batch: &Batch,
    tokens: usize,
    rows: usize,
    threads: Option<usize>,
    work: impl Fn(&Lane) -> R + Sync,
) -> Vec<R> {
    let (mut first_row, mut first_token) = (0, 0);
    let mut results = Vec::new();
    for micro in batch.split_groups(tokens, rows) {
        let most = threads.map_or(1, |threads| threads.min(micro.tokens() / FEWEST_TOKENS));
        let most = most.max(1);
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
        let lanes: Vec<Lane> = parts.into_iter().map(lane).collect();
        match threads {
            // A single lane too: each of its operations would enter the pool otherwise.
            Some(_) => results.par_extend(lanes.par_iter().map(&work)),
            None => results.extend(lanes.iter().map(&work)),
        }
    }
    results
}
