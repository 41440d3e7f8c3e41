//! Writes GGUF version 3.

use std::path::Path;

use super::{DEFAULT_ALIGNMENT, GgufError, MAGIC, MetaValue};
use crate::files::replace;
use crate::{BlockFormat, QuantError};

/// Collects metadata and tensors, then writes them as one GGUF file.
///
/// Keys and tensors are written in the order in which they were given. Tensor data is
/// aligned to 32 bytes, the format's default.
#[derive(Debug, Default)]
pub struct GgufWriter {
    metadata: Vec<(String, MetaValue)>,
    tensors: Vec<Tensor>,
}

#[derive(Debug)]
struct Tensor {
    name: String,
    dims: Vec<usize>,
    format: BlockFormat,
    bytes: Vec<u8>,
}

impl GgufWriter {
    /// A file with no metadata and no tensors.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets metadata key `key`, replacing an earlier value.
    pub fn set(&mut self, key: &str, value: MetaValue) {
        match self.metadata.iter_mut().find(|(k, _)| k == key) {
            Some((_, old)) => *old = value,
            None => self.metadata.push((key.to_owned(), value)),
        }
    }

    /// Adds a tensor. `dims` is in the file's order: the length of a row comes first.
    ///
    /// # Errors
    ///
    /// [`QuantError`] if the bytes are not as many as the shape and format need.
    pub fn tensor(
        &mut self,
        name: &str,
        dims: &[usize],
        format: BlockFormat,
        bytes: Vec<u8>,
    ) -> Result<(), QuantError> {
        let cols = dims.first().copied().unwrap_or(1);
        let rows = dims.iter().skip(1).product();
        let row = format.row_bytes(cols).ok_or(QuantError::PartialBlock {
            format,
            cols,
            block: format.block_size(),
        })?;
        if rows * row != bytes.len() {
            return Err(QuantError::WrongLength {
                format,
                rows,
                cols,
                expected: rows * row,
                got: bytes.len(),
            });
        }
        self.tensors.push(Tensor {
            name: name.to_owned(),
            dims: dims.to_vec(),
            format,
            bytes,
        });
        Ok(())
    }

    /// The whole file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(MAGIC);
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            text(&mut out, key);
            out.extend((value.kind() as u32).to_le_bytes());
            put(&mut out, value);
        }
        let mut offset = 0;
        for tensor in &self.tensors {
            text(&mut out, &tensor.name);
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            for &dim in &tensor.dims {
                out.extend((dim as u64).to_le_bytes());
            }
            out.extend(tensor.format.ggml_id().to_le_bytes());
            out.extend((offset as u64).to_le_bytes());
            offset += tensor.bytes.len().next_multiple_of(ALIGNMENT);
        }
        pad(&mut out);
        for tensor in &self.tensors {
            out.extend(&tensor.bytes);
            pad(&mut out);
        }
        out
    }

    /// Writes the file at `path` through a temporary neighbour, so that a file of this
    /// name is always whole.
    ///
    /// # Errors
    ///
    /// [`GgufError`] with what writing reports; an earlier file is then still there.
    pub fn write(&self, path: &Path) -> Result<(), GgufError> {
        replace(path, &self.to_bytes()).map_err(|error| GgufError::io(path, error))
    }
}

const ALIGNMENT: usize = DEFAULT_ALIGNMENT as usize;

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put(out: &mut Vec<u8>, value: &MetaValue) {
    match value {
        MetaValue::U8(v) => out.extend(v.to_le_bytes()),
        MetaValue::I8(v) => out.extend(v.to_le_bytes()),
        MetaValue::U16(v) => out.extend(v.to_le_bytes()),
        MetaValue::I16(v) => out.extend(v.to_le_bytes()),
        MetaValue::U32(v) => out.extend(v.to_le_bytes()),
        MetaValue::I32(v) => out.extend(v.to_le_bytes()),
        MetaValue::U64(v) => out.extend(v.to_le_bytes()),
        MetaValue::I64(v) => out.extend(v.to_le_bytes()),
        MetaValue::F32(v) => out.extend(v.to_le_bytes()),
        MetaValue::F64(v) => out.extend(v.to_le_bytes()),
        MetaValue::Bool(v) => out.push(u8::from(*v)),
        MetaValue::Text(v) => text(out, v),
        MetaValue::Array(kind, values) => {
            out.extend((*kind as u32).to_le_bytes());
            out.extend((values.len() as u64).to_le_bytes());
            values.iter().for_each(|value| put(out, value));
        }
    }
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
}
