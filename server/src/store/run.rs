//! The run's record: who is enrolled, what was accepted, where the run stands.
//!
//! One file, one writer. A [`Commit`] is one transaction: after it returns, what it holds
//! survives a crash; if it fails, none of it happened. Rows are JSON, so that a later version can
//! read them; the coordinator's snapshot is postcard, guarded by the format number.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fedllm_shared::{
    BlobRef, ClientId, EventRecord, ModelVersion, RoundId, Timestamp, UpdateMetrics,
};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::StoreError;
use super::enrolment::{CLIENTS, INVITATIONS};
use super::scores::{NewScore, SCORES, add_scores};

const FORMAT: u64 = 1;

const NUMBERS: TableDefinition<&str, u64> = TableDefinition::new("numbers");
const STATE: TableDefinition<&str, &[u8]> = TableDefinition::new("state");
const UPDATES: TableDefinition<(u64, &[u8; 32]), &[u8]> = TableDefinition::new("updates");
const VERSIONS: TableDefinition<u64, &[u8]> = TableDefinition::new("versions");
const ROUNDS: TableDefinition<u64, &[u8]> = TableDefinition::new("rounds");
const EVENTS: TableDefinition<u64, &[u8]> = TableDefinition::new("events");

const SNAPSHOT: &str = "coordinator";
const OPTIMIZER: &str = "optimizer";
const STARTED: &str = "started_unix_ms";

/// One event of the run as the record keeps it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct LoggedEvent {
    /// Its place in the record, from 0.
    pub(crate) seq: u64,
    /// When it happened, and what.
    #[serde(flatten)]
    pub(crate) record: EventRecord,
}

/// What one transaction makes durable.
#[derive(Default)]
pub(crate) struct Commit {
    /// The coordinator after everything below.
    pub(crate) snapshot: Option<Vec<u8>>,
    /// What the server's optimizer keeps, if it changes.
    pub(crate) optimizer: Option<Vec<u8>>,
    /// Updates that are accepted from now on, or (without one) no longer are.
    pub(crate) updates: BTreeMap<(RoundId, ClientId), Option<AcceptedUpdate>>,
    /// A new version of the adapter.
    pub(crate) version: Option<(ModelVersion, BlobRef)>,
    /// What a closed round came to, for people.
    pub(crate) round: Option<(RoundId, serde_json::Value)>,
    /// What is newly known of versions.
    pub(crate) scores: Vec<(ModelVersion, NewScore)>,
    /// What happened, for machines.
    pub(crate) events: Vec<EventRecord>,
}

/// An update in the record: once for a round and a client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct AcceptedUpdate {
    pub(crate) blob: BlobRef,
    pub(crate) weight: u64,
    pub(crate) metrics: UpdateMetrics,
}

/// The record of one run.
pub(crate) struct RunStore {
    pub(super) database: Database,
}

impl RunStore {
    /// Opens the record in `state`, making it if need be.
    ///
    /// # Errors
    ///
    /// [`StoreError::InUse`] if another process has it open, [`StoreError::Format`] if a later
    /// version wrote it.
    pub(crate) fn open(state: &Path) -> Result<Self, StoreError> {
        let path = state.join("run.redb");
        let database = Database::create(&path).map_err(|error| opening(path, error))?;
        let store = Self { database };
        store.write(|transaction| {
            let mut numbers = transaction.open_table(NUMBERS)?;
            let got = numbers.get("format")?.map(|row| row.value());
            match got {
                None => {
                    numbers.insert("format", FORMAT)?;
                }
                Some(FORMAT) => {}
                Some(got) => {
                    return Ok(Err(StoreError::Format {
                        expected: FORMAT,
                        got,
                    }));
                }
            }
            drop(numbers);
            transaction.open_table(STATE)?;
            transaction.open_table(CLIENTS)?;
            transaction.open_table(INVITATIONS)?;
            transaction.open_table(UPDATES)?;
            transaction.open_table(VERSIONS)?;
            transaction.open_table(ROUNDS)?;
            transaction.open_table(EVENTS)?;
            transaction.open_table(SCORES)?;
            Ok(Ok(()))
        })?;
        Ok(store)
    }

    /// Makes everything in `commit` durable, or nothing of it.
    ///
    /// # Errors
    ///
    /// [`StoreError::Conflict`] if a client has another update in the round: that would be an
    /// error of ours, and nothing is written. Any other error means that the server must stop.
    pub(crate) fn commit(&self, commit: &Commit) -> Result<(), StoreError> {
        self.write(|transaction| {
            for ((round, client), update) in &commit.updates {
                let mut updates = transaction.open_table(UPDATES)?;
                let key = (round.0, &client.0);
                let Some(update) = update else {
                    updates.remove(key)?;
                    continue;
                };
                let previous = updates.get(key)?.map(|row| row.value().to_vec());
                let differs = previous.is_some_and(|row| {
                    parse::<AcceptedUpdate>("update", &row).is_ok_and(|row| row.blob != update.blob)
                });
                if differs {
                    let (round, client) = (*round, *client);
                    return Ok(Err(StoreError::Conflict { round, client }));
                }
                updates.insert(key, json(update).as_slice())?;
            }
            if let Some((version, adapter)) = &commit.version {
                let mut versions = transaction.open_table(VERSIONS)?;
                versions.insert(version.0, json(adapter).as_slice())?;
            }
            if let Some((round, report)) = &commit.round {
                transaction
                    .open_table(ROUNDS)?
                    .insert(round.0, json(report).as_slice())?;
            }
            if let Err(error) = add_scores(transaction, &commit.scores)? {
                return Ok(Err(error));
            }
            append_events(transaction, &commit.events)?;
            let mut state = transaction.open_table(STATE)?;
            for (key, bytes) in [(SNAPSHOT, &commit.snapshot), (OPTIMIZER, &commit.optimizer)] {
                if let Some(bytes) = bytes {
                    state.insert(key, bytes.as_slice())?;
                }
            }
            drop(state);
            Ok(Ok(()))
        })
    }

    /// Accepted updates of rounds from `round` on.
    pub(crate) fn updates_since(&self, round: RoundId) -> Result<Vec<AcceptedUpdate>, StoreError> {
        let read = || -> Result<_, redb::Error> {
            let table = self.database.begin_read()?.open_table(UPDATES)?;
            let mut rows = Vec::new();
            for row in table.range((round.0, &[0; 32])..)? {
                rows.push(row?.1.value().to_vec());
            }
            Ok(rows)
        };
        read()
            .map_err(database)?
            .iter()
            .map(|row| parse("update", row))
            .collect()
    }

    /// What the server's optimizer kept at the last commit.
    pub(crate) fn optimizer(&self) -> Result<Option<Vec<u8>>, StoreError> {
        self.state(OPTIMIZER)
    }

    /// When the run began, milliseconds since 1970: now, if it had not begun before.
    pub(crate) fn started_unix_ms(&self, now: u64) -> Result<u64, StoreError> {
        self.write(|transaction| {
            let mut numbers = transaction.open_table(NUMBERS)?;
            let started = numbers.get(STARTED)?.map(|row| row.value());
            if started.is_none() {
                numbers.insert(STARTED, now)?;
            }
            Ok(Ok(started.unwrap_or(now)))
        })
    }

    /// The coordinator as of the last commit.
    pub(crate) fn snapshot(&self) -> Result<Option<Vec<u8>>, StoreError> {
        self.state(SNAPSHOT)
    }

    /// Bytes that were stored under `key`.
    pub(crate) fn state(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let read = || -> Result<_, redb::Error> {
            let table = self.database.begin_read()?.open_table(STATE)?;
            Ok(table.get(key)?.map(|row| row.value().to_vec()))
        };
        read().map_err(database)
    }

    /// Stores bytes under `key`.
    pub(crate) fn set_state(&self, key: &str, bytes: &[u8]) -> Result<(), StoreError> {
        self.write(|transaction| {
            transaction.open_table(STATE)?.insert(key, bytes)?;
            Ok(Ok(()))
        })
    }

    /// The adapter of a version.
    pub(crate) fn version(&self, version: ModelVersion) -> Result<Option<BlobRef>, StoreError> {
        let read = || -> Result<_, redb::Error> {
            let table = self.database.begin_read()?.open_table(VERSIONS)?;
            Ok(table.get(version.0)?.map(|row| row.value().to_vec()))
        };
        read()
            .map_err(database)?
            .map(|row| parse("version", &row))
            .transpose()
    }

    /// The newest version of the adapter.
    pub(crate) fn latest_version(&self) -> Result<Option<(ModelVersion, BlobRef)>, StoreError> {
        let read = || -> Result<_, redb::Error> {
            let table = self.database.begin_read()?.open_table(VERSIONS)?;
            Ok(table
                .last()?
                .map(|(key, row)| (key.value(), row.value().to_vec())))
        };
        let Some((version, row)) = read().map_err(database)? else {
            return Ok(None);
        };
        Ok(Some((ModelVersion(version), parse("version", &row)?)))
    }

    /// Every version of the adapter, oldest first.
    pub(crate) fn versions(&self) -> Result<Vec<(ModelVersion, BlobRef)>, StoreError> {
        let rows = self.rows(VERSIONS, 0)?;
        rows.iter()
            .map(|(key, row)| Ok((ModelVersion(*key), parse("version", row)?)))
            .collect()
    }

    /// What every closed round came to, oldest first.
    pub(crate) fn rounds<T: DeserializeOwned>(&self) -> Result<Vec<T>, StoreError> {
        self.rows(ROUNDS, 0)?
            .iter()
            .map(|(_, row)| parse("round", row))
            .collect()
    }

    /// At most `limit` events from `seq` on.
    pub(crate) fn events(&self, seq: u64, limit: usize) -> Result<Vec<LoggedEvent>, StoreError> {
        let read = || -> Result<_, redb::Error> {
            let table = self.database.begin_read()?.open_table(EVENTS)?;
            let mut rows = Vec::new();
            for row in table.range(seq..)?.take(limit) {
                rows.push(row?.1.value().to_vec());
            }
            Ok(rows)
        };
        read()
            .map_err(database)?
            .iter()
            .map(|row| parse("event", row))
            .collect()
    }

    pub(super) fn rows(
        &self,
        table: TableDefinition<'static, u64, &'static [u8]>,
        from: u64,
    ) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        let read = || -> Result<_, redb::Error> {
            let table = self.database.begin_read()?.open_table(table)?;
            let mut rows = Vec::new();
            for row in table.range(from..)? {
                let (key, row) = row?;
                rows.push((key.value(), row.value().to_vec()));
            }
            Ok(rows)
        };
        read().map_err(database)
    }

    /// Runs `body` in a transaction and commits it, unless `body` refuses.
    pub(super) fn write<T>(
        &self,
        body: impl FnOnce(&WriteTransaction) -> Result<Result<T, StoreError>, redb::Error>,
    ) -> Result<T, StoreError> {
        let transaction = self.database.begin_write().map_err(database)?;
        let value = body(&transaction).map_err(database)??;
        transaction.commit().map_err(database)?;
        Ok(value)
    }
}

/// Appends events to the record.
pub(super) fn append_events(
    transaction: &WriteTransaction,
    events: &[EventRecord],
) -> Result<(), redb::Error> {
    if events.is_empty() {
        return Ok(());
    }
    let mut table = transaction.open_table(EVENTS)?;
    let next = table.last()?.map_or(0, |(key, _)| key.value() + 1);
    for (seq, record) in (next..).zip(events.iter().cloned()) {
        table.insert(seq, json(&LoggedEvent { seq, record }).as_slice())?;
    }
    Ok(())
}

/// The time since the run began, by the wall clock.
pub(super) fn since_start(
    transaction: &WriteTransaction,
    unix_ms: u64,
) -> Result<Timestamp, redb::Error> {
    let numbers = transaction.open_table(NUMBERS)?;
    let started = numbers.get(STARTED)?.map_or(unix_ms, |row| row.value());
    Ok(Timestamp(unix_ms.saturating_sub(started)))
}

pub(super) fn json<T: Serialize>(row: &T) -> Vec<u8> {
    // Rows are plain structs with string keys: serializing them cannot fail.
    serde_json::to_vec(row).unwrap_or_default()
}

pub(super) fn parse<T: DeserializeOwned>(what: &'static str, row: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(row).map_err(|error| StoreError::Damaged {
        what,
        reason: error.to_string(),
    })
}

fn opening(path: PathBuf, error: redb::DatabaseError) -> StoreError {
    match error {
        redb::DatabaseError::DatabaseAlreadyOpen => StoreError::InUse { path },
        other => database(other),
    }
}

pub(super) fn database(error: impl Into<redb::Error>) -> StoreError {
    StoreError::Database(Box::new(error.into()))
}

#[cfg(test)]
mod tests {
    use fedllm_shared::Event;

    use super::*;

    type Row = ((RoundId, ClientId), Option<AcceptedUpdate>);

    fn update(client: u8, content: &[u8]) -> Row {
        let update = AcceptedUpdate {
            blob: BlobRef::of(content),
            weight: 3,
            metrics: UpdateMetrics::default(),
        };
        ((RoundId(0), ClientId([client; 32])), Some(update))
    }

    fn commit(snapshot: &[u8], updates: impl IntoIterator<Item = Row>) -> Commit {
        Commit {
            snapshot: Some(snapshot.to_vec()),
            updates: updates.into_iter().collect(),
            ..Commit::default()
        }
    }

    #[test]
    fn a_commit_is_whole_or_absent_and_an_update_counts_once() {
        let folder = tempfile::tempdir().unwrap();
        let store = RunStore::open(folder.path()).unwrap();
        let first = commit(b"one", [update(1, b"a"), update(2, b"b")]);
        store.commit(&first).unwrap();
        store.commit(&first).unwrap();
        let other = commit(b"two", [update(0, b"c"), update(1, b"changed")]);
        let refused = store.commit(&other);
        assert!(matches!(refused, Err(StoreError::Conflict { .. })));
        drop(store);
        let store = RunStore::open(folder.path()).unwrap();
        assert_eq!(
            store.snapshot().unwrap().as_deref(),
            Some(b"one".as_slice())
        );
        assert_eq!(store.updates_since(RoundId(0)).unwrap().len(), 2);
        assert_eq!(store.updates_since(RoundId(1)).unwrap().len(), 0);
    }

    #[test]
    fn a_withdrawn_update_makes_room_for_another() {
        let folder = tempfile::tempdir().unwrap();
        let store = RunStore::open(folder.path()).unwrap();
        store.commit(&commit(b"1", [update(1, b"a")])).unwrap();
        let (key, _) = update(1, b"a");
        store.commit(&commit(b"2", [(key, None)])).unwrap();
        store.commit(&commit(b"3", [update(1, b"b")])).unwrap();
        let updates = store.updates_since(RoundId(0)).unwrap();
        assert_eq!(updates[0].blob, BlobRef::of(b"b"));
    }

    #[test]
    fn versions_events_and_state_are_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let store = RunStore::open(folder.path()).unwrap();
        assert!(store.latest_version().unwrap().is_none());
        for i in 0..3u64 {
            let event = Event::RunResumed { round: RoundId(i) };
            let at = Timestamp(10 * i);
            let commit = Commit {
                version: Some((ModelVersion(i), BlobRef::of(&[i as u8]))),
                events: vec![EventRecord { at, event }],
                ..Commit::default()
            };
            store.commit(&commit).unwrap();
        }
        let last = (ModelVersion(2), BlobRef::of(&[2]));
        assert_eq!(store.latest_version().unwrap(), Some(last));
        let first = store.version(ModelVersion(1)).unwrap();
        assert_eq!(first, Some(BlobRef::of(&[1])));
        assert_eq!(store.versions().unwrap().len(), 3);
        let events = store.events(1, 1).unwrap();
        assert_eq!((events.len(), events[0].seq), (1, 1));
        assert_eq!(events[0].record.at, Timestamp(10));
        assert_eq!(store.state("layout").unwrap(), None);
        store.set_state("layout", b"l").unwrap();
        assert_eq!(
            store.state("layout").unwrap().as_deref(),
            Some(b"l".as_slice())
        );
        assert_eq!(store.started_unix_ms(5).unwrap(), 5);
        assert_eq!(store.started_unix_ms(9).unwrap(), 5);
    }

    #[test]
    fn one_process_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let _store = RunStore::open(folder.path()).unwrap();
        let second = RunStore::open(folder.path());
        assert!(matches!(second, Err(StoreError::InUse { .. })));
    }
}
