//! The base model of a command: found, opened, and loaded to a device.

use std::path::PathBuf;

use fedllm_models::device::{DeviceChoice, Selection};
use fedllm_models::{
    BasePrecision, CausalLm, ChatTemplate, Checkpoint, CheckpointError, LoadError, Tokenizer,
};

/// A model file, and what makes tokens of text for it.
pub struct Base {
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    chat: Option<ChatTemplate>,
}

impl Base {
    /// Opens the checkpoint at a path that [`crate::catalog::resolve`] gave.
    ///
    /// # Errors
    ///
    /// [`CheckpointError`] if a file is absent, damaged or of an unknown kind.
    pub fn open(path: &PathBuf) -> Result<Self, CheckpointError> {
        let checkpoint = Checkpoint::open(path)?;
        let tokenizer = checkpoint.tokenizer()?;
        let chat = checkpoint.chat_template(&tokenizer)?;
        Ok(Self {
            checkpoint,
            tokenizer,
            chat,
        })
    }

    /// The files.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The model's own chat template, if it has one.
    pub fn chat(&self) -> Option<&ChatTemplate> {
        self.chat.as_ref()
    }

    /// Loads the network to a device.
    ///
    /// # Errors
    ///
    /// [`LoadError`] names the tensor at fault.
    pub fn load(
        &self,
        precision: BasePrecision,
        selection: &Selection,
    ) -> Result<CausalLm, LoadError> {
        CausalLm::load(&self.checkpoint, precision, &selection.device)
    }
}

/// Which model to use, and where.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Model and device")]
pub struct ModelArgs {
    /// A name of `fedllm-client pull --list`, `org/name` of Hugging Face, a directory or a GGUF file.
    #[arg(long, value_name = "M")]
    pub model: String,
    /// Where to compute: auto, cpu, gpu, a number of `fedllm-client devices`, or part of a name.
    #[arg(long, value_name = "D", default_value = "auto")]
    pub device: DeviceChoice,
    /// How the frozen base is held: as-stored, f32, f16, int8 or nf4.
    #[arg(long, value_name = "P", default_value_t = BasePrecision::AsStored)]
    pub base_precision: BasePrecision,
}
