//! Whole training steps: made-up rows, a new adapter, and the time of each step.

use std::sync::Arc;
use std::time::Instant;

use fedllm_shared::{Factors, LocalOptimizer, LoraSpec, PreferenceLoss, RowKind, Targets};

use super::{MeasureError, median};
use crate::arch::CausalLm;
use crate::batch::Batch;
use crate::device::run_checked;
use crate::lora::{self, Lora, LoraError};
use crate::objective::{PairReference, PreferenceSettings};
use crate::train::{StepSettings, Trainer};

/// AdamW with clipping and without dropout, as measured steps have it.
pub const SETTINGS: StepSettings = StepSettings {
    optimizer: LocalOptimizer::AdamW,
    lr: 1e-4,
    beta1: 0.9,
    beta2: 0.999,
    eps: 1e-8,
    weight_decay: 0.0,
    max_grad_norm: 1.0,
    dropout: 0.0,
    seed: 0,
};

const PREFERENCE: PreferenceSettings = PreferenceSettings {
    beta: 0.1,
    label_smoothing: 0.0,
    loss: PreferenceLoss::Sigmoid,
};

/// The rows of a measured step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Examples, or pairs of a preferred and another answer.
    pub kind: RowKind,
    /// How many rows, or pairs.
    pub rows: usize,
    /// Tokens of each row: at least two.
    pub tokens: usize,
}

impl Workload {
    /// Rows of made-up tokens. All of an example's tokens are labels, and of a pair's those of the
    /// second half.
    pub fn batch(&self, vocabulary: usize) -> Batch {
        let mut batch = Batch::default();
        let mut state = 7u64;
        let mut token = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % vocabulary as u64) as u32
        };
        let prompt = match self.kind {
            RowKind::Examples => 0,
            RowKind::Preferences => self.tokens / 2,
        };
        for _ in 0..self.rows * group(self.kind) {
            let ids: Vec<u32> = (0..self.tokens).map(|_| token()).collect();
            batch.push(&ids, |i| i >= prompt);
        }
        batch
    }
}

/// Rows that stay together.
pub(super) fn group(kind: RowKind) -> usize {
    match kind {
        RowKind::Examples => 1,
        RowKind::Preferences => 2,
    }
}

/// A new adapter of this rank on all seven projections of every layer.
///
/// # Errors
///
/// [`LoraError`] if the model's adapter would be larger than a layout may be.
pub fn new_adapter(model: &CausalLm, rank: u32) -> Result<Lora, LoraError> {
    let spec = LoraSpec {
        rank,
        alpha: 16.0,
        dropout: 0.0,
        rslora: false,
        targets: Targets::ALL,
        seed: 0,
        train: Factors::Both,
    };
    let layout = Arc::new(lora::layout(model.config(), &spec)?);
    let adapter = lora::init(&layout, 0)?;
    Lora::new(model.config(), &spec, &adapter, model.device())
}

/// How long steps took.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepTimes {
    /// Seconds of each timed step, in order.
    pub seconds: Vec<f64>,
    /// The loss before the last of them.
    pub loss: f32,
}

impl StepTimes {
    /// The middle one, in seconds.
    pub fn median(&self) -> f64 {
        median(&self.seconds)
    }

    /// The shortest, in seconds.
    pub fn min(&self) -> f64 {
        self.seconds.iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// The longest, in seconds.
    pub fn max(&self) -> f64 {
        self.seconds.iter().copied().fold(0.0, f64::max)
    }
}

/// Takes `warm_up` steps over the first of `batches` and then times `steps` over one after the
/// other, from the beginning again where they end. A step ends when the device has done all of it.
/// `progress` is called after each.
///
/// # Errors
///
/// [`MeasureError`] if a step is refused or the device fails.
///
/// # Panics
///
/// If there is no batch.
pub fn time_steps(
    trainer: &mut Trainer<'_>,
    batches: &[Batch],
    kind: RowKind,
    (warm_up, steps): (usize, usize),
    progress: &mut dyn FnMut(),
) -> Result<StepTimes, MeasureError> {
    let mut times = StepTimes::default();
    for _ in 0..warm_up {
        step(trainer, &batches[0], kind)?;
        progress();
    }
    for batch in batches.iter().cycle().take(steps) {
        let started = Instant::now();
        times.loss = step(trainer, batch, kind)?;
        times.seconds.push(started.elapsed().as_secs_f64());
        progress();
    }
    Ok(times)
}

/// One step; returns the loss before it.
fn step(trainer: &mut Trainer<'_>, batch: &Batch, kind: RowKind) -> Result<f32, MeasureError> {
    let device = trainer.model().device();
    let stats = run_checked(device, || match kind {
        RowKind::Examples => trainer.step(batch, &SETTINGS),
        RowKind::Preferences => trainer
            .preference_step(batch, PairReference::Base, &SETTINGS, &PREFERENCE)
            .map(|(stats, _)| stats),
    })??;
    Ok(stats.loss)
}
