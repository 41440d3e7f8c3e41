//! The thread that drives the coordinator: the only place of a run with a clock and randomness.
//!
//! Inputs come from connections through a [`HostHandle`]. What the coordinator then wants done is
//! done in order, and nothing is said to a client before what it rests on is in the record. Several
//! inputs that wait together share one write to disk.

mod averaging;
mod clock;
mod effects;
mod handle;
mod journal;
mod seats;
mod setup;

use std::sync::Arc;
use std::time::Duration;

use burn::tensor::Device;
use fedllm_shared::MemberState;
use fedllm_shared::{
    BlobRefusal, ClientMessage, Coordinator, CoordinatorInput, CoordinatorPhase, ErrorCode,
    Federation, Layout, RefuseReason, ServerState, UpdateRecord,
};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tracing::{error, info};

use crate::admin::Metrics;
use crate::base::Base;
use crate::store::{DirBlobs, RunStore, StoreError};
use averaging::AveragingError;
use clock::Clock;
pub(crate) use handle::{HostHandle, Input, Outgoing, Session, Stored, Traffic};
use journal::Journal;
use seats::Seats;

/// Inputs that share one write to disk.
const BATCH: usize = 64;
/// Events that nothing waits for are written at least this often.
const FLUSH: Duration = Duration::from_secs(1);
/// How long clients may take to fetch the last adapter.
const LAST_FETCH: Duration = Duration::from_secs(60);

/// Why a run cannot go on.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HostError {
    /// The record or the blobs failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The record belongs to a run with another model or adapter.
    #[error("the run in this folder was begun with another {what}: {expected}, now {got}")]
    OtherRun {
        /// What differs.
        what: &'static str,
        /// What the run was begun with.
        expected: String,
        /// What the settings say now.
        got: String,
    },
    /// The coordinator's snapshot cannot be read.
    #[error(transparent)]
    Snapshot(#[from] fedllm_shared::SnapshotError),
    /// The first adapter cannot be written.
    #[error("the first adapter: {0}")]
    Adapter(#[from] fedllm_shared::CodecError),
    /// What the server's optimizer keeps cannot be read or written.
    #[error("the server optimizer's state: {0}")]
    Optimizer(postcard::Error),
    /// The updates of a round cannot be averaged.
    #[error("averaging the updates: {0}")]
    Averaging(String),
    /// No random bytes from the system.
    #[error("no random bytes from the system: {0}")]
    Random(getrandom::Error),
    /// Another part of the server failed.
    #[error("{0}")]
    Other(String),
}

/// How a run ended, as far as this process is concerned.
#[derive(Clone, Debug)]
pub(crate) enum Ended {
    /// All rounds are done and clients had time to hear it.
    Finished,
    /// Somebody asked for it.
    Stopped,
    /// Something broke.
    Failed(String),
}

/// What a host needs.
pub(crate) struct HostOptions {
    pub(crate) federation: Federation,
    pub(crate) base: Base,
    pub(crate) store: Arc<RunStore>,
    pub(crate) blobs: DirBlobs,
    pub(crate) metrics: Metrics,
    pub(crate) device: Device,
    pub(crate) keep_serving: bool,
}

/// Drives one run.
pub(crate) struct Host {
    federation: Federation,
    coordinator: Coordinator,
    layout: Arc<Layout>,
    optimizer: ServerState,
    /// What the optimizer keeps with the version that is about to be committed.
    next_optimizer: Option<ServerState>,
    store: Arc<RunStore>,
    blobs: DirBlobs,
    metrics: Metrics,
    journal: Journal,
    seats: Seats,
    clock: Clock,
    device: Device,
    keep_serving: bool,
    /// When the last adapter may no longer be waited for.
    closing: Option<tokio::time::Instant>,
    /// Uploads whose answer waits for the next commit.
    unanswered: Vec<(
        oneshot::Sender<Result<(), BlobRefusal>>,
        Result<(), BlobRefusal>,
    )>,
    inputs: mpsc::Receiver<Input>,
    handle: HostHandle,
    ended: watch::Sender<Option<Ended>>,
}

/// Whether the loop goes on.
enum Next {
    Go,
    Stop,
    Abandon,
}

impl Host {
    /// Runs on a thread of its own until the run ends.
    pub(crate) fn spawn(self) -> std::io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()?;
        std::thread::Builder::new()
            .name("host".to_owned())
            .spawn(move || runtime.block_on(self.run()))?;
        Ok(())
    }

    async fn run(mut self) {
        let ended = match self.serve().await {
            Ok(ended) => ended,
            Err(failure) => {
                error!(%failure, "the run stops");
                Some(Ended::Failed(failure.to_string()))
            }
        };
        let Some(ended) = ended else { return };
        self.seats.close_all(match ended {
            Ended::Failed(_) => ErrorCode::Internal,
            _ => ErrorCode::Stopping,
        });
        self.ended.send_replace(Some(ended));
    }

    /// The main loop; `None` if it was abandoned.
    async fn serve(&mut self) -> Result<Option<Ended>, HostError> {
        self.settle()?;
        loop {
            if self.is_over() {
                self.write(false)?;
                return Ok(Some(Ended::Finished));
            }
            let Some(first) = self.wait().await? else {
                continue;
            };
            let mut inputs = vec![first];
            while inputs.len() < BATCH {
                match self.inputs.try_recv() {
                    Ok(input) => inputs.push(input),
                    Err(_) => break,
                }
            }
            for input in inputs {
                match self.take(input)? {
                    Next::Go => {}
                    Next::Abandon => return Ok(None),
                    Next::Stop => {
                        self.settle()?;
                        self.write(false)?;
                        info!("stopped");
                        return Ok(Some(Ended::Stopped));
                    }
                }
            }
            self.settle()?;
        }
    }

    /// Waits for an input, at most until something is due; then does what is due.
    async fn wait(&mut self) -> Result<Option<Input>, HostError> {
        let now = self.clock.now();
        let due = self.coordinator.poll_timeout().map(|at| match at > now {
            true => at - now,
            false => Duration::ZERO,
        });
        let patience = due.map_or(FLUSH, |due| due.min(FLUSH));
        match timeout(patience, self.inputs.recv()).await {
            Ok(Some(input)) => Ok(Some(input)),
            Ok(None) => Err(HostError::Other("nobody listens to the host".to_owned())),
            Err(_) => {
                let now = self.clock.now();
                if self.coordinator.poll_timeout().is_some_and(|at| at <= now) {
                    self.coordinator.handle_timeout(now);
                    self.settle()?;
                }
                if !self.journal.is_empty() {
                    self.write(false)?;
                }
                Ok(None)
            }
        }
    }

    fn take(&mut self, input: Input) -> Result<Next, HostError> {
        match input {
            Input::Connect(arrival, reply) => {
                let answer = self.connect(*arrival)?;
                // A connection that is gone again says so by itself.
                let _ = reply.send(answer);
            }
            Input::Message(session, message) => self.message(session, message),
            Input::Disconnect(session) => {
                if self.seats.remove(session) {
                    let client = session.client;
                    self.feed(CoordinatorInput::Lost { client });
                }
            }
            Input::MayGet(_, blob, reply) => {
                let (_, present) = self.coordinator.model();
                let answer = match blob == present {
                    true => Ok(()),
                    false => Err(BlobRefusal::NotExpected),
                };
                let _ = reply.send(answer);
            }
            Input::MayPut(client, round, blob, reply) => {
                let _ = reply.send(self.may_put(client, round, blob));
            }
            Input::Stored(stored, reply) => self.stored(stored, reply)?,
            Input::Rejected(client, round, blob, reason, reply) => {
                self.feed(CoordinatorInput::Rejected {
                    client,
                    round,
                    reason,
                });
                self.discard(blob)?;
                let _ = reply.send(());
            }
            Input::Status(reply) => {
                let _ = reply.send(self.status()?);
            }
            Input::Revoked(clients) => {
                for client in clients {
                    self.seats.close(client, ErrorCode::NotAdmitted);
                    self.feed(CoordinatorInput::Leave { client });
                }
            }
            Input::Averaged(averaged) => self.averaged(*averaged)?,
            Input::Fail(reason) => return Err(HostError::Other(reason)),
            Input::Stop => return Ok(Next::Stop),
            Input::Abandon => return Ok(Next::Abandon),
        }
        Ok(Next::Go)
    }

    fn connect(
        &mut self,
        arrival: handle::Arrival,
    ) -> Result<Result<Session, ErrorCode>, HostError> {
        let client = arrival.client;
        if !self.is_enrolled(client)? {
            return Ok(Err(ErrorCode::NotAdmitted));
        }
        let facts = match self.coordinator.plan().admit(&arrival.hello) {
            Ok(facts) => facts,
            Err(code) => return Ok(Err(code)),
        };
        if self.seats.close(client, ErrorCode::Replaced) {
            self.feed(CoordinatorInput::Lost { client });
        }
        let session = self.seats.add(arrival);
        self.feed(CoordinatorInput::Join { client, facts });
        Ok(Ok(session))
    }

    fn message(&mut self, session: Session, message: ClientMessage) {
        // A connection that was replaced has no say any more.
        if !self.seats.is_current(session) {
            return;
        }
        let client = session.client;
        let input = match message {
            ClientMessage::Accept { round } => CoordinatorInput::Accepted { client, round },
            ClientMessage::Decline { round, reason } => CoordinatorInput::Declined {
                client,
                round,
                reason,
            },
            ClientMessage::Failed { round, reason } => CoordinatorInput::Failed {
                client,
                round,
                reason,
            },
            ClientMessage::Offer(offer) => CoordinatorInput::Offered { client, offer },
            ClientMessage::Leaving => CoordinatorInput::Leave { client },
            ClientMessage::Progress {
                round,
                step,
                steps,
                loss,
            } => return self.seats.progress(client, round, (step, steps), loss),
            // Connections let one hello through only.
            ClientMessage::Hello(_) => return,
        };
        self.feed(input);
    }

    fn stored(
        &mut self,
        stored: Stored,
        reply: oneshot::Sender<Result<(), BlobRefusal>>,
    ) -> Result<(), HostError> {
        let Stored {
            client,
            round,
            blob,
            norm,
        } = stored;
        if self.is_enrolled(client)? {
            let digest = blob.digest;
            self.feed(CoordinatorInput::Stored {
                client,
                round,
                digest,
                norm,
            });
        }
        let accepted = self
            .update_of(client)
            .is_some_and(|record| record.blob == blob);
        let answer = match accepted {
            true => Ok(()),
            false => Err(BlobRefusal::NotExpected),
        };
        if !accepted {
            self.discard(blob)?;
        }
        self.unanswered.push((reply, answer));
        Ok(())
    }

    fn averaged(&mut self, averaged: averaging::Averaged) -> Result<(), HostError> {
        let round = averaged.round;
        let refused = match averaged.result {
            Ok(next) => {
                self.next_optimizer = Some(next.state);
                self.feed(CoordinatorInput::Aggregated {
                    round,
                    adapter: next.adapter,
                    report: next.report,
                });
                return Ok(());
            }
            Err(failure) => match self.culprit(&failure) {
                Some(culprit) => culprit,
                None => return Err(HostError::Averaging(failure.to_string())),
            },
        };
        let (client, reason) = refused;
        self.feed(CoordinatorInput::Rejected {
            client,
            round,
            reason,
        });
        Ok(())
    }

    /// Which update is to blame: one that cannot be read back, or the longest if the step is not
    /// finite.
    fn culprit(&self, failure: &AveragingError) -> Option<(fedllm_shared::ClientId, RefuseReason)> {
        use crate::aggregate::AggregateError;
        match failure {
            AveragingError::Aggregate(AggregateError::Update { client, .. }) => {
                Some((*client, RefuseReason::Malformed))
            }
            AveragingError::Step(_) | AveragingError::Aggregate(AggregateError::Mean(_)) => {
                let members = self.coordinator.members().iter();
                let norms = members.filter_map(|(client, member)| match &member.state {
                    MemberState::Stored(record) => Some((*client, record.norm)),
                    _ => None,
                });
                let longest = norms.max_by(|a, b| a.1.total_cmp(&b.1));
                longest.map(|(client, _)| (client, RefuseReason::NormTooLarge))
            }
            _ => None,
        }
    }

    fn feed(&mut self, input: CoordinatorInput) {
        self.coordinator.handle(input, self.clock.now());
    }

    fn is_enrolled(&self, client: fedllm_shared::ClientId) -> Result<bool, HostError> {
        let row = self.store.client(client)?;
        Ok(row.is_some_and(|row| row.revoked_unix.is_none()))
    }

    /// The update of a client that counts in this round.
    fn update_of(&self, client: fedllm_shared::ClientId) -> Option<&UpdateRecord> {
        match &self.coordinator.members().get(&client)?.state {
            MemberState::Stored(record) => Some(record),
            _ => None,
        }
    }

    fn is_over(&self) -> bool {
        let finished = self.coordinator.status().phase == CoordinatorPhase::Finished;
        let waited = |until| tokio::time::Instant::now() >= until;
        finished
            && !self.keep_serving
            && (self.seats.is_empty() || self.closing.is_some_and(waited))
    }
}
