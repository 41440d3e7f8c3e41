//! What a server says.

use serde::{Deserialize, Serialize};

use super::text;
use crate::id::{Digest, ModelVersion, RoundId, RunId};
use crate::wire::{BlobRef, TrainTask};

/// A server's message on the control stream. Grows at the end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ServerMessage {
    /// Answers `Hello`.
    Welcome(Welcome),
    /// Asks for work.
    Task(Box<TrainTask>),
    /// There is no work now. The connection stays open and a task may come at any time.
    Wait {
        /// How long there will be none at least, in milliseconds; 0 if unknown.
        retry_after_ms: u64,
        /// Why there is none.
        reason: WaitReason,
    },
    /// Answers `Offer`: the update is wanted.
    Ready {
        /// The update's round.
        round: RoundId,
        /// How many bytes the server has from an earlier attempt.
        offset: u64,
    },
    /// The update is durable and counts, once.
    Receipt {
        /// The update's round.
        round: RoundId,
        /// The update's blob.
        digest: Digest,
    },
    /// The update does not count, and sending it again will not change that.
    Refused {
        /// The update's round.
        round: RoundId,
        /// Why.
        reason: RefuseReason,
    },
    /// A round is over.
    RoundClosed(RoundSummary),
    /// The run is over.
    Finished {
        /// The last version.
        version: ModelVersion,
        /// The last adapter, encoded.
        adapter: BlobRef,
    },
    /// The connection ends.
    Error {
        /// What is wrong.
        code: ErrorCode,
        /// The same for people.
        #[serde(with = "text")]
        message: String,
    },
}

/// The run a client has come to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The protocol both will speak.
    pub protocol: u16,
    /// The run.
    pub run: RunId,
    /// The federation's name, for people.
    #[serde(with = "text")]
    pub federation: String,
    /// The round that is open or next.
    pub round: RoundId,
    /// The rounds of the whole run.
    pub rounds: u64,
    /// The version of the adapter now.
    pub version: ModelVersion,
}

/// How a round went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoundSummary {
    /// The round.
    pub round: RoundId,
    /// The version it made.
    pub version: ModelVersion,
    /// How it ended.
    pub outcome: RoundOutcome,
    /// How many updates were averaged.
    pub updates: u32,
    /// The weighted mean of the clients' mean losses.
    pub loss: f32,
}

/// How a round ended. Grows at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RoundOutcome {
    /// Every client of the cohort that could answer did.
    Complete,
    /// The deadline came, and with it a quorum.
    Quorum,
}

/// Why there is no work. Grows at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum WaitReason {
    /// The round begins when more clients are there.
    #[error("waiting for more clients")]
    MoreClients,
    /// The round goes on with others.
    #[error("this round goes on with other clients")]
    NotInCohort,
    /// The client's part of the round is done.
    #[error("this client's update is in")]
    RoundInProgress,
    /// The updates are being averaged.
    #[error("the updates are being averaged")]
    Aggregating,
}

/// Why an update does not count. Grows at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum RefuseReason {
    /// Its round is over, or not yet open.
    #[error("the round is not open")]
    RoundNotOpen,
    /// The client was not asked in this round.
    #[error("the client was not asked in this round")]
    NotInCohort,
    /// It starts from another version than the round does.
    #[error("the update starts from another version")]
    WrongVersion,
    /// Another update of this client is in.
    #[error("another update of this client is already in")]
    Conflict,
    /// It is longer than any update of this layout and codec.
    #[error("the update is too large")]
    TooLarge,
    /// It is not what its digest or its header says.
    #[error("the update is malformed")]
    Malformed,
    /// A value or a figure is not finite.
    #[error("the update has a value that is not finite")]
    NonFinite,
    /// Its norm is beyond what the federation takes.
    #[error("the update's norm is too large")]
    NormTooLarge,
    /// Nothing was trained on, so it has no weight.
    #[error("the update has no weight")]
    NoWeight,
    /// An earlier update of this client was refused in this round.
    #[error("an update of this client was refused in this round")]
    AlreadyRefused,
}

/// Why a connection ends. Grows at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The client broke the protocol.
    #[error("protocol violation")]
    Protocol,
    /// The client speaks another version.
    #[error("incompatible protocol version")]
    Version,
    /// The client's base model is another.
    #[error("another base model")]
    WrongBase,
    /// The client's shard was made with another tokenizer.
    #[error("another tokenizer")]
    WrongTokenizer,
    /// The client's shard was made with another template.
    #[error("another template")]
    WrongTemplate,
    /// The client's shard has nothing to learn from.
    #[error("an empty shard")]
    EmptyShard,
    /// The client may not take part (any more).
    #[error("not admitted")]
    NotAdmitted,
    /// The same client has connected again; this connection is the older one.
    #[error("replaced by a newer connection")]
    Replaced,
    /// The server has no room now.
    #[error("the server is busy")]
    Busy,
    /// The server stops, and may come back.
    #[error("the server is stopping")]
    Stopping,
    /// The server failed.
    #[error("the server failed")]
    Internal,
    /// The rows of the client's shard are not of the kind that is learned.
    #[error("another kind of rows")]
    WrongRows,
    /// The run trains no adapter of so low a rank.
    #[error("no adapter of so low a rank")]
    WrongRank,
}

impl ErrorCode {
    /// Whether coming back later may help without anyone changing anything.
    pub fn is_temporary(self) -> bool {
        matches!(self, Self::Busy | Self::Stopping | Self::Internal)
    }
}
