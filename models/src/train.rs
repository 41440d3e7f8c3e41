//! Local training of an adapter: one optimizer step over a list of rows, or of pairs of rows.

mod correction;
mod lanes;
mod loss_scale;

pub use correction::{Correction, VariateError};

use crate::arch::{CausalLm, Gradients, StepMode};
use crate::batch::Batch;
use crate::lora::{Lora, read_back};
use crate::measure::kept_bytes;
use crate::objective::{
    PairError, PairReference, PairTally, PreferenceSettings, PreferenceStats, check_pairs,
};
use crate::ops::{AdamW, AdamWStep, Dropout, combine, is_cpu, tensor_on};
use burn::tensor::Tensor;
use correction::Rule;
use fedllm_shared::LocalOptimizer;
use lanes::lanes;
pub(crate) use lanes::{Lane, side_by_side};
use loss_scale::LossScale;

/// How a trainer spends memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Memory {
    /// Tokens that go through the model at once; a step with more is accumulated.
    pub micro_batch_tokens: usize,
    /// Keep only block inputs and run each block again in the backward pass.
    pub recompute: bool,
    /// Do so too where keeping all of a micro-batch would take more than these bytes.
    pub free_bytes: Option<u64>,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            micro_batch_tokens: 2048,
            recompute: false,
            free_bytes: None,
        }
    }
}

/// The constants of one optimizer step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepSettings {
    /// What makes a step out of a gradient g: AdamW, or SGD with `w ← w - lr·(g + λ·w)`.
    pub optimizer: LocalOptimizer,
    /// Learning rate.
    pub lr: f32,
    /// AdamW's decay of the first moment.
    pub beta1: f32,
    /// AdamW's decay of the second moment.
    pub beta2: f32,
    /// What AdamW adds to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay: λ.
    pub weight_decay: f32,
    /// Global-norm clipping as `torch.nn.utils.clip_grad_norm_`; 0 clips nothing.
    pub max_grad_norm: f32,
    /// Dropout rate on the adapters' inputs.
    pub dropout: f32,
    /// Names the dropout masks of this step.
    pub seed: u64,
}

/// What one step did. Losses and norm are those before the step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepStats {
    /// Mean cross-entropy over the step's loss tokens, or mean loss over its pairs.
    pub loss: f32,
    /// The loss with the proximal term, if there is one: what is minimized.
    pub objective: f32,
    /// Norm of the objective's gradient before clipping, without control variates.
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
    /// The rows of a preference step are not pairs.
    #[error(transparent)]
    Pairs(#[from] PairError),
    /// The loss or the gradient is not a finite number.
    #[error("the step gave a loss of {loss} and a gradient norm of {grad_norm}; it was not taken")]
    NotFinite {
        /// Mean loss.
        loss: f32,
        /// Norm of the gradient.
        grad_norm: f32,
    },
}

/// What a fit leaves.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The adapter.
    pub lora: Lora,
    /// AdamW's moments, if it took a step.
    pub optimizer: Option<AdamW>,
    /// With control variates, the client's next one over [`Lora::trained`]; `None` if no step
    /// says what it is.
    pub variate: Option<Vec<f32>>,
}

/// Trains one adapter of a model.
pub struct Trainer<'a> {
    model: &'a CausalLm,
    lora: Lora,
    optimizer: Option<AdamW>,
    rule: Rule,
    memory: Memory,
    loss_scale: LossScale,
}

impl<'a> Trainer<'a> {
    /// Begins with fresh optimizer state and without a correction.
    pub fn new(model: &'a CausalLm, lora: Lora, memory: Memory) -> Self {
        Self {
            model,
            lora,
            optimizer: None,
            rule: Rule::Plain,
            memory,
            loss_scale: LossScale::default(),
        }
    }

    /// Goes on with AdamW's moments; those of another number of parameters are dropped.
    #[must_use]
    pub fn with_optimizer(mut self, optimizer: AdamW) -> Self {
        let fits = optimizer.params() == self.lora.values().dims()[0];
        self.optimizer = fits.then_some(optimizer);
        self
    }

    /// Corrects the steps from here on; the adapter as it stands is the anchor.
    ///
    /// # Errors
    ///
    /// [`VariateError`] if a control variate is not one of this adapter.
    pub fn with_correction(mut self, correction: Correction<'_>) -> Result<Self, VariateError> {
        self.rule = Rule::new(correction, &self.lora)?;
        Ok(self)
    }

    /// The model whose adapter is trained.
    pub fn model(&self) -> &'a CausalLm {
        self.model
    }

    /// The adapter as it stands.
    pub fn lora(&self) -> &Lora {
        &self.lora
    }

    /// Gives up the adapter, the optimizer's state and the control variate.
    pub fn into_outcome(self) -> Outcome {
        Outcome {
            variate: self.rule.variate(&self.lora),
            lora: self.lora,
            optimizer: self.optimizer,
        }
    }

    /// One step over `rows`: the mean loss of all their loss tokens, its gradient, clipping, the
    /// optimizer, with the fit's correction. The device is read once.
    ///
    /// # Errors
    ///
    /// [`StepError`]; the adapter and the optimizer are then unchanged.
    pub fn step(&mut self, rows: &Batch, settings: &StepSettings) -> Result<StepStats, StepError> {
        self.until_finite(|trainer| {
            let gradients = trainer.gradients(rows, settings)?;
            trainer.advance(gradients, rows.loss_tokens(), rows, settings)
        })
    }

    /// One step over pairs of rows, `2k` chosen and `2k + 1` rejected: as [`Self::step`], but
    /// with the mean of the pairs' preference losses. The device is also read once in each
    /// micro-batch, for the log-probabilities, and once more for the reference's unless they
    /// are known.
    ///
    /// # Errors
    ///
    /// [`StepError`]; the adapter and the optimizer are then unchanged.
    pub fn preference_step(
        &mut self,
        pairs: &Batch,
        reference: PairReference<'_>,
        settings: &StepSettings,
        preference: &PreferenceSettings,
    ) -> Result<(StepStats, PreferenceStats), StepError> {
        self.until_finite(|trainer| {
            let (gradients, stats) =
                trainer.preference_gradients(pairs, reference, settings, preference)?;
            let step = trainer.advance(gradients, pairs.segments.len() / 2, pairs, settings)?;
            Ok((step, stats))
        })
    }

    /// Does a step; in half precision, again with a smaller loss scale where that was too large, and
    /// in single precision where the model's own values are.
    fn until_finite<R>(
        &mut self,
        mut step: impl FnMut(&mut Self) -> Result<R, StepError>,
    ) -> Result<R, StepError> {
        let mixed = self.model.mixed_precision();
        loop {
            match step(self) {
                Err(StepError::NotFinite { loss, .. }) if mixed.is_on() => {
                    if !loss.is_finite() || !self.loss_scale.back_off() {
                        tracing::warn!(
                            "half precision cannot hold this model's values; single can"
                        );
                        mixed.set(false);
                    }
                }
                done => {
                    if mixed.is_on() && done.is_ok() {
                        self.loss_scale.went_well();
                    }
                    return done;
                }
            }
        }
    }

    /// What gradients are multiplied with on their way through the model.
    fn scale(&self) -> f32 {
        match self.model.mixed_precision().is_on() {
            true => self.loss_scale.factor(),
            false => 1.0,
        }
    }

    /// A gradient as it is without that.
    fn unscaled(&self, flat: Tensor<1>) -> Tensor<1> {
        match self.scale() {
            1.0 => flat,
            scale => flat.mul_scalar(1.0 / scale),
        }
    }

    /// Summed loss and the gradient of the mean loss over all rows.
    ///
    /// # Errors
    ///
    /// [`StepError::NoLossTokens`].
    pub fn gradients(&self, rows: &Batch, settings: &StepSettings) -> Result<Gradients, StepError> {
        if rows.targets.is_empty() {
            return Err(StepError::NoLossTokens);
        }
        let weight = 1.0 / rows.loss_tokens() as f32;
        let parts = self.in_lanes(rows, 1, |lane| {
            let mode = self.mode(settings, lane, weight);
            (!lane.batch.targets.is_empty())
                .then(|| self.model.gradients(&lane.batch, &self.lora, &mode))
        });
        let sum = parts.into_iter().flatten().reduce(|sum, part| Gradients {
            loss_sum: sum.loss_sum + part.loss_sum,
            flat: sum.flat + part.flat,
        });
        let sum = sum.ok_or(StepError::NoLossTokens)?;
        Ok(Gradients {
            flat: self.unscaled(sum.flat),
            ..sum
        })
    }

    /// Summed loss and the gradient of the mean loss over all pairs, and what the pairs said.
    ///
    /// # Errors
    ///
    /// [`StepError::Pairs`], or [`StepError::NoLossTokens`] if there is no pair.
    pub fn preference_gradients(
        &self,
        pairs: &Batch,
        reference: PairReference<'_>,
        settings: &StepSettings,
        preference: &PreferenceSettings,
    ) -> Result<(Gradients, PreferenceStats), StepError> {
        check_pairs(pairs, &reference)?;
        let weight = 2.0 / pairs.segments.len() as f32;
        let parts = self.in_lanes(pairs, 2, |lane| {
            let mut tally = PairTally::new(*preference, reference, lane.first_row);
            let reference = tally.reference(self.model, &lane.batch);
            let mode = self.mode(settings, lane, weight);
            let slopes = |policy: &[f32]| tally.add(&lane.batch, policy, &reference);
            let flat = self
                .model
                .row_gradients(&lane.batch, &self.lora, &mode, slopes);
            (tally, flat)
        });
        let sum = parts.into_iter().reduce(|(mut tally, flat), part| {
            tally.merge(&part.0);
            (tally, flat + part.1)
        });
        let (tally, flat) = sum.ok_or(StepError::NoLossTokens)?;
        let (loss, stats) = tally.finish();
        let loss_sum = tensor_on(vec![loss], [1], self.model.device());
        let flat = self.unscaled(flat);
        Ok((Gradients { loss_sum, flat }, stats))
    }

    /// Does `work` for all rows, one micro-batch after the other, side by side within each.
    fn in_lanes<R: Send>(
        &self,
        rows: &Batch,
        group: usize,
        work: impl Fn(&Lane) -> R + Sync,
    ) -> Vec<R> {
        let in_pool = is_cpu(self.model.device());
        let micro_batches = self.lanes(rows, group).into_iter();
        micro_batches
            .flat_map(|lanes| side_by_side(lanes, in_pool, |lane| work(&lane)))
            .collect()
    }

    /// The lanes of each micro-batch; more than one only where this model's device is the CPU.
    pub(crate) fn lanes(&self, rows: &Batch, group: usize) -> Vec<Vec<Lane>> {
        let threads = match is_cpu(self.model.device()) {
            true => rayon::current_num_threads(),
            false => 1,
        };
        lanes(rows, self.memory.micro_batch_tokens, group, threads)
    }

    /// How a lane of a step runs.
    pub(crate) fn mode(&self, settings: &StepSettings, lane: &Lane, weight: f32) -> StepMode {
        StepMode {
            recompute: self.memory.recompute || self.is_short_of_memory(lane),
            weight: weight * self.scale(),
            dropout: (settings.dropout > 0.0).then_some(Dropout {
                rate: settings.dropout,
                seed: settings.seed,
                first_row: lane.first_token,
            }),
            share: lane.share,
        }
    }

    /// Whether what the backward pass needs of a lane is more than the lane's part of free memory.
    fn is_short_of_memory(&self, lane: &Lane) -> bool {
        let kept = kept_bytes(self.model.config(), lane.batch.tokens());
        let free = self.memory.free_bytes;
        free.is_some_and(|free| kept as f64 > free as f64 * f64::from(lane.share))
    }

    /// Moves the adapter against a gradient, unless that or the loss, a mean of `parts`, is not
    /// finite.
    pub(crate) fn advance(
        &mut self,
        gradients: Gradients,
        parts: usize,
        rows: &Batch,
        settings: &StepSettings,
    ) -> Result<StepStats, StepError> {
        let (flat, squares) = self.rule.pull(gradients.flat, self.lora.values());
        let read = read_back(Tensor::cat(vec![gradients.loss_sum, squares], 0));
        let (loss, grad_norm) = (read[0] / parts as f32, read[1].sqrt());
        let objective = loss + self.rule.penalty(read.get(2).copied().unwrap_or(0.0));
        if !objective.is_finite() || !grad_norm.is_finite() {
            return Err(StepError::NotFinite { loss, grad_norm });
        }
        let limit = settings.max_grad_norm;
        let scale = if limit > 0.0 {
            (limit / (grad_norm + 1e-6)).min(1.0)
        } else {
            1.0
        };
        let (flat, scale) = self.rule.shift(flat, scale);
        let values = self.lora.take_values();
        let values = self.optimize(values, flat, scale, settings);
        self.lora.set_values(self.rule.follow(values, settings.lr));
        Ok(StepStats {
            loss,
            objective,
            grad_norm,
            tokens: rows.tokens() as u64,
            loss_tokens: rows.loss_tokens() as u64,
        })
    }

    /// The optimizer's step against `scale · flat`.
    fn optimize(
        &mut self,
        values: Tensor<1>,
        flat: Tensor<1>,
        scale: f32,
        settings: &StepSettings,
    ) -> Tensor<1> {
        let (lr, weight_decay) = (settings.lr, settings.weight_decay);
        match settings.optimizer {
            LocalOptimizer::Sgd => combine(values, 1.0 - lr * weight_decay, &flat, -lr * scale),
            LocalOptimizer::AdamW => {
                let step = AdamWStep {
                    lr,
                    beta1: settings.beta1,
                    beta2: settings.beta2,
                    eps: settings.eps,
                    weight_decay,
                    grad_scale: scale,
                };
                let optimizer = self.optimizer.get_or_insert_with(|| AdamW::new(&values));
                optimizer.step(values, flat, &step)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{BasePrecision, shape};
    use burn::tensor::Device;

    #[test]
    fn blocks_are_computed_again_where_memory_is_short() {
        let mut config = shape("smollm2-135m").unwrap();
        (config.layers, config.vocab) = (1, 64);
        let kept = kept_bytes(&config, 24);
        let model = CausalLm::random(&config, BasePrecision::F32, &Device::flex()).unwrap();
        let mut rows = Batch::default();
        rows.push(&[3; 12], |_| true);
        rows.push(&[4; 12], |_| true);
        let recomputes = |free_bytes| {
            let memory = Memory {
                free_bytes,
                ..Memory::default()
            };
            let lora = crate::measure::new_adapter(&model, 2).unwrap();
            let trainer = Trainer::new(&model, lora, memory);
            let lanes = trainer.lanes(&rows, 1).into_iter().flatten();
            let modes = lanes.map(|lane| trainer.mode(&crate::measure::SETTINGS, &lane, 1.0));
            modes.map(|mode| mode.recompute).collect::<Vec<_>>()
        };
        // However many threads share the rows, together they keep as much.
        assert!(recomputes(None).iter().all(|recompute| !recompute));
        assert!(
            recomputes(Some(kept + 64))
                .iter()
                .all(|recompute| !recompute)
        );
        assert!(
            recomputes(Some(kept - 64))
                .iter()
                .all(|recompute| *recompute)
        );
    }
}
