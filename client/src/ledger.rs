//! The account of what left this machine: every kind of data that is sent, counted in bytes.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

/// A kind of data that a client sends. The list is complete: nothing else has a code path out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Kind {
    /// The one-time token and the request for a certificate.
    Join,
    /// Version, device name, sizes of the shard, fingerprints of model, tokenizer and template.
    Hello,
    /// Accepting, declining or failing a task, and saying goodbye.
    Answer,
    /// The step that training is at, and the loss there.
    Progress,
    /// Digest, size, weight and summed-up losses of an update.
    Offer,
    /// The encoded delta of the adapter.
    Delta,
    /// Asking for the shared adapter by its digest.
    Request,
    /// How the shared adapter does on held-out rows: means, and of how many rows.
    Evaluation,
}

impl Kind {
    /// Every kind, in the order in which they are shown.
    pub const ALL: [Self; 8] = [
        Self::Join,
        Self::Hello,
        Self::Answer,
        Self::Progress,
        Self::Offer,
        Self::Delta,
        Self::Request,
        Self::Evaluation,
    ];

    /// What data of this kind consist of, for people.
    pub fn contents(self) -> &'static str {
        match self {
            Self::Join => "one-time token, public key",
            Self::Hello => {
                "program version, device name, rows and loss tokens of the shard, \
                 fingerprints of base model, tokenizer and template"
            }
            Self::Answer => "round number; accept, decline or fail with a reason",
            Self::Progress => "round number, step, training loss",
            Self::Offer => "size and digest of the update, rows, loss tokens, losses, seconds",
            Self::Delta => "change of the adapter's weights, clipped and encoded",
            Self::Request => "digest of the shared adapter to download",
            Self::Evaluation => "round number, mean loss and share right of held-out rows, rows",
        }
    }
}

/// How much of one kind was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// Messages or blobs.
    pub count: u64,
    /// Bytes, as encoded, before the transport's own framing.
    pub bytes: u64,
}

/// How a round ended for this client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Outcome {
    /// The server has the update and gave a receipt for it.
    Received,
    /// The server refused the update.
    Refused,
    /// This client could not finish its part.
    Failed,
}

/// What this client remembers of a round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoundRecord {
    /// The round's number.
    pub round: u64,
    /// How it ended for this client.
    pub outcome: Outcome,
    /// Why, where it did not end with a receipt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Mean training loss of the first step.
    pub loss_first: Option<f32>,
    /// Mean training loss of the last step.
    pub loss_last: Option<f32>,
    /// Rows trained on.
    pub rows: u64,
    /// Tokens that counted in the loss.
    pub loss_tokens: u64,
    /// Bytes of the encoded delta.
    pub delta_bytes: u64,
    /// Seconds of training.
    pub seconds: f64,
    /// When it ended, in seconds since 1970.
    pub ended: u64,
}

/// Counters of everything sent in one federation, and its last rounds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ledger {
    join: Sent,
    hello: Sent,
    answer: Sent,
    progress: Sent,
    offer: Sent,
    delta: Sent,
    request: Sent,
    evaluation: Sent,
    /// Bytes of shared adapters received.
    pub received_bytes: u64,
    /// Rounds that ended with a receipt.
    pub rounds_received: u64,
    /// The last rounds, oldest first.
    pub rounds: VecDeque<RoundRecord>,
}

impl Ledger {
    /// Rounds that are kept; older ones only live on in the counters.
    pub const ROUNDS_KEPT: usize = 100;

    /// How much of `kind` was sent so far.
    pub fn sent(&self, kind: Kind) -> Sent {
        match kind {
            Kind::Join => self.join,
            Kind::Hello => self.hello,
            Kind::Answer => self.answer,
            Kind::Progress => self.progress,
            Kind::Offer => self.offer,
            Kind::Delta => self.delta,
            Kind::Request => self.request,
            Kind::Evaluation => self.evaluation,
        }
    }

    /// All bytes sent, of every kind.
    pub fn sent_bytes(&self) -> u64 {
        Kind::ALL.iter().map(|&kind| self.sent(kind).bytes).sum()
    }

    /// Counts one message or blob of `bytes` bytes.
    pub fn count(&mut self, kind: Kind, bytes: u64) {
        self.sent_mut(kind).count += 1;
        self.add(kind, bytes);
    }

    /// Counts more bytes of the message or blob that was counted last.
    pub fn add(&mut self, kind: Kind, bytes: u64) {
        self.sent_mut(kind).bytes += bytes;
    }

    fn sent_mut(&mut self, kind: Kind) -> &mut Sent {
        match kind {
            Kind::Join => &mut self.join,
            Kind::Hello => &mut self.hello,
            Kind::Answer => &mut self.answer,
            Kind::Progress => &mut self.progress,
            Kind::Offer => &mut self.offer,
            Kind::Delta => &mut self.delta,
            Kind::Request => &mut self.request,
            Kind::Evaluation => &mut self.evaluation,
        }
    }

    /// Remembers how a round ended. A later word on the same round replaces the earlier one.
    pub fn record(&mut self, record: RoundRecord) {
        let received = record.outcome == Outcome::Received;
        let known = self
            .rounds
            .iter()
            .position(|known| known.round == record.round);
        match known.and_then(|index| self.rounds.get_mut(index)) {
            Some(known) => {
                let counted = known.outcome == Outcome::Received;
                self.rounds_received += u64::from(received && !counted);
                *known = record;
            }
            None => {
                self.rounds_received += u64::from(received);
                self.rounds.push_back(record);
            }
        }
        while self.rounds.len() > Self::ROUNDS_KEPT {
            self.rounds.pop_front();
        }
    }
}

/// A ledger that several tasks write to. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Meter(Arc<Mutex<Ledger>>);

impl Meter {
    /// Goes on with `ledger`.
    pub fn new(ledger: Ledger) -> Self {
        Self(Arc::new(Mutex::new(ledger)))
    }

    /// The ledger as it is now.
    pub fn ledger(&self) -> Ledger {
        self.lock().clone()
    }

    /// See [`Ledger::count`].
    pub fn count(&self, kind: Kind, bytes: u64) {
        self.lock().count(kind, bytes);
    }

    /// See [`Ledger::add`].
    pub fn add(&self, kind: Kind, bytes: u64) {
        self.lock().add(kind, bytes);
    }

    /// Counts bytes of a shared adapter that came.
    pub fn receive(&self, bytes: u64) {
        self.lock().received_bytes += bytes;
    }

    /// See [`Ledger::record`].
    pub fn record(&self, record: RoundRecord) {
        self.lock().record(record);
    }

    fn lock(&self) -> MutexGuard<'_, Ledger> {
        // Counters are sound after every statement, so a panic elsewhere spoils nothing.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(round: u64, outcome: Outcome) -> RoundRecord {
        RoundRecord {
            round,
            outcome,
            reason: None,
            loss_first: Some(2.0),
            loss_last: Some(1.0),
            rows: 4,
            loss_tokens: 40,
            delta_bytes: 100,
            seconds: 1.5,
            ended: 1_800_000_000,
        }
    }

    #[test]
    fn every_kind_is_counted_apart() {
        let mut ledger = Ledger::default();
        for (index, kind) in (1..).zip(Kind::ALL) {
            ledger.count(kind, index);
            ledger.count(kind, index);
            assert_eq!(
                ledger.sent(kind),
                Sent {
                    count: 2,
                    bytes: 2 * index
                }
            );
        }
        assert_eq!(ledger.sent_bytes(), 2 * (1..=8).sum::<u64>());
    }

    #[test]
    fn a_round_counts_once_however_often_it_is_told() {
        let mut ledger = Ledger::default();
        ledger.record(record(1, Outcome::Failed));
        ledger.record(record(1, Outcome::Received));
        ledger.record(record(1, Outcome::Received));
        assert_eq!((ledger.rounds_received, ledger.rounds.len()), (1, 1));
        for round in 2..300 {
            ledger.record(record(round, Outcome::Received));
        }
        assert_eq!(ledger.rounds.len(), Ledger::ROUNDS_KEPT);
        assert_eq!(ledger.rounds_received, 299);
    }

    #[test]
    fn survives_json_and_older_files() {
        let mut ledger = Ledger::default();
        ledger.count(Kind::Delta, 1234);
        ledger.record(record(7, Outcome::Refused));
        let text = serde_json::to_string(&ledger).unwrap();
        assert_eq!(serde_json::from_str::<Ledger>(&text).unwrap(), ledger);
        assert_eq!(
            serde_json::from_str::<Ledger>("{}").unwrap(),
            Ledger::default()
        );
    }
}
