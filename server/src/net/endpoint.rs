//! The QUIC endpoint: every limit that is not left at the library's default, and why.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fedllm_client::files::write_secret;
use fedllm_shared::{ALPN, ALPN_JOIN};
use quinn::crypto::HmacKey;
use quinn::crypto::rustls::{NoInitialCipherSuite, QuicServerConfig};
use quinn::{
    Endpoint, EndpointConfig, IdleTimeout, TokioRuntime, TransportConfig, ValidationTokenConfig,
    VarInt,
};
use quinn_proto::HashedConnectionIdGenerator;
use quinn_proto::crypto::CryptoError;
use rustls::RootCertStore;
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls_pki_types::CertificateDer;
use thiserror::Error;

use crate::pki::ServerIdentity;

/// A client that says nothing for this long is gone. Clients send a keep-alive every 15 s.
const IDLE: Duration = Duration::from_secs(60);
/// Control stream, one upload, one download, and room for what replaces them on a retry.
const BIDI_STREAMS: u32 = 8;
/// 160 Mbit/s at 100 ms. What a hostile client can make us buffer is streams times this.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
/// The cap on that, for one connection.
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
const SEND_WINDOW_BYTES: u64 = 4 << 20;
const MAX_INCOMING: usize = 1024;
/// The system's default of 208 KiB loses bursts.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;
const KEY_FILE: &str = "endpoint.key";

/// Why the server cannot listen.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// The address is taken, or not ours.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// Where we tried to listen.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The endpoint's own keys could not be read or written.
    #[error("the endpoint's key file: {0}")]
    Keys(io::Error),
    /// No random bytes from the system.
    #[error("no random bytes from the system: {0}")]
    Random(getrandom::Error),
    /// The server's certificate or key is not usable.
    #[error("the server's certificate: {0}")]
    Tls(#[from] rustls::Error),
    /// The authority's certificate is not usable to check clients.
    #[error("the authority's certificate: {0}")]
    Verifier(#[from] VerifierBuilderError),
    /// The cryptography provider lacks what QUIC needs.
    #[error(transparent)]
    Suite(#[from] NoInitialCipherSuite),
}

/// Keys that outlive the process, so that clients of a server that was killed learn at once that
/// their connection is gone: connection ids stay recognisable and resets stay valid.
pub(crate) struct EndpointKeys {
    reset: [u8; 32],
    connection_ids: u64,
}

impl EndpointKeys {
    /// Reads the keys in `folder`, or makes and stores them.
    pub(crate) fn load_or_create(folder: &Path) -> Result<Self, EndpointError> {
        let path = folder.join(KEY_FILE);
        let mut bytes = [0u8; 40];
        match std::fs::read(&path) {
            Ok(stored) if stored.len() == bytes.len() => bytes.copy_from_slice(&stored),
            Ok(_) => {
                let message = format!("{} is damaged; delete it", path.display());
                return Err(EndpointError::Keys(io::Error::other(message)));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                getrandom::fill(&mut bytes).map_err(EndpointError::Random)?;
                write_secret(&path, &bytes).map_err(EndpointError::Keys)?;
            }
            Err(error) => return Err(EndpointError::Keys(error)),
        }
        let mut reset = [0u8; 32];
        reset.copy_from_slice(&bytes[..32]);
        let mut ids = [0u8; 8];
        ids.copy_from_slice(&bytes[32..]);
        Ok(Self {
            reset,
            connection_ids: u64::from_le_bytes(ids),
        })
    }
}

/// Binds the server's endpoint.
///
/// One TLS configuration serves both protocols: a client certificate that is shown must be valid,
/// and [`admission`](super::admission) refuses `fedllm/2` without one. Joining has none to show.
pub(crate) fn bind(
    address: SocketAddr,
    authority: &CertificateDer<'static>,
    identity: ServerIdentity,
    keys: &EndpointKeys,
) -> Result<Endpoint, EndpointError> {
    let socket =
        UdpSocket::bind(address).map_err(|source| EndpointError::Bind { address, source })?;
    enlarge_buffers(&socket);
    let ids = keys.connection_ids;
    let mut endpoint = EndpointConfig::new(Arc::new(ResetKey(keys.reset)));
    endpoint.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(ids)));
    let tls = QuicServerConfig::try_from(tls(authority, identity)?)?;
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(tls));
    let mut tokens = ValidationTokenConfig::default();
    tokens.sent(0);
    server
        .transport_config(Arc::new(transport()))
        .validation_token_config(tokens)
        .max_incoming(MAX_INCOMING)
        .incoming_buffer_size(64 << 10)
        .incoming_buffer_size_total(8 << 20)
        .migration(true);
    Endpoint::new(endpoint, Some(server), socket, Arc::new(TokioRuntime))
        .map_err(|source| EndpointError::Bind { address, source })
}

fn tls(
    authority: &CertificateDer<'static>,
    identity: ServerIdentity,
) -> Result<rustls::ServerConfig, EndpointError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone())?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()?;
    // A client that joins knows only the authority's hash: it takes the certificate from here.
    let chain = vec![identity.certificate, authority.clone()];
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, identity.key)?;
    config.alpn_protocols = vec![ALPN.to_vec(), ALPN_JOIN.to_vec()];
    // No resumption: a session ticket must not outlive a revocation. No early data: replayable.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    Ok(config)
}

fn transport() -> TransportConfig {
    let mut config = TransportConfig::default();
    let idle_ms = VarInt::from_u32(IDLE.as_millis() as u32);
    config
        .max_idle_timeout(Some(IdleTimeout::from(idle_ms)))
        .keep_alive_interval(None)
        .max_concurrent_bidi_streams(VarInt::from_u32(BIDI_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(SEND_WINDOW_BYTES)
        .datagram_receive_buffer_size(None)
        .datagram_send_buffer_size(0);
    config
}

/// Asks for larger socket buffers; the system may grant less, which only costs speed.
fn enlarge_buffers(socket: &UdpSocket) {
    let Ok(state) = quinn::udp::UdpSocketState::new(socket.into()) else {
        return;
    };
    let receive = state.set_recv_buffer_size(socket.into(), SOCKET_BUFFER_BYTES);
    let send = state.set_send_buffer_size(socket.into(), SOCKET_BUFFER_BYTES);
    if let Err(error) = receive.and(send) {
        tracing::debug!(%error, "socket buffers stay at the system's default");
    }
}

/// Signs stateless resets with keyed BLAKE3.
struct ResetKey([u8; 32]);

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        signature_out.copy_from_slice(blake3::keyed_hash(&self.0, data).as_bytes());
    }

    fn signature_len(&self) -> usize {
        blake3::OUT_LEN
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        // Comparing with a `Hash` takes constant time.
        if blake3::keyed_hash(&self.0, data) == *signature {
            Ok(())
        } else {
            Err(CryptoError)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_a_restart_and_damage_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let first = EndpointKeys::load_or_create(folder.path()).unwrap();
        let second = EndpointKeys::load_or_create(folder.path()).unwrap();
        assert_eq!(first.reset, second.reset);
        assert_eq!(first.connection_ids, second.connection_ids);
        std::fs::write(folder.path().join(KEY_FILE), b"short").unwrap();
        assert!(matches!(
            EndpointKeys::load_or_create(folder.path()),
            Err(EndpointError::Keys(_))
        ));
    }

    #[test]
    fn a_reset_signature_depends_on_key_and_data() {
        let key = ResetKey([7; 32]);
        let mut signature = vec![0; key.signature_len()];
        key.sign(b"connection", &mut signature);
        assert!(key.verify(b"connection", &signature).is_ok());
        assert!(key.verify(b"connectioN", &signature).is_err());
        assert!(ResetKey([8; 32]).verify(b"connection", &signature).is_err());
        assert!(key.verify(b"connection", &signature[..31]).is_err());
    }
}
