//! Frames: where one message ends and the next begins.

use std::marker::PhantomData;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The most bytes the body of a frame may have.
pub const MAX_BODY_BYTES: usize = 64 * 1024;
const LENGTH_BYTES: usize = 4;

/// Bytes that are no message of this protocol: the peer misbehaves.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The body is empty or too long.
    #[error("a frame has 1 to {MAX_BODY_BYTES} bytes, got {0}")]
    Length(usize),
    /// The body is not one message.
    #[error("malformed message: {0}")]
    Malformed(String),
    /// Bytes are left over behind the message.
    #[error("{0} bytes follow the message")]
    Trailing(usize),
    /// The message could have been written shorter or otherwise.
    #[error("the message is not in canonical form")]
    NotCanonical,
    /// The stream ended within a frame.
    #[error("the stream ended {missing} bytes before the frame did")]
    Truncated {
        /// How many bytes are known to be missing.
        missing: usize,
    },
}

/// Writes `message` as one frame.
///
/// # Errors
///
/// [`WireError::Length`] if the message is too long to be sent.
pub fn encode_frame<M: Serialize>(message: &M) -> Result<Vec<u8>, WireError> {
    let body = encode_body(message)?;
    if body.is_empty() || body.len() > MAX_BODY_BYTES {
        return Err(WireError::Length(body.len()));
    }
    let mut frame = Vec::with_capacity(LENGTH_BYTES + body.len());
    frame.extend_from_slice(&(body.len() as u32).to_le_bytes());
    frame.extend_from_slice(&body);
    Ok(frame)
}

/// Reads the body of a frame, which must be exactly one message in canonical form.
///
/// # Errors
///
/// [`WireError`] if it is anything else.
pub fn decode_body<M: Serialize + DeserializeOwned>(body: &[u8]) -> Result<M, WireError> {
    if body.is_empty() || body.len() > MAX_BODY_BYTES {
        return Err(WireError::Length(body.len()));
    }
    let (message, rest) = postcard::take_from_bytes::<M>(body)
        .map_err(|error| WireError::Malformed(error.to_string()))?;
    if !rest.is_empty() {
        return Err(WireError::Trailing(rest.len()));
    }
    if encode_body(&message)? != body {
        return Err(WireError::NotCanonical);
    }
    Ok(message)
}

/// Cuts a stream of bytes into messages.
///
/// It holds at most one frame beyond what was pushed last, and refuses a
/// length out of bounds before it waits for the bytes. After an error the
/// stream has no more meaning; the connection must be closed.
///
/// ```
/// use fedllm_shared::{ClientMessage, FrameDecoder, RoundId, encode_frame};
///
/// let message = ClientMessage::Accept { round: RoundId(3) };
/// let mut decoder = FrameDecoder::<ClientMessage>::new();
/// for byte in encode_frame(&message)? {
///     assert_eq!(decoder.next()?, None);
///     decoder.push(&[byte]);
/// }
/// assert_eq!(decoder.next()?, Some(message));
/// decoder.finish()?;
/// # Ok::<(), fedllm_shared::WireError>(())
/// ```
#[derive(Debug)]
pub struct FrameDecoder<M> {
    buffer: Vec<u8>,
    message: PhantomData<fn() -> M>,
}

impl<M: Serialize + DeserializeOwned> FrameDecoder<M> {
    /// A decoder at the beginning of a stream.
    pub fn new() -> Self {
        Self {
            buffer: Vec::new(),
            message: PhantomData,
        }
    }

    /// Takes the bytes that came next.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next message, if all its bytes are here.
    ///
    /// # Errors
    ///
    /// [`WireError`] if what came is no message.
    #[expect(clippy::should_implement_trait, reason = "it can fail and go on later")]
    pub fn next(&mut self) -> Result<Option<M>, WireError> {
        let Some(length) = self.length()? else {
            return Ok(None);
        };
        let end = LENGTH_BYTES + length;
        if self.buffer.len() < end {
            return Ok(None);
        }
        let message = decode_body(&self.buffer[LENGTH_BYTES..end])?;
        self.buffer.drain(..end);
        Ok(Some(message))
    }

    /// How many more bytes the frame that has begun needs at least, 0 between frames.
    ///
    /// Reading no more than this from a stream leaves what follows the frame
    /// in the stream, as the blob protocol wants it.
    ///
    /// # Errors
    ///
    /// [`WireError::Length`] if the length that came is out of bounds.
    pub fn missing(&self) -> Result<usize, WireError> {
        let expected = match self.length()? {
            Some(length) => LENGTH_BYTES + length,
            None => LENGTH_BYTES,
        };
        Ok(expected.saturating_sub(self.buffer.len()))
    }

    /// Confirms that the stream may end here.
    ///
    /// # Errors
    ///
    /// [`WireError::Truncated`] within a frame.
    pub fn finish(&self) -> Result<(), WireError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let missing = self.missing()?;
        Err(WireError::Truncated { missing })
    }

    fn length(&self) -> Result<Option<usize>, WireError> {
        let Some(prefix) = self.buffer.first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*prefix) as usize;
        if length == 0 || length > MAX_BODY_BYTES {
            return Err(WireError::Length(length));
        }
        Ok(Some(length))
    }
}

impl<M: Serialize + DeserializeOwned> Default for FrameDecoder<M> {
    fn default() -> Self {
        Self::new()
    }
}

fn encode_body<M: Serialize>(message: &M) -> Result<Vec<u8>, WireError> {
    postcard::to_stdvec(message).map_err(|error| WireError::Malformed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::id::RoundId;
    use crate::wire::{ClientMessage, ErrorCode, MAX_TEXT_BYTES, ServerMessage};

    fn decode<M: Serialize + DeserializeOwned>(bytes: &[u8]) -> Result<Option<M>, WireError> {
        let mut decoder = FrameDecoder::new();
        decoder.push(bytes);
        decoder.next()
    }

    #[test]
    fn a_length_out_of_bounds_is_refused_before_its_bytes_come() {
        for length in [0, MAX_BODY_BYTES + 1, u32::MAX as usize] {
            let prefix = (length as u32).to_le_bytes();
            assert_eq!(
                decode::<ClientMessage>(&prefix),
                Err(WireError::Length(length))
            );
        }
    }

    #[test]
    fn trailing_bytes_and_long_integers_are_refused() {
        // Accept { round: 5 } is 01 05.
        let frame = |body: &[u8]| [&(body.len() as u32).to_le_bytes(), body].concat();
        let accept = ClientMessage::Accept { round: RoundId(5) };
        assert_eq!(decode(&frame(&[1, 5])), Ok(Some(accept)));
        assert_eq!(
            decode::<ClientMessage>(&frame(&[1, 5, 0])),
            Err(WireError::Trailing(1))
        );
        assert_eq!(
            decode::<ClientMessage>(&frame(&[1, 0x85, 0])),
            Err(WireError::NotCanonical)
        );
        for body in [&[99][..], &[1], &[1, 0x80]] {
            let error = decode::<ClientMessage>(&frame(body)).unwrap_err();
            assert!(matches!(error, WireError::Malformed(_)), "{error}");
        }
    }

    #[test]
    fn long_texts_are_cut_by_us_and_refused_from_others() {
        let long = ServerMessage::Error {
            code: ErrorCode::Internal,
            message: "ä".repeat(400),
        };
        let frame = encode_frame(&long).unwrap();
        let Some(ServerMessage::Error { message, .. }) = decode(&frame).unwrap() else {
            panic!("another message");
        };
        assert_eq!(message, "ä".repeat(MAX_TEXT_BYTES / 2));

        let mut body = frame[LENGTH_BYTES..].to_vec();
        body[2..4].copy_from_slice(&[0x81, 0x04]);
        body.push(b'x');
        let error = decode_body::<ServerMessage>(&body).unwrap_err();
        assert!(matches!(error, WireError::Malformed(_)), "{error}");
    }

    #[test]
    fn a_stream_may_end_between_frames_only() {
        let frame = encode_frame(&ClientMessage::Leaving).unwrap();
        let mut decoder = FrameDecoder::<ClientMessage>::new();
        assert_eq!(decoder.missing(), Ok(4));
        decoder.push(&frame[..4]);
        assert_eq!(decoder.finish(), Err(WireError::Truncated { missing: 1 }));
        decoder.push(&frame[4..]);
        assert_eq!(decoder.next(), Ok(Some(ClientMessage::Leaving)));
        assert_eq!(decoder.finish(), Ok(()));
    }

    proptest! {
        #[test]
        fn any_bytes_give_messages_or_an_error(
            bytes in proptest::collection::vec(any::<u8>(), 0..600),
        ) {
            let mut decoder = FrameDecoder::<ServerMessage>::new();
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.next() {}
            let _ = decode_body::<ServerMessage>(&bytes);
            let _ = decode_body::<ClientMessage>(&bytes);
        }

        #[test]
        fn frames_survive_any_cutting(
            rounds in proptest::collection::vec(any::<u64>(), 0..20),
            cut in 1usize..9,
        ) {
            let messages: Vec<_> = rounds
                .into_iter()
                .map(|round| ClientMessage::Accept { round: RoundId(round) })
                .collect();
            let frames = messages.iter().map(|message| encode_frame(message).unwrap());
            let bytes: Vec<u8> = frames.flatten().collect();
            let mut decoder = FrameDecoder::<ClientMessage>::new();
            let mut got = Vec::new();
            for piece in bytes.chunks(cut) {
                decoder.push(piece);
                while let Some(message) = decoder.next().unwrap() {
                    got.push(message);
                }
            }
            prop_assert_eq!(got, messages);
            prop_assert_eq!(decoder.finish(), Ok(()));
        }
    }
}
