//! Language models of fedllm: weights, adapters, tokens, losses, evaluation.
//!
//! A [`Checkpoint`] opens files, a [`CausalLm`] holds the frozen
//! network on a device, a [`Lora`] the adapter beside it, a [`Trainer`](train::Trainer)
//! moves the adapter, a [`Writer`](generate::Writer) writes texts, and a
//! [`Scorer`](scoring::Scorer) says how probable they are.

mod arch;
mod batch;
pub mod checkpoint;
pub mod config;
pub mod device;
pub mod eval;
mod files;
pub mod generate;
pub mod gguf;
pub mod gguf_lora;
pub mod lora;
mod mapped;
pub mod measure;
pub mod objective;
pub mod ops;
pub mod peft;
pub mod quant;
pub mod scoring;
pub mod template;
pub mod tokenizer;
pub mod train;

pub use arch::{
    BasePrecision, CausalLm, Gradients, KvCache, LoadError, RunId, SHAPES, StepMode, shape,
};
pub use batch::Batch;
pub use checkpoint::{Checkpoint, CheckpointError, hub_cache, hub_snapshot};
pub use config::{Activation, Architecture, ConfigError, ModelConfig, RopeScaling};
pub use gguf::{Gguf, GgufError, GgufFault, GgufWriter, MetaKind, MetaValue, TensorInfo};
pub use gguf_lora::{GgufLoraError, write_gguf_lora};
pub use lora::Lora;
pub use mapped::MappedBytes;
pub use peft::{Factor, PeftAdapter, PeftConfig, PeftError, PeftKey, PeftTensor, Projection};
pub use quant::{
    BlockFormat, Int8Rows, NF4_BLOCK, NF4_CODEBOOK, Nf4Matrix, QuantError, QuantMatrix, RowOrder,
    dequantize_row, quantize_row,
};
pub use template::{ChatTemplate, Message, RenderOptions, Rendered, TemplateError};
pub use tokenizer::{SpecialTokens, StreamDecoder, Tokenizer, TokenizerError};
