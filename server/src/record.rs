//! What the record says without a running server: the run's facts, its status, its adapters.

use fedllm_shared::{
    BlobRef, Coordinator, Digest, Federation, Layout, LoraSpec, ModelVersion, RunId, SnapshotError,
    Timestamp,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::admin::{ClientState, ClientStatus, RunState, Status};
use crate::store::{EnrolledClient, RunStore, StoreError};

const FACTS: &str = "facts";

/// What does not change while a run lasts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunFacts {
    pub(crate) run: RunId,
    /// The fingerprint of the base model, and what it calls itself.
    pub(crate) base: Digest,
    pub(crate) model: String,
    pub(crate) tokenizer: Digest,
    pub(crate) template: Digest,
    pub(crate) lora: LoraSpec,
    pub(crate) layout: Layout,
}

/// An adapter of the run, and what is needed to read it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StoredAdapter {
    pub(crate) version: ModelVersion,
    pub(crate) blob: BlobRef,
    pub(crate) facts: RunFacts,
}

/// Why an adapter of the run cannot be had.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RecordError {
    /// No server has run on this folder.
    #[error("the run has not begun: no server has run on this folder")]
    NotBegun,
    /// The round has not closed.
    #[error("round {round} has not closed; the last that has is {last}")]
    NotClosed {
        /// The round that was asked for.
        round: u64,
        /// The last round that has closed, or `none`.
        last: String,
    },
    /// No client has this name.
    #[error("no client is called {0:?}")]
    NoClient(String),
    /// The client has no adapter of its own.
    #[error(
        "{0} has no adapter of its own: only clients of strategy.name = \"local\" have, from their \
         first round on"
    )]
    NoOwn(String),
    /// What the run consists of cannot be read.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The record failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl RunFacts {
    /// The facts of the run in `store`, if it has begun.
    pub(crate) fn load(store: &RunStore) -> Result<Option<Self>, StoreError> {
        let Some(bytes) = store.state(FACTS)? else {
            return Ok(None);
        };
        let facts = serde_json::from_slice(&bytes).map_err(|error| StoreError::Damaged {
            what: "facts of the run",
            reason: error.to_string(),
        })?;
        Ok(Some(facts))
    }

    /// Keeps the facts.
    pub(crate) fn save(&self, store: &RunStore) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(self).map_err(|error| StoreError::Damaged {
            what: "facts of the run",
            reason: error.to_string(),
        })?;
        store.set_state(FACTS, &bytes)
    }
}

/// The adapter that `round` made, or the last one.
pub(crate) fn stored_adapter(
    store: &RunStore,
    round: Option<u64>,
) -> Result<StoredAdapter, RecordError> {
    let facts = RunFacts::load(store)?.ok_or(RecordError::NotBegun)?;
    let (latest, blob) = store.latest_version()?.ok_or(RecordError::NotBegun)?;
    let (version, blob) = match round {
        None => (latest, blob),
        Some(round) => {
            // Round 0 makes version 1.
            let version = ModelVersion(round.saturating_add(1));
            let blob = store
                .version(version)?
                .ok_or_else(|| RecordError::NotClosed {
                    round,
                    last: latest
                        .0
                        .checked_sub(1)
                        .map_or("none".to_owned(), |last| last.to_string()),
                })?;
            (version, blob)
        }
    };
    Ok(StoredAdapter {
        version,
        blob,
        facts,
    })
}

/// The adapter of one client, where nothing is averaged.
pub(crate) fn own_adapter(store: &RunStore, name: &str) -> Result<StoredAdapter, RecordError> {
    let facts = RunFacts::load(store)?.ok_or(RecordError::NotBegun)?;
    let snapshot = store.snapshot()?.ok_or(RecordError::NotBegun)?;
    let coordinator = Coordinator::restore(&snapshot, Timestamp::ZERO)?;
    let (version, models) = coordinator.model();
    let mut clients = store.clients()?.into_iter();
    let client = clients.find(|client| client.name == name);
    let client = client.ok_or_else(|| RecordError::NoClient(name.to_owned()))?;
    let own = models.own.get(&client.client);
    Ok(StoredAdapter {
        version,
        blob: *own.ok_or_else(|| RecordError::NoOwn(name.to_owned()))?,
        facts,
    })
}

/// The status of a federation whose server is not running.
pub(crate) fn status_of_record(
    federation: &Federation,
    store: &RunStore,
) -> Result<Status, StoreError> {
    let facts = RunFacts::load(store)?;
    let version = store.latest_version()?.map_or(0, |(version, _)| version.0);
    let mut clients: Vec<_> = store.clients()?.iter().map(offline).collect();
    clients.sort_by(|a, b| a.name.cmp(&b.name));
    let finished = version >= federation.rounds.count;
    Ok(Status {
        federation: federation.name.clone(),
        run: facts.map_or(RunId::default(), |facts| facts.run),
        state: match finished {
            true => RunState::Finished,
            false => RunState::Stopped,
        },
        version,
        rounds: federation.rounds.count,
        round: None,
        clients,
        history: store.rounds()?,
        scores: store.scores()?,
        bytes_sent: 0,
        bytes_received: 0,
    })
}

/// A client that is not connected.
pub(crate) fn offline(client: &EnrolledClient) -> ClientStatus {
    ClientStatus {
        name: client.name.clone(),
        client: client.client,
        state: match client.revoked_unix {
            Some(_) => ClientState::Revoked,
            None => ClientState::Offline,
        },
        rows: None,
        device: None,
        progress: None,
        loss: None,
        bytes_sent: 0,
        bytes_received: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fedllm_shared::{Targets, TensorSpec};

    use crate::store::Commit;

    fn facts() -> RunFacts {
        let spec = TensorSpec {
            name: "a".into(),
            rows: 2,
            cols: 3,
        };
        RunFacts {
            run: RunId([1; 16]),
            base: Digest::of(b"base"),
            model: "tiny".into(),
            tokenizer: Digest::of(b"tokenizer"),
            template: Digest::of(b"template"),
            lora: LoraSpec {
                rank: 2,
                alpha: 4.0,
                dropout: 0.0,
                rslora: false,
                targets: Targets::ALL,
                seed: 1,
                train: Default::default(),
            },
            layout: Layout::new(vec![spec]).unwrap(),
        }
    }

    #[test]
    fn adapters_are_found_by_round() {
        let folder = tempfile::tempdir().unwrap();
        let store = RunStore::open(folder.path()).unwrap();
        assert!(matches!(
            stored_adapter(&store, None),
            Err(RecordError::NotBegun)
        ));
        facts().save(&store).unwrap();
        for version in 0..3u64 {
            let commit = Commit {
                version: Some((ModelVersion(version), BlobRef::of(&version.to_le_bytes()))),
                ..Commit::default()
            };
            store.commit(&commit).unwrap();
        }
        let last = stored_adapter(&store, None).unwrap();
        assert_eq!(last.version, ModelVersion(2));
        assert_eq!(last.facts, facts());
        let first = stored_adapter(&store, Some(0)).unwrap();
        assert_eq!(first.blob, BlobRef::of(&1u64.to_le_bytes()));
        let early = stored_adapter(&store, Some(2)).unwrap_err();
        assert_eq!(
            early.to_string(),
            "round 2 has not closed; the last that has is 1"
        );
        let status = status_of_record(&Federation::parse("").unwrap(), &store).unwrap();
        assert_eq!((status.version, status.state), (2, RunState::Stopped));
    }
}
