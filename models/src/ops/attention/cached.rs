//! Attention of new tokens over cached keys and values, where texts that begin alike share them.

use super::host::{TILE, copy_columns, softmax_visible};
use super::{AttentionSpec, composed};
use crate::ops::gemm::{Mat, Threads, Write, gemm};
use crate::ops::host::{Host, host_tensor, is_cpu};
use crate::ops::simd::{dot, vectorized};
use burn::tensor::Tensor;
use rayon::prelude::*;
use std::ops::Range;

/// Fewer queries than these are not worth a tiled product.
const FEW: usize = 4;

/// Keys and values of a run of tokens in one layer, side by side: `[tokens, 2 · kv_heads · head_dim]`.
#[derive(Clone, Debug)]
pub enum KeyValues {
    /// In memory of the CPU, which grows in place.
    Host(Vec<f32>),
    /// On another device: one tensor, or none yet.
    Device(Vec<Tensor<2>>),
}

impl KeyValues {
    /// Those of no token, where `on_cpu` says.
    pub fn new(on_cpu: bool) -> Self {
        match on_cpu {
            true => Self::Host(Vec::new()),
            false => Self::Device(Vec::new()),
        }
    }

    /// Takes out those of the first `tokens` of `all` tokens.
    pub fn take_first(&mut self, tokens: usize, all: usize) -> Self {
        if tokens == 0 {
            return Self::new(matches!(self, Self::Host(_)));
        }
        match self {
            Self::Host(values) => {
                let rest = values.split_off(values.len() / all * tokens);
                let mut first = std::mem::replace(values, rest);
                first.shrink_to_fit();
                Self::Host(first)
            }
            Self::Device(parts) => {
                let whole = joined(std::mem::take(parts));
                let width = whole.dims()[1];
                let part = |rows: Range<usize>| whole.clone().slice([rows, 0..width]);
                if tokens < all {
                    parts.push(part(tokens..all));
                }
                Self::Device(vec![part(0..tokens)])
            }
        }
    }
}

/// New tokens that continue one text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Continuation {
    /// Their rows of the tensor.
    pub rows: Range<usize>,
    /// The runs of tokens that the text consists of, from its beginning on; the new tokens become the
    /// end of the last. A run may get new tokens of its own in the same pass: it is then continued
    /// before what comes after it.
    pub runs: Vec<usize>,
}

/// Attention of new tokens, whose keys and values join the cached ones of their runs.
///
/// `qkv` is `[new, (heads + 2·kv_heads) · head_dim]`, as for [`attention`](super::attention); a token
/// sees the runs of its text up to itself. Returns `[new, heads · head_dim]`.
pub fn attention_cached(
    qkv: &Tensor<2>,
    cache: &mut [KeyValues],
    continuations: &[Continuation],
    spec: &AttentionSpec,
) -> Tensor<2> {
    if !is_cpu(&qkv.device()) {
        return on_device(qkv, cache, continuations, spec);
    }
    let input = Host::of(qkv.clone());
    let (width, out_width) = (spec.qkv_width(), spec.out_width());
    for continuation in continuations {
        if let Some(KeyValues::Host(run)) = continuation.runs.last().map(|run| &mut cache[*run]) {
            for row in continuation.rows.clone() {
                run.extend_from_slice(&input.values()[row * width..][..width][out_width..]);
            }
        }
    }
    let texts: Vec<Text<'_>> = continuations
        .iter()
        .map(|continuation| Text::new(continuation, cache, input.values(), spec))
        .collect();
    let tasks = texts
        .iter()
        .flat_map(|text| (0..spec.kv_heads).map(move |kv| (text, kv)));
    let tasks: Vec<_> = tasks.collect();
    let blocks: Vec<Vec<f32>> = tasks.par_iter().map(|(text, kv)| text.group(*kv)).collect();
    let group_width = spec.group() * spec.head_dim;
    let mut out = vec![0.0; qkv.dims()[0] * out_width];
    for ((text, kv), block) in tasks.iter().zip(&blocks) {
        let (row, column) = (text.first_row, kv * group_width);
        copy_columns(&mut out, out_width, row, column, block, group_width);
    }
    host_tensor(out, [qkv.dims()[0], out_width])
}

/// A text's new queries and all of its keys and values.
struct Text<'a> {
    spec: &'a AttentionSpec,
    first_row: usize,
    /// Queries, from the first new token on, in rows of the joint tensor.
    queries: &'a [f32],
    new: usize,
    /// Tokens before the new ones.
    past: usize,
    /// Keys and values of each run, and the place of its first token.
    runs: Vec<(usize, &'a [f32])>,
}

impl<'a> Text<'a> {
    fn new(
        continuation: &Continuation,
        cache: &'a [KeyValues],
        qkv: &'a [f32],
        spec: &'a AttentionSpec,
    ) -> Self {
        let width = 2 * spec.kv_heads * spec.head_dim;
        let mut total = 0;
        let runs = continuation.runs.iter().filter_map(|run| {
            let KeyValues::Host(values) = &cache[*run] else {
                return None;
            };
            let first = total;
            total += values.len() / width;
            Some((first, values.as_slice()))
        });
        let runs = runs.collect();
        let (first_row, new) = (continuation.rows.start, continuation.rows.len());
        Self {
            spec,
            first_row,
            queries: &qkv[first_row * spec.qkv_width()..],
            new,
            past: total - new,
            runs,
        }
    }

    /// Output `[new, group · head_dim]` of one key/value head.
    fn group(&self, kv: usize) -> Vec<f32> {
        let (group, dim) = (self.spec.group(), self.spec.head_dim);
        let mut out = vec![0.0; self.new * group * dim];
        let mut scores = Vec::new();
        for start in (0..self.new).step_by(TILE) {
            let rows = start..(start + TILE).min(self.new);
            let first = self.spec.visible(self.past + rows.start).start;
            let seen = first..self.past + rows.end;
            let runs = self.parts(kv, &seen);
            scores.resize(rows.len() * seen.len(), 0.0);
            for g in 0..group {
                self.scores(&mut scores, &rows, kv * group + g, &runs, &seen);
                let out = &mut out[(rows.start * group + g) * dim..];
                weigh(out, group * dim, &scores, &runs, rows.len(), seen.len());
            }
        }
        out
    }

    /// The keys and the values of one head in each run, as far as they are seen, and which of those
    /// that are seen is the first.
    fn parts(&self, kv: usize, seen: &Range<usize>) -> Vec<Part<'a>> {
        let dim = self.spec.head_dim;
        let half = self.spec.kv_heads * dim;
        let part = |(first, values): &(usize, &'a [f32])| {
            let tokens = values.len() / (2 * half);
            let from = seen.start.saturating_sub(*first).min(tokens);
            let to = seen.end.saturating_sub(*first).min(tokens);
            if from == to {
                return None;
            }
            let of = |column: usize| {
                let values = &values[from * 2 * half + column..];
                Mat::strided(values, to - from, dim, 2 * half)
            };
            Some(Part {
                at: first + from - seen.start,
                keys: of(kv * dim),
                values: of(half + kv * dim),
            })
        };
        self.runs.iter().filter_map(part).collect()
    }

    /// Probabilities `[rows, seen]` of one head's queries.
    fn scores(
        &self,
        scores: &mut [f32],
        rows: &Range<usize>,
        head: usize,
        runs: &[Part<'_>],
        seen: &Range<usize>,
    ) {
        let (width, dim, scale) = (self.spec.qkv_width(), self.spec.head_dim, self.spec.scale);
        let queries = &self.queries[rows.start * width + head * dim..];
        let queries = Mat::strided(queries, rows.len(), dim, width);
        for part in runs {
            let to = &mut scores[part.at..];
            match rows.len() < FEW {
                true => few_scores(to, seen.len(), scale, queries, part.keys),
                false => {
                    let keys = part.keys.t();
                    gemm(
                        to,
                        seen.len(),
                        Write::Set,
                        scale,
                        queries,
                        keys,
                        Threads::One,
                    );
                }
            }
        }
        vectorized(
            #[inline(always)]
            || {
                for (row, query) in scores.chunks_exact_mut(seen.len()).zip(rows.clone()) {
                    softmax_visible(row, self.past + query, seen.start, self.spec);
                }
            },
        );
    }
}

/// One head of a run's keys and values.
struct Part<'a> {
    /// The column of its first key among the scores.
    at: usize,
    keys: Mat<'a>,
    values: Mat<'a>,
}

/// Scaled products of a few queries with keys; `to` has `stride` values a query.
fn few_scores(to: &mut [f32], stride: usize, scale: f32, queries: Mat, keys: Mat) {
    vectorized(
        #[inline(always)]
        || {
            for (query, to) in to.chunks_mut(stride).enumerate().take(queries.rows()) {
                let query = queries.row(query);
                for (key, to) in to.iter_mut().enumerate().take(keys.rows()) {
                    *to = dot(query, keys.row(key)) * scale;
                }
            }
        },
    );
}

/// Adds each part's values, weighted by the probabilities; `out` has `width` values a query.
fn weigh(
    out: &mut [f32],
    width: usize,
    probabilities: &[f32],
    parts: &[Part],
    rows: usize,
    seen: usize,
) {
    for (number, part) in parts.iter().enumerate() {
        let weights = Mat::strided(&probabilities[part.at..], rows, part.keys.rows(), seen);
        if rows >= FEW {
            let write = if number == 0 { Write::Set } else { Write::Add };
            gemm(out, width, write, 1.0, weights, part.values, Threads::One);
            continue;
        }
        vectorized(
            #[inline(always)]
            || {
                for (row, out) in out.chunks_mut(width).enumerate().take(rows) {
                    let weights = weights.row(row).iter();
                    for (token, weight) in weights.enumerate() {
                        for (out, value) in out.iter_mut().zip(part.values.row(token)) {
                            *out += weight * value;
                        }
                    }
                }
            },
        );
    }
}

fn on_device(
    qkv: &Tensor<2>,
    cache: &mut [KeyValues],
    continuations: &[Continuation],
    spec: &AttentionSpec,
) -> Tensor<2> {
    let (out_width, half) = (spec.out_width(), spec.kv_heads * spec.head_dim);
    let part =
        |rows: &Range<usize>, columns: Range<usize>| qkv.clone().slice([rows.clone(), columns]);
    for continuation in continuations {
        if let Some(KeyValues::Device(run)) = continuation.runs.last().map(|run| &mut cache[*run]) {
            let new = part(&continuation.rows, out_width..out_width + 2 * half);
            run.push(new);
            *run = vec![joined(std::mem::take(run))];
        }
    }
    let of_text = |continuation: &Continuation| {
        let runs = continuation.runs.iter().map(|run| match &cache[*run] {
            KeyValues::Device(run) => &run[..],
            KeyValues::Host(_) => &[],
        });
        let text = joined(runs.flatten().cloned().collect());
        let tokens = text.dims()[0];
        let (keys, values) = (
            text.clone().slice([0..tokens, 0..half]),
            text.slice([0..tokens, half..2 * half]),
        );
        let queries = part(&continuation.rows, 0..out_width);
        composed::attention_cached(&queries, &keys, &values, spec)
    };
    joined(continuations.iter().map(of_text).collect())
}

fn joined(mut parts: Vec<Tensor<2>>) -> Tensor<2> {
    match parts.len() {
        1 => parts.remove(0),
        _ => Tensor::cat(parts, 0),
    }
}
