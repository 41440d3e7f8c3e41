//! `tokenizer.json` with the files beside it.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::{SpecialTokens, Tokenizer, TokenizerError};

impl Tokenizer {
    /// Reads `tokenizer.json` in `directory`, and the special tokens from
    /// `tokenizer_config.json`, `generation_config.json` and `config.json`, as far as
    /// they are there.
    ///
    /// # Errors
    ///
    /// [`TokenizerError`] with the file at fault.
    pub fn from_directory(directory: &Path) -> Result<Self, TokenizerError> {
        let path = directory.join("tokenizer.json");
        if !path.is_file() {
            return Err(TokenizerError::NoTokenizer {
                path: directory.to_owned(),
                sentencepiece: directory.join("tokenizer.model").is_file(),
            });
        }
        let model = read_model(&path)?;
        let special = Files::read(directory)?.special(&model);
        Ok(Self::new(model, special))
    }

    /// Reads one `tokenizer.json`. It knows no special tokens by their meaning, so give
    /// the spelling of those that end a text and begin it.
    ///
    /// # Errors
    ///
    /// [`TokenizerError`] with the file at fault.
    pub fn from_file(
        path: &Path,
        bos: Option<&str>,
        eos: Option<&str>,
    ) -> Result<Self, TokenizerError> {
        let model = read_model(path)?;
        let id = |token: Option<&str>| token.and_then(|t| model.token_to_id(t));
        let special = SpecialTokens {
            bos: id(bos),
            eos: id(eos),
            pad: None,
            stop: id(eos).into_iter().collect(),
        };
        Ok(Self::new(model, special))
    }
}

fn read_model(path: &Path) -> Result<tokenizers::Tokenizer, TokenizerError> {
    let bytes = fs::read(path).map_err(|error| TokenizerError::Io {
        path: path.to_owned(),
        error,
    })?;
    let malformed = |error: tokenizers::Error| TokenizerError::Malformed {
        path: path.to_owned(),
        reason: error.to_string(),
    };
    let mut model = tokenizers::Tokenizer::from_bytes(bytes).map_err(malformed)?;
    // Both would change texts silently; we truncate and pad ourselves.
    model.with_truncation(None).map_err(malformed)?;
    model.with_padding(None);
    Ok(model)
}

/// The files that say what tokens mean; null where one is absent.
struct Files {
    tokenizer: Value,
    generation: Value,
    model: Value,
}

impl Files {
    fn read(directory: &Path) -> Result<Self, TokenizerError> {
        let read = |name| read_json(&directory.join(name));
        Ok(Self {
            tokenizer: read("tokenizer_config.json")?,
            generation: read("generation_config.json")?,
            model: read("config.json")?,
        })
    }

    fn special(&self, model: &tokenizers::Tokenizer) -> SpecialTokens {
        let eos = self.id(model, "eos");
        let mut stop: Vec<u32> = eos.into_iter().collect();
        for id in ids(&self.generation["eos_token_id"]) {
            if !stop.contains(&id) {
                stop.push(id);
            }
        }
        SpecialTokens {
            bos: self.id(model, "bos"),
            eos,
            pad: self.id(model, "pad"),
            stop,
        }
    }

    /// By its spelling in the tokenizer's configuration, else by its number in the
    /// model's. The spelling may be null: the model then has no such token.
    fn id(&self, model: &tokenizers::Tokenizer, which: &str) -> Option<u32> {
        match &self.tokenizer[format!("{which}_token")] {
            Value::String(token) => model.token_to_id(token),
            Value::Object(token) => model.token_to_id(token.get("content")?.as_str()?),
            _ if self.tokenizer.get(format!("{which}_token")).is_some() => None,
            _ => ids(&self.model[format!("{which}_token_id")]).next(),
        }
    }
}

/// A number, or several.
fn ids(value: &Value) -> impl Iterator<Item = u32> + '_ {
    let several = value.as_array().into_iter().flatten();
    std::iter::once(value)
        .chain(several)
        .filter_map(|v| u32::try_from(v.as_u64()?).ok())
}

fn read_json(path: &Path) -> Result<Value, TokenizerError> {
    if !path.is_file() {
        return Ok(Value::Null);
    }
    let text = fs::read_to_string(path).map_err(|error| TokenizerError::Io {
        path: path.to_owned(),
        error,
    })?;
    serde_json::from_str(&text).map_err(|error| TokenizerError::Malformed {
        path: path.to_owned(),
        reason: error.to_string(),
    })
}
