//! What can be wrong with a GGUF file.

use std::io;
use std::path::{Path, PathBuf};

use super::MetaKind;

/// A GGUF file that cannot be used, and why.
#[derive(Debug, thiserror::Error)]
#[error("{} {fault}", path.display())]
pub struct GgufError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub fault: GgufFault,
}

impl GgufError {
    pub(super) fn new(path: &Path, fault: GgufFault) -> Self {
        Self {
            path: path.to_owned(),
            fault,
        }
    }

    pub(super) fn io(path: &Path, error: io::Error) -> Self {
        Self::new(path, GgufFault::Io(error))
    }
}

/// What is wrong with a GGUF file. Each message continues the file's name.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufFault {
    /// The file cannot be read or written.
    #[error("cannot be read or written: {0}")]
    Io(io::Error),
    /// The first four bytes are not `GGUF`.
    #[error("is no GGUF file: it begins with {0:?}")]
    NotGguf(String),
    /// A version that we do not read.
    #[error("has GGUF version {0}; versions 2 and 3 are read")]
    UnsupportedVersion(u32),
    /// The file was written on a big-endian machine.
    #[error("is big-endian; only little-endian GGUF files are read")]
    BigEndian,
    /// The file ends too early.
    #[error("is truncated: {what} needs {need} bytes at byte {at}, but the file has {have} bytes")]
    Truncated {
        /// What was being read.
        what: String,
        /// Where it begins.
        at: u64,
        /// How long it is.
        need: u64,
        /// How long the file is.
        have: u64,
    },
    /// A count or length is larger than any real file's.
    #[error("has {what} of {got}, more than the limit of {limit}")]
    TooMany {
        /// What was counted.
        what: String,
        /// The count in the file.
        got: u64,
        /// The largest that we accept.
        limit: u64,
    },
    /// Text that is not UTF-8.
    #[error("has text that is not UTF-8 in {0}")]
    NotUtf8(String),
    /// A metadata value of a type that does not exist.
    #[error("has a value of unknown type {kind} under metadata key {key:?}")]
    UnknownKind {
        /// The metadata key.
        key: String,
        /// The type's number.
        kind: u32,
    },
    /// A key or tensor name occurs twice.
    #[error("has {0} twice")]
    Duplicate(String),
    /// A tensor is stored in a format that we do not read.
    #[error(
        "has tensor {tensor:?} in format {format}; F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K and Q6_K are read"
    )]
    UnsupportedFormat {
        /// The tensor.
        tensor: String,
        /// The format's name or number.
        format: String,
    },
    /// A tensor's shape makes no sense.
    #[error("has tensor {tensor:?} of shape {dims:?}, which {reason}")]
    WrongShape {
        /// The tensor.
        tensor: String,
        /// Its sizes, in file order.
        dims: Vec<u64>,
        /// What is wrong with them.
        reason: String,
    },
    /// A tensor does not begin at a multiple of the alignment.
    #[error("has tensor {tensor:?} at offset {offset}, no multiple of the alignment {alignment}")]
    Misaligned {
        /// The tensor.
        tensor: String,
        /// Its offset in the data section.
        offset: u64,
        /// The file's alignment.
        alignment: u64,
    },
    /// The alignment is zero, huge, or no power of two.
    #[error("has alignment {0}, which is no power of two up to 65536")]
    WrongAlignment(u64),
    /// A metadata key that we need is absent.
    #[error("has no metadata key {0:?}")]
    MissingKey(String),
    /// A metadata value is of another type than we need.
    #[error("has metadata key {key:?}, which is {got}, not {expected}")]
    WrongKind {
        /// The metadata key.
        key: String,
        /// What it should be.
        expected: &'static str,
        /// What it is.
        got: MetaKind,
    },
    /// A metadata value is outside of what we accept.
    #[error("has metadata key {key:?} = {got}: {reason}")]
    WrongValue {
        /// The metadata key.
        key: String,
        /// Its value.
        got: String,
        /// What is wrong with it.
        reason: String,
    },
}
