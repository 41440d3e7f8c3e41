//! One virtual client: the production's state machine, a view of the rows, and a connection through
//! memory.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use fedllm_client::{
    LoopbackServer, LoopbackTransport, NetError, RoundStore, Shard, Transport, Update, loopback,
};
use fedllm_shared::{
    ClientId, ClientMessage, Hello, Participant, ParticipantState, ServerMessage, Timestamp,
};

/// A virtual client.
pub(super) struct VirtualClient {
    /// Its place among all clients.
    pub(super) index: u32,
    /// The name of its owner.
    pub(super) name: String,
    /// The rows that it trains on.
    pub(super) shard: Shard,
    /// The rows that it scores adapters on.
    pub(super) held_out: Option<Shard>,
    /// Where its control variate is kept.
    pub(super) store: RoundStore,
    /// Its side of the run.
    pub(super) participant: Participant,
    /// The update that waits for a receipt.
    pub(super) update: Option<Update>,
    /// Its connection, while it is there.
    pub(super) link: Option<Link>,
}

/// A connection: both ends, since both are here.
pub(super) struct Link {
    /// Tells connections of one client apart.
    pub(super) serial: u64,
    client: LoopbackTransport,
    server: LoopbackServer,
}

impl Link {
    pub(super) fn new(serial: u64) -> Self {
        let (client, server) = loopback();
        Self {
            serial,
            client,
            server,
        }
    }

    /// The client says something; returns its bytes.
    pub(super) fn say(&mut self, message: &ClientMessage) -> Result<u64, NetError> {
        now(self.client.send(message))
    }

    /// The server says something.
    pub(super) fn tell(&mut self, message: &ServerMessage) -> Result<(), NetError> {
        self.server.send(message)
    }

    /// What the client said first of what has not been heard.
    pub(super) fn heard(&mut self) -> Result<ClientMessage, NetError> {
        now(self.server.receive())
    }

    /// What the server said first of what has not been heard.
    pub(super) fn told(&mut self) -> Result<ServerMessage, NetError> {
        now(self.client.receive())
    }
}

/// A connection through memory never waits: what is asked for was put in before.
fn now<T>(future: impl Future<Output = Result<T, NetError>>) -> Result<T, NetError> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => Err(NetError::Lost("nothing was said".to_owned())),
    }
}

impl VirtualClient {
    /// Begins as a program that was just started.
    pub(super) fn start(&mut self, hello: Hello, now: Timestamp) {
        let state = self.participant.state().clone();
        self.participant = Participant::new(hello, state, self.index.into(), now);
        self.participant.handle_timeout(now);
    }
}

/// The name of a client: names sort as indices do, so that drawing by either is the same.
pub(super) fn client_id(index: u32) -> ClientId {
    let mut id = ClientId::default();
    id.0[..4].copy_from_slice(&index.to_be_bytes());
    id
}

/// A participant that has not begun.
pub(super) fn fresh_participant(hello: Hello, index: u32) -> Participant {
    Participant::new(
        hello,
        ParticipantState::default(),
        index.into(),
        Timestamp::ZERO,
    )
}
