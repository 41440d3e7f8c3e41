//! Supervised fine-tuning of an adapter: one optimizer step over a list of rows.

use crate::arch::{CausalLm, StepMode};
use crate::batch::Batch;
use crate::lora::{Lora, read_back};
use crate::ops::{AdamW, AdamWStep, Dropout};
use burn::tensor::Tensor;

/// How a trainer spends memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Memory {
    /// Tokens that go through the model at once; a step with more is accumulated.
    pub micro_batch_tokens: usize,
    /// Keep only block inputs and run each block again in the backward pass.
    pub recompute: bool,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            micro_batch_tokens: 2048,
            recompute: false,
        }
    }
}

/// The constants of one optimizer step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepSettings {
    /// Learning rate.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// Global-norm clipping as `torch.nn.utils.clip_grad_norm_`; 0 clips nothing.
    pub max_grad_norm: f32,
    /// Dropout rate on the adapters' inputs.
    pub dropout: f32,
    /// Names the dropout masks of this step.
    pub seed: u64,
}

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepStats {
    /// Mean cross-entropy over the step's loss tokens, before the step.
    pub loss: f32,
    /// Norm of the gradient before clipping.
    pub grad_norm: f32,
    /// Tokens that went through the model.
    pub tokens: u64,
    /// Tokens that carried a loss.
    pub loss_tokens: u64,
}

/// A step that was refused; the adapter is as it was before.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum StepError {
    /// No token of any row carries a loss.
    #[error("none of the step's tokens carries a loss")]
    NoLossTokens,
    /// The loss or the gradient is not a finite number.
    #[error("the step gave a loss of {loss} and a gradient norm of {grad_norm}; it was not taken")]
    NotFinite {
        /// Mean loss.
        loss: f32,
        /// Norm of the gradient.
        grad_norm: f32,
    },
}

/// Trains one adapter of a model.
pub struct Trainer<'a> {
    model: &'a CausalLm,
    lora: Lora,
    optimizer: AdamW,
    memory: Memory,
}

impl<'a> Trainer<'a> {
    /// Begins with fresh optimizer state.
    pub fn new(model: &'a CausalLm, lora: Lora, memory: Memory) -> Self {
        let optimizer = AdamW::new(lora.values());
        Self {
            model,
            lora,
            optimizer,
            memory,
        }
    }

    /// As [`Self::new`], going on with an optimizer's state.
    pub fn with_optimizer(
        model: &'a CausalLm,
        lora: Lora,
        optimizer: AdamW,
        memory: Memory,
    ) -> Self {
        Self {
            model,
            lora,
            optimizer,
            memory,
        }
    }

    /// The adapter as it stands.
    pub fn lora(&self) -> &Lora {
        &self.lora
    }

    /// Gives up the adapter and the optimizer's state.
    pub fn into_parts(self) -> (Lora, AdamW) {
        (self.lora, self.optimizer)
    }

    /// One step over `rows`: the mean loss of all their loss tokens, its gradient,
    /// clipping, AdamW. The device is read once, for loss and norm.
    ///
    /// # Errors
    ///
    /// [`StepError`]; the adapter and the optimizer are then unchanged.
    pub fn step(&mut self, rows: &Batch, settings: &StepSettings) -> Result<StepStats, StepError> {
        let (loss, flat) = self.gradients(rows, settings)?;
        let norm_squared = (flat.clone() * flat.clone()).sum();
        let read = read_back(Tensor::cat(vec![loss, norm_squared], 0));
        let (loss, grad_norm) = (read[0] / rows.loss_tokens() as f32, read[1].sqrt());
        if !loss.is_finite() || !grad_norm.is_finite() {
            return Err(StepError::NotFinite { loss, grad_norm });
        }
        let limit = settings.max_grad_norm;
        let grad_scale = if limit > 0.0 {
            (limit / (grad_norm + 1e-6)).min(1.0)
        } else {
            1.0
        };
        let step = AdamWStep {
            lr: settings.lr,
            beta1: settings.beta1,
            beta2: settings.beta2,
            eps: settings.eps,
            weight_decay: settings.weight_decay,
            grad_scale,
        };
        let values = self.lora.take_values();
        self.lora
            .set_values(self.optimizer.step(values, flat, &step));
        let (tokens, loss_tokens) = (rows.tokens() as u64, rows.loss_tokens() as u64);
        Ok(StepStats {
            loss,
            grad_norm,
            tokens,
            loss_tokens,
        })
    }

    /// Summed loss and the gradient of the mean loss over all rows.
    ///
    /// # Errors
    ///
    /// [`StepError::NoLossTokens`].
    pub fn gradients(
        &self,
        rows: &Batch,
        settings: &StepSettings,
    ) -> Result<(Tensor<1>, Tensor<1>), StepError> {
        if rows.targets.is_empty() {
            return Err(StepError::NoLossTokens);
        }
        let weight = 1.0 / rows.loss_tokens() as f32;
        let mut sum: Option<(Tensor<1>, Tensor<1>)> = None;
        for (index, micro) in rows
            .split(self.memory.micro_batch_tokens)
            .iter()
            .enumerate()
        {
            if micro.targets.is_empty() {
                continue;
            }
            let seed = settings.seed ^ (index as u64).wrapping_mul(0xA076_1D64_78BD_642F);
            let dropout = (settings.dropout > 0.0).then_some(Dropout {
                rate: settings.dropout,
                seed,
            });
            let mode = StepMode {
                recompute: self.memory.recompute,
                weight,
                dropout,
            };
            let part = self.model.gradients(micro, &self.lora, &mode);
            sum = Some(match sum {
                None => (part.loss_sum, part.flat),
                Some((loss, flat)) => (loss + part.loss_sum, flat + part.flat),
            });
        }
        sum.ok_or(StepError::NoLossTokens)
    }
}
