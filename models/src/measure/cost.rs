//! What an operation has to do by its formula: arithmetic, and traffic with the memory.
//!
//! FLOPs are those of the formula, with a multiplication and an addition counted as two and a root,
//! an exponential or a quotient as one; scores that the causal mask hides and values that a kernel
//! computes twice do not count. Bytes are what a kernel without a cache's help must move if it moves
//! nothing twice: inputs and weights read once, in the form in which they are stored, and results
//! written once. So both are below what a kernel does, and a rate made of them can be compared with
//! what the device could do at best.

use std::iter::Sum;
use std::ops::{Add, Mul, Range};

use crate::config::Activation;

/// Bytes of a value of an activation, an adapter or a gradient.
const VALUE: u64 = size_of::<f32>() as u64;

/// Work and traffic of an operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Floating-point operations.
    pub flops: u64,
    /// Bytes read and written.
    pub bytes: u64,
}

impl Cost {
    /// `flops` for each of `elements`, and `values` read or written for each.
    const fn of_each(elements: usize, flops: u64, values: u64) -> Self {
        Self {
            flops: elements as u64 * flops,
            bytes: elements as u64 * values * VALUE,
        }
    }
}

impl Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            flops: self.flops + other.flops,
            bytes: self.bytes + other.bytes,
        }
    }
}

impl Mul<usize> for Cost {
    type Output = Self;

    fn mul(self, times: usize) -> Self {
        Self {
            flops: self.flops * times as u64,
            bytes: self.bytes * times as u64,
        }
    }
}

impl Sum for Cost {
    fn sum<I: Iterator<Item = Self>>(costs: I) -> Self {
        costs.fold(Self::default(), Add::add)
    }
}

/// The sizes of a group of linear layers that read one input, with its adapters.
#[derive(Clone, Debug, Default)]
pub(crate) struct GroupShape {
    pub(crate) input: usize,
    /// Of all parts together.
    pub(crate) output: usize,
    /// The frozen weights as they are stored.
    pub(crate) weight_bytes: usize,
    /// Output features and rank of each adapted part.
    pub(crate) adapters: Vec<(usize, usize)>,
    pub(crate) trains_a: bool,
}

impl GroupShape {
    /// All ranks side by side: columns of `u = x·Aᵀ`.
    fn ranks(&self) -> usize {
        self.adapters.iter().map(|(_, rank)| rank).sum()
    }

    /// Values of all `B`.
    fn b_values(&self) -> usize {
        self.adapters.iter().map(|(out, rank)| out * rank).sum()
    }

    fn adapter_values(&self) -> usize {
        self.ranks() * self.input + self.b_values()
    }

    /// `y = x·Wᵀ + s·(x·Aᵀ)·Bᵀ`.
    pub(crate) fn forward(&self, tokens: usize) -> Cost {
        let product = 2 * tokens * self.input * self.output;
        let through_b = 2 * tokens * self.b_values();
        let values = tokens * (self.input + self.output) + self.b_values();
        let own = Cost {
            flops: (product + through_b) as u64,
            bytes: values as u64 * VALUE + self.weight_bytes as u64,
        };
        let low_rank = self.low_rank(tokens);
        // The input is read once for both products.
        let shared = (tokens * self.input) as u64 * VALUE;
        Cost {
            flops: own.flops + low_rank.flops,
            bytes: own.bytes + low_rank.bytes.saturating_sub(shared),
        }
    }

    /// `u = x·Aᵀ` alone; nothing without adapters.
    pub(crate) fn low_rank(&self, tokens: usize) -> Cost {
        let ranks = self.ranks();
        if ranks == 0 {
            return Cost::default();
        }
        let values = tokens * self.input + ranks * self.input + tokens * ranks;
        Cost {
            flops: (2 * tokens * self.input * ranks) as u64,
            bytes: values as u64 * VALUE,
        }
    }

    /// `dU = s·g·B`, `dB = s·gᵀ·u`, `dA = dUᵀ·x`, `dx = g·W + dU·A`.
    pub(crate) fn backward(&self, tokens: usize, wants_dx: bool) -> Cost {
        let (ranks, adapted) = (self.ranks(), self.ranks() > 0);
        let du = adapted && (wants_dx || self.trains_a);
        let da = adapted && self.trains_a;
        let product = |inner: usize, when: bool| if when { 2 * tokens * inner } else { 0 };
        let flops = product(self.input * self.output, wants_dx)
            + product(self.b_values(), du)
            + product(self.b_values(), true)
            + product(self.input * ranks, da)
            + product(self.input * ranks, wants_dx);
        let count = |values: usize, when: bool| if when { values } else { 0 };
        let values = tokens * (self.output + ranks)
            + count(tokens * self.input, da)
            + count(tokens * self.input, wants_dx)
            + self.adapter_values()
            + self.b_values()
            + count(ranks * self.input, da);
        Cost {
            flops: flops as u64,
            bytes: values as u64 * VALUE + count(self.weight_bytes, wants_dx) as u64,
        }
    }
}

/// Pairs of a query and a key that it sees, in all rows.
pub(crate) fn visible_pairs(segments: &[Range<usize>], window: Option<usize>) -> u64 {
    let of_row = |row: &Range<usize>| {
        let len = row.len() as u64;
        let window = (window.unwrap_or(row.len()) as u64).min(len);
        // The first tokens see fewer than the window holds.
        window * (window + 1) / 2 + (len - window) * window
    };
    segments.iter().map(of_row).sum()
}

/// The sizes of causal attention over packed rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionShape {
    pub(crate) tokens: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    /// Of [`visible_pairs`].
    pub(crate) pairs: u64,
}

impl AttentionShape {
    fn product(&self) -> u64 {
        2 * self.pairs * (self.heads * self.head_dim) as u64
    }

    fn qkv(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// `q·kᵀ` and `p·v`.
    pub(crate) fn forward(&self) -> Cost {
        let values = self.qkv() + self.heads * self.head_dim + self.heads;
        Cost {
            flops: 2 * self.product(),
            bytes: (self.tokens * values) as u64 * VALUE,
        }
    }

    /// `q·kᵀ` again, `dv = pᵀ·do`, `dp = do·vᵀ`, `dq = ds·k` and `dk = dsᵀ·q`.
    pub(crate) fn backward(&self) -> Cost {
        let values = 2 * self.qkv() + 2 * self.heads * self.head_dim + self.heads;
        Cost {
            flops: 5 * self.product(),
            bytes: (self.tokens * values) as u64 * VALUE,
        }
    }
}

/// The norm of `elements` values.
pub(crate) fn norm_forward(elements: usize) -> Cost {
    Cost::of_each(elements, 4, 2)
}

/// The norm's result again, from the root that it left.
pub(crate) fn norm_again(elements: usize) -> Cost {
    Cost::of_each(elements, 2, 2)
}

/// The norm's gradient.
pub(crate) fn norm_backward(elements: usize) -> Cost {
    Cost::of_each(elements, 6, 3)
}

/// The norm's gradient, added to another.
pub(crate) fn norm_backward_onto(elements: usize) -> Cost {
    Cost::of_each(elements, 7, 4)
}

/// The rotation of `elements` values, either way.
pub(crate) fn rotate(elements: usize) -> Cost {
    Cost::of_each(elements, 3, 2)
}

/// A gated unit with `elements` results.
pub(crate) fn glu_forward(elements: usize, activation: Activation) -> Cost {
    let flops = match activation {
        Activation::Silu => 6,
        Activation::GeluTanh => 10,
    };
    Cost::of_each(elements, flops, 3)
}

/// The gradient of both halves of a gated unit with `elements` results.
pub(crate) fn glu_backward(elements: usize, activation: Activation) -> Cost {
    let flops = match activation {
        Activation::Silu => 12,
        Activation::GeluTanh => 22,
    };
    Cost::of_each(elements, flops, 5)
}

/// A sum of two tensors.
pub(crate) fn add(elements: usize) -> Cost {
    Cost::of_each(elements, 1, 3)
}

/// Rows of the embedding, `row_bytes` each as they are stored.
pub(crate) fn embedding(tokens: usize, features: usize, row_bytes: usize) -> Cost {
    Cost {
        flops: 0,
        bytes: (tokens * row_bytes) as u64 + (tokens * features) as u64 * VALUE,
    }
}

/// Logits and log-probabilities of `targets`, without a gradient.
pub(crate) fn head_forward(
    targets: usize,
    features: usize,
    vocabulary: usize,
    weight_bytes: usize,
) -> Cost {
    Cost {
        flops: (targets * vocabulary * (2 * features + 3)) as u64,
        bytes: weight_bytes as u64 + (targets * features) as u64 * VALUE,
    }
}

/// Cross-entropy of `targets` and the gradient of the hidden states: two products with the weights,
/// and logits that need not leave the caches.
pub(crate) fn head(
    targets: usize,
    features: usize,
    vocabulary: usize,
    weight_bytes: usize,
) -> Cost {
    Cost {
        flops: (targets * vocabulary * (4 * features + 4)) as u64,
        bytes: 2 * weight_bytes as u64 + 2 * (targets * features) as u64 * VALUE,
    }
}

/// The gradient's norm and AdamW's step over `params` values: the gradient read twice, parameters
/// and both moments read and written.
pub(crate) fn optimizer(params: usize) -> Cost {
    Cost::of_each(params, 17, 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(trains_a: bool) -> GroupShape {
        // Two parts of 6 and 4 outputs, both adapted with rank 2, weights of one byte a value.
        GroupShape {
            input: 8,
            output: 10,
            weight_bytes: 80,
            adapters: vec![(6, 2), (4, 2)],
            trains_a,
        }
    }

    #[test]
    fn a_linear_group_as_counted_by_hand() {
        let (tokens, shape) = (3, group(true));
        // x·Wᵀ: 3·8·10 products; x·Aᵀ: 3·8·4; u·Bᵀ: 3·(6·2 + 4·2).
        let forward = shape.forward(tokens);
        assert_eq!(forward.flops, 2 * (240 + 96 + 60));
        // x 24, y 30, A 32, B 20, u 12, and the weights.
        assert_eq!(forward.bytes, 4 * (24 + 30 + 32 + 20 + 12) + 80);
        assert_eq!(shape.low_rank(tokens).flops, 2 * 96);
        // g·W 240, dU 60, dB 60, dA 96, dU·A 96.
        let backward = shape.backward(tokens, true);
        assert_eq!(backward.flops, 2 * (240 + 60 + 60 + 96 + 96));
        // g 30, u 12, x 24, dx 24, A and B 52, dA 32, dB 20, and the weights.
        assert_eq!(backward.bytes, 4 * (30 + 12 + 24 + 24 + 52 + 32 + 20) + 80);
    }

    #[test]
    fn what_nobody_asks_for_costs_nothing() {
        let first_layer = group(true).backward(3, false);
        assert_eq!(first_layer.flops, 2 * (60 + 60 + 96));
        let only_b = group(false).backward(3, false);
        assert_eq!(only_b.flops, 2 * 60);
        let bare = GroupShape {
            adapters: Vec::new(),
            ..group(true)
        };
        assert_eq!(bare.forward(3).flops, 2 * 240);
        assert_eq!(bare.forward(3).bytes, 4 * (24 + 30) + 80);
        assert_eq!(bare.backward(3, true).flops, 2 * 240);
    }

    #[test]
    fn pairs_are_those_that_the_mask_leaves() {
        // 1+2+3+4, and 1+2.
        assert_eq!(visible_pairs(&[0..4, 4..6], None), 13);
        // A window of two: 1+2+2+2, and 1+2.
        assert_eq!(visible_pairs(&[0..4, 4..6], Some(2)), 10);
        assert_eq!(visible_pairs(&[0..4, 4..5], Some(9)), 11);
    }

    #[test]
    fn attention_as_counted_by_hand() {
        let shape = AttentionShape {
            tokens: 4,
            heads: 2,
            kv_heads: 1,
            head_dim: 8,
            pairs: 10,
        };
        // A product: 10 pairs, 2 heads, 8 features.
        assert_eq!(shape.forward().flops, 2 * (2 * 160));
        assert_eq!(shape.backward().flops, 5 * (2 * 160));
        // A token's q, k, v: 32 values; out: 16; log-sum-exp: 2.
        assert_eq!(shape.forward().bytes, 4 * 4 * (32 + 16 + 2));
        assert_eq!(shape.backward().bytes, 4 * 4 * (2 * 32 + 2 * 16 + 2));
    }

    #[test]
    fn head_and_passes_over_values_as_counted_by_hand() {
        // 5 targets, 8 features, 20 tokens, 2 bytes a weight.
        let head = head(5, 8, 20, 320);
        assert_eq!(head.flops, 5 * 20 * (2 * 8 + 4 + 2 * 8));
        assert_eq!(head.bytes, 640 + 2 * 4 * 40);
        let values = norm_forward(6) + norm_backward(6) + norm_backward_onto(6) + rotate(6) * 2;
        assert_eq!(values.flops, 6 * (4 + 6 + 7 + 3 + 3));
        assert_eq!(values.bytes, 6 * 4 * (2 + 3 + 4 + 2 + 2));
        assert_eq!(optimizer(10).bytes, 10 * 4 * 8);
        assert_eq!(embedding(3, 8, 18).bytes, 3 * (18 + 32));
    }
}
