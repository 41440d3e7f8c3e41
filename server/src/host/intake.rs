//! What connections, the operator and threads that compute tell the host.

use fedllm_shared::{
    BlobRefusal, ClientId, ClientMessage, CoordinatorInput, ErrorCode, MemberState, UpdateRecord,
};
use tokio::sync::oneshot;

use super::averaging::Averaged;
use super::handle::{Arrival, Input, Session, Stored};
use super::{Host, HostError, Next, Verdict};
use crate::aggregate::culprit;

impl Host {
    pub(super) fn take(&mut self, input: Input) -> Result<Next, HostError> {
        match input {
            Input::Connect(arrival, reply) => {
                let answer = self.connect(*arrival)?;
                // A connection that is gone again says so by itself.
                let _ = reply.send(answer);
            }
            Input::Message(session, message) => self.message(session, message),
            Input::Disconnect(session) => {
                if self.seats.remove(session) {
                    let client = session.client;
                    self.feed(CoordinatorInput::Lost { client });
                }
            }
            Input::MayGet(client, blob, reply) => {
                let (_, present) = self.coordinator.model();
                let first = &self.coordinator.plan().models;
                let named = present.is_open_to(client, blob) || first.is_open_to(client, blob);
                let answer = match named {
                    true => Ok(()),
                    false => Err(BlobRefusal::NotExpected),
                };
                let _ = reply.send(answer);
            }
            Input::MayPut(client, round, blob, reply) => {
                let _ = reply.send(self.may_put(client, round, blob));
            }
            Input::Stored(stored, reply) => self.stored(stored, reply)?,
            Input::Rejected(client, round, blob, reason, reply) => {
                self.feed(CoordinatorInput::Rejected {
                    client,
                    round,
                    reason,
                });
                self.discard(blob)?;
                let _ = reply.send(());
            }
            Input::Status(reply) => {
                let _ = reply.send(self.status()?);
            }
            Input::Revoked(clients) => {
                for client in clients {
                    self.seats.close(client, ErrorCode::NotAdmitted);
                    self.feed(CoordinatorInput::Leave { client });
                }
            }
            Input::Averaged(averaged) => self.averaged(*averaged)?,
            Input::Measured(measured) => self.measured(*measured)?,
            Input::Fail(reason) => return Err(HostError::Other(reason)),
            Input::Stop => return Ok(Next::Stop),
            Input::Abandon => return Ok(Next::Abandon),
        }
        Ok(Next::Go)
    }

    fn connect(&mut self, arrival: Arrival) -> Result<Result<Session, ErrorCode>, HostError> {
        let client = arrival.client;
        if !self.is_enrolled(client)? {
            return Ok(Err(ErrorCode::NotAdmitted));
        }
        let facts = match self.coordinator.plan().admit(&arrival.hello) {
            Ok(facts) => facts,
            Err(code) => return Ok(Err(code)),
        };
        if self.seats.close(client, ErrorCode::Replaced) {
            self.feed(CoordinatorInput::Lost { client });
        }
        let session = self.seats.add(arrival);
        self.feed(CoordinatorInput::Join { client, facts });
        Ok(Ok(session))
    }

    fn message(&mut self, session: Session, message: ClientMessage) {
        // A connection that was replaced has no say any more.
        if !self.seats.is_current(session) {
            return;
        }
        let client = session.client;
        let input = match message {
            ClientMessage::Accept { round } => CoordinatorInput::Accepted { client, round },
            ClientMessage::Decline { round, reason } => CoordinatorInput::Declined {
                client,
                round,
                reason,
            },
            ClientMessage::Failed { round, reason } => CoordinatorInput::Failed {
                client,
                round,
                reason,
            },
            ClientMessage::Offer(offer) => CoordinatorInput::Offered { client, offer },
            ClientMessage::Leaving => CoordinatorInput::Leave { client },
            ClientMessage::Evaluated { round, score } => CoordinatorInput::Evaluated {
                client,
                round,
                score,
            },
            ClientMessage::Progress {
                round,
                step,
                steps,
                loss,
            } => return self.seats.progress(client, round, (step, steps), loss),
            // Connections let one hello through only.
            ClientMessage::Hello(_) => return,
        };
        self.feed(input);
    }

    fn stored(&mut self, stored: Stored, reply: oneshot::Sender<Verdict>) -> Result<(), HostError> {
        let Stored {
            client,
            round,
            blob,
            norm,
        } = stored;
        if self.is_enrolled(client)? {
            let digest = blob.digest;
            self.feed(CoordinatorInput::Stored {
                client,
                round,
                digest,
                norm,
            });
        }
        let accepted = self
            .update_of(client)
            .is_some_and(|record| record.blob == blob);
        let answer = match accepted {
            true => Ok(()),
            false => Err(BlobRefusal::NotExpected),
        };
        if !accepted {
            self.discard(blob)?;
        }
        self.unanswered.push((reply, answer));
        Ok(())
    }

    fn averaged(&mut self, averaged: Averaged) -> Result<(), HostError> {
        let round = averaged.round;
        let refused = match averaged.result {
            Ok(next) => {
                self.next_optimizer = Some(next.state);
                self.feed(CoordinatorInput::Aggregated {
                    round,
                    models: next.models,
                    report: next.report,
                });
                return Ok(());
            }
            Err(failure) => match culprit(&failure, self.coordinator.members()) {
                Some(culprit) => culprit,
                None => return Err(HostError::Averaging(failure.to_string())),
            },
        };
        let (client, reason) = refused;
        self.feed(CoordinatorInput::Rejected {
            client,
            round,
            reason,
        });
        Ok(())
    }

    pub(super) fn feed(&mut self, input: CoordinatorInput) {
        self.coordinator.handle(input, self.clock.now());
    }

    fn is_enrolled(&self, client: ClientId) -> Result<bool, HostError> {
        let row = self.store.client(client)?;
        Ok(row.is_some_and(|row| row.revoked_unix.is_none()))
    }

    /// The update of a client that counts in this round.
    fn update_of(&self, client: ClientId) -> Option<&UpdateRecord> {
        match &self.coordinator.members().get(&client)?.state {
            MemberState::Stored(record) => Some(record),
            _ => None,
        }
    }
}
