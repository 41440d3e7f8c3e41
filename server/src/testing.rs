//! A tiny federation and a bare peer, for tests only. The peer can do what our client never would.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fedllm_shared::{
    ALPN, ALPN_JOIN, Adapter, BlobRef, BlobRequest, BlobResponse, CHUNK_BYTES, CHUNK_HEADER_BYTES,
    ChunkHeader, ClientId, ClientMessage, Codec, Delta, Digest, FrameDecoder, Hello, JoinRequest,
    JoinResponse, JoinToken, Layout, PROTOCOL, RoundId, RowKind, ServerMessage, TensorSpec,
    TrainTask, UpdateMetrics, UpdateOffer, VariateOrigin, encode_delta,
};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, Endpoint, RecvStream, SendStream};
use rcgen::{CertificateParams, KeyPair};
use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::time::timeout;

use crate::base::Base;
use crate::folder::{Folder, InitOptions};
use crate::net::stream::{read_exact, read_message, write_all, write_message};
use crate::pki::{SERVER_NAME, client_id};
use crate::server::{Server, ServerOptions};

/// Nothing in a test takes this long, unless it hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A model that does not exist, with an adapter of a few values.
pub(crate) fn base() -> Base {
    let spec = |name: &str| TensorSpec {
        name: name.into(),
        rows: 4,
        cols: 8,
    };
    let layout = Arc::new(Layout::new(vec![spec("a"), spec("b")]).unwrap());
    Base {
        digest: Digest::of(b"base"),
        tokenizer: Digest::of(b"tokenizer"),
        template: Digest::of(b"template"),
        adapter: Adapter::zeros(layout.clone()),
        layout,
        model: "nothing".into(),
    }
}

/// Makes a federation of two clients that listens on any port.
pub(crate) fn federation(folder: &Path, set: &[&str]) -> Folder {
    let settings = [
        "server.status_listen=127.0.0.1:0",
        "server.address=127.0.0.1:7433",
        "rounds.cohort=2",
        "rounds.count=2",
        "wire.codec=f32",
    ];
    let options = InitOptions {
        name: Some("test".into()),
        listen: Some("127.0.0.1:0".into()),
        set: settings.iter().chain(set).map(|s| s.to_string()).collect(),
        ..InitOptions::default()
    };
    Folder::init(folder, &options).unwrap()
}

/// Serves a federation; `at` keeps its address over a restart.
pub(crate) async fn serve(folder: &Folder, at: Option<SocketAddr>) -> Server {
    let mut options = ServerOptions::new(folder.clone(), base());
    options.listen = at;
    Server::start(options).await.unwrap()
}

/// What a client keeps between connections.
#[derive(Clone)]
pub(crate) struct Member {
    pub(crate) id: ClientId,
    key: Vec<u8>,
    certificate: CertificateDer<'static>,
    authority: CertificateDer<'static>,
}

impl Member {
    /// Joins as `name`, over the network.
    pub(crate) async fn join(server: &Server, name: &str) -> Self {
        let invited = server.invite(name, Duration::from_secs(60)).unwrap();
        let token = invited.token.parse().unwrap();
        Self::use_token(server.addr(), &token).await.unwrap()
    }

    /// Uses a token; gives the server's answer if it refuses.
    pub(crate) async fn use_token(
        server: SocketAddr,
        token: &JoinToken,
    ) -> Result<Self, JoinResponse> {
        let key = KeyPair::generate().unwrap();
        let request = JoinRequest {
            protocol: PROTOCOL,
            id: token.id,
            secret: token.secret.clone(),
            csr: CertificateParams::default()
                .serialize_request(&key)
                .unwrap()
                .der()
                .to_vec(),
        };
        let config = unauthenticated(ALPN_JOIN);
        let connection = dial(server, config).await.unwrap();
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        write_message(&mut send, &request).await.unwrap();
        let answer = read_message(&mut recv, &mut FrameDecoder::new()).await;
        match answer.unwrap().unwrap() {
            JoinResponse::Granted(grant) => Ok(Self {
                id: client_id(&grant.certificate).unwrap(),
                key: key.serialize_der(),
                certificate: grant.certificate.into(),
                authority: grant.authority.into(),
            }),
            refused => Err(refused),
        }
    }

    /// Somebody with this key and certificate, whoever made them.
    pub(crate) fn forged(key: &KeyPair, certificate: &[u8]) -> Self {
        let certificate = CertificateDer::from(certificate.to_vec());
        Self {
            id: client_id(&certificate).unwrap(),
            key: key.serialize_der(),
            authority: certificate.clone(),
            certificate,
        }
    }

    fn tls(&self) -> rustls::ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.clone()).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.clone()));
        let mut config = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![self.certificate.clone()], key)
            .unwrap();
        config.alpn_protocols = vec![ALPN.to_vec()];
        config
    }

    /// Connects to a server of another federation.
    pub(crate) async fn try_connect_trusting(&self, server: SocketAddr) -> Connection {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.clone()));
        let mut config = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Trusting))
            .with_client_auth_cert(vec![self.certificate.clone()], key)
            .unwrap();
        config.alpn_protocols = vec![ALPN.to_vec()];
        // On this side the handshake is complete before the server has seen the certificate.
        dial(server, config).await.unwrap()
    }

    /// Connects and says hello.
    pub(crate) async fn connect(&self, server: SocketAddr) -> Peer {
        let mut peer = Peer::open(dial(server, self.tls()).await.unwrap(), self.id).await;
        peer.say(ClientMessage::Hello(hello())).await;
        peer
    }

    /// Connects and says something else first.
    pub(crate) async fn connect_with(&self, server: SocketAddr, hello: Hello) -> Peer {
        let mut peer = Peer::open(dial(server, self.tls()).await.unwrap(), self.id).await;
        peer.say(ClientMessage::Hello(hello)).await;
        peer
    }
}

/// A hello that every test federation accepts.
pub(crate) fn hello() -> Hello {
    let base = base();
    Hello {
        protocol: PROTOCOL,
        client_version: "test".into(),
        device: "CPU".into(),
        shard_rows: 10,
        shard_loss_tokens: 100,
        tokenizer: base.tokenizer,
        template: base.template,
        base: base.digest,
        resume: None,
        shard_kind: RowKind::Examples,
        max_rank: None,
    }
}

/// One connection of a client.
pub(crate) struct Peer {
    pub(crate) id: ClientId,
    pub(crate) connection: Connection,
    pub(crate) send: SendStream,
    recv: RecvStream,
    decoder: FrameDecoder<ServerMessage>,
}

impl Peer {
    pub(crate) async fn open(connection: Connection, id: ClientId) -> Self {
        let (send, recv) = connection.open_bi().await.unwrap();
        Self {
            id,
            connection,
            send,
            recv,
            decoder: FrameDecoder::new(),
        }
    }

    pub(crate) async fn say(&mut self, message: ClientMessage) {
        write_message(&mut self.send, &message).await.unwrap();
    }

    /// The next message, or nothing if the server has ended the conversation.
    pub(crate) async fn hear(&mut self) -> Option<ServerMessage> {
        let read = read_message(&mut self.recv, &mut self.decoder);
        timeout(PATIENCE, read).await.unwrap().ok().flatten()
    }

    /// Waits for a message that `pick` takes; passes over others.
    pub(crate) async fn wait_for<T>(&mut self, pick: impl Fn(ServerMessage) -> Option<T>) -> T {
        loop {
            let message = self.hear().await.unwrap();
            let seen = format!("{message:?}");
            match pick(message) {
                Some(picked) => return picked,
                None if seen.starts_with("Error") => panic!("{seen}"),
                None => {}
            }
        }
    }

    pub(crate) async fn task(&mut self) -> TrainTask {
        self.wait_for(|message| match message {
            ServerMessage::Task(task) => Some(*task),
            _ => None,
        })
        .await
    }

    /// Offers an update whose values are all `value`; gives its blob and bytes.
    pub(crate) async fn offer(&mut self, task: &TrainTask, value: f32) -> (BlobRef, Vec<u8>) {
        let layout = base().layout;
        let delta = Delta::new(layout.clone(), vec![value; layout.len()]).unwrap();
        let bytes = encode_delta(&delta, Codec::F32).unwrap();
        let blob = BlobRef::of(&bytes);
        self.offer_blob(task, blob).await;
        (blob, bytes)
    }

    pub(crate) async fn offer_blob(&mut self, task: &TrainTask, blob: BlobRef) {
        let offer = UpdateOffer {
            round: task.round,
            base_version: task.version,
            blob,
            rows: 4,
            loss_tokens: 40,
            metrics: UpdateMetrics::default(),
            variate: VariateOrigin::Unused,
        };
        self.say(ClientMessage::Offer(offer)).await;
    }

    pub(crate) async fn ready(&mut self) -> u64 {
        self.wait_for(|message| match message {
            ServerMessage::Ready { offset, .. } => Some(offset),
            _ => None,
        })
        .await
    }

    pub(crate) async fn receipt(&mut self) -> Digest {
        self.wait_for(|message| match message {
            ServerMessage::Receipt { digest, .. } => Some(digest),
            _ => None,
        })
        .await
    }

    /// Uploads `bytes` as the blob; gives the server's last word.
    pub(crate) async fn put(&self, round: RoundId, blob: BlobRef, bytes: &[u8]) -> BlobResponse {
        let (mut send, mut recv) = self.connection.open_bi().await.unwrap();
        let mut decoder = FrameDecoder::new();
        write_message(&mut send, &BlobRequest::Put { round, blob })
            .await
            .unwrap();
        let first: BlobResponse = read_message(&mut recv, &mut decoder)
            .await
            .unwrap()
            .unwrap();
        let BlobResponse::From { offset } = first else {
            return first;
        };
        for chunk in bytes[offset as usize..].chunks(CHUNK_BYTES) {
            let header = ChunkHeader::of(chunk).encode();
            // The server may refuse in the middle; its answer is what counts.
            let _ = write_all(&mut send, &header).await;
            let _ = write_all(&mut send, chunk).await;
        }
        let last = timeout(PATIENCE, read_message(&mut recv, &mut decoder)).await;
        last.unwrap().unwrap().unwrap()
    }

    /// Downloads a blob, or gives the refusal.
    pub(crate) async fn get(&self, blob: BlobRef, offset: u64) -> Result<Vec<u8>, BlobResponse> {
        let (mut send, mut recv) = self.connection.open_bi().await.unwrap();
        let mut decoder = FrameDecoder::new();
        write_message(&mut send, &BlobRequest::Get { blob, offset })
            .await
            .unwrap();
        let first: BlobResponse = read_message(&mut recv, &mut decoder)
            .await
            .unwrap()
            .unwrap();
        let BlobResponse::Have { len } = first else {
            return Err(first);
        };
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < len {
            let mut header = [0; CHUNK_HEADER_BYTES];
            read_exact(&mut recv, &mut header).await.unwrap();
            let missing = len - bytes.len() as u64;
            let header = ChunkHeader::decode(&header, missing).unwrap();
            let mut chunk = vec![0; header.len];
            read_exact(&mut recv, &mut chunk).await.unwrap();
            header.check(&chunk).unwrap();
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    /// Does a task as our client would, with an update whose values are all `value`.
    pub(crate) async fn work(&mut self, value: f32) {
        let task = self.task().await;
        self.say(ClientMessage::Accept { round: task.round }).await;
        let (blob, bytes) = self.offer(&task, value).await;
        self.ready().await;
        let last = self.put(task.round, blob, &bytes).await;
        assert_eq!(
            last,
            BlobResponse::Stored {
                digest: blob.digest
            }
        );
        assert_eq!(self.receipt().await, blob.digest);
    }
}

/// Connects as nobody, trusting anybody.
pub(crate) fn unauthenticated(alpn: &[u8]) -> rustls::ClientConfig {
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Trusting))
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    config
}

/// Opens a connection.
pub(crate) async fn dial(
    server: SocketAddr,
    tls: rustls::ClientConfig,
) -> Result<Connection, quinn::ConnectionError> {
    let tls = QuicClientConfig::try_from(tls).unwrap();
    let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let config = ClientConfig::new(Arc::new(tls));
    endpoint
        .connect_with(config, server, SERVER_NAME)
        .unwrap()
        .await
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Trusts every server: what a test checks is the server.
#[derive(Debug)]
struct Trusting;

impl rustls::client::danger::ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &rustls_pki_types::ServerName<'_>,
        _ocsp_response: &[u8],
        _now: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
