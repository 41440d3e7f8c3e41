//! The pieces of one lane's part of a step, each with made-up inputs.

mod attention;
mod linear;
mod norm;

use std::sync::Arc;

use burn::tensor::Tensor;

use self::linear::Group;
use super::super::random::uniform;
use super::super::{CausalLm, StepMode};
use super::{Operation, Piece};
use crate::batch::Batch;
use crate::lora::BlockLora;
use crate::measure::cost::{self, Cost};
use crate::ops::{Turn, glu, glu_backward, tensor_on};

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

    fn embedding(&self) -> Piece<'a> {
        let (model, batch) = (self.model, self.batch);
        let table = &model.embedding;
        let row_bytes = table.stored_bytes() / table.rows().max(1);
        let cost = cost::embedding(self.tokens(), table.cols(), row_bytes);
        Piece::new(1, cost, move || drop(model.embed(&batch.ids)))
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
