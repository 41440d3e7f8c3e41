//! What can be wrong with a checkpoint.

use std::io;
use std::path::{Path, PathBuf};

use crate::{ConfigError, GgufError, QuantError, TemplateError, TokenizerError};

/// Model files that cannot be used, and why.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// There is no such file, directory or cached model.
    #[error(
        "no model at {}: no such file or directory, and no such model in the Hugging Face cache",
        path.display()
    )]
    NotFound {
        /// What was asked for.
        path: PathBuf,
    },
    /// A directory that holds no model.
    #[error("no model in {}: it has no config.json", path.display())]
    NoModel {
        /// The directory.
        path: PathBuf,
    },
    /// A file cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What reading reported.
        error: io::Error,
    },
    /// A JSON file cannot be understood.
    #[error("{} is no JSON that we understand: {error}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser reported.
        error: serde_json::Error,
    },
    /// A GGUF file cannot be used.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A safetensors file, or the index of several, cannot be used.
    #[error("{} is no safetensors file that we can use: {reason}", path.display())]
    SafeTensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The weights are only there in a format that can run code when it is read.
    #[error(
        "{} has pickled weights only; convert them to safetensors",
        path.display()
    )]
    PickledWeights {
        /// The directory.
        path: PathBuf,
    },
    /// There are no weights.
    #[error("{} has no model.safetensors", path.display())]
    NoWeights {
        /// The directory.
        path: PathBuf,
    },
    /// The model's configuration cannot be used.
    #[error("{}: {error}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: ConfigError,
    },
    /// A tensor of the architecture is absent.
    #[error("{} has no tensor {name}", path.display())]
    MissingTensor {
        /// The model.
        path: PathBuf,
        /// The tensor's Hugging Face name.
        name: String,
    },
    /// A tensor has another shape than the configuration says.
    #[error(
        "{} has {name} of {} x {}, its configuration says {} x {}",
        path.display(), got.0, got.1, expected.0, expected.1
    )]
    WrongShape {
        /// The model.
        path: PathBuf,
        /// The tensor's Hugging Face name.
        name: String,
        /// Rows and columns that the configuration needs.
        expected: (usize, usize),
        /// Rows and columns of the tensor.
        got: (usize, usize),
    },
    /// A tensor cannot be used as it is stored.
    #[error("{} has {name}, which cannot be used: {error}", path.display())]
    Tensor {
        /// The model.
        path: PathBuf,
        /// The tensor's Hugging Face name.
        name: String,
        /// What is wrong with it.
        error: QuantError,
    },
    /// The tokenizer cannot be used.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The chat template cannot be used.
    #[error(transparent)]
    Template(#[from] TemplateError),
}

impl CheckpointError {
    pub(super) fn io(path: &Path, error: io::Error) -> Self {
        let path = path.to_owned();
        Self::Io { path, error }
    }

    pub(super) fn json(path: &Path, error: serde_json::Error) -> Self {
        let path = path.to_owned();
        Self::Json { path, error }
    }

    pub(super) fn config(path: &Path, error: ConfigError) -> Self {
        match error {
            ConfigError::Gguf(error) => Self::Gguf(error),
            error => Self::Config {
                path: path.to_owned(),
                error,
            },
        }
    }

    pub(super) fn safetensors(path: &Path, reason: impl ToString) -> Self {
        Self::SafeTensors {
            path: path.to_owned(),
            reason: reason.to_string(),
        }
    }

    pub(super) fn tensor(path: &Path, name: &str, error: QuantError) -> Self {
        Self::Tensor {
            path: path.to_owned(),
            name: name.to_owned(),
            error,
        }
    }
}
