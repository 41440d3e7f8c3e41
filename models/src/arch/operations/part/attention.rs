//! Attention of blocks, and the rotation before it.

use super::super::Piece;
use super::{Part, take};
use crate::measure::cost::{self, AttentionShape};
use crate::ops::{Attended, AttentionSpec, Segments, Turn, attention, attention_backward, rotate};

impl<'a> Part<'a> {
    pub(super) fn rope(&self, layers: Vec<usize>, turn: Turn) -> Piece<'a> {
        let model = self.model;
        let spec = model.blocks[0].attention;
        let heads = spec.heads + spec.kv_heads;
        let rotations = model.rotations(&self.batch.positions());
        let cost = cost::rotate(self.tokens() * heads * spec.head_dim) * layers.len();
        let mut x = self.noise(self.tokens(), spec.qkv_width());
        Piece::new(layers.len(), cost, move || {
            for &layer in &layers {
                let rotation = &rotations[model.blocks[layer].rotation];
                x = rotate(take(&mut x), rotation, heads, turn);
            }
        })
    }

    pub(super) fn attention_forward(&self) -> Piece<'a> {
        let (model, batch) = (self.model, self.batch);
        let layers = self.attention_layers();
        let cost = layers
            .iter()
            .map(|&layer| self.attention_shape(layer).forward());
        let cost = cost.sum();
        let qkv = self.noise(self.tokens(), model.blocks[0].attention.qkv_width());
        let segments = Segments::new(batch.segments.clone(), &model.device);
        Piece::new(layers.len(), cost, move || {
            for &layer in &layers {
                let spec = &model.blocks[layer].attention;
                drop(attention(&qkv, &segments, spec));
            }
        })
    }

    pub(super) fn attention_backward(&self) -> Piece<'a> {
        let (model, batch) = (self.model, self.batch);
        let layers = self.layers();
        let cost = layers
            .iter()
            .map(|&layer| self.attention_shape(layer).backward());
        let cost = cost.sum();
        let spec = &model.blocks[0].attention;
        let qkv = self.noise(self.tokens(), spec.qkv_width());
        let dout = self.noise(self.tokens(), spec.out_width());
        let segments = Segments::new(batch.segments.clone(), &model.device);
        // Layers with the same window leave the same.
        let mut kinds: Vec<(AttentionSpec, Attended)> = Vec::new();
        for block in &model.blocks {
            if !kinds.iter().any(|(spec, _)| *spec == block.attention) {
                let attended = attention(&qkv, &segments, &block.attention);
                kinds.push((block.attention, attended));
            }
        }
        Piece::new(layers.len(), cost, move || {
            for &layer in &layers {
                let wanted = &model.blocks[layer].attention;
                for (spec, attended) in kinds.iter().filter(|(spec, _)| spec == wanted) {
                    drop(attention_backward(&dout, &qkv, attended, &segments, spec));
                }
            }
        })
    }

    pub(super) fn attention_shape(&self, layer: usize) -> AttentionShape {
        let spec = &self.model.blocks[layer].attention;
        AttentionShape {
            tokens: self.tokens(),
            heads: spec.heads,
            kv_heads: spec.kv_heads,
            head_dim: spec.head_dim,
            pairs: cost::visible_pairs(&self.batch.segments, spec.window),
        }
    }
}
