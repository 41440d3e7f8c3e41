//! The key of an endpoint, kept out of logs, messages and files.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::JudgeError;

/// A file of a key is no longer than this.
const FILE_BYTES: u64 = 16 << 10;

/// Shorter keys are what people give to servers that want none ("EMPTY"): nothing to hide, and
/// found in any text.
const HIDDEN_CHARACTERS: usize = 8;

/// A key. It does not show itself.
#[derive(Clone)]
pub(crate) struct Secret(String);

impl Secret {
    /// The key in an environment variable.
    ///
    /// # Errors
    ///
    /// [`JudgeError::Key`] if there is none, or it cannot be one.
    pub(crate) fn from_env(name: &str) -> Result<Self, JudgeError> {
        let from = || format!("environment variable {name}");
        match std::env::var(name) {
            Ok(text) => Self::parse(&text, from),
            Err(std::env::VarError::NotPresent) => Err(refused(from, "it is not set".into())),
            Err(std::env::VarError::NotUnicode(_)) => Err(refused(from, "it is no text".into())),
        }
    }

    /// The key in a file, without the line's end.
    ///
    /// # Errors
    ///
    /// [`JudgeError::Key`] if it cannot be read, or cannot be one.
    pub(crate) fn from_file(path: &Path) -> Result<Self, JudgeError> {
        let from = || path.display().to_string();
        let mut text = String::new();
        File::open(path)
            .and_then(|file| file.take(FILE_BYTES).read_to_string(&mut text))
            .map_err(|error| refused(from, error.to_string()))?;
        Self::parse(&text, from)
    }

    fn parse(text: &str, from: impl Fn() -> String) -> Result<Self, JudgeError> {
        let key = text.trim();
        if key.is_empty() {
            return Err(refused(from, "it is empty".into()));
        }
        if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            let reason = "a key is one word of ASCII characters, and this is not";
            return Err(refused(from, reason.into()));
        }
        Ok(Self(key.to_owned()))
    }

    /// What an endpoint wants to see.
    pub(super) fn authorization(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// A text in which the key does not stand, whoever wrote it.
    pub(super) fn hide(&self, text: &str) -> String {
        match self.0.len() < HIDDEN_CHARACTERS {
            true => text.to_owned(),
            false => text.replace(&self.0, "(the key)"),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

fn refused(from: impl Fn() -> String, reason: String) -> JudgeError {
    JudgeError::Key {
        from: from(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_from_a_file_and_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        std::fs::write(&path, "sk-0123456789\r\n").unwrap();
        let key = Secret::from_file(&path).unwrap();
        assert_eq!(key.authorization(), "Bearer sk-0123456789");
        assert_eq!(format!("{key:?}"), "Secret(..)");
        assert_eq!(
            key.hide("wrong key: sk-0123456789."),
            "wrong key: (the key)."
        );
        for bad in ["", " \n", "two words", "schlüssel", "two\nlines"] {
            std::fs::write(&path, bad).unwrap();
            let error = Secret::from_file(&path).unwrap_err();
            assert!(matches!(error, JudgeError::Key { .. }), "{bad:?}");
            assert!(bad.trim().is_empty() || !error.to_string().contains(bad.trim()));
        }
        assert!(Secret::from_file(&folder.path().join("none")).is_err());
        let error = Secret::from_env("FEDLLM_TEST_NO_SUCH_KEY").unwrap_err();
        assert!(error.to_string().contains("FEDLLM_TEST_NO_SUCH_KEY"));
    }

    #[test]
    fn a_placeholder_is_no_secret() {
        let key = Secret("1".into());
        assert_eq!(key.hide("Rating: [[10]]"), "Rating: [[10]]");
    }
}
