//! The federation's own certificate authority: one root, the server's certificate, one
//! certificate per client.
//!
//! A certificate is an identity, never a form to be filled in by its holder: of a client's
//! signing request only the public key is copied.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fedllm_client::files::{create_private_folder, write_durable, write_secret};
use fedllm_shared::ClientId;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PKCS_ED25519, SanType, SerialNumber,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer};
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use time::OffsetDateTime;

/// The name every server certificate carries, whatever address it is reached by.
///
/// Trust comes from the federation's own authority, which signs one kind of server, so clients
/// may ask for this name when the address in their join token is not in the certificate.
pub const SERVER_NAME: &str = "fedllm-server";

/// Certificates start to be valid this long before they are made: clocks differ.
const BACKDATE: Duration = Duration::from_secs(10 * 60);
const AUTHORITY_LIFE: Duration = days(3650);
const SERVER_LIFE: Duration = days(365);
/// A server certificate with less than this left is made anew when the server starts.
const SERVER_RENEWAL: Duration = days(120);

const AUTHORITY_CERTIFICATE: &str = "ca.pem";
const AUTHORITY_KEY: &str = "ca.key";
/// The server's key and certificate, in one file so that they always belong together.
const SERVER: &str = "server.pem";

/// Why a certificate could not be read or made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PkiError {
    /// A file of the authority could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is an authority in this folder already; making another would lock its clients out.
    #[error("{path} exists: this folder already has a certificate authority")]
    Exists {
        /// The certificate that is there.
        path: PathBuf,
    },
    /// A file of the authority is damaged.
    #[error("{path} is not a valid {what}")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// The client's signing request is malformed or its signature is wrong.
    #[error("the certificate request is invalid: {0}")]
    Request(rcgen::Error),
    /// The client's key is of a kind that this federation does not accept.
    #[error("the certificate request has a key that is neither P-256 nor Ed25519")]
    KeyKind,
    /// A certificate that should hold an identity cannot be parsed.
    #[error("the certificate cannot be parsed")]
    Certificate,
    /// Signing failed here.
    #[error("making a certificate: {0}")]
    Signing(rcgen::Error),
    /// The system gave no random bytes.
    #[error("no random bytes from the system: {0}")]
    Random(getrandom::Error),
}

/// The federation's certificate authority.
pub struct Authority {
    folder: PathBuf,
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// The server's certificate and its key.
pub struct ServerIdentity {
    /// The certificate that the authority signed.
    pub certificate: CertificateDer<'static>,
    /// Its private key.
    pub key: PrivateKeyDer<'static>,
}

/// A certificate made for a client.
pub struct IssuedCertificate {
    /// The identity that it proves: the hash of its public key.
    pub client: ClientId,
    /// The certificate, DER.
    pub der: Vec<u8>,
    /// When it ends, seconds since 1970.
    pub expires_unix: i64,
}

impl Authority {
    /// Makes a new authority and the first server certificate in `folder`.
    ///
    /// # Errors
    ///
    /// [`PkiError::Exists`] if `folder` has an authority already; otherwise file or signing errors.
    pub fn create(folder: &Path, federation: &str, hosts: &[String]) -> Result<Self, PkiError> {
        let path = folder.join(AUTHORITY_CERTIFICATE);
        if path.exists() {
            return Err(PkiError::Exists { path });
        }
        create_private_folder(folder).map_err(|source| file_error(folder, source))?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(PkiError::Signing)?;
        let mut params = template(&format!("{federation} fedllm authority"), AUTHORITY_LIFE)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(PkiError::Signing)?;
        let key_path = folder.join(AUTHORITY_KEY);
        write_secret(&key_path, key.serialize_pem().as_bytes())
            .map_err(|source| file_error(&key_path, source))?;
        write_durable(&path, certificate.pem().as_bytes())
            .map_err(|source| file_error(&path, source))?;
        let authority = Self::open(folder)?;
        authority.renew_server(hosts)?;
        Ok(authority)
    }

    /// Opens the authority in `folder`.
    ///
    /// # Errors
    ///
    /// File errors, or [`PkiError::Damaged`].
    pub fn open(folder: &Path) -> Result<Self, PkiError> {
        let certificate = read_certificate(&folder.join(AUTHORITY_CERTIFICATE))?;
        let key_path = folder.join(AUTHORITY_KEY);
        let pem = fs::read_to_string(&key_path).map_err(|source| file_error(&key_path, source))?;
        let damaged = |what| PkiError::Damaged {
            path: key_path.clone(),
            what,
        };
        let key = KeyPair::from_pem(&pem).map_err(|_| damaged("private key"))?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|_| damaged("authority certificate"))?;
        Ok(Self {
            folder: folder.to_owned(),
            certificate,
            issuer,
        })
    }

    /// The authority's own certificate, which clients pin.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// SHA-256 of the authority's certificate, as join tokens carry it.
    pub fn fingerprint(&self) -> [u8; 32] {
        Sha256::digest(&self.certificate).into()
    }

    /// The server's identity for `hosts`, made anew when it nears its end or lacks a host.
    ///
    /// # Errors
    ///
    /// File or signing errors.
    pub fn server_identity(&self, hosts: &[String]) -> Result<ServerIdentity, PkiError> {
        let path = self.folder.join(SERVER);
        if !path.exists() || !serves(&read_certificate(&path)?, hosts)? {
            self.renew_server(hosts)?;
        }
        let certificate = read_certificate(&path)?;
        let key = PrivateKeyDer::from_pem_file(&path).map_err(|_| PkiError::Damaged {
            path,
            what: "private key",
        })?;
        Ok(ServerIdentity { certificate, key })
    }

    /// Signs a client certificate for the public key in `request` (DER of a PKCS#10 request).
    ///
    /// Subject, usages, serial and dates are ours; nothing else of the request is copied.
    ///
    /// # Errors
    ///
    /// [`PkiError::Request`] and [`PkiError::KeyKind`] are the client's fault.
    pub fn issue_client(
        &self,
        request: &[u8],
        name: &str,
        life: Duration,
    ) -> Result<IssuedCertificate, PkiError> {
        let der = CertificateSigningRequestDer::from(request);
        let request = CertificateSigningRequestParams::from_der(&der).map_err(PkiError::Request)?;
        let algorithm = request.public_key.algorithm();
        if *algorithm != PKCS_ECDSA_P256_SHA256 && *algorithm != PKCS_ED25519 {
            return Err(PkiError::KeyKind);
        }
        let mut params = template(name, life)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let expires_unix = params.not_after.unix_timestamp();
        let certificate = params
            .signed_by(&request.public_key, &self.issuer)
            .map_err(PkiError::Signing)?;
        let der = certificate.der().to_vec();
        Ok(IssuedCertificate {
            client: client_id(&der)?,
            der,
            expires_unix,
        })
    }

    fn renew_server(&self, hosts: &[String]) -> Result<(), PkiError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(PkiError::Signing)?;
        let mut params = template(SERVER_NAME, SERVER_LIFE)?;
        params.subject_alt_names = server_names(hosts)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params
            .signed_by(&key, &self.issuer)
            .map_err(PkiError::Signing)?;
        let path = self.folder.join(SERVER);
        let both = certificate.pem() + &key.serialize_pem();
        write_secret(&path, both.as_bytes()).map_err(|source| file_error(&path, source))
    }
}

/// The identity that a certificate proves: the hash of its public key.
///
/// # Errors
///
/// [`PkiError::Certificate`] if it is no X.509 certificate.
pub fn client_id(certificate: &[u8]) -> Result<ClientId, PkiError> {
    let (_, parsed) =
        x509_parser::parse_x509_certificate(certificate).map_err(|_| PkiError::Certificate)?;
    Ok(ClientId::of_public_key(parsed.public_key().raw))
}

fn template(common_name: &str, life: Duration) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    params.distinguished_name = name;
    let mut serial = [0u8; 16];
    getrandom::fill(&mut serial).map_err(PkiError::Random)?;
    // X.509 serials are positive and at most 20 bytes.
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    let now = OffsetDateTime::now_utc();
    params.not_before = now - BACKDATE;
    params.not_after = now + life;
    Ok(params)
}

/// The fixed name, loopback, and the hosts under which the operator announces the server.
fn server_names(hosts: &[String]) -> Result<Vec<SanType>, PkiError> {
    let mut names = Vec::new();
    let loopback = [SERVER_NAME, "localhost", "127.0.0.1", "::1"].map(str::to_owned);
    for host in loopback.iter().chain(hosts) {
        let name = match host.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(host.as_str().try_into().map_err(PkiError::Signing)?),
        };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names)
}

/// Whether `certificate` names every host and has enough life left.
fn serves(certificate: &[u8], hosts: &[String]) -> Result<bool, PkiError> {
    use x509_parser::extensions::GeneralName;
    let (_, parsed) =
        x509_parser::parse_x509_certificate(certificate).map_err(|_| PkiError::Certificate)?;
    let now = OffsetDateTime::now_utc();
    if parsed.validity().not_after.timestamp() < (now + SERVER_RENEWAL).unix_timestamp() {
        return Ok(false);
    }
    let names = parsed
        .subject_alternative_name()
        .map_err(|_| PkiError::Certificate)?;
    let names = names
        .map(|extension| extension.value.general_names.as_slice())
        .unwrap_or(&[]);
    let named = |host: &String| {
        let address = host.parse::<IpAddr>().ok().map(|address| match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        });
        names.iter().any(|name| match name {
            GeneralName::DNSName(name) => *name == host.as_str(),
            GeneralName::IPAddress(bytes) => address.as_deref() == Some(*bytes),
            _ => false,
        })
    };
    Ok(hosts.iter().all(named))
}

fn read_certificate(path: &Path) -> Result<CertificateDer<'static>, PkiError> {
    let pem = fs::read(path).map_err(|source| file_error(path, source))?;
    CertificateDer::from_pem_slice(&pem).map_err(|_| PkiError::Damaged {
        path: path.to_owned(),
        what: "certificate",
    })
}

fn file_error(path: &Path, source: io::Error) -> PkiError {
    PkiError::File {
        path: path.to_owned(),
        source,
    }
}

const fn days(count: u64) -> Duration {
    Duration::from_secs(count * 24 * 60 * 60)
}

#[cfg(test)]
mod tests {
    use rcgen::PublicKeyData;

    use super::*;

    fn request(key: &KeyPair) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.subject_alt_names = vec![SanType::DnsName(SERVER_NAME.try_into().unwrap())];
        params.serialize_request(key).unwrap().der().to_vec()
    }

    #[test]
    fn a_client_certificate_takes_only_the_key_of_the_request() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::create(folder.path(), "test", &[]).unwrap();
        let key = KeyPair::generate().unwrap();
        let issued = authority
            .issue_client(&request(&key), "alice", days(30))
            .unwrap();
        let (_, parsed) = x509_parser::parse_x509_certificate(&issued.der).unwrap();
        assert_eq!(parsed.subject().to_string(), "CN=alice");
        assert!(!parsed.is_ca());
        assert!(parsed.subject_alternative_name().unwrap().is_none());
        let usage = parsed.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.client_auth && !usage.server_auth);
        let expected = ClientId::of_public_key(&key.subject_public_key_info());
        assert_eq!(issued.client, expected);
        assert_eq!(parsed.public_key().raw, key.subject_public_key_info());
    }

    #[test]
    fn a_request_with_a_wrong_signature_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::create(folder.path(), "test", &[]).unwrap();
        let mut der = request(&KeyPair::generate().unwrap());
        let last = der.len() - 1;
        der[last] ^= 1;
        assert!(matches!(
            authority.issue_client(&der, "mallory", days(1)),
            Err(PkiError::Request(_))
        ));
        assert!(matches!(
            authority.issue_client(b"no request", "mallory", days(1)),
            Err(PkiError::Request(_))
        ));
    }

    #[test]
    fn the_authority_is_made_once_and_the_server_certificate_follows_its_hosts() {
        let folder = tempfile::tempdir().unwrap();
        let first = Authority::create(folder.path(), "test", &[]).unwrap();
        assert!(matches!(
            Authority::create(folder.path(), "test", &[]),
            Err(PkiError::Exists { .. })
        ));
        let reopened = Authority::open(folder.path()).unwrap();
        assert_eq!(first.fingerprint(), reopened.fingerprint());
        let hosts = vec!["fl.example.org".to_owned(), "10.1.2.3".to_owned()];
        let before = reopened.server_identity(&[]).unwrap();
        let after = reopened.server_identity(&hosts).unwrap();
        assert_ne!(before.certificate, after.certificate);
        let again = reopened.server_identity(&hosts).unwrap();
        assert_eq!(after.certificate, again.certificate);
    }
}
