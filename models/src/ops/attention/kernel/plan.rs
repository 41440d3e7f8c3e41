//! How attention is cut into tiles on a device.

use cubecl::client::Client;

use super::super::AttentionSpec;

/// Vectors of 4 features of a row that are multiplied before the next are fetched.
pub(super) const CHUNK: usize = 4;

/// Vectors from one staged row to the next: odd, so that neighbouring rows lie in other banks.
pub(super) const STRIDE: usize = CHUNK + 1;

/// Rows and columns of a tile that one thread sums up.
pub(super) const PER_THREAD: usize = 4;

/// Shapes that are known when a kernel is compiled.
///
/// The queries of a key/value head are its rows: the heads of the first token's group, then those
/// of the next token. So keys and values are fetched once for a whole group. A cube of
/// `side · side` threads owns `tile` rows and goes through the rows they meet, `tile` at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Plan {
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    /// Vectors of 4 features that a head has.
    pub(super) vectors: usize,
    /// Rows of a tile.
    pub(super) tile: usize,
    /// Whether scores are soft-capped.
    pub(super) capped: bool,
}

impl Plan {
    /// The largest tile that the device has room for, if there is one for such heads.
    pub(super) fn new(spec: &AttentionSpec, client: &Client) -> Option<Self> {
        let limits = &client.properties().hardware;
        [64, 32]
            .into_iter()
            .filter_map(|tile| Self::with_tile(spec, tile))
            .find(|plan| {
                plan.shared_bytes() <= limits.max_shared_memory_size
                    && plan.threads() <= limits.max_units_per_cube as usize
            })
    }

    /// With tiles of so many rows, if heads of this size can be cut into them.
    pub(super) fn with_tile(spec: &AttentionSpec, tile: usize) -> Option<Self> {
        let plan = Self {
            heads: spec.heads,
            kv_heads: spec.kv_heads,
            vectors: spec.head_dim / 4,
            tile,
            capped: spec.soft_cap.is_some(),
        };
        let fits = plan.staged() >= PER_THREAD * plan.vectors;
        (spec.head_dim.is_multiple_of(4) && plan.vectors > 0 && fits).then_some(plan)
    }

    /// Query heads of a key/value head.
    pub(super) const fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Threads along each side of a tile.
    pub(super) const fn side(&self) -> usize {
        self.tile / PER_THREAD
    }

    pub(super) const fn threads(&self) -> usize {
        self.side() * self.side()
    }

    /// Vectors of a token in the joint tensor of queries, keys and values.
    pub(super) const fn qkv_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.vectors
    }

    /// Vectors of a token in the output.
    pub(super) const fn out_width(&self) -> usize {
        self.heads * self.vectors
    }

    /// Vectors of a row that one thread sums up: every [`Plan::side`]th.
    pub(super) const fn columns(&self) -> usize {
        self.vectors.div_ceil(self.side())
    }

    /// Room for two operands of a chunk, in vectors.
    pub(super) const fn staged(&self) -> usize {
        2 * self.tile * STRIDE
    }

    /// Whole rows that are staged at once.
    pub(super) const fn depth(&self) -> usize {
        let mut depth = self.tile;
        while depth * self.vectors > self.staged() {
            depth /= 2;
        }
        depth
    }

    /// Vectors from one row of weights to the next: odd, as [`STRIDE`].
    pub(super) const fn weights_stride(&self) -> usize {
        self.side() + 1
    }

    /// Room for the weights of a tile, in vectors.
    pub(super) const fn weights(&self) -> usize {
        self.tile * self.weights_stride()
    }

    const fn shared_bytes(&self) -> usize {
        16 * (self.staged() + self.weights())
    }
}
