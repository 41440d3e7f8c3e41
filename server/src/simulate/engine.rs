//! The simulation's clock: what happens next, and to whom.
//!
//! The production's [`Coordinator`] and [`Participant`](fedllm_shared::Participant)s talk over the
//! loopback transport; messages and transfers take as long as the devices say, in virtual time.
//! Training is done when its virtual end has come, one client after the other, so that the same
//! seed gives the same adapter whatever else the machine does.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use burn::tensor::Device;
use fedllm_client::{
    Batcher, LoraTrainer, RoundStore, RoundWork, Shard, StateError, StopFlag, Trainer, WorkError,
    WorkReport, check_task, hold_out, task_blobs,
};
use fedllm_shared::{
    Adapter, ClientId, ClientMessage, ClientsScore, Coordinator, CoordinatorAction,
    CoordinatorInput, CoordinatorPhase, Digest, ErrorCode, Experiment, FailReason, Hello,
    MemberState, Models, PROTOCOL, ParticipantAction, ParticipantInput, RoundId, RunId, RunPlan,
    ServerMessage, ServerState, SnapshotError, Timestamp, TrainTask, UpdateOffer, VariateOrigin,
};
use thiserror::Error;

use super::blobs::ScratchBlobs;
use super::devices::DevicePark;
use super::metrics::{ClientRound, PreferenceRound, RoundMetrics};
use super::virtual_client::{Link, VirtualClient, client_id, fresh_participant};
use crate::aggregate::{
    Expected, Layouts, NextVersion, RoundError, RoundJob, RoundRules, check_update, culprit,
    first_version,
};
use crate::store::{BlobStore, StoreError};

/// A round that cannot make its quorum so often never will.
const MOST_MISSED: u32 = 20;

/// Why a simulation cannot go on.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SimulationError {
    /// The disk failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A client's control variate cannot be kept.
    #[error(transparent)]
    State(#[from] StateError),
    /// What was stored of the run cannot be read.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The algorithm cannot work with the adapter.
    #[error(transparent)]
    LowRank(#[from] fedllm_shared::LowRankError),
    /// A client cannot do its work.
    #[error("client {client} in round {round}: {source}")]
    Work {
        /// The owner.
        client: String,
        /// The round.
        round: u64,
        /// What went wrong.
        source: WorkError,
    },
    /// A client was turned away.
    #[error("client {client} cannot take part: {code}")]
    Refused {
        /// The owner.
        client: String,
        /// Why.
        code: ErrorCode,
    },
    /// The updates of a round cannot be averaged.
    #[error("averaging round {round}: {reason}")]
    Averaging {
        /// The round.
        round: u64,
        /// Why.
        reason: String,
    },
    /// No cohort makes its quorum.
    #[error(
        "round {round} missed its deadline {MOST_MISSED} times; ask for a smaller rounds.quorum, \
         more rounds.deadline_seconds or less devices.drop_out"
    )]
    Missed {
        /// The round.
        round: u64,
    },
    /// Nothing is left to happen, and the run is not over: our fault.
    #[error("the simulation stands still in round {round}")]
    Still {
        /// The round.
        round: u64,
    },
    /// It was asked to stop.
    #[error("stopped in round {round}; run it again to go on from there")]
    Stopped {
        /// The round.
        round: u64,
    },
}

/// What a simulation is made of.
pub(super) struct Parts<'a> {
    pub(super) experiment: &'a Experiment,
    pub(super) trainer: LoraTrainer,
    pub(super) tokenizer: Digest,
    pub(super) template: Digest,
    /// The first adapter.
    pub(super) adapter: Adapter,
    /// Each owner's name and rows.
    pub(super) owners: Vec<(String, Shard)>,
    pub(super) park: DevicePark,
    /// Where blobs and control variates are.
    pub(super) folder: PathBuf,
    /// Where averages are computed.
    pub(super) device: Device,
    pub(super) stop: StopFlag,
}

/// What a run must remember to go on after a round.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) struct Checkpoint {
    pub(super) coordinator: Vec<u8>,
    pub(super) state: ServerState,
    pub(super) now: Timestamp,
}

/// Told of every step of training.
pub(super) type OnStep<'a> = &'a mut dyn FnMut(&str, u32, u32, f32);

/// A run of virtual clients.
pub(super) struct Simulation {
    coordinator: Coordinator,
    state: ServerState,
    layouts: Layouts,
    blobs: ScratchBlobs,
    clients: Vec<VirtualClient>,
    hello: Hello,
    trainer: LoraTrainer,
    park: DevicePark,
    device: Device,
    stop: StopFlag,
    measure_gap: bool,
    /// The highest ranks that clients can train, one after the other; any if empty.
    max_ranks: Vec<u32>,
    now: Timestamp,
    queue: BinaryHeap<Reverse<Event>>,
    serial: u64,
    round: Tally,
    closed: Option<RoundMetrics>,
}

/// Something that will happen. Events of one moment happen in the order in which they were planned.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Event {
    at: Timestamp,
    serial: u64,
    client: usize,
    what: Happening,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    /// A message of this connection reaches the server.
    Heard(u64),
    /// A message of this connection reaches the client.
    Told(u64),
    /// The work of a round is done.
    Trained(RoundId),
    /// The client vanishes in the middle of a round's work.
    Vanished(RoundId),
    /// An upload over this connection is complete.
    Uploaded(u64, RoundId),
}

/// A round in figures, while it lasts.
struct Tally {
    began: Instant,
    began_at: Timestamp,
    train_seconds: f64,
    bytes_up: u64,
    bytes_down: u64,
    asked: BTreeMap<usize, Timestamp>,
    stored: BTreeMap<usize, Timestamp>,
    dropped: u32,
    late: u32,
}

impl Tally {
    fn begin(at: Timestamp) -> Self {
        Self {
            began: Instant::now(),
            began_at: at,
            train_seconds: 0.0,
            bytes_up: 0,
            bytes_down: 0,
            asked: BTreeMap::new(),
            stored: BTreeMap::new(),
            dropped: 0,
            late: 0,
        }
    }
}

impl Simulation {
    /// Begins, or goes on from a checkpoint.
    pub(super) fn new(parts: Parts<'_>, from: Option<Checkpoint>) -> Result<Self, SimulationError> {
        let experiment = parts.experiment;
        let blobs = ScratchBlobs::open(&parts.folder.join("blobs"))?;
        let (coordinator, state, now) = match from {
            Some(checkpoint) => (
                Coordinator::restore(&checkpoint.coordinator, checkpoint.now)?,
                checkpoint.state,
                checkpoint.now,
            ),
            None => {
                let plan = plan(&parts, &blobs)?;
                let coordinator = Coordinator::new(plan, Timestamp::ZERO);
                (coordinator, ServerState::default(), Timestamp::ZERO)
            }
        };
        let plan = coordinator.plan();
        let adapter = parts.adapter.layout().clone();
        let layouts = Layouts::new(adapter, plan.lora.train, &plan.strategy)?;
        let hello = Hello {
            protocol: PROTOCOL,
            client_version: env!("CARGO_PKG_VERSION").to_owned(),
            device: "virtual".to_owned(),
            shard_rows: 0,
            shard_loss_tokens: 0,
            tokenizer: parts.tokenizer,
            template: parts.template,
            base: plan.base,
            resume: None,
            shard_kind: plan.objective.rows(),
            max_rank: None,
        };
        let mut simulation = Self {
            coordinator,
            state,
            layouts,
            blobs,
            clients: Vec::with_capacity(parts.owners.len()),
            hello,
            trainer: parts.trainer,
            park: parts.park,
            device: parts.device,
            stop: parts.stop,
            measure_gap: experiment.output.gap,
            max_ranks: experiment.devices.max_ranks.clone(),
            now,
            queue: BinaryHeap::new(),
            serial: 0,
            round: Tally::begin(now),
            closed: None,
        };
        for (index, (name, shard)) in parts.owners.into_iter().enumerate() {
            let index = index as u32;
            let folder = parts.folder.join("clients").join(format!("{index:06}"));
            let (shard, held_out) = match hold_out(&shard, experiment.evaluation.clients) {
                Some((shard, held_out)) => (shard, Some(held_out)),
                None => (shard, None),
            };
            simulation.clients.push(VirtualClient {
                index,
                name,
                store: RoundStore::scratch(&folder),
                participant: fresh_participant(simulation.hello.clone(), index),
                shard,
                held_out,
                update: None,
                link: None,
            });
            if simulation.coordinator.plan().strategy.has_variates() {
                let made = std::fs::create_dir_all(&folder);
                made.map_err(|source| StoreError::file(&folder, source))?;
            }
        }
        simulation.start_absent()?;
        Ok(simulation)
    }

    /// The round that is open or next.
    pub(super) fn round(&self) -> RoundId {
        self.coordinator.status().round
    }

    /// That the run was stopped where it is now.
    pub(super) fn stopped(&self) -> SimulationError {
        let round = self.round().0;
        SimulationError::Stopped { round }
    }

    /// Whether all rounds are done.
    pub(super) fn is_finished(&self) -> bool {
        self.coordinator.status().phase == CoordinatorPhase::Finished
    }

    /// What the present version consists of.
    pub(super) fn models(&self) -> &Models {
        self.coordinator.model().1
    }

    /// The adapter of version 0.
    pub(super) fn first(&self) -> &fedllm_shared::BlobRef {
        &self.coordinator.plan().models.adapter
    }

    /// The adapters' blobs.
    pub(super) fn blobs(&self) -> &impl BlobStore {
        &self.blobs
    }

    /// The layout of the run's adapter.
    pub(super) fn layout(&self) -> &Arc<fedllm_shared::Layout> {
        &self.layouts.adapter
    }

    /// Each client's name and own adapter, where nothing is averaged.
    pub(super) fn own_adapters(&self) -> impl Iterator<Item = (&str, fedllm_shared::BlobRef)> {
        let own = &self.models().own;
        self.clients.iter().filter_map(|client| {
            let blob = own.get(&client_id(client.index))?;
            Some((client.name.as_str(), *blob))
        })
    }

    /// What is needed to go on from here. Only between two rounds.
    pub(super) fn checkpoint(&self) -> Checkpoint {
        Checkpoint {
            coordinator: self.coordinator.snapshot(),
            state: self.state.clone(),
            now: self.now,
        }
    }

    /// Deletes the blobs that only earlier versions consist of. Only when this version's checkpoint
    /// is written: until then, a run that is killed goes on from the version before.
    pub(super) fn forget_earlier(&self) -> Result<(), SimulationError> {
        let first = &self.coordinator.plan().models;
        let named = self.models().blobs().chain(first.blobs());
        Ok(self.blobs.keep_only(named)?)
    }

    /// Lets things happen until a round has closed.
    pub(super) fn next_round(
        &mut self,
        on_step: OnStep<'_>,
    ) -> Result<RoundMetrics, SimulationError> {
        loop {
            self.settle()?;
            if let Some(closed) = self.closed.take() {
                self.round = Tally::begin(self.now);
                self.start_absent()?;
                return Ok(closed);
            }
            let status = self.coordinator.status();
            if status.attempt >= MOST_MISSED {
                let round = status.round.0;
                return Err(SimulationError::Missed { round });
            }
            self.advance(on_step)?;
        }
    }

    /// Moves the clock to whatever comes next, and lets it happen.
    fn advance(&mut self, on_step: OnStep<'_>) -> Result<(), SimulationError> {
        let event = self.queue.peek().map(|Reverse(event)| event.at);
        let deadline = self.coordinator.poll_timeout();
        match (event, deadline) {
            (Some(event), deadline) if deadline.is_none_or(|deadline| event <= deadline) => {
                if let Some(Reverse(event)) = self.queue.pop() {
                    self.now = self.now.max(event.at);
                    self.happen(event.client, event.what, on_step)?;
                }
                Ok(())
            }
            (_, Some(deadline)) => {
                self.now = self.now.max(deadline);
                self.coordinator.handle_timeout(self.now);
                Ok(())
            }
            (_, None) => {
                let round = self.round().0;
                Err(SimulationError::Still { round })
            }
        }
    }

    fn happen(
        &mut self,
        client: usize,
        what: Happening,
        on_step: OnStep<'_>,
    ) -> Result<(), SimulationError> {
        match what {
            Happening::Heard(serial) => {
                if let Some(link) = self.link(client, serial)
                    && let Ok(message) = link.heard()
                {
                    self.heard(client, message)?;
                }
            }
            Happening::Told(serial) => {
                if let Some(link) = self.link(client, serial)
                    && let Ok(message) = link.told()
                {
                    let input = ParticipantInput::Message(message);
                    self.clients[client].participant.handle(input, self.now);
                }
            }
            Happening::Trained(round) => self.trained(client, round, on_step)?,
            Happening::Vanished(round) => {
                let training = self.clients[client].participant.training();
                if training.is_some_and(|task| task.round == round) {
                    self.round.dropped += 1;
                    self.lose(client);
                }
            }
            Happening::Uploaded(serial, round) => {
                if self.link(client, serial).is_some() {
                    self.uploaded(client, round)?;
                }
            }
        }
        Ok(())
    }

    /// Does what both sides want done, until nobody wants anything now.
    fn settle(&mut self) -> Result<(), SimulationError> {
        loop {
            let mut idle = true;
            while let Some(action) = self.coordinator.poll() {
                idle = false;
                self.perform(action)?;
            }
            for client in 0..self.clients.len() {
                while let Some(action) = self.clients[client].participant.poll() {
                    idle = false;
                    self.act(client, action)?;
                }
            }
            if idle {
                return Ok(());
            }
        }
    }

    /// What the coordinator wants done.
    fn perform(&mut self, action: CoordinatorAction) -> Result<(), SimulationError> {
        match action {
            CoordinatorAction::Send { client, message } => self.tell(index_of(client), &message),
            CoordinatorAction::Await { client, round, .. } => {
                let ready = ServerMessage::Ready { round, offset: 0 };
                self.tell(index_of(client), &ready);
            }
            CoordinatorAction::Aggregate(given) => {
                let round = given.round;
                let job = RoundJob {
                    given: *given,
                    rules: RoundRules::of(self.coordinator.plan(), &self.layouts),
                    state: self.state.clone(),
                    measure_gap: self.measure_gap,
                    blobs: self.blobs.clone(),
                    device: self.device.clone(),
                };
                self.aggregated(round, job.run())?;
            }
            // Checkpoints are taken between rounds, and figures from the round itself.
            CoordinatorAction::Persist
            | CoordinatorAction::Record(_)
            | CoordinatorAction::Finish { .. } => {}
        }
        Ok(())
    }

    fn aggregated(
        &mut self,
        round: RoundId,
        result: Result<NextVersion, RoundError>,
    ) -> Result<(), SimulationError> {
        let next = match result {
            Ok(next) => next,
            Err(failure) => match culprit(&failure, self.coordinator.members()) {
                Some((client, reason)) => {
                    tracing::warn!(client = client.short(), %reason, "dropped an update");
                    self.feed(CoordinatorInput::Rejected {
                        client,
                        round,
                        reason,
                    });
                    return Ok(());
                }
                None => {
                    let (round, reason) = (round.0, failure.to_string());
                    return Err(SimulationError::Averaging { round, reason });
                }
            },
        };
        self.closed = Some(self.figures(&next));
        self.state = next.state;
        self.feed(CoordinatorInput::Aggregated {
            round,
            models: next.models,
            report: next.report,
        });
        Ok(())
    }

    /// What a participant wants done.
    fn act(&mut self, client: usize, action: ParticipantAction) -> Result<(), SimulationError> {
        match action {
            ParticipantAction::Connect => {
                self.serial += 1;
                self.clients[client].link = Some(Link::new(self.serial));
                let connected = ParticipantInput::Connected;
                self.clients[client].participant.handle(connected, self.now);
            }
            ParticipantAction::Disconnect => self.lose(client),
            ParticipantAction::Send(message) => self.say(client, &message),
            ParticipantAction::Train(task) => self.begin(client, &task),
            ParticipantAction::StopTraining { .. } => self.round.late += 1,
            ParticipantAction::Upload { offer, .. } => self.upload(client, &offer),
            ParticipantAction::Discard(digest) => {
                let update = &mut self.clients[client].update;
                update.take_if(|update| update.offer.blob.digest == digest);
            }
            // The state of a client is in memory; what it hears beyond that needs nothing done.
            ParticipantAction::Persist
            | ParticipantAction::Welcomed(_)
            | ParticipantAction::Counted { .. }
            | ParticipantAction::RoundClosed(_)
            | ParticipantAction::Stop(_) => {}
        }
        Ok(())
    }

    /// Plans when the work of a task will be done, or when the client will vanish.
    fn begin(&mut self, client: usize, task: &TrainTask) {
        let (index, round) = (self.clients[client].index, task.round);
        let device = self.park.device(index);
        let bytes = task_blobs(task).iter().map(|blob| blob.len).sum();
        self.round.bytes_down += bytes;
        self.round.asked.insert(client, self.now);
        let who = &self.clients[client];
        // Scoring only goes forward, which is about a third of a step.
        let scored = who.held_out.as_ref().map_or(0, Shard::tokens) / 3;
        let tokens = tokens_of(task, &who.shard) + scored;
        // One number for each opening, so that a round that opens again does not fail the same way.
        let attempt = self.coordinator.status().attempt;
        let opening = round.0 * u64::from(MOST_MISSED) + u64::from(attempt);
        let slowdown = self.park.slowdown(index, opening);
        let takes = device.receive_seconds(bytes) + device.train_seconds(tokens, slowdown);
        match self.park.drops_out(index, opening) {
            Some(part) => self.plan(takes * part, client, Happening::Vanished(round)),
            None => self.plan(takes, client, Happening::Trained(round)),
        }
    }

    /// The virtual end of training has come: now it is done in fact.
    fn trained(
        &mut self,
        client: usize,
        round: RoundId,
        on_step: OnStep<'_>,
    ) -> Result<(), SimulationError> {
        let who = &mut self.clients[client];
        let Some(task) = who
            .participant
            .training()
            .filter(|task| task.round == round)
        else {
            return Ok(());
        };
        let task = task.clone();
        let failed = |source| SimulationError::Work {
            client: who.name.clone(),
            round: round.0,
            source,
        };
        let layout = check_task(&self.trainer, &who.shard, &task).map_err(failed)?;
        let blobs: Vec<_> = task_blobs(&task)
            .iter()
            .map(|blob| self.blobs.load(blob))
            .collect::<Result<_, _>>()?;
        let work = RoundWork {
            task: &task,
            layout: &layout,
            shard: &who.shard,
            held_out: who.held_out.as_ref(),
            store: &who.store,
        };
        let mut scored = None;
        let mut report = |report| match report {
            WorkReport::Scored(score) => scored = Some(score),
            WorkReport::Step(step) => on_step(&who.name, step.step, step.steps, step.loss),
        };
        let input = match work.run(&mut self.trainer, &blobs, &self.stop, &mut report) {
            Ok(update) => {
                if let Some(variate) = &update.variate {
                    let kept =
                        who.store
                            .save_variate(task.run, round, variate.since, &variate.bytes);
                    kept?;
                }
                self.round.train_seconds += update.offer.metrics.seconds;
                let offer = update.offer.clone();
                who.update = Some(update);
                ParticipantInput::Trained(offer)
            }
            Err(_) if self.stop.is_stopped() => {
                return Err(SimulationError::Stopped { round: round.0 });
            }
            Err(error) if error.fail_reason() == FailReason::NonFinite => {
                tracing::warn!(client = who.name, round = round.0, %error, "training failed");
                let reason = error.fail_reason();
                ParticipantInput::TrainFailed { round, reason }
            }
            Err(error) => return Err(failed(error)),
        };
        if let Some(score) = scored {
            let scored = ParticipantInput::Scored { round, score };
            who.participant.handle(scored, self.now);
        }
        who.participant.handle(input, self.now);
        Ok(())
    }

    fn upload(&mut self, client: usize, offer: &UpdateOffer) {
        let device = self.park.device(self.clients[client].index);
        if let Some(link) = &self.clients[client].link {
            let serial = link.serial;
            let takes = device.send_seconds(offer.blob.len);
            self.plan(takes, client, Happening::Uploaded(serial, offer.round));
        }
    }

    fn uploaded(&mut self, client: usize, round: RoundId) -> Result<(), SimulationError> {
        let id = client_id(self.clients[client].index);
        let awaited = self.coordinator.awaited(id).map(|offer| offer.blob);
        let update = self.clients[client].update.as_ref();
        let Some(update) = update.filter(|update| Some(update.offer.blob) == awaited) else {
            return Ok(());
        };
        let digest = update.offer.blob.digest;
        let plan = self.coordinator.plan();
        let layouts = self.layouts.of_rank(plan, self.coordinator.rank_of(id))?;
        let expected = Expected {
            layout: layouts.update,
            split: layouts.trained.len(),
            codec: plan.codec,
            max_norm: plan.max_norm,
        };
        self.round.bytes_up += update.blob.len() as u64;
        let input = match check_update(update.blob.as_slice(), &expected) {
            Ok(norm) => {
                self.blobs.put(&update.blob)?;
                self.round.stored.insert(client, self.now);
                CoordinatorInput::Stored {
                    client: id,
                    round,
                    digest,
                    norm,
                }
            }
            Err(reason) => CoordinatorInput::Rejected {
                client: id,
                round,
                reason,
            },
        };
        self.feed(input);
        Ok(())
    }

    /// A message has reached the server.
    fn heard(&mut self, client: usize, message: ClientMessage) -> Result<(), SimulationError> {
        let id = client_id(self.clients[client].index);
        let input = match message {
            ClientMessage::Hello(hello) => {
                let facts = self.coordinator.plan().admit(&hello);
                let facts = facts.map_err(|code| SimulationError::Refused {
                    client: self.clients[client].name.clone(),
                    code,
                })?;
                CoordinatorInput::Join { client: id, facts }
            }
            ClientMessage::Accept { round } => CoordinatorInput::Accepted { client: id, round },
            ClientMessage::Decline { round, reason } => CoordinatorInput::Declined {
                client: id,
                round,
                reason,
            },
            ClientMessage::Failed { round, reason } => CoordinatorInput::Failed {
                client: id,
                round,
                reason,
            },
            ClientMessage::Offer(offer) => CoordinatorInput::Offered { client: id, offer },
            ClientMessage::Leaving => CoordinatorInput::Leave { client: id },
            ClientMessage::Evaluated { round, score } => CoordinatorInput::Evaluated {
                client: id,
                round,
                score,
            },
            ClientMessage::Progress { .. } => return Ok(()),
        };
        self.feed(input);
        Ok(())
    }

    fn say(&mut self, client: usize, message: &ClientMessage) {
        // Whoever has no connection says nothing.
        let Some(link) = self.clients[client].link.as_mut() else {
            return;
        };
        let serial = link.serial;
        if let Ok(bytes) = link.say(message) {
            // A client that begins is there at once, and that counts no bytes: after a stop all begin
            // again, and the run is the same.
            let (takes, bytes) = match message {
                ClientMessage::Hello(_) => (0.0, 0),
                _ => (self.park.device(self.clients[client].index).latency, bytes),
            };
            self.round.bytes_up += bytes;
            self.plan(takes, client, Happening::Heard(serial));
        }
    }

    fn tell(&mut self, client: usize, message: &ServerMessage) {
        let Some(link) = self.clients[client].link.as_mut() else {
            return;
        };
        let serial = link.serial;
        if link.tell(message).is_ok() {
            let takes = match message {
                ServerMessage::Welcome(_) => 0.0,
                _ => self.park.device(self.clients[client].index).latency,
            };
            self.plan(takes, client, Happening::Told(serial));
        }
    }

    /// The connection of a client breaks, and the client with it.
    fn lose(&mut self, client: usize) {
        let who = &mut self.clients[client];
        if who.link.take().is_some() {
            let id = client_id(who.index);
            who.participant
                .handle(ParticipantInput::Disconnected, self.now);
            self.feed(CoordinatorInput::Lost { client: id });
        }
    }

    /// Starts every client that is not there.
    fn start_absent(&mut self) -> Result<(), SimulationError> {
        if self.is_finished() {
            return Ok(());
        }
        for client in 0..self.clients.len() {
            if self.clients[client].link.is_none() {
                let who = &mut self.clients[client];
                let hello = Hello {
                    shard_rows: who.shard.units() as u64,
                    shard_loss_tokens: who.shard.loss_tokens(),
                    max_rank: self
                        .max_ranks
                        .get(client % self.max_ranks.len().max(1))
                        .copied(),
                    ..self.hello.clone()
                };
                who.start(hello, self.now);
            }
        }
        Ok(())
    }

    fn link(&mut self, client: usize, serial: u64) -> Option<&mut Link> {
        let link = self.clients[client].link.as_mut();
        link.filter(|link| link.serial == serial)
    }

    fn plan(&mut self, seconds: f64, client: usize, what: Happening) {
        self.serial += 1;
        self.queue.push(Reverse(Event {
            at: self.now + Duration::from_secs_f64(seconds),
            serial: self.serial,
            client,
            what,
        }));
    }

    fn feed(&mut self, input: CoordinatorInput) {
        self.coordinator.handle(input, self.now);
    }

    /// The round that has just been averaged, in figures.
    fn figures(&self, next: &NextVersion) -> RoundMetrics {
        let status = self.coordinator.status();
        let report = &next.report;
        let members = self.coordinator.members();
        let clients: Vec<_> = members
            .iter()
            .filter_map(|(id, member)| match &member.state {
                MemberState::Stored(record) => Some(self.client_round(index_of(*id), record)),
                _ => None,
            })
            .collect();
        let scores = members.values().filter_map(|member| member.score.as_ref());
        let weights: f64 = clients.iter().map(|client| client.weight).sum();
        let losses = clients.iter().map(|c| c.weight * f64::from(c.loss_mean));
        RoundMetrics {
            round: status.round.0,
            version: status.version.0 + 1,
            virtual_seconds: (self.now - Timestamp::ZERO).as_secs_f64(),
            cohort: members.len() as u32,
            updates: report.updates,
            dropped: self.round.dropped,
            late: self.round.late,
            attempts: status.attempt + 1,
            lr: self.coordinator.plan().local.at(status.round).lr,
            loss: losses.sum::<f64>() / weights,
            delta_norm: report.delta_norm,
            step_norm: report.step_norm,
            drift: report.drift,
            gap: report.gap,
            discarded: report.discarded,
            bytes_up: self.round.bytes_up,
            bytes_down: self.round.bytes_down,
            train_seconds: self.round.train_seconds,
            seconds: self.round.began.elapsed().as_secs_f64(),
            held_out: ClientsScore::of(scores),
            clients,
            evaluations: Vec::new(),
            tasks: Vec::new(),
        }
    }

    fn client_round(&self, client: usize, record: &fedllm_shared::UpdateRecord) -> ClientRound {
        let metrics = &record.metrics;
        let asked = self.round.asked.get(&client).copied();
        let stored = self.round.stored.get(&client).copied();
        let asked = asked.unwrap_or(self.round.began_at);
        let took = stored.unwrap_or(self.now) - asked;
        ClientRound {
            client: client as u32,
            name: self.clients[client].name.clone(),
            rows: record.rows,
            weight: record.weight as f64,
            loss_first: metrics.loss_first,
            loss_last: metrics.loss_last,
            loss_mean: metrics.loss_mean,
            update_norm: record.norm,
            virtual_seconds: took.as_secs_f64(),
            bytes_up: record.blob.len,
            preference: metrics.preference.map(|pairs| PreferenceRound {
                chosen: pairs.chosen,
                rejected: pairs.rejected,
                margin: pairs.margin,
                accuracy: pairs.accuracy,
            }),
            variate: match record.variate {
                VariateOrigin::Unused => None,
                VariateOrigin::Fresh => Some("fresh".to_owned()),
                VariateOrigin::Kept => Some("kept".to_owned()),
                VariateOrigin::Lost => Some("lost".to_owned()),
            },
        }
    }
}

/// The plan of a new run: a round opens when all clients are there, so that cohorts are drawn from
/// all of them.
fn plan(parts: &Parts<'_>, blobs: &ScratchBlobs) -> Result<RunPlan, SimulationError> {
    let federation = &parts.experiment.federation;
    let models = first_version(&parts.adapter, federation, blobs);
    let models = models.map_err(|error| SimulationError::Averaging {
        round: 0,
        reason: error.to_string(),
    })?;
    let mut run = RunId::default();
    run.0[..8].copy_from_slice(&federation.seed.to_le_bytes());
    let (base, layout) = (parts.trainer.base(), parts.adapter.layout());
    let mut plan = RunPlan::new(federation, run, base, layout, models)?;
    plan.tokenizer = Some(parts.tokenizer);
    plan.template = Some(parts.template);
    plan.population = parts.owners.len() as u64;
    let fedllm_shared::RoundPolicy::Synchronous { min_clients, .. } = &mut plan.policy;
    *min_clients = parts.owners.len() as u32;
    Ok(plan)
}

/// Tokens that a task's steps put through the model.
fn tokens_of(task: &TrainTask, shard: &Shard) -> u64 {
    let local = &task.local;
    let batches = Batcher::new(
        shard.units(),
        local.batch as usize,
        task.seed,
        local.shuffle,
    );
    let units = batches.take(local.steps as usize).flatten();
    let rows = units.flat_map(|unit| shard.rows_of(unit));
    rows.map(|row| shard.row(row).ids.len().min(local.max_tokens as usize) as u64)
        .sum()
}

fn index_of(client: ClientId) -> usize {
    let [a, b, c, d, ..] = client.0;
    u32::from_be_bytes([a, b, c, d]) as usize
}
