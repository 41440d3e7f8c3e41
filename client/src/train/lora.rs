//! Training a LoRA adapter on the base model that is loaded here.

use std::sync::Arc;
use std::time::Instant;

use fedllm_models::device;
use fedllm_models::lora::{self, Lora, LoraError};
use fedllm_models::ops::AdamW;
use fedllm_models::train::{Memory, StepError, StepSettings, Trainer as ModelTrainer};
use fedllm_models::{Batch, CausalLm};
use fedllm_shared::{
    Adapter, Delta, Digest, Layout, LocalRule, LocalSpec, LoraSpec, ObjectiveSpec, RunId,
    UpdateMetrics,
};

use super::{FitRequest, LocalUpdate, StepReport, TrainError, Trainer};
use crate::governor::StopFlag;
use crate::shard::{Batcher, Shard};

/// Trains by AdamW on the loss tokens of a shard's rows.
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
        check_task(&task.objective, &task.rule)?;
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
        )?;
        let trained = fit.run(&schedule, request.shard, request.stop, request.on_step)?;
        let (local, optimizer) = fit.finish()?;
        if task.local.keep_optimizer {
            self.kept = Some((task.run, optimizer));
        }
        let delta = Delta::between(&local, request.global).map_err(|_| TrainError::NotFinite {
            what: "update",
            step: task.local.steps,
        })?;
        Ok(LocalUpdate {
            delta,
            metrics: trained.metrics,
            rows: request.shard.rows() as u64,
            loss_tokens: trained.loss_tokens,
        })
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
        let trainer = match optimizer {
            Some(optimizer) => ModelTrainer::with_optimizer(model, lora, optimizer, memory),
            None => ModelTrainer::new(model, lora, memory),
        };
        Ok(Self {
            trainer,
            device,
            model,
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
            shard.rows(),
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
            let rows = batches.next().ok_or_else(|| TrainError::Data {
                reason: "it has no rows".to_owned(),
            })?;
            let began = Instant::now();
            let batch = pack(shard, &rows, local.max_tokens as usize)?;
            let settings = settings(local, schedule, step);
            let stats = self.step(&batch, &settings, step)?;
            let report = StepReport {
                step,
                steps: local.steps,
                loss: stats.loss,
                grad_norm: stats.grad_norm,
                tokens: stats.tokens,
                loss_tokens: stats.loss_tokens,
                seconds: began.elapsed().as_secs_f64(),
            };
            sums.add(&report);
            on_step(report);
        }
        Ok(sums.finish(started))
    }

    /// The adapter and the optimizer's moments.
    ///
    /// # Errors
    ///
    /// [`TrainError::NotFinite`] if a value of the adapter is not finite.
    pub fn finish(self) -> Result<(Adapter, AdamW), TrainError> {
        let (lora, optimizer) = self.trainer.into_parts();
        let adapter = lora.to_adapter().map_err(|_| TrainError::NotFinite {
            what: "update",
            step: 0,
        })?;
        Ok((adapter, optimizer))
    }

    fn step(
        &mut self,
        batch: &Batch,
        settings: &StepSettings,
        step: u32,
    ) -> Result<fedllm_models::train::StepStats, TrainError> {
        let (trainer, model) = (&mut self.trainer, self.model);
        let outcome = device::run_checked(model.device(), || trainer.step(batch, settings));
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
                preference: None,
            },
            loss_tokens: self.loss_tokens,
        }
    }
}

/// Packs rows of a shard, each cut to `max_tokens`.
fn pack(shard: &Shard, rows: &[usize], max_tokens: usize) -> Result<Batch, TrainError> {
    let mut batch = Batch::default();
    for &row in rows {
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

/// This version trains plain SFT; anything else is a newer server's.
fn check_task(objective: &ObjectiveSpec, rule: &LocalRule) -> Result<(), TrainError> {
    match (objective, rule) {
        (ObjectiveSpec::Sft, LocalRule::Plain) => Ok(()),
        (objective, rule) => Err(TrainError::Incompatible {
            reason: format!("this client cannot train {objective:?} with {rule:?}"),
        }),
    }
}

fn incompatible(error: fedllm_shared::LayoutError) -> TrainError {
    TrainError::Incompatible {
        reason: error.to_string(),
    }
}
