//! What can go wrong between client and server, and whether trying again can help.

use fedllm_shared::{BlobError, BlobRefusal};
use quinn::{ConnectionError, ReadError, ReadExactError, WriteError};
use thiserror::Error;

/// What went wrong on the way to the server or back.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum NetError {
    /// The server's address has no meaning here: no such name, or no port.
    #[error("the address `{address}` cannot be resolved: {reason}")]
    Address {
        /// The address.
        address: String,
        /// What the system said.
        reason: String,
    },
    /// Nobody answered.
    #[error("no fedllm server answers at {address}: {reason}")]
    Unreachable {
        /// The address.
        address: String,
        /// What happened instead.
        reason: String,
    },
    /// The connection is gone.
    #[error("the connection was lost: {0}")]
    Lost(String),
    /// The server's certificate was not issued by the federation's CA.
    #[error("the server is not the federation's: its certificate is from another authority")]
    WrongAuthority,
    /// The server's certificate is not valid now. A wrong clock looks the same.
    #[error("the server's certificate is not valid at this time ({reason})")]
    ServerCertificate {
        /// What TLS said.
        reason: String,
    },
    /// This client's certificate is past its date.
    #[error("this client's certificate has expired")]
    ClientCertificateExpired,
    /// The server does not accept this client's certificate, for another reason than its date.
    #[error("the server does not accept this client's certificate: {reason}")]
    ClientCertificate {
        /// What TLS said.
        reason: String,
    },
    /// The server speaks another version of the protocol.
    #[error("the server speaks another protocol than {ours}")]
    Version {
        /// The protocol that this client speaks.
        ours: String,
    },
    /// TLS could not be set up on this side.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
    /// The server closed the connection and said why.
    #[error("the server closed the connection: {reason}")]
    Closed {
        /// The server's code.
        code: u64,
        /// The server's words.
        reason: String,
    },
    /// The server misbehaved: what it sent is no message of the protocol.
    #[error("the server sent a malformed message: {0}")]
    Malformed(String),
    /// A blob is larger than it may be.
    #[error("the server offers a blob of {len} bytes where at most {max} make sense")]
    TooLarge {
        /// What the server says.
        len: u64,
        /// What the layout allows.
        max: u64,
    },
    /// The bytes of a blob are not those that were asked for.
    #[error("a blob arrived damaged: {0}")]
    Blob(#[from] BlobError),
    /// The server does not give or take this blob.
    #[error("the server refused the blob: {0}")]
    Refused(BlobRefusal),
}

impl NetError {
    /// Whether trying again later can help, without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Address { .. }
            | Self::Unreachable { .. }
            | Self::Lost(_)
            | Self::Closed { .. }
            | Self::Blob(_)
            | Self::Refused(BlobRefusal::Busy | BlobRefusal::Internal | BlobRefusal::Corrupt) => {
                true
            }
            Self::WrongAuthority
            | Self::ServerCertificate { .. }
            | Self::ClientCertificateExpired
            | Self::ClientCertificate { .. }
            | Self::Version { .. }
            | Self::Tls(_)
            | Self::Malformed(_)
            | Self::TooLarge { .. }
            | Self::Refused(_) => false,
        }
    }

    pub(super) fn lost(error: std::io::Error) -> Self {
        // quinn hands its own errors through `io::Error`; what they say is worth more.
        match error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<ConnectionError>())
        {
            Some(error) => Self::from(error.clone()),
            None => Self::Lost(error.to_string()),
        }
    }
}

/// Alert numbers of TLS (RFC 8446, section 6), as QUIC carries them in its error codes.
mod alert {
    pub(super) const BAD_CERTIFICATE: u8 = 42;
    pub(super) const UNSUPPORTED_CERTIFICATE: u8 = 43;
    pub(super) const CERTIFICATE_REVOKED: u8 = 44;
    pub(super) const CERTIFICATE_EXPIRED: u8 = 45;
    pub(super) const CERTIFICATE_UNKNOWN: u8 = 46;
    pub(super) const UNKNOWN_CA: u8 = 48;
    pub(super) const ACCESS_DENIED: u8 = 49;
    /// A signature that does not verify, in a certificate or of the handshake.
    pub(super) const DECRYPT_ERROR: u8 = 51;
    pub(super) const CERTIFICATE_REQUIRED: u8 = 116;
    pub(super) const NO_APPLICATION_PROTOCOL: u8 = 120;
}

impl From<ConnectionError> for NetError {
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::TransportError(error) => {
                by_us(u64::from(error.code), error.to_string())
            }
            ConnectionError::ConnectionClosed(close) => {
                by_them(u64::from(close.error_code), close.to_string())
            }
            ConnectionError::ApplicationClosed(close) => Self::Closed {
                code: close.error_code.into_inner(),
                reason: readable(&close.reason),
            },
            other => Self::Lost(other.to_string()),
        }
    }
}

impl From<WriteError> for NetError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::ConnectionLost(error) => error.into(),
            other => Self::Lost(other.to_string()),
        }
    }
}

impl From<ReadError> for NetError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::ConnectionLost(error) => error.into(),
            other => Self::Lost(other.to_string()),
        }
    }
}

impl From<ReadExactError> for NetError {
    fn from(error: ReadExactError) -> Self {
        match error {
            ReadExactError::ReadError(error) => error.into(),
            other => Self::Lost(other.to_string()),
        }
    }
}

/// The TLS alert in a QUIC error code (RFC 9001, section 4.8).
fn alert_of(code: u64) -> Option<u8> {
    (code & !0xff == 0x100).then_some((code & 0xff) as u8)
}

/// This side ended the handshake: something is wrong with the server, as we see it.
fn by_us(code: u64, reason: String) -> NetError {
    match alert_of(code) {
        Some(alert::UNKNOWN_CA | alert::UNSUPPORTED_CERTIFICATE | alert::DECRYPT_ERROR) => {
            NetError::WrongAuthority
        }
        Some(alert::NO_APPLICATION_PROTOCOL) => NetError::Version { ours: ours() },
        Some(alert::BAD_CERTIFICATE | alert::CERTIFICATE_EXPIRED | alert::CERTIFICATE_UNKNOWN) => {
            NetError::ServerCertificate { reason }
        }
        _ => NetError::Lost(reason),
    }
}

/// The server ended the handshake: something is wrong with us, as it sees it.
fn by_them(code: u64, reason: String) -> NetError {
    match alert_of(code) {
        Some(alert::NO_APPLICATION_PROTOCOL) => NetError::Version { ours: ours() },
        Some(alert::CERTIFICATE_EXPIRED) => NetError::ClientCertificateExpired,
        Some(
            alert::BAD_CERTIFICATE
            | alert::UNSUPPORTED_CERTIFICATE
            | alert::CERTIFICATE_REVOKED
            | alert::CERTIFICATE_UNKNOWN
            | alert::UNKNOWN_CA
            | alert::ACCESS_DENIED
            | alert::DECRYPT_ERROR
            | alert::CERTIFICATE_REQUIRED,
        ) => NetError::ClientCertificate { reason },
        _ => NetError::Lost(reason),
    }
}

fn ours() -> String {
    String::from_utf8_lossy(fedllm_shared::ALPN).into_owned()
}

/// A peer's words, short and without control characters, so that they cannot forge a log line.
pub(crate) fn readable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alerts_say_whose_certificate_is_wrong() {
        let by_them = |alert: u64| by_them(0x100 + alert, String::new());
        let by_us = |alert: u64| by_us(0x100 + alert, String::new());
        assert!(matches!(by_them(45), NetError::ClientCertificateExpired));
        assert!(matches!(by_us(45), NetError::ServerCertificate { .. }));
        assert!(matches!(by_us(48), NetError::WrongAuthority));
        assert!(matches!(by_them(48), NetError::ClientCertificate { .. }));
        assert!(matches!(by_them(120), NetError::Version { .. }));
        assert!(matches!(
            super::by_them(2, String::new()),
            NetError::Lost(_)
        ));
    }

    #[test]
    fn only_what_passes_by_itself_is_tried_again() {
        assert!(NetError::Lost(String::new()).is_transient());
        assert!(!NetError::WrongAuthority.is_transient());
        assert!(!NetError::Version { ours: ours() }.is_transient());
    }

    #[test]
    fn peers_cannot_write_control_characters() {
        assert_eq!(readable(b"no\x1b[2Jway\n"), "no[2Jway");
    }
}
