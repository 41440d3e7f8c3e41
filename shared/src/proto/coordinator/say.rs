//! What the host is told to send, keep and record.

use super::{Coordinator, CoordinatorAction, Phase};
use crate::event::{Event, EventRecord};
use crate::id::ClientId;
use crate::time::Timestamp;
use crate::wire::{ServerMessage, WaitReason};

impl Coordinator {
    pub(super) fn send_task(&mut self, client: ClientId, now: Timestamp) {
        let Phase::Open { deadline, .. } = self.phase else {
            return;
        };
        let attempt = self.round.members.get(&client).map_or(0, |m| m.attempt);
        let since = self.known.get(&client).copied().flatten();
        let task = self.plan.task(
            (client, self.rank_of(client)),
            (self.round.id, attempt),
            (self.version, &self.models),
            since,
            (deadline - now).as_millis() as u64,
        );
        self.send(client, ServerMessage::Task(Box::new(task)));
    }

    pub(super) fn send_wait(&mut self, client: ClientId) {
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

    pub(super) fn send_finished(&mut self, client: ClientId) {
        let version = self.version;
        let rank = self.connected.get(&client).and_then(|facts| facts.rank);
        let adapter = self.models.start_of(client, rank);
        self.send(client, ServerMessage::Finished { version, adapter });
    }

    pub(super) fn send(&mut self, client: ClientId, message: ServerMessage) {
        if self.connected.contains_key(&client) {
            let action = CoordinatorAction::Send { client, message };
            self.actions.push_back(action);
        }
    }

    pub(super) fn persist(&mut self) {
        self.actions.push_back(CoordinatorAction::Persist);
    }

    pub(super) fn record(&mut self, at: Timestamp, event: Event) {
        let record = EventRecord { at, event };
        self.actions.push_back(CoordinatorAction::Record(record));
    }

    pub(super) fn record_start(&mut self, now: Timestamp) {
        let event = Event::RunStarted {
            run: self.plan.run,
            federation: self.plan.federation.clone(),
            rounds: self.plan.rounds,
            base: self.plan.base,
            layout: self.plan.layout,
            adapter: self.plan.models.adapter,
        };
        self.record(now, event);
    }
}
