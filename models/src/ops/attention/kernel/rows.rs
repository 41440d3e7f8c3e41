//! Where the rows of a tile lie, and which of them see each other.

use cubecl::prelude::*;

use super::plan::{PER_THREAD, Plan};
use super::tile::Four;

/// Where the rows of one key/value head lie in a packed tensor: `group` of them a token, one after
/// the other.
#[derive(CubeType)]
pub(super) struct Rows {
    /// Vectors before the first row of the first token.
    pub(super) column: usize,
    /// Rows that exist.
    pub(super) end: usize,
    #[cube(comptime)]
    pub(super) group: usize,
    /// Vectors of a token.
    #[cube(comptime)]
    pub(super) width: usize,
}

#[cube]
impl Rows {
    /// The query heads of one group, in a tensor of so many vectors a token.
    fn queries(kv: usize, tokens: usize, #[comptime] width: usize, #[comptime] plan: Plan) -> Rows {
        Rows {
            column: kv * comptime!(plan.group() * plan.vectors),
            end: tokens * comptime!(plan.group()),
            group: comptime!(plan.group()),
            width,
        }
    }

    /// The keys of one head, in the joint tensor.
    fn keys(kv: usize, tokens: usize, #[comptime] plan: Plan) -> Rows {
        Rows {
            column: (kv + plan.heads) * plan.vectors,
            end: tokens,
            group: 1usize,
            width: comptime!(plan.qkv_width()),
        }
    }

    /// The values of one head, in the joint tensor.
    fn values(kv: usize, tokens: usize, #[comptime] plan: Plan) -> Rows {
        Rows {
            column: (kv + comptime!(plan.heads + plan.kv_heads)) * plan.vectors,
            end: tokens,
            group: 1usize,
            width: comptime!(plan.qkv_width()),
        }
    }

    /// The place of a row's first vector.
    pub(super) fn place(&self, row: usize, #[comptime] plan: Plan) -> usize {
        row / self.group * self.width + self.column + row % self.group * plan.vectors
    }
}

/// The key/value head of a cube: where its rows lie, and the shared memory through which they pass.
#[derive(CubeType)]
pub(super) struct Head {
    /// In the joint tensor.
    pub(super) queries: Rows,
    /// In the output.
    pub(super) outs: Rows,
    pub(super) keys: Rows,
    pub(super) values: Rows,
    pub(super) staged: Shared<[Four]>,
    pub(super) weights: Shared<[Four]>,
}

#[cube]
impl Head {
    pub(super) fn of_cube(tokens: usize, #[comptime] plan: Plan) -> Head {
        let kv = CUBE_POS_Y as usize;
        Head {
            queries: Rows::queries(kv, tokens, comptime!(plan.qkv_width()), plan),
            outs: Rows::queries(kv, tokens, comptime!(plan.out_width()), plan),
            keys: Rows::keys(kv, tokens, plan),
            values: Rows::values(kv, tokens, plan),
            staged: Shared::<[Four]>::new_slice(comptime!(plan.staged())),
            weights: Shared::<[Four]>::new_slice(comptime!(plan.weights())),
        }
    }
}

/// The first row of this cube's tile of queries: the last tile is the first cube's.
#[cube]
pub(super) fn last_tile_first(tokens: usize, #[comptime] plan: Plan) -> usize {
    let tiles = (tokens * comptime!(plan.group()) + comptime!(plan.tile - 1)) / plan.tile;
    (tiles - 1 - CUBE_POS_X as usize) * plan.tile
}

/// The place of a row's head among all tokens' heads.
#[cube]
pub(super) fn head_of(row: usize, #[comptime] plan: Plan) -> usize {
    let group = comptime!(plan.group());
    row / group * plan.heads + CUBE_POS_Y as usize * group + row % group
}

/// The first key that a token sees.
#[cube]
pub(super) fn first_key(bounds: &[u32], token: usize, window: u32) -> usize {
    let start = bounds[token];
    // The window's first key, or less than none at the beginning of the tensor.
    let oldest = token as u32 + 1u32 - min(window, token as u32 + 1u32);
    max(start, oldest) as usize
}

/// One past the last token that sees a key.
#[cube]
pub(super) fn after_last_query(bounds: &[u32], key: usize, tokens: usize, window: u32) -> usize {
    let end = bounds[tokens + key] as usize;
    min(end - key, window as usize) + key
}

/// Writes a thread's sums to the rows that exist.
#[cube]
pub(super) fn write_rows(
    to: &mut [Four],
    sums: &Array<Four>,
    rows: &Rows,
    first: usize,
    #[comptime] plan: Plan,
) {
    let columns = comptime!(plan.columns());
    #[unroll]
    for i in 0..PER_THREAD {
        let row = first + UNIT_POS_Y as usize * PER_THREAD + i;
        if row < rows.end {
            #[unroll]
            for m in 0..columns {
                let column = UNIT_POS_X as usize + comptime!(m * plan.side());
                if column < plan.vectors {
                    to[rows.place(row, plan) + column] = sums[i * columns + m];
                }
            }
        }
    }
}
