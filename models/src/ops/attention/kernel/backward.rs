//! Attention's gradients (Dao 2023, arXiv 2307.08691, algorithm 2): one kernel for those of the
//! queries and one for those of keys and values, so that every value is written by one thread.
//!
//! Both build the probabilities again from the log-sum-exp, and the scores' gradients as
//! `dS = P·(dP - Σ dO·O)`, through the cap and the scale.

use cubecl::prelude::*;

use super::plan::{PER_THREAD, Plan};
use super::rows::{Rows, after_last_query, first_key, head_of, last_tile_first, write_rows};
use super::tile::{Four, keep, products, row_sum, squash, weighted_sums};

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
    let queries = Rows::queries(
        CUBE_POS_Y as usize,
        tokens,
        comptime!(plan.qkv_width()),
        plan,
    );
    let outs = Rows::queries(
        CUBE_POS_Y as usize,
        tokens,
        comptime!(plan.out_width()),
        plan,
    );
    let keys = Rows::keys(CUBE_POS_Y as usize, tokens, plan);
    let values = Rows::values(CUBE_POS_Y as usize, tokens, plan);
    let mut staged = Shared::<[Four]>::new_slice(comptime!(plan.staged()));
    let mut weights = Shared::<[Four]>::new_slice(comptime!(plan.weights()));

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
        if row < queries.end {
            from[i] = first_key(bounds, row / group, window);
            to[i] = row / group + 1;
            log_sums[i] = log_sum[head_of(row, plan)];
            let mut sum = 0.0f32;
            #[unroll]
            for m in 0..columns {
                let column = UNIT_POS_X as usize + comptime!(m * plan.side());
                if column < plan.vectors {
                    let product =
                        out[outs.place(row, plan) + column] * dout[outs.place(row, plan) + column];
                    #[unroll]
                    for lane in 0..4usize {
                        sum += product.extract(lane);
                    }
                }
            }
            pulls.insert(i, sum);
        }
    }
    let pulls = row_sum(pulls, &mut staged, plan);

    let mut dq = Array::<Four>::new(comptime!(PER_THREAD * columns));
    #[unroll]
    for k in 0..comptime!(PER_THREAD * columns) {
        dq[k] = Four::new(0.0f32);
    }
    let mut scores = Array::<f32>::new(comptime!(PER_THREAD * PER_THREAD));
    let mut dp = Array::<f32>::new(comptime!(PER_THREAD * PER_THREAD));

    let last = min(first + tile, queries.end) - 1;
    let mut key = first_key(bounds, first / group, window);
    while key <= last / group {
        products(
            &mut scores,
            &mut staged,
            qkv,
            &queries,
            first,
            qkv,
            &keys,
            key,
            plan,
        );
        products(
            &mut dp,
            &mut staged,
            dout,
            &outs,
            first,
            qkv,
            &values,
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
                    let mut score = scores[k] * scale;
                    let mut slope = scale;
                    if comptime!(plan.capped) {
                        let t = squash(score, cap);
                        score = cap * t;
                        slope *= 1.0f32 - t * t;
                    }
                    let p = (score - log_sums[i]).exp();
                    gradient = p * (dp[k] - pulls.extract(i)) * slope;
                }
                dp[k] = gradient;
            }
        }
        keep(&mut weights, &dp, plan);
        weighted_sums(&mut dq, &weights, &mut staged, qkv, &keys, key, plan);
        key += tile;
    }

    write_rows(dqkv, &dq, &queries, first, plan);
    if UNIT_POS_X == 0 {
        #[unroll]
        for i in 0..PER_THREAD {
            let row = first + UNIT_POS_Y as usize * PER_THREAD + i;
            if row < queries.end {
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
    let columns = comptime!(plan.columns());
    let tokens = tokens as usize;
    let first = CUBE_POS_X as usize * tile;
    let queries = Rows::queries(
        CUBE_POS_Y as usize,
        tokens,
        comptime!(plan.qkv_width()),
        plan,
    );
    let outs = Rows::queries(
        CUBE_POS_Y as usize,
        tokens,
        comptime!(plan.out_width()),
        plan,
    );
    let keys = Rows::keys(CUBE_POS_Y as usize, tokens, plan);
    let values = Rows::values(CUBE_POS_Y as usize, tokens, plan);
    let mut staged = Shared::<[Four]>::new_slice(comptime!(plan.staged()));
    let mut weights = Shared::<[Four]>::new_slice(comptime!(plan.weights()));

    // The tokens that see the thread's keys begin with the keys' own.
    let mut to = Array::<usize>::new(PER_THREAD);
    #[unroll]
    for i in 0..PER_THREAD {
        let key = first + UNIT_POS_Y as usize * PER_THREAD + i;
        to[i] = 0usize;
        if key < keys.end {
            to[i] = after_last_query(bounds, key, tokens, window);
        }
    }

    let mut dk = Array::<Four>::new(comptime!(PER_THREAD * columns));
    let mut dv = Array::<Four>::new(comptime!(PER_THREAD * columns));
    #[unroll]
    for k in 0..comptime!(PER_THREAD * columns) {
        dk[k] = Four::new(0.0f32);
        dv[k] = Four::new(0.0f32);
    }
    let mut scores = Array::<f32>::new(comptime!(PER_THREAD * PER_THREAD));
    let mut dp = Array::<f32>::new(comptime!(PER_THREAD * PER_THREAD));

    let last = min(first + tile, keys.end) - 1;
    let end = after_last_query(bounds, last, tokens, window) * group;
    let mut row = first * group;
    while row < end {
        products(
            &mut scores,
            &mut staged,
            qkv,
            &keys,
            first,
            qkv,
            &queries,
            row,
            plan,
        );
        products(
            &mut dp,
            &mut staged,
            qkv,
            &values,
            first,
            dout,
            &outs,
            row,
            plan,
        );
        #[unroll]
        for j in 0..PER_THREAD {
            let query = row + UNIT_POS_X as usize * PER_THREAD + j;
            let token = query / group;
            let mut log_sum_of = 0.0f32;
            let mut pull_of = 0.0f32;
            if query < queries.end {
                log_sum_of = log_sum[head_of(query, plan)];
                pull_of = pull[head_of(query, plan)];
            }
            #[unroll]
            for i in 0..PER_THREAD {
                let k = comptime!(i * PER_THREAD + j);
                let key = first + UNIT_POS_Y as usize * PER_THREAD + i;
                let mut p = 0.0f32;
                let mut slope = scale;
                if token >= key && token < to[i] {
                    let mut score = scores[k] * scale;
                    if comptime!(plan.capped) {
                        let t = squash(score, cap);
                        score = cap * t;
                        slope *= 1.0f32 - t * t;
                    }
                    p = (score - log_sum_of).exp();
                }
                scores[k] = p;
                dp[k] = p * (dp[k] - pull_of) * slope;
            }
        }
        keep(&mut weights, &scores, plan);
        weighted_sums(&mut dv, &weights, &mut staged, dout, &outs, row, plan);
        sync_cube();
        keep(&mut weights, &dp, plan);
        weighted_sums(&mut dk, &weights, &mut staged, qkv, &queries, row, plan);
        row += tile;
    }
    write_rows(dqkv, &dk, &keys, first, plan);
    write_rows(dqkv, &dv, &values, first, plan);
}
