//! Training a LoRA adapter on the base model that is loaded here.

use std::sync::Arc;
use std::time::Instant;

use fedllm_models::device;
use fedllm_models::lora::{self, Lora, LoraError};
use fedllm_models::objective::{PairReference, PreferenceSettings};
use fedllm_models::ops::AdamW;
use fedllm_models::train::{
    Correction, Memory, Outcome, StepError, StepSettings, StepStats, Trainer as ModelTrainer,
};
use fedllm_models::{Batch, CausalLm};
use fedllm_shared::{
    Adapter, Delta, Digest, HeldOutScore, Layout, LocalRule, LocalSpec, LoraSpec, ObjectiveSpec,
    PreferenceMetrics, RunId, UpdateMetrics,
};

use super::{FitRequest, LocalUpdate, ScoreRequest, StepReport, TrainError, Trainer, VariateStep};
use crate::governor::StopFlag;
use crate::held_out::{Rewards, ScoreError, score_units};
use crate::shard::{Batcher, Shard};

/// Trains on a shard as a task says.
pub struct LoraTrainer {
    model: Arc<CausalLm>,
    base: Digest,
    device: String,
    memory: Memory,
    /// The moments of a run whose task asks to keep them.
    kept: Option<(RunId, AdamW)>,
}

impl LoraTrainer {
    /// A trainer on a loaded model: `base` is its checkpoint's fingerprint, `device` the name of
    /// where it computes, for people.
    pub fn new(
        model: Arc<CausalLm>,
        base: Digest,
        device: impl Into<String>,
        memory: Memory,
    ) -> Self {
        Self {
            model,
            base,
            device: device.into(),
            memory,
            kept: None,
        }
    }
}

impl Trainer for LoraTrainer {
    fn fit(&mut self, request: FitRequest<'_>) -> Result<LocalUpdate, TrainError> {
        let task = request.task;
        let optimizer = self.kept.take().filter(|(run, _)| *run == task.run);
        let schedule = Schedule {
            local: &task.local,
            dropout: task.lora.dropout,
            seed: task.seed,
        };
        let mut fit = Fit::new(
            &self.model,
            &self.device,
            &task.lora,
            request.global,
            optimizer.map(|(_, optimizer)| optimizer),
            self.memory,
        )?
        .correct(correction(&request)?)?;
        if let ObjectiveSpec::Dpo(spec) = &task.objective {
            let settings = PreferenceSettings {
                beta: spec.beta,
                label_smoothing: spec.label_smoothing,
                loss: spec.loss,
            };
            fit = fit.prefer(settings, &task.lora, request.reference)?;
        }
        let trained = fit.run(&schedule, request.shard, request.stop, request.on_step)?;
        let outcome = fit.finish()?;
        if task.local.keep_optimizer {
            self.kept = outcome
                .optimizer
                .clone()
                .map(|optimizer| (task.run, optimizer));
        }
        update(&request, outcome, trained)
    }

    fn score(&mut self, request: ScoreRequest<'_>) -> Result<HeldOutScore, TrainError> {
        let (task, model) = (request.task, &*self.model);
        let on_device = |adapter: &Adapter| {
            let lora = Lora::new(model.config(), &task.lora, adapter, model.device());
            lora.map_err(|error| TrainError::Incompatible {
                reason: error.to_string(),
            })
        };
        let lora = on_device(request.global)?;
        let reference = request.reference.map(on_device).transpose()?;
        let rewards = Rewards {
            beta: match &task.objective {
                ObjectiveSpec::Dpo(spec) => spec.beta,
                ObjectiveSpec::Sft => 0.0,
            },
            reference: reference.as_ref(),
        };
        let scores = score_units(model, Some(&lora), rewards, request.shard, request.stop);
        let scores = scores.map_err(|error| match error {
            ScoreError::Stopped => TrainError::Stopped {
                step: 0,
                steps: task.local.steps,
            },
            ScoreError::Device(reason) => TrainError::Device {
                device: self.device.clone(),
                reason,
            },
        })?;
        Ok(scores.mean())
    }

    fn base(&self) -> Digest {
        self.base
    }

    fn device(&self) -> String {
        self.device.clone()
    }

    fn layout(&self, lora: &LoraSpec) -> Result<Arc<Layout>, TrainError> {
        let layout = lora::layout(self.model.config(), lora).map_err(incompatible)?;
        Ok(Arc::new(layout))
    }
}

/// What corrects the task's gradients.
fn correction<'a>(request: &FitRequest<'a>) -> Result<Correction<'a>, TrainError> {
    match (&request.task.rule, request.variates) {
        (LocalRule::Plain, _) => Ok(Correction::Plain),
        (LocalRule::Proximal { mu }, _) => Ok(Correction::Proximal { mu: *mu }),
        (LocalRule::ControlVariate { form, .. }, Some(variates)) => {
            Ok(Correction::ControlVariate {
                server: variates.server.values(),
                client: variates.own.values(),
                form: *form,
            })
        }
        (LocalRule::ControlVariate { .. }, None) => Err(TrainError::Incompatible {
            reason: "the task needs control variates and none are here".to_owned(),
        }),
    }
}

/// What a fit came to, as a difference.
fn update(
    request: &FitRequest<'_>,
    outcome: Outcome,
    trained: Trained,
) -> Result<LocalUpdate, TrainError> {
    let layout = outcome.lora.trained().clone();
    let not_finite = |_| TrainError::NotFinite {
        what: "update",
        step: request.task.local.steps,
    };
    let select = |adapter: &Adapter| adapter.select(&layout).map_err(not_finite);
    let local = select(&outcome.lora.to_adapter().map_err(not_finite)?)?;
    let delta = Delta::between(&local, &select(request.global)?).map_err(not_finite)?;
    let variate = match (request.variates, outcome.variate) {
        (Some(variates), Some(values)) => {
            let own = Adapter::new(layout, values).map_err(not_finite)?;
            let delta = Delta::between(&own, &variates.own).map_err(not_finite)?;
            Some(VariateStep { own, delta })
        }
        _ => None,
    };
    Ok(LocalUpdate {
        delta,
        variate,
        metrics: trained.metrics,
        rows: request.shard.units() as u64,
        loss_tokens: trained.loss_tokens,
    })
}

/// What the steps of one fit are made of.
pub struct Schedule<'a> {
    /// Steps, rows, optimizer.
    pub local: &'a LocalSpec,
    /// Dropout on the adapters' inputs.
    pub dropout: f32,
    /// The seed of row order and dropout.
    pub seed: u64,
}

/// What a fit came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Trained {
    /// Losses and times.
    pub metrics: UpdateMetrics,
    /// Tokens that counted in the loss.
    pub loss_tokens: u64,
}

/// One adapter in training.
pub struct Fit<'a> {
    trainer: ModelTrainer<'a>,
    device: &'a str,
    model: &'a CausalLm,
    /// The loss over pairs and the adapter that the policy is compared with, if not the base.
    preference: Option<(PreferenceSettings, Option<Lora>)>,
}

impl<'a> Fit<'a> {
    /// Puts `start` on the model's device, with fresh moments unless some are given.
    ///
    /// # Errors
    ///
    /// [`TrainError::Incompatible`] if the adapter is not one of this model.
    pub fn new(
        model: &'a CausalLm,
        device: &'a str,
        spec: &LoraSpec,
        start: &Adapter,
        optimizer: Option<AdamW>,
        memory: Memory,
    ) -> Result<Self, TrainError> {
        let lora = Lora::new(model.config(), spec, start, model.device()).map_err(|error| {
            TrainError::Incompatible {
                reason: LoraError::to_string(&error),
            }
        })?;
        let mut trainer = ModelTrainer::new(model, lora, memory);
        if let Some(optimizer) = optimizer {
            trainer = trainer.with_optimizer(optimizer);
        }
        Ok(Self {
            trainer,
            device,
            model,
            preference: None,
        })
    }

    /// Corrects the steps; the adapter as it stands is the anchor.
    ///
    /// # Errors
    ///
    /// [`TrainError::Incompatible`] if control variates are not those of this adapter.
    pub fn correct(self, correction: Correction<'_>) -> Result<Self, TrainError> {
        let trainer = self.trainer.with_correction(correction);
        let trainer = trainer.map_err(|error| TrainError::Incompatible {
            reason: error.to_string(),
        })?;
        Ok(Self { trainer, ..self })
    }

    /// Minimizes a loss over pairs, compared with the base or with `reference` on it.
    ///
    /// # Errors
    ///
    /// [`TrainError::Incompatible`] if the reference is not an adapter of this model.
    pub fn prefer(
        self,
        settings: PreferenceSettings,
        spec: &LoraSpec,
        reference: Option<&Adapter>,
    ) -> Result<Self, TrainError> {
        let (model, device) = (self.model, self.model.device());
        let reference = reference.map(|adapter| Lora::new(model.config(), spec, adapter, device));
        let reference = reference
            .transpose()
            .map_err(|error| TrainError::Incompatible {
                reason: error.to_string(),
            })?;
        Ok(Self {
            preference: Some((settings, reference)),
            ..self
        })
    }

    /// Takes the schedule's steps, telling of each.
    ///
    /// # Errors
    ///
    /// [`TrainError`]; the adapter is then as after the last good step.
    pub fn run(
        &mut self,
        schedule: &Schedule<'_>,
        shard: &Shard,
        stop: &StopFlag,
        on_step: &mut dyn FnMut(StepReport),
    ) -> Result<Trained, TrainError> {
        let local = schedule.local;
        let started = Instant::now();
        let mut batches = Batcher::new(
            shard.units(),
            local.batch as usize,
            schedule.seed,
            local.shuffle,
        );
        let mut sums = Sums::default();
        for step in 1..=local.steps {
            if stop.is_stopped() {
                return Err(TrainError::Stopped {
                    step: step - 1,
                    steps: local.steps,
                });
            }
            let units = batches.next().ok_or_else(|| TrainError::Data {
                reason: "it has no rows".to_owned(),
            })?;
            let began = Instant::now();
            let batch = pack(shard, &units, local.max_tokens as usize)?;
            let settings = settings(local, schedule, step);
            let (stats, preference) = self.step(&batch, &settings, step)?;
            let report = StepReport {
                step,
                steps: local.steps,
                loss: stats.loss,
                grad_norm: stats.grad_norm,
                tokens: stats.tokens,
                loss_tokens: stats.loss_tokens,
                seconds: began.elapsed().as_secs_f64(),
                preference,
            };
            sums.add(&report);
            on_step(report);
        }
        Ok(sums.finish(started))
    }

    /// The adapter, the optimizer's moments, and the client's control variate if it has one.
    ///
    /// # Errors
    ///
    /// [`TrainError::Device`] if the device fails.
    pub fn finish(self) -> Result<Outcome, TrainError> {
        let (model, device) = (self.model, self.device);
        let outcome = device::run_checked(model.device(), || self.trainer.into_outcome());
        outcome.map_err(|error| TrainError::Device {
            device: device.to_owned(),
            reason: error.to_string(),
        })
    }

    /// The adapter as it stands.
    ///
    /// # Errors
    ///
    /// [`TrainError::NotFinite`] if a value of it is not finite.
    pub fn adapter(&self) -> Result<Adapter, TrainError> {
        let adapter = self.trainer.lora().to_adapter();
        adapter.map_err(|_| TrainError::NotFinite {
            what: "update",
            step: 0,
        })
    }

    fn step(
        &mut self,
        batch: &Batch,
        settings: &StepSettings,
        step: u32,
    ) -> Result<(StepStats, Option<PreferenceMetrics>), TrainError> {
        let (trainer, model, preference) = (&mut self.trainer, self.model, &self.preference);
        let outcome = device::run_checked(model.device(), || match preference {
            None => trainer.step(batch, settings).map(|stats| (stats, None)),
            Some((preference, reference)) => {
                let reference = reference
                    .as_ref()
                    .map_or(PairReference::Base, PairReference::Adapter);
                let (stats, pairs) =
                    trainer.preference_step(batch, reference, settings, preference)?;
                let pairs = PreferenceMetrics {
                    chosen: pairs.chosen,
                    rejected: pairs.rejected,
                    margin: pairs.margin,
                    accuracy: pairs.accuracy,
                };
                Ok((stats, Some(pairs)))
            }
        });
        let failed = |reason: String| TrainError::Device {
            device: self.device.to_owned(),
            reason,
        };
        outcome
            .map_err(|error| failed(error.to_string()))?
            .map_err(|error| match error {
                StepError::NotFinite { loss, .. } if !loss.is_finite() => {
                    TrainError::NotFinite { what: "loss", step }
                }
                StepError::NotFinite { .. } => TrainError::NotFinite {
                    what: "gradient",
                    step,
                },
                other => TrainError::Data {
                    reason: format!("step {step}: {other}"),
                },
            })
    }
}

#[derive(Default)]
struct Sums {
    steps: u32,
    first: f32,
    last: f32,
    loss: f64,
    norm: f64,
    tokens: u64,
    loss_tokens: u64,
    /// Of the chosen and rejected rewards, the margin and the accuracy.
    pairs: Option<[f64; 4]>,
}

impl Sums {
    fn add(&mut self, report: &StepReport) {
        if self.steps == 0 {
            self.first = report.loss;
        }
        self.steps += 1;
        self.last = report.loss;
        self.loss += f64::from(report.loss);
        self.norm += f64::from(report.grad_norm);
        self.tokens += report.tokens;
        self.loss_tokens += report.loss_tokens;
        if let Some(pairs) = &report.preference {
            let figures = [pairs.chosen, pairs.rejected, pairs.margin, pairs.accuracy];
            let sums = self.pairs.get_or_insert([0.0; 4]);
            for (sum, figure) in sums.iter_mut().zip(figures) {
                *sum += f64::from(figure);
            }
        }
    }

    fn finish(self, started: Instant) -> Trained {
        let steps = f64::from(self.steps.max(1));
        Trained {
            metrics: UpdateMetrics {
                loss_first: self.first,
                loss_last: self.last,
                loss_mean: (self.loss / steps) as f32,
                grad_norm_mean: (self.norm / steps) as f32,
                tokens: self.tokens,
                seconds: started.elapsed().as_secs_f64(),
                preference: self.pairs.map(|sums| {
                    let [chosen, rejected, margin, accuracy] = sums.map(|sum| (sum / steps) as f32);
                    PreferenceMetrics {
                        chosen,
                        rejected,
                        margin,
                        accuracy,
                    }
                }),
            },
            loss_tokens: self.loss_tokens,
        }
    }
}

/// Packs units of a shard, each row cut to `max_tokens`.
fn pack(shard: &Shard, units: &[usize], max_tokens: usize) -> Result<Batch, TrainError> {
    let mut batch = Batch::default();
    for row in units.iter().flat_map(|&unit| shard.rows_of(unit)) {
        let row = shard.row(row);
        let len = row.ids.len().min(max_tokens);
        batch.push(&row.ids[..len], |i| row.loss[i] != 0);
    }
    if batch.loss_tokens() == 0 {
        return Err(TrainError::Data {
            reason: format!("none of the first {max_tokens} tokens of a batch's rows is a label"),
        });
    }
    Ok(batch)
}

fn settings(local: &LocalSpec, schedule: &Schedule<'_>, step: u32) -> StepSettings {
    StepSettings {
        optimizer: local.optimizer,
        lr: local.lr,
        beta1: local.beta1,
        beta2: local.beta2,
        eps: local.eps,
        weight_decay: local.weight_decay,
        max_grad_norm: local.max_grad_norm,
        dropout: schedule.dropout,
        seed: schedule.seed ^ u64::from(step).wrapping_mul(0x9E37_79B9_7F4A_7C15),
    }
}

fn incompatible(error: fedllm_shared::LayoutError) -> TrainError {
    TrainError::Incompatible {
        reason: error.to_string(),
    }
}
