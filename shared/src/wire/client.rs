//! What a client says.

use serde::{Deserialize, Serialize};

use super::text;
use crate::id::{Digest, ModelVersion, RoundId};
use crate::wire::{BlobRef, HeldOutScore, RowKind};

/// A client's message on the control stream. Grows at the end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ClientMessage {
    /// Opens the conversation; answered by `Welcome` or `Error`.
    Hello(Hello),
    /// The task has begun.
    Accept {
        /// The task's round.
        round: RoundId,
    },
    /// The task will not be done; another client may have the place.
    Decline {
        /// The task's round.
        round: RoundId,
        /// Why not.
        reason: DeclineReason,
    },
    /// The training goes on. Nothing depends on it.
    Progress {
        /// The task's round.
        round: RoundId,
        /// Steps done.
        step: u32,
        /// Steps to do.
        steps: u32,
        /// The loss of the last step.
        loss: f32,
    },
    /// An update is ready; answered by `Ready`, `Receipt` or `Refused`.
    Offer(UpdateOffer),
    /// The task was begun and cannot be finished.
    Failed {
        /// The task's round.
        round: RoundId,
        /// Why.
        reason: FailReason,
    },
    /// The client goes, and comes back when its owner wants it to.
    Leaving,
    /// How the task's adapter does on rows that the client holds out. Nothing depends on it.
    Evaluated {
        /// The task's round.
        round: RoundId,
        /// The means.
        score: HeldOutScore,
    },
}

/// Who the client is and what it has, beyond its certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The newest protocol it speaks.
    pub protocol: u16,
    /// The version of its program.
    #[serde(with = "text")]
    pub client_version: String,
    /// The device it trains on, for people.
    #[serde(with = "text")]
    pub device: String,
    /// Rows in its shard.
    pub shard_rows: u64,
    /// Tokens in its shard that are labels.
    pub shard_loss_tokens: u64,
    /// The fingerprint of the tokenizer that made the shard.
    pub tokenizer: Digest,
    /// The fingerprint of the template that made the shard.
    pub template: Digest,
    /// The fingerprint of its base model.
    pub base: Digest,
    /// The update it holds and has no receipt for: its round and blob digest.
    pub resume: Option<(RoundId, Digest)>,
    /// What the rows of its shard are.
    pub shard_kind: RowKind,
    /// The highest rank of an adapter that it can train; any if `None`.
    pub max_rank: Option<u32>,
}

/// An update that waits to be sent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UpdateOffer {
    /// The round it was made for.
    pub round: RoundId,
    /// The version of the adapter it started from.
    pub base_version: ModelVersion,
    /// The encoded delta.
    pub blob: BlobRef,
    /// Rows in the steps that made it, a row counted each time it was seen.
    pub rows: u64,
    /// Label tokens in those rows.
    pub loss_tokens: u64,
    /// What the training looked like.
    pub metrics: UpdateMetrics,
    /// The control variate it began with.
    pub variate: VariateOrigin,
}

/// The control variate that a client began a round with. Grows at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VariateOrigin {
    /// The task needs none.
    #[default]
    Unused,
    /// Zero: no update of this client counts yet.
    Fresh,
    /// The one of its last update that counts.
    Kept,
    /// Zero, because the one of its last update is gone.
    Lost,
}

/// What a client's training looked like.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct UpdateMetrics {
    /// The loss of the first step.
    pub loss_first: f32,
    /// The loss of the last step.
    pub loss_last: f32,
    /// The mean loss of all steps.
    pub loss_mean: f32,
    /// The mean length of the gradient before clipping.
    pub grad_norm_mean: f32,
    /// Tokens that went through the model.
    pub tokens: u64,
    /// How long the training took.
    pub seconds: f64,
    /// What the pairs looked like, if it trained on pairs.
    pub preference: Option<PreferenceMetrics>,
}

/// Preference pairs in training, each figure a mean over all steps.
///
/// A reward is β times the policy's log-probability minus the reference's.
#[derive(Clone, Copy, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct PreferenceMetrics {
    /// The reward of chosen answers.
    pub chosen: f32,
    /// The reward of rejected answers.
    pub rejected: f32,
    /// The first minus the second.
    pub margin: f32,
    /// The share of pairs whose margin is positive.
    pub accuracy: f32,
}

impl UpdateMetrics {
    /// Whether every figure is a finite number.
    pub fn is_finite(&self) -> bool {
        let figures = [
            self.loss_first,
            self.loss_last,
            self.loss_mean,
            self.grad_norm_mean,
        ];
        let pairs = self.preference.unwrap_or_default();
        let rewards = [pairs.chosen, pairs.rejected, pairs.margin, pairs.accuracy];
        let mut figures = figures.into_iter().chain(rewards);
        figures.all(f32::is_finite) && self.seconds.is_finite()
    }
}

/// Why a client does not take a task. Grows at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum DeclineReason {
    /// Its base model is another.
    #[error("the base model is another")]
    WrongBase,
    /// It derives another layout from the task.
    #[error("the adapter's layout is another")]
    WrongLayout,
    /// A number in the task is out of bounds.
    #[error("the task is out of bounds")]
    OutOfBounds,
    /// It has seen a later round, or this one to its end.
    #[error("the round is over for this client")]
    StaleRound,
    /// It does not know how to do what the task asks for.
    #[error("the task is not supported")]
    Unsupported,
    /// Its owner or governor has paused training.
    #[error("training is paused")]
    Paused,
    /// Its shard's rows are not of the kind that the objective learns from.
    #[error("the shard's rows are not of the kind that the objective learns from")]
    WrongRows,
}

/// Why a client could not finish a task. Grows at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum FailReason {
    /// A loss, a gradient or the delta is not finite.
    #[error("the training gave a value that is not finite")]
    NonFinite,
    /// There is not enough memory.
    #[error("not enough memory")]
    OutOfMemory,
    /// The device failed.
    #[error("the device failed")]
    Device,
    /// The shard cannot be read.
    #[error("the shard cannot be read")]
    Shard,
    /// The adapter cannot be fetched or read.
    #[error("the adapter cannot be fetched or read")]
    Adapter,
    /// The training was stopped.
    #[error("the training was stopped")]
    Stopped,
    /// Something else.
    #[error("an internal failure")]
    Internal,
}
