//! The work of one round, off the network: adapter in, local training, encoded update out.

use std::sync::{Arc, Mutex, PoisonError};

use fedllm_shared::{
    Adapter, BlobRef, ClipNorm, Codec, CodecError, DeclineReason, Delta, DeltaTransform,
    FailReason, HeldOutScore, Layout, LocalRule, LowRankError, ObjectiveSpec, Reference, RoundId,
    RowKind, TaskError, TrainTask, UpdateOffer, VariateOrigin, decode_adapter, encode_adapter,
    encode_delta, trained, update_layout,
};
use thiserror::Error;

use crate::governor::StopFlag;
use crate::net::NetError;
use crate::shard::Shard;
use crate::store::RoundStore;
use crate::train::{
    FitRequest, LocalUpdate, ScoreRequest, StepReport, TrainError, Trainer, Variates,
};

/// Why a task gave no update.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum WorkError {
    /// The server asks for something that no client should do.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// The shard's rows are not of the kind that the objective learns from.
    #[error("the objective learns from {expected}, the shard has {got}")]
    WrongRows {
        /// What the objective learns from.
        expected: RowKind,
        /// What the shard has.
        got: RowKind,
    },
    /// The task is for another base model.
    #[error("the task is for another base model than the one loaded here")]
    WrongBase,
    /// The adapter that the task describes has another layout here.
    #[error("the task's adapter does not have the layout that this model gives it")]
    WrongLayout,
    /// The adapter is not one of low-rank factors, so it has no part to be trained apart.
    #[error(transparent)]
    LowRank(#[from] LowRankError),
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
            Self::WrongRows { .. } => Some(DeclineReason::WrongRows),
            Self::WrongBase => Some(DeclineReason::WrongBase),
            Self::LowRank(_) | Self::WrongLayout | Self::Train(TrainError::Incompatible { .. }) => {
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

/// How the work of a round goes on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum WorkReport {
    /// The adapter was scored on rows that are held out.
    Scored(HeldOutScore),
    /// A step of training is done.
    Step(StepReport),
}

/// What the work gave: what to offer, and the bytes.
#[derive(Debug)]
pub struct Update {
    /// What to offer.
    pub offer: UpdateOffer,
    /// The encoded delta.
    pub blob: Vec<u8>,
    /// The client's next control variate: it must be kept before the update is offered.
    pub variate: Option<NextVariate>,
}

/// A control variate that counts once its update does.
#[derive(Clone, Debug)]
pub struct NextVariate {
    /// The round whose variate it follows and that counts until then.
    pub since: Option<RoundId>,
    /// The variate, encoded.
    pub bytes: Vec<u8>,
}

/// A trainer and its data, shared with the thread that works.
#[derive(Clone)]
pub(crate) struct Workshop {
    trainer: Arc<Mutex<Box<dyn Trainer>>>,
    shard: Shard,
    held_out: Option<Shard>,
    store: RoundStore,
}

impl Workshop {
    pub(crate) fn new(
        trainer: Box<dyn Trainer>,
        shard: Shard,
        held_out: Option<Shard>,
        store: RoundStore,
    ) -> Self {
        Self {
            trainer: Arc::new(Mutex::new(trainer)),
            shard,
            held_out,
            store,
        }
    }

    /// The layout of the task's adapter, if this client can do what the task asks for.
    pub(crate) fn check(&self, task: &TrainTask) -> Result<Arc<Layout>, WorkError> {
        let trainer = self.trainer.lock().unwrap_or_else(PoisonError::into_inner);
        check_task(&**trainer, &self.shard, task)
    }

    /// Does the task. Takes as long as training does: call it on a thread of its own.
    pub(crate) fn work(
        &self,
        task: &TrainTask,
        layout: &Arc<Layout>,
        blobs: &[Vec<u8>],
        stop: &StopFlag,
        report: &mut dyn FnMut(WorkReport),
    ) -> Result<Update, WorkError> {
        let mut trainer = self.trainer.lock().unwrap_or_else(PoisonError::into_inner);
        let job = RoundWork {
            task,
            layout,
            shard: &self.shard,
            held_out: self.held_out.as_ref(),
            store: &self.store,
        };
        job.run(&mut **trainer, blobs, stop, report)
    }
}

/// The layout of the task's adapter, if `trainer` can do with `shard` what the task asks for.
///
/// # Errors
///
/// [`WorkError`] says what does not fit.
pub fn check_task(
    trainer: &dyn Trainer,
    shard: &Shard,
    task: &TrainTask,
) -> Result<Arc<Layout>, WorkError> {
    task.check()?;
    let (expected, got) = (task.objective.rows(), shard.kind());
    if expected != got {
        return Err(WorkError::WrongRows { expected, got });
    }
    if trainer.base() != task.base {
        return Err(WorkError::WrongBase);
    }
    let layout = trainer.layout(&task.lora)?;
    if layout.digest() != task.layout {
        return Err(WorkError::WrongLayout);
    }
    Ok(layout)
}

/// The blobs that a task refers to, in the order in which [`RoundWork::run`] takes them: the
/// adapter to start from, then the server's control variate and the reference, if there are.
pub fn task_blobs(task: &TrainTask) -> Vec<BlobRef> {
    let variate = match task.rule {
        LocalRule::ControlVariate { variate, .. } => Some(variate),
        LocalRule::Plain | LocalRule::Proximal { .. } => None,
    };
    let reference = match &task.objective {
        ObjectiveSpec::Dpo(spec) => match spec.reference {
            Reference::Adapter(blob) => Some(blob),
            Reference::Base => None,
        },
        ObjectiveSpec::Sft => None,
    };
    let others = variate.into_iter().chain(reference);
    std::iter::once(task.adapter).chain(others).collect()
}

/// One round's work of one client.
pub struct RoundWork<'a> {
    /// What is asked for.
    pub task: &'a TrainTask,
    /// The layout of the task's adapter, as [`check_task`] gives it.
    pub layout: &'a Arc<Layout>,
    /// The owner's data.
    pub shard: &'a Shard,
    /// Rows that are not trained on, to score the adapter on.
    pub held_out: Option<&'a Shard>,
    /// Where the client's control variate lies.
    pub store: &'a RoundStore,
}

impl RoundWork<'_> {
    /// Scores the adapter if rows are held out, trains and encodes the update. `blobs` are those of [`task_blobs`], in that order.
    ///
    /// # Errors
    ///
    /// [`WorkError`]; there is no update then.
    pub fn run(
        &self,
        trainer: &mut dyn Trainer,
        blobs: &[Vec<u8>],
        stop: &StopFlag,
        report: &mut dyn FnMut(WorkReport),
    ) -> Result<Update, WorkError> {
        let trained = Arc::new(trained(self.layout, self.task.lora.train)?);
        let mut blobs = blobs.iter();
        let mut next = |layout: &Arc<Layout>| {
            let bytes = blobs.next().map(Vec::as_slice).unwrap_or_default();
            decode_adapter(bytes, layout).map_err(WorkError::Adapter)
        };
        let global = next(self.layout)?;
        let (variates, origin) = match self.task.rule {
            LocalRule::ControlVariate { .. } => {
                let server = next(&trained)?;
                let (own, origin) = self.own_variate(&trained);
                (Some(Variates { server, own }), origin)
            }
            LocalRule::Plain | LocalRule::Proximal { .. } => (None, VariateOrigin::Unused),
        };
        let reference = match &self.task.objective {
            ObjectiveSpec::Dpo(spec) if spec.reference != Reference::Base => {
                Some(next(self.layout)?)
            }
            ObjectiveSpec::Dpo(_) | ObjectiveSpec::Sft => None,
        };
        if let Some(shard) = self.held_out {
            let score = trainer.score(ScoreRequest {
                task: self.task,
                global: &global,
                reference: reference.as_ref(),
                shard,
                stop,
            })?;
            report(WorkReport::Scored(score));
        }
        let update = trainer.fit(FitRequest {
            task: self.task,
            global: &global,
            variates: variates.as_ref(),
            reference: reference.as_ref(),
            shard: self.shard,
            stop,
            on_step: &mut |step| report(WorkReport::Step(step)),
        })?;
        self.pack(update, origin)
    }

    /// The variate of the last update that counts, or zero.
    fn own_variate(&self, layout: &Arc<Layout>) -> (Adapter, VariateOrigin) {
        let zero = || Adapter::zeros(layout.clone());
        let LocalRule::ControlVariate {
            since: Some(since), ..
        } = self.task.rule
        else {
            return (zero(), VariateOrigin::Fresh);
        };
        match self.store.load_variate(self.task.run, since, layout) {
            Some(own) => (own, VariateOrigin::Kept),
            None => {
                tracing::warn!(
                    round = since.0,
                    "this client's control variate is gone; it begins again from zero"
                );
                (zero(), VariateOrigin::Lost)
            }
        }
    }

    fn pack(&self, update: LocalUpdate, origin: VariateOrigin) -> Result<Update, WorkError> {
        let task = self.task;
        let mut delta = update.delta;
        if !update.metrics.is_finite() {
            return Err(WorkError::NotFinite);
        }
        if let Some(max_norm) = task.max_norm {
            ClipNorm { max_norm }
                .on_client(&mut delta)
                .map_err(|_| WorkError::NotFinite)?;
        }
        let variate = match &update.variate {
            Some(step) => {
                let layout = update_layout(self.layout, task.lora.train, true)?;
                let mut values = delta.into_values();
                values.extend_from_slice(step.delta.values());
                delta = Delta::new(Arc::new(layout), values).map_err(|_| WorkError::NotFinite)?;
                let since = match task.rule {
                    LocalRule::ControlVariate { since, .. } => since,
                    LocalRule::Plain | LocalRule::Proximal { .. } => None,
                };
                let bytes = encode_adapter(&step.own, Codec::F32).map_err(WorkError::Encode)?;
                Some(NextVariate { since, bytes })
            }
            None => None,
        };
        let blob = encode_delta(&delta, task.codec).map_err(WorkError::Encode)?;
        let offer = UpdateOffer {
            round: task.round,
            base_version: task.version,
            blob: BlobRef::of(&blob),
            rows: update.rows,
            loss_tokens: update.loss_tokens,
            metrics: update.metrics,
            variate: origin,
        };
        Ok(Update {
            offer,
            blob,
            variate,
        })
    }
}

/// The most bytes that a blob of a task may have, encoded.
pub(crate) fn adapter_bound(layout: &Layout) -> u64 {
    let codecs = [Codec::F32, Codec::Bf16, Codec::Int8Rows];
    codecs
        .map(|codec| codec.max_encoded_len(layout))
        .into_iter()
        .max()
        .unwrap_or_default()
}
