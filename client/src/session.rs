//! Taking part in a federation: carries out what the [`Participant`] decides, over a
//! [`Transport`], with a [`Trainer`].
//!
//! Everything waits in one place, the loop of [`Session::run`]. Training runs on a thread of its
//! own, transfers in tasks of their own; they report back as events. A connection that breaks
//! disturbs neither: the work goes on, and the next connection takes over.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fedllm_shared::{
    Adapter, BlobRef, ClientMessage, DeclineReason, ErrorCode, FailReason, Hello, Layout, LoraSpec,
    ModelVersion, PROTOCOL, Participant, ParticipantAction, ParticipantInput, RefuseReason,
    RoundId, ServerMessage, StopReason, Timestamp, UpdateOffer, decode_adapter,
};
use thiserror::Error;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::governor::{SleepWatch, StopFlag};
use crate::job::{Event, Job, Report};
use crate::ledger::{Kind, Meter, Outcome, RoundRecord};
use crate::net::{self, Dial, NetError, Transport};
use crate::notice::{Notice, Notices};
use crate::shard::Shard;
use crate::state::StateError;
use crate::store::RoundStore;
use crate::train::{StepReport, TrainError, Trainer};
use crate::work::{Update, WorkError, Workshop, adapter_bound};

/// How often to look whether the machine slept, and to save the ledger.
const TICK: Duration = Duration::from_secs(5);
/// The server hears of the training at most this often.
const PROGRESS: Duration = Duration::from_secs(1);
/// After so many rounds in a row that failed here, something is wrong here.
const FAILURES: u32 = 3;

/// What a session is made of.
pub struct SessionParts<D> {
    /// Makes connections.
    pub dialer: D,
    /// Trains.
    pub trainer: Box<dyn Trainer>,
    /// The owner's data.
    pub shard: Shard,
    /// What survives a crash.
    pub store: RoundStore,
    /// Counts what is sent.
    pub meter: Meter,
    /// Hears what happens.
    pub notices: Notices,
    /// Asks to leave.
    pub stop: StopFlag,
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
        parts.store.discard_others(held.as_ref().map(|offer| offer.blob.digest))?;
        let hello = hello(&*parts.trainer, &parts.shard);
        let participant = Participant::new(hello, state, parts.seed, Timestamp::ZERO);
        let (sender, events) = unbounded_channel();
        let now = Instant::now();
        let mut session = Self {
            dialer: parts.dialer,
            link: None,
            participant,
            workshop: Workshop::new(parts.trainer, parts.shard),
            store: parts.store,
            meter: parts.meter,
            notices: parts.notices,
            stop: parts.stop,
            max_rounds: parts.max_rounds,
            rounds_done: 0,
            failures: 0,
            job: None,
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
        if let Some(job) = self.job.take() {
            job.end().await;
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
                self.update.take_if(|update| update.offer.blob.digest == digest);
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

    async fn connect(&mut self) -> Result<(), SessionError> {
        let dialed = tokio::select! {
            biased;
            () = self.stop.stopped(), if !self.leaving => {
                Err(NetError::Lost("stopped".to_owned()))
            }
            dialed = self.dialer.dial() => dialed,
        };
        match dialed {
            Ok(link) => {
                self.link = Some(link);
                self.input(ParticipantInput::Connected);
            }
            Err(error) => self.lost(error)?,
        }
        Ok(())
    }

    fn disconnect(&mut self) {
        if let Some(link) = self.link.take() {
            // A goodbye takes a moment, and nothing waits for it; at the end `run` does.
            tokio::spawn(link.close());
        }
    }

    async fn send(&mut self, message: ClientMessage) -> Result<(), SessionError> {
        self.note_sent(&message);
        let Some(link) = &mut self.link else { return Ok(()) };
        match link.send(&message).await {
            Ok(bytes) => self.meter.count(kind(&message), bytes),
            Err(error) => self.lost(error)?,
        }
        if message == ClientMessage::Leaving {
            // The goodbye itself must arrive before the program ends.
            if let Some(link) = self.link.take() {
                link.close().await;
            }
        }
        Ok(())
    }

    /// Tells the owner of a task that is not done here.
    fn note_sent(&mut self, message: &ClientMessage) {
        let ClientMessage::Decline { round, reason } = message else { return };
        (self.notices)(Notice::Failed { round: round.0, reason: reason.to_string() });
        let lasting = match reason {
            DeclineReason::StaleRound | DeclineReason::Paused => false,
            DeclineReason::WrongBase
            | DeclineReason::WrongLayout
            | DeclineReason::OutOfBounds
            | DeclineReason::Unsupported => true,
        };
        if lasting {
            self.give_up(SessionError::Unfit(*reason));
        }
    }

    /// The connection is gone, or could not be made.
    fn lost(&mut self, error: NetError) -> Result<(), SessionError> {
        self.disconnect();
        if !error.is_transient() {
            return Err(error.into());
        }
        self.input(ParticipantInput::Disconnected);
        let now = self.now();
        let retry = self.participant.poll_timeout().map_or(Duration::ZERO, |at| at.since(now));
        (self.notices)(Notice::Disconnected {
            reason: error.to_string(),
            retry_seconds: retry.as_secs_f64(),
        });
        Ok(())
    }

    fn message(&mut self, message: ServerMessage) {
        match &message {
            ServerMessage::Wait { reason, .. } => {
                (self.notices)(Notice::Waiting { reason: reason.to_string() });
            }
            ServerMessage::Refused { round, reason } => self.refused(*round, *reason),
            _ => {}
        }
        self.input(ParticipantInput::Message(message));
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Uploaded { round, result } => self.uploaded(round, result),
            Event::Job { id, report } => {
                if let Some(job) = self.job.take_if(|job| job.id() == id) {
                    self.job = self.job_went_on(job, report);
                }
            }
        }
    }

    fn job_went_on(&mut self, mut job: Job, report: Report) -> Option<Job> {
        match report {
            Report::Fits(layout) => {
                self.kind = Some((job.task().lora.clone(), Arc::clone(&layout)));
                job.fits(layout);
                job.fetch(self.link.as_ref(), &self.meter);
                Some(job)
            }
            Report::Fetched { received, result } => match job.fetched(received, result) {
                Ok(training) => {
                    if training {
                        let (round, steps) = (job.task().round.0, job.task().local.steps);
                        (self.notices)(Notice::TrainingStarted { round, steps });
                    }
                    Some(job)
                }
                Err(error) => {
                    self.failed(&job, error);
                    None
                }
            },
            Report::Step(step) => {
                self.step(job.task().round, step);
                Some(job)
            }
            Report::Done(Ok(update)) => {
                self.trained(update);
                None
            }
            Report::Done(Err(error)) => {
                self.failed(&job, error);
                None
            }
        }
    }

    fn step(&mut self, round: RoundId, report: StepReport) {
        let StepReport { step, steps, loss, tokens, seconds, .. } = report;
        (self.notices)(Notice::Step { round: round.0, step, steps, loss, tokens, seconds });
        let now = Instant::now();
        let due = self.last_progress.is_none_or(|last| now >= last + PROGRESS);
        if due || step == steps {
            self.last_progress = Some(now);
            self.input(ParticipantInput::Progress { round, step, steps, loss });
        }
    }

    fn trained(&mut self, update: Update) {
        self.failures = 0;
        // On a full disk the update is sent from memory all the same; see `note_state`.
        let saved = self.store.save_delta(update.offer.blob.digest, &update.blob);
        self.note_state(saved);
        let offer = update.offer.clone();
        self.update = Some(update);
        self.offer = Some(offer.clone());
        self.input(ParticipantInput::Trained(offer));
    }

    /// The work of a round came to nothing.
    fn failed(&mut self, job: &Job, error: WorkError) {
        let round = job.task().round;
        if matches!(error, WorkError::Train(TrainError::Stopped { .. })) {
            self.input(ParticipantInput::TrainFailed { round, reason: FailReason::Stopped });
            return;
        }
        if let Some(reason) = error.decline_reason() {
            tracing::error!(round = round.0, %error, "this task cannot be done here");
            self.input(ParticipantInput::Unfit { round, reason });
            return;
        }
        tracing::warn!(round = round.0, error = %describe(&error), "this round's work failed");
        (self.notices)(Notice::Failed { round: round.0, reason: describe(&error) });
        self.meter.record(failure(round, describe(&error)));
        self.input(ParticipantInput::TrainFailed { round, reason: error.fail_reason() });
        self.failures += 1;
        if self.failures >= FAILURES {
            self.give_up(SessionError::Training { failures: self.failures, source: error });
        }
    }

    fn upload(&mut self, offer: &UpdateOffer) {
        if let Some(old) = self.upload.take() {
            old.abort();
        }
        let loaded = match self.update.take_if(|update| update.offer.blob == offer.blob) {
            Some(update) => Some(update),
            None => self.reload(offer.clone()).ok().and_then(|()| self.update.take()),
        };
        let (Some(update), Some(link)) = (loaded, &self.link) else { return };
        let (round, bytes) = (offer.round, update.blob.clone());
        self.update = Some(update);
        (self.notices)(Notice::Uploading { round: round.0, bytes: bytes.len() as u64 });
        let (streams, meter, sender) = (link.streams(), self.meter.clone(), self.sender.clone());
        self.upload = Some(tokio::spawn(async move {
            let result = net::put(&streams, round, &bytes, &meter).await;
            // The session may have ended meanwhile.
            let _ = sender.send(Event::Uploaded { round, result });
        }));
    }

    fn uploaded(&mut self, round: RoundId, result: Result<(), NetError>) {
        let Err(error) = result else { return };
        tracing::warn!(round = round.0, %error, "the upload broke off");
        if self.link.is_some() {
            self.input(ParticipantInput::UploadFailed { round });
        }
    }

    fn counted(&mut self, round: RoundId) {
        self.rounds_done += 1;
        let offer = self.offer.take_if(|offer| offer.round == round);
        let record = record(round, Outcome::Received, None, offer.as_ref());
        (self.notices)(Notice::Received {
            round: round.0,
            loss_first: record.loss_first,
            loss_last: record.loss_last,
            bytes: record.delta_bytes,
        });
        self.meter.record(record);
        self.save_ledger();
        if self.max_rounds.is_some_and(|max| self.rounds_done >= max) || self.doomed.is_some() {
            self.leave();
        }
    }

    fn refused(&mut self, round: RoundId, reason: RefuseReason) {
        let reason = reason.to_string();
        let offer = self.offer.take_if(|offer| offer.round == round);
        let record = record(round, Outcome::Refused, Some(reason.clone()), offer.as_ref());
        self.meter.record(record);
        (self.notices)(Notice::Refused { round: round.0, reason });
        if self.doomed.is_some() {
            self.leave();
        }
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
        let fetched = fetched.map_err(|error| error.to_string()).and_then(|()| {
            decode_adapter(&received, &layout).map_err(|error| error.to_string())
        });
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
            let slept = self.sleep.look(now - self.started, wall.unwrap_or(Duration::ZERO));
            if let (Some(slept), Some(_)) = (slept, &self.link) {
                tracing::info!(seconds = slept.as_secs(), "this machine slept; connecting again");
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
        let fetch = self.job.as_ref().and_then(Job::retry_at).filter(|_| self.link.is_some());
        [timeout, fetch].into_iter().flatten().fold(self.next_tick, Instant::min)
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
        let Err(error) = result else { return };
        tracing::error!(%error, "what must survive a crash cannot be kept");
        self.doomed.get_or_insert(error.into());
        if self.participant.state().held.is_none() && self.job.is_none() {
            self.leave();
        }
    }

    fn reload(&mut self, offer: UpdateOffer) -> Result<(), SessionError> {
        match self.store.load_delta(offer.blob)? {
            Some(blob) => self.update = Some(Update { offer, blob }),
            None => {
                tracing::warn!(round = offer.round.0, "the update that was kept is gone");
                self.input(ParticipantInput::HeldLost);
            }
        }
        Ok(())
    }

    fn end_job(&mut self) {
        if let Some(job) = self.job.take() {
            tokio::spawn(job.end());
        }
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

fn hello(trainer: &dyn Trainer, shard: &Shard) -> Hello {
    Hello {
        protocol: PROTOCOL,
        client_version: env!("CARGO_PKG_VERSION").to_owned(),
        device: trainer.device(),
        shard_rows: shard.rows() as u64,
        shard_loss_tokens: shard.loss_tokens(),
        tokenizer: shard.tokenizer(),
        template: shard.template(),
        base: trainer.base(),
        resume: None,
    }
}

fn kind(message: &ClientMessage) -> Kind {
    match message {
        ClientMessage::Hello(_) => Kind::Hello,
        ClientMessage::Progress { .. } => Kind::Progress,
        ClientMessage::Offer(_) => Kind::Offer,
        ClientMessage::Accept { .. }
        | ClientMessage::Decline { .. }
        | ClientMessage::Failed { .. }
        | ClientMessage::Leaving => Kind::Answer,
    }
}

fn failure(round: RoundId, reason: String) -> RoundRecord {
    record(round, Outcome::Failed, Some(reason), None)
}

fn record(
    round: RoundId,
    outcome: Outcome,
    reason: Option<String>,
    offer: Option<&UpdateOffer>,
) -> RoundRecord {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    RoundRecord {
        round: round.0,
        outcome,
        reason,
        loss_first: offer.map(|offer| offer.metrics.loss_first),
        loss_last: offer.map(|offer| offer.metrics.loss_last),
        rows: offer.map_or(0, |offer| offer.rows),
        loss_tokens: offer.map_or(0, |offer| offer.loss_tokens),
        delta_bytes: offer.map_or(0, |offer| offer.blob.len),
        seconds: offer.map_or(0.0, |offer| offer.metrics.seconds),
        ended: now.as_secs(),
    }
}

/// An error with its causes, in one line.
fn describe(error: &WorkError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
