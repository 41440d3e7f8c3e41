//! The norms of blocks, and what their gradients are added to.

use burn::tensor::Tensor;

use super::super::Piece;
use super::{Part, elements, take};
use crate::measure::cost::{self, Cost};
use crate::ops::{rms_norm, rms_norm_again, rms_norm_backward, rms_norm_backward_onto};

impl<'a> Part<'a> {
    /// A norm's input of the block's width, and those of each head's queries and keys.
    fn norm_inputs(&self) -> [Tensor<2>; 3] {
        let config = &self.model.config;
        let of_heads = |heads: usize| self.noise(self.tokens() * heads, config.head_dim);
        let qk = config.qk_norm;
        [
            self.noise(self.tokens(), config.hidden),
            of_heads(if qk { config.heads } else { 0 }),
            of_heads(if qk { config.kv_heads } else { 0 }),
        ]
    }

    pub(super) fn norm_forward(&self) -> Piece<'a> {
        let model = self.model;
        let [x, query, key] = self.norm_inputs();
        let mut norms = Vec::new();
        for layer in self.forward_layers() {
            let block = &model.blocks[layer];
            let posts = [&block.attention_post_norm, &block.ffn_post_norm];
            norms.extend([&block.attention_norm, &block.ffn_norm].map(|w| (x.clone(), w)));
            norms.extend(posts.into_iter().flatten().map(|w| (x.clone(), w)));
        }
        for layer in self.attention_layers() {
            if let Some(weights) = &model.blocks[layer].qk_norm {
                norms.push((query.clone(), &weights.query));
                norms.push((key.clone(), &weights.key));
            }
        }
        // Where blocks do not run again, results of norms are made again from their roots.
        let mut again = Vec::new();
        if !self.mode.recompute {
            let blocks = model.blocks.iter();
            again.extend(blocks.flat_map(|block| [&block.attention_norm, &block.ffn_norm]));
        }
        let of_norm = |(x, _): &(Tensor<2>, _)| cost::norm_forward(elements(x));
        let cost =
            norms.iter().map(of_norm).sum::<Cost>() + cost::norm_again(elements(&x)) * again.len();
        let inv = self.noise(self.tokens(), 1);
        let eps = model.config.rms_eps;
        Piece::new(norms.len() + again.len(), cost, move || {
            for (x, weight) in &norms {
                drop(rms_norm(x, weight, eps));
            }
            for weight in &again {
                drop(rms_norm_again(&x, weight, &inv));
            }
        })
    }

    pub(super) fn norm_backward(&self) -> Piece<'a> {
        let [x, query, key] = self.norm_inputs();
        // The norms that a branch begins with, and all others.
        let (mut first, mut norms) = (Vec::new(), Vec::new());
        for (layer, block) in self.model.blocks.iter().enumerate() {
            first.extend(Some(&block.attention_norm).filter(|_| layer > 0));
            first.push(&block.ffn_norm);
            let posts = [&block.attention_post_norm, &block.ffn_post_norm];
            norms.extend(posts.into_iter().flatten().map(|w| (x.clone(), w)));
            if let Some(weights) = &block.qk_norm {
                norms.push((query.clone(), &weights.query));
                norms.push((key.clone(), &weights.key));
            }
        }
        let of_norm = |(x, _): &(Tensor<2>, _)| cost::norm_backward(elements(x));
        let cost = norms.iter().map(of_norm).sum::<Cost>()
            + cost::norm_backward_onto(elements(&x)) * first.len();
        let roots = |x: &Tensor<2>| self.noise(x.dims()[0], 1);
        let norms: Vec<_> = norms
            .into_iter()
            .map(|(x, weight)| (roots(&x), x, weight))
            .collect();
        let inv = roots(&x);
        let mut sum = x.clone().mul_scalar(0.5);
        Piece::new(first.len() + norms.len(), cost, move || {
            for weight in &first {
                sum = rms_norm_backward_onto(take(&mut sum), &x, &x, weight, &inv);
            }
            for (inv, x, weight) in &norms {
                drop(rms_norm_backward(x, x, weight, inv));
            }
        })
    }
}
