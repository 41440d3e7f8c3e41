//! A training step taken apart: each of its operations at the step's own shapes, to be run and timed
//! by itself.
//!
//! A [`Piece`] is every run of one operation in one lane's part of a step: of each layer, and again
//! where the backward pass makes something again. Its inputs are made up, its weights and adapters
//! are the model's. Which runs there are follows [`super::CausalLm::gradients`] and
//! [`super::block`]: who changes those changes this too. `fedllm-client bench` shows what of a step's
//! time no operation accounts for.

mod part;

use std::sync::Arc;

use fedllm_shared::RowKind;

use self::part::Part;
use super::block::Block;
use super::{CausalLm, StepMode};
use crate::batch::Batch;
use crate::lora::Lora;
use crate::measure::cost::Cost;
use crate::ops::{LinearGroup, is_cpu};

/// An operation of a training step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// The lookup of the tokens' embeddings.
    Embedding,
    /// Root mean square norms of all layers, those that are made again included.
    NormForward,
    /// Their gradients, where a branch begins added to what comes past it.
    NormBackward,
    /// The query, key and value projections, with adapters.
    QkvForward,
    /// Their gradients.
    QkvBackward,
    /// The rotation of queries and keys.
    RopeForward,
    /// The rotation back.
    RopeBackward,
    /// Causal attention.
    AttentionForward,
    /// Its gradient.
    AttentionBackward,
    /// The projection of attention's output.
    OutForward,
    /// Its gradient.
    OutBackward,
    /// The gate and up projections.
    GateUpForward,
    /// Their gradients.
    GateUpBackward,
    /// The gated unit between them and the down projection.
    GluForward,
    /// Its gradient.
    GluBackward,
    /// The down projection.
    DownForward,
    /// Its gradient.
    DownBackward,
    /// Sums of a branch and what it branched from.
    Residual,
    /// The final norm, the logits, the loss and the gradient of the last block's output.
    Head,
    /// The log-probabilities of a preference step's reference: a forward pass without adapters.
    Reference,
    /// The gradient's norm, clipping and the optimizer; once a step.
    Optimizer,
}

impl Operation {
    /// Those of a step over examples, in the order of a table.
    const OF_EXAMPLES: [Self; 20] = [
        Self::Embedding,
        Self::NormForward,
        Self::NormBackward,
        Self::QkvForward,
        Self::QkvBackward,
        Self::RopeForward,
        Self::RopeBackward,
        Self::AttentionForward,
        Self::AttentionBackward,
        Self::OutForward,
        Self::OutBackward,
        Self::GateUpForward,
        Self::GateUpBackward,
        Self::GluForward,
        Self::GluBackward,
        Self::DownForward,
        Self::DownBackward,
        Self::Residual,
        Self::Head,
        Self::Optimizer,
    ];

    /// Those of a step over rows of this kind, in the order of a table.
    pub fn of_step(kind: RowKind) -> Vec<Self> {
        let mut operations = Vec::new();
        if kind == RowKind::Preferences {
            operations.push(Self::Reference);
        }
        operations.extend(Self::OF_EXAMPLES);
        operations
    }

    /// Its name, as results have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::NormForward => "norm_forward",
            Self::NormBackward => "norm_backward",
            Self::QkvForward => "qkv_forward",
            Self::QkvBackward => "qkv_backward",
            Self::RopeForward => "rope_forward",
            Self::RopeBackward => "rope_backward",
            Self::AttentionForward => "attention_forward",
            Self::AttentionBackward => "attention_backward",
            Self::OutForward => "out_forward",
            Self::OutBackward => "out_backward",
            Self::GateUpForward => "gate_up_forward",
            Self::GateUpBackward => "gate_up_backward",
            Self::GluForward => "glu_forward",
            Self::GluBackward => "glu_backward",
            Self::DownForward => "down_forward",
            Self::DownBackward => "down_backward",
            Self::Residual => "residual",
            Self::Head => "head",
            Self::Reference => "reference",
            Self::Optimizer => "optimizer",
        }
    }
}

/// All runs of one operation in one lane's part of a step.
pub(crate) struct Piece<'a> {
    /// How often it runs.
    pub(crate) runs: usize,
    /// What all runs cost.
    pub(crate) cost: Cost,
    work: Box<dyn FnMut() + Send + 'a>,
}

impl<'a> Piece<'a> {
    pub(crate) fn new(runs: usize, cost: Cost, work: impl FnMut() + Send + 'a) -> Self {
        Self {
            runs,
            cost,
            work: Box::new(work),
        }
    }

    /// Runs all of it once, and on a GPU does not wait for the end.
    pub(crate) fn run(&mut self) {
        (self.work)();
    }
}

impl CausalLm {
    /// Bytes of the frozen matrices as they are held; the CPU's head may be the embedding.
    pub fn base_bytes(&self) -> usize {
        let shared = self.config.tied && is_cpu(&self.device);
        let head = if shared {
            0
        } else {
            self.head.weight.stored_bytes()
        };
        let of_block = |block: &Block| {
            let groups = [&block.qkv, &block.out, &block.gate_up, &block.down];
            groups.map(LinearGroup::stored_bytes).iter().sum::<usize>()
        };
        let blocks = self.blocks.iter().map(of_block).sum::<usize>();
        self.embedding.stored_bytes() + head + blocks
    }

    /// All runs of `operation`, which is none of the optimizer, in the part of a step that trains on
    /// `batch`.
    pub(crate) fn piece<'a>(
        &'a self,
        operation: Operation,
        batch: &'a Batch,
        lora: &Lora,
        mode: &'a StepMode,
    ) -> Piece<'a> {
        let loras = (0..self.blocks.len()).map(|layer| lora.block(layer, mode.dropout));
        let part = Part {
            model: self,
            batch,
            mode,
            loras: Arc::new(loras.collect()),
        };
        part.piece(operation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{BasePrecision, shape};
    use crate::measure::{Workload, new_adapter};
    use burn::tensor::Device;

    fn runs(recompute: bool) -> Vec<(&'static str, usize)> {
        let config = shape("tiny").unwrap();
        let model = CausalLm::random(&config, BasePrecision::F32, &Device::flex()).unwrap();
        let lora = new_adapter(&model, 2).unwrap();
        let work = Workload {
            kind: RowKind::Preferences,
            rows: 1,
            tokens: 6,
        };
        let batch = work.batch(config.vocab);
        let mode = StepMode {
            recompute,
            weight: 1.0,
            dropout: None,
            share: 1.0,
        };
        let operations = Operation::of_step(work.kind).into_iter();
        let of_operation = |operation: Operation| {
            let mut piece = model.piece(operation, &batch, &lora, &mode);
            piece.run();
            assert_eq!(piece.runs > 0, piece.cost.bytes > 0, "{}", operation.name());
            (operation.name(), piece.runs)
        };
        operations.map(of_operation).collect()
    }

    #[test]
    fn operations_run_once_a_layer_and_again_where_something_is_made_again() {
        let keeping = runs(false);
        let count = |runs: &[(&str, usize)], wanted: &str| {
            let found = runs.iter().find(|(name, _)| *name == wanted);
            found.map(|(_, runs)| *runs)
        };
        for (name, expected) in [
            ("reference", 1),
            ("embedding", 1),
            // Two of each of two layers, all of them again from their roots.
            ("norm_forward", 8),
            // Nothing is below the first.
            ("norm_backward", 3),
            ("qkv_forward", 2),
            ("out_forward", 2),
            ("glu_forward", 4),
            ("down_forward", 2),
            ("down_backward", 2),
            // What is summed backward, a norm's gradient is added to.
            ("residual", 4),
            ("head", 1),
        ] {
            assert_eq!(count(&keeping, name), Some(expected), "{name}");
        }
        let low_memory = runs(true);
        for (name, expected) in [
            ("norm_forward", 8),
            // Attention and what comes before it is kept: it is small.
            ("qkv_forward", 2),
            ("attention_forward", 2),
            ("out_forward", 4),
            ("gate_up_forward", 4),
            ("glu_forward", 4),
            // The second time without the product that nobody reads.
            ("down_forward", 4),
            ("residual", 6),
        ] {
            assert_eq!(count(&low_memory, name), Some(expected), "{name}");
        }
    }
}
