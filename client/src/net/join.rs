//! Joining: a one-time token becomes a certificate.

use std::time::Duration;

use fedllm_shared::{
    JoinGrant, JoinRefusal, JoinRequest, JoinResponse, JoinToken, PROTOCOL, encode_frame,
};
use quinn::Connection;
use rustls_pki_types::CertificateDer;
use thiserror::Error;
use tokio::time::timeout;

use super::quic::{client_config, connect, hang_up};
use super::{DialOptions, NetError, blobs, tls};
use crate::identity::{CertificateFacts, ClientKey, IdentityError};
use crate::state::Membership;

/// How long the server may take to issue a certificate.
const ANSWER: Duration = Duration::from_secs(20);

/// Why joining failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum JoinError {
    /// The server could not be reached, or is not the one that the token is from.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The server does not take the token.
    #[error("the server refused the token: {0}")]
    Refused(JoinRefusal),
    /// The key on this side could not be made, or the certificate is not for it.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The server sent another CA than the one that the token names.
    #[error("the server sent a CA that is not the one in the token")]
    OtherAuthority,
}

/// Joins the federation that `token` is from, at `now` in seconds since 1970: makes a key, has it
/// certified, and returns what to keep. Returns too how many bytes were sent.
///
/// # Errors
///
/// [`JoinError`]. The token stays valid unless the server granted it.
pub async fn join(token: &JoinToken, now: u64) -> Result<(Membership, u64), JoinError> {
    let key = ClientKey::generate()?;
    let request = JoinRequest {
        protocol: PROTOCOL,
        id: token.id,
        secret: token.secret.clone(),
        csr: key.certificate_request()?,
    };
    let tls = tls::join(token.authority).map_err(|error| NetError::Tls(error.to_string()))?;
    let config = client_config(tls, DialOptions::default())?;
    let (endpoint, connection) = connect(&token.address, &config).await?;
    let response = timeout(ANSWER, ask(&connection, &request)).await;
    hang_up(&endpoint, &connection).await;
    let response =
        response.unwrap_or_else(|_| Err(NetError::Lost("the server does not answer".to_owned())));
    let grant = match response? {
        JoinResponse::Granted(grant) => grant,
        JoinResponse::Refused { reason } => return Err(JoinError::Refused(reason)),
    };
    let sent = encode_frame(&request).map_or(0, |frame| frame.len() as u64);
    Ok((accept(token, key, grant, now)?, sent))
}

async fn ask(connection: &Connection, request: &JoinRequest) -> Result<JoinResponse, NetError> {
    let (mut sender, mut receiver) = connection.open_bi().await?;
    blobs::send(&mut sender, request).await?;
    // The server knows where the frame ends.
    let _ = sender.finish();
    blobs::receive(&mut receiver).await
}

/// Checks what the server granted before anything is kept.
fn accept(
    token: &JoinToken,
    key: ClientKey,
    grant: JoinGrant,
    now: u64,
) -> Result<Membership, JoinError> {
    let ca = CertificateDer::from(grant.authority);
    if tls::authority([&ca], &token.authority).is_none() {
        return Err(JoinError::OtherAuthority);
    }
    let certificate = CertificateDer::from(grant.certificate);
    CertificateFacts::read("this client", &certificate)?.check_key(&key)?;
    Ok(Membership {
        name: grant.federation,
        server: token.address.clone(),
        enrolled: now,
        key,
        certificate,
        ca,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use fedllm_shared::{TokenId, TokenSecret};
    use rcgen::{CertificateParams, KeyPair};
    use sha2::{Digest as _, Sha256};

    fn certificate(key: &ClientKey) -> Vec<u8> {
        let pair = KeyPair::from_pem(&key.to_pem()).unwrap();
        CertificateParams::default()
            .self_signed(&pair)
            .unwrap()
            .der()
            .to_vec()
    }

    fn case(certified: &ClientKey) -> (JoinToken, JoinGrant) {
        let authority = certificate(&ClientKey::generate().unwrap());
        let token = JoinToken {
            id: TokenId([1; 16]),
            secret: TokenSecret([2; 16]),
            authority: Sha256::digest(&authority).into(),
            address: "localhost:4433".to_owned(),
        };
        let grant = JoinGrant {
            name: "alice".to_owned(),
            federation: "clinics".to_owned(),
            certificate: certificate(certified),
            authority,
        };
        (token, grant)
    }

    #[test]
    fn a_sound_grant_becomes_a_membership() {
        let key = ClientKey::generate().unwrap();
        let id = key.id();
        let (token, grant) = case(&key);
        let membership = accept(&token, key, grant, 7).unwrap();
        assert_eq!(membership.key.id(), id);
        assert_eq!(membership.name, "clinics");
        assert_eq!(membership.server, "localhost:4433");
    }

    #[test]
    fn another_ca_or_another_key_is_refused() {
        let key = ClientKey::generate().unwrap();
        let (mut token, grant) = case(&key);
        token.authority[0] ^= 1;
        assert!(matches!(
            accept(&token, key, grant, 7),
            Err(JoinError::OtherAuthority)
        ));
        let (token, grant) = case(&ClientKey::generate().unwrap());
        let key = ClientKey::generate().unwrap();
        assert!(matches!(
            accept(&token, key, grant, 7),
            Err(JoinError::Identity(_))
        ));
    }
}
