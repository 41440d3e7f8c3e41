//! Language models of fedllm: weights, adapters, tokens, losses, evaluation.
//!
//! A [`Checkpoint`](checkpoint::Checkpoint) opens files, a [`CausalLm`] holds the frozen
//! network on a device, a [`Lora`] the adapter beside it, a [`Trainer`](train::Trainer)
//! moves the adapter, and a [`Generator`](generate::Generator) writes text.

mod arch;
mod batch;
pub mod checkpoint;
pub mod config;
pub mod device;
pub mod generate;
pub mod gguf;
pub mod gguf_lora;
pub mod lora;
mod mapped;
pub mod ops;
pub mod peft;
pub mod quant;
pub mod template;
pub mod tokenizer;
pub mod train;

pub use arch::{BasePrecision, Block, BlockCache, CausalLm, Gradients, KvCache, LoadError, StepMode};
pub use batch::Batch;
pub use gguf::GgufError;
pub use lora::Lora;
pub use mapped::MappedBytes;
