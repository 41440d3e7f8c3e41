//! The thread that drives the coordinator: the only place of a run with a clock and randomness.
//!
//! Inputs come from connections through a [`HostHandle`]. What the coordinator then wants done is
//! done in order, and nothing is said to a client before what it rests on is in the record. Several
//! inputs that wait together share one write to disk.

mod averaging;
mod clock;
mod effects;
mod handle;
mod intake;
mod journal;
mod measuring;
mod seats;
mod setup;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use burn::tensor::Device;
use fedllm_shared::{
    BlobRefusal, ClientId, Coordinator, CoordinatorPhase, ErrorCode, Federation, ServerState,
};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tracing::{error, info};

use crate::admin::Metrics;
use crate::aggregate::Layouts;
use crate::base::Base;
use crate::central::Central;
use crate::store::{DirBlobs, RunStore, StoreError};
use clock::Clock;
pub(crate) use handle::{HostHandle, Input, Outgoing, Session, Stored, Traffic};
use journal::Journal;
use measuring::Measuring;
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
    /// The algorithm cannot work with the adapter's layout.
    #[error(transparent)]
    LowRank(#[from] fedllm_shared::LowRankError),
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

impl HostError {
    /// The failure, and what to do about it where that is known.
    fn advice(&self) -> String {
        match self {
            Self::Store(store) if store.is_full() => {
                format!("{self}; free some space and start it again: nothing acknowledged is lost")
            }
            failure => failure.to_string(),
        }
    }
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
    /// What measures new versions.
    pub(crate) central: Option<Central>,
    pub(crate) keep_serving: bool,
}

/// Drives one run.
pub(crate) struct Host {
    federation: Federation,
    coordinator: Coordinator,
    layouts: Layouts,
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
    measuring: Measuring,
    keep_serving: bool,
    /// Whose updates are in the last mean, as far as they have not been told that the run is over.
    contributors: BTreeSet<ClientId>,
    /// When clients have had their time to fetch the last adapter.
    closing: Option<tokio::time::Instant>,
    /// Uploads whose answer waits for the next commit.
    unanswered: Vec<(oneshot::Sender<Verdict>, Verdict)>,
    inputs: mpsc::Receiver<Input>,
    handle: HostHandle,
    ended: watch::Sender<Option<Ended>>,
}

/// Whether an upload counts.
type Verdict = Result<(), BlobRefusal>;

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
                Some(Ended::Failed(failure.advice()))
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
        self.measure_if_due()?;
        if self.is_over() {
            info!("all rounds are done; with --keep-serving clients can still fetch the adapter");
        }
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

    /// Whether all rounds are done, those who made the last one have what came of it, and it is
    /// measured.
    fn is_over(&self) -> bool {
        let finished = self.coordinator.status().phase == CoordinatorPhase::Finished;
        let waited = |until| tokio::time::Instant::now() >= until;
        let told = self.seats.is_empty() && self.contributors.is_empty();
        let parted = told || self.closing.is_some_and(waited);
        finished && !self.keep_serving && parted && !self.measuring.is_busy()
    }
}
