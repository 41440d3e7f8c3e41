//! Model files: a Hugging Face directory, a snapshot in its cache, or a GGUF file.

mod error;
mod fingerprint;
mod hub;
mod names;
mod safetensors;

pub use error::CheckpointError;
pub use hub::{hub_cache, hub_snapshot};
pub(crate) use names::gguf_module;

use std::fs;
use std::path::{Path, PathBuf};

use fedllm_shared::Digest;

use crate::{
    ChatTemplate, Gguf, MetaValue, ModelConfig, QuantMatrix, RowOrder, SpecialTokens, Tokenizer,
};
use names::TensorName;
use safetensors::Shards;

/// A model on disk: its configuration, its weights in place, its tokenizer and template.
///
/// Tensors have their Hugging Face names, such as
/// `model.layers.0.self_attn.q_proj.weight`, whatever file they are in. Opening maps the
/// files and checks that every tensor of the architecture is there with the right shape.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    name: String,
    config: ModelConfig,
    weights: Weights,
}

#[derive(Debug)]
enum Weights {
    Gguf(Gguf),
    HuggingFace(Shards),
}

impl Checkpoint {
    /// Opens a `.gguf` file, a directory with `config.json`, or a model directory of the
    /// Hugging Face cache.
    ///
    /// If nothing is at `path` and it reads like `org/name`, that model's `main` revision
    /// is looked up in the Hugging Face cache. Nothing is downloaded.
    ///
    /// # Errors
    ///
    /// [`CheckpointError`] with the file, and what is wrong with it.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        let path = locate(path.as_ref())?;
        if path.is_dir() {
            Self::open_directory(path)
        } else {
            Self::open_gguf(Gguf::open(&path)?)
        }
    }

    /// A checkpoint of an open GGUF file.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::open`].
    pub fn open_gguf(gguf: Gguf) -> Result<Self, CheckpointError> {
        let path = gguf.path().to_owned();
        let config =
            ModelConfig::from_gguf(&gguf).map_err(|e| CheckpointError::config(&path, e))?;
        let name = match gguf.get("general.name").and_then(MetaValue::as_str) {
            Some(name) => name.to_owned(),
            None => file_name(path.file_stem()),
        };
        Self {
            path,
            name,
            config,
            weights: Weights::Gguf(gguf),
        }
        .check()
    }

    fn open_directory(path: PathBuf) -> Result<Self, CheckpointError> {
        let text = read_text(&path.join("config.json"))?;
        let config = ModelConfig::from_hugging_face(&text)
            .map_err(|e| CheckpointError::config(&path.join("config.json"), e))?;
        Self {
            name: hub::repository_of(&path).unwrap_or_else(|| file_name(path.file_name())),
            weights: Weights::HuggingFace(Shards::open(&path)?),
            config,
            path,
        }
        .check()
    }

    /// What the model calls itself: for people, not for comparing.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The directory or file that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The network's shape and constants.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Whether the checkpoint is a GGUF file.
    pub fn is_gguf(&self) -> bool {
        matches!(self.weights, Weights::Gguf(_))
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.stored(name).is_some()
    }

    /// The tensor `name`, in place; a vector is a matrix of one row.
    ///
    /// Rows are in the model's order: where a file permutes them, the matrix undoes it.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::MissingTensor`], or what is wrong with the stored tensor.
    pub fn tensor(&self, name: &str) -> Result<QuantMatrix, CheckpointError> {
        let matrix = self
            .stored(name)
            .ok_or_else(|| CheckpointError::MissingTensor {
                path: self.path.clone(),
                name: name.to_owned(),
            })?;
        match self.row_order(name) {
            Some(order) if matrix.rows() > 1 => matrix
                .with_order(order)
                .map_err(|e| CheckpointError::tensor(&self.path, name, e)),
            _ => Ok(matrix),
        }
    }

    /// The vector `name`, such as a bias.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::tensor`].
    pub fn vector(&self, name: &str) -> Result<Vec<f32>, CheckpointError> {
        let stored = self.tensor(name)?.to_f32();
        Ok(match self.row_order(name) {
            Some(order) => (0..stored.len()).map(|i| stored[order.stored(i)]).collect(),
            None => stored,
        })
    }

    /// The factors of the RMS norm `name`: what the normalised input is multiplied by.
    ///
    /// Gemma's Hugging Face files store the factor less one, its GGUF files the factor.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::tensor`].
    pub fn norm(&self, name: &str) -> Result<Vec<f32>, CheckpointError> {
        let mut factors = self.vector(name)?;
        if self.config.architecture.is_gemma() && !self.is_gguf() {
            factors.iter_mut().for_each(|f| *f += 1.0);
        }
        Ok(factors)
    }

    /// Builds the model's tokenizer. Keep it: building takes a while.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Tokenizer`] if its files are absent or not understood.
    pub fn tokenizer(&self) -> Result<Tokenizer, CheckpointError> {
        Ok(match &self.weights {
            Weights::Gguf(gguf) => Tokenizer::from_gguf(gguf)?,
            Weights::HuggingFace(_) => Tokenizer::from_directory(&self.path)?,
        })
    }

    /// The model's chat template, if it has one.
    ///
    /// A directory's `chat_template.jinja` comes before the one in
    /// `tokenizer_config.json`. `tokens` names what the template prints as beginning and
    /// end of the text.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Template`] if the template cannot be parsed.
    pub fn chat_template(
        &self,
        tokens: &Tokenizer,
    ) -> Result<Option<ChatTemplate>, CheckpointError> {
        let source = match &self.weights {
            Weights::Gguf(gguf) => gguf
                .get("tokenizer.chat_template")
                .and_then(MetaValue::as_str)
                .map(str::to_owned),
            Weights::HuggingFace(_) => directory_template(&self.path)?,
        };
        let SpecialTokens { bos, eos, .. } = tokens.special();
        let text = |id: &Option<u32>| id.and_then(|id| tokens.token(id)).unwrap_or_default();
        let template = source.map(|source| ChatTemplate::new(&source, &text(bos), &text(eos)));
        Ok(template.transpose()?)
    }

    /// Names this base model: equal files give equal digests, wherever they are.
    ///
    /// A BLAKE3 hash of the configuration and, by name, of every tensor's format, shape
    /// and content. Of a tensor longer than 64 KiB sixteen evenly spaced windows of 4 KiB
    /// count, so that a large model is named in a fraction of a second. This tells models
    /// apart; it is no proof against a file made to collide.
    pub fn fingerprint(&self) -> Digest {
        let tensors = match &self.weights {
            Weights::Gguf(gguf) => {
                let names = gguf.tensors().iter().map(|info| info.name.as_str());
                fingerprint::collect(names, |name| gguf.tensor(name))
            }
            Weights::HuggingFace(shards) => {
                fingerprint::collect(shards.names(), |name| shards.tensor(name))
            }
        };
        fingerprint::digest(&self.config, &tensors)
    }

    fn stored(&self, name: &str) -> Option<QuantMatrix> {
        match &self.weights {
            Weights::Gguf(gguf) => {
                let name = TensorName::parse(name)?;
                gguf.tensor(&name.gguf(self.config.architecture))
            }
            Weights::HuggingFace(shards) => shards.tensor(name),
        }
    }

    fn row_order(&self, name: &str) -> Option<RowOrder> {
        let Weights::Gguf(gguf) = &self.weights else {
            return None;
        };
        let permuted = gguf.text("general.architecture").ok() == Some("llama");
        let heads = match TensorName::parse(name)? {
            TensorName::Layer { part, .. } if permuted && part.starts_with("self_attn.q_proj") => {
                self.config.heads
            }
            TensorName::Layer { part, .. } if permuted && part.starts_with("self_attn.k_proj") => {
                self.config.kv_heads
            }
            _ => return None,
        };
        Some(RowOrder::LlamaRope {
            heads,
            head_dim: self.config.head_dim,
        })
    }

    fn check(self) -> Result<Self, CheckpointError> {
        for (name, expected) in names::expected(&self.config) {
            let matrix = self.tensor(&name)?;
            let got = (matrix.rows(), matrix.cols());
            if got != expected {
                return Err(CheckpointError::WrongShape {
                    path: self.path.clone(),
                    name,
                    expected,
                    got,
                });
            }
        }
        Ok(self)
    }
}

/// The directory or file to open.
fn locate(path: &Path) -> Result<PathBuf, CheckpointError> {
    if path.is_file() || path.join("config.json").is_file() {
        return Ok(path.to_owned());
    }
    if path.is_dir() {
        return hub::snapshot_in(path, "main").ok_or_else(|| CheckpointError::NoModel {
            path: path.to_owned(),
        });
    }
    path.to_str()
        .and_then(|name| hub_snapshot(name, "main"))
        .ok_or_else(|| CheckpointError::NotFound {
            path: path.to_owned(),
        })
}

fn directory_template(path: &Path) -> Result<Option<String>, CheckpointError> {
    let file = path.join("chat_template.jinja");
    if file.is_file() {
        return read_text(&file).map(Some);
    }
    let file = path.join("tokenizer_config.json");
    if !file.is_file() {
        return Ok(None);
    }
    let config: serde_json::Value =
        serde_json::from_str(&read_text(&file)?).map_err(|e| CheckpointError::json(&file, e))?;
    let template = match &config["chat_template"] {
        serde_json::Value::Array(named) => named
            .iter()
            .find(|entry| entry["name"] == "default")
            .map(|entry| &entry["template"]),
        other => Some(other),
    };
    Ok(template.and_then(|t| t.as_str()).map(str::to_owned))
}

fn read_text(path: &Path) -> Result<String, CheckpointError> {
    fs::read_to_string(path).map_err(|e| CheckpointError::io(path, e))
}

fn file_name(name: Option<&std::ffi::OsStr>) -> String {
    name.map_or_else(|| "model".to_owned(), |n| n.to_string_lossy().into_owned())
}
