//! What goes into a coordinator and what comes out of it.

use serde::{Deserialize, Serialize};

use super::super::models::Models;
use super::super::plan::ShardFacts;
use super::super::round::WeightedUpdate;
use crate::event::EventRecord;
use crate::id::{ClientId, Digest, ModelVersion, RoundId};
use crate::strategy::RoundReport;
use crate::time::Timestamp;
use crate::wire::{
    BlobRef, DeclineReason, FailReason, HeldOutScore, RefuseReason, ServerMessage, UpdateOffer,
};

/// What a run is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CoordinatorPhase {
    /// Too few clients are there.
    Gathering,
    /// Clients are at work.
    Open,
    /// The updates are being averaged.
    Aggregating,
    /// All rounds are done.
    Finished,
}

/// Something that happened around the coordinator.
#[derive(Clone, Debug, PartialEq)]
pub enum CoordinatorInput {
    /// A client said hello and [`RunPlan::admit`](crate::RunPlan::admit) let it in.
    Join {
        /// The client.
        client: ClientId,
        /// What it has.
        facts: ShardFacts,
    },
    /// A client said that it leaves.
    Leave {
        /// The client.
        client: ClientId,
    },
    /// A client's connection broke.
    Lost {
        /// The client.
        client: ClientId,
    },
    /// A client begins its task.
    Accepted {
        /// The client.
        client: ClientId,
        /// The task's round.
        round: RoundId,
    },
    /// A client does not take its task.
    Declined {
        /// The client.
        client: ClientId,
        /// The task's round.
        round: RoundId,
        /// Why.
        reason: DeclineReason,
    },
    /// A client cannot finish its task.
    Failed {
        /// The client.
        client: ClientId,
        /// The task's round.
        round: RoundId,
        /// Why.
        reason: FailReason,
    },
    /// A client has an update.
    Offered {
        /// The client.
        client: ClientId,
        /// The update.
        offer: UpdateOffer,
    },
    /// A client has evaluated the adapter on rows that it holds out.
    Evaluated {
        /// The client.
        client: ClientId,
        /// The task's round.
        round: RoundId,
        /// The means.
        score: HeldOutScore,
    },
    /// An update that was awaited is complete, sound and durable.
    Stored {
        /// The client.
        client: ClientId,
        /// The update's round.
        round: RoundId,
        /// The update's blob.
        digest: Digest,
        /// The delta's length (L2).
        norm: f64,
    },
    /// An update that was awaited has come and is not sound.
    Rejected {
        /// The client.
        client: ClientId,
        /// The update's round.
        round: RoundId,
        /// Why.
        reason: RefuseReason,
    },
    /// An update that was stored cannot be read any more.
    Damaged {
        /// The client.
        client: ClientId,
        /// The update's round.
        round: RoundId,
    },
    /// The round's new adapter is durable.
    Aggregated {
        /// The round.
        round: RoundId,
        /// What the new version consists of.
        models: Models,
        /// What the strategy did.
        report: RoundReport,
    },
}

/// Something the host is to do.
#[derive(Clone, Debug, PartialEq)]
pub enum CoordinatorAction {
    /// Make [`Coordinator::snapshot`](super::Coordinator::snapshot) durable, with the events recorded
    /// before, ahead of any later action.
    Persist,
    /// Append to the run's record.
    Record(EventRecord),
    /// Send a message, if the client is still connected.
    Send {
        /// To whom.
        client: ClientId,
        /// What.
        message: ServerMessage,
    },
    /// Get this update: feed `Stored` if it is complete already, else send
    /// `Ready` with the bytes that are there.
    Await {
        /// From whom.
        client: ClientId,
        /// The update's round.
        round: RoundId,
        /// The update's blob.
        blob: BlobRef,
    },
    /// Average the updates, let the strategy step, make the result durable
    /// and feed `Aggregated`.
    Aggregate(Box<Contributions>),
    /// The run is over; clients have been told.
    Finish {
        /// The last version.
        version: ModelVersion,
        /// The last adapter.
        adapter: BlobRef,
    },
}

/// What a round that closed has to average.
#[derive(Clone, Debug, PartialEq)]
pub struct Contributions {
    /// The round.
    pub round: RoundId,
    /// The version the updates start from.
    pub base_version: ModelVersion,
    /// What that version consists of.
    pub base: Models,
    /// How many clients there are (SCAFFOLD's N).
    pub population: u64,
    /// The updates in the order of [`ClientId`].
    pub updates: Vec<WeightedUpdate>,
}

/// A run in figures, for status pages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CoordinatorStatus {
    /// What it is doing.
    pub phase: CoordinatorPhase,
    /// The round that is open or next.
    pub round: RoundId,
    /// The rounds of the run.
    pub rounds: u64,
    /// How many cohorts missed this round's deadline.
    pub attempt: u32,
    /// The adapter's version.
    pub version: ModelVersion,
    /// Clients connected.
    pub connected: u32,
    /// Clients asked whose answer is not in.
    pub pending: u32,
    /// Updates that are in.
    pub stored: u32,
    /// When the round's time is over, while one is open.
    pub deadline_ms: Option<Timestamp>,
}

/// A snapshot that cannot be read: a damaged disk, or another version's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the coordinator's snapshot cannot be read: {0}")]
pub struct SnapshotError(pub(super) String);
