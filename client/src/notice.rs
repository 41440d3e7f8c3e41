//! What a client tells its owner while it takes part: for progress bars, logs and scripts.

use serde::Serialize;

/// Something that happened. The JSON form has the name of the event in `event`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Notice {
    /// The server said welcome.
    Connected {
        /// The federation's name.
        federation: String,
        /// The round that is open or next.
        round: u64,
        /// The rounds of the whole run.
        rounds: u64,
    },
    /// The connection is gone, or could not be made.
    Disconnected {
        /// Why.
        reason: String,
        /// Seconds until the next attempt.
        retry_seconds: f64,
    },
    /// There is nothing to do now.
    Waiting {
        /// Why.
        reason: String,
    },
    /// A round's work begins.
    TrainingStarted {
        /// The round.
        round: u64,
        /// Steps in it.
        steps: u32,
    },
    /// The round's adapter was scored on held-out rows; the means go to the server if they are sound.
    Scored {
        /// The round.
        round: u64,
        /// The mean loss of a row.
        loss: f32,
        /// The share of rows that are right.
        accuracy: f32,
        /// How many rows there are.
        rows: u32,
    },
    /// A step is done.
    Step {
        /// The round.
        round: u64,
        /// Steps done.
        step: u32,
        /// Steps in the round.
        steps: u32,
        /// The loss of this step.
        loss: f32,
        /// Tokens that went through the model.
        tokens: u64,
        /// Seconds that it took.
        seconds: f64,
    },
    /// An update goes to the server.
    Uploading {
        /// The round.
        round: u64,
        /// Bytes of the encoded delta.
        bytes: u64,
    },
    /// The server has the update, durably.
    Received {
        /// The round.
        round: u64,
        /// The loss of the first step.
        loss_first: Option<f32>,
        /// The loss of the last step.
        loss_last: Option<f32>,
        /// Bytes of the encoded delta.
        bytes: u64,
    },
    /// The server does not want the update.
    Refused {
        /// The round.
        round: u64,
        /// Why.
        reason: String,
    },
    /// This client declined or could not finish its part.
    Failed {
        /// The round.
        round: u64,
        /// Why.
        reason: String,
    },
    /// A round of the federation is over.
    RoundClosed {
        /// The round.
        round: u64,
        /// The version that it made.
        version: u64,
        /// How many updates were averaged.
        updates: u32,
        /// The mean of the clients' mean losses.
        loss: f32,
    },
    /// The run is over.
    Finished {
        /// The last version of the shared adapter.
        version: u64,
    },
}

/// Takes notices; it must not block.
pub type Notices = Box<dyn FnMut(Notice) + Send>;
