//! Who this client is: its private key, its certificate, and the token it joined with.

use fedllm_shared::ClientId;
use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use thiserror::Error;
use x509_parser::prelude::{FromDer, X509Certificate};

/// What can be wrong with a key or a certificate on this machine.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The key could not be made, read, or used to sign.
    #[error("the private key cannot be used: {0}")]
    Key(#[from] rcgen::Error),
    /// A certificate is not one.
    #[error("the certificate of {whose} is malformed: {reason}")]
    Certificate {
        /// Whose certificate: `this client` or `the federation`.
        whose: &'static str,
        /// What the parser said.
        reason: String,
    },
    /// The certificate certifies another key than ours.
    #[error("the certificate is for key {certified}, but this client's key is {ours}")]
    OtherKey {
        /// The key that the certificate names.
        certified: ClientId,
        /// The key that this client holds.
        ours: ClientId,
    },
}

/// The private key of a client in one federation. It never leaves this machine.
#[derive(Debug)]
pub struct ClientKey(KeyPair);

impl ClientKey {
    /// Makes a new P-256 key.
    ///
    /// # Errors
    ///
    /// [`IdentityError::Key`] if the system gives no randomness.
    pub fn generate() -> Result<Self, IdentityError> {
        Ok(Self(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?))
    }

    /// Reads a key that [`to_pem`](Self::to_pem) wrote.
    ///
    /// # Errors
    ///
    /// [`IdentityError::Key`] if the text holds no such key.
    pub fn from_pem(pem: &str) -> Result<Self, IdentityError> {
        Ok(Self(KeyPair::from_pkcs8_pem_and_sign_algo(
            pem,
            &PKCS_ECDSA_P256_SHA256,
        )?))
    }

    /// The key as PEM, PKCS #8. Keep it secret.
    pub fn to_pem(&self) -> String {
        self.0.serialize_pem()
    }

    /// The name by which the server knows this client.
    pub fn id(&self) -> ClientId {
        ClientId::of_public_key(&self.0.subject_public_key_info())
    }

    /// Asks for a certificate for this key, as DER. The server takes only the public key from it.
    ///
    /// # Errors
    ///
    /// [`IdentityError::Key`] if the key cannot sign.
    pub fn certificate_request(&self) -> Result<Vec<u8>, IdentityError> {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, self.id().short());
        Ok(params.serialize_request(&self.0)?.der().to_vec())
    }

    pub(crate) fn to_tls(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.0.serialize_der()))
    }
}

/// What a certificate says, as far as a client needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFacts {
    /// The common name of the subject; the server puts the client's name there.
    pub name: String,
    /// The key that it certifies.
    pub key: ClientId,
    /// Seconds since 1970 from which it is valid.
    pub not_before: i64,
    /// Seconds since 1970 until which it is valid.
    pub not_after: i64,
}

impl CertificateFacts {
    /// Reads a certificate; `whose` names its owner in the error.
    ///
    /// # Errors
    ///
    /// [`IdentityError::Certificate`] if it cannot be parsed.
    pub fn read(
        whose: &'static str,
        certificate: &CertificateDer<'_>,
    ) -> Result<Self, IdentityError> {
        let malformed = |reason: String| IdentityError::Certificate { whose, reason };
        let (rest, parsed) =
            X509Certificate::from_der(certificate).map_err(|error| malformed(error.to_string()))?;
        if !rest.is_empty() {
            return Err(malformed(format!("{} bytes follow it", rest.len())));
        }
        let name = parsed.subject().iter_common_name().next();
        Ok(Self {
            name: name
                .and_then(|name| name.as_str().ok())
                .unwrap_or_default()
                .to_owned(),
            key: ClientId::of_public_key(parsed.public_key().raw),
            not_before: parsed.validity().not_before.timestamp(),
            not_after: parsed.validity().not_after.timestamp(),
        })
    }

    /// Refuses a certificate that is not for `key`.
    ///
    /// # Errors
    ///
    /// [`IdentityError::OtherKey`].
    pub fn check_key(&self, key: &ClientKey) -> Result<(), IdentityError> {
        let ours = key.id();
        if self.key == ours {
            return Ok(());
        }
        Err(IdentityError::OtherKey {
            certified: self.key,
            ours,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_survives_pem_and_names_the_certificate() {
        let key = ClientKey::generate().unwrap();
        let again = ClientKey::from_pem(&key.to_pem()).unwrap();
        assert_eq!(again.id(), key.id());
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "alice");
        let certificate = params.self_signed(&key.0).unwrap();
        let facts = CertificateFacts::read("this client", certificate.der()).unwrap();
        assert_eq!(facts.name, "alice");
        assert!(facts.not_before < facts.not_after);
        facts.check_key(&again).unwrap();
        let other = ClientKey::generate().unwrap();
        assert!(matches!(
            facts.check_key(&other),
            Err(IdentityError::OtherKey { .. })
        ));
    }

    #[test]
    fn request_carries_the_public_key_only_once_signed() {
        let key = ClientKey::generate().unwrap();
        let request = key.certificate_request().unwrap();
        let parsed =
            rcgen::CertificateSigningRequestParams::from_der(&request.as_slice().into()).unwrap();
        assert_eq!(
            ClientId::of_public_key(&parsed.public_key.subject_public_key_info()),
            key.id()
        );
    }

    #[test]
    fn garbage_is_no_key_and_no_certificate() {
        assert!(ClientKey::from_pem("-----BEGIN NOTHING-----").is_err());
        let garbage = CertificateDer::from(vec![0x30, 0x03, 1, 2, 3]);
        assert!(CertificateFacts::read("this client", &garbage).is_err());
    }
}
