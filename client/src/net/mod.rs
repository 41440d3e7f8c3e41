//! How messages and blobs reach the server: over QUIC, or through memory.
//!
//! A [`Transport`] carries control messages, in order, both ways; its [`Streams`] carry blobs.
//! What is sent on them is the same in both implementations.

mod blobs;
mod error;
mod join;
mod loopback;
mod quic;
mod tls;

use std::future::Future;

use fedllm_shared::{ClientMessage, ServerMessage};
use tokio::io::{AsyncRead, AsyncWrite};

pub use blobs::{get, put};
#[cfg(test)]
pub(crate) use blobs::{read_chunks, receive as receive_frame, send as send_frame, write_chunks};
pub use error::NetError;
pub(crate) use error::readable;
pub use join::{JoinError, join};
pub use loopback::{LoopbackServer, LoopbackStreams, LoopbackTransport, loopback};
pub use quic::{Congestion, DialOptions, QuicDialer, QuicStreams, QuicTransport};

/// A connection to a server.
pub trait Transport: Send + 'static {
    /// Opens streams for blobs on the same connection.
    type Streams: Streams;

    /// Sends one message; returns how many bytes it took.
    ///
    /// # Errors
    ///
    /// [`NetError`] if the connection is gone.
    fn send(
        &mut self,
        message: &ClientMessage,
    ) -> impl Future<Output = Result<u64, NetError>> + Send;

    /// Waits for the next message. Dropping the future loses nothing.
    ///
    /// # Errors
    ///
    /// [`NetError`] if the connection is gone or the server misbehaves.
    fn receive(&mut self) -> impl Future<Output = Result<ServerMessage, NetError>> + Send;

    /// The streams of this connection.
    fn streams(&self) -> Self::Streams;

    /// Ends the connection after what was sent has arrived, as far as that takes little time.
    fn close(self) -> impl Future<Output = ()> + Send;
}

/// Opens two-way streams, one for each blob.
pub trait Streams: Clone + Send + Sync + 'static {
    /// What the server sends.
    type Reader: AsyncRead + Unpin + Send;
    /// What the server receives.
    type Writer: AsyncWrite + Unpin + Send;

    /// Opens a stream.
    ///
    /// # Errors
    ///
    /// [`NetError`] if the connection is gone.
    fn open(&self) -> impl Future<Output = Result<(Self::Reader, Self::Writer), NetError>> + Send;
}

/// Makes connections; a client keeps it for as long as it takes part.
pub trait Dial: Send {
    /// What a connection is.
    type Transport: Transport;

    /// Connects once.
    ///
    /// # Errors
    ///
    /// [`NetError`]; [`is_transient`](NetError::is_transient) tells whether to try again.
    fn dial(&mut self) -> impl Future<Output = Result<Self::Transport, NetError>> + Send;
}
