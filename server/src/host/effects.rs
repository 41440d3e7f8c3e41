//! Doing what the coordinator wants done.

use std::collections::HashSet;

use fedllm_shared::{
    BlobRef, BlobRefusal, ClientId, CoordinatorAction, CoordinatorInput, CoordinatorPhase,
    MemberState, RefuseReason, RoundId, RoundPolicy, ServerMessage,
};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::averaging::Averaged;
use super::handle::{Input, Stored};
use super::{Host, HostError, LAST_FETCH};
use crate::admin::{ClientState, OpenRound, RunState, Status};
use crate::aggregate::{Expected, RoundJob, RoundRules, check_update};
use crate::record::offline;

impl Host {
    /// Carries out actions until there are none, then gives the answers that waited for them.
    ///
    /// What is recorded comes first: of the actions that were polled together, none reaches a
    /// client before the record is on disk.
    pub(super) fn settle(&mut self) -> Result<(), HostError> {
        loop {
            let mut persist = false;
            let mut effects = Vec::new();
            while let Some(action) = self.coordinator.poll() {
                match action {
                    CoordinatorAction::Persist => persist = true,
                    CoordinatorAction::Record(record) => self.journal.note(record),
                    effect => effects.push(effect),
                }
            }
            if persist {
                self.write(true)?;
            }
            if effects.is_empty() {
                break;
            }
            for effect in effects {
                self.perform(effect)?;
            }
        }
        for (reply, answer) in self.unanswered.drain(..) {
            // A connection that is gone will ask again.
            let _ = reply.send(answer);
        }
        Ok(())
    }

    /// Makes events durable, with the coordinator's state if `persist`.
    pub(super) fn write(&mut self, persist: bool) -> Result<(), HostError> {
        let mut commit = std::mem::take(&mut self.journal.commit);
        let round_closed = commit.round.is_some();
        if persist {
            commit.snapshot = Some(self.coordinator.snapshot());
            if let Some(next) = self.next_optimizer.take() {
                let bytes = postcard::to_stdvec(&next).map_err(HostError::Optimizer)?;
                commit.optimizer = Some(bytes);
                self.optimizer = next;
            }
        }
        self.store.commit(&commit)?;
        if round_closed {
            self.sweep()?;
            self.measure_if_due()?;
        }
        Ok(())
    }

    /// Deletes updates that were averaged, and uploads that nobody waits for.
    pub(super) fn sweep(&self) -> Result<usize, HostError> {
        let round = self.coordinator.status().round;
        let kept_rounds = u64::from(self.federation.server.keep_updates_rounds);
        let since = RoundId(round.0.saturating_sub(kept_rounds));
        let (_, models) = self.coordinator.model();
        let first = &self.coordinator.plan().models;
        let named = models.blobs().chain(first.blobs());
        let mut keep: HashSet<_> = named.map(|blob| blob.digest).collect();
        keep.extend(
            self.store
                .versions()?
                .iter()
                .map(|(_, adapter)| adapter.digest),
        );
        keep.extend(
            self.store
                .updates_since(since)?
                .iter()
                .map(|update| update.blob.digest),
        );
        let uploading: HashSet<_> = self.coordinator.members().keys().copied().collect();
        Ok(self.blobs.sweep(&keep, &uploading)?)
    }

    /// Deletes an update that does not count, unless the same bytes are wanted elsewhere.
    pub(super) fn discard(&self, blob: BlobRef) -> Result<(), HostError> {
        let counted = self.coordinator.members().values().any(
            |member| matches!(&member.state, MemberState::Stored(record) if record.blob == blob),
        );
        let mut adapters = self.store.versions()?.into_iter();
        let (_, models) = self.coordinator.model();
        let named = models.blobs().any(|named| named == blob);
        if !counted && !named && !adapters.any(|(_, adapter)| adapter == blob) {
            self.blobs.delete(blob.digest)?;
        }
        Ok(())
    }

    /// Whether the client may upload this, and what it must be.
    pub(super) fn may_put(
        &self,
        client: ClientId,
        round: RoundId,
        blob: BlobRef,
    ) -> Result<Expected, BlobRefusal> {
        let awaited = self.coordinator.awaited(client);
        match awaited {
            Some(offer) if offer.round == round && offer.blob == blob => {
                self.expected(client).map_err(|_| BlobRefusal::Internal)
            }
            _ => Err(BlobRefusal::NotExpected),
        }
    }

    pub(super) fn status(&self) -> Result<Status, HostError> {
        let run = self.coordinator.status();
        let plan = self.coordinator.plan();
        let members = self.coordinator.members();
        let mut clients = Vec::new();
        for row in self.store.clients()? {
            let mut client = offline(&row);
            if self.seats.describe(&mut client, run.round) {
                let state = members.get(&row.client).map(|member| &member.state);
                client.state = match state {
                    Some(MemberState::Asked | MemberState::Working) => ClientState::Training,
                    Some(MemberState::Stored(_)) => ClientState::Done,
                    _ => ClientState::Idle,
                };
            }
            clients.push(client);
        }
        clients.sort_by(|a, b| a.name.cmp(&b.name));
        let now = self.clock.now();
        let RoundPolicy::Synchronous { quorum, .. } = plan.policy;
        let in_round = matches!(
            run.phase,
            CoordinatorPhase::Open | CoordinatorPhase::Aggregating
        );
        let round = in_round.then(|| OpenRound {
            round: run.round.0,
            cohort: (run.pending + run.stored) as usize,
            updates: run.stored as usize,
            quorum: quorum as usize,
            deadline_seconds: run
                .deadline_ms
                .filter(|at| *at > now)
                .map_or(0, |at| (at - now).as_secs()),
        });
        let (bytes_sent, bytes_received) = self.metrics.traffic();
        Ok(Status {
            federation: plan.federation.clone(),
            run: plan.run,
            state: match run.phase {
                CoordinatorPhase::Gathering => RunState::Waiting,
                CoordinatorPhase::Open => RunState::Open,
                CoordinatorPhase::Aggregating => RunState::Aggregating,
                CoordinatorPhase::Finished => RunState::Finished,
            },
            version: run.version.0,
            rounds: run.rounds,
            round,
            clients,
            history: self.store.rounds()?,
            scores: self.store.scores()?,
            bytes_sent,
            bytes_received,
        })
    }

    fn perform(&mut self, effect: CoordinatorAction) -> Result<(), HostError> {
        match effect {
            CoordinatorAction::Send { client, message } => self.send(client, message),
            CoordinatorAction::Await {
                client,
                round,
                blob,
            } => self.receive(client, round, blob)?,
            CoordinatorAction::Aggregate(given) => {
                self.contributors = given.updates.iter().map(|update| update.client).collect();
                let job = RoundJob {
                    given: *given,
                    rules: RoundRules::of(self.coordinator.plan(), &self.layouts),
                    state: self.optimizer.clone(),
                    measure_gap: true,
                    blobs: self.blobs.clone(),
                    device: self.device.clone(),
                };
                let handle = self.handle.clone();
                self.compute("averaging", move || {
                    handle.blocking_tell(Input::Averaged(Box::new(Averaged::of(job))));
                })?;
            }
            CoordinatorAction::Finish { .. } => self.closing = Some(Instant::now() + LAST_FETCH),
            // Both were taken out by `settle`.
            CoordinatorAction::Persist | CoordinatorAction::Record(_) => {}
        }
        Ok(())
    }

    fn send(&mut self, client: ClientId, message: ServerMessage) {
        if let ServerMessage::Finished { .. } = message {
            self.contributors.remove(&client);
        }
        if self.seats.send(client, message) {
            self.feed(CoordinatorInput::Lost { client });
        }
    }

    /// Asks for an update, or takes the one that an earlier connection brought to its end.
    fn receive(
        &mut self,
        client: ClientId,
        round: RoundId,
        blob: BlobRef,
    ) -> Result<(), HostError> {
        if !self.blobs.has(&blob) {
            let offset = self.blobs.uploaded(client, &blob);
            self.send(client, ServerMessage::Ready { round, offset });
            return Ok(());
        }
        let (blobs, expected) = (self.blobs.clone(), self.expected(client)?);
        let handle = self.handle.clone();
        self.compute("checking", move || {
            let checked = blobs.read(&blob).map(|file| check_update(file, &expected));
            let input = match checked {
                Ok(Ok(norm)) => {
                    let stored = Stored {
                        client,
                        round,
                        blob,
                        norm,
                    };
                    Input::Stored(stored, oneshot::channel().0)
                }
                Ok(Err(reason)) => {
                    Input::Rejected(client, round, blob, reason, oneshot::channel().0)
                }
                Err(_) => {
                    let reason = RefuseReason::Malformed;
                    Input::Rejected(client, round, blob, reason, oneshot::channel().0)
                }
            };
            handle.blocking_tell(input);
        })
    }

    /// What an update of this client must be.
    fn expected(&self, client: ClientId) -> Result<Expected, HostError> {
        let plan = self.coordinator.plan();
        let layouts = self
            .layouts
            .of_rank(plan, self.coordinator.rank_of(client))?;
        Ok(Expected {
            layout: layouts.update,
            split: layouts.trained.len(),
            codec: plan.codec,
            max_norm: plan.max_norm,
        })
    }

    /// Runs `work` on a thread of its own, so that clients are heard meanwhile.
    pub(super) fn compute(
        &self,
        name: &str,
        work: impl FnOnce() + Send + 'static,
    ) -> Result<(), HostError> {
        let spawned = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(work);
        let failed = |error| HostError::Other(format!("cannot begin {name}: {error}"));
        spawned.map(|_| ()).map_err(failed)
    }
}
