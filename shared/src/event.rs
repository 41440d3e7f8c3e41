//! The append-only record of a run: facts for machines.
//!
//! A dashboard rebuilds a run from these alone. They name clients by their
//! id, and hold no text, tokens or values of deltas.

use serde::{Deserialize, Serialize};

use crate::id::{ClientId, Digest, ModelVersion, RoundId, RunId};
use crate::strategy::RoundReport;
use crate::time::Timestamp;
use crate::wire::{
    BlobRef, DeclineReason, FailReason, HeldOutScore, RefuseReason, RoundOutcome, UpdateMetrics,
    VariateOrigin,
};

/// An event and when it happened. As JSON it is one flat object.
///
/// ```
/// use fedllm_shared::{Event, EventRecord, RoundId, Timestamp};
///
/// let record = EventRecord {
///     at: Timestamp(1500),
///     event: Event::RoundOpened { round: RoundId(2), attempt: 0, connected: 3, cohort: 2 },
/// };
/// let json = serde_json::to_string(&record)?;
/// assert_eq!(
///     json,
///     r#"{"at_ms":1500,"event":"round_opened","round":2,"attempt":0,"connected":3,"cohort":2}"#,
/// );
/// assert_eq!(serde_json::from_str::<EventRecord>(&json)?, record);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventRecord {
    /// Milliseconds since the run began.
    #[serde(rename = "at_ms")]
    pub at: Timestamp,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// Something that happened in a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// The run began.
    RunStarted {
        /// The run.
        run: RunId,
        /// The federation's name.
        federation: String,
        /// Its rounds.
        rounds: u64,
        /// The base model.
        base: Digest,
        /// The adapter's layout.
        layout: Digest,
        /// The initial adapter.
        adapter: BlobRef,
    },
    /// The server came back to the run.
    RunResumed {
        /// The round it goes on with.
        round: RoundId,
    },
    /// A client was given a certificate.
    ClientEnrolled {
        /// The client.
        client: ClientId,
        /// The name the operator gave it.
        name: String,
    },
    /// A client came.
    ClientJoined {
        /// The client.
        client: ClientId,
        /// Rows in its shard.
        shard_rows: u64,
        /// Label tokens in its shard.
        shard_loss_tokens: u64,
    },
    /// A client went.
    ClientLeft {
        /// The client.
        client: ClientId,
        /// Whether it said so.
        clean: bool,
    },
    /// A round asks a cohort.
    RoundOpened {
        /// The round.
        round: RoundId,
        /// How many cohorts it had before.
        attempt: u32,
        /// Clients connected.
        connected: u32,
        /// Clients asked.
        cohort: u32,
    },
    /// A client was given the task.
    TaskAssigned {
        /// The round.
        round: RoundId,
        /// The client.
        client: ClientId,
    },
    /// A client did not take the task.
    TaskDeclined {
        /// The round.
        round: RoundId,
        /// The client.
        client: ClientId,
        /// Why.
        reason: DeclineReason,
    },
    /// A client could not finish the task.
    TaskFailed {
        /// The round.
        round: RoundId,
        /// The client.
        client: ClientId,
        /// Why.
        reason: FailReason,
    },
    /// An update is durable and counts.
    UpdateAccepted {
        /// The round.
        round: RoundId,
        /// The client.
        client: ClientId,
        /// The encoded delta.
        blob: BlobRef,
        /// What it weighs.
        weight: u64,
        /// What the training looked like.
        metrics: UpdateMetrics,
        /// The control variate it began with.
        #[serde(default)]
        variate: VariateOrigin,
    },
    /// An update does not count.
    UpdateRejected {
        /// The round.
        round: RoundId,
        /// The client.
        client: ClientId,
        /// Why.
        reason: RefuseReason,
    },
    /// The deadline came without a quorum.
    RoundMissed {
        /// The round.
        round: RoundId,
        /// The cohort that missed it.
        attempt: u32,
        /// The updates it has, which it keeps.
        updates: u32,
    },
    /// A round made a new version.
    RoundClosed {
        /// The round.
        round: RoundId,
        /// The version.
        version: ModelVersion,
        /// How it ended.
        outcome: RoundOutcome,
        /// The new adapter.
        adapter: BlobRef,
        /// The weighted mean of the clients' mean losses.
        loss: f32,
        /// What it did to the adapter.
        report: RoundReport,
    },
    /// The adapter was evaluated on the operator's rows.
    Evaluated {
        /// The version.
        version: ModelVersion,
        /// The means.
        #[serde(flatten)]
        score: CentralScore,
    },
    /// The run is over.
    RunFinished {
        /// The last version.
        version: ModelVersion,
        /// The last adapter.
        adapter: BlobRef,
    },
    /// A client evaluated the adapter on rows that it holds out.
    ClientEvaluated {
        /// The round.
        round: RoundId,
        /// The client.
        client: ClientId,
        /// The version, which is the one that the round began with.
        version: ModelVersion,
        /// The means.
        #[serde(flatten)]
        score: HeldOutScore,
    },
    /// The adapter was measured on benchmarks.
    TasksEvaluated {
        /// The version.
        version: ModelVersion,
        /// Each task's figure.
        scores: Vec<TaskScore>,
    },
}

/// How an adapter does on the operator's rows. Standard errors are over rows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CentralScore {
    /// The mean loss of a row, in nats.
    pub loss: f64,
    /// Its standard error.
    pub loss_se: f64,
    /// The share of rows that are right: whose answer greedy decoding writes, or whose chosen answer
    /// has the larger reward.
    pub accuracy: f64,
    /// Its standard error.
    pub accuracy_se: f64,
    /// How many rows there are.
    pub rows: u64,
}

/// How a model does on a benchmark: the task's main metric.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskScore {
    /// The task.
    pub task: String,
    /// Its main metric.
    pub metric: String,
    /// The figure; none if no row has one.
    pub value: Option<f64>,
    /// Its standard error over rows, where it has one.
    pub standard_error: Option<f64>,
    /// How many rows there are.
    pub rows: u64,
    /// What the base model has on the same rows, where that stands beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<f64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_flat_and_read_back() {
        let score = HeldOutScore {
            loss: 1.5,
            accuracy: 0.25,
            rows: 8,
        };
        let record = EventRecord {
            at: Timestamp(3),
            event: Event::ClientEvaluated {
                round: RoundId(2),
                client: ClientId([1; 32]),
                version: ModelVersion(2),
                score,
            },
        };
        let json = serde_json::to_value(&record).unwrap();
        assert_eq!(
            (&json["event"], &json["rows"]),
            (&"client_evaluated".into(), &8.into())
        );
        assert_eq!(serde_json::from_value::<EventRecord>(json).unwrap(), record);

        let score = CentralScore {
            loss: 1.5,
            loss_se: 0.5,
            accuracy: 0.25,
            accuracy_se: 0.125,
            rows: 8,
        };
        let version = ModelVersion(2);
        let event = Event::Evaluated { version, score };
        let record = EventRecord { event, ..record };
        let json = serde_json::to_value(&record).unwrap();
        assert_eq!(
            (&json["event"], &json["loss"]),
            (&"evaluated".into(), &1.5.into())
        );
        assert_eq!(serde_json::from_value::<EventRecord>(json).unwrap(), record);

        let scores = vec![TaskScore {
            task: "mmlu".to_owned(),
            metric: "acc".to_owned(),
            value: Some(0.25),
            standard_error: None,
            rows: 8,
            base: None,
        }];
        let event = Event::TasksEvaluated { version, scores };
        let record = EventRecord { event, ..record };
        let json = serde_json::to_value(&record).unwrap();
        assert_eq!(
            (&json["event"], &json["scores"][0]["value"]),
            (&"tasks_evaluated".into(), &0.25.into())
        );
        assert_eq!(serde_json::from_value::<EventRecord>(json).unwrap(), record);
    }
}
