//! Attention's gradients (Dao 2023, arXiv 2307.08691, algorithm 2): one kernel for those of the
//! queries and one for those of keys and values, so that every value is written by one thread.
//!
//! Both build the probabilities again from the log-sum-exp, and the scores' gradients as
//! `dS = P·(dP - Σ dO·O)`, through the cap and the scale.

use cubecl::prelude::*;

use super::plan::{PER_THREAD, Plan};
use super::rows::{Head, after_last_query, first_key, head_of, last_tile_first, write_rows};
use super::tile::{Four, keep, no_sums, products, row_sum, score_of, weighted_sums};

/// The gradients of the queries, and `pull`, each query's `Σ dO·O`. Cubes as in the forward pass.
#[cube(launch)]
pub(super) fn backward_queries(
    qkv: &[Four],
    out: &[Four],
    dout: &[Four],
    log_sum: &[f32],
    bounds: &[u32],
    dqkv: &mut [Four],
    pull: &mut [f32],
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

    let mut from = Array::<usize>::new(PER_THREAD);
    let mut to = Array::<usize>::new(PER_THREAD);
    let mut log_sums = Array::<f32>::new(PER_THREAD);
    let mut pulls = Four::new(0.0f32);
    #[unroll]
    for i in 0..PER_THREAD {
        let row = first + UNIT_POS_Y as usize * PER_THREAD + i;
        from[i] = 0usize;
        to[i] = 0usize;
        log_sums[i] = 0.0f32;
        if row < head.queries.end {
            from[i] = first_key(bounds, row / group, window);
            to[i] = row / group + 1;
            log_sums[i] = log_sum[head_of(row, plan)];
            let mut sum = 0.0f32;
            #[unroll]
            for m in 0..columns {
                let column = UNIT_POS_X as usize + comptime!(m * plan.side());
                if column < plan.vectors {
                    let product = out[head.outs.place(row, plan) + column]
                        * dout[head.outs.place(row, plan) + column];
                    #[unroll]
                    for lane in 0..4usize {
                        sum += product.extract(lane);
                    }
                }
            }
            pulls.insert(i, sum);
        }
    }
    let pulls = row_sum(pulls, &mut head.staged, plan);

    let mut dq = no_sums(plan);
    let mut scores = Array::<f32>::new(comptime!(PER_THREAD * PER_THREAD));
    let mut dp = Array::<f32>::new(comptime!(PER_THREAD * PER_THREAD));

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
        products(
            &mut dp,
            &mut head.staged,
            dout,
            &head.outs,
            first,
            qkv,
            &head.values,
            key,
            plan,
        );
        #[unroll]
        for i in 0..PER_THREAD {
            #[unroll]
            for j in 0..PER_THREAD {
                let at = key + UNIT_POS_X as usize * PER_THREAD + j;
                let k = comptime!(i * PER_THREAD + j);
                let mut gradient = 0.0f32;
                if at >= from[i] && at < to[i] {
                    let score = score_of(scores[k], scale, cap, plan);
                    let p = (score.value - log_sums[i]).exp();
                    gradient = p * (dp[k] - pulls.extract(i)) * score.slope;
                }
                dp[k] = gradient;
            }
        }
        keep(&mut head.weights, &dp, plan);
        weighted_sums(
            &mut dq,
            &head.weights,
            &mut head.staged,
            qkv,
            &head.keys,
            key,
            plan,
        );
        key += tile;
    }

    write_rows(dqkv, &dq, &head.queries, first, plan);
    if UNIT_POS_X == 0 {
        #[unroll]
        for i in 0..PER_THREAD {
            let row = first + UNIT_POS_Y as usize * PER_THREAD + i;
            if row < head.queries.end {
                pull[head_of(row, plan)] = pulls.extract(i);
            }
        }
    }
}

/// The gradients of keys and values. Cubes along x own tiles of keys; along y, heads.
#[cube(launch)]
pub(super) fn backward_keys(
    qkv: &[Four],
    dout: &[Four],
    log_sum: &[f32],
    pull: &[f32],
    bounds: &[u32],
    dqkv: &mut [Four],
    tokens: u32,
    window: u32,
    scale: f32,
    cap: f32,
    #[comptime] plan: Plan,
) {
    let tile = comptime!(plan.tile);
    let group = comptime!(plan.group());
    let tokens = tokens as usize;
    let first = CUBE_POS_X as usize * tile;
    let mut head = Head::of_cube(tokens, plan);

    // The tokens that see the thread's keys begin with the keys' own.
    let mut to = Array::<usize>::new(PER_THREAD);
    #[unroll]
    for i in 0..PER_THREAD {
        let key = first + UNIT_POS_Y as usize * PER_THREAD + i;
        to[i] = 0usize;
        if key < head.keys.end {
            to[i] = after_last_query(bounds, key, tokens, window);
        }
    }

    let mut dk = no_sums(plan);
    let mut dv = no_sums(plan);
    let mut scores = Array::<f32>::new(comptime!(PER_THREAD * PER_THREAD));
    let mut dp = Array::<f32>::new(comptime!(PER_THREAD * PER_THREAD));

    let last = min(first + tile, head.keys.end) - 1;
    let end = after_last_query(bounds, last, tokens, window) * group;
    let mut row = first * group;
    while row < end {
        products(
            &mut scores,
            &mut head.staged,
            qkv,
            &head.keys,
            first,
            qkv,
            &head.queries,
            row,
            plan,
        );
        products(
            &mut dp,
            &mut head.staged,
            qkv,
            &head.values,
            first,
            dout,
            &head.outs,
            row,
            plan,
        );
        #[unroll]
        for j in 0..PER_THREAD {
            let query = row + UNIT_POS_X as usize * PER_THREAD + j;
            let token = query / group;
            let mut log_sum_of = 0.0f32;
            let mut pull_of = 0.0f32;
            if query < head.queries.end {
                log_sum_of = log_sum[head_of(query, plan)];
                pull_of = pull[head_of(query, plan)];
            }
            #[unroll]
            for i in 0..PER_THREAD {
                let k = comptime!(i * PER_THREAD + j);
                let key = first + UNIT_POS_Y as usize * PER_THREAD + i;
                let mut p = 0.0f32;
                let mut gradient = 0.0f32;
                if token >= key && token < to[i] {
                    let score = score_of(scores[k], scale, cap, plan);
                    p = (score.value - log_sum_of).exp();
                    gradient = p * (dp[k] - pull_of) * score.slope;
                }
                scores[k] = p;
                dp[k] = gradient;
            }
        }
        keep(&mut head.weights, &scores, plan);
        weighted_sums(
            &mut dv,
            &head.weights,
            &mut head.staged,
            dout,
            &head.outs,
            row,
            plan,
        );
        sync_cube();
        keep(&mut head.weights, &dp, plan);
        weighted_sums(
            &mut dk,
            &head.weights,
            &mut head.staged,
            qkv,
            &head.queries,
            row,
            plan,
        );
        row += tile;
    }
    write_rows(dqkv, &dk, &head.keys, first, plan);
    write_rows(dqkv, &dv, &head.values, first, plan);
}
