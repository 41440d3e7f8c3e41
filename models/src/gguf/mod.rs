//! GGUF files, versions 2 and 3, little-endian: a bounded reader and a small writer.

mod error;
mod parse;
mod value;
mod write;

pub use error::{GgufError, GgufFault};
pub use value::{MetaKind, MetaValue};
pub use write::GgufWriter;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::{BlockFormat, MappedBytes, QuantMatrix};

const MAGIC: [u8; 4] = *b"GGUF";
const DEFAULT_ALIGNMENT: u64 = 32;
const ALIGNMENT_KEY: &str = "general.alignment";

/// An open GGUF file: its metadata, and its tensors in place in the mapped file.
///
/// Opening reads the header only and checks all of it: every count, length, type,
/// offset and size is inside the file.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    bytes: MappedBytes,
    version: u32,
    metadata: HashMap<String, MetaValue>,
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
    header_len: usize,
}

/// What the header says about one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The tensor's name, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// Sizes in the file's order: the first is the length of a row.
    pub dims: Vec<usize>,
    /// How its rows are stored.
    pub format: BlockFormat,
    /// Where its bytes begin in the file.
    pub offset: usize,
    /// How many bytes it has.
    pub len: usize,
}

impl TensorInfo {
    /// Values in a row.
    pub fn cols(&self) -> usize {
        self.dims.first().copied().unwrap_or(1)
    }

    /// Rows: the product of all sizes but the first.
    pub fn rows(&self) -> usize {
        self.dims.iter().skip(1).product()
    }
}

impl Gguf {
    /// Maps the file at `path` and checks its header.
    ///
    /// # Errors
    ///
    /// [`GgufError`] with the file, the key or tensor, and what is wrong with it.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let bytes = MappedBytes::open(path).map_err(|e| GgufError::io(path, e))?;
        Self::from_bytes(path, bytes)
    }

    /// Checks the header of a file that is already at hand; `path` is for messages.
    ///
    /// # Errors
    ///
    /// As [`Gguf::open`].
    pub fn from_bytes(path: &Path, bytes: impl Into<MappedBytes>) -> Result<Self, GgufError> {
        let bytes = bytes.into();
        parse::parse(path, bytes).map_err(|fault| GgufError::new(path, fault))
    }

    /// The file that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The format version: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The value of metadata key `key`.
    pub fn get(&self, key: &str) -> Option<&MetaValue> {
        self.metadata.get(key)
    }

    /// Every metadata key, in no order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.metadata.keys().map(String::as_str)
    }

    /// What the header says about every tensor, in file order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// What the header says about the tensor `name`.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&index| &self.tensors[index])
    }

    /// The tensor `name` as a matrix of rows, in place.
    pub fn tensor(&self, name: &str) -> Option<QuantMatrix> {
        let info = self.info(name)?;
        let bytes = self.bytes.slice(info.offset..info.offset + info.len)?;
        QuantMatrix::new(info.rows(), info.cols(), info.format, bytes).ok()
    }

    /// Bytes before the first tensor: magic, metadata and tensor table.
    pub fn header_len(&self) -> usize {
        self.header_len
    }

    /// Bytes of the whole file.
    pub fn file_len(&self) -> usize {
        self.bytes.len()
    }

    /// The text under `key`.
    ///
    /// # Errors
    ///
    /// [`GgufFault::MissingKey`] or [`GgufFault::WrongKind`].
    pub fn text(&self, key: &str) -> Result<&str, GgufError> {
        let value = self.required(key)?;
        value
            .as_str()
            .ok_or_else(|| self.wrong_kind(key, "text", value))
    }

    /// The non-negative whole number under `key`.
    ///
    /// # Errors
    ///
    /// [`GgufFault::MissingKey`] or [`GgufFault::WrongKind`].
    pub fn whole(&self, key: &str) -> Result<u64, GgufError> {
        let value = self.required(key)?;
        value
            .as_u64()
            .ok_or_else(|| self.wrong_kind(key, "a whole number", value))
    }

    /// The number under `key`.
    ///
    /// # Errors
    ///
    /// [`GgufFault::MissingKey`] or [`GgufFault::WrongKind`].
    pub fn number(&self, key: &str) -> Result<f64, GgufError> {
        let value = self.required(key)?;
        value
            .as_f64()
            .ok_or_else(|| self.wrong_kind(key, "a number", value))
    }

    /// An error about this file, for readers that build on it.
    pub fn fault(&self, fault: GgufFault) -> GgufError {
        GgufError::new(&self.path, fault)
    }

    fn required(&self, key: &str) -> Result<&MetaValue, GgufError> {
        self.get(key)
            .ok_or_else(|| self.fault(GgufFault::MissingKey(key.to_owned())))
    }

    fn wrong_kind(&self, key: &str, expected: &'static str, got: &MetaValue) -> GgufError {
        self.fault(GgufFault::WrongKind {
            key: key.to_owned(),
            expected,
            got: got.kind(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let mut writer = GgufWriter::new();
        writer.set("general.architecture", MetaValue::from("llama"));
        writer.set("a.number", MetaValue::U32(7));
        writer.set("a.list", MetaValue::strings(["x", "y"]));
        writer
            .tensor("w", &[32, 2], BlockFormat::Q8_0, vec![1; 68])
            .unwrap();
        writer
            .tensor("n", &[3], BlockFormat::F32, vec![0; 12])
            .unwrap();
        writer.to_bytes()
    }

    fn open(bytes: Vec<u8>) -> Result<Gguf, GgufError> {
        Gguf::from_bytes(Path::new("test.gguf"), bytes)
    }

    #[test]
    fn what_is_written_is_read() {
        let gguf = open(sample()).unwrap();
        assert_eq!(gguf.version(), 3);
        assert_eq!(gguf.text("general.architecture").unwrap(), "llama");
        assert_eq!(gguf.whole("a.number").unwrap(), 7);
        assert_eq!(gguf.get("a.list").unwrap().texts().unwrap(), ["x", "y"]);
        let w = gguf.tensor("w").unwrap();
        assert_eq!((w.rows(), w.cols(), w.format()), (2, 32, BlockFormat::Q8_0));
        assert_eq!(gguf.info("w").unwrap().offset % 32, 0);
        assert_eq!(gguf.tensor("n").unwrap().rows(), 1);
        assert!(gguf.tensor("nothing").is_none());
    }

    #[test]
    fn every_shorter_file_is_refused() {
        let bytes = sample();
        for len in 0..bytes.len() - 20 {
            assert!(open(bytes[..len].to_vec()).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn every_changed_byte_is_refused_or_harmless() {
        let bytes = sample();
        for at in 0..bytes.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut changed = bytes.clone();
                changed[at] ^= flip;
                // No panic and no huge allocation; some changes are still valid files.
                if let Ok(gguf) = open(changed) {
                    for info in gguf.tensors() {
                        assert!(info.offset + info.len <= bytes.len());
                    }
                }
            }
        }
    }

    #[test]
    fn errors_name_the_file_and_the_fault() {
        let err = open(b"GGML nonsense that is long enough".to_vec()).unwrap_err();
        assert_eq!(
            err.to_string(),
            "test.gguf is no GGUF file: it begins with \"GGML\""
        );
        let mut huge = sample();
        huge[16..24].copy_from_slice(&u64::MAX.to_le_bytes());
        let err = open(huge).unwrap_err().to_string();
        assert!(err.contains("metadata"), "{err}");
        let err = open(sample()).unwrap().whole("general.architecture");
        assert!(err.unwrap_err().to_string().contains("is text"));
    }

    #[test]
    fn unknown_tensor_types_are_named() {
        let mut writer = GgufWriter::new();
        writer
            .tensor("blk.0.ffn_up.weight", &[32], BlockFormat::Q4_0, vec![0; 18])
            .unwrap();
        let mut bytes = writer.to_bytes();
        let at = bytes
            .windows(19)
            .position(|w| w == b"blk.0.ffn_up.weight")
            .unwrap();
        // Name, dimension count, one dimension, then the type.
        bytes[at + 19 + 4 + 8] = 23;
        let err = open(bytes).unwrap_err().to_string();
        assert!(
            err.contains("blk.0.ffn_up.weight") && err.contains("IQ4_XS"),
            "{err}"
        );
    }
}
