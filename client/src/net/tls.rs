//! TLS 1.3 as a client of a federation wants it: one CA, found in the state or by a token's hash.
//!
//! The address of a server is only the place to dial: it may change, or sit behind a forwarded
//! port. What is checked is the name that every server certificate of a federation carries, under
//! a CA that belongs to this federation alone.

use std::sync::Arc;

use fedllm_shared::{ALPN, ALPN_JOIN};
use quinn::crypto::rustls::QuicClientConfig;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq;

use crate::state::Membership;

/// The name in every server certificate, by whatever address the server is reached.
pub(super) const SERVER_NAME: &str = "fedllm-server";

/// The configuration for taking part: our certificate, and only the federation's CA.
pub(super) fn member(membership: &Membership) -> Result<QuicClientConfig, rustls::Error> {
    let verifier = verifier(&membership.ca)?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_webpki_verifier(verifier)
        .with_client_auth_cert(
            vec![membership.certificate.clone()],
            membership.key.to_tls(),
        )?;
    harden(&mut config, ALPN);
    quic(config)
}

/// The configuration for joining: no certificate yet, and the CA whose SHA-256 the token carries.
pub(super) fn join(authority: [u8; 32]) -> Result<QuicClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ByHash(authority)))
        .with_no_client_auth();
    harden(&mut config, ALPN_JOIN);
    quic(config)
}

/// The certificate in `chain` whose SHA-256 is `hash`.
pub(super) fn authority<'a, 'b>(
    chain: impl IntoIterator<Item = &'a CertificateDer<'b>>,
    hash: &[u8; 32],
) -> Option<&'a CertificateDer<'b>>
where
    'b: 'a,
{
    chain
        .into_iter()
        .find(|certificate| Sha256::digest(certificate).as_slice().ct_eq(hash).into())
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// One protocol, no early data, no tickets: a ticket could outlive a revocation.
fn harden(config: &mut ClientConfig, alpn: &[u8]) {
    config.alpn_protocols = vec![alpn.to_vec()];
    config.enable_early_data = false;
    config.resumption = rustls::client::Resumption::disabled();
}

fn quic(config: ClientConfig) -> Result<QuicClientConfig, rustls::Error> {
    QuicClientConfig::try_from(config).map_err(|error| rustls::Error::General(error.to_string()))
}

fn verifier(authority: &CertificateDer<'_>) -> Result<Arc<WebPkiServerVerifier>, rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone().into_owned())?;
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))
}

/// Accepts the server whose chain ends in the CA with this SHA-256, and is sound otherwise.
#[derive(Debug)]
struct ByHash([u8; 32]);

impl ServerCertVerifier for ByHash {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let authority = authority(intermediates, &self.0).ok_or(
            rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer),
        )?;
        verifier(authority)?.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        )
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General(
            "only TLS 1.3 is spoken here".to_owned(),
        ))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &provider().signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{
        BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    };

    struct Federation {
        ca: CertificateDer<'static>,
        server: CertificateDer<'static>,
        client: CertificateDer<'static>,
        stale: CertificateDer<'static>,
        nameless: CertificateDer<'static>,
    }

    fn federation() -> Federation {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let ca = params.self_signed(&key).unwrap();
        let issuer = Issuer::from_params(&params, &key);
        let issue = |name: &str, purpose, until| {
            let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            params.extended_key_usages = vec![purpose];
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(until, 1, 1);
            let key = KeyPair::generate().unwrap();
            params.signed_by(&key, &issuer).unwrap().der().clone()
        };
        let (server, client) = (
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        );
        Federation {
            server: issue(SERVER_NAME, server.clone(), 2090),
            client: issue(SERVER_NAME, client, 2090),
            stale: issue(SERVER_NAME, server.clone(), 2021),
            nameless: issue("example.org", server, 2090),
            ca: ca.der().clone(),
        }
    }

    fn verify(
        verifier: &dyn ServerCertVerifier,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
    ) -> Result<(), rustls::Error> {
        let name = ServerName::try_from(SERVER_NAME).unwrap();
        verifier
            .verify_server_cert(leaf, chain, &name, &[], UnixTime::now())
            .map(drop)
    }

    #[test]
    fn only_the_federations_server_is_accepted() {
        let (ours, theirs) = (federation(), federation());
        let verifier = verifier(&ours.ca).unwrap();
        verify(&*verifier, &ours.server, &[]).unwrap();
        verify(&*verifier, &theirs.server, std::slice::from_ref(&theirs.ca)).unwrap_err();
        verify(&*verifier, &ours.client, &[]).unwrap_err();
        verify(&*verifier, &ours.nameless, &[]).unwrap_err();
        let expired = verify(&*verifier, &ours.stale, &[]).unwrap_err();
        assert!(expired.to_string().contains("xpired"), "{expired}");
    }

    #[test]
    fn a_token_finds_its_ca_in_the_chain() {
        let (ours, theirs) = (federation(), federation());
        let verifier = ByHash(Sha256::digest(&ours.ca).into());
        verify(&verifier, &ours.server, std::slice::from_ref(&ours.ca)).unwrap();
        verify(&verifier, &ours.server, &[]).unwrap_err();
        verify(&verifier, &theirs.server, std::slice::from_ref(&theirs.ca)).unwrap_err();
        verify(&verifier, &theirs.server, std::slice::from_ref(&ours.ca)).unwrap_err();
    }
}
