//! What a client keeps between runs: per federation its key, certificates, and account of what
//! was sent.
//!
//! ```text
//! STATE/federations/NAME/key.pem          private key, readable by its owner alone
//!                        certificate.der  what the federation's CA says about that key
//!                        ca.der           the federation's CA, the only one trusted there
//!                        enrollment.json  name, server address, when enrolled
//!                        ledger.json      bytes sent by kind, last rounds
//!                        round.bin        where the round stands, see `store`
//!                        delta-DIGEST.bin the update that waits for a receipt
//!                        lock             held by the process that takes part
//! ```

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use etcetera::{AppStrategy, AppStrategyArgs};
use fedllm_shared::Digest;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::files::{create_private_folder, sync_folder, write_durable, write_secret};
use crate::identity::{CertificateFacts, ClientKey, IdentityError};
use crate::ledger::Ledger;
use crate::store::RoundStore;

/// What can go wrong with the state directory: always a local fault.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StateError {
    /// The system does not say where programs keep their state.
    #[error("no home directory is known, so there is no place for the state")]
    NoHome,
    /// A file could not be read or written.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried: `read`, `write`, `lock`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A file holds something else than it should.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        reason: String,
    },
    /// A key or a certificate in the state is unusable.
    #[error("the identity in {} is unusable", path.display())]
    Identity {
        /// The federation's directory.
        path: PathBuf,
        /// Why.
        source: IdentityError,
    },
    /// No federation was joined yet, or none of that name.
    #[error("{}", not_enrolled(.name.as_deref(), .known))]
    NotEnrolled {
        /// The name that was asked for.
        name: Option<String>,
        /// The names of the federations that were joined.
        known: Vec<String>,
    },
    /// Several federations were joined and none was named.
    #[error("this client is enrolled in several federations: {}", known.join(", "))]
    Ambiguous {
        /// Their names.
        known: Vec<String>,
    },
    /// A federation of that name, with another CA, was joined before.
    #[error("another federation named `{name}` is already in {}", path.display())]
    NameTaken {
        /// The name.
        name: String,
        /// Where it is.
        path: PathBuf,
    },
    /// The name cannot be a directory's.
    #[error("`{name}` is no name for a federation: use up to 64 of a-z, A-Z, 0-9, '.', '_', '-'")]
    BadName {
        /// The name.
        name: String,
    },
    /// Another process takes part with this identity.
    #[error("another fedllm-client is running with {}", path.display())]
    InUse {
        /// The lock file.
        path: PathBuf,
    },
}

/// The directory that holds everything a client remembers.
#[derive(Clone, Debug)]
pub struct StateDir {
    root: PathBuf,
}

impl StateDir {
    /// The state in `root`, which need not exist yet.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The state in `explicit`, else in the place that the system has for a program's state.
    ///
    /// # Errors
    ///
    /// [`StateError::NoHome`] if there is no such place.
    pub fn locate(explicit: Option<PathBuf>) -> Result<Self, StateError> {
        if let Some(root) = explicit {
            return Ok(Self::at(root));
        }
        let strategy = etcetera::choose_app_strategy(AppStrategyArgs {
            top_level_domain: "org".to_owned(),
            author: "fedllm".to_owned(),
            app_name: "fedllm".to_owned(),
        })
        .map_err(|_| StateError::NoHome)?;
        Ok(Self::at(
            strategy.state_dir().unwrap_or_else(|| strategy.data_dir()),
        ))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// The names of the federations that this client joined, sorted.
    ///
    /// # Errors
    ///
    /// [`StateError::Io`] if the directory cannot be read.
    pub fn names(&self) -> Result<Vec<String>, StateError> {
        let folder = self.federations();
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io_error("read", &folder)(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(io_error("read", &folder))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if is_name(&name) && entry.path().join(ENROLLMENT).exists() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// Opens the federation called `name`, or the only one.
    ///
    /// # Errors
    ///
    /// [`StateError::NotEnrolled`], [`StateError::Ambiguous`], or whatever is wrong with its files.
    pub fn open(&self, name: Option<&str>) -> Result<Enrollment, StateError> {
        let known = self.names()?;
        let chosen = match (name, known.as_slice()) {
            (Some(name), _) if known.iter().any(|known| known == name) => name,
            (None, [only]) => only,
            (None, [_, _, ..]) => return Err(StateError::Ambiguous { known }),
            (name, _) => {
                return Err(StateError::NotEnrolled {
                    name: name.map(str::to_owned),
                    known,
                });
            }
        };
        Enrollment::read(self.federations().join(chosen))
    }

    /// Keeps a new membership. Joining a federation again replaces key and certificate, and keeps
    /// the ledger.
    ///
    /// # Errors
    ///
    /// [`StateError::NameTaken`] if another federation has that name here, [`StateError::BadName`],
    /// or [`StateError::Io`]; what was there before is then unchanged.
    pub fn enroll(&self, membership: Membership) -> Result<Enrollment, StateError> {
        let name = membership.name.clone();
        if !is_name(&name) {
            return Err(StateError::BadName { name });
        }
        let folder = self.federations().join(&name);
        self.check_name(&name, &membership.ca)?;
        let ledger = if folder.join(LEDGER).exists() {
            read_json(&folder.join(LEDGER))?
        } else {
            Ledger::default()
        };
        let fresh = self.federations().join(format!(".{name}.new"));
        remove_folder(&fresh)?;
        create_private_folder(&fresh).map_err(io_error("create", &fresh))?;
        write_membership(&fresh, &membership, &ledger)?;
        let old = self.federations().join(format!(".{name}.old"));
        remove_folder(&old)?;
        if folder.exists() {
            fs::rename(&folder, &old).map_err(io_error("replace", &folder))?;
        }
        fs::rename(&fresh, &folder).map_err(io_error("write", &folder))?;
        sync_folder(&self.federations()).map_err(io_error("write", &folder))?;
        remove_folder(&old)?;
        Enrollment::read(folder)
    }

    /// Makes sure that a membership can be kept, before a token is spent on it.
    ///
    /// # Errors
    ///
    /// [`StateError::Io`] if the directory cannot be written, or the disk is full.
    pub fn check_writable(&self) -> Result<(), StateError> {
        let folder = self.federations();
        create_private_folder(&folder).map_err(io_error("create", &folder))?;
        let probe = folder.join(".probe");
        // As large as what a membership needs.
        let written = write_secret(&probe, &[0; 16 * 1024]);
        written.map_err(io_error("write", &probe))?;
        fs::remove_file(&probe).map_err(io_error("remove", &probe))
    }

    /// A name for the directory of a federation that calls itself `federation`: as it is where
    /// that can be, and told apart from another federation that has the name here.
    pub fn name_for(&self, federation: &str, ca: &CertificateDer<'_>) -> String {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let name: String = federation
            .chars()
            .map(|c| if fits(c) { c } else { '-' })
            .take(50)
            .collect();
        let name = name.trim_matches(['-', '.']);
        let name = if name.is_empty() { "federation" } else { name };
        match self.check_name(name, ca) {
            Ok(()) => name.to_owned(),
            Err(_) => format!("{name}-{}", Digest::of(ca).short()),
        }
    }

    fn check_name(&self, name: &str, ca: &CertificateDer<'_>) -> Result<(), StateError> {
        let folder = self.federations().join(name);
        match fs::read(folder.join(CA)) {
            Ok(known) if known != ca.as_ref() => Err(StateError::NameTaken {
                name: name.to_owned(),
                path: folder,
            }),
            _ => Ok(()),
        }
    }

    fn federations(&self) -> PathBuf {
        self.root.join("federations")
    }
}

/// What a client gets when it joins a federation.
#[derive(Debug)]
pub struct Membership {
    /// The federation's name on this machine.
    pub name: String,
    /// Where its server is: `host:port`.
    pub server: String,
    /// When it was joined, in seconds since 1970.
    pub enrolled: u64,
    /// This client's key there.
    pub key: ClientKey,
    /// What the federation's CA says about that key.
    pub certificate: CertificateDer<'static>,
    /// The federation's CA.
    pub ca: CertificateDer<'static>,
}

/// A membership as it lies on disk, with the account of what was sent.
#[derive(Debug)]
pub struct Enrollment {
    folder: PathBuf,
    /// Key, certificates, address.
    pub membership: Membership,
    /// What the certificate says.
    pub facts: CertificateFacts,
    /// What was sent, and the last rounds.
    pub ledger: Ledger,
}

impl Enrollment {
    /// Where it lies.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the rounds of this federation are kept.
    pub fn rounds(&self) -> RoundStore {
        RoundStore::at(&self.folder)
    }

    /// Makes this process the only one that takes part with this identity, until it ends or drops
    /// the lock.
    ///
    /// # Errors
    ///
    /// [`StateError::InUse`] if another one does.
    pub fn lock(&self) -> Result<Lock, StateError> {
        let path = self.folder.join("lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(io_error("lock", &path))?;
        let patience = Instant::now() + LOCK_PATIENCE;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Lock { _file: file }),
                // A process that was killed holds its lock until the system has cleaned up.
                Err(TryLockError::WouldBlock) if Instant::now() < patience => {
                    std::thread::sleep(LOCK_PATIENCE / 20);
                }
                Err(TryLockError::WouldBlock) => return Err(StateError::InUse { path }),
                Err(TryLockError::Error(error)) => return Err(io_error("lock", &path)(error)),
            }
        }
    }

    fn read(folder: PathBuf) -> Result<Self, StateError> {
        let about: About = read_json(&folder.join(ENROLLMENT))?;
        let name = folder
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let identity = |source| StateError::Identity {
            path: folder.clone(),
            source,
        };
        let pem = String::from_utf8_lossy(&read(&folder.join(KEY))?).into_owned();
        let key = ClientKey::from_pem(&pem).map_err(identity)?;
        let certificate = CertificateDer::from(read(&folder.join(CERTIFICATE))?);
        let facts = CertificateFacts::read("this client", &certificate).map_err(identity)?;
        facts.check_key(&key).map_err(identity)?;
        let ca = CertificateDer::from(read(&folder.join(CA))?);
        let ledger = read_json(&folder.join(LEDGER))?;
        let membership = Membership {
            name,
            server: about.server,
            enrolled: about.enrolled,
            key,
            certificate,
            ca,
        };
        Ok(Self {
            folder,
            membership,
            facts,
            ledger,
        })
    }
}

/// Held by the process that takes part; let go when dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// How long to wait for another process to let go.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const KEY: &str = "key.pem";
const CERTIFICATE: &str = "certificate.der";
const CA: &str = "ca.der";
const ENROLLMENT: &str = "enrollment.json";
pub(crate) const LEDGER: &str = "ledger.json";

/// The part of a membership that is no key and no certificate.
#[derive(Serialize, Deserialize)]
struct About {
    server: String,
    enrolled: u64,
}

pub(crate) fn io_error(
    action: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> StateError + use<> {
    let path = path.to_owned();
    move |source| StateError::Io {
        action,
        path,
        source,
    }
}

fn write_membership(
    folder: &Path,
    membership: &Membership,
    ledger: &Ledger,
) -> Result<(), StateError> {
    let key = folder.join(KEY);
    write_secret(&key, membership.key.to_pem().as_bytes()).map_err(io_error("write", &key))?;
    for (name, bytes) in [(CERTIFICATE, &membership.certificate), (CA, &membership.ca)] {
        let path = folder.join(name);
        write_durable(&path, bytes).map_err(io_error("write", &path))?;
    }
    write_json(&folder.join(LEDGER), ledger)?;
    let about = About {
        server: membership.server.clone(),
        enrolled: membership.enrolled,
    };
    write_json(&folder.join(ENROLLMENT), &about)
}

fn read(path: &Path) -> Result<Vec<u8>, StateError> {
    fs::read(path).map_err(io_error("read", path))
}

fn read_json<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T, StateError> {
    serde_json::from_slice(&read(path)?).map_err(|error| StateError::Damaged {
        path: path.to_owned(),
        reason: error.to_string(),
    })
}

pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), StateError> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|error| StateError::Damaged {
        path: path.to_owned(),
        reason: error.to_string(),
    })?;
    text.push(b'\n');
    write_durable(path, &text).map_err(io_error("write", path))
}

fn remove_folder(folder: &Path) -> Result<(), StateError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error("remove", folder)(error))
        }
        _ => Ok(()),
    }
}

fn is_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=64).contains(&name.len()) && !name.starts_with('.') && name.chars().all(fits)
}

fn not_enrolled(name: Option<&str>, known: &[String]) -> String {
    let known = if known.is_empty() {
        "none".to_owned()
    } else {
        known.join(", ")
    };
    match name {
        Some(name) => {
            format!(
                "this client is not enrolled in a federation named `{name}` (it knows: {known})"
            )
        }
        None => "this client is not enrolled in any federation".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Kind;
    use rcgen::{CertificateParams, KeyPair};

    fn membership(name: &str, ca: &[u8]) -> Membership {
        let key = ClientKey::generate().unwrap();
        let pair = KeyPair::from_pem(&key.to_pem()).unwrap();
        let certificate = CertificateParams::default().self_signed(&pair).unwrap();
        Membership {
            name: name.to_owned(),
            server: "localhost:4433".to_owned(),
            enrolled: 1_800_000_000,
            key,
            certificate: certificate.der().clone(),
            ca: CertificateDer::from(ca.to_vec()),
        }
    }

    #[test]
    fn federations_lie_side_by_side() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::at(folder.path().join("state"));
        assert!(matches!(
            state.open(None),
            Err(StateError::NotEnrolled { .. })
        ));
        state.enroll(membership("a", b"ca of a")).unwrap();
        assert_eq!(state.open(None).unwrap().membership.name, "a");
        state.enroll(membership("b", b"ca of b")).unwrap();
        assert_eq!(state.names().unwrap(), ["a", "b"]);
        assert!(matches!(
            state.open(None),
            Err(StateError::Ambiguous { .. })
        ));
        assert!(matches!(
            state.open(Some("c")),
            Err(StateError::NotEnrolled { .. })
        ));
        let b = state.open(Some("b")).unwrap();
        assert_eq!(b.membership.server, "localhost:4433");
        assert_eq!(b.membership.ca.as_ref(), b"ca of b");
    }

    #[test]
    fn joining_again_keeps_the_ledger_and_another_federation_cannot_take_the_name() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::at(folder.path());
        let mut first = state.enroll(membership("a", b"ca")).unwrap();
        first.ledger.count(Kind::Delta, 77);
        first.rounds().save_ledger(&first.ledger).unwrap();
        let second = state.enroll(membership("a", b"ca")).unwrap();
        assert_ne!(second.membership.key.id(), first.membership.key.id());
        assert_eq!(second.ledger.sent(Kind::Delta).bytes, 77);
        let taken = state.enroll(membership("a", b"other ca"));
        assert!(matches!(taken, Err(StateError::NameTaken { .. })));
        let kept = state.open(Some("a")).unwrap();
        assert_eq!(kept.membership.key.id(), second.membership.key.id());
    }

    #[test]
    fn names_cannot_leave_the_directory() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::at(folder.path());
        for name in [
            "",
            ".",
            "..",
            "a/b",
            "a\\b",
            ".hidden",
            "ä",
            &"x".repeat(65),
        ] {
            let refused = state.enroll(membership(name, b"ca"));
            assert!(
                matches!(refused, Err(StateError::BadName { .. })),
                "{name:?}"
            );
        }
    }

    #[test]
    fn any_federation_gets_a_name_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::at(folder.path());
        state.check_writable().unwrap();
        assert_eq!(state.names().unwrap(), [""; 0]);
        let (ours, theirs) = (
            CertificateDer::from(&b"ca"[..]),
            CertificateDer::from(&b"other"[..]),
        );
        assert_eq!(state.name_for("Clinics of Ulm", &ours), "Clinics-of-Ulm");
        assert_eq!(state.name_for("../..", &ours), "federation");
        state.enroll(membership("a", b"ca")).unwrap();
        assert_eq!(state.name_for("a", &ours), "a");
        let other = state.name_for("a", &theirs);
        assert_eq!(other, format!("a-{}", Digest::of(b"other").short()));
        state.enroll(membership(&other, b"other")).unwrap();
    }

    #[test]
    fn damage_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::at(folder.path());
        let good = state.enroll(membership("a", b"ca")).unwrap();
        fs::write(good.folder().join(LEDGER), b"{ not json").unwrap();
        assert!(matches!(state.open(None), Err(StateError::Damaged { .. })));
        fs::write(good.folder().join(LEDGER), b"{}").unwrap();
        let other = ClientKey::generate().unwrap();
        fs::write(good.folder().join(KEY), other.to_pem()).unwrap();
        assert!(matches!(state.open(None), Err(StateError::Identity { .. })));
    }

    #[test]
    fn one_process_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::at(folder.path());
        let enrollment = state.enroll(membership("a", b"ca")).unwrap();
        let lock = enrollment.lock().unwrap();
        let again = state.open(None).unwrap();
        assert!(matches!(again.lock(), Err(StateError::InUse { .. })));
        drop(lock);
        again.lock().unwrap();
    }
}
