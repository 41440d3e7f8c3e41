//! What goes into a participant and what comes out of it.

use serde::{Deserialize, Serialize};

use crate::id::{Digest, ModelVersion, RoundId, RunId};
use crate::wire::{
    BlobRef, ClientMessage, DeclineReason, ErrorCode, FailReason, HeldOutScore, RoundSummary,
    ServerMessage, TrainTask, UpdateOffer, Welcome,
};

/// What a client must remember from one start to the next.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct ParticipantState {
    /// The run it takes part in.
    pub run: Option<RunId>,
    /// The last round it has a receipt for.
    pub last_round: Option<RoundId>,
    /// The newest version it has heard of. It refuses to go back behind it.
    pub last_version: ModelVersion,
    /// The update it holds and has no answer for.
    pub held: Option<UpdateOffer>,
}

/// Something that happened around the participant.
#[derive(Clone, Debug, PartialEq)]
pub enum ParticipantInput {
    /// The connection is up and the control stream open.
    Connected,
    /// The connection broke, or could not be made.
    Disconnected,
    /// The server said something.
    Message(ServerMessage),
    /// The adapter's score on rows that the client holds out.
    Scored {
        /// The task's round.
        round: RoundId,
        /// The means.
        score: HeldOutScore,
    },
    /// A training step is done.
    Progress {
        /// The task's round.
        round: RoundId,
        /// Steps done.
        step: u32,
        /// Steps to do.
        steps: u32,
        /// The loss of the step.
        loss: f32,
    },
    /// The training is done and its encoded delta durable.
    Trained(UpdateOffer),
    /// The training cannot be done or finished.
    TrainFailed {
        /// The task's round.
        round: RoundId,
        /// Why.
        reason: FailReason,
    },
    /// The task does not fit what the client has.
    Unfit {
        /// The task's round.
        round: RoundId,
        /// Why.
        reason: DeclineReason,
    },
    /// The upload broke off while the connection held.
    UploadFailed {
        /// The update's round.
        round: RoundId,
    },
    /// The encoded delta that was held cannot be read any more.
    HeldLost,
    /// Take no tasks, or take them again. What was begun goes on.
    SetPaused(bool),
    /// Go, cleanly.
    Leave,
}

/// Something the session is to do.
#[derive(Clone, Debug, PartialEq)]
pub enum ParticipantAction {
    /// Connect, and feed `Connected` or `Disconnected`.
    Connect,
    /// Close the connection. No `Disconnected` needs to be fed for it.
    Disconnect,
    /// Send a message.
    Send(ClientMessage),
    /// Make [`Participant::state`](super::Participant::state) durable ahead of any later action.
    Persist,
    /// Fetch the adapter, train, and feed `Trained`, `TrainFailed` or `Unfit`.
    Train(Box<TrainTask>),
    /// Stop the training of this round; nothing needs to be fed for it.
    StopTraining {
        /// The task's round.
        round: RoundId,
    },
    /// Send the held delta from this offset on. The answer comes as a message.
    Upload {
        /// The update.
        offer: UpdateOffer,
        /// How many bytes the server has.
        offset: u64,
    },
    /// Delete this encoded delta: nobody needs it any more.
    Discard(Digest),
    /// For people: the connection is up.
    Welcomed(Welcome),
    /// For people: the update counts.
    Counted {
        /// The update's round.
        round: RoundId,
    },
    /// For people: a round is over.
    RoundClosed(RoundSummary),
    /// Nothing more will happen.
    Stop(StopReason),
}

/// Why a participant has stopped.
#[derive(Clone, Debug, PartialEq)]
pub enum StopReason {
    /// The run is over. The connection is still up, so the adapter can be fetched.
    Finished {
        /// The last version.
        version: ModelVersion,
        /// The last adapter.
        adapter: BlobRef,
    },
    /// It was told to leave.
    Left,
    /// The server will not have it, and coming back will not help.
    Refused {
        /// What is wrong.
        code: ErrorCode,
        /// The server's words.
        message: String,
    },
}
