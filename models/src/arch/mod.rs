//! The decoder: one model type for every architecture that [`ModelConfig`] describes.

mod block;
mod cache;
mod load;
mod operations;
mod random;

pub use cache::{KvCache, RunId};
pub use load::{BasePrecision, LoadError};
pub use operations::Operation;
pub(crate) use operations::Piece;
pub(crate) use random::uniform;
pub use random::{SHAPES, shape};

use crate::batch::Batch;
use crate::config::ModelConfig;
use crate::lora::{BlockGrads, Lora, read_back};
use crate::ops::{
    Dropout, Head, HostMatrix, MixedPrecision, Rotation, Segments, TokenLogProbs, TokenScore,
    concatenate, embed, indices_on, is_cpu, rms_norm, rms_norm_backward, tensor_on,
};
use block::{Block, Kept, Rows, Tape};
use burn::tensor::{Device, Tensor};
use std::ops::Range;

/// A causal language model with frozen weights.
pub struct CausalLm {
    config: ModelConfig,
    device: Device,
    embedding: HostMatrix,
    blocks: Vec<Block>,
    norm: Tensor<1>,
    head: Head,
    mixed: MixedPrecision,
    /// Inverse frequencies of each kind of rotation.
    frequencies: Vec<Vec<f32>>,
}

/// Loss and gradients of one packed batch, still on the device.
pub struct Gradients {
    /// Summed cross-entropy over the loss tokens, one element.
    pub loss_sum: Tensor<1>,
    /// Gradient of `weight · loss_sum`, in the layout of the adapter.
    pub flat: Tensor<1>,
}

/// How a training step trades memory for work.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepMode {
    /// Keep only each block's input and run the block again in the backward pass.
    pub recompute: bool,
    /// Factor on the objective: 1 over the loss tokens, or the pairs, of the whole step.
    pub weight: f32,
    /// Dropout on the adapters' inputs.
    pub dropout: Option<Dropout>,
    /// The part of the memory that is set aside for attention and logits: less than 1 where several
    /// batches are trained side by side.
    pub share: f32,
}

/// Memory that a step with recomputation spends on not computing attention again. It bounds the
/// whole model, so memory still grows with block inputs only.
const KEPT_ATTENTION_BYTES: usize = 48 << 20;

/// What the forward pass left of one block.
enum Saved {
    All(Box<Tape>),
    Attention(Box<Kept>),
    Nothing,
}

impl CausalLm {
    /// What the model is.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Where the model computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Whether products with the frozen base take half-precision operands: off until it is turned on,
    /// which only a device with matrix units for it gains from.
    pub fn mixed_precision(&self) -> &MixedPrecision {
        &self.mixed
    }

    /// Hidden states after the last block, before the final norm: `[tokens, hidden]`.
    fn hidden(&self, batch: &Batch, lora: Option<&Lora>) -> Tensor<2> {
        self.in_pool(|| {
            let rows = self.rows(batch);
            let mut x = self.embed(&batch.ids);
            for (layer, block) in self.blocks.iter().enumerate() {
                let lora = lora.map(|lora| lora.block(layer, None));
                x = block.forward(&x, &rows, lora.as_ref()).0;
            }
            x
        })
    }

    /// Does a pass over the blocks where its operations can share it out: on the CPU inside rayon's
    /// pool, which each operation would enter on its own otherwise.
    fn in_pool<R: Send>(&self, pass: impl FnOnce() -> R + Send) -> R {
        match is_cpu(&self.device) {
            true => rayon::scope(|_| pass()),
            false => pass(),
        }
    }

    /// The log-probability of each labelled token of the batch, and what the model would
    /// have chosen.
    pub fn score(&self, batch: &Batch, lora: Option<&Lora>) -> Vec<TokenScore> {
        if batch.targets.is_empty() {
            return Vec::new();
        }
        let hidden = self.pick(&self.hidden(batch, lora), &batch.predicting);
        self.head.score(
            &rms_norm(&hidden, &self.norm, self.config.rms_eps).y,
            &batch.targets,
        )
    }

    /// Logits `[picked, vocabulary]` at some places of the batch.
    pub fn logits(&self, batch: &Batch, places: &[usize], lora: Option<&Lora>) -> Tensor<2> {
        let hidden = self.pick(&self.hidden(batch, lora), places);
        self.head
            .logits(&rms_norm(&hidden, &self.norm, self.config.rms_eps).y)
    }

    /// The summed log-probability of each row's labels; 0 of a row without one.
    pub fn row_log_probs(&self, batch: &Batch, lora: Option<&Lora>) -> Vec<f32> {
        if batch.targets.is_empty() {
            return vec![0.0; batch.segments.len()];
        }
        let hidden = self.pick(&self.hidden(batch, lora), &batch.predicting);
        let normed = rms_norm(&hidden, &self.norm, self.config.rms_eps);
        sum_rows(
            batch,
            &read_back(self.head.log_probs(&normed.y, &batch.targets)),
        )
    }

    /// Loss and adapter gradients of a batch with at least one loss token.
    ///
    /// The backward pass goes block by block with the formulas of [`crate::ops`]; no tape
    /// of single operations and no weight-shaped gradient ever exists.
    pub fn gradients(&self, batch: &Batch, lora: &Lora, mode: &StepMode) -> Gradients {
        let (loss_sum, flat) = self.differentiate(batch, lora, mode, |normed| {
            self.head
                .cross_entropy(normed, &batch.targets, mode.weight, mode.share)
        });
        Gradients { loss_sum, flat }
    }

    /// Adapter gradients of an objective that depends on the batch through the summed
    /// log-probability of each row's labels. Takes at least one label.
    ///
    /// `slopes` is told these sums and returns the objective's derivative by each of them. It
    /// is called between the forward and the backward pass, so the model runs once.
    pub fn row_gradients(
        &self,
        batch: &Batch,
        lora: &Lora,
        mode: &StepMode,
        slopes: impl FnOnce(&[f32]) -> Vec<f32>,
    ) -> Tensor<1> {
        let ((), flat) = self.differentiate(batch, lora, mode, |normed| {
            let (losses, dnormed) = self
                .head
                .token_losses(normed, &batch.targets, 1.0, mode.share);
            let log_probs = sum_rows(batch, &read_back(losses.neg()));
            let slopes = slopes(&log_probs);
            let of_row = batch.row_labels().into_iter().zip(slopes);
            // A loss is a negative log-probability.
            let of_token = of_row.flat_map(|(labels, slope)| labels.map(move |_| -slope));
            let factors = of_token.map(|slope| slope * mode.weight).collect();
            let factors = tensor_on(factors, [batch.targets.len(), 1], &self.device);
            ((), dnormed * factors)
        });
        flat
    }

    /// Forward, then the head, then backward: `head` is told the normalised hidden states of
    /// the tokens that carry a loss, and returns the gradient by them.
    fn differentiate<R>(
        &self,
        batch: &Batch,
        lora: &Lora,
        mode: &StepMode,
        head: impl FnOnce(&Tensor<2>) -> (R, Tensor<2>),
    ) -> (R, Tensor<1>) {
        let rows = self.rows(batch);
        let mut inputs = vec![self.embed(&batch.ids)];
        let mut saved = Vec::with_capacity(self.blocks.len());
        let keeps_attention = self.first_kept(batch.tokens(), mode.share);
        for (layer, block) in self.blocks.iter().enumerate() {
            let adapters = lora.block(layer, mode.dropout);
            let (y, tape) = block.forward(&inputs[layer], &rows, Some(&adapters));
            saved.push(match (mode.recompute, layer >= keeps_attention) {
                (false, _) => Saved::All(Box::new(tape.lean())),
                (true, true) => Saved::Attention(Box::new(tape.into_kept())),
                (true, false) => Saved::Nothing,
            });
            inputs.push(y);
        }
        // There is one input more than there are blocks: the last block's output.
        let last = inputs.pop().unwrap_or_else(|| self.embed(&batch.ids));
        let (result, mut dy) = self.head_gradient(&last, batch, head);
        drop(last);
        let mut grads: Vec<BlockGrads> = Vec::with_capacity(self.blocks.len());
        let layers = self.blocks.iter().enumerate().zip(inputs).zip(saved);
        for (((layer, block), x), saved) in layers.rev() {
            let adapters = lora.block(layer, mode.dropout);
            let tape = match saved {
                Saved::All(tape) => *tape,
                Saved::Attention(kept) => block.forward_again(&x, &rows, &adapters, Some(*kept)),
                Saved::Nothing => block.forward_again(&x, &rows, &adapters, None),
            };
            let (dx, block_grads) = block.backward(dy, &x, tape, &rows, &adapters, layer > 0);
            grads.push(block_grads);
            dy = dx.unwrap_or(x);
        }
        let flat = grads
            .into_iter()
            .rev()
            .flat_map(BlockGrads::flatten)
            .collect();
        (result, concatenate(flat))
    }

    /// The first layer whose attention is kept where blocks are computed again: as many of the last
    /// layers as fit into [`KEPT_ATTENTION_BYTES`].
    fn first_kept(&self, tokens: usize, share: f32) -> usize {
        let values = self.config.query_dim() * 2 + self.config.kv_dim() * 2;
        let layers = (KEPT_ATTENTION_BYTES as f32 * share) as usize
            / (tokens * values * size_of::<f32>()).max(1);
        self.blocks.len().saturating_sub(layers)
    }

    /// Logits `[places, vocabulary]` after some of the new tokens of texts whose earlier tokens are in
    /// the cache; the new ones join them. A run that continues another one of the same pass comes
    /// after it.
    pub fn decode(
        &self,
        new: &[(RunId, &[u32])],
        cache: &mut KvCache,
        lora: Option<&Lora>,
        places: &[usize],
    ) -> Tensor<2> {
        let hidden = self.pick(&self.extend(new, cache, lora), places);
        self.head
            .logits(&rms_norm(&hidden, &self.norm, self.config.rms_eps).y)
    }

    /// What the model says of each target after the new token at its place, with the `top` most
    /// probable tokens, as [`decode`](Self::decode) reads them. Without targets they are only read.
    pub fn score_cached(
        &self,
        new: &[(RunId, &[u32])],
        cache: &mut KvCache,
        lora: Option<&Lora>,
        places: &[usize],
        targets: &[u32],
        top: usize,
    ) -> Vec<TokenLogProbs> {
        let hidden = self.extend(new, cache, lora);
        if targets.is_empty() {
            return Vec::new();
        }
        let hidden = self.pick(&hidden, places);
        let normed = rms_norm(&hidden, &self.norm, self.config.rms_eps);
        self.head.token_log_probs(&normed.y, targets, top)
    }

    /// Hidden states `[new, hidden]` of new tokens after the last block.
    fn extend(
        &self,
        new: &[(RunId, &[u32])],
        cache: &mut KvCache,
        lora: Option<&Lora>,
    ) -> Tensor<2> {
        let on_cpu = is_cpu(&self.device);
        let (continuations, positions) = cache.grow(new, self.blocks.len(), on_cpu);
        let ids: Vec<u32> = new.iter().flat_map(|(_, ids)| *ids).copied().collect();
        self.in_pool(|| {
            let rotations = self.rotations(&positions);
            let mut x = self.embed(&ids);
            for (layer, (block, runs)) in self.blocks.iter().zip(cache.layers()).enumerate() {
                let lora = lora.map(|lora| lora.block(layer, None));
                x = block.forward_cached(&x, &rotations, runs, &continuations, lora.as_ref());
            }
            x
        })
    }

    /// What the head says, and the gradient of the last block's output: zero but where a
    /// token carries a loss.
    fn head_gradient<R>(
        &self,
        last: &Tensor<2>,
        batch: &Batch,
        head: impl FnOnce(&Tensor<2>) -> (R, Tensor<2>),
    ) -> (R, Tensor<2>) {
        let picked = self.pick(last, &batch.predicting);
        let normed = rms_norm(&picked, &self.norm, self.config.rms_eps);
        let (result, dnormed) = head(&normed.y);
        let dpicked = rms_norm_backward(&dnormed, &picked, &self.norm, &normed.inv);
        (
            result,
            self.spread(dpicked, &batch.predicting, batch.tokens()),
        )
    }

    fn embed(&self, ids: &[u32]) -> Tensor<2> {
        let x = embed(&self.embedding, ids, &self.device);
        let scale = self.config.embedding_scale;
        if scale == 1.0 { x } else { x.mul_scalar(scale) }
    }

    fn rows(&self, batch: &Batch) -> Rows {
        Rows {
            segments: Segments::new(batch.segments.clone(), &self.device),
            rotations: self.rotations(&batch.positions()),
        }
    }

    fn rotations(&self, positions: &[u32]) -> Vec<Rotation> {
        self.frequencies
            .iter()
            .map(|f| Rotation::new(positions, f, &self.device))
            .collect()
    }

    /// Rows of `x` at some places.
    fn pick(&self, x: &Tensor<2>, places: &[usize]) -> Tensor<2> {
        let index = indices_on(places.iter().map(|&p| p as i32).collect(), &self.device);
        x.clone().select(0, index)
    }

    /// The inverse of [`Self::pick`]: `[tokens, features]`, zero elsewhere.
    fn spread(&self, picked: Tensor<2>, places: &[usize], tokens: usize) -> Tensor<2> {
        if places.len() == tokens {
            return picked;
        }
        let features = picked.dims()[1];
        if is_cpu(&self.device) {
            let picked = crate::ops::Host::of(picked);
            let mut out = vec![0.0; tokens * features];
            for (&place, row) in places.iter().zip(picked.values().chunks_exact(features)) {
                out[place * features..][..features].copy_from_slice(row);
            }
            return crate::ops::host_tensor(out, [tokens, features]);
        }
        // Gathering with a row of zeros put in front needs no scatter kernel.
        let mut index = vec![0i32; tokens];
        for (i, &place) in places.iter().enumerate() {
            index[place] = i as i32 + 1;
        }
        let zero = Tensor::zeros([1, features], &self.device);
        Tensor::cat(vec![zero, picked], 0).select(0, indices_on(index, &self.device))
    }
}

/// The sum over each row's labels.
fn sum_rows(batch: &Batch, of_labels: &[f32]) -> Vec<f32> {
    let sum = |labels: Range<usize>| {
        let values = of_labels[labels].iter().copied();
        values.map(f64::from).sum::<f64>() as f32
    };
    batch.row_labels().into_iter().map(sum).collect()
}
