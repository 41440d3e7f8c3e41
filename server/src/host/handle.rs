//! How the rest of the server speaks to the host's thread.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use fedllm_shared::{
    BlobRef, BlobRefusal, ClientId, ClientMessage, ErrorCode, Hello, RefuseReason, RoundId,
    ServerMessage,
};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::admin::Status;
use crate::aggregate::Expected;

/// Inputs that wait for the host; beyond that, connections are read no further.
const INBOX: usize = 1024;

/// One connection of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Session {
    pub(crate) client: ClientId,
    /// Tells connections of one client apart.
    pub(crate) serial: u64,
}

/// What a connection has moved, and its right to upload.
#[derive(Debug)]
pub(crate) struct Traffic {
    pub(crate) sent: AtomicU64,
    pub(crate) received: AtomicU64,
    /// One upload at a time.
    pub(crate) upload: Arc<Semaphore>,
}

impl Default for Traffic {
    fn default() -> Self {
        Self {
            sent: AtomicU64::default(),
            received: AtomicU64::default(),
            upload: Arc::new(Semaphore::new(1)),
        }
    }
}

/// What the host tells a connection.
#[derive(Debug)]
pub(crate) enum Outgoing {
    /// Something for the client.
    Message(Box<ServerMessage>),
    /// The connection must end.
    Close(ErrorCode),
}

/// A client that has connected and said hello.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) client: ClientId,
    pub(crate) hello: Hello,
    pub(crate) outbox: mpsc::Sender<Outgoing>,
    pub(crate) traffic: Arc<Traffic>,
}

/// What reaches the host's thread.
#[derive(Debug)]
pub(crate) enum Input {
    Connect(Box<Arrival>, oneshot::Sender<Result<Session, ErrorCode>>),
    Message(Session, ClientMessage),
    Disconnect(Session),
    MayGet(ClientId, BlobRef, oneshot::Sender<Result<(), BlobRefusal>>),
    MayPut(
        ClientId,
        RoundId,
        BlobRef,
        oneshot::Sender<Result<Expected, BlobRefusal>>,
    ),
    Stored(Stored, oneshot::Sender<Result<(), BlobRefusal>>),
    Rejected(
        ClientId,
        RoundId,
        BlobRef,
        RefuseReason,
        oneshot::Sender<()>,
    ),
    Status(oneshot::Sender<Status>),
    Revoked(Vec<ClientId>),
    Averaged(Box<super::averaging::Averaged>),
    Measured(Box<super::measuring::Measured>),
    Fail(String),
    Stop,
    /// Ends at once, as a crash would.
    Abandon,
}

/// An update that is on disk and sound.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stored {
    pub(crate) client: ClientId,
    pub(crate) round: RoundId,
    pub(crate) blob: BlobRef,
    /// Its length (L2).
    pub(crate) norm: f64,
}

/// Speaks to the host's thread. If that is gone, everything is refused.
#[derive(Clone, Debug)]
pub(crate) struct HostHandle {
    inputs: mpsc::Sender<Input>,
}

impl HostHandle {
    pub(super) fn new() -> (Self, mpsc::Receiver<Input>) {
        let (inputs, receiver) = mpsc::channel(INBOX);
        (Self { inputs }, receiver)
    }

    /// Announces a client; the host decides whether it may take part.
    pub(crate) async fn connect(
        &self,
        client: ClientId,
        hello: Hello,
        outbox: mpsc::Sender<Outgoing>,
        traffic: Arc<Traffic>,
    ) -> Result<Session, ErrorCode> {
        let arrival = Box::new(Arrival {
            client,
            hello,
            outbox,
            traffic,
        });
        let answer = self.ask(|reply| Input::Connect(arrival, reply)).await;
        answer.unwrap_or(Err(ErrorCode::Stopping))
    }

    /// Passes on what a client said.
    pub(crate) async fn message(&self, session: Session, message: ClientMessage) {
        self.tell(Input::Message(session, message)).await;
    }

    /// Says that a connection is gone.
    pub(crate) async fn disconnect(&self, session: Session) {
        self.tell(Input::Disconnect(session)).await;
    }

    /// Whether the client may download the blob.
    pub(crate) async fn may_get(&self, client: ClientId, blob: BlobRef) -> Result<(), BlobRefusal> {
        let answer = self.ask(|reply| Input::MayGet(client, blob, reply)).await;
        answer.unwrap_or(Err(BlobRefusal::Internal))
    }

    /// Whether the client may upload the blob, and what it must be.
    pub(crate) async fn may_put(
        &self,
        client: ClientId,
        round: RoundId,
        blob: BlobRef,
    ) -> Result<Expected, BlobRefusal> {
        let answer = self.ask(|reply| Input::MayPut(client, round, blob, reply));
        answer.await.unwrap_or(Err(BlobRefusal::Internal))
    }

    /// Counts an update; it is in the record when this returns.
    pub(crate) async fn stored(&self, stored: Stored) -> Result<(), BlobRefusal> {
        let answer = self.ask(|reply| Input::Stored(stored, reply)).await;
        answer.unwrap_or(Err(BlobRefusal::Internal))
    }

    /// Refuses an update that is on disk.
    pub(crate) async fn rejected(
        &self,
        client: ClientId,
        round: RoundId,
        blob: BlobRef,
        reason: RefuseReason,
    ) {
        self.ask(|reply| Input::Rejected(client, round, blob, reason, reply))
            .await;
    }

    /// How the run goes; nothing if the host is gone.
    pub(crate) async fn status(&self) -> Option<Status> {
        self.ask(Input::Status).await
    }

    /// Puts clients out that the record says are revoked. May block.
    pub(crate) fn revoke(&self, clients: &[ClientId]) {
        let mut input = Input::Revoked(clients.to_vec());
        // The inbox is full for moments only; a revocation must not get lost.
        while let Err(mpsc::error::TrySendError::Full(back)) = self.inputs.try_send(input) {
            input = back;
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    /// Stops the server because this machine can no longer be trusted to keep a promise.
    pub(crate) async fn fail(&self, reason: String) {
        self.tell(Input::Fail(reason)).await;
    }

    /// Stops the server after telling the clients.
    pub(crate) async fn stop(&self) {
        self.tell(Input::Stop).await;
    }

    /// Ends the host without a word.
    pub(crate) fn abandon(&self) {
        // A full inbox ends with its thread; a closed one has.
        let _ = self.inputs.try_send(Input::Abandon);
    }

    /// For threads that compute.
    pub(super) fn blocking_tell(&self, input: Input) {
        // If the host is gone, nobody waits for it.
        let _ = self.inputs.blocking_send(input);
    }

    async fn tell(&self, input: Input) {
        // If the host is gone, the connections are about to be.
        let _ = self.inputs.send(input).await;
    }

    async fn ask<T>(&self, input: impl FnOnce(oneshot::Sender<T>) -> Input) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.tell(input(reply)).await;
        answer.await.ok()
    }
}
