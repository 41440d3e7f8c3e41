//! One decoder block, forward and backward, for every architecture of this crate: the
//! options that tell them apart are fields.

use crate::config::Activation;
use crate::lora::{BlockGrads, BlockLora};
use crate::ops::{
    Attended, AttentionSpec, Continuation, KeyValues, LinearGroup, Normed, Rotation, Segments,
    Turn, attention, attention_backward, attention_cached, glu, glu_backward, low_rank, rms_norm,
    rms_norm_again, rms_norm_backward, rms_norm_backward_onto, rotate,
};
use burn::tensor::Tensor;

/// A decoder block with frozen weights.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub(super) attention: AttentionSpec,
    pub(super) activation: Activation,
    pub(super) eps: f32,
    /// Index into the rotations of [`Rows`]: Gemma 3 turns sliding layers differently.
    pub(super) rotation: usize,
    pub(super) attention_norm: Tensor<1>,
    pub(super) qkv: LinearGroup,
    /// Norms of each query and key head (Qwen3, Gemma 3).
    pub(super) qk_norm: Option<QkNorm>,
    pub(super) out: LinearGroup,
    /// Norm of the attention's output before it is added (Gemma).
    pub(super) attention_post_norm: Option<Tensor<1>>,
    pub(super) ffn_norm: Tensor<1>,
    pub(super) gate_up: LinearGroup,
    pub(super) down: LinearGroup,
    /// Norm of the feed-forward's output before it is added (Gemma).
    pub(super) ffn_post_norm: Option<Tensor<1>>,
}

/// Weights of the norms over each head's features.
#[derive(Clone, Debug)]
pub(super) struct QkNorm {
    pub(super) query: Tensor<1>,
    pub(super) key: Tensor<1>,
}

/// Where the rows of a packed batch lie, and the rotations of their tokens.
pub(super) struct Rows {
    pub(super) segments: Segments,
    /// One for each kind of rotation that the model has.
    pub(super) rotations: Vec<Rotation>,
}

/// What the backward pass of one block needs besides its input.
pub(super) struct Tape {
    normed: NormTape,
    qkv: Projected,
    attended: Attended,
    out: Branch,
    middle: Tensor<2>,
    ffn_normed: NormTape,
    gate_up: Tensor<2>,
    gate_up_u: Option<Tensor<2>>,
    /// The gated product, unless the tape is [lean](Tape::lean).
    hidden: Option<Tensor<2>>,
    down: Branch,
}

/// What a norm's backward pass needs, and its result unless the tape is [lean](Tape::lean).
struct NormTape {
    y: Option<Tensor<2>>,
    inv: Tensor<2>,
}

impl NormTape {
    fn of(normed: Normed) -> Self {
        Self {
            y: Some(normed.y),
            inv: normed.inv,
        }
    }

    /// The result of the norm of `x`.
    fn result(&mut self, x: &Tensor<2>, weight: &Tensor<1>) -> Tensor<2> {
        let kept = self.y.take();
        kept.unwrap_or_else(|| rms_norm_again(x, weight, &self.inv))
    }
}

/// What attention computed: the part of a [`Tape`] that is worth keeping where the rest is computed
/// again.
pub(super) struct Kept {
    qkv: Projected,
    attended: Attended,
}

impl Tape {
    /// Gives up what a pass over each value makes again: a third of a tape, for a hundredth of a
    /// step's time.
    pub(super) fn lean(mut self) -> Self {
        self.normed.y = None;
        self.ffn_normed.y = None;
        self.hidden = None;
        self
    }

    /// Gives up everything but what attention computed.
    pub(super) fn into_kept(self) -> Kept {
        Kept {
            qkv: self.qkv,
            attended: self.attended,
        }
    }
}

/// Queries, keys and values, normalised and rotated.
struct Projected {
    rotated: Tensor<2>,
    u: Option<Tensor<2>>,
    norm: Option<QkTape>,
}

struct QkTape {
    query: (Tensor<2>, Tensor<2>),
    key: (Tensor<2>, Tensor<2>),
}

/// A block up to the sum after attention.
struct AttentionHalf {
    normed: Normed,
    qkv: Projected,
    attended: Attended,
    out: Branch,
    middle: Tensor<2>,
}

/// A block from there to its last product.
struct FeedHalf {
    normed: Normed,
    gate_up: Tensor<2>,
    u: Option<Tensor<2>>,
    hidden: Tensor<2>,
}

impl Tape {
    fn of(attention: AttentionHalf, feed: FeedHalf, down: Branch) -> Self {
        Self {
            normed: NormTape::of(attention.normed),
            qkv: attention.qkv,
            attended: attention.attended,
            out: attention.out,
            middle: attention.middle,
            ffn_normed: NormTape::of(feed.normed),
            gate_up: feed.gate_up,
            gate_up_u: feed.u,
            hidden: Some(feed.hidden),
            down,
        }
    }
}

/// The end of a residual branch: a linear group and perhaps a norm.
struct Branch {
    u: Option<Tensor<2>>,
    /// The linear output and its inverse root mean square, if it is normalised.
    norm: Option<(Tensor<2>, Tensor<2>)>,
}

impl Block {
    /// `x` `[tokens, hidden]` through the block, and what the backward pass needs.
    pub(super) fn forward(
        &self,
        x: &Tensor<2>,
        rows: &Rows,
        lora: Option<&BlockLora>,
    ) -> (Tensor<2>, Tape) {
        let attended = self.attend(x, rows, lora, None);
        let ffn = self.feed(&attended.middle, lora);
        let (branch, down) = self.down_branch(&ffn.hidden, lora);
        let y = attended.middle.clone() + branch;
        (y, Tape::of(attended, ffn, down))
    }

    /// What the backward pass needs, computed again from the block's input and perhaps from what
    /// attention computed. The last product is left out: nothing needs the block's output.
    pub(super) fn forward_again(
        &self,
        x: &Tensor<2>,
        rows: &Rows,
        lora: &BlockLora,
        kept: Option<Kept>,
    ) -> Tape {
        let attended = self.attend(x, rows, Some(lora), kept);
        let ffn = self.feed(&attended.middle, Some(lora));
        let down = if self.ffn_post_norm.is_some() {
            self.down_branch(&ffn.hidden, Some(lora)).1
        } else {
            let u = lora.down.as_ref().map(|lora| low_rank(&ffn.hidden, lora));
            Branch { u, norm: None }
        };
        Tape::of(attended, ffn, down)
    }

    fn attend(
        &self,
        x: &Tensor<2>,
        rows: &Rows,
        lora: Option<&BlockLora>,
        kept: Option<Kept>,
    ) -> AttentionHalf {
        let normed = rms_norm(x, &self.attention_norm, self.eps);
        let (qkv, attended) = match kept {
            Some(kept) => (kept.qkv, kept.attended),
            None => {
                let qkv = self.project(&normed.y, &rows.rotations[self.rotation], lora);
                let attended = attention(&qkv.rotated, &rows.segments, &self.attention);
                (qkv, attended)
            }
        };
        let (branch, out) = self.out_branch(&attended.out, lora);
        AttentionHalf {
            normed,
            qkv,
            attended,
            out,
            middle: x.clone() + branch,
        }
    }

    fn feed(&self, middle: &Tensor<2>, lora: Option<&BlockLora>) -> FeedHalf {
        let normed = rms_norm(middle, &self.ffn_norm, self.eps);
        let gate_up = self
            .gate_up
            .forward(&normed.y, lora.and_then(|l| l.gate_up.as_ref()));
        let hidden = glu(&gate_up.y, self.activation);
        FeedHalf {
            normed,
            gate_up: gate_up.y,
            u: gate_up.u,
            hidden,
        }
    }

    /// The gradient with respect to the block's input `x`, if asked for, and those of
    /// the adapters, given that of its output.
    pub(super) fn backward(
        &self,
        dy: Tensor<2>,
        x: &Tensor<2>,
        mut tape: Tape,
        rows: &Rows,
        lora: &BlockLora,
        want_dx: bool,
    ) -> (Option<Tensor<2>>, BlockGrads) {
        let mut grads = BlockGrads::default();
        let dbranch = branch_gradient(&dy, &tape.down, self.ffn_post_norm.as_ref());
        let hidden = tape.hidden.take();
        let hidden = hidden.unwrap_or_else(|| glu(&tape.gate_up, self.activation));
        let (dhidden, down) = self.down.backward(
            &dbranch,
            &hidden,
            tape.down.u.as_ref(),
            lora.down.as_ref(),
            true,
        );
        grads.down = down;
        drop(hidden);
        let dhidden = wanted(dhidden);
        let dgate_up = glu_backward(&dhidden, tape.gate_up, self.activation);
        let (dnormed, gate_up) = self.gate_up.backward(
            &dgate_up,
            &tape.ffn_normed.result(&tape.middle, &self.ffn_norm),
            tape.gate_up_u.as_ref(),
            lora.gate_up.as_ref(),
            true,
        );
        grads.gate_up = gate_up;
        drop(dbranch);
        let dmiddle = rms_norm_backward_onto(
            dy,
            &wanted(dnormed),
            &tape.middle,
            &self.ffn_norm,
            &tape.ffn_normed.inv,
        );

        let dbranch = branch_gradient(&dmiddle, &tape.out, self.attention_post_norm.as_ref());
        let (dattended, out) = self.out.backward(
            &dbranch,
            &tape.attended.out,
            tape.out.u.as_ref(),
            lora.out.as_ref(),
            true,
        );
        grads.out = out;
        let drotated = attention_backward(
            &wanted(dattended),
            &tape.qkv.rotated,
            &tape.attended,
            &rows.segments,
            &self.attention,
        );
        let dqkv = self.project_backward(drotated, &tape.qkv, &rows.rotations[self.rotation]);
        let (dnormed, qkv) = self.qkv.backward(
            &dqkv,
            &tape.normed.result(x, &self.attention_norm),
            tape.qkv.u.as_ref(),
            lora.qkv.as_ref(),
            want_dx,
        );
        grads.qkv = qkv;
        drop(dbranch);
        let dx = dnormed.map(|dnormed| {
            rms_norm_backward_onto(dmiddle, &dnormed, x, &self.attention_norm, &tape.normed.inv)
        });
        (dx, grads)
    }

    /// New tokens through the block, attending to the cached ones of their texts.
    pub(super) fn forward_cached(
        &self,
        x: &Tensor<2>,
        rotations: &[Rotation],
        cache: &mut [KeyValues],
        continuations: &[Continuation],
        lora: Option<&BlockLora>,
    ) -> Tensor<2> {
        let normed = rms_norm(x, &self.attention_norm, self.eps);
        let qkv = self
            .project(&normed.y, &rotations[self.rotation], lora)
            .rotated;
        let attended = attention_cached(&qkv, cache, continuations, &self.attention);
        let middle = x.clone() + self.out_branch(&attended, lora).0;
        let ffn = self.feed(&middle, lora);
        middle + self.down_branch(&ffn.hidden, lora).0
    }

    fn project(
        &self,
        normed: &Tensor<2>,
        rotation: &Rotation,
        lora: Option<&BlockLora>,
    ) -> Projected {
        let output = self.qkv.forward(normed, lora.and_then(|l| l.qkv.as_ref()));
        let heads = self.attention.heads + self.attention.kv_heads;
        let (qkv, norm) = match &self.qk_norm {
            None => (output.y, None),
            Some(weights) => {
                let [query, key, value] = self.split(&output.y);
                let (query, query_tape) = self.head_norm(query, &weights.query);
                let (key, key_tape) = self.head_norm(key, &weights.key);
                let tape = QkTape {
                    query: query_tape,
                    key: key_tape,
                };
                (Tensor::cat(vec![query, key, value], 1), Some(tape))
            }
        };
        Projected {
            rotated: rotate(qkv, rotation, heads, Turn::Forward),
            u: output.u,
            norm,
        }
    }

    fn project_backward(
        &self,
        drotated: Tensor<2>,
        tape: &Projected,
        rotation: &Rotation,
    ) -> Tensor<2> {
        let heads = self.attention.heads + self.attention.kv_heads;
        let dqkv = rotate(drotated, rotation, heads, Turn::Backward);
        let Some((tape, weights)) = tape.norm.as_ref().zip(self.qk_norm.as_ref()) else {
            return dqkv;
        };
        let [dquery, dkey, dvalue] = self.split(&dqkv);
        let dim = self.attention.head_dim;
        let back = |dy: Tensor<2>, (x, inv): &(Tensor<2>, Tensor<2>), weight: &Tensor<1>| {
            let [tokens, width] = dy.dims();
            let dy = dy.reshape([tokens * width / dim, dim]);
            rms_norm_backward(&dy, x, weight, inv).reshape([tokens, width])
        };
        let dquery = back(dquery, &tape.query, &weights.query);
        let dkey = back(dkey, &tape.key, &weights.key);
        Tensor::cat(vec![dquery, dkey, dvalue], 1)
    }

    /// The query, key and value columns.
    fn split(&self, qkv: &Tensor<2>) -> [Tensor<2>; 3] {
        let spec = &self.attention;
        let [tokens, width] = qkv.dims();
        let (q, k) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        [0..q, q..q + k, q + k..width].map(|columns| qkv.clone().slice([0..tokens, columns]))
    }

    /// Normalises each head's features; also returns what the backward pass needs.
    fn head_norm(&self, x: Tensor<2>, weight: &Tensor<1>) -> (Tensor<2>, (Tensor<2>, Tensor<2>)) {
        let [tokens, width] = x.dims();
        let dim = self.attention.head_dim;
        let heads = x.reshape([tokens * width / dim, dim]);
        let normed = rms_norm(&heads, weight, self.eps);
        (normed.y.reshape([tokens, width]), (heads, normed.inv))
    }

    fn out_branch(&self, attended: &Tensor<2>, lora: Option<&BlockLora>) -> (Tensor<2>, Branch) {
        let output = self
            .out
            .forward(attended, lora.and_then(|l| l.out.as_ref()));
        self.finish_branch(output.y, output.u, self.attention_post_norm.as_ref())
    }

    fn down_branch(&self, hidden: &Tensor<2>, lora: Option<&BlockLora>) -> (Tensor<2>, Branch) {
        let output = self
            .down
            .forward(hidden, lora.and_then(|l| l.down.as_ref()));
        self.finish_branch(output.y, output.u, self.ffn_post_norm.as_ref())
    }

    fn finish_branch(
        &self,
        y: Tensor<2>,
        u: Option<Tensor<2>>,
        weight: Option<&Tensor<1>>,
    ) -> (Tensor<2>, Branch) {
        match weight {
            None => (y, Branch { u, norm: None }),
            Some(weight) => {
                let normed = rms_norm(&y, weight, self.eps);
                (
                    normed.y,
                    Branch {
                        u,
                        norm: Some((y, normed.inv)),
                    },
                )
            }
        }
    }
}

fn branch_gradient(dy: &Tensor<2>, branch: &Branch, weight: Option<&Tensor<1>>) -> Tensor<2> {
    match branch.norm.as_ref().zip(weight) {
        None => dy.clone(),
        Some(((x, inv), weight)) => rms_norm_backward(dy, x, weight, inv),
    }
}

/// A gradient that was asked for.
fn wanted(gradient: Option<Tensor<2>>) -> Tensor<2> {
    // `LinearGroup::backward` returns `dx` whenever it is told to.
    gradient.unwrap_or_else(|| unreachable!("a linear group kept back the gradient of its input"))
}
