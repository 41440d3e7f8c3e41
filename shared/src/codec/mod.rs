//! Deltas and adapters as bytes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How the values of a delta are written. Grows at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Codec {
    /// Each value in 4 bytes: exact.
    F32,
    /// Each value in 2 bytes, rounded to 8 significant bits.
    Bf16,
    /// Each value in 1 byte, with an `f32` scale for each row of a tensor.
    #[serde(rename = "int8")]
    Int8Rows,
}

impl Codec {
    /// The name in configuration files: `f32`, `bf16` or `int8`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8Rows => "int8",
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A text that names no codec.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected f32, bf16 or int8, got {0:?}")]
pub struct ParseCodecError(String);

impl FromStr for Codec {
    type Err = ParseCodecError;

    fn from_str(text: &str) -> Result<Self, ParseCodecError> {
        [Self::F32, Self::Bf16, Self::Int8Rows]
            .into_iter()
            .find(|codec| codec.name() == text)
            .ok_or_else(|| ParseCodecError(text.chars().take(80).collect()))
    }
}
