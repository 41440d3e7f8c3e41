//! The server's side of a run.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::plan::{RunPlan, ShardFacts};
use super::policy::{RoundCounts, RoundVerdict};
use super::round::{Member, MemberState, Round, UpdateRecord, WeightedUpdate};
use crate::event::{Event, EventRecord};
use crate::id::{ClientId, Digest, ModelVersion, RoundId};
use crate::strategy::RoundReport;
use crate::time::Timestamp;
use crate::transform::clip_factor;
use crate::wire::{
    BlobRef, DeclineReason, FailReason, RefuseReason, RoundOutcome, RoundSummary, ServerMessage,
    UpdateOffer, WaitReason,
};

/// The server's side of a run: whom it asks, what it takes, when it averages.
///
/// The host feeds [`CoordinatorInput`]s and carries out the actions that
/// [`Coordinator::poll`] gives, in order. Every client counts at most once a
/// round, and an update with a receipt is in the round's mean: that holds
/// through a crash at any moment if the host makes the snapshot durable when
/// it is told to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Coordinator {
    plan: RunPlan,
    phase: Phase,
    round: Round,
    version: ModelVersion,
    adapter: BlobRef,
    /// Who got receipts in the round before, for clients that did not hear it.
    receipts: BTreeMap<ClientId, Digest>,
    /// Who is connected. Nobody is after a restart.
    #[serde(skip)]
    connected: BTreeMap<ClientId, ShardFacts>,
    #[serde(skip)]
    actions: VecDeque<CoordinatorAction>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
enum Phase {
    Gathering,
    Open {
        since: Timestamp,
        deadline: Timestamp,
    },
    Aggregating {
        outcome: RoundOutcome,
    },
    Finished,
}

/// What a run is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CoordinatorPhase {
    /// Too few clients are there.
    Gathering,
    /// Clients are at work.
    Open,
    /// The updates are being averaged.
    Aggregating,
    /// All rounds are done.
    Finished,
}

/// Something that happened around the coordinator.
#[derive(Clone, Debug, PartialEq)]
pub enum CoordinatorInput {
    /// A client said hello and [`RunPlan::admit`] let it in.
    Join {
        /// The client.
        client: ClientId,
        /// What it has.
        facts: ShardFacts,
    },
    /// A client said that it leaves.
    Leave {
        /// The client.
        client: ClientId,
    },
    /// A client's connection broke.
    Lost {
        /// The client.
        client: ClientId,
    },
    /// A client begins its task.
    Accepted {
        /// The client.
        client: ClientId,
        /// The task's round.
        round: RoundId,
    },
    /// A client does not take its task.
    Declined {
        /// The client.
        client: ClientId,
        /// The task's round.
        round: RoundId,
        /// Why.
        reason: DeclineReason,
    },
    /// A client cannot finish its task.
    Failed {
        /// The client.
        client: ClientId,
        /// The task's round.
        round: RoundId,
        /// Why.
        reason: FailReason,
    },
    /// A client has an update.
    Offered {
        /// The client.
        client: ClientId,
        /// The update.
        offer: UpdateOffer,
    },
    /// An update that was awaited is complete, sound and durable.
    Stored {
        /// The client.
        client: ClientId,
        /// The update's round.
        round: RoundId,
        /// The update's blob.
        digest: Digest,
        /// The delta's length (L2).
        norm: f64,
    },
    /// An update that was awaited has come and is not sound.
    Rejected {
        /// The client.
        client: ClientId,
        /// The update's round.
        round: RoundId,
        /// Why.
        reason: RefuseReason,
    },
    /// An update that was stored cannot be read any more.
    Damaged {
        /// The client.
        client: ClientId,
        /// The update's round.
        round: RoundId,
    },
    /// The round's new adapter is durable.
    Aggregated {
        /// The round.
        round: RoundId,
        /// The new adapter, encoded.
        adapter: BlobRef,
        /// What the strategy did.
        report: RoundReport,
    },
}

/// Something the host is to do.
#[derive(Clone, Debug, PartialEq)]
pub enum CoordinatorAction {
    /// Make [`Coordinator::snapshot`] durable, with the events recorded
    /// before, ahead of any later action.
    Persist,
    /// Append to the run's record.
    Record(EventRecord),
    /// Send a message, if the client is still connected.
    Send {
        /// To whom.
        client: ClientId,
        /// What.
        message: ServerMessage,
    },
    /// Get this update: feed `Stored` if it is complete already, else send
    /// `Ready` with the bytes that are there.
    Await {
        /// From whom.
        client: ClientId,
        /// The update's round.
        round: RoundId,
        /// The update's blob.
        blob: BlobRef,
    },
    /// Average the updates, let the strategy step, make the result durable
    /// and feed `Aggregated`.
    Aggregate {
        /// The round.
        round: RoundId,
        /// The version the updates start from.
        base_version: ModelVersion,
        /// The adapter the updates start from.
        base: BlobRef,
        /// The updates in the order of [`ClientId`].
        updates: Vec<WeightedUpdate>,
    },
    /// The run is over; clients have been told.
    Finish {
        /// The last version.
        version: ModelVersion,
        /// The last adapter.
        adapter: BlobRef,
    },
}

/// A run in figures, for status pages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CoordinatorStatus {
    /// What it is doing.
    pub phase: CoordinatorPhase,
    /// The round that is open or next.
    pub round: RoundId,
    /// The rounds of the run.
    pub rounds: u64,
    /// How many cohorts missed this round's deadline.
    pub attempt: u32,
    /// The adapter's version.
    pub version: ModelVersion,
    /// Clients connected.
    pub connected: u32,
    /// Clients asked whose answer is not in.
    pub pending: u32,
    /// Updates that are in.
    pub stored: u32,
    /// When the round's time is over, while one is open.
    pub deadline_ms: Option<Timestamp>,
}

/// A snapshot that cannot be read: a damaged disk, or another version's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the coordinator's snapshot cannot be read: {0}")]
pub struct SnapshotError(String);

const SNAPSHOT_VERSION: u8 = 1;

impl Coordinator {
    /// Begins a run.
    pub fn new(plan: RunPlan, now: Timestamp) -> Self {
        let mut coordinator = Self {
            phase: Phase::Gathering,
            round: Round::new(RoundId(0)),
            version: ModelVersion(0),
            adapter: plan.adapter,
            receipts: BTreeMap::new(),
            connected: BTreeMap::new(),
            actions: VecDeque::new(),
            plan,
        };
        coordinator.record_start(now);
        coordinator.persist();
        coordinator
    }

    /// All there is to know to go on after a crash.
    pub fn snapshot(&self) -> Vec<u8> {
        // A plain tree of numbers, texts and maps always serializes into a vector.
        #[expect(clippy::expect_used, reason = "see the comment above")]
        postcard::to_extend(self, vec![SNAPSHOT_VERSION]).expect("plain data serializes")
    }

    /// Goes on from a snapshot. Nobody is connected, an open round gets its
    /// whole time again, and an interrupted averaging is asked for again.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`] if the bytes are not a snapshot of this version.
    pub fn restore(snapshot: &[u8], now: Timestamp) -> Result<Self, SnapshotError> {
        let Some((&SNAPSHOT_VERSION, body)) = snapshot.split_first() else {
            return Err(SnapshotError("not of this version".to_owned()));
        };
        let restored = postcard::take_from_bytes(body);
        let (mut coordinator, rest): (Self, _) =
            restored.map_err(|error| SnapshotError(error.to_string()))?;
        if !rest.is_empty() {
            return Err(SnapshotError("bytes follow it".to_owned()));
        }
        coordinator.resume(now);
        Ok(coordinator)
    }

    /// Takes in what happened.
    pub fn handle(&mut self, input: CoordinatorInput, now: Timestamp) {
        use CoordinatorInput as Input;
        match input {
            Input::Join { client, facts } => self.join(client, facts, now),
            Input::Leave { client } => self.leave(client, now),
            Input::Lost { client } => self.lose(client, now),
            Input::Accepted { client, round } => self.accepted(client, round),
            Input::Declined {
                client,
                round,
                reason,
            } => self.declined(client, round, reason, now),
            Input::Failed {
                client,
                round,
                reason,
            } => self.failed(client, round, reason, now),
            Input::Offered { client, offer } => self.offered(client, offer, now),
            Input::Stored {
                client,
                round,
                digest,
                norm,
            } => self.stored(client, round, digest, norm, now),
            Input::Rejected {
                client,
                round,
                reason,
            } => self.rejected(client, round, reason, now),
            Input::Damaged { client, round } => self.damaged(client, round, now),
            Input::Aggregated {
                round,
                adapter,
                report,
            } => self.aggregated(round, adapter, report, now),
        }
        self.settle(now);
    }

    /// Takes in that time has passed.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        self.settle(now);
    }

    /// What is to be done next, if anything.
    pub fn poll(&mut self) -> Option<CoordinatorAction> {
        self.actions.pop_front()
    }

    /// When [`Coordinator::handle_timeout`] wants to be called, if nothing happens before.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        match self.phase {
            Phase::Open { deadline, .. } => Some(deadline),
            _ => None,
        }
    }

    /// What stays the same through the run.
    pub fn plan(&self) -> &RunPlan {
        &self.plan
    }

    /// The adapter's version and its blob.
    pub fn model(&self) -> (ModelVersion, BlobRef) {
        (self.version, self.adapter)
    }

    /// Everyone asked in this round.
    pub fn members(&self) -> &BTreeMap<ClientId, Member> {
        &self.round.members
    }

    /// The update that `client` may send now.
    pub fn awaited(&self, client: ClientId) -> Option<&UpdateOffer> {
        let member = self.round.members.get(&client)?;
        let over = matches!(member.state, MemberState::Stored(_) | MemberState::Refused);
        member.offer.as_ref().filter(|_| !over)
    }

    /// The run in figures.
    pub fn status(&self) -> CoordinatorStatus {
        let counts = self.counts();
        CoordinatorStatus {
            phase: match self.phase {
                Phase::Gathering => CoordinatorPhase::Gathering,
                Phase::Open { .. } => CoordinatorPhase::Open,
                Phase::Aggregating { .. } => CoordinatorPhase::Aggregating,
                Phase::Finished => CoordinatorPhase::Finished,
            },
            round: self.round.id,
            rounds: self.plan.rounds,
            attempt: self.round.attempt,
            version: self.version,
            connected: self.connected.len() as u32,
            pending: counts.pending,
            stored: counts.stored,
            deadline_ms: self.poll_timeout(),
        }
    }

    fn join(&mut self, client: ClientId, facts: ShardFacts, now: Timestamp) {
        self.connected.insert(client, facts);
        self.record(
            now,
            Event::ClientJoined {
                client,
                shard_rows: facts.rows,
                shard_loss_tokens: facts.loss_tokens,
            },
        );
        let welcome = self.plan.welcome(self.round.id, self.version);
        self.send(client, ServerMessage::Welcome(welcome));
        if self.phase == Phase::Finished {
            self.send_finished(client);
            return;
        }
        let holds_this_round = facts
            .resume
            .is_some_and(|(round, _)| round == self.round.id);
        let is_open = matches!(self.phase, Phase::Open { .. });
        if is_open && self.is_pending(client) {
            if !holds_this_round {
                self.send_task(client, now);
            }
            return;
        }
        self.settle(now);
        if !self.is_pending(client) || !matches!(self.phase, Phase::Open { .. }) {
            self.send_wait(client);
        }
    }

    fn leave(&mut self, client: ClientId, now: Timestamp) {
        if self.connected.remove(&client).is_none() {
            return;
        }
        if self.is_pending(client) {
            self.set_state(client, MemberState::Left);
        }
        self.record(
            now,
            Event::ClientLeft {
                client,
                clean: true,
            },
        );
    }

    /// A broken connection keeps its place in the round: the client may come back.
    fn lose(&mut self, client: ClientId, now: Timestamp) {
        if self.connected.remove(&client).is_some() {
            let clean = false;
            self.record(now, Event::ClientLeft { client, clean });
        }
    }

    fn accepted(&mut self, client: ClientId, round: RoundId) {
        if round == self.round.id && self.is_pending(client) {
            self.set_state(client, MemberState::Working);
        }
    }

    fn declined(
        &mut self,
        client: ClientId,
        round: RoundId,
        reason: DeclineReason,
        now: Timestamp,
    ) {
        if round != self.round.id || !self.is_pending(client) {
            return;
        }
        self.set_state(client, MemberState::Out);
        self.record(
            now,
            Event::TaskDeclined {
                round,
                client,
                reason,
            },
        );
        self.persist();
    }

    fn failed(&mut self, client: ClientId, round: RoundId, reason: FailReason, now: Timestamp) {
        if round != self.round.id || !self.is_pending(client) {
            return;
        }
        self.set_state(client, MemberState::Out);
        self.record(
            now,
            Event::TaskFailed {
                round,
                client,
                reason,
            },
        );
        self.persist();
    }

    fn offered(&mut self, client: ClientId, offer: UpdateOffer, now: Timestamp) {
        let (round, blob) = (offer.round, offer.blob);
        if self.has_receipt(client, round, blob.digest) {
            let digest = blob.digest;
            self.send(client, ServerMessage::Receipt { round, digest });
            return;
        }
        if let Err(reason) = self.may_offer(client, round) {
            self.send(client, ServerMessage::Refused { round, reason });
            return;
        }
        if let Some(reason) = self.fault(client, &offer) {
            self.refuse(client, reason, now);
            return;
        }
        if let Some(member) = self.round.members.get_mut(&client) {
            member.offer = Some(offer);
            member.state = MemberState::Working;
            self.actions.push_back(CoordinatorAction::Await {
                client,
                round,
                blob,
            });
        }
    }

    fn stored(
        &mut self,
        client: ClientId,
        round: RoundId,
        digest: Digest,
        norm: f64,
        now: Timestamp,
    ) {
        if self.has_receipt(client, round, digest) {
            self.send(client, ServerMessage::Receipt { round, digest });
            return;
        }
        if let Err(reason) = self.may_offer(client, round) {
            self.send(client, ServerMessage::Refused { round, reason });
            return;
        }
        let weight = self.weight(client);
        let Some(member) = self.round.members.get_mut(&client) else {
            return;
        };
        let Some(offer) = member.offer.take_if(|offer| offer.blob.digest == digest) else {
            // Not the update that is awaited; the one that is will come.
            return;
        };
        let record = UpdateRecord {
            blob: offer.blob,
            weight,
            norm,
            rows: offer.rows,
            loss_tokens: offer.loss_tokens,
            metrics: offer.metrics,
        };
        member.state = MemberState::Stored(record.clone());
        self.record(
            now,
            Event::UpdateAccepted {
                round,
                client,
                blob: record.blob,
                weight,
                metrics: record.metrics,
            },
        );
        self.persist();
        self.send(client, ServerMessage::Receipt { round, digest });
    }

    fn rejected(&mut self, client: ClientId, round: RoundId, reason: RefuseReason, now: Timestamp) {
        if self.may_offer(client, round).is_ok() {
            self.refuse(client, reason, now);
        }
    }

    /// The one way in which an update with a receipt is lost: with the disk.
    fn damaged(&mut self, client: ClientId, round: RoundId, now: Timestamp) {
        let is_stored = self.round.stored().any(|(stored, _)| stored == client);
        if round != self.round.id || !is_stored {
            return;
        }
        self.refuse(client, RefuseReason::Malformed, now);
        if let Phase::Aggregating { outcome } = self.phase {
            match self.policy_verdict(true) {
                RoundVerdict::Close(_) => self.close(outcome),
                _ => self.miss(now),
            }
        }
    }

    fn aggregated(
        &mut self,
        round: RoundId,
        adapter: BlobRef,
        report: RoundReport,
        now: Timestamp,
    ) {
        let Phase::Aggregating { outcome } = self.phase else {
            return;
        };
        if round != self.round.id {
            return;
        }
        self.version = self.version.next();
        self.adapter = adapter;
        let summary = RoundSummary {
            round,
            version: self.version,
            outcome,
            updates: self.round.stored().count() as u32,
            loss: self.round.loss(),
        };
        self.receipts = self
            .round
            .stored()
            .map(|(c, r)| (c, r.blob.digest))
            .collect();
        self.round = Round::new(round.next());
        self.phase = Phase::Gathering;
        self.record(
            now,
            Event::RoundClosed {
                round,
                version: self.version,
                outcome,
                adapter,
                loss: summary.loss,
                report,
            },
        );
        if self.round.id.0 >= self.plan.rounds {
            self.phase = Phase::Finished;
            let version = self.version;
            self.record(now, Event::RunFinished { version, adapter });
        }
        self.persist();
        for client in self.everyone() {
            self.send(client, ServerMessage::RoundClosed(summary.clone()));
        }
        if self.phase == Phase::Finished {
            self.finish();
        }
    }

    /// Opens, fills, closes or misses the round, as its policy says.
    fn settle(&mut self, now: Timestamp) {
        match self.phase {
            Phase::Gathering => match self.policy_verdict(true) {
                // Latecomers made the quorum after all.
                RoundVerdict::Close(outcome) => self.close(outcome),
                _ if self.plan.policy.may_open(self.counts()) => self.open(now),
                _ => {}
            },
            Phase::Open { since, deadline } => {
                self.fill(since, now);
                match self.policy_verdict(now >= deadline) {
                    RoundVerdict::Wait => {}
                    RoundVerdict::Close(outcome) => self.close(outcome),
                    RoundVerdict::Missed => {
                        self.miss(now);
                        self.settle(now);
                    }
                }
            }
            Phase::Aggregating { .. } | Phase::Finished => {}
        }
    }

    fn open(&mut self, now: Timestamp) {
        let deadline = now + self.plan.policy.deadline();
        self.phase = Phase::Open {
            since: now,
            deadline,
        };
        let counts = self.counts();
        let slots = self.plan.policy.free_slots(counts, now - now);
        self.record(
            now,
            Event::RoundOpened {
                round: self.round.id,
                attempt: self.round.attempt,
                connected: self.connected.len() as u32,
                cohort: slots.min(counts.candidates),
            },
        );
        self.fill(now, now);
    }

    /// Asks clients until the cohort is complete.
    fn fill(&mut self, since: Timestamp, now: Timestamp) {
        let slots = self.plan.policy.free_slots(self.counts(), now - since);
        if slots == 0 {
            return;
        }
        let candidates = self.round.draw(self.plan.seed, self.candidates());
        let asked: Vec<_> = candidates.into_iter().take(slots as usize).collect();
        if asked.is_empty() {
            return;
        }
        for client in &asked {
            self.ask(*client);
            let (client, round) = (*client, self.round.id);
            self.record(now, Event::TaskAssigned { round, client });
        }
        self.persist();
        for client in asked {
            self.send_task(client, now);
        }
    }

    fn ask(&mut self, client: ClientId) {
        let before = self.round.members.remove(&client);
        let member = Member {
            facts: self.connected.get(&client).copied().unwrap_or_default(),
            attempt: self.round.attempt,
            state: MemberState::Asked,
            offer: before.and_then(|member| member.offer),
        };
        self.round.members.insert(client, member);
    }

    fn close(&mut self, outcome: RoundOutcome) {
        self.phase = Phase::Aggregating { outcome };
        self.persist();
        self.aggregate();
    }

    fn miss(&mut self, now: Timestamp) {
        self.record(
            now,
            Event::RoundMissed {
                round: self.round.id,
                attempt: self.round.attempt,
                updates: self.counts().stored,
            },
        );
        self.round.miss();
        self.phase = Phase::Gathering;
        self.persist();
    }

    fn aggregate(&mut self) {
        let max_norm = self.plan.max_norm;
        let update = |(client, record): (ClientId, &UpdateRecord)| WeightedUpdate {
            client,
            blob: record.blob,
            weight: record.weight as f64,
            scale: clip_factor(record.norm, max_norm),
        };
        self.actions.push_back(CoordinatorAction::Aggregate {
            round: self.round.id,
            base_version: self.version,
            base: self.adapter,
            updates: self.round.stored().map(update).collect(),
        });
    }

    fn finish(&mut self) {
        for client in self.everyone() {
            self.send_finished(client);
        }
        self.actions.push_back(CoordinatorAction::Finish {
            version: self.version,
            adapter: self.adapter,
        });
    }

    fn resume(&mut self, now: Timestamp) {
        let round = self.round.id;
        self.record(now, Event::RunResumed { round });
        if let Phase::Open { .. } = self.phase {
            self.phase = Phase::Open {
                since: now,
                deadline: now + self.plan.policy.deadline(),
            };
        }
        self.persist();
        match self.phase {
            Phase::Aggregating { .. } => self.aggregate(),
            Phase::Finished => self.finish(),
            Phase::Gathering | Phase::Open { .. } => {}
        }
    }

    fn has_receipt(&self, client: ClientId, round: RoundId, digest: Digest) -> bool {
        if round == self.round.id {
            let mut stored = self.round.stored();
            return stored.any(|(c, record)| c == client && record.blob.digest == digest);
        }
        round.next() == self.round.id && self.receipts.get(&client) == Some(&digest)
    }

    /// Whether an update of this client can still count.
    fn may_offer(&self, client: ClientId, round: RoundId) -> Result<(), RefuseReason> {
        let open = matches!(self.phase, Phase::Gathering | Phase::Open { .. });
        if round != self.round.id {
            return Err(RefuseReason::RoundNotOpen);
        }
        let member = self.round.members.get(&client);
        match &member.ok_or(RefuseReason::NotInCohort)?.state {
            MemberState::Stored(_) => Err(RefuseReason::Conflict),
            MemberState::Refused => Err(RefuseReason::AlreadyRefused),
            _ if !open => Err(RefuseReason::RoundNotOpen),
            _ => Ok(()),
        }
    }

    /// What is wrong with an update, as far as its offer tells.
    fn fault(&self, client: ClientId, offer: &UpdateOffer) -> Option<RefuseReason> {
        if offer.base_version != self.version {
            return Some(RefuseReason::WrongVersion);
        }
        if offer.blob.len > self.plan.max_update_bytes {
            return Some(RefuseReason::TooLarge);
        }
        if !offer.metrics.is_finite() {
            return Some(RefuseReason::NonFinite);
        }
        if offer.loss_tokens == 0 || self.weight(client) == 0 {
            return Some(RefuseReason::NoWeight);
        }
        None
    }

    fn weight(&self, client: ClientId) -> u64 {
        let facts = self.round.members.get(&client).map(|member| member.facts);
        let facts = facts.unwrap_or_default();
        self.plan.weighting.weight(facts.rows, facts.loss_tokens)
    }

    fn refuse(&mut self, client: ClientId, reason: RefuseReason, now: Timestamp) {
        let round = self.round.id;
        self.set_state(client, MemberState::Refused);
        self.record(
            now,
            Event::UpdateRejected {
                round,
                client,
                reason,
            },
        );
        self.persist();
        self.send(client, ServerMessage::Refused { round, reason });
    }

    fn policy_verdict(&self, overdue: bool) -> RoundVerdict {
        self.plan.policy.verdict(self.counts(), overdue)
    }

    fn counts(&self) -> RoundCounts {
        let gone = |client| !self.connected.contains_key(&client);
        let stored: Vec<_> = self.round.stored().map(|(client, _)| client).collect();
        let absent = stored.iter().filter(|client| gone(**client)).count();
        RoundCounts {
            present: (self.connected.len() + absent) as u32,
            candidates: self.candidates().len() as u32,
            pending: self.round.pending(),
            stored: stored.len() as u32,
        }
    }

    fn candidates(&self) -> Vec<ClientId> {
        let mut connected = self.everyone();
        connected.retain(|client| self.round.is_candidate(*client));
        connected
    }

    fn everyone(&self) -> Vec<ClientId> {
        self.connected.keys().copied().collect()
    }

    fn is_pending(&self, client: ClientId) -> bool {
        let member = self.round.members.get(&client);
        member.is_some_and(|member| member.state.is_pending())
    }

    fn set_state(&mut self, client: ClientId, state: MemberState) {
        if let Some(member) = self.round.members.get_mut(&client) {
            member.state = state;
        }
    }

    fn send_task(&mut self, client: ClientId, now: Timestamp) {
        let Phase::Open { deadline, .. } = self.phase else {
            return;
        };
        let attempt = self.round.members.get(&client).map_or(0, |m| m.attempt);
        let task = self.plan.task(
            client,
            (self.round.id, attempt),
            (self.version, self.adapter),
            (deadline - now).as_millis() as u64,
        );
        self.send(client, ServerMessage::Task(Box::new(task)));
    }

    fn send_wait(&mut self, client: ClientId) {
        let member = self.round.members.get(&client);
        let reason = match (self.phase, member) {
            (Phase::Aggregating { .. }, _) => WaitReason::Aggregating,
            (Phase::Gathering, _) => WaitReason::MoreClients,
            (_, Some(_)) => WaitReason::RoundInProgress,
            (_, None) => WaitReason::NotInCohort,
        };
        let retry_after_ms = 0;
        self.send(
            client,
            ServerMessage::Wait {
                retry_after_ms,
                reason,
            },
        );
    }

    fn send_finished(&mut self, client: ClientId) {
        let (version, adapter) = self.model();
        self.send(client, ServerMessage::Finished { version, adapter });
    }

    fn send(&mut self, client: ClientId, message: ServerMessage) {
        if self.connected.contains_key(&client) {
            let action = CoordinatorAction::Send { client, message };
            self.actions.push_back(action);
        }
    }

    fn persist(&mut self) {
        self.actions.push_back(CoordinatorAction::Persist);
    }

    fn record(&mut self, at: Timestamp, event: Event) {
        let record = EventRecord { at, event };
        self.actions.push_back(CoordinatorAction::Record(record));
    }

    fn record_start(&mut self, now: Timestamp) {
        let event = Event::RunStarted {
            run: self.plan.run,
            federation: self.plan.federation.clone(),
            rounds: self.plan.rounds,
            base: self.plan.base,
            layout: self.plan.layout,
            adapter: self.plan.adapter,
        };
        self.record(now, event);
    }
}

#[cfg(test)]
#[path = "coordinator_tests.rs"]
mod tests;
