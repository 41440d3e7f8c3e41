//! Products of tiles. Every function that fills shared memory waits first for those who still read
//! it; all threads of a cube take part in each.

use cubecl::prelude::*;

use super::plan::{CHUNK, PER_THREAD, Plan, STRIDE};
use super::rows::Rows;

/// Four features of a row, or four scores.
pub(super) type Four = Vector<f32, Const<4>>;

/// Less than any score.
pub(super) const HIDDEN: f32 = -1e30;

/// `sums[4·i + j]` becomes the product of row `4·y + i` of the tile of `a` at `first_a` and row
/// `4·x + j` of the tile of `b` at `first_b`, for the thread at (`x`, `y`).
#[cube]
pub(super) fn products(
    sums: &mut Array<f32>,
    staged: &mut Shared<[Four]>,
    a: &[Four],
    rows_a: &Rows,
    first_a: usize,
    b: &[Four],
    rows_b: &Rows,
    first_b: usize,
    #[comptime] plan: Plan,
) {
    let side = comptime!(plan.side());
    let second = comptime!(plan.tile * STRIDE);
    #[unroll]
    for k in 0..comptime!(PER_THREAD * PER_THREAD) {
        sums[k] = 0.0f32;
    }
    for chunk in 0..comptime!(plan.vectors.div_ceil(CHUNK)) {
        sync_cube();
        stage_chunk(staged, 0usize, a, rows_a, first_a, chunk, false, plan);
        stage_chunk(staged, second, b, rows_b, first_b, chunk, true, plan);
        sync_cube();
        #[unroll]
        for c in 0..CHUNK {
            let mut right = Array::<Four>::new(PER_THREAD);
            #[unroll]
            for j in 0..PER_THREAD {
                right[j] = staged[second + (j * side + UNIT_POS_X as usize) * STRIDE + c];
            }
            #[unroll]
            for i in 0..PER_THREAD {
                let left = staged[(UNIT_POS_Y as usize * PER_THREAD + i) * STRIDE + c];
                #[unroll]
                for j in 0..PER_THREAD {
                    let mut sum = sums[i * PER_THREAD + j];
                    #[unroll]
                    for lane in 0..4usize {
                        sum = fma(left.extract(lane), right[j].extract(lane), sum);
                    }
                    sums[i * PER_THREAD + j] = sum;
                }
            }
        }
    }
}

/// Copies one chunk of the rows of a tile, zero where there are none. `dealt` rows are put in the
/// order in which threads side by side read them: the first of each thread, then the second.
#[cube]
fn stage_chunk(
    staged: &mut Shared<[Four]>,
    offset: usize,
    source: &[Four],
    rows: &Rows,
    first: usize,
    chunk: usize,
    #[comptime] dealt: bool,
    #[comptime] plan: Plan,
) {
    let side = comptime!(plan.side());
    #[unroll]
    for i in 0..comptime!(plan.tile * CHUNK / plan.threads()) {
        let place = UNIT_POS as usize + i * comptime!(plan.threads());
        let slot = place / CHUNK;
        let column = chunk * CHUNK + place % CHUNK;
        let in_tile = if comptime!(dealt) {
            slot % side * PER_THREAD + slot / side
        } else {
            slot
        };
        let row = first + in_tile;
        let mut value = Four::new(0.0f32);
        if row < rows.end && column < plan.vectors {
            value = source[rows.place(row, plan) + column];
        }
        staged[offset + slot * STRIDE + place % CHUNK] = value;
    }
}

/// A thread's sums before anything is added to them, as [`weighted_sums`] has them.
#[cube]
pub(super) fn no_sums(#[comptime] plan: Plan) -> Array<Four> {
    let mut sums = Array::<Four>::new(comptime!(PER_THREAD * plan.columns()));
    #[unroll]
    for k in 0..comptime!(PER_THREAD * plan.columns()) {
        sums[k] = Four::new(0.0f32);
    }
    sums
}

/// Adds weighted sums of the rows of a tile: vector `x + m · side` of row `4·y + i` of the product
/// to `sums[columns · i + m]`. Row `r` of the weights says how much of each row goes into row `r`.
#[cube]
pub(super) fn weighted_sums(
    sums: &mut Array<Four>,
    weights: &Shared<[Four]>,
    staged: &mut Shared<[Four]>,
    source: &[Four],
    rows: &Rows,
    first: usize,
    #[comptime] plan: Plan,
) {
    let columns = comptime!(plan.columns());
    let depth = comptime!(plan.depth());
    let mine = own_columns(plan);
    for part in 0..comptime!(plan.tile / depth) {
        sync_cube();
        stage_rows(staged, source, rows, first + part * depth, plan);
        sync_cube();
        for k in 0..comptime!(depth / 4) {
            let mut weight = Array::<Four>::new(PER_THREAD);
            #[unroll]
            for i in 0..PER_THREAD {
                let row = UNIT_POS_Y as usize * PER_THREAD + i;
                weight[i] = weights
                    [row * comptime!(plan.weights_stride()) + part * comptime!(depth / 4) + k];
            }
            #[unroll]
            for lane in 0..4usize {
                #[unroll]
                for m in 0..columns {
                    let value = staged[(k * 4 + lane) * plan.vectors + mine[m]];
                    #[unroll]
                    for i in 0..PER_THREAD {
                        sums[i * columns + m] = fma(
                            Four::new(weight[i].extract(lane)),
                            value,
                            sums[i * columns + m],
                        );
                    }
                }
            }
        }
    }
}

/// The vectors of a row that this thread sums up; those that do not exist stand for the last.
#[cube]
fn own_columns(#[comptime] plan: Plan) -> Array<usize> {
    let mut columns = Array::<usize>::new(comptime!(plan.columns()));
    #[unroll]
    for m in 0..comptime!(plan.columns()) {
        let column = UNIT_POS_X as usize + comptime!(m * plan.side());
        columns[m] = min(column, comptime!(plan.vectors - 1));
    }
    columns
}

/// Copies whole rows, zero where there are none.
#[cube]
fn stage_rows(
    staged: &mut Shared<[Four]>,
    source: &[Four],
    rows: &Rows,
    first: usize,
    #[comptime] plan: Plan,
) {
    let count = comptime!(plan.depth() * plan.vectors);
    for i in 0..comptime!(count.div_ceil(plan.threads())) {
        let place = UNIT_POS as usize + i * comptime!(plan.threads());
        if place < count {
            let row = first + place / plan.vectors;
            let mut value = Four::new(0.0f32);
            if row < rows.end {
                value = source[rows.place(row, plan) + place % plan.vectors];
            }
            staged[place] = value;
        }
    }
}

/// The largest of the values that the threads of a row of threads have, lane by lane.
#[cube]
pub(super) fn row_max(value: Four, staged: &mut Shared<[Four]>, #[comptime] plan: Plan) -> Four {
    share(value, staged, plan);
    let mut largest = value;
    for x in 0..comptime!(plan.side()) {
        largest = max(
            largest,
            staged[x * comptime!(plan.side()) + UNIT_POS_Y as usize],
        );
    }
    largest
}

/// The sum of the values that the threads of a row of threads have, lane by lane.
#[cube]
pub(super) fn row_sum(value: Four, staged: &mut Shared<[Four]>, #[comptime] plan: Plan) -> Four {
    share(value, staged, plan);
    let mut sum = Four::new(0.0f32);
    for x in 0..comptime!(plan.side()) {
        sum += staged[x * comptime!(plan.side()) + UNIT_POS_Y as usize];
    }
    sum
}

#[cube]
fn share(value: Four, staged: &mut Shared<[Four]>, #[comptime] plan: Plan) {
    sync_cube();
    staged[UNIT_POS_X as usize * comptime!(plan.side()) + UNIT_POS_Y as usize] = value;
    sync_cube();
}

/// A score within `cap` of 0, over `cap`. The hyperbolic tangent is spelled out because some
/// drivers' own turns large arguments into NaN.
#[cube]
fn squash(score: f32, cap: f32) -> f32 {
    let x = clamp(score / cap, -15.0f32, 15.0f32);
    1.0f32 - 2.0f32 / ((2.0f32 * x).exp() + 1.0f32)
}

/// A product of a query and a key as a score.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Score {
    pub(super) value: f32,
    /// The score's derivative by the product.
    pub(super) slope: f32,
}

/// The score of a product: scaled, and within the cap if there is one.
#[cube]
pub(super) fn score_of(product: f32, scale: f32, cap: f32, #[comptime] plan: Plan) -> Score {
    let score = product * scale;
    if comptime!(plan.capped) {
        let t = squash(score, cap);
        Score {
            value: cap * t,
            slope: scale * (1.0f32 - t * t),
        }
    } else {
        Score {
            value: score,
            slope: scale,
        }
    }
}

/// Puts a thread's part of a tile where all threads read it.
#[cube]
pub(super) fn keep(weights: &mut Shared<[Four]>, values: &Array<f32>, #[comptime] plan: Plan) {
    #[unroll]
    for i in 0..PER_THREAD {
        let mut weight = Four::new(0.0f32);
        #[unroll]
        for j in 0..PER_THREAD {
            weight.insert(j, values[comptime!(i * PER_THREAD + j)]);
        }
        let row = UNIT_POS_Y as usize * PER_THREAD + i;
        weights[row * comptime!(plan.weights_stride()) + UNIT_POS_X as usize] = weight;
    }
}
