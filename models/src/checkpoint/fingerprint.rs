//! A name for a base model: its configuration and samples of its weights.

use fedllm_shared::Digest;

use crate::{ModelConfig, QuantMatrix};

const DOMAIN: &[u8] = b"fedllm base model 1\n";
const WHOLE_BYTES: usize = 64 * 1024;
const WINDOWS: usize = 16;
const WINDOW_BYTES: usize = 4096;

/// Tensors sorted by the names that the file gives them.
pub(super) fn collect<'a>(
    names: impl Iterator<Item = &'a str>,
    tensor: impl Fn(&str) -> Option<QuantMatrix>,
) -> Vec<(&'a str, QuantMatrix)> {
    let mut tensors: Vec<_> = names
        .filter_map(|name| Some((name, tensor(name)?)))
        .collect();
    tensors.sort_by_key(|(name, _)| *name);
    tensors
}

pub(super) fn digest(config: &ModelConfig, tensors: &[(&str, QuantMatrix)]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(DOMAIN);
    // A struct of numbers, names and lists of them always serializes.
    part(&mut hasher, &serde_json::to_vec(config).unwrap_or_default());
    for (name, matrix) in tensors {
        part(&mut hasher, name.as_bytes());
        hasher.update(&matrix.format().ggml_id().to_le_bytes());
        hasher.update(&(matrix.rows() as u64).to_le_bytes());
        hasher.update(&(matrix.cols() as u64).to_le_bytes());
        sample(&mut hasher, matrix.bytes());
    }
    Digest(hasher.finalize().into())
}

/// The length goes first, so that two parts cannot be cut in two ways.
fn part(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

fn sample(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    if bytes.len() <= WHOLE_BYTES {
        hasher.update(bytes);
        return;
    }
    let last = bytes.len() - WINDOW_BYTES;
    for window in 0..WINDOWS {
        // u128: a length times 15 may not fit 64 bits.
        let start = (last as u128 * window as u128 / (WINDOWS as u128 - 1)) as usize;
        hasher.update(&bytes[start..start + WINDOW_BYTES]);
    }
}
