//! The key that clients show.

use std::path::{Path, PathBuf};

use subtle::ConstantTimeEq;
use thiserror::Error;

/// Shorter ones can be guessed.
const SHORTEST: usize = 16;

/// A secret that every request must carry as `Authorization: Bearer KEY`. Only its hash is kept, so
/// neither a comparison nor a log can tell it.
pub(crate) struct Key(blake3::Hash);

/// Why there is no usable key.
#[derive(Debug, Error)]
pub(crate) enum KeyError {
    /// Its file cannot be read.
    #[error("cannot read the key from {}: {error}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What reading reported.
        error: std::io::Error,
    },
    /// It is too short, or has characters that no header can carry.
    #[error(
        "the key in {0} is not usable: it must be at least {SHORTEST} visible ASCII characters"
    )]
    Unusable(String),
}

impl Key {
    /// The first line of a file.
    pub(crate) fn read(path: &Path) -> Result<Self, KeyError> {
        let text = std::fs::read_to_string(path).map_err(|error| KeyError::Unreadable {
            path: path.to_owned(),
            error,
        })?;
        Self::new(&text, &path.display().to_string())
    }

    /// A key as it was found in `place`.
    pub(crate) fn new(text: &str, place: &str) -> Result<Self, KeyError> {
        let text = text.trim();
        match text.len() >= SHORTEST && text.bytes().all(|byte| byte.is_ascii_graphic()) {
            true => Ok(Self(blake3::hash(text.as_bytes()))),
            false => Err(KeyError::Unusable(place.to_owned())),
        }
    }

    /// Whether `given` is this key, in a time that tells nothing about either.
    pub(crate) fn is(&self, given: &str) -> bool {
        let given = blake3::hash(given.as_bytes());
        self.0.as_bytes().ct_eq(given.as_bytes()).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_long_and_has_no_spaces() {
        let key = Key::new(" 0123456789abcdef\n", "a test").ok().unwrap();
        assert!(key.is("0123456789abcdef"));
        assert!(!key.is("0123456789abcdeF"));
        assert!(!key.is(""));
        for text in ["", "short", "two words of a key", "schlüssel-schlüssel"] {
            let refused = Key::new(text, "FEDLLM_API_KEY").err().unwrap();
            let said = refused.to_string();
            assert!(
                said.contains("FEDLLM_API_KEY") && said.contains("16"),
                "{said}"
            );
        }
    }
}
