//! How a round opens, fills, closes or is missed.

use std::time::Duration;

use super::super::policy::{Presence, RoundPolicy, RoundVerdict};
use super::super::round::{Member, MemberState, UpdateRecord, WeightedUpdate};
use super::{Contributions, Coordinator, CoordinatorAction, Phase};
use crate::event::Event;
use crate::id::ClientId;
use crate::time::Timestamp;
use crate::transform::clip_factor;
use crate::wire::RoundOutcome;

impl Coordinator {
    /// Opens, fills, closes or misses the round, as its policy says.
    pub(super) fn settle(&mut self, now: Timestamp) {
        match self.phase {
            Phase::Gathering => match self.policy_verdict(true) {
                // Latecomers made the quorum after all.
                RoundVerdict::Close(outcome) => self.close(outcome),
                _ if self.may_open() => self.open(now),
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
        let counts = self.round.counts();
        let slots = self.plan.policy.free_slots(counts, Duration::ZERO);
        self.record(
            now,
            Event::RoundOpened {
                round: self.round.id,
                attempt: self.round.attempt,
                connected: self.connected.len() as u32,
                cohort: slots.min(self.candidates().len() as u32),
            },
        );
        self.fill(now, now);
    }

    /// Asks clients until the cohort is complete.
    fn fill(&mut self, since: Timestamp, now: Timestamp) {
        let slots = self
            .plan
            .policy
            .free_slots(self.round.counts(), now - since);
        if slots == 0 {
            return;
        }
        let RoundPolicy::Synchronous { cohort, .. } = self.plan.policy;
        let chance = (self.plan.seed, self.plan.strategy.compat);
        let candidates = self.round.draw(chance, cohort, self.candidates());
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
            score: before.as_ref().and_then(|member| member.score),
            offer: before.and_then(|member| member.offer),
        };
        self.round.members.insert(client, member);
    }

    pub(super) fn close(&mut self, outcome: RoundOutcome) {
        self.phase = Phase::Aggregating { outcome };
        self.persist();
        self.aggregate();
    }

    pub(super) fn miss(&mut self, now: Timestamp) {
        self.record(
            now,
            Event::RoundMissed {
                round: self.round.id,
                attempt: self.round.attempt,
                updates: self.round.counts().stored,
            },
        );
        self.round.miss();
        self.phase = Phase::Gathering;
        self.persist();
    }

    pub(super) fn aggregate(&mut self) {
        let max_norm = self.plan.max_norm;
        let update = |(client, record): (ClientId, &UpdateRecord)| {
            let rank = self.rank_of(client);
            WeightedUpdate {
                client,
                blob: record.blob,
                weight: record.weight as f64,
                scale: clip_factor(record.norm, max_norm),
                norm: record.norm,
                start: self.models.start_of(client, rank),
                rank,
            }
        };
        let contributions = Contributions {
            round: self.round.id,
            base_version: self.version,
            base: self.models.clone(),
            population: self.plan.population.max(self.known.len() as u64),
            updates: self.round.stored().map(update).collect(),
        };
        let action = CoordinatorAction::Aggregate(Box::new(contributions));
        self.actions.push_back(action);
    }

    pub(super) fn finish(&mut self) {
        for client in self.everyone() {
            self.send_finished(client);
        }
        self.actions.push_back(CoordinatorAction::Finish {
            version: self.version,
            adapter: self.models.adapter,
        });
    }

    pub(super) fn resume(&mut self, now: Timestamp) {
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

    pub(super) fn policy_verdict(&self, overdue: bool) -> RoundVerdict {
        self.plan.policy.verdict(self.round.counts(), overdue)
    }

    fn may_open(&self) -> bool {
        let gone = |client: &ClientId| !self.connected.contains_key(client);
        let absent = self.round.stored().filter(|(client, _)| gone(client));
        let presence = Presence {
            clients: (self.connected.len() + absent.count()) as u32,
            candidates: self.candidates().len() as u32,
        };
        self.plan.policy.may_open(presence, self.round.counts())
    }

    fn candidates(&self) -> Vec<ClientId> {
        let mut connected = self.everyone();
        connected.retain(|client| self.round.is_candidate(*client));
        connected
    }

    pub(super) fn everyone(&self) -> Vec<ClientId> {
        self.connected.keys().copied().collect()
    }
}
