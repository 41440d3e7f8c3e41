//! Local training, as a session sees it: a task goes in, an update comes out.

mod lora;

use std::sync::Arc;

use fedllm_shared::{
    Adapter, Delta, Digest, HeldOutScore, Layout, LoraSpec, PreferenceMetrics, TrainTask,
    UpdateMetrics,
};
use thiserror::Error;

use crate::governor::StopFlag;
use crate::shard::Shard;

pub use lora::{Fit, LoraTrainer, Schedule, Trained};

/// Everything that one round of local training needs.
pub struct FitRequest<'a> {
    /// What the server asks for.
    pub task: &'a TrainTask,
    /// The shared adapter to start from.
    pub global: &'a Adapter,
    /// The control variates, if the task's rule needs them.
    pub variates: Option<&'a Variates>,
    /// The adapter that the policy is compared with, unless that is the base.
    pub reference: Option<&'a Adapter>,
    /// The owner's data.
    pub shard: &'a Shard,
    /// Asks for the end after the current step.
    pub stop: &'a StopFlag,
    /// Is told of every step.
    pub on_step: &'a mut dyn FnMut(StepReport),
}

/// What scoring an adapter on held-out rows needs.
pub struct ScoreRequest<'a> {
    /// What the server asks for.
    pub task: &'a TrainTask,
    /// The shared adapter.
    pub global: &'a Adapter,
    /// The adapter that the policy is compared with, unless that is the base.
    pub reference: Option<&'a Adapter>,
    /// The rows.
    pub shard: &'a Shard,
    /// Asks for the end after the current batch.
    pub stop: &'a StopFlag,
}

/// SCAFFOLD's control variates, over the factors that are trained.
#[derive(Clone, Debug)]
pub struct Variates {
    /// The server's.
    pub server: Adapter,
    /// The client's own.
    pub own: Adapter,
}

/// A client's control variate after a round.
#[derive(Clone, Debug)]
pub struct VariateStep {
    /// The new one.
    pub own: Adapter,
    /// The new one minus the old one.
    pub delta: Delta,
}

/// What one step of training did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// This step, counted from 1.
    pub step: u32,
    /// Steps in all.
    pub steps: u32,
    /// Mean loss over the loss tokens of this step.
    pub loss: f32,
    /// L2 norm of the gradient, before clipping.
    pub grad_norm: f32,
    /// Tokens that went through the model.
    pub tokens: u64,
    /// Tokens that counted in the loss.
    pub loss_tokens: u64,
    /// Seconds that the step took.
    pub seconds: f64,
    /// Rewards of the step's pairs, if it trains on pairs.
    pub preference: Option<PreferenceMetrics>,
}

/// What local training gives back.
#[derive(Clone, Debug)]
pub struct LocalUpdate {
    /// Local adapter minus shared adapter, over the factors that are trained.
    pub delta: Delta,
    /// The client's control variate, if the task's rule has one.
    pub variate: Option<VariateStep>,
    /// Losses and times.
    pub metrics: UpdateMetrics,
    /// Rows trained on; the server may weigh by them.
    pub rows: u64,
    /// Loss tokens trained on; the server may weigh by them.
    pub loss_tokens: u64,
}

/// Why local training gave nothing back.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TrainError {
    /// It was asked to stop.
    #[error("training was stopped after step {step} of {steps}")]
    Stopped {
        /// Steps that were done.
        step: u32,
        /// Steps that were asked for.
        steps: u32,
    },
    /// A loss or a gradient was no finite number. The step was not applied.
    #[error("the {what} of step {step} is not finite")]
    NotFinite {
        /// `loss`, `gradient` or `update`.
        what: &'static str,
        /// The step, counted from 1.
        step: u32,
    },
    /// The task does not fit the model that is loaded here.
    #[error("the task does not fit this model: {reason}")]
    Incompatible {
        /// What does not fit.
        reason: String,
    },
    /// The data cannot be trained on.
    #[error("the shard cannot be trained on: {reason}")]
    Data {
        /// Why not.
        reason: String,
    },
    /// The device failed.
    #[error("the device {device} failed: {reason}")]
    Device {
        /// Its name.
        device: String,
        /// What it said.
        reason: String,
    },
}

/// Trains an adapter on a shard. One trainer holds one base model on one device.
pub trait Trainer: Send {
    /// Trains from the shared adapter as the task says, and returns the difference.
    ///
    /// # Errors
    ///
    /// [`TrainError`]; no update exists then.
    fn fit(&mut self, request: FitRequest<'_>) -> Result<LocalUpdate, TrainError>;

    /// Measures the shared adapter on rows that are held out, before it is trained.
    ///
    /// # Errors
    ///
    /// [`TrainError`].
    fn score(&mut self, request: ScoreRequest<'_>) -> Result<HeldOutScore, TrainError>;

    /// The fingerprint of the base model.
    fn base(&self) -> Digest;

    /// The name of the device, for people.
    fn device(&self) -> String;

    /// The tensors of an adapter of this kind on this base model: what a blob is decoded by.
    ///
    /// # Errors
    ///
    /// [`TrainError::Incompatible`] if the base model cannot carry such an adapter.
    fn layout(&self, lora: &LoraSpec) -> Result<Arc<Layout>, TrainError>;
}
