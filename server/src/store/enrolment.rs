//! Who may take part: invitations, and the clients that used one.

use fedllm_shared::{ClientId, Digest, Event, EventRecord};
use redb::{ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use super::StoreError;
use super::run::{RunStore, append_events, database, json, parse, since_start};

pub(super) const CLIENTS: TableDefinition<&[u8; 32], &[u8]> = TableDefinition::new("clients");
pub(super) const INVITATIONS: TableDefinition<&[u8; 16], &[u8]> =
    TableDefinition::new("invitations");

/// A client that joined, whether or not it may still take part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolledClient {
    /// Its identity: the hash of its public key.
    pub client: ClientId,
    /// The name that the operator gave it.
    pub name: String,
    /// When it joined, seconds since 1970.
    pub enrolled_unix: i64,
    /// When its certificate ends, seconds since 1970.
    pub expires_unix: i64,
    /// When it was revoked, seconds since 1970.
    pub revoked_unix: Option<i64>,
}

/// A one-time permission to join. The secret itself is not kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Invitation {
    /// The name that the client will have.
    pub name: String,
    /// Hash of the secret in the token.
    pub secret: Digest,
    /// When it ends, seconds since 1970.
    pub expires_unix: i64,
    /// Who used it.
    pub used_by: Option<ClientId>,
}

/// Why a token does not admit its bearer. The peer only learns that it does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenRefusal {
    /// No such invitation, or a wrong secret.
    #[error("the join token is not known here")]
    Unknown,
    /// Another key has used it.
    #[error("the join token was used already")]
    Used,
    /// It ended before it was used.
    #[error("the join token has expired")]
    Expired,
    /// The name belongs to a client that is enrolled already.
    #[error("the name in the join token belongs to another client")]
    NameTaken,
}

impl RunStore {
    /// Every client that ever joined.
    pub(crate) fn clients(&self) -> Result<Vec<EnrolledClient>, StoreError> {
        let read = || -> Result<_, redb::Error> {
            let table = self.database.begin_read()?.open_table(CLIENTS)?;
            let mut rows = Vec::new();
            for row in table.iter()? {
                rows.push(row?.1.value().to_vec());
            }
            Ok(rows)
        };
        read()
            .map_err(database)?
            .iter()
            .map(|row| parse("client", row))
            .collect()
    }

    /// The client with this identity, if it is enrolled, revoked or not.
    pub(crate) fn client(&self, client: ClientId) -> Result<Option<EnrolledClient>, StoreError> {
        let read = || -> Result<_, redb::Error> {
            let table = self.database.begin_read()?.open_table(CLIENTS)?;
            Ok(table.get(&client.0)?.map(|row| row.value().to_vec()))
        };
        read()
            .map_err(database)?
            .map(|row| parse("client", &row))
            .transpose()
    }

    /// Keeps an invitation.
    ///
    /// # Errors
    ///
    /// The refusal inside is [`TokenRefusal::NameTaken`] if a client of that name is enrolled.
    pub(crate) fn invite(
        &self,
        id: [u8; 16],
        invitation: &Invitation,
    ) -> Result<Result<(), TokenRefusal>, StoreError> {
        let mut taken = false;
        self.write(|transaction| {
            taken = name_taken(transaction, &invitation.name, None)?;
            if !taken {
                let mut table = transaction.open_table(INVITATIONS)?;
                table.insert(&id, json(invitation).as_slice())?;
            }
            Ok(Ok(()))
        })?;
        Ok(if taken {
            Err(TokenRefusal::NameTaken)
        } else {
            Ok(())
        })
    }

    /// The invitation that `id` and `secret` open now, without using it up.
    pub(crate) fn invitation(
        &self,
        id: [u8; 16],
        secret: &[u8],
        now_unix: i64,
    ) -> Result<Result<Invitation, TokenRefusal>, StoreError> {
        let read = || -> Result<_, redb::Error> {
            let table = self.database.begin_read()?.open_table(INVITATIONS)?;
            Ok(table.get(&id)?.map(|row| row.value().to_vec()))
        };
        let Some(row) = read().map_err(database)? else {
            return Ok(Err(TokenRefusal::Unknown));
        };
        let invitation: Invitation = parse("invitation", &row)?;
        Ok(check(&invitation, secret, now_unix).map(|()| invitation))
    }

    /// Uses an invitation up and enrols the client, in one transaction: of two that race with one
    /// token, one wins. The winner's key may come again, should the answer have been lost.
    pub(crate) fn enrol(
        &self,
        id: [u8; 16],
        secret: &[u8],
        client: &EnrolledClient,
    ) -> Result<Result<(), TokenRefusal>, StoreError> {
        let mut outcome = Ok(());
        self.write(|transaction| {
            let mut invitations = transaction.open_table(INVITATIONS)?;
            let row = invitations.get(&id)?.map(|row| row.value().to_vec());
            let Some(row) = row else {
                outcome = Err(TokenRefusal::Unknown);
                return Ok(Ok(()));
            };
            let mut invitation: Invitation = match parse("invitation", &row) {
                Ok(invitation) => invitation,
                Err(error) => return Ok(Err(error)),
            };
            outcome = check(&invitation, secret, client.enrolled_unix);
            if outcome.is_ok() && invitation.used_by.is_some_and(|by| by != client.client) {
                outcome = Err(TokenRefusal::Used);
            }
            if outcome.is_ok() && revoked(transaction, client.client)? {
                outcome = Err(TokenRefusal::Used);
            }
            if outcome.is_ok() && name_taken(transaction, &client.name, Some(client.client))? {
                outcome = Err(TokenRefusal::NameTaken);
            }
            if outcome.is_ok() {
                invitation.used_by = Some(client.client);
                invitations.insert(&id, json(&invitation).as_slice())?;
                let mut clients = transaction.open_table(CLIENTS)?;
                clients.insert(&client.client.0, json(client).as_slice())?;
                let event = Event::ClientEnrolled {
                    client: client.client,
                    name: client.name.clone(),
                };
                let at = since_start(transaction, client.enrolled_unix as u64 * 1000)?;
                append_events(transaction, &[EventRecord { at, event }])?;
            }
            Ok(Ok(()))
        })?;
        Ok(outcome)
    }

    /// Revokes every enrolled client called `name`; returns their identities.
    pub(crate) fn revoke(&self, name: &str, now_unix: i64) -> Result<Vec<ClientId>, StoreError> {
        let mut revoked = Vec::new();
        self.write(|transaction| {
            let mut clients = transaction.open_table(CLIENTS)?;
            let mut rows = Vec::new();
            for row in clients.iter()? {
                rows.push(row?.1.value().to_vec());
            }
            for row in rows {
                let mut client: EnrolledClient = match parse("client", &row) {
                    Ok(client) => client,
                    Err(error) => return Ok(Err(error)),
                };
                if client.name == name && client.revoked_unix.is_none() {
                    client.revoked_unix = Some(now_unix);
                    clients.insert(&client.client.0, json(&client).as_slice())?;
                    revoked.push(client.client);
                }
            }
            Ok(Ok(()))
        })?;
        Ok(revoked)
    }
}

fn check(invitation: &Invitation, secret: &[u8], now_unix: i64) -> Result<(), TokenRefusal> {
    let known = invitation.secret.0.ct_eq(&Digest::of(secret).0);
    if !bool::from(known) {
        return Err(TokenRefusal::Unknown);
    }
    if now_unix >= invitation.expires_unix {
        return Err(TokenRefusal::Expired);
    }
    Ok(())
}

/// Whether this key was enrolled once and may not come back.
fn revoked(transaction: &WriteTransaction, client: ClientId) -> Result<bool, redb::Error> {
    let clients = transaction.open_table(CLIENTS)?;
    let row = clients.get(&client.0)?;
    let row = row.and_then(|row| parse::<EnrolledClient>("client", row.value()).ok());
    Ok(row.is_some_and(|row| row.revoked_unix.is_some()))
}

/// Whether an enrolled client other than `except` has this name.
fn name_taken(
    transaction: &WriteTransaction,
    name: &str,
    except: Option<ClientId>,
) -> Result<bool, redb::Error> {
    let clients = transaction.open_table(CLIENTS)?;
    for row in clients.iter()? {
        let row = row?.1;
        // A damaged row is found when clients are listed; here it holds no name.
        let Ok(client) = parse::<EnrolledClient>("client", row.value()) else {
            continue;
        };
        if client.name == name && client.revoked_unix.is_none() && Some(client.client) != except {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: ClientId = ClientId([1; 32]);
    const MALLORY: ClientId = ClientId([9; 32]);
    const ID: [u8; 16] = [3; 16];

    fn invited() -> (tempfile::TempDir, RunStore) {
        let folder = tempfile::tempdir().unwrap();
        let store = RunStore::open(folder.path()).unwrap();
        let invitation = Invitation {
            name: "alice".into(),
            secret: Digest::of(b"secret"),
            expires_unix: 1000,
            used_by: None,
        };
        store.invite(ID, &invitation).unwrap().unwrap();
        (folder, store)
    }

    fn joining(client: ClientId, at: i64) -> EnrolledClient {
        EnrolledClient {
            client,
            name: "alice".into(),
            enrolled_unix: at,
            expires_unix: at + 100,
            revoked_unix: None,
        }
    }

    #[test]
    fn a_token_admits_one_key() {
        let (_folder, store) = invited();
        let enrol = |client| store.enrol(ID, b"secret", &joining(client, 10)).unwrap();
        assert_eq!(enrol(ALICE), Ok(()));
        assert_eq!(enrol(MALLORY), Err(TokenRefusal::Used));
        // The answer was lost: the same key asks again.
        assert_eq!(enrol(ALICE), Ok(()));
        assert_eq!(store.clients().unwrap(), [joining(ALICE, 10)]);
        assert_eq!(store.events(0, 10).unwrap().len(), 2);
    }

    #[test]
    fn wrong_secret_unknown_id_and_late_use_are_refused() {
        let (_folder, store) = invited();
        let refusal = |id, secret: &[u8], at| {
            let seen = store.invitation(id, secret, at).unwrap().unwrap_err();
            assert_eq!(
                store.enrol(id, secret, &joining(ALICE, at)).unwrap(),
                Err(seen)
            );
            seen
        };
        assert_eq!(refusal(ID, b"Secret", 10), TokenRefusal::Unknown);
        assert_eq!(refusal([4; 16], b"secret", 10), TokenRefusal::Unknown);
        assert_eq!(refusal(ID, b"secret", 1000), TokenRefusal::Expired);
        assert!(store.clients().unwrap().is_empty());
        assert!(store.invitation(ID, b"secret", 999).unwrap().is_ok());
    }

    #[test]
    fn of_many_that_race_with_one_token_one_wins() {
        let (_folder, store) = invited();
        let wins: usize = std::thread::scope(|scope| {
            let race = |key: u8| {
                let store = &store;
                scope.spawn(move || {
                    store
                        .enrol(ID, b"secret", &joining(ClientId([key; 32]), 10))
                        .unwrap()
                })
            };
            let racers: Vec<_> = (0..8).map(race).collect();
            racers
                .into_iter()
                .map(|r| r.join().unwrap().is_ok() as usize)
                .sum()
        });
        assert_eq!(wins, 1);
        assert_eq!(store.clients().unwrap().len(), 1);
    }

    #[test]
    fn a_name_is_free_again_after_revocation() {
        let (_folder, store) = invited();
        store
            .enrol(ID, b"secret", &joining(ALICE, 10))
            .unwrap()
            .unwrap();
        let second = Invitation {
            name: "alice".into(),
            secret: Digest::of(b"other"),
            expires_unix: 1000,
            used_by: None,
        };
        assert_eq!(
            store.invite([5; 16], &second).unwrap(),
            Err(TokenRefusal::NameTaken)
        );
        assert_eq!(store.revoke("alice", 20).unwrap(), [ALICE]);
        assert_eq!(store.revoke("alice", 21).unwrap(), []);
        assert_eq!(store.client(ALICE).unwrap().unwrap().revoked_unix, Some(20));
        let again = store.enrol(ID, b"secret", &joining(ALICE, 30)).unwrap();
        assert_eq!(again, Err(TokenRefusal::Used));
        assert_eq!(store.invite([5; 16], &second).unwrap(), Ok(()));
    }
}
