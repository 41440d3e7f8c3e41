//! The bytes around the values: a header, then one zstd frame.
//!
//! ```text
//! magic         4  "FDL1" for a delta, "FAD1" for an adapter
//! codec         1  0 f32, 1 bf16, 2 int8
//! layout       32  the layout's digest
//! raw length    8  of the values before compression, little-endian
//! zstd frame       one, with content size and checksum, window at most 2^23
//! ```

use std::io::{self, BufRead, BufReader, Chain, Cursor, Read, Write};

use zstd::stream::read::Decoder;
use zstd::stream::write::Encoder;
use zstd::zstd_safe;

use super::{Codec, CodecError, values};
use crate::adapter::Layout;
use crate::id::Digest;

pub(super) const HEADER_BYTES: usize = 45;
const LEVEL: i32 = 1;
const WINDOW_LOG_MAX: u32 = 23;
/// The longest header of a zstd frame.
const FRAME_HEADER_BYTES: u64 = 18;

/// What the bytes hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Delta,
    Adapter,
}

impl Kind {
    fn magic(self) -> [u8; 4] {
        match self {
            Self::Delta => *b"FDL1",
            Self::Adapter => *b"FAD1",
        }
    }
}

pub(super) fn encode(
    kind: Kind,
    layout: &Layout,
    values: &[f32],
    codec: Codec,
) -> Result<Vec<u8>, CodecError> {
    let raw_len = values::raw_len(layout, codec);
    let mut bytes = Vec::with_capacity(HEADER_BYTES + raw_len as usize / 2);
    bytes.extend_from_slice(&kind.magic());
    bytes.push(codec as u8);
    bytes.extend_from_slice(&layout.digest().0);
    bytes.extend_from_slice(&raw_len.to_le_bytes());

    let mut encoder = Encoder::new(bytes, LEVEL).map_err(compressor)?;
    encoder.include_checksum(true).map_err(compressor)?;
    encoder
        .set_pledged_src_size(Some(raw_len))
        .map_err(compressor)?;
    values::write(layout, values, codec, |piece| {
        encoder.write_all(piece).map_err(compressor)
    })?;
    encoder.finish().map_err(compressor)
}

/// The most bytes [`encode`] gives for this layout.
pub(super) fn max_encoded_len(layout: &Layout, codec: Codec) -> u64 {
    let raw_len = values::raw_len(layout, codec) as usize;
    (HEADER_BYTES + zstd_safe::compress_bound(raw_len)) as u64
}

type Source<R> = BufReader<Chain<Cursor<Vec<u8>>, R>>;

/// The values' raw bytes, exactly as many as the layout has.
pub(super) struct Body<R: Read> {
    frame: Decoder<'static, Source<R>>,
}

/// Reads the header and confirms that it is the one of this kind and layout.
pub(super) fn open<R: Read>(
    kind: Kind,
    layout: &Layout,
    expected: Option<Codec>,
    mut reader: R,
) -> Result<(Codec, Body<R>), CodecError> {
    let mut header = [0; HEADER_BYTES];
    reader.read_exact(&mut header).map_err(source)?;
    let (magic, rest) = header.split_at(4);
    if magic != kind.magic() {
        return Err(CodecError::Magic);
    }
    let codec = codec_of(rest[0])?;
    if let Some(expected) = expected.filter(|expected| *expected != codec) {
        return Err(CodecError::WrongCodec {
            expected,
            got: codec,
        });
    }
    let mut digest = Digest::default();
    digest.0.copy_from_slice(&rest[1..33]);
    if digest != layout.digest() {
        let expected = layout.digest();
        return Err(CodecError::WrongLayout {
            expected,
            got: digest,
        });
    }
    let mut length = [0; 8];
    length.copy_from_slice(&rest[33..]);
    let (expected, got) = (values::raw_len(layout, codec), u64::from_le_bytes(length));
    if got != expected {
        return Err(CodecError::RawLength { expected, got });
    }
    Ok((codec, Body::open(reader, expected)?))
}

impl<R: Read> Body<R> {
    fn open(mut reader: R, raw_len: u64) -> Result<Self, CodecError> {
        let mut start = Vec::new();
        let mut head = reader.by_ref().take(FRAME_HEADER_BYTES);
        head.read_to_end(&mut start).map_err(source)?;
        let pledged = zstd_safe::get_frame_content_size(&start)
            .map_err(|_| CodecError::Compressed("no zstd frame".to_owned()))?;
        if pledged != Some(raw_len) {
            let (expected, got) = (raw_len, pledged.unwrap_or(0));
            return Err(CodecError::RawLength { expected, got });
        }
        let source = BufReader::new(Cursor::new(start).chain(reader));
        let mut frame = Decoder::with_buffer(source)
            .map_err(compressor)?
            .single_frame();
        frame.window_log_max(WINDOW_LOG_MAX).map_err(compressor)?;
        Ok(Self { frame })
    }

    /// Confirms that the frame is over and that nothing follows it.
    pub(super) fn finish(&mut self) -> Result<(), CodecError> {
        if self.frame.read(&mut [0]).map_err(source)? != 0 {
            return Err(CodecError::Trailing);
        }
        let rest = self.frame.get_mut().fill_buf().map_err(source)?;
        match rest.is_empty() {
            true => Ok(()),
            false => Err(CodecError::Trailing),
        }
    }
}

impl<R: Read> Read for Body<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.frame.read(buffer)
    }
}

fn codec_of(byte: u8) -> Result<Codec, CodecError> {
    match byte {
        0 => Ok(Codec::F32),
        1 => Ok(Codec::Bf16),
        2 => Ok(Codec::Int8Rows),
        other => Err(CodecError::UnknownCodec(other)),
    }
}

fn compressor(error: io::Error) -> CodecError {
    CodecError::Compressed(error.to_string())
}

fn source(error: io::Error) -> CodecError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => CodecError::Truncated,
        _ => CodecError::Compressed(error.to_string()),
    }
}
