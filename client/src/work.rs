//! The work of one round, off the network: adapter in, local training, encoded update out.

use std::sync::{Arc, Mutex, PoisonError};

use fedllm_shared::{
    BlobRef, ClipNorm, Codec, CodecError, DeclineReason, DeltaTransform, FailReason, Layout,
    LocalRule, TaskError, TrainTask, UpdateOffer, VariateOrigin, decode_adapter, encode_delta,
};
use thiserror::Error;

use crate::governor::StopFlag;
use crate::net::NetError;
use crate::shard::Shard;
use crate::train::{FitRequest, LocalUpdate, StepReport, TrainError, Trainer};

/// Why a task gave no update.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum WorkError {
    /// The server asks for something that no client should do.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// This client does not know how to do what the task asks for.
    #[error("the task asks for {0}, which this version does not know")]
    Unsupported(&'static str),
    /// The task is for another base model.
    #[error("the task is for another base model than the one loaded here")]
    WrongBase,
    /// The adapter that the task describes has another layout here.
    #[error("the task's adapter does not have the layout that this model gives it")]
    WrongLayout,
    /// The shared adapter cannot be had.
    #[error("the shared adapter cannot be fetched")]
    Fetch(#[source] NetError),
    /// The shared adapter is not what it should be.
    #[error("the shared adapter cannot be read")]
    Adapter(#[source] CodecError),
    /// Training failed.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// The update holds a value or a figure that is not finite.
    #[error("the update has a value that is not finite")]
    NotFinite,
    /// The update cannot be encoded.
    #[error("the update cannot be encoded")]
    Encode(#[source] CodecError),
    /// The trainer ended unexpectedly.
    #[error("the trainer ended unexpectedly")]
    Crashed,
}

impl WorkError {
    /// What to tell the server if the work had not begun.
    pub fn decline_reason(&self) -> Option<DeclineReason> {
        match self {
            Self::Task(_) => Some(DeclineReason::OutOfBounds),
            Self::Unsupported(_) => Some(DeclineReason::Unsupported),
            Self::WrongBase => Some(DeclineReason::WrongBase),
            Self::WrongLayout | Self::Train(TrainError::Incompatible { .. }) => {
                Some(DeclineReason::WrongLayout)
            }
            _ => None,
        }
    }

    /// What to tell the server if it had.
    pub fn fail_reason(&self) -> FailReason {
        match self {
            Self::Fetch(_) | Self::Adapter(_) => FailReason::Adapter,
            Self::NotFinite | Self::Encode(_) | Self::Train(TrainError::NotFinite { .. }) => {
                FailReason::NonFinite
            }
            Self::Train(TrainError::Stopped { .. }) => FailReason::Stopped,
            Self::Train(TrainError::Data { .. }) => FailReason::Shard,
            Self::Train(TrainError::Device { .. }) => FailReason::Device,
            _ => FailReason::Internal,
        }
    }
}

/// What the work gave: what to offer, and the bytes.
#[derive(Debug)]
pub(crate) struct Update {
    pub(crate) offer: UpdateOffer,
    pub(crate) blob: Vec<u8>,
}

/// A trainer and its data, shared with the thread that works.
#[derive(Clone)]
pub(crate) struct Workshop {
    trainer: Arc<Mutex<Box<dyn Trainer>>>,
    shard: Shard,
}

impl Workshop {
    pub(crate) fn new(trainer: Box<dyn Trainer>, shard: Shard) -> Self {
        Self {
            trainer: Arc::new(Mutex::new(trainer)),
            shard,
        }
    }

    /// The layout of the task's adapter, if this client can do what the task asks for.
    pub(crate) fn check(&self, task: &TrainTask) -> Result<Arc<Layout>, WorkError> {
        task.check()?;
        if !matches!(task.rule, LocalRule::Plain) {
            return Err(WorkError::Unsupported("a local rule"));
        }
        let trainer = self.trainer.lock().unwrap_or_else(PoisonError::into_inner);
        if trainer.base() != task.base {
            return Err(WorkError::WrongBase);
        }
        let layout = trainer.layout(&task.lora)?;
        if layout.digest() != task.layout {
            return Err(WorkError::WrongLayout);
        }
        Ok(layout)
    }

    /// Does the task. Takes as long as training does: call it on a thread of its own.
    pub(crate) fn work(
        &self,
        task: &TrainTask,
        layout: &Arc<Layout>,
        adapter: &[u8],
        stop: &StopFlag,
        on_step: &mut dyn FnMut(StepReport),
    ) -> Result<Update, WorkError> {
        let global = decode_adapter(adapter, layout).map_err(WorkError::Adapter)?;
        let update = {
            let mut trainer = self.trainer.lock().unwrap_or_else(PoisonError::into_inner);
            let shard = &self.shard;
            trainer.fit(FitRequest {
                task,
                global: &global,
                shard,
                stop,
                on_step,
            })?
        };
        pack(task, update)
    }
}

/// The most bytes that the task's adapter may have, encoded.
pub(crate) fn adapter_bound(layout: &Layout) -> u64 {
    let codecs = [Codec::F32, Codec::Bf16, Codec::Int8Rows];
    codecs
        .map(|codec| codec.max_encoded_len(layout))
        .into_iter()
        .max()
        .unwrap_or_default()
}

fn pack(task: &TrainTask, update: LocalUpdate) -> Result<Update, WorkError> {
    let LocalUpdate {
        mut delta,
        metrics,
        rows,
        loss_tokens,
    } = update;
    if !metrics.is_finite() {
        return Err(WorkError::NotFinite);
    }
    if let Some(max_norm) = task.max_norm {
        ClipNorm { max_norm }
            .on_client(&mut delta)
            .map_err(|_| WorkError::NotFinite)?;
    }
    let blob = encode_delta(&delta, task.codec).map_err(WorkError::Encode)?;
    let offer = UpdateOffer {
        round: task.round,
        base_version: task.version,
        blob: BlobRef::of(&blob),
        rows,
        loss_tokens,
        metrics,
        variate: VariateOrigin::Unused,
    };
    Ok(Update { offer, blob })
}
