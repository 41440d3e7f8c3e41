//! Deltas and adapters as bytes.
//!
//! Both sides know the layout and the codec before a byte arrives, so every
//! length is known too: whatever the bytes say is compared, never believed.

mod container;
mod values;

use std::fmt;
use std::io::Read;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use self::container::{Body, Kind};
use self::values::ValueReader;
use crate::adapter::{Adapter, AdapterError, Delta, Layout};
use crate::id::Digest;

/// How the values of a delta are written. Grows at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Codec {
    /// Each value in 4 bytes: exact.
    F32,
    /// Each value in 2 bytes, rounded to 8 significant bits.
    Bf16,
    /// Each value in 1 byte, with an `f32` scale for each row of a tensor.
    #[serde(rename = "int8")]
    Int8Rows,
}

impl Codec {
    /// The name in configuration files: `f32`, `bf16` or `int8`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8Rows => "int8",
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A text that names no codec.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected f32, bf16 or int8, got {0:?}")]
pub struct ParseCodecError(String);

impl FromStr for Codec {
    type Err = ParseCodecError;

    fn from_str(text: &str) -> Result<Self, ParseCodecError> {
        [Self::F32, Self::Bf16, Self::Int8Rows]
            .into_iter()
            .find(|codec| codec.name() == text)
            .ok_or_else(|| ParseCodecError(text.chars().take(80).collect()))
    }
}

/// Bytes that are no delta or adapter of the layout: the peer misbehaves, or a disk fails.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// It does not begin as it should.
    #[error("not an encoded delta or adapter of version 1")]
    Magic,
    /// A codec this version does not know.
    #[error("unknown codec {0}")]
    UnknownCodec(u8),
    /// Another codec than agreed.
    #[error("expected codec {expected}, got {got}")]
    WrongCodec {
        /// What was agreed.
        expected: Codec,
        /// What the header says.
        got: Codec,
    },
    /// Another layout than agreed.
    #[error("expected layout {expected}, got {got}")]
    WrongLayout {
        /// What was agreed.
        expected: Digest,
        /// What the header says.
        got: Digest,
    },
    /// A length that layout and codec do not give.
    #[error("expected {expected} bytes of values, got {got}")]
    RawLength {
        /// What layout and codec give.
        expected: u64,
        /// What the header or the frame says; 0 if it says nothing.
        got: u64,
    },
    /// The bytes end too early.
    #[error("the encoded bytes are cut short")]
    Truncated,
    /// The bytes go on after their end.
    #[error("bytes follow the encoded values")]
    Trailing,
    /// The compressed frame is damaged or asks for too much memory.
    #[error("the compressed values cannot be read: {0}")]
    Compressed(String),
    /// A row whose scale or values `int8` does not have.
    #[error("row {row} of {tensor} is not int8 as this codec writes it")]
    Row {
        /// The tensor's name.
        tensor: String,
        /// The row.
        row: u32,
    },
    /// A value that is not finite, or not so after rounding.
    #[error(transparent)]
    Value(#[from] AdapterError),
}

impl Codec {
    /// The most bytes an encoded delta or adapter of `layout` has: a longer
    /// blob need not be read.
    pub fn max_encoded_len(self, layout: &Layout) -> u64 {
        container::max_encoded_len(layout, self)
    }
}

/// Writes a delta.
///
/// # Errors
///
/// [`CodecError::Value`] if a value is too large for `bf16`.
pub fn encode_delta(delta: &Delta, codec: Codec) -> Result<Vec<u8>, CodecError> {
    container::encode(Kind::Delta, delta.layout(), delta.values(), codec)
}

/// Reads a delta that was written with `codec`.
///
/// # Errors
///
/// [`CodecError`] if the bytes are anything else.
pub fn decode_delta(bytes: &[u8], layout: &Arc<Layout>, codec: Codec) -> Result<Delta, CodecError> {
    let decoder = DeltaDecoder::new(layout.clone(), codec, bytes)?;
    Ok(Delta::new(layout.clone(), decoder.read_all()?)?)
}

/// Writes an adapter.
///
/// # Errors
///
/// [`CodecError::Value`] if a value is too large for `bf16`.
pub fn encode_adapter(adapter: &Adapter, codec: Codec) -> Result<Vec<u8>, CodecError> {
    container::encode(Kind::Adapter, adapter.layout(), adapter.values(), codec)
}

/// Reads an adapter, whichever codec it was written with.
///
/// # Errors
///
/// [`CodecError`] if the bytes are anything else.
pub fn decode_adapter(bytes: &[u8], layout: &Arc<Layout>) -> Result<Adapter, CodecError> {
    let (codec, body) = container::open(Kind::Adapter, layout, None, bytes)?;
    let decoder = DeltaDecoder::reading(layout.clone(), codec, body);
    Ok(Adapter::new(layout.clone(), decoder.read_all()?)?)
}

/// Reads a delta block by block, so that none is ever in memory as a whole.
///
/// It holds a few hundred kilobytes of values and a compression window of at
/// most 8 MiB, whatever the bytes claim. Every value it gives out is finite.
/// Only when [`DeltaDecoder::next_block`] has returned 0 is it known that the
/// bytes were sound to their end.
///
/// ```
/// use std::sync::Arc;
/// use fedllm_shared::{Codec, Delta, DeltaDecoder, Layout, TensorSpec, encode_delta};
///
/// let spec = TensorSpec { name: "a".into(), rows: 2, cols: 3 };
/// let layout = Arc::new(Layout::new(vec![spec])?);
/// let delta = Delta::new(layout.clone(), vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0])?;
/// let bytes = encode_delta(&delta, Codec::F32)?;
///
/// let mut decoder = DeltaDecoder::new(layout, Codec::F32, bytes.as_slice())?;
/// let mut block = [0.0; 4];
/// assert_eq!(decoder.next_block(&mut block)?, 4);
/// assert_eq!(decoder.next_block(&mut block)?, 2);
/// assert_eq!(block[..2], [5.0, 6.0]);
/// assert_eq!(decoder.next_block(&mut block)?, 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct DeltaDecoder<R: Read> {
    values: ValueReader,
    body: Body<R>,
    layout: Arc<Layout>,
    finished: bool,
}

impl<R: Read> DeltaDecoder<R> {
    /// Reads the header and checks it against what was agreed.
    ///
    /// # Errors
    ///
    /// [`CodecError`] if they differ; nothing was allocated by the header's word.
    pub fn new(layout: Arc<Layout>, codec: Codec, reader: R) -> Result<Self, CodecError> {
        let (codec, body) = container::open(Kind::Delta, &layout, Some(codec), reader)?;
        Ok(Self::reading(layout, codec, body))
    }

    fn reading(layout: Arc<Layout>, codec: Codec, body: Body<R>) -> Self {
        Self {
            values: ValueReader::new(layout.clone(), codec),
            body,
            layout,
            finished: false,
        }
    }

    /// The layout of the values.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// How many values were given out: where the next block begins.
    pub fn position(&self) -> usize {
        self.values.position()
    }

    /// Fills `block` with the values that come next and says how many they are.
    ///
    /// It is fewer than the block holds only at the end, and 0 after it.
    ///
    /// # Errors
    ///
    /// [`CodecError`] if the bytes are damaged or a value is not finite; the
    /// whole delta must then be dropped.
    pub fn next_block(&mut self, block: &mut [f32]) -> Result<usize, CodecError> {
        let count = self.values.read(&mut self.body, block)?;
        if self.values.is_done() && !self.finished {
            self.body.finish()?;
            self.finished = true;
        }
        Ok(count)
    }

    /// All values that are left.
    ///
    /// # Errors
    ///
    /// Those of [`DeltaDecoder::next_block`].
    pub fn read_all(mut self) -> Result<Vec<f32>, CodecError> {
        let mut values = vec![0.0; self.layout.len() - self.position()];
        self.next_block(&mut values)?;
        Ok(values)
    }
}

impl<R: Read> fmt::Debug for DeltaDecoder<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeltaDecoder")
            .field("values", &self.values)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
