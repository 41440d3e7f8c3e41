//! One safetensors file, or several behind an index.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Component, Path};

use ::safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use super::CheckpointError;
use crate::{BlockFormat, MappedBytes, QuantMatrix};

/// The tensors of a Hugging Face directory, in place.
#[derive(Debug)]
pub(super) struct Shards {
    tensors: BTreeMap<String, QuantMatrix>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

impl Shards {
    pub(super) fn open(directory: &Path) -> Result<Self, CheckpointError> {
        let index = directory.join(INDEX);
        let single = directory.join(SINGLE);
        let mut tensors = BTreeMap::new();
        if index.is_file() {
            let map = read_index(&index)?;
            for file in map.values().collect::<BTreeSet<_>>() {
                read(&directory.join(file), &mut tensors)?;
            }
            if let Some(lost) = map.keys().find(|name| !tensors.contains_key(*name)) {
                let reason = format!("no file has its tensor {lost}");
                return Err(CheckpointError::safetensors(&index, reason));
            }
        } else if single.is_file() {
            read(&single, &mut tensors)?;
        } else {
            return Err(no_weights(directory));
        }
        Ok(Self { tensors })
    }

    pub(super) fn tensor(&self, name: &str) -> Option<QuantMatrix> {
        self.tensors.get(name).cloned()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }
}

fn no_weights(directory: &Path) -> CheckpointError {
    let path = directory.to_owned();
    let pickled = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
    if pickled.iter().any(|name| directory.join(name).is_file()) {
        CheckpointError::PickledWeights { path }
    } else {
        CheckpointError::NoWeights { path }
    }
}

fn read_index(path: &Path) -> Result<HashMap<String, String>, CheckpointError> {
    let text = fs::read_to_string(path).map_err(|e| CheckpointError::io(path, e))?;
    let index: Index = serde_json::from_str(&text).map_err(|e| CheckpointError::json(path, e))?;
    for file in index.weight_map.values() {
        let mut parts = Path::new(file).components();
        let plain = matches!(
            (parts.next(), parts.next()),
            (Some(Component::Normal(_)), None)
        );
        if !plain {
            let reason = format!("it names {file:?}, which is no plain file name");
            return Err(CheckpointError::safetensors(path, reason));
        }
    }
    Ok(index.weight_map)
}

fn read(path: &Path, tensors: &mut BTreeMap<String, QuantMatrix>) -> Result<(), CheckpointError> {
    let bytes = MappedBytes::open(path).map_err(|e| CheckpointError::io(path, e))?;
    let (header, metadata) =
        SafeTensors::read_metadata(&bytes).map_err(|e| CheckpointError::safetensors(path, e))?;
    let data = header + 8;
    for (name, info) in metadata.tensors() {
        let Some(format) = format(info.dtype) else {
            // Buffers that some exporters store; a weight would be missed by name.
            continue;
        };
        let wrong = |reason: String| CheckpointError::safetensors(path, reason);
        let (start, end) = info.data_offsets;
        let bytes = bytes
            .slice(data + start..data + end)
            .ok_or_else(|| wrong(format!("tensor {name} ends outside of the file")))?;
        let (rows, cols) = shape(&info.shape);
        let matrix = QuantMatrix::new(rows, cols, format, bytes)
            .map_err(|e| wrong(format!("tensor {name}: {e}")))?;
        if tensors.insert(name.clone(), matrix).is_some() {
            return Err(wrong(format!("tensor {name} is in another file too")));
        }
    }
    Ok(())
}

fn format(dtype: Dtype) -> Option<BlockFormat> {
    match dtype {
        Dtype::F32 => Some(BlockFormat::F32),
        Dtype::F16 => Some(BlockFormat::F16),
        Dtype::BF16 => Some(BlockFormat::BF16),
        _ => None,
    }
}

/// Rows and columns; a vector is one row.
fn shape(sizes: &[usize]) -> (usize, usize) {
    match sizes {
        [] => (1, 1),
        [rows @ .., cols] => (rows.iter().product(), *cols),
    }
}
