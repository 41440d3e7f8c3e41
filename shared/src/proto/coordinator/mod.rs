//! The server's side of a run.

mod flow;
mod io;
mod say;

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

pub use self::io::{
    Contributions, CoordinatorAction, CoordinatorInput, CoordinatorPhase, CoordinatorStatus,
    SnapshotError,
};
use super::models::Models;
use super::plan::{RunPlan, ShardFacts};
use super::policy::RoundVerdict;
use super::round::{Member, MemberState, Round, UpdateRecord};
use crate::event::Event;
use crate::id::{ClientId, Digest, ModelVersion, RoundId};
use crate::strategy::RoundReport;
use crate::time::Timestamp;
use crate::wire::{
    DeclineReason, FailReason, HeldOutScore, RefuseReason, RoundOutcome, RoundSummary,
    ServerMessage, UpdateOffer, VariateOrigin,
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
    models: Models,
    /// Everyone who ever came, with the round of the last update that counts.
    known: BTreeMap<ClientId, Option<RoundId>>,
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

const SNAPSHOT_VERSION: u8 = 3;

impl Coordinator {
    /// Begins a run.
    pub fn new(plan: RunPlan, now: Timestamp) -> Self {
        let mut coordinator = Self {
            phase: Phase::Gathering,
            round: Round::new(RoundId(0)),
            version: ModelVersion(0),
            models: plan.models.clone(),
            known: BTreeMap::new(),
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
            Input::Evaluated {
                client,
                round,
                score,
            } => self.evaluated(client, round, score, now),
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
                models,
                report,
            } => self.aggregated(round, models, report, now),
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

    /// The version and what it consists of.
    pub fn model(&self) -> (ModelVersion, &Models) {
        (self.version, &self.models)
    }

    /// The rank that `client` trains in this round, if it is a lower one than the run's own.
    pub fn rank_of(&self, client: ClientId) -> Option<u32> {
        let member = self.round.members.get(&client);
        member.and_then(|member| member.facts.rank)
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
        let counts = self.round.counts();
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
        self.known.entry(client).or_default();
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

    /// Whoever works on the round's adapter may say once how good it is. Anything else costs a
    /// client no more than being heard.
    fn evaluated(&mut self, client: ClientId, round: RoundId, score: HeldOutScore, now: Timestamp) {
        if round != self.round.id || !self.is_pending(client) || !score.is_sound() {
            return;
        }
        let member = self.round.members.get_mut(&client);
        let Some(member) = member.filter(|member| member.score.is_none()) else {
            return;
        };
        member.score = Some(score);
        let version = self.version;
        self.record(
            now,
            Event::ClientEvaluated {
                round,
                client,
                version,
                score,
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
            variate: offer.variate,
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
                variate: record.variate,
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
        if round != self.round.id || self.round.record(client).is_none() {
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

    fn aggregated(&mut self, round: RoundId, models: Models, report: RoundReport, now: Timestamp) {
        let Phase::Aggregating { outcome } = self.phase else {
            return;
        };
        if round != self.round.id {
            return;
        }
        self.version = self.version.next();
        let adapter = models.adapter;
        self.models = models;
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
        for client in self.receipts.keys() {
            self.known.insert(*client, Some(round));
        }
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

    fn has_receipt(&self, client: ClientId, round: RoundId, digest: Digest) -> bool {
        if round == self.round.id {
            let record = self.round.record(client);
            return record.is_some_and(|record| record.blob.digest == digest);
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
        let adapter = self.plan.adapter_of(self.rank_of(client));
        if offer.blob.len > adapter.max_update_bytes {
            return Some(RefuseReason::TooLarge);
        }
        let expected = self.plan.strategy.has_variates();
        if (offer.variate != VariateOrigin::Unused) != expected {
            return Some(RefuseReason::Malformed);
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

    fn is_pending(&self, client: ClientId) -> bool {
        let member = self.round.members.get(&client);
        member.is_some_and(|member| member.state.is_pending())
    }

    fn set_state(&mut self, client: ClientId, state: MemberState) {
        if let Some(member) = self.round.members.get_mut(&client) {
            member.state = state;
        }
    }
}

#[cfg(test)]
mod tests;
