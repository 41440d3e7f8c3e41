//! The same out of burn's operations; see [`crate::ops::norm`]. Rows are padded to the
//! longest, so the scores of one layer do exist, as `[rows · heads, longest, longest]`.

use super::{Attended, AttentionSpec};
use crate::ops::host::{indices_on, tensor_on};
use burn::tensor::{Device, Int, Tensor, activation::softmax};
use std::ops::Range;

/// Added to the scores of keys that a query must not see.
const HIDDEN: f32 = -1e9;

pub(in crate::ops) fn attention(
    qkv: &Tensor<2>,
    segments: &[Range<usize>],
    spec: &AttentionSpec,
) -> Attended {
    let tokens = qkv.dims()[0];
    let padded = Padded::new(segments, &qkv.device());
    let (q, k, v) = padded.split(qkv, spec);
    let (p, _) = padded.probabilities(q, k, spec);
    let out = padded.pack(p.matmul(spread(v, spec)), spec);
    let log_sum = Tensor::zeros([tokens, spec.heads], &qkv.device());
    Attended { out, log_sum }
}

pub(in crate::ops) fn attention_backward(
    dout: &Tensor<2>,
    qkv: &Tensor<2>,
    segments: &[Range<usize>],
    spec: &AttentionSpec,
) -> Tensor<2> {
    let padded = Padded::new(segments, &qkv.device());
    let (q, k, v) = padded.split(qkv, spec);
    let (p, slope) = padded.probabilities(q.clone(), k.clone(), spec);
    let dout = padded.unpack(dout.clone(), spec.heads, spec.head_dim);
    let dv = p.clone().swap_dims(1, 2).matmul(dout.clone());
    let dp = dout.matmul(spread(v, spec).swap_dims(1, 2));
    let pull = (dp.clone() * p.clone()).sum_dim(2);
    let mut ds = p * (dp - pull);
    if let Some(slope) = slope {
        ds = ds * slope;
    }
    let ds = ds.mul_scalar(spec.scale);
    let dq = ds.clone().matmul(spread(k, spec));
    let dk = ds.swap_dims(1, 2).matmul(q);
    Tensor::cat(
        vec![
            padded.pack(dq, spec),
            padded.pack_kv(dk, spec),
            padded.pack_kv(dv, spec),
        ],
        1,
    )
}

pub(in crate::ops) fn attention_cached(
    q: &Tensor<2>,
    keys: &Tensor<2>,
    values: &Tensor<2>,
    spec: &AttentionSpec,
) -> Tensor<2> {
    let (new, total) = (q.dims()[0], keys.dims()[0]);
    let heads = |t: &Tensor<2>, rows: usize, heads: usize| {
        t.clone()
            .reshape([rows, heads, spec.head_dim])
            .swap_dims(0, 1)
    };
    let (k, v) = (
        heads(keys, total, spec.kv_heads),
        heads(values, total, spec.kv_heads),
    );
    let scores = heads(q, new, spec.heads)
        .matmul(spread(k, spec).swap_dims(1, 2))
        .mul_scalar(spec.scale);
    let (scores, _) = capped(scores, spec);
    let bias = bias(total - new, new, total, spec, &q.device());
    let out = softmax(scores + bias, 2).matmul(spread(v, spec));
    out.swap_dims(0, 1).reshape([new, spec.out_width()])
}

/// Repeats each key/value head for the query heads of its group; `[rows·kv, s, d]`
/// becomes `[rows·heads, s, d]`.
fn spread(x: Tensor<3>, spec: &AttentionSpec) -> Tensor<3> {
    let group = spec.group();
    let [outer, len, dim] = x.dims();
    x.reshape([outer, 1, len, dim])
        .repeat_dim(1, group)
        .reshape([outer * group, len, dim])
}

/// Capped scores, and the cap's derivative.
fn capped(scores: Tensor<3>, spec: &AttentionSpec) -> (Tensor<3>, Option<Tensor<3>>) {
    match spec.soft_cap {
        None => (scores, None),
        Some(cap) => {
            let t = scores.div_scalar(cap).tanh();
            let slope = (t.clone() * t.clone()).neg().add_scalar(1.0);
            (t.mul_scalar(cap), Some(slope))
        }
    }
}

/// 0 where query `past + i` sees key `j`, [`HIDDEN`] elsewhere: `[1, queries, keys]`.
fn bias(
    past: usize,
    queries: usize,
    keys: usize,
    spec: &AttentionSpec,
    device: &Device,
) -> Tensor<3> {
    let values = (0..queries)
        .flat_map(|i| {
            let visible = spec.visible(past + i);
            (0..keys).map(move |j| if visible.contains(&j) { 0.0 } else { HIDDEN })
        })
        .collect();
    tensor_on(values, [1, queries, keys], device)
}

/// Packed rows and their padded form.
struct Padded {
    rows: usize,
    longest: usize,
    /// Packed token of each padded place (0 for padding).
    to_padded: Tensor<1, Int>,
    /// Padded place of each packed token.
    to_packed: Tensor<1, Int>,
    /// 1 for real places, 0 for padding, `[rows · longest, 1]`.
    real: Tensor<2>,
    device: Device,
}

impl Padded {
    fn new(segments: &[Range<usize>], device: &Device) -> Self {
        let longest = segments.iter().map(Range::len).max().unwrap_or(0);
        let mut to_padded = vec![0i32; segments.len() * longest];
        let mut real = vec![0.0f32; segments.len() * longest];
        let mut to_packed = Vec::new();
        for (row, segment) in segments.iter().enumerate() {
            for (i, token) in segment.clone().enumerate() {
                to_padded[row * longest + i] = token as i32;
                real[row * longest + i] = 1.0;
                to_packed.push((row * longest + i) as i32);
            }
        }
        let places = segments.len() * longest;
        Self {
            rows: segments.len(),
            longest,
            to_padded: indices_on(to_padded, device),
            to_packed: indices_on(to_packed, device),
            real: tensor_on(real, [places, 1], device),
            device: device.clone(),
        }
    }

    /// `[tokens, heads·dim]` to `[rows · heads, longest, dim]`, zero at padding.
    fn unpack(&self, x: Tensor<2>, heads: usize, dim: usize) -> Tensor<3> {
        (x.select(0, self.to_padded.clone()) * self.real.clone())
            .reshape([self.rows, self.longest, heads, dim])
            .swap_dims(1, 2)
            .reshape([self.rows * heads, self.longest, dim])
    }

    fn split(&self, qkv: &Tensor<2>, spec: &AttentionSpec) -> (Tensor<3>, Tensor<3>, Tensor<3>) {
        let (tokens, dim) = (qkv.dims()[0], spec.head_dim);
        let columns = |from: usize, heads: usize| {
            self.unpack(
                qkv.clone()
                    .slice([0..tokens, from * dim..(from + heads) * dim]),
                heads,
                dim,
            )
        };
        let (h, kv) = (spec.heads, spec.kv_heads);
        (columns(0, h), columns(h, kv), columns(h + kv, kv))
    }

    fn probabilities(
        &self,
        q: Tensor<3>,
        k: Tensor<3>,
        spec: &AttentionSpec,
    ) -> (Tensor<3>, Option<Tensor<3>>) {
        let scores = q
            .matmul(spread(k, spec).swap_dims(1, 2))
            .mul_scalar(spec.scale);
        let (scores, slope) = capped(scores, spec);
        (
            softmax(
                scores + bias(0, self.longest, self.longest, spec, &self.device),
                2,
            ),
            slope,
        )
    }

    /// `[rows · heads, longest, dim]` back to `[tokens, heads·dim]`.
    fn pack(&self, x: Tensor<3>, spec: &AttentionSpec) -> Tensor<2> {
        self.pack_heads(x.reshape([self.rows, spec.heads, self.longest, spec.head_dim]))
    }

    /// As [`Self::pack`] for gradients of keys or values: sums each group's heads.
    fn pack_kv(&self, x: Tensor<3>, spec: &AttentionSpec) -> Tensor<2> {
        let grouped = x.reshape([
            self.rows * spec.kv_heads,
            spec.group(),
            self.longest * spec.head_dim,
        ]);
        let summed = grouped.sum_dim(1);
        self.pack_heads(summed.reshape([self.rows, spec.kv_heads, self.longest, spec.head_dim]))
    }

    fn pack_heads(&self, x: Tensor<4>) -> Tensor<2> {
        let [rows, heads, longest, dim] = x.dims();
        x.swap_dims(1, 2)
            .reshape([rows * longest, heads * dim])
            .select(0, self.to_packed.clone())
    }
}
