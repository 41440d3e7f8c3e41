//! The linear groups of blocks, with their adapters.

use super::super::Piece;
use super::Part;
use crate::arch::block::Block;
use crate::lora::BlockLora;
use crate::measure::cost::{Cost, GroupShape};
use crate::ops::{GroupLora, LinearGroup, low_rank};

/// The linear groups of a block.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Group {
    Qkv,
    Out,
    GateUp,
    Down,
}

impl Group {
    fn of(self, block: &Block) -> &LinearGroup {
        match self {
            Self::Qkv => &block.qkv,
            Self::Out => &block.out,
            Self::GateUp => &block.gate_up,
            Self::Down => &block.down,
        }
    }

    fn adapters(self, lora: &BlockLora) -> Option<&GroupLora> {
        match self {
            Self::Qkv => lora.qkv.as_ref(),
            Self::Out => lora.out.as_ref(),
            Self::GateUp => lora.gate_up.as_ref(),
            Self::Down => lora.down.as_ref(),
        }
    }
}

impl<'a> Part<'a> {
    pub(super) fn linear_forward(&self, group: Group) -> Piece<'a> {
        let (model, loras) = (self.model, self.loras.clone());
        let layers = match group {
            Group::Qkv => self.attention_layers(),
            Group::Down => self.layers(),
            Group::Out | Group::GateUp => self.forward_layers(),
        };
        // Of the last product only what the gradients need is made again.
        let again = match group {
            Group::Down if self.mode.recompute => self.layers(),
            _ => Vec::new(),
        };
        let whole = |layer: usize| model.blocks[layer].ffn_post_norm.is_some();
        let x = self.noise(self.tokens(), group.of(&model.blocks[0]).input());
        let of_layer = |&layer: &usize| self.shape(group, layer, true).forward(self.tokens());
        let of_again = |&layer: &usize| match whole(layer) {
            true => of_layer(&layer),
            false => self.shape(group, layer, true).low_rank(self.tokens()),
        };
        let cost = layers.iter().map(of_layer).sum::<Cost>() + again.iter().map(of_again).sum();
        Piece::new(layers.len() + again.len(), cost, move || {
            let forward = |layer: usize| {
                let lora = group.adapters(&loras[layer]);
                drop(group.of(&model.blocks[layer]).forward(&x, lora));
            };
            layers.iter().for_each(|&layer| forward(layer));
            for &layer in &again {
                match group.adapters(&loras[layer]) {
                    _ if whole(layer) => forward(layer),
                    Some(lora) => drop(low_rank(&x, lora)),
                    None => {}
                }
            }
        })
    }

    pub(super) fn linear_backward(&self, group: Group) -> Piece<'a> {
        let (model, loras) = (self.model, self.loras.clone());
        let first = group.of(&model.blocks[0]);
        let tokens = self.tokens();
        let x = self.noise(tokens, first.input());
        let g = self.noise(tokens, first.outputs().sum());
        let u = group
            .adapters(&loras[0])
            .map(|lora| self.noise(tokens, lora.a.dims()[0]));
        // Nothing is below the first layer that could be trained.
        let wants_dx = move |layer: usize| group != Group::Qkv || layer > 0;
        let layers = self.layers();
        let of_layer = |&layer: &usize| {
            self.shape(group, layer, true)
                .backward(tokens, wants_dx(layer))
        };
        let cost = layers.iter().map(of_layer).sum();
        Piece::new(layers.len(), cost, move || {
            for &layer in &layers {
                let lora = group.adapters(&loras[layer]);
                let linear = group.of(&model.blocks[layer]);
                drop(linear.backward(&g, &x, u.as_ref(), lora, wants_dx(layer)));
            }
        })
    }

    pub(super) fn shape(&self, group: Group, layer: usize, with_adapters: bool) -> GroupShape {
        let linear = group.of(&self.model.blocks[layer]);
        let lora = group.adapters(&self.loras[layer]).filter(|_| with_adapters);
        let adapters = lora.iter().flat_map(|lora| &lora.b).map(|part| {
            let [out, rank] = part.b.dims();
            (out, rank)
        });
        GroupShape {
            input: linear.input(),
            output: linear.outputs().sum(),
            weight_bytes: linear.stored_bytes(),
            adapters: adapters.collect(),
            trains_a: lora.is_some_and(|lora| lora.trains_a),
        }
    }
}
