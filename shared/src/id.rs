//! Names of things: runs, rounds, versions, clients and contents.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// One run of a federation, from its first round to its last.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct RunId(pub [u8; 16]);

/// A client, named by the BLAKE3 hash of its public key.
///
/// The key is the one in its TLS certificate, so a name cannot be claimed in
/// a message: it follows from the connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ClientId(pub [u8; 32]);

/// The BLAKE3 hash of some bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Digest(pub [u8; 32]);

/// A round of a run, counted from 0.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct RoundId(pub u64);

/// How many rounds were applied to the adapter; 0 is the initial adapter.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct ModelVersion(pub u64);

/// A text that is no name of the expected length in hex digits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected} hex digits, got {got:?}")]
pub struct ParseIdError {
    expected: usize,
    got: String,
}

impl ClientId {
    /// The name of the client that holds the key with this SubjectPublicKeyInfo (DER).
    pub fn of_public_key(spki_der: &[u8]) -> Self {
        Self(blake3::hash(spki_der).into())
    }

    /// The first eight hex digits, for people.
    pub fn short(&self) -> String {
        hex(&self.0[..4])
    }
}

impl Digest {
    /// The hash of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(blake3::hash(bytes).into())
    }

    /// The first eight hex digits, for people.
    pub fn short(&self) -> String {
        hex(&self.0[..4])
    }
}

impl RoundId {
    /// The round after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl ModelVersion {
    /// The version that one more round makes of this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for RoundId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for ModelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Bytes that people see as hex, and that travel as they are in binary formats.
macro_rules! hex_name {
    ($name:ident, $len:literal) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&hex(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), hex(&self.0))
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let mut bytes = [0; $len];
                match unhex(text, &mut bytes) {
                    true => Ok(Self(bytes)),
                    false => Err(ParseIdError {
                        expected: 2 * $len,
                        got: text.chars().take(80).collect(),
                    }),
                }
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    self.0.serialize(serializer)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    let text = String::deserialize(deserializer)?;
                    text.parse().map_err(de::Error::custom)
                } else {
                    <[u8; $len]>::deserialize(deserializer).map(Self)
                }
            }
        }
    };
}

hex_name!(RunId, 16);
hex_name!(ClientId, 32);
hex_name!(Digest, 32);

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

fn unhex(text: &str, bytes: &mut [u8]) -> bool {
    text.len() == 2 * bytes.len()
        && data_encoding::HEXLOWER_PERMISSIVE
            .decode_mut(text.as_bytes(), bytes)
            .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_hex_for_people_and_bytes_for_machines() {
        let client = ClientId::of_public_key(b"key");
        assert_eq!(client.to_string().parse(), Ok(client));
        assert_eq!(client.to_string()[..8], client.short());
        assert_eq!(
            serde_json::to_string(&client).unwrap(),
            format!("\"{client}\"")
        );
        assert_eq!(postcard::to_stdvec(&client).unwrap(), client.0);
        assert_eq!(postcard::from_bytes::<ClientId>(&client.0).unwrap(), client);
    }

    #[test]
    fn a_wrong_name_says_what_was_expected() {
        for text in ["", "zz", "00", &"0".repeat(31), &"g".repeat(32)] {
            let error = text.parse::<RunId>().unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("expected 32 hex digits, got {text:?}")
            );
        }
    }

    #[test]
    fn a_digest_is_blake3() {
        let empty = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        assert_eq!(Digest::of(b"").to_string(), empty);
    }
}
