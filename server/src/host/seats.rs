//! Who is connected, by which connection, and how far its work is.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use fedllm_shared::{ClientId, ErrorCode, RoundId, ServerMessage};
use tokio::sync::mpsc;

use super::handle::{Arrival, Outgoing, Session, Traffic};
use crate::admin::ClientStatus;

/// A connected client.
struct Seat {
    session: Session,
    outbox: mpsc::Sender<Outgoing>,
    traffic: Arc<Traffic>,
    device: String,
    rows: u64,
    progress: Option<Progress>,
}

struct Progress {
    round: RoundId,
    steps: (u32, u32),
    loss: f32,
}

/// One seat for each client that is connected.
#[derive(Default)]
pub(super) struct Seats {
    seats: HashMap<ClientId, Seat>,
    serial: u64,
}

impl Seats {
    pub(super) fn add(&mut self, arrival: Arrival) -> Session {
        self.serial += 1;
        let session = Session {
            client: arrival.client,
            serial: self.serial,
        };
        let seat = Seat {
            session,
            outbox: arrival.outbox,
            traffic: arrival.traffic,
            device: arrival.hello.device,
            rows: arrival.hello.shard_rows,
            progress: None,
        };
        self.seats.insert(arrival.client, seat);
        session
    }

    /// Whether this is the client's present connection.
    pub(super) fn is_current(&self, session: Session) -> bool {
        let seat = self.seats.get(&session.client);
        seat.is_some_and(|seat| seat.session == session)
    }

    /// Forgets a connection; tells whether it was the present one.
    pub(super) fn remove(&mut self, session: Session) -> bool {
        self.is_current(session) && self.seats.remove(&session.client).is_some()
    }

    /// Ends a client's connection, if it has one.
    pub(super) fn close(&mut self, client: ClientId, code: ErrorCode) -> bool {
        let Some(seat) = self.seats.remove(&client) else {
            return false;
        };
        // If its outbox is full, dropping it ends the connection just as well.
        let _ = seat.outbox.try_send(Outgoing::Close(code));
        true
    }

    pub(super) fn close_all(&mut self, code: ErrorCode) {
        let clients: Vec<_> = self.seats.keys().copied().collect();
        for client in clients {
            self.close(client, code);
        }
    }

    /// Sends a message; tells whether the client could not keep up and has lost its seat.
    pub(super) fn send(&mut self, client: ClientId, message: ServerMessage) -> bool {
        let Some(seat) = self.seats.get(&client) else {
            return false;
        };
        let message = Outgoing::Message(Box::new(message));
        match seat.outbox.try_send(message) {
            Ok(()) => false,
            Err(_) => {
                self.seats.remove(&client);
                true
            }
        }
    }

    pub(super) fn progress(
        &mut self,
        client: ClientId,
        round: RoundId,
        steps: (u32, u32),
        loss: f32,
    ) {
        if let Some(seat) = self.seats.get_mut(&client) {
            seat.progress = Some(Progress { round, steps, loss });
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.seats.is_empty()
    }

    /// Fills in what is known of a connected client; tells whether it is one.
    pub(super) fn describe(&self, status: &mut ClientStatus, round: RoundId) -> bool {
        let Some(seat) = self.seats.get(&status.client) else {
            return false;
        };
        status.device = Some(seat.device.clone());
        status.rows = Some(seat.rows);
        status.bytes_sent = seat.traffic.sent.load(Ordering::Relaxed);
        status.bytes_received = seat.traffic.received.load(Ordering::Relaxed);
        if let Some(progress) = seat.progress.as_ref().filter(|p| p.round == round) {
            status.progress = Some(progress.steps);
            status.loss = Some(progress.loss).filter(|loss| loss.is_finite());
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fedllm_shared::{Digest, Hello};

    fn arrival(room: usize) -> (Arrival, mpsc::Receiver<Outgoing>) {
        let (outbox, queue) = mpsc::channel(room);
        let hello = Hello {
            protocol: 1,
            client_version: String::new(),
            device: "CPU".into(),
            shard_rows: 9,
            shard_loss_tokens: 99,
            tokenizer: Digest::default(),
            template: Digest::default(),
            base: Digest::default(),
            resume: None,
            shard_kind: Default::default(),
            max_rank: None,
        };
        let arrival = Arrival {
            client: ClientId([1; 32]),
            hello,
            outbox,
            traffic: Arc::default(),
        };
        (arrival, queue)
    }

    #[test]
    fn a_newer_connection_takes_the_seat() {
        let mut seats = Seats::default();
        let (first, mut queue) = arrival(4);
        let first = seats.add(first);
        assert!(seats.close(first.client, ErrorCode::Replaced));
        let second = seats.add(arrival(4).0);
        assert!(matches!(
            queue.try_recv(),
            Ok(Outgoing::Close(ErrorCode::Replaced))
        ));
        assert!(!seats.remove(first));
        assert!(seats.is_current(second));
        assert!(seats.remove(second));
        assert!(seats.is_empty());
    }

    #[test]
    fn a_client_that_does_not_keep_up_loses_its_seat() {
        let mut seats = Seats::default();
        let (arrival, mut queue) = arrival(1);
        let session = seats.add(arrival);
        let message = || ServerMessage::Wait {
            retry_after_ms: 0,
            reason: fedllm_shared::WaitReason::MoreClients,
        };
        assert!(!seats.send(session.client, message()));
        assert!(seats.send(session.client, message()));
        assert!(seats.is_empty());
        assert!(matches!(queue.try_recv(), Ok(Outgoing::Message(_))));
        assert!(queue.try_recv().is_err());
    }
}
