//! The backward pass, which builds the probabilities again tile by tile.

use super::{Attended, AttentionSpec, Heads, copy_columns, tasks, tiles};
use crate::ops::gemm::{Mat, Threads, Write, gemm};
use crate::ops::host::{Host, host_tensor};
use crate::ops::simd::{dot, exp, tanh, vectorized};
use burn::tensor::Tensor;
use rayon::prelude::*;
use std::ops::Range;

pub(in crate::ops::attention) fn attention_backward(
    dout: &Tensor<2>,
    qkv: &Tensor<2>,
    attended: &Attended,
    segments: &[Range<usize>],
    spec: &AttentionSpec,
) -> Tensor<2> {
    let (tokens, width) = (qkv.dims()[0], spec.qkv_width());
    let (qkv, dout) = (Host::of(qkv.clone()), Host::of(dout.clone()));
    let (out, log_sum) = (
        Host::of(attended.out.clone()),
        Host::of(attended.log_sum.clone()),
    );
    let blocks: Vec<Vec<f32>> = tasks(segments, spec)
        .into_par_iter()
        .map(|(segment, kv)| {
            let from = Saved {
                qkv: &qkv.values()[segment.start * width..],
                dout: &dout.values()[segment.start * spec.out_width()..],
                out: &out.values()[segment.start * spec.out_width()..],
                log_sum: &log_sum.values()[segment.start * spec.heads..],
            };
            backward_group(&from, segment.len(), kv, spec)
        })
        .collect();
    let (group, dim) = (spec.group(), spec.head_dim);
    let mut dqkv = vec![0.0; tokens * width];
    for ((segment, kv), block) in tasks(segments, spec).into_iter().zip(blocks) {
        let len = segment.len();
        let (dq, rest) = block.split_at(len * group * dim);
        let (dk, dv) = rest.split_at(len * dim);
        copy_columns(
            &mut dqkv,
            width,
            segment.start,
            kv * group * dim,
            dq,
            group * dim,
        );
        copy_columns(
            &mut dqkv,
            width,
            segment.start,
            (spec.heads + kv) * dim,
            dk,
            dim,
        );
        copy_columns(
            &mut dqkv,
            width,
            segment.start,
            (spec.heads + spec.kv_heads + kv) * dim,
            dv,
            dim,
        );
    }
    host_tensor(dqkv, [tokens, width])
}

/// What the backward pass of one segment reads, each from the segment's first token on.
struct Saved<'a> {
    qkv: &'a [f32],
    dout: &'a [f32],
    out: &'a [f32],
    log_sum: &'a [f32],
}

/// `[dq | dk | dv]` of one key/value head: `[len, group · dim]`, `[len, dim]`, `[len, dim]`.
fn backward_group(from: &Saved, len: usize, kv: usize, spec: &AttentionSpec) -> Vec<f32> {
    let (group, dim, out_width) = (spec.group(), spec.head_dim, spec.out_width());
    let heads = Heads {
        qkv: from.qkv,
        spec,
        kv,
    };
    let mut grads = vec![0.0; len * (group + 2) * dim];
    let (dq, rest) = grads.split_at_mut(len * group * dim);
    let (dk, dv) = rest.split_at_mut(len * dim);
    let (mut probabilities, mut dscores) = (Vec::new(), Vec::new());
    for g in 0..group {
        let head = kv * group + g;
        let dout = |rows: &Range<usize>| {
            Mat::strided(
                &from.dout[rows.start * out_width + head * dim..],
                rows.len(),
                dim,
                out_width,
            )
        };
        for (queries, keys) in tiles(len, spec) {
            let span = keys.len();
            probabilities.resize(queries.len() * span, 0.0);
            dscores.resize(queries.len() * span, 0.0);
            let (q, k) = (heads.query(queries.clone(), g), heads.key(keys.clone()));
            gemm(
                &mut probabilities,
                span,
                Write::Set,
                spec.scale,
                q,
                k.t(),
                Threads::One,
            );
            let (dout, v) = (dout(&queries), heads.value(keys.clone()));
            gemm(
                &mut dscores,
                span,
                Write::Set,
                1.0,
                dout,
                v.t(),
                Threads::One,
            );
            vectorized(
                #[inline(always)]
                || {
                    let rows = probabilities
                        .chunks_exact_mut(span)
                        .zip(dscores.chunks_exact_mut(span));
                    for ((p, ds), query) in rows.zip(queries.clone()) {
                        let at = query * out_width + head * dim;
                        let pull = dot(&from.dout[at..at + dim], &from.out[at..at + dim]);
                        let log_sum = from.log_sum[query * spec.heads + head];
                        score_gradients(p, ds, log_sum, pull, query, keys.start, spec);
                    }
                },
            );
            let (p, ds) = (
                Mat::new(&probabilities, queries.len(), span),
                Mat::new(&dscores, queries.len(), span),
            );
            let to = &mut dq[(queries.start * group + g) * dim..];
            gemm(to, group * dim, Write::Set, 1.0, ds, k, Threads::One);
            gemm(
                &mut dk[keys.start * dim..],
                dim,
                Write::Add,
                1.0,
                ds.t(),
                q,
                Threads::One,
            );
            gemm(
                &mut dv[keys.start * dim..],
                dim,
                Write::Add,
                1.0,
                p.t(),
                dout,
                Threads::One,
            );
        }
    }
    grads
}

/// Turns one query's scaled scores into probabilities and `dP` into the gradient of the
/// unscaled products: `dS = P·(dP - Σ dO·O)`, through the cap and the scale.
#[inline(always)]
fn score_gradients(
    p: &mut [f32],
    ds: &mut [f32],
    log_sum: f32,
    pull: f32,
    query: usize,
    first: usize,
    spec: &AttentionSpec,
) {
    let visible = spec.visible(query);
    let (start, end) = (visible.start - first, visible.end - first);
    for outside in [0..start, end..p.len()] {
        p[outside.clone()].fill(0.0);
        ds[outside].fill(0.0);
    }
    match spec.soft_cap {
        None => {
            for (p, ds) in p[start..end].iter_mut().zip(&mut ds[start..end]) {
                *p = exp(*p - log_sum);
                *ds = *p * (*ds - pull) * spec.scale;
            }
        }
        Some(cap) => {
            for (p, ds) in p[start..end].iter_mut().zip(&mut ds[start..end]) {
                let t = tanh(*p / cap);
                *p = exp(cap * t - log_sum);
                *ds = *p * (*ds - pull) * (1.0 - t * t) * spec.scale;
            }
        }
    }
}
