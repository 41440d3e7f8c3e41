//! Joining: how a new client gets its certificate.
//!
//! The client connects without one, under [`super::ALPN_JOIN`], and checks
//! that the server's chain ends in the authority the token names. It sends
//! one [`JoinRequest`] frame and gets one [`JoinResponse`] frame.

use std::fmt;
use std::str::FromStr;

use data_encoding::{BASE32_NOPAD, HEXLOWER, HEXLOWER_PERMISSIVE};
use serde::{Deserialize, Serialize};

use super::text;

/// The longest certificate request a server reads.
pub const MAX_CSR_BYTES: usize = 4096;

/// What a server knows a token by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TokenId(pub [u8; 16]);

/// What makes a token worth something. Servers keep only its hash.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenSecret(pub [u8; 16]);

impl fmt::Debug for TokenSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSecret(..)")
    }
}

/// Asks for a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The newest protocol the client speaks.
    pub protocol: u16,
    /// The token's name.
    pub id: TokenId,
    /// The token's worth.
    pub secret: TokenSecret,
    /// A PKCS#10 request (DER), of which the server takes the public key only.
    pub csr: Vec<u8>,
}

/// Answers a [`JoinRequest`]. Grows at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JoinResponse {
    /// The client is in.
    Granted(JoinGrant),
    /// It is not.
    Refused {
        /// Why.
        reason: JoinRefusal,
    },
}

/// What a client needs to come back as itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinGrant {
    /// The name the operator gave the client.
    #[serde(with = "text")]
    pub name: String,
    /// The federation's name.
    #[serde(with = "text")]
    pub federation: String,
    /// The client's certificate (DER).
    pub certificate: Vec<u8>,
    /// The authority's certificate (DER).
    pub authority: Vec<u8>,
}

/// Why a client is not let in. Grows at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum JoinRefusal {
    /// No such token, or another secret. Servers do not tell which.
    #[error("the token is not valid")]
    Invalid,
    /// The token was used.
    #[error("the token was used before")]
    Used,
    /// The token's time is over.
    #[error("the token has expired")]
    Expired,
    /// The certificate request cannot be read.
    #[error("the certificate request is not valid")]
    BadRequest,
    /// The client speaks another version.
    #[error("incompatible protocol version")]
    Version,
    /// The server failed.
    #[error("the server failed")]
    Internal,
}

/// An invitation, used once:
/// `fj1.<base32 of id and secret>.<hex SHA-256 of the authority's certificate>.<host:port>`.
///
/// It carries the authority's hash, so the first contact is authenticated in
/// both directions. Whoever holds it can join: it is a secret.
///
/// ```
/// use fedllm_shared::{JoinToken, TokenId, TokenSecret};
///
/// let token = JoinToken {
///     id: TokenId([1; 16]),
///     secret: TokenSecret([2; 16]),
///     authority: [3; 32],
///     address: "federation.example:7433".to_owned(),
/// };
/// assert!(token.to_string().starts_with("fj1."));
/// assert_eq!(token.to_string().parse(), Ok(token));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinToken {
    /// The token's name.
    pub id: TokenId,
    /// The token's worth.
    pub secret: TokenSecret,
    /// The SHA-256 hash of the authority's certificate (DER).
    pub authority: [u8; 32],
    /// Where the server listens, `host:port`.
    pub address: String,
}

/// A text that is no join token. It does not repeat the text, which may be a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JoinTokenError {
    /// It does not begin with `fj1.`.
    #[error("a join token begins with fj1.")]
    Prefix,
    /// A part is missing or malformed.
    #[error("the join token's {0} is missing or malformed; was it copied whole?")]
    Part(&'static str),
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = [self.id.0, self.secret.0].concat();
        let key = BASE32_NOPAD.encode(&key).to_lowercase();
        let authority = HEXLOWER.encode(&self.authority);
        write!(f, "fj1.{key}.{authority}.{}", self.address)
    }
}

impl FromStr for JoinToken {
    type Err = JoinTokenError;

    fn from_str(text: &str) -> Result<Self, JoinTokenError> {
        let rest = text
            .trim()
            .strip_prefix("fj1.")
            .ok_or(JoinTokenError::Prefix)?;
        let mut parts = rest.splitn(3, '.');
        let mut part = |name| parts.next().ok_or(JoinTokenError::Part(name));
        let (key, authority, address) = (part("key")?, part("authority")?, part("address")?);

        let key = BASE32_NOPAD.decode(key.to_uppercase().as_bytes());
        let key: [u8; 32] = exact(key.ok()).ok_or(JoinTokenError::Part("key"))?;
        let (mut id, mut secret) = ([0; 16], [0; 16]);
        id.copy_from_slice(&key[..16]);
        secret.copy_from_slice(&key[16..]);
        let authority = HEXLOWER_PERMISSIVE.decode(authority.as_bytes());
        Ok(Self {
            id: TokenId(id),
            secret: TokenSecret(secret),
            authority: exact(authority.ok()).ok_or(JoinTokenError::Part("authority"))?,
            address: checked_address(address).ok_or(JoinTokenError::Part("address"))?,
        })
    }
}

fn exact(bytes: Option<Vec<u8>>) -> Option<[u8; 32]> {
    bytes?.try_into().ok()
}

fn checked_address(text: &str) -> Option<String> {
    let (host, port) = text.rsplit_once(':')?;
    let sound = !host.is_empty() && !host.contains(char::is_whitespace) && host.len() <= 255;
    let port: u16 = port.parse().ok()?;
    (sound && port != 0).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_token_says_which_part() {
        let good = JoinToken {
            id: TokenId([0x11; 16]),
            secret: TokenSecret([0x22; 16]),
            authority: [0x33; 32],
            address: "[::1]:7433".to_owned(),
        };
        let text = good.to_string();
        assert_eq!(format!("  {text}\n").parse(), Ok(good.clone()));
        assert!(!format!("{good:?}").contains("34, 34"));
        use JoinTokenError::{Part, Prefix};
        for (text, error) in [
            (text.replace("fj1", "fj2"), Prefix),
            (text[..20].to_owned(), Part("authority")),
            (text.replacen("fj1.", "fj1.a", 1), Part("key")),
            (text.replace("33.", "3g."), Part("authority")),
            (text.replace(":7433", ""), Part("address")),
            (text.replace("7433", "0"), Part("address")),
        ] {
            assert_eq!(text.parse::<JoinToken>(), Err(error), "{text}");
        }
    }
}
