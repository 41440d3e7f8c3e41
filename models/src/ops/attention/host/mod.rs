//! The CPU's loops: a task for each segment and key/value head, in tiles of products.

mod backward;

pub(super) use backward::attention_backward;

use super::{Attended, AttentionSpec};
use crate::ops::gemm::{Mat, Threads, Write, gemm};
use crate::ops::host::{Host, host_tensor};
use crate::ops::simd::{exp_shifted, max, tanh, vectorized};
use burn::tensor::Tensor;
use rayon::prelude::*;
use std::ops::Range;

/// Query rows that one tile handles.
pub(super) const TILE: usize = 64;

pub(super) fn attention(
    qkv: &Tensor<2>,
    segments: &[Range<usize>],
    spec: &AttentionSpec,
) -> Attended {
    let tokens = qkv.dims()[0];
    let input = Host::of(qkv.clone());
    let qkv = input.values();
    let blocks: Vec<(Vec<f32>, Vec<f32>)> = tasks(segments, spec)
        .into_par_iter()
        .map(|(segment, kv)| {
            forward_group(
                &qkv[segment.start * spec.qkv_width()..],
                segment.len(),
                kv,
                spec,
            )
        })
        .collect();
    let (group, dim) = (spec.group(), spec.head_dim);
    let mut out = vec![0.0; tokens * spec.out_width()];
    let mut log_sum = vec![0.0; tokens * spec.heads];
    for ((segment, kv), (block_out, block_sum)) in tasks(segments, spec).into_iter().zip(blocks) {
        copy_columns(
            &mut out,
            spec.out_width(),
            segment.start,
            kv * group * dim,
            &block_out,
            group * dim,
        );
        copy_columns(
            &mut log_sum,
            spec.heads,
            segment.start,
            kv * group,
            &block_sum,
            group,
        );
    }
    Attended {
        out: host_tensor(out, [tokens, spec.out_width()]),
        log_sum: host_tensor(log_sum, [tokens, spec.heads]),
    }
}

/// One task for each segment and key/value head.
fn tasks(segments: &[Range<usize>], spec: &AttentionSpec) -> Vec<(Range<usize>, usize)> {
    segments
        .iter()
        .flat_map(|segment| (0..spec.kv_heads).map(|kv| (segment.clone(), kv)))
        .collect()
}

/// Writes the rows of a block into some columns of a wider matrix.
pub(super) fn copy_columns(
    to: &mut [f32],
    width: usize,
    row: usize,
    column: usize,
    block: &[f32],
    block_width: usize,
) {
    for (i, from) in block.chunks_exact(block_width).enumerate() {
        to[(row + i) * width + column..][..block_width].copy_from_slice(from);
    }
}

#[inline(always)]
fn cap(score: f32, spec: &AttentionSpec) -> f32 {
    spec.soft_cap.map_or(score, |cap| cap * tanh(score / cap))
}

/// The query, key and value columns of one segment.
struct Heads<'a> {
    qkv: &'a [f32],
    spec: &'a AttentionSpec,
    kv: usize,
}

impl<'a> Heads<'a> {
    fn columns(&self, rows: Range<usize>, head: usize) -> Mat<'a> {
        let width = self.spec.qkv_width();
        let dim = self.spec.head_dim;
        Mat::strided(
            &self.qkv[rows.start * width + head * dim..],
            rows.len(),
            dim,
            width,
        )
    }

    fn query(&self, rows: Range<usize>, in_group: usize) -> Mat<'a> {
        self.columns(rows, self.kv * self.spec.group() + in_group)
    }

    fn key(&self, rows: Range<usize>) -> Mat<'a> {
        self.columns(rows, self.spec.heads + self.kv)
    }

    fn value(&self, rows: Range<usize>) -> Mat<'a> {
        self.columns(rows, self.spec.heads + self.spec.kv_heads + self.kv)
    }
}

/// A tile of queries and the keys that any of them sees.
fn tiles(
    len: usize,
    spec: &AttentionSpec,
) -> impl Iterator<Item = (Range<usize>, Range<usize>)> + '_ {
    (0..len).step_by(TILE).map(move |start| {
        let queries = start..(start + TILE).min(len);
        let keys = spec.visible(queries.start).start..queries.end;
        (queries, keys)
    })
}

/// Output `[len, group · head_dim]` and log-sum-exp `[len, group]` of one key/value head.
fn forward_group(qkv: &[f32], len: usize, kv: usize, spec: &AttentionSpec) -> (Vec<f32>, Vec<f32>) {
    let (group, dim) = (spec.group(), spec.head_dim);
    let heads = Heads { qkv, spec, kv };
    let mut out = vec![0.0; len * group * dim];
    let mut log_sum = vec![0.0; len * group];
    let mut scores = Vec::new();
    for g in 0..group {
        for (queries, keys) in tiles(len, spec) {
            let span = keys.len();
            scores.resize(queries.len() * span, 0.0);
            let (q, k) = (heads.query(queries.clone(), g), heads.key(keys.clone()));
            gemm(
                &mut scores,
                span,
                Write::Set,
                spec.scale,
                q,
                k.t(),
                Threads::One,
            );
            vectorized(
                #[inline(always)]
                || {
                    for (row, query) in scores.chunks_exact_mut(span).zip(queries.clone()) {
                        log_sum[query * group + g] = softmax_visible(row, query, keys.start, spec);
                    }
                },
            );
            let tile = Mat::new(&scores, queries.len(), span);
            let to = &mut out[(queries.start * group + g) * dim..];
            gemm(
                to,
                group * dim,
                Write::Set,
                1.0,
                tile,
                heads.value(keys),
                Threads::One,
            );
        }
    }
    (out, log_sum)
}

/// Turns the scores of one query into probabilities (0 where it sees nothing) and
/// returns their log-sum-exp. `first` is the key of the first score.
#[inline(always)]
pub(super) fn softmax_visible(
    row: &mut [f32],
    query: usize,
    first: usize,
    spec: &AttentionSpec,
) -> f32 {
    let visible = spec.visible(query);
    let (start, end) = (visible.start - first, visible.end - first);
    row[..start].fill(0.0);
    row[end..].fill(0.0);
    let seen = &mut row[start..end];
    if spec.soft_cap.is_some() {
        for score in seen.iter_mut() {
            *score = cap(*score, spec);
        }
    }
    let largest = max(seen);
    let sum = exp_shifted(seen, largest);
    let inverse = 1.0 / sum;
    for probability in seen.iter_mut() {
        *probability *= inverse;
    }
    largest + sum.ln()
}
