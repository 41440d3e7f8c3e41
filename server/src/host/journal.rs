//! From the coordinator's events to rows of the record, log lines and metrics.

use std::time::Duration;

use fedllm_shared::{ClientId, Event, EventRecord, Timestamp, VariateOrigin};
use tracing::{debug, info, warn};

use crate::admin::{ClosedRound, Metrics};
use crate::store::{AcceptedUpdate, Commit, NewScore};

/// What is to be made durable next, and what the present round has come to.
pub(super) struct Journal {
    pub(super) commit: Commit,
    metrics: Metrics,
    round: Tally,
}

/// A round in figures, while it lasts. After a restart it begins again.
#[derive(Default)]
struct Tally {
    since: Option<Timestamp>,
    rejected: usize,
    bytes: u64,
}

impl Journal {
    pub(super) fn new(metrics: Metrics) -> Self {
        Self {
            commit: Commit::default(),
            metrics,
            round: Tally::default(),
        }
    }

    /// Whether something waits to be written.
    pub(super) fn is_empty(&self) -> bool {
        self.commit.events.is_empty()
    }

    /// Takes an event in.
    pub(super) fn note(&mut self, record: EventRecord) {
        self.log(&record.event);
        self.count(record.at, &record.event);
        self.keep(record.at, &record.event);
        self.commit.events.push(record);
    }

    /// Rows beside the event itself.
    fn keep(&mut self, at: Timestamp, event: &Event) {
        match event {
            Event::RunStarted { adapter, .. } => {
                self.commit.version = Some((Default::default(), *adapter));
            }
            Event::UpdateAccepted {
                round,
                client,
                blob,
                weight,
                metrics,
                ..
            } => {
                let update = AcceptedUpdate {
                    blob: *blob,
                    weight: *weight,
                    metrics: metrics.clone(),
                };
                self.commit.updates.insert((*round, *client), Some(update));
            }
            Event::ClientEvaluated { version, score, .. } => {
                let score = NewScore::Client(*score);
                self.commit.scores.push((*version, score));
            }
            Event::Evaluated { version, score } => {
                let score = NewScore::Server(*score);
                self.commit.scores.push((*version, score));
            }
            Event::TasksEvaluated { version, scores } => {
                let score = NewScore::Tasks(scores.clone());
                self.commit.scores.push((*version, score));
            }
            Event::UpdateRejected { round, client, .. } => {
                self.commit.updates.insert((*round, *client), None);
            }
            Event::RoundClosed {
                round,
                version,
                adapter,
                loss,
                report,
                ..
            } => {
                let tally = std::mem::take(&mut self.round);
                let took = tally.since.map_or(Duration::ZERO, |since| at - since);
                self.metrics.round_closed(took);
                let closed = ClosedRound {
                    round: round.0,
                    version: version.0,
                    updates: report.updates as usize,
                    rejected: tally.rejected,
                    loss: f64::from(*loss),
                    step_norm: report.step_norm,
                    drift: report.drift,
                    gap: report.gap,
                    discarded: report.discarded,
                    bytes: tally.bytes,
                    seconds: took.as_secs_f64(),
                };
                // A plain struct of numbers, some of which JSON writes as null.
                let row = serde_json::to_value(closed).unwrap_or_default();
                self.commit.round = Some((*round, row));
                self.commit.version = Some((*version, *adapter));
            }
            _ => {}
        }
    }

    fn count(&mut self, at: Timestamp, event: &Event) {
        match event {
            Event::RoundOpened { round, .. } => {
                self.metrics.round(round.0);
                self.round.since.get_or_insert(at);
            }
            Event::RunResumed { round } => {
                self.metrics.round(round.0);
                self.round.since = Some(at);
            }
            Event::UpdateAccepted { blob, metrics, .. } => {
                self.metrics.update_accepted(metrics.tokens);
                self.round.bytes += blob.len;
            }
            Event::UpdateRejected { reason, .. } => {
                self.round.rejected += 1;
                let reason = serde_json::to_value(reason).unwrap_or_default();
                let reason = reason.as_str().unwrap_or("other");
                self.metrics.update_rejected(reason);
            }
            _ => {}
        }
    }

    /// Log lines name clients and figures, never what they sent.
    fn log(&self, event: &Event) {
        let who = |client: &ClientId| client.short();
        match event {
            Event::RunStarted { run, rounds, .. } => info!(%run, rounds, "the run begins"),
            Event::RunResumed { round } => info!(round = round.0, "the run goes on"),
            Event::ClientJoined {
                client, shard_rows, ..
            } => info!(client = who(client), rows = shard_rows, "a client is there"),
            Event::ClientLeft { client, clean } => {
                info!(client = who(client), clean, "a client is gone");
            }
            Event::RoundOpened {
                round,
                attempt,
                connected,
                cohort,
            } => info!(round = round.0, attempt, connected, cohort, "a round opens"),
            Event::TaskAssigned { round, client } => {
                info!(round = round.0, client = who(client), "asked a client");
            }
            Event::TaskDeclined {
                round,
                client,
                reason,
            } => warn!(round = round.0, client = who(client), %reason, "a client declined"),
            Event::TaskFailed {
                round,
                client,
                reason,
            } => warn!(round = round.0, client = who(client), %reason, "a client failed"),
            Event::UpdateAccepted {
                round,
                client,
                blob,
                weight,
                metrics,
                variate,
            } => {
                if *variate == VariateOrigin::Lost {
                    warn!(
                        round = round.0,
                        client = who(client),
                        "a client has lost its control variate and began from zero"
                    );
                }
                info!(
                    round = round.0,
                    client = who(client),
                    bytes = blob.len,
                    weight,
                    loss = metrics.loss_mean,
                    "an update is in"
                );
            }
            Event::UpdateRejected {
                round,
                client,
                reason,
            } => warn!(round = round.0, client = who(client), %reason, "refused an update"),
            Event::RoundMissed {
                round,
                attempt,
                updates,
            } => warn!(
                round = round.0,
                attempt, updates, "the deadline came without a quorum"
            ),
            Event::RoundClosed {
                round,
                version,
                loss,
                report,
                ..
            } => info!(
                round = round.0,
                version = version.0,
                updates = report.updates,
                loss,
                step_norm = report.step_norm,
                drift = report.drift,
                gap = report.gap,
                "a round closed"
            ),
            Event::ClientEvaluated {
                round,
                client,
                score,
                ..
            } => info!(
                round = round.0,
                client = who(client),
                loss = score.loss,
                accuracy = score.accuracy,
                rows = score.rows,
                "a client evaluated the adapter"
            ),
            Event::Evaluated { version, score } => info!(
                version = version.0,
                loss = score.loss,
                accuracy = score.accuracy,
                rows = score.rows,
                "evaluated the adapter"
            ),
            Event::TasksEvaluated { version, scores } => {
                for score in scores {
                    info!(
                        version = version.0,
                        task = score.task,
                        metric = score.metric,
                        value = score.value,
                        base = score.base,
                        rows = score.rows,
                        "evaluated the adapter on a benchmark"
                    );
                }
            }
            Event::RunFinished { version, .. } => {
                info!(version = version.0, "the run is finished");
            }
            other => debug!(?other, "an event"),
        }
    }
}
