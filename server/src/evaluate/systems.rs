//! What is compared: a base model, and adapters on it.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use fedllm_models::lora::LoraError;
use fedllm_models::{ModelConfig, PeftAdapter, PeftError, lora};
use fedllm_shared::{Adapter, Digest, LoraSpec};
use thiserror::Error;

/// What the base is called.
pub(crate) const BASE: &str = "base";

/// An adapter as the user names it: `NAME=DIR`, or `DIR` whose last part is the name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    /// Its name.
    pub(crate) name: String,
    /// Its PEFT directory.
    pub(crate) path: PathBuf,
}

/// An adapter that fits the base model.
#[derive(Debug)]
pub(crate) struct System {
    /// Its name.
    pub(crate) name: String,
    /// Its settings.
    pub(crate) spec: LoraSpec,
    /// Its values.
    pub(crate) adapter: Adapter,
}

/// An adapter that cannot be compared.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(crate) enum SystemError {
    /// It cannot be read.
    #[error("the adapter in {} cannot be used: {error}", path.display())]
    Read {
        /// Where.
        path: PathBuf,
        /// Why.
        error: PeftError,
    },
    /// It is of another model.
    #[error("the adapter in {} cannot be used: {error}", path.display())]
    OtherModel {
        /// Where.
        path: PathBuf,
        /// Why.
        error: LoraError,
    },
    /// Two are called the same.
    #[error("two systems are called {0:?}")]
    SameName(String),
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some((name, path)) = text.split_once('=')
            && is_name(name)
        {
            let (name, path) = (name.to_owned(), path.into());
            return Ok(Self { name, path });
        }
        let last = Path::new(text).components().next_back();
        let last = last.map(|part| part.as_os_str().to_string_lossy());
        match last.filter(|name| is_name(name)) {
            Some(name) => Ok(Self {
                name: name.into_owned(),
                path: text.into(),
            }),
            None => Err(
                "its directory makes no name of letters, digits, `-`, `_` and `.`; use NAME=DIR"
                    .to_owned(),
            ),
        }
    }
}

/// Names are also names of files.
fn is_name(name: &str) -> bool {
    let is_allowed = |c: char| c.is_alphanumeric() || "-_.".contains(c);
    (1..=64).contains(&name.len()) && !name.starts_with('.') && name.chars().all(is_allowed)
}

/// Reads adapters, and sees that they are of this model.
pub(crate) fn read(named: &[Named], config: &ModelConfig) -> Result<Vec<System>, SystemError> {
    let mut names = vec![BASE];
    let mut systems = Vec::new();
    for Named { name, path } in named {
        if names.contains(&name.as_str()) {
            return Err(SystemError::SameName(name.clone()));
        }
        names.push(name);
        let peft = PeftAdapter::read(path).map_err(|error| SystemError::Read {
            path: path.clone(),
            error,
        })?;
        let read = lora::from_peft(config, &peft);
        let (spec, adapter) = read.map_err(|error| SystemError::OtherModel {
            path: path.clone(),
            error,
        })?;
        systems.push(System {
            name: name.clone(),
            spec,
            adapter,
        });
    }
    Ok(systems)
}

impl System {
    /// An adapter that is called by what it is.
    pub(crate) fn unnamed(spec: LoraSpec, adapter: Adapter) -> Self {
        let mut system = Self {
            name: String::new(),
            spec,
            adapter,
        };
        system.name = format!("adapter-{}", system.digest().short());
        system
    }

    /// Names the adapter by what it does to a model.
    pub(crate) fn digest(&self) -> Digest {
        let mut hasher = blake3::Hasher::new_derive_key("fedllm 1 adapter");
        hasher.update(&self.adapter.layout().digest().0);
        hasher.update(&self.spec.scale().to_le_bytes());
        hasher.update(bytemuck::cast_slice(self.adapter.values()));
        Digest(hasher.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_given_or_the_directorys() {
        let named = |text: &str| {
            let named: Named = text.parse().unwrap();
            (named.name, named.path.display().to_string())
        };
        let pair = |name: &str, path: &str| (name.to_owned(), path.to_owned());
        assert_eq!(named("local=runs/a=b"), pair("local", "runs/a=b"));
        assert_eq!(named("runs/fedavg/"), pair("fedavg", "runs/fedavg/"));
        assert_eq!(named("../x/é_1.2"), pair("é_1.2", "../x/é_1.2"));
        for bad in ["..", "/", "a/b c", "", "a/../.."] {
            assert!(bad.parse::<Named>().is_err(), "{bad}");
        }
    }
}
