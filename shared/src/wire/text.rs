//! Strings of bounded length, for `#[serde(with = "text")]`.

use std::fmt;

use serde::de::{Error, Visitor};
use serde::{Deserializer, Serializer};

/// The most bytes a string in a message may have; longer ones are cut when sent.
pub const MAX_TEXT_BYTES: usize = 512;

pub(super) fn serialize<S: Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&text[..text.floor_char_boundary(MAX_TEXT_BYTES)])
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    deserializer.deserialize_str(Bounded)
}

struct Bounded;

impl Visitor<'_> for Bounded {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a text of at most {MAX_TEXT_BYTES} bytes")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<String, E> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(E::invalid_length(text.len(), &self));
        }
        Ok(text.to_owned())
    }
}
