//! Attention's output and log-sum-exp: online softmax over tiles of keys (Dao 2023, arXiv
//! 2307.08691, algorithm 1).

use cubecl::prelude::*;

use super::plan::{PER_THREAD, Plan};
use super::rows::{Head, first_key, head_of, last_tile_first, write_rows};
use super::tile::{
    Four, HIDDEN, keep, no_sums, products, row_max, row_sum, score_of, weighted_sums,
};

/// Cubes along x own tiles of queries, the last first because they see the most keys; along y,
/// key/value heads. `bounds` are the starts of all tokens' segments, then their ends.
#[cube(launch)]
pub(super) fn forward(
    qkv: &[Four],
    bounds: &[u32],
    out: &mut [Four],
    log_sum: &mut [f32],
    tokens: u32,
    window: u32,
    scale: f32,
    cap: f32,
    #[comptime] plan: Plan,
) {
    let tile = comptime!(plan.tile);
    let group = comptime!(plan.group());
    let columns = comptime!(plan.columns());
    let tokens = tokens as usize;
    let first = last_tile_first(tokens, plan);
    let mut head = Head::of_cube(tokens, plan);

    // What the thread's rows see: none, if there is no such row.
    let mut from = Array::<usize>::new(PER_THREAD);
    let mut to = Array::<usize>::new(PER_THREAD);
    #[unroll]
    for i in 0..PER_THREAD {
        let row = first + UNIT_POS_Y as usize * PER_THREAD + i;
        from[i] = 0usize;
        to[i] = 0usize;
        if row < head.queries.end {
            from[i] = first_key(bounds, row / group, window);
            to[i] = row / group + 1;
        }
    }

    let mut sums = no_sums(plan);
    let mut largest = Four::new(HIDDEN);
    let mut total = Four::new(0.0f32);
    let mut scores = Array::<f32>::new(comptime!(PER_THREAD * PER_THREAD));

    let last = min(first + tile, head.queries.end) - 1;
    let mut key = first_key(bounds, first / group, window);
    while key <= last / group {
        products(
            &mut scores,
            &mut head.staged,
            qkv,
            &head.queries,
            first,
            qkv,
            &head.keys,
            key,
            plan,
        );
        let before = largest;
        #[unroll]
        for i in 0..PER_THREAD {
            #[unroll]
            for j in 0..PER_THREAD {
                let at = key + UNIT_POS_X as usize * PER_THREAD + j;
                let mut score = score_of(scores[i * PER_THREAD + j], scale, cap, plan).value;
                if at < from[i] || at >= to[i] {
                    score = HIDDEN;
                }
                scores[i * PER_THREAD + j] = score;
                largest.insert(i, max(largest.extract(i), score));
            }
        }
        largest = row_max(largest, &mut head.staged, plan);
        let correction = (before - largest).exp();
        total *= correction;
        #[unroll]
        for i in 0..PER_THREAD {
            #[unroll]
            for j in 0..PER_THREAD {
                let score = scores[i * PER_THREAD + j];
                let mut weight = 0.0f32;
                if score > HIDDEN {
                    weight = (score - largest.extract(i)).exp();
                }
                total.insert(i, total.extract(i) + weight);
                scores[i * PER_THREAD + j] = weight;
            }
            #[unroll]
            for m in 0..columns {
                sums[i * columns + m] *= Four::new(correction.extract(i));
            }
        }
        keep(&mut head.weights, &scores, plan);
        weighted_sums(
            &mut sums,
            &head.weights,
            &mut head.staged,
            qkv,
            &head.values,
            key,
            plan,
        );
        key += tile;
    }

    let total = row_sum(total, &mut head.staged, plan);
    #[unroll]
    for i in 0..PER_THREAD {
        let row = first + UNIT_POS_Y as usize * PER_THREAD + i;
        #[unroll]
        for m in 0..columns {
            sums[i * columns + m] /= Four::new(total.extract(i));
        }
        if row < head.queries.end && UNIT_POS_X == 0 {
            log_sum[head_of(row, plan)] = largest.extract(i) + total.extract(i).ln();
        }
    }
    write_rows(out, &sums, &head.outs, first, plan);
}
