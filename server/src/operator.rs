//! What an operator may do to a federation, on a running server or without one.

use fedllm_shared::{ClientId, Digest, JoinToken, TokenId, TokenSecret};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use time::OffsetDateTime;

use crate::store::{Invitation, RunStore, StoreError};

/// The longest name of a client.
const NAME_CHARACTERS: usize = 64;
const LONGEST_TTL_SECONDS: u64 = 30 * 24 * 60 * 60;

/// Why the operator's request cannot be met.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OperatorError {
    /// The name is empty, too long, or has characters that are not letters, digits, `-`, `_`, `.`.
    #[error("{0:?} is no name: use 1 to 64 letters, digits, '-', '_' or '.'")]
    Name(String),
    /// A client of that name is enrolled.
    #[error("a client called {0:?} is enrolled already")]
    NameTaken(String),
    /// No enrolled client has that name.
    #[error("no enrolled client is called {0:?}")]
    NoSuchClient(String),
    /// The invitation would end before it begins, or last too long.
    #[error("an invitation lasts 1 second to 30 days, got {0} s")]
    Ttl(u64),
    /// No random bytes from the system.
    #[error("no random bytes from the system: {0}")]
    Random(getrandom::Error),
    /// The record failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A new invitation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Invited {
    /// The name that the client will have.
    pub name: String,
    /// The one-time join token. It is a secret.
    pub token: String,
    /// When it ends, seconds since 1970.
    pub expires_unix: i64,
}

/// Clients that may not take part any more.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Revoked {
    /// Their name.
    pub name: String,
    /// Their identities.
    pub clients: Vec<ClientId>,
}

/// Makes an invitation for one client.
pub(crate) fn invite(
    store: &RunStore,
    authority: [u8; 32],
    address: &str,
    name: &str,
    ttl_seconds: u64,
) -> Result<Invited, OperatorError> {
    check_name(name)?;
    if ttl_seconds == 0 || ttl_seconds > LONGEST_TTL_SECONDS {
        return Err(OperatorError::Ttl(ttl_seconds));
    }
    let mut id = [0; 16];
    let mut secret = [0; 16];
    getrandom::fill(&mut id).map_err(OperatorError::Random)?;
    getrandom::fill(&mut secret).map_err(OperatorError::Random)?;
    let expires_unix = now_unix() + ttl_seconds as i64;
    let invitation = Invitation {
        name: name.to_owned(),
        secret: Digest::of(&secret),
        expires_unix,
        used_by: None,
    };
    let kept = store.invite(id, &invitation)?;
    kept.map_err(|_| OperatorError::NameTaken(name.to_owned()))?;
    let token = JoinToken {
        id: TokenId(id),
        secret: TokenSecret(secret),
        authority,
        address: address.to_owned(),
    };
    Ok(Invited {
        name: name.to_owned(),
        token: token.to_string(),
        expires_unix,
    })
}

/// Revokes the client called `name`.
pub(crate) fn revoke(store: &RunStore, name: &str) -> Result<Revoked, OperatorError> {
    let clients = store.revoke(name, now_unix())?;
    if clients.is_empty() {
        return Err(OperatorError::NoSuchClient(name.to_owned()));
    }
    Ok(Revoked {
        name: name.to_owned(),
        clients,
    })
}

pub(crate) fn now_unix() -> i64 {
    OffsetDateTime::now_utc().unix_timestamp()
}

/// Names go into certificates, logs and tables.
fn check_name(name: &str) -> Result<(), OperatorError> {
    let sound = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    match !name.is_empty() && name.len() <= NAME_CHARACTERS && name.chars().all(sound) {
        true => Ok(()),
        false => Err(OperatorError::Name(name.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_where_and_whom_to_trust_and_its_secret_is_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let store = RunStore::open(folder.path()).unwrap();
        let invited = invite(&store, [7; 32], "host:7433", "alice", 60).unwrap();
        let token: JoinToken = invited.token.parse().unwrap();
        assert_eq!(token.authority, [7; 32]);
        assert_eq!(token.address, "host:7433");
        let kept = store.invitation(token.id.0, &token.secret.0, now_unix());
        assert_eq!(kept.unwrap().unwrap().name, "alice");
        drop(store);
        let record = std::fs::read(folder.path().join("run.redb")).unwrap();
        let found = record.windows(16).any(|window| window == token.secret.0);
        assert!(!found, "the secret is in the record");
    }

    #[test]
    fn wrong_requests_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let store = RunStore::open(folder.path()).unwrap();
        let ask = |name: &str, ttl| invite(&store, [7; 32], "host:1", name, ttl);
        for name in ["", "a b", "../x", "é", &"x".repeat(65)] {
            assert!(
                matches!(ask(name, 60), Err(OperatorError::Name(_))),
                "{name}"
            );
        }
        assert!(matches!(ask("alice", 0), Err(OperatorError::Ttl(0))));
        assert!(matches!(ask("alice", u64::MAX), Err(OperatorError::Ttl(_))));
        assert!(matches!(
            revoke(&store, "alice"),
            Err(OperatorError::NoSuchClient(_))
        ));
    }
}
