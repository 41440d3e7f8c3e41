//! Reading and writing QUIC streams with bounds in bytes and in time.

use std::time::Duration;

use fedllm_shared::{FrameDecoder, WireError, encode_frame};
use quinn::{ReadError, RecvStream, SendStream, WriteError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::time::{Instant, timeout, timeout_at};

/// A peer that sends or takes fewer than [`PROGRESS_BYTES`] in this time is cut off.
const PROGRESS_WINDOW: Duration = Duration::from_secs(30);
const PROGRESS_BYTES: usize = 16 << 10;

/// Why a stream ended early.
#[derive(Debug, Error)]
pub(crate) enum StreamError {
    /// The peer sent what is no message.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The stream or its connection is gone.
    #[error("reading: {0}")]
    Read(#[from] ReadError),
    /// The stream or its connection is gone.
    #[error("writing: {0}")]
    Write(#[from] WriteError),
    /// The peer ended the stream where more was due.
    #[error("the peer ended the stream too early")]
    Ended,
    /// The peer is too slow, or pretends to be.
    #[error("the peer made no progress")]
    Stalled,
}

/// Reads the next message, or `None` where the stream ends between two.
///
/// It reads no byte beyond the message, so that chunks may follow in the same stream.
pub(crate) async fn read_message<M: Serialize + DeserializeOwned>(
    recv: &mut RecvStream,
    decoder: &mut FrameDecoder<M>,
) -> Result<Option<M>, StreamError> {
    let mut buffer = [0; 4096];
    loop {
        if let Some(message) = decoder.next()? {
            return Ok(Some(message));
        }
        let wanted = decoder.missing()?.clamp(1, buffer.len());
        match recv.read(&mut buffer[..wanted]).await? {
            Some(count) => decoder.push(&buffer[..count]),
            None => {
                decoder.finish()?;
                return Ok(None);
            }
        }
    }
}

/// Reads the first message of a stream, which must come within `limit`.
pub(crate) async fn read_first<M: Serialize + DeserializeOwned>(
    recv: &mut RecvStream,
    decoder: &mut FrameDecoder<M>,
    limit: Duration,
) -> Result<M, StreamError> {
    match timeout(limit, read_message(recv, decoder)).await {
        Ok(message) => message?.ok_or(StreamError::Ended),
        Err(_) => Err(StreamError::Stalled),
    }
}

/// Writes one message.
pub(crate) async fn write_message<M: Serialize>(
    send: &mut SendStream,
    message: &M,
) -> Result<(), StreamError> {
    write_all(send, &encode_frame(message)?).await
}

/// Fills `buffer`, as long as the peer keeps a minimum pace.
pub(crate) async fn read_exact(
    recv: &mut RecvStream,
    buffer: &mut [u8],
) -> Result<(), StreamError> {
    let mut pace = Pace::new();
    let mut filled = 0;
    while filled < buffer.len() {
        let read = timeout_at(pace.until, recv.read(&mut buffer[filled..]));
        let count = read.await.map_err(|_| StreamError::Stalled)??;
        let count = count.ok_or(StreamError::Ended)?;
        filled += count;
        pace.moved(count);
    }
    Ok(())
}

/// Writes `bytes`, as long as the peer keeps a minimum pace.
pub(crate) async fn write_all(send: &mut SendStream, bytes: &[u8]) -> Result<(), StreamError> {
    let mut pace = Pace::new();
    let mut written = 0;
    while written < bytes.len() {
        let write = timeout_at(pace.until, send.write(&bytes[written..]));
        let count = write.await.map_err(|_| StreamError::Stalled)??;
        written += count;
        pace.moved(count);
    }
    Ok(())
}

/// Every window must see some bytes, however long the whole transfer takes.
struct Pace {
    until: Instant,
    bytes: usize,
}

impl Pace {
    fn new() -> Self {
        Self {
            until: Instant::now() + PROGRESS_WINDOW,
            bytes: 0,
        }
    }

    fn moved(&mut self, count: usize) {
        self.bytes += count;
        if self.bytes >= PROGRESS_BYTES {
            *self = Self::new();
        }
    }
}
