//! The pieces of one lane's part of a step, each with made-up inputs.

use std::sync::Arc;

use burn::tensor::Tensor;

use super::super::block::Block;
use super::super::random::uniform;
use super::super::{CausalLm, StepMode};
use super::{Operation, Piece};
use crate::batch::Batch;
use crate::lora::BlockLora;
use crate::measure::cost::{self, AttentionShape, Cost, GroupShape};
use crate::ops::{
    Attended, AttentionSpec, GroupLora, LinearGroup, Segments, Turn, attention, attention_backward,
    glu, glu_backward, low_rank, rms_norm, rms_norm_again, rms_norm_backward,
    rms_norm_backward_onto, rotate, tensor_on,
};

/// The linear groups of a block.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Group {
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

/// One lane's part of a step.
pub(super) struct Part<'a> {
    pub(super) model: &'a CausalLm,
    pub(super) batch: &'a Batch,
    pub(super) mode: &'a StepMode,
    pub(super) loras: Arc<Vec<BlockLora>>,
}

impl<'a> Part<'a> {
    /// All runs of an operation in this part.
    pub(super) fn piece(&self, operation: Operation) -> Piece<'a> {
        match operation {
            Operation::Embedding => self.embedding(),
            Operation::NormForward => self.norm_forward(),
            Operation::NormBackward => self.norm_backward(),
            Operation::QkvForward => self.linear_forward(Group::Qkv),
            Operation::QkvBackward => self.linear_backward(Group::Qkv),
            Operation::RopeForward => self.rope(self.attention_layers(), Turn::Forward),
            Operation::RopeBackward => self.rope(self.layers(), Turn::Backward),
            Operation::AttentionForward => self.attention_forward(),
            Operation::AttentionBackward => self.attention_backward(),
            Operation::OutForward => self.linear_forward(Group::Out),
            Operation::OutBackward => self.linear_backward(Group::Out),
            Operation::GateUpForward => self.linear_forward(Group::GateUp),
            Operation::GateUpBackward => self.linear_backward(Group::GateUp),
            Operation::GluForward => self.glu_forward(),
            Operation::GluBackward => self.glu_backward(),
            Operation::DownForward => self.linear_forward(Group::Down),
            Operation::DownBackward => self.linear_backward(Group::Down),
            Operation::Residual => self.residual(),
            Operation::Head => self.head(),
            Operation::Reference => self.reference(),
            Operation::Optimizer => Piece::new(0, Cost::default(), || {}),
        }
    }

    fn tokens(&self) -> usize {
        self.batch.tokens()
    }

    fn layers(&self) -> Vec<usize> {
        (0..self.model.blocks.len()).collect()
    }

    /// Layers in which the block runs forward, those that run again a second time.
    fn forward_layers(&self) -> Vec<usize> {
        let mut layers = self.layers();
        if self.mode.recompute {
            layers.extend(self.layers());
        }
        layers
    }

    /// The same for what comes before attention and attention itself, which may be kept.
    fn attention_layers(&self) -> Vec<usize> {
        let mut layers = self.layers();
        if self.mode.recompute {
            layers.extend(0..self.model.first_kept(self.tokens(), self.mode.share));
        }
        layers
    }

    /// Values in ±1.
    fn noise(&self, rows: usize, cols: usize) -> Tensor<2> {
        let values = uniform("activations", rows * cols, 1.0);
        tensor_on(values, [rows, cols], &self.model.device)
    }

    fn shape(&self, group: Group, layer: usize, with_adapters: bool) -> GroupShape {
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

    fn attention_shape(&self, layer: usize) -> AttentionShape {
        let spec = &self.model.blocks[layer].attention;
        AttentionShape {
            tokens: self.tokens(),
            heads: spec.heads,
            kv_heads: spec.kv_heads,
            head_dim: spec.head_dim,
            pairs: cost::visible_pairs(&self.batch.segments, spec.window),
        }
    }

    fn embedding(&self) -> Piece<'a> {
        let (model, batch) = (self.model, self.batch);
        let table = &model.embedding;
        let row_bytes = table.stored_bytes() / table.rows().max(1);
        let cost = cost::embedding(self.tokens(), table.cols(), row_bytes);
        Piece::new(1, cost, move || drop(model.embed(&batch.ids)))
    }

    fn linear_forward(&self, group: Group) -> Piece<'a> {
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

    fn linear_backward(&self, group: Group) -> Piece<'a> {
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

    fn norm_forward(&self) -> Piece<'a> {
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

    fn norm_backward(&self) -> Piece<'a> {
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

    fn rope(&self, layers: Vec<usize>, turn: Turn) -> Piece<'a> {
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

    fn attention_forward(&self) -> Piece<'a> {
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

    fn attention_backward(&self) -> Piece<'a> {
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

    fn glu_forward(&self) -> Piece<'a> {
        let activation = self.model.config.activation;
        let ffn = self.model.config.ffn;
        // Either the whole block runs again or its gated product is made again.
        let runs = 2 * self.model.blocks.len();
        let cost = cost::glu_forward(self.tokens() * ffn, activation) * runs;
        let gate_up = self.noise(self.tokens(), 2 * ffn);
        Piece::new(runs, cost, move || {
            (0..runs).for_each(|_| drop(glu(&gate_up, activation)));
        })
    }

    fn glu_backward(&self) -> Piece<'a> {
        let activation = self.model.config.activation;
        let ffn = self.model.config.ffn;
        let runs = self.model.blocks.len();
        let cost = cost::glu_backward(self.tokens() * ffn, activation) * runs;
        let gate_up = self.noise(self.tokens(), 2 * ffn);
        let dy = self.noise(self.tokens(), ffn);
        Piece::new(runs, cost, move || {
            // Held here too, it is not overwritten as in a step.
            (0..runs).for_each(|_| drop(glu_backward(&dy, gate_up.clone(), activation)));
        })
    }

    fn residual(&self) -> Piece<'a> {
        // Two sums in each block, the first again where blocks run again.
        let blocks = self.model.blocks.len();
        let again = if self.mode.recompute { blocks } else { 0 };
        let runs = 2 * blocks + again;
        let x = self.noise(self.tokens(), self.model.config.hidden);
        let cost = cost::add(elements(&x)) * runs;
        let branch = x.clone().mul_scalar(0.5);
        Piece::new(runs, cost, move || {
            (0..runs).for_each(|_| drop(x.clone() + branch.clone()));
        })
    }

    fn head(&self) -> Piece<'a> {
        let (model, batch, mode) = (self.model, self.batch, self.mode);
        let head = &model.head;
        let (features, vocabulary) = (model.config.hidden, head.weight.rows());
        let targets = batch.targets.len();
        let normed = targets * features;
        let cost = cost::head(targets, features, vocabulary, head.weight.stored_bytes())
            + cost::norm_forward(normed)
            + cost::norm_backward(normed);
        let last = self.noise(self.tokens(), features);
        Piece::new(1, cost, move || {
            drop(model.head_gradient(&last, batch, |normed| {
                head.cross_entropy(normed, &batch.targets, mode.weight, mode.share)
            }));
        })
    }

    fn reference(&self) -> Piece<'a> {
        let (model, batch, tokens) = (self.model, self.batch, self.tokens());
        let config = &model.config;
        let activation = config.activation;
        let of_layer = |layer: usize| {
            let groups = [Group::Qkv, Group::Out, Group::GateUp, Group::Down];
            let linear = groups.map(|group| self.shape(group, layer, false).forward(tokens));
            let rotated = tokens * (config.query_dim() + config.kv_dim());
            linear.into_iter().sum::<Cost>()
                + self.attention_shape(layer).forward()
                + cost::norm_forward(tokens * config.hidden) * 2
                + cost::rotate(rotated)
                + cost::glu_forward(tokens * config.ffn, activation)
                + cost::add(tokens * config.hidden) * 2
        };
        let head = &model.head.weight;
        let (targets, bytes) = (batch.targets.len(), head.stored_bytes());
        let cost = (0..model.blocks.len()).map(of_layer).sum::<Cost>()
            + cost::head_forward(targets, config.hidden, head.rows(), bytes);
        Piece::new(1, cost, move || drop(model.row_log_probs(batch, None)))
    }
}

/// Takes a tensor away to be written over, as a step does with what nobody else holds.
fn take(x: &mut Tensor<2>) -> Tensor<2> {
    let nothing = Tensor::zeros([0, 0], &x.device());
    std::mem::replace(x, nothing)
}

fn elements(x: &Tensor<2>) -> usize {
    x.dims().iter().product()
}
