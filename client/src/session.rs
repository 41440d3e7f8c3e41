//! Taking part in a federation: carries out what the [`Participant`] decides, over a
//! [`Transport`], with a [`Trainer`].
//!
//! Everything waits in one place, the loop of [`Session::run`]. Training runs on a thread of its
//! own, transfers in tasks of their own; they report back as events. A connection that breaks
//! disturbs neither: the work goes on, and the next connection takes over.

mod link;
mod rounds;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fedllm_shared::{
    Adapter, BlobRef, DeclineReason, ErrorCode, Hello, Layout, LoraSpec, ModelVersion, PROTOCOL,
    Participant, ParticipantAction, ParticipantInput, ServerMessage, StopReason, Timestamp,
    UpdateOffer, decode_adapter,
};
use thiserror::Error;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::governor::{SleepWatch, StopFlag};
use crate::job::{Event, Job};
use crate::ledger::Meter;
use crate::net::{self, Dial, NetError, Transport};
use crate::notice::{Notice, Notices};
use crate::shard::Shard;
use crate::state::StateError;
use crate::store::RoundStore;
use crate::train::Trainer;
use crate::work::{Update, WorkError, Workshop, adapter_bound};

/// How often to look whether the machine slept, and to save the ledger.
const TICK: Duration = Duration::from_secs(5);

/// What a session is made of.
pub struct SessionParts<D> {
    /// Makes connections.
    pub dialer: D,
    /// Trains.
    pub trainer: Box<dyn Trainer>,
    /// The owner's data.
    pub shard: Shard,
    /// Rows that are not trained on: each round's adapter is scored on them, and their mean reported.
    pub held_out: Option<Shard>,
    /// What survives a crash.
    pub store: RoundStore,
    /// Counts what is sent.
    pub meter: Meter,
    /// Hears what happens.
    pub notices: Notices,
    /// Asks to leave.
    pub stop: StopFlag,
    /// The highest rank of an adapter that this client trains; any if absent.
    pub max_rank: Option<u32>,
    /// Leave after so many updates that the server has received.
    pub max_rounds: Option<u64>,
    /// Spreads waiting times; each client should have its own.
    pub seed: u64,
}

/// How a session ended well.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Ending {
    /// The run is over.
    Finished {
        /// The last version.
        version: ModelVersion,
        /// The last adapter and what kind it is; absent if this client was never asked to train.
        adapter: Option<(LoraSpec, Adapter)>,
    },
    /// It was asked to stop, or did as many rounds as it should.
    Left,
}

/// Why a session cannot go on.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The network fails in a way that waiting does not mend.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The server will not have this client.
    #[error("the server turned this client away: {message}")]
    Rejected {
        /// What is wrong.
        code: ErrorCode,
        /// The server's words.
        message: String,
    },
    /// The server's task is not one for this client.
    #[error("the server asks for something that this client cannot do: {0}")]
    Unfit(DeclineReason),
    /// Training fails again and again.
    #[error("training failed {failures} times in a row")]
    Training {
        /// How often.
        failures: u32,
        /// Why it failed the last time.
        source: WorkError,
    },
    /// The state cannot be kept. An update that was ready has been sent all the same.
    #[error(transparent)]
    State(#[from] StateError),
}

/// One client of one federation, for as long as it takes part.
pub struct Session<D: Dial> {
    dialer: D,
    link: Option<D::Transport>,
    participant: Participant,
    workshop: Workshop,
    store: RoundStore,
    meter: Meter,
    notices: Notices,
    stop: StopFlag,
    max_rounds: Option<u64>,
    rounds_done: u64,
    failures: u32,
    job: Option<Job>,
    /// Jobs that were told to stop and are in their last step.
    ending: Vec<JoinHandle<()>>,
    upload: Option<JoinHandle<()>>,
    /// An update that is to be sent, as long as it is in memory.
    update: Option<Update>,
    /// What the last round of work was offered with, for the ledger.
    offer: Option<UpdateOffer>,
    /// What kind of adapter the run trains, once a task has told.
    kind: Option<(LoraSpec, Arc<Layout>)>,
    /// The first failure that makes it pointless to go on after this update.
    doomed: Option<SessionError>,
    leaving: bool,
    events: UnboundedReceiver<Event>,
    sender: UnboundedSender<Event>,
    started: Instant,
    next_tick: Instant,
    last_progress: Option<Instant>,
    sleep: SleepWatch,
}

impl<D: Dial> Session<D> {
    /// Prepares to take part, going on where the store says.
    ///
    /// # Errors
    ///
    /// [`SessionError::State`] if the store is damaged.
    pub fn new(parts: SessionParts<D>) -> Result<Self, SessionError> {
        let state = parts.store.load()?;
        let held = state.held.clone();
        parts
            .store
            .discard_others(held.as_ref().map(|offer| offer.blob.digest))?;
        let hello = hello(&*parts.trainer, &parts.shard, parts.max_rank);
        let participant = Participant::new(hello, state, parts.seed, Timestamp::ZERO);
        let (sender, events) = unbounded_channel();
        let now = Instant::now();
        let mut session = Self {
            dialer: parts.dialer,
            link: None,
            participant,
            workshop: Workshop::new(
                parts.trainer,
                parts.shard,
                parts.held_out,
                parts.store.clone(),
            ),
            store: parts.store,
            meter: parts.meter,
            notices: parts.notices,
            stop: parts.stop,
            max_rounds: parts.max_rounds,
            rounds_done: 0,
            failures: 0,
            job: None,
            ending: Vec::new(),
            upload: None,
            update: None,
            offer: held.clone(),
            kind: None,
            doomed: None,
            leaving: false,
            events,
            sender,
            started: now,
            next_tick: now + TICK,
            last_progress: None,
            sleep: SleepWatch::new(TICK),
        };
        if let Some(offer) = held {
            session.reload(offer)?;
        }
        Ok(session)
    }

    /// Takes part until the run is over, the owner wants to stop, or it cannot go on.
    ///
    /// # Errors
    ///
    /// [`SessionError`]. Whatever is worth keeping has been kept.
    pub async fn run(mut self) -> Result<Ending, SessionError> {
        let ending = self.take_part().await;
        if let Some(link) = self.link.take() {
            link.close().await;
        }
        self.end_job();
        for ending in self.ending.drain(..) {
            // Whatever it says, it has ended.
            let _ = ending.await;
        }
        self.save_ledger();
        match (ending, self.doomed) {
            (Ok(Ending::Left), Some(error)) => Err(error),
            (ending, _) => ending,
        }
    }

    async fn take_part(&mut self) -> Result<Ending, SessionError> {
        loop {
            while let Some(action) = self.participant.poll() {
                if let Some(ending) = self.act(action).await? {
                    return Ok(ending);
                }
            }
            if self.doomed.is_some() && !self.leaving && self.is_idle() {
                self.leave();
                continue;
            }
            let wake = self.wake();
            tokio::select! {
                biased;
                () = self.stop.stopped(), if !self.leaving => self.leave(),
                Some(event) = self.events.recv() => self.event(event),
                message = receive(&mut self.link) => match message {
                    Ok(message) => self.message(message),
                    Err(error) => self.lost(error)?,
                },
                () = sleep_until(wake) => self.tick(),
            }
        }
    }

    async fn act(&mut self, action: ParticipantAction) -> Result<Option<Ending>, SessionError> {
        match action {
            ParticipantAction::Connect => self.connect().await?,
            ParticipantAction::Disconnect => self.disconnect(),
            ParticipantAction::Send(message) => self.send(message).await?,
            ParticipantAction::Persist => {
                let saved = self.store.save(self.participant.state());
                self.note_state(saved);
            }
            ParticipantAction::Train(task) => {
                self.end_job();
                let job = Job::start(*task, self.workshop.clone(), self.sender.clone());
                self.job = Some(job);
            }
            ParticipantAction::StopTraining { .. } => self.end_job(),
            ParticipantAction::Upload { offer, .. } => self.upload(&offer),
            ParticipantAction::Discard(digest) => {
                self.update
                    .take_if(|update| update.offer.blob.digest == digest);
                let discarded = self.store.discard_delta(digest);
                self.note_state(discarded);
            }
            ParticipantAction::Welcomed(welcome) => (self.notices)(Notice::Connected {
                federation: welcome.federation,
                round: welcome.round.0,
                rounds: welcome.rounds,
            }),
            ParticipantAction::Counted { round } => self.counted(round),
            ParticipantAction::RoundClosed(summary) => (self.notices)(Notice::RoundClosed {
                round: summary.round.0,
                version: summary.version.0,
                updates: summary.updates,
                loss: summary.loss,
            }),
            ParticipantAction::Stop(reason) => return self.stopped(reason).await.map(Some),
        }
        Ok(None)
    }

    async fn stopped(&mut self, reason: StopReason) -> Result<Ending, SessionError> {
        match reason {
            StopReason::Left => Ok(Ending::Left),
            StopReason::Refused { code, message } => {
                let message = net::readable(message.as_bytes());
                Err(SessionError::Rejected { code, message })
            }
            StopReason::Finished { version, adapter } => {
                let adapter = self.final_adapter(adapter).await;
                (self.notices)(Notice::Finished { version: version.0 });
                Ok(Ending::Finished { version, adapter })
            }
        }
    }

    /// Fetches what the run has come to, if that goes without trouble.
    async fn final_adapter(&mut self, blob: BlobRef) -> Option<(LoraSpec, Adapter)> {
        let streams = self.link.as_ref()?.streams();
        let (lora, layout) = self.kind.clone()?;
        if blob.len > adapter_bound(&layout) {
            return None;
        }
        let mut received = Vec::new();
        let fetched = net::get(&streams, blob, &mut received, &self.meter).await;
        let fetched = fetched
            .map_err(|error| error.to_string())
            .and_then(|()| decode_adapter(&received, &layout).map_err(|error| error.to_string()));
        match fetched {
            Ok(adapter) => Some((lora, adapter)),
            Err(error) => {
                tracing::warn!(%error, "the final adapter could not be fetched");
                None
            }
        }
    }

    fn tick(&mut self) {
        let (now, wall) = (Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH));
        if now >= self.next_tick {
            self.next_tick = now + TICK;
            let slept = self
                .sleep
                .look(now - self.started, wall.unwrap_or(Duration::ZERO));
            if let (Some(slept), Some(_)) = (slept, &self.link) {
                tracing::info!(
                    seconds = slept.as_secs(),
                    "this machine slept; connecting again"
                );
                // A transient loss is never an error.
                let _ = self.lost(NetError::Lost("this machine slept".to_owned()));
            }
            self.save_ledger();
        }
        if let Some(job) = self.job.as_mut() {
            job.fetch(self.link.as_ref(), &self.meter);
        }
        let now = self.now();
        self.participant.handle_timeout(now);
    }

    fn wake(&self) -> Instant {
        let timeout = self.participant.poll_timeout();
        let timeout = timeout.map(|at| self.started + Duration::from_millis(at.0));
        let fetch = self
            .job
            .as_ref()
            .and_then(Job::retry_at)
            .filter(|_| self.link.is_some());
        [timeout, fetch]
            .into_iter()
            .flatten()
            .fold(self.next_tick, Instant::min)
    }

    fn leave(&mut self) {
        self.leaving = true;
        self.input(ParticipantInput::Leave);
    }

    /// Ends the session with this error, politely.
    fn give_up(&mut self, error: SessionError) {
        self.doomed.get_or_insert(error);
        self.leave();
    }

    /// A disk that fails ends the session, but not before the update in hand is sent.
    fn note_state(&mut self, result: Result<(), StateError>) {
        if let Err(error) = result {
            tracing::error!(%error, "what must survive a crash cannot be kept");
            self.doomed.get_or_insert(error.into());
        }
    }

    /// Whether no work is under way and no update waits for a receipt.
    fn is_idle(&self) -> bool {
        self.job.is_none() && self.participant.state().held.is_none()
    }

    fn save_ledger(&mut self) {
        let ledger = self.meter.ledger();
        if let Err(error) = self.store.save_ledger(&ledger) {
            tracing::warn!(%error, "the ledger cannot be saved");
        }
    }

    fn input(&mut self, input: ParticipantInput) {
        let now = self.now();
        self.participant.handle(input, now);
    }

    fn now(&self) -> Timestamp {
        Timestamp::ZERO + self.started.elapsed()
    }
}

async fn receive<T: Transport>(link: &mut Option<T>) -> Result<ServerMessage, NetError> {
    match link {
        Some(link) => link.receive().await,
        None => std::future::pending().await,
    }
}

fn hello(trainer: &dyn Trainer, shard: &Shard, max_rank: Option<u32>) -> Hello {
    Hello {
        protocol: PROTOCOL,
        client_version: env!("CARGO_PKG_VERSION").to_owned(),
        device: trainer.device(),
        shard_rows: shard.units() as u64,
        shard_loss_tokens: shard.loss_tokens(),
        tokenizer: shard.tokenizer(),
        template: shard.template(),
        base: trainer.base(),
        resume: None,
        shard_kind: shard.kind(),
        max_rank,
    }
}

#[cfg(test)]
mod tests;
