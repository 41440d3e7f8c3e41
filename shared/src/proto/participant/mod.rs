//! The client's side of a run.

mod io;

use std::collections::VecDeque;
use std::time::Duration;

pub use self::io::{ParticipantAction, ParticipantInput, ParticipantState, StopReason};
use super::backoff::Backoff;
use crate::id::{Digest, ModelVersion, RoundId, RunId};
use crate::time::Timestamp;
use crate::wire::{
    BlobRef, ClientMessage, DeclineReason, ErrorCode, FailReason, HeldOutScore, Hello,
    RoundSummary, ServerMessage, TrainTask, UpdateOffer, Welcome,
};

/// How long a server may take to answer `Hello`.
const GREETING: Duration = Duration::from_secs(30);

/// The client's side of a run: when it connects, what it trains, what it still owes.
///
/// The session feeds [`ParticipantInput`]s and carries out the actions that
/// [`Participant::poll`] gives, in order. Connection and work are apart: a
/// client trains on while its server is away, and an update is kept, through
/// restarts too, until the server has answered for it.
#[derive(Clone, Debug)]
pub struct Participant {
    hello: Hello,
    link: Link,
    training: Option<Box<TrainTask>>,
    state: ParticipantState,
    /// Whether the held update is on its way.
    uploading: bool,
    /// When to offer an update again whose upload failed.
    retry_at: Option<Timestamp>,
    paused: bool,
    backoff: Backoff,
    actions: VecDeque<ParticipantAction>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Offline { until: Timestamp },
    Connecting,
    Greeting { until: Timestamp },
    Online,
    Stopped,
}

impl Participant {
    /// Begins or goes on, from what was remembered.
    ///
    /// `seed` spreads the waits of clients; each should have its own.
    pub fn new(hello: Hello, state: ParticipantState, seed: u64, now: Timestamp) -> Self {
        Self {
            hello,
            link: Link::Offline { until: now },
            training: None,
            state,
            uploading: false,
            retry_at: None,
            paused: false,
            backoff: Backoff::new(seed),
            actions: VecDeque::new(),
        }
    }

    /// Takes in what happened.
    pub fn handle(&mut self, input: ParticipantInput, now: Timestamp) {
        use ParticipantInput as Input;
        if self.link == Link::Stopped {
            return;
        }
        match input {
            Input::Connected => self.connected(now),
            Input::Disconnected => self.disconnected(now),
            Input::Message(message) => self.message(message, now),
            Input::Progress {
                round,
                step,
                steps,
                loss,
            } => self.progress(round, step, steps, loss),
            Input::Scored { round, score } => self.scored(round, score),
            Input::Trained(offer) => self.trained(offer),
            Input::TrainFailed { round, reason } => {
                self.drop_task(round, ClientMessage::Failed { round, reason });
            }
            Input::Unfit { round, reason } => {
                self.drop_task(round, ClientMessage::Decline { round, reason });
            }
            Input::UploadFailed { round } => self.upload_failed(round, now),
            Input::HeldLost => self.held_lost(),
            Input::SetPaused(paused) => self.paused = paused,
            Input::Leave => self.leave(),
        }
    }

    /// Takes in that time has passed.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        match self.link {
            Link::Offline { until } if until <= now => {
                self.link = Link::Connecting;
                self.act(ParticipantAction::Connect);
            }
            Link::Greeting { until } if until <= now => {
                self.act(ParticipantAction::Disconnect);
                self.disconnected(now);
            }
            Link::Online if self.retry_at.is_some_and(|at| at <= now) => {
                self.retry_at = None;
                self.offer();
            }
            _ => {}
        }
    }

    /// What is to be done next, if anything.
    pub fn poll(&mut self) -> Option<ParticipantAction> {
        self.actions.pop_front()
    }

    /// When [`Participant::handle_timeout`] wants to be called, if nothing happens before.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        match self.link {
            Link::Offline { until } | Link::Greeting { until } => Some(until),
            Link::Online => self.retry_at,
            Link::Connecting | Link::Stopped => None,
        }
    }

    /// What must be remembered from one start to the next.
    pub fn state(&self) -> &ParticipantState {
        &self.state
    }

    /// The task that is being worked on.
    pub fn training(&self) -> Option<&TrainTask> {
        self.training.as_deref()
    }

    /// Whether the server has welcomed this client and the connection holds.
    pub fn is_online(&self) -> bool {
        self.link == Link::Online
    }

    fn connected(&mut self, now: Timestamp) {
        if self.link != Link::Connecting {
            return;
        }
        let until = now + GREETING;
        self.link = Link::Greeting { until };
        let held = self.state.held.as_ref();
        let mut hello = self.hello.clone();
        hello.resume = held.map(|offer| (offer.round, offer.blob.digest));
        self.act(ParticipantAction::Send(ClientMessage::Hello(hello)));
    }

    fn disconnected(&mut self, now: Timestamp) {
        let until = now + self.backoff.next_wait();
        self.link = Link::Offline { until };
        self.uploading = false;
        self.retry_at = None;
    }

    fn message(&mut self, message: ServerMessage, now: Timestamp) {
        match (self.link, message) {
            (Link::Greeting { .. }, ServerMessage::Welcome(welcome)) => self.welcomed(welcome),
            (Link::Greeting { .. } | Link::Online, ServerMessage::Error { code, message }) => {
                self.error(code, message, now);
            }
            (Link::Online, ServerMessage::Task(task)) => self.task(task),
            (Link::Online, ServerMessage::Ready { round, offset }) => self.ready(round, offset),
            (Link::Online, ServerMessage::Receipt { round, digest }) => {
                self.receipt(round, digest);
            }
            (Link::Online, ServerMessage::Refused { round, .. }) => self.refused(round),
            (Link::Online, ServerMessage::RoundClosed(summary)) => self.round_closed(summary),
            (Link::Online, ServerMessage::Finished { version, adapter }) => {
                self.finished(version, adapter);
            }
            // `Wait` needs nothing done, and nothing else is said in this state.
            _ => {}
        }
    }

    fn welcomed(&mut self, welcome: Welcome) {
        self.link = Link::Online;
        self.backoff.reset();
        if self.state.run != Some(welcome.run) {
            self.enter(welcome.run);
        }
        self.act(ParticipantAction::Welcomed(welcome));
        self.offer();
    }

    /// Forgets another run and begins this one.
    fn enter(&mut self, run: RunId) {
        self.stop_training();
        let old = std::mem::take(&mut self.state);
        self.state.run = Some(run);
        self.act(ParticipantAction::Persist);
        if let Some(offer) = old.held {
            self.act(ParticipantAction::Discard(offer.blob.digest));
        }
    }

    fn error(&mut self, code: ErrorCode, message: String, now: Timestamp) {
        if code.is_temporary() {
            self.act(ParticipantAction::Disconnect);
            self.disconnected(now);
            return;
        }
        self.stop_training();
        self.act(ParticipantAction::Disconnect);
        self.stop(StopReason::Refused { code, message });
    }

    fn task(&mut self, task: Box<TrainTask>) {
        let round = task.round;
        if self
            .state
            .held
            .as_ref()
            .is_some_and(|held| held.round == round)
        {
            self.offer();
            return;
        }
        if self.training.as_ref().is_some_and(|own| own.round == round) {
            self.say(ClientMessage::Accept { round });
            return;
        }
        if let Err(reason) = self.check(&task) {
            self.say(ClientMessage::Decline { round, reason });
            return;
        }
        self.stop_training();
        self.discard_held();
        self.training = Some(task.clone());
        self.say(ClientMessage::Accept { round });
        self.act(ParticipantAction::Train(task));
    }

    fn check(&self, task: &TrainTask) -> Result<(), DeclineReason> {
        let done = self.state.last_round.is_some_and(|last| task.round <= last);
        if done || task.version < self.state.last_version || Some(task.run) != self.state.run {
            return Err(DeclineReason::StaleRound);
        }
        if task.base != self.hello.base {
            return Err(DeclineReason::WrongBase);
        }
        if task.check().is_err() {
            return Err(DeclineReason::OutOfBounds);
        }
        if task.objective.rows() != self.hello.shard_kind {
            return Err(DeclineReason::WrongRows);
        }
        if self.hello.max_rank.is_some_and(|max| task.lora.rank > max) {
            return Err(DeclineReason::OutOfBounds);
        }
        if self.paused {
            return Err(DeclineReason::Paused);
        }
        Ok(())
    }

    fn progress(&mut self, round: RoundId, step: u32, steps: u32, loss: f32) {
        if self.is_training(round) {
            self.say(ClientMessage::Progress {
                round,
                step,
                steps,
                loss,
            });
        }
    }

    /// A score that is not heard, or says nothing, is not said again.
    fn scored(&mut self, round: RoundId, score: HeldOutScore) {
        if self.is_training(round) && score.is_sound() {
            self.say(ClientMessage::Evaluated { round, score });
        }
    }

    fn trained(&mut self, offer: UpdateOffer) {
        if !self.is_training(offer.round) {
            // The round was given up meanwhile.
            self.act(ParticipantAction::Discard(offer.blob.digest));
            return;
        }
        self.training = None;
        self.state.held = Some(offer);
        self.act(ParticipantAction::Persist);
        self.offer();
    }

    fn drop_task(&mut self, round: RoundId, message: ClientMessage) {
        if self.is_training(round) {
            self.training = None;
            self.say(message);
        }
    }

    /// Offers the held update, if there is one and someone to offer it to.
    fn offer(&mut self) {
        if let Some(offer) = self.state.held.clone() {
            self.say(ClientMessage::Offer(offer));
        }
    }

    fn ready(&mut self, round: RoundId, offset: u64) {
        let held = self.state.held.clone().filter(|_| !self.uploading);
        if let Some(offer) = held.filter(|offer| offer.round == round) {
            self.uploading = true;
            self.retry_at = None;
            self.act(ParticipantAction::Upload { offer, offset });
        }
    }

    fn upload_failed(&mut self, round: RoundId, now: Timestamp) {
        let held = self.state.held.as_ref();
        if held.is_some_and(|offer| offer.round == round) && self.link == Link::Online {
            self.uploading = false;
            self.retry_at = Some(now + self.backoff.next_wait());
        }
    }

    fn held_lost(&mut self) {
        self.uploading = false;
        if let Some(offer) = self.state.held.take() {
            let (round, reason) = (offer.round, FailReason::Internal);
            self.act(ParticipantAction::Persist);
            self.say(ClientMessage::Failed { round, reason });
        }
    }

    fn receipt(&mut self, round: RoundId, digest: Digest) {
        let held = self.state.held.as_ref();
        if !held.is_some_and(|offer| offer.round == round && offer.blob.digest == digest) {
            return;
        }
        self.state.last_round = self.state.last_round.max(Some(round));
        self.backoff.reset();
        self.discard_held();
        self.act(ParticipantAction::Counted { round });
    }

    fn refused(&mut self, round: RoundId) {
        let held = self.state.held.as_ref();
        if held.is_some_and(|offer| offer.round == round) {
            self.discard_held();
        }
    }

    fn round_closed(&mut self, summary: RoundSummary) {
        if self
            .training
            .as_ref()
            .is_some_and(|task| task.round <= summary.round)
        {
            self.stop_training();
        }
        if summary.version > self.state.last_version {
            self.state.last_version = summary.version;
            self.act(ParticipantAction::Persist);
        }
        self.act(ParticipantAction::RoundClosed(summary));
    }

    fn finished(&mut self, version: ModelVersion, adapter: BlobRef) {
        self.stop_training();
        self.discard_held();
        self.stop(StopReason::Finished { version, adapter });
    }

    fn leave(&mut self) {
        self.say(ClientMessage::Leaving);
        self.stop_training();
        if !matches!(self.link, Link::Offline { .. }) {
            self.act(ParticipantAction::Disconnect);
        }
        self.stop(StopReason::Left);
    }

    fn stop(&mut self, reason: StopReason) {
        self.link = Link::Stopped;
        self.act(ParticipantAction::Stop(reason));
    }

    fn stop_training(&mut self) {
        if let Some(task) = self.training.take() {
            let round = task.round;
            self.act(ParticipantAction::StopTraining { round });
        }
    }

    /// Forgets the held update first, then lets its bytes be deleted.
    fn discard_held(&mut self) {
        self.uploading = false;
        self.retry_at = None;
        if let Some(offer) = self.state.held.take() {
            self.act(ParticipantAction::Persist);
            self.act(ParticipantAction::Discard(offer.blob.digest));
        }
    }

    fn is_training(&self, round: RoundId) -> bool {
        self.training
            .as_ref()
            .is_some_and(|task| task.round == round)
    }

    /// Sends a message if there is someone to hear it.
    fn say(&mut self, message: ClientMessage) {
        if self.link == Link::Online {
            self.act(ParticipantAction::Send(message));
        }
    }

    fn act(&mut self, action: ParticipantAction) {
        self.actions.push_back(action);
    }
}

#[cfg(test)]
mod tests;
