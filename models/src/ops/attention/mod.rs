//! Causal self-attention over packed rows, with grouped key/value heads, a sliding
//! window and soft-capped scores.
//!
//! The forward pass keeps only the log-sum-exp of each query's scores; the backward
//! pass rebuilds the probabilities tile by tile (Dao 2023, arXiv 2307.08691, section
//! 3.1), so no `[tokens, tokens]` matrix ever exists.

mod cached;
pub(super) mod composed;
mod host;
mod kernel;

use super::cube::cube;
use super::host::{indices_on, is_cpu};
use burn::tensor::{Device, Int, Tensor};
use burn_cubecl::tensor::CubeTensor;
use std::ops::{Deref, Range};

pub use cached::{Continuation, KeyValues, attention_cached};

/// How the heads of one attention layer are laid out and scored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionSpec {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; `heads` is a multiple.
    pub kv_heads: usize,
    /// Features a head.
    pub head_dim: usize,
    /// Factor on the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Position `i` sees `j` when `0 <= i - j < window`; all of the past if none.
    pub window: Option<usize>,
    /// Scores become `cap · tanh(score / cap)` (Gemma 2).
    pub soft_cap: Option<f32>,
}

impl AttentionSpec {
    /// Width of the joint query, key and value tensor.
    pub fn qkv_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Width of the output.
    pub fn out_width(&self) -> usize {
        self.heads * self.head_dim
    }

    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Where a query of a row sees keys of the same row.
    fn visible(&self, query: usize) -> Range<usize> {
        self.window
            .map_or(0, |window| (query + 1).saturating_sub(window))..query + 1
    }
}

/// Where the rows of a packed batch lie: disjoint token ranges, in order, that leave no token out.
#[derive(Clone, Debug)]
pub struct Segments {
    ranges: Vec<Range<usize>>,
    /// The start of each token's range, then the end of each token's, where kernels read them.
    bounds: Option<Tensor<1, Int>>,
}

impl Segments {
    /// Ranges whose tokens live on `device`.
    pub fn new(ranges: Vec<Range<usize>>, device: &Device) -> Self {
        let bounds = (!is_cpu(device)).then(|| {
            let of = |bound: fn(&Range<usize>) -> usize| {
                let repeated = move |range: &Range<usize>| {
                    std::iter::repeat_n(bound(range) as i32, range.len())
                };
                ranges.iter().flat_map(repeated)
            };
            let values = of(|range| range.start).chain(of(|range| range.end));
            indices_on(values.collect(), device)
        });
        Self { ranges, bounds }
    }

    fn bounds(&self) -> Option<CubeTensor> {
        cube(self.bounds.as_ref()?)
    }
}

impl Deref for Segments {
    type Target = [Range<usize>];

    fn deref(&self) -> &Self::Target {
        &self.ranges
    }
}

/// The result of [`attention`].
pub struct Attended {
    /// `[tokens, heads · head_dim]`.
    pub out: Tensor<2>,
    /// Log-sum-exp of each query's scores, `[tokens, heads]`.
    pub log_sum: Tensor<2>,
}

/// Attention within each segment of packed rows.
///
/// `qkv` is `[tokens, (heads + 2·kv_heads) · head_dim]`: queries, keys, values side by
/// side. Tokens never see other segments.
pub fn attention(qkv: &Tensor<2>, segments: &Segments, spec: &AttentionSpec) -> Attended {
    if is_cpu(&qkv.device()) {
        return host::attention(qkv, segments, spec);
    }
    kernel::attention(qkv, segments, spec)
        .unwrap_or_else(|| composed::attention(qkv, segments, spec))
}

/// The gradient of [`attention`] with respect to `qkv`, given that of its output.
pub fn attention_backward(
    dout: &Tensor<2>,
    qkv: &Tensor<2>,
    attended: &Attended,
    segments: &Segments,
    spec: &AttentionSpec,
) -> Tensor<2> {
    if is_cpu(&qkv.device()) {
        return host::attention_backward(dout, qkv, attended, segments, spec);
    }
    kernel::attention_backward(dout, qkv, attended, segments, spec)
        .unwrap_or_else(|| composed::attention_backward(dout, qkv, segments, spec))
}
