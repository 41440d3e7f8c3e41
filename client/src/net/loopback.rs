//! A connection through memory: for tests, and for simulated clients.
//!
//! Messages still pass through their encoding, and blobs through their chunks.

use fedllm_shared::{ClientMessage, ServerMessage, decode_body, encode_frame};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{NetError, Streams, Transport};

/// Bytes that a blob stream holds before its writer must wait.
const STREAM_BYTES: usize = 64 * 1024;

/// Connects a client and a server in memory.
pub fn loopback() -> (LoopbackTransport, LoopbackServer) {
    let (to_server, from_client) = unbounded_channel();
    let (to_client, from_server) = unbounded_channel();
    let (opened, streams) = unbounded_channel();
    let client = LoopbackTransport {
        sender: to_server,
        receiver: from_server,
        streams: LoopbackStreams(opened),
    };
    (
        client,
        LoopbackServer {
            sender: to_client,
            receiver: from_client,
            streams,
        },
    )
}

/// The client's end.
#[derive(Debug)]
pub struct LoopbackTransport {
    sender: UnboundedSender<Vec<u8>>,
    receiver: UnboundedReceiver<Vec<u8>>,
    streams: LoopbackStreams,
}

/// Opens blob streams to a [`LoopbackServer`].
#[derive(Clone, Debug)]
pub struct LoopbackStreams(UnboundedSender<DuplexStream>);

/// The server's end.
#[derive(Debug)]
pub struct LoopbackServer {
    sender: UnboundedSender<Vec<u8>>,
    receiver: UnboundedReceiver<Vec<u8>>,
    streams: UnboundedReceiver<DuplexStream>,
}

impl Transport for LoopbackTransport {
    type Streams = LoopbackStreams;

    async fn send(&mut self, message: &ClientMessage) -> Result<u64, NetError> {
        send(&self.sender, message)
    }

    async fn receive(&mut self) -> Result<ServerMessage, NetError> {
        receive(&mut self.receiver).await
    }

    fn streams(&self) -> LoopbackStreams {
        self.streams.clone()
    }

    async fn close(self) {}
}

impl Streams for LoopbackStreams {
    type Reader = ReadHalf<DuplexStream>;
    type Writer = WriteHalf<DuplexStream>;

    async fn open(&self) -> Result<(Self::Reader, Self::Writer), NetError> {
        let (ours, theirs) = tokio::io::duplex(STREAM_BYTES);
        self.0.send(theirs).map_err(|_| gone())?;
        Ok(tokio::io::split(ours))
    }
}

impl LoopbackServer {
    /// Sends a message to the client.
    ///
    /// # Errors
    ///
    /// [`NetError::Lost`] if the client is gone.
    pub fn send(&self, message: &ServerMessage) -> Result<(), NetError> {
        send(&self.sender, message).map(drop)
    }

    /// Waits for the client's next message. Dropping the future loses nothing.
    ///
    /// # Errors
    ///
    /// [`NetError::Lost`] if the client is gone.
    pub async fn receive(&mut self) -> Result<ClientMessage, NetError> {
        receive(&mut self.receiver).await
    }

    /// Waits for the client's next blob stream. Dropping the future loses nothing.
    ///
    /// # Errors
    ///
    /// [`NetError::Lost`] if the client is gone.
    pub async fn accept(&mut self) -> Result<DuplexStream, NetError> {
        self.streams.recv().await.ok_or_else(gone)
    }
}

fn send(sender: &UnboundedSender<Vec<u8>>, message: &impl Serialize) -> Result<u64, NetError> {
    let frame = encode_frame(message).map_err(|error| NetError::Malformed(error.to_string()))?;
    let len = frame.len() as u64;
    sender.send(frame).map_err(|_| gone())?;
    Ok(len)
}

async fn receive<M: Serialize + DeserializeOwned>(
    receiver: &mut UnboundedReceiver<Vec<u8>>,
) -> Result<M, NetError> {
    let frame = receiver.recv().await.ok_or_else(gone)?;
    // A frame begins with the four bytes of its length.
    decode_body(frame.get(4..).unwrap_or_default())
        .map_err(|error| NetError::Malformed(error.to_string()))
}

fn gone() -> NetError {
    NetError::Lost("the other end is gone".to_owned())
}
