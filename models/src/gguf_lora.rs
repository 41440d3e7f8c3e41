//! LoRA adapters as GGUF files, for llama.cpp.

use std::path::Path;

use crate::checkpoint::gguf_module;
use crate::{
    BlockFormat, Factor, GgufError, GgufWriter, MetaValue, ModelConfig, PeftAdapter, PeftError,
    PeftKey, PeftTensor, Projection, QuantError, RowOrder,
};

/// Writes `adapter` at `path` as llama.cpp's `--lora` reads it.
///
/// `config` is the base model's: its architecture goes into the file, and in a Llama the
/// outputs of B for queries and keys are put in the order of GGUF's base weights. The file
/// has no setting for rsLoRA; its alpha is scaled so that the loader's `alpha / rank` is
/// the adapter's scale.
///
/// # Errors
///
/// [`GgufLoraError`] if the adapter does not fit the model, or writing fails.
pub fn write_gguf_lora(
    adapter: &PeftAdapter,
    config: &ModelConfig,
    name: &str,
    path: &Path,
) -> Result<(), GgufLoraError> {
    let mut writer = GgufWriter::new();
    let architecture = config.architecture.gguf_name();
    writer.set("general.type", MetaValue::from("adapter"));
    writer.set("general.architecture", MetaValue::from(architecture));
    writer.set("general.name", MetaValue::from(name));
    writer.set("general.file_type", MetaValue::U32(0));
    writer.set("adapter.type", MetaValue::from("lora"));
    let alpha = adapter.config.scale() * adapter.config.rank as f32;
    writer.set("adapter.lora.alpha", MetaValue::F32(alpha));
    for tensor in &adapter.tensors {
        let key = PeftKey::parse(&tensor.name).ok_or_else(|| PeftError::Tensor {
            name: tensor.name.clone(),
            reason: "is for no projection".to_owned(),
        })?;
        let values = values(key, tensor, config)?;
        let module = gguf_module(key.projection.module(), config.architecture);
        let factor = match key.factor {
            Factor::A => 'a',
            Factor::B => 'b',
        };
        writer.tensor(
            &format!("blk.{}.{module}.weight.lora_{factor}", key.layer),
            &[tensor.cols, tensor.rows],
            BlockFormat::F32,
            bytemuck::cast_slice(&values).to_vec(),
        )?;
    }
    Ok(writer.write(path)?)
}

/// An adapter that cannot be written as GGUF, and why.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufLoraError {
    /// A tensor makes no sense in an adapter.
    #[error(transparent)]
    Adapter(#[from] PeftError),
    /// A tensor does not fit the base model.
    #[error(
        "adapter tensor {name} is {rows} x {cols}; the model needs {expected:?} and has {layers} layers"
    )]
    WrongShape {
        /// The tensor's key.
        name: String,
        /// Its rows.
        rows: usize,
        /// Its columns.
        cols: usize,
        /// Outputs and inputs of the projection.
        expected: (usize, usize),
        /// Layers of the model.
        layers: usize,
    },
    /// The values are not as many as the shape says.
    #[error(transparent)]
    Values(#[from] QuantError),
    /// Writing failed.
    #[error(transparent)]
    Gguf(#[from] GgufError),
}

/// The tensor's values in the order of the file.
fn values(
    key: PeftKey,
    tensor: &PeftTensor,
    config: &ModelConfig,
) -> Result<Vec<f32>, GgufLoraError> {
    let (out, input) = shape(key.projection, config);
    let fits = match key.factor {
        Factor::A => tensor.cols == input,
        Factor::B => tensor.rows == out,
    };
    if !fits || key.layer >= config.layers || tensor.values.len() != tensor.rows * tensor.cols {
        return Err(GgufLoraError::WrongShape {
            name: tensor.name.clone(),
            rows: tensor.rows,
            cols: tensor.cols,
            expected: (out, input),
            layers: config.layers,
        });
    }
    let heads = match (key.projection, key.factor) {
        (Projection::Query, Factor::B) => config.heads,
        (Projection::Key, Factor::B) => config.kv_heads,
        _ => return Ok(tensor.values.clone()),
    };
    if config.architecture.gguf_name() != "llama" {
        return Ok(tensor.values.clone());
    }
    let order = RowOrder::LlamaRope {
        heads,
        head_dim: config.head_dim,
    };
    let mut stored = vec![0.0; tensor.values.len()];
    for (row, values) in tensor.values.chunks_exact(tensor.cols.max(1)).enumerate() {
        stored[order.stored(row) * tensor.cols..][..tensor.cols].copy_from_slice(values);
    }
    Ok(stored)
}

/// Outputs and inputs of a projection.
fn shape(projection: Projection, config: &ModelConfig) -> (usize, usize) {
    match projection {
        Projection::Query => (config.query_dim(), config.hidden),
        Projection::Key | Projection::Value => (config.kv_dim(), config.hidden),
        Projection::Output => (config.hidden, config.query_dim()),
        Projection::Gate | Projection::Up => (config.ffn, config.hidden),
        Projection::Down => (config.hidden, config.ffn),
    }
}
