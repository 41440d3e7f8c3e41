//! The dialer against a small QUIC server of our own, sound and unsound.

use fedllm_shared::{ALPN, ALPN_JOIN, RoundId, WaitReason, encode_frame};
use quinn::crypto::rustls::QuicServerConfig;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::*;
use crate::identity::ClientKey;

struct Federation {
    issuer: Issuer<'static, KeyPair>,
    ca: CertificateDer<'static>,
}

impl Federation {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let ca = params.self_signed(&key).unwrap().der().clone();
        Self {
            issuer: Issuer::new(params, key),
            ca,
        }
    }

    fn issue(&self, key: &KeyPair, purpose: ExtendedKeyUsagePurpose, until: i32) -> Vec<u8> {
        let mut params = CertificateParams::new(vec![tls::SERVER_NAME.to_owned()]).unwrap();
        params.extended_key_usages = vec![purpose];
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        params.signed_by(key, &self.issuer).unwrap().der().to_vec()
    }

    /// A server of this federation, which lets in whom `members` has certified.
    fn server(&self, members: &Self, alpn: &[u8], until: i32) -> Endpoint {
        let key = KeyPair::generate().unwrap();
        let certificate = self.issue(&key, ExtendedKeyUsagePurpose::ServerAuth, until);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(members.ca.clone()).unwrap();
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(
                vec![certificate.into()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        tls.alpn_protocols = vec![alpn.to_vec()];
        let tls = QuicServerConfig::try_from(tls).unwrap();
        let config = quinn::ServerConfig::with_crypto(Arc::new(tls));
        Endpoint::server(config, SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap()
    }

    /// A dialer to `server` with a certificate of this federation.
    fn dialer(&self, server: &Endpoint, until: i32) -> QuicDialer {
        let key = ClientKey::generate().unwrap();
        let pair = KeyPair::from_pem(&key.to_pem()).unwrap();
        let certificate = self.issue(&pair, ExtendedKeyUsagePurpose::ClientAuth, until);
        let membership = Membership {
            name: "test".to_owned(),
            server: server.local_addr().unwrap().to_string(),
            enrolled: 0,
            key,
            certificate: certificate.into(),
            ca: self.ca.clone(),
        };
        QuicDialer::new(&membership, DialOptions::default()).unwrap()
    }
}

/// Dials, says hello, and returns what goes wrong with that.
async fn failure(mut dialer: QuicDialer, server: Endpoint) -> NetError {
    let serving = tokio::spawn(async move {
        while let Some(incoming) = server.accept().await {
            // A client that is refused is what the test is about.
            let _ = incoming.await;
        }
    });
    let failure = async {
        let mut transport = dialer.dial().await?;
        transport.send(&ClientMessage::Leaving).await?;
        transport.receive().await
    };
    let failure = failure.await.unwrap_err();
    serving.abort();
    failure
}

#[tokio::test]
async fn messages_and_streams_pass_and_the_goodbye_arrives() {
    let federation = Federation::new();
    let server = federation.server(&federation, ALPN, 2090);
    let mut dialer = federation.dialer(&server, 2090);
    let wait = ServerMessage::Wait {
        retry_after_ms: 0,
        reason: WaitReason::Aggregating,
    };
    let answer = wait.clone();
    let serving = tokio::spawn(async move {
        let connection = server.accept().await.unwrap().await.unwrap();
        let (mut sender, mut receiver) = connection.accept_bi().await.unwrap();
        let hello: ClientMessage = blobs::receive(&mut receiver).await.unwrap();
        let frame = encode_frame(&answer).unwrap();
        // In two pieces, the first of which is no whole frame.
        sender.write_all(&frame[..3]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        sender.write_all(&frame[3..]).await.unwrap();
        let (mut echo, mut source) = connection.accept_bi().await.unwrap();
        let bytes = source.read_to_end(100).await.unwrap();
        echo.write_all(&bytes).await.unwrap();
        echo.finish().unwrap();
        let goodbye: ClientMessage = blobs::receive(&mut receiver).await.unwrap();
        (hello, goodbye)
    });
    let mut transport = dialer.dial().await.unwrap();
    let accept = ClientMessage::Accept { round: RoundId(3) };
    assert!(transport.send(&accept).await.unwrap() > 4);
    assert_eq!(transport.receive().await.unwrap(), wait);
    let (mut reader, mut writer) = transport.streams().open().await.unwrap();
    writer.write_all(b"a blob").await.unwrap();
    writer.finish().unwrap();
    assert_eq!(reader.read_to_end(100).await.unwrap(), b"a blob");
    transport.send(&ClientMessage::Leaving).await.unwrap();
    transport.close().await;
    assert_eq!(serving.await.unwrap(), (accept, ClientMessage::Leaving));
}

#[tokio::test]
async fn each_unsound_meeting_has_its_own_error() {
    let (ours, theirs) = (Federation::new(), Federation::new());

    let server = ours.server(&ours, b"fedllm/99", 2090);
    let error = failure(ours.dialer(&server, 2090), server).await;
    assert!(matches!(error, NetError::Version { .. }), "{error:?}");

    let server = ours.server(&ours, ALPN_JOIN, 2090);
    let error = failure(ours.dialer(&server, 2090), server).await;
    assert!(matches!(error, NetError::Version { .. }), "{error:?}");

    let server = ours.server(&ours, ALPN, 2090);
    let error = failure(ours.dialer(&server, 2021), server).await;
    assert!(
        matches!(error, NetError::ClientCertificateExpired),
        "{error:?}"
    );

    let server = ours.server(&theirs, ALPN, 2090);
    let error = failure(ours.dialer(&server, 2090), server).await;
    assert!(
        matches!(error, NetError::ClientCertificate { .. }),
        "{error:?}"
    );

    let server = theirs.server(&theirs, ALPN, 2090);
    let error = failure(ours.dialer(&server, 2090), server).await;
    assert!(matches!(error, NetError::WrongAuthority), "{error:?}");

    let server = ours.server(&ours, ALPN, 2021);
    let error = failure(ours.dialer(&server, 2090), server).await;
    assert!(
        matches!(error, NetError::ServerCertificate { .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn nobody_there_is_transient_and_says_where() {
    let tls = tls::join([0; 32]).unwrap();
    let config = client_config(tls, DialOptions::default()).unwrap();
    let error = connect("no-such-host.invalid:4433", &config)
        .await
        .unwrap_err();
    assert!(
        matches!(error, NetError::Address { .. }) && error.is_transient(),
        "{error}"
    );
    assert!(error.to_string().contains("no-such-host.invalid:4433"));
}
