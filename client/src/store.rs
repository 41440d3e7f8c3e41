//! What must survive a crash in the middle of a round: where this client stands, and the update
//! that waits for a receipt.
//!
//! `round.bin` is the participant's state, `delta-DIGEST.bin` an encoded delta. A delta is written
//! before the state names it, and deleted after the state has forgotten it, so at any moment
//! either both are there or none is missed.
//!
//! `variate-ROUND.bin` is the control variate (SCAFFOLD) after that round's work: the run's name, then
//! the encoded vector. The server says from which round on it counts, so nothing has to be undone
//! if an update is refused.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use std::sync::Arc;

use fedllm_shared::{
    Adapter, BlobRef, Digest, Layout, ParticipantState, RoundId, RunId, decode_adapter, decode_body,
};

use crate::files::{write_secret, write_whole};
use crate::ledger::Ledger;
use crate::state::{LEDGER, StateError, io_error, write_json};

const STATE: &str = "round.bin";
const DELTA_PREFIX: &str = "delta-";
const VARIATE_PREFIX: &str = "variate-";

/// The durable side of taking part in one federation.
#[derive(Clone, Debug)]
pub struct RoundStore {
    folder: PathBuf,
    /// Whether what is kept survives a power cut.
    durable: bool,
}

impl RoundStore {
    /// What lies in `folder`, which must exist.
    pub fn at(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            durable: true,
        }
    }

    /// The same without waiting for the disk, for simulations: what is kept survives the end of this
    /// program, however it ends, but not a power cut.
    pub fn scratch(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            durable: false,
        }
    }

    /// Where this client stands; as at the beginning if nothing was saved.
    ///
    /// # Errors
    ///
    /// [`StateError::Damaged`] if the file is not what was written.
    pub fn load(&self) -> Result<ParticipantState, StateError> {
        let path = self.folder.join(STATE);
        match fs::read(&path) {
            Ok(bytes) => decode_body(&bytes).map_err(|error| StateError::Damaged {
                path,
                reason: error.to_string(),
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Ok(ParticipantState::default())
            }
            Err(error) => Err(io_error("read", &path)(error)),
        }
    }

    /// Keeps where this client stands; when this returns, it survives a crash.
    ///
    /// # Errors
    ///
    /// [`StateError::Io`]; what was kept before is unchanged.
    pub fn save(&self, state: &ParticipantState) -> Result<(), StateError> {
        let path = self.folder.join(STATE);
        let bytes = postcard::to_stdvec(state).map_err(|error| StateError::Damaged {
            path: path.clone(),
            reason: error.to_string(),
        })?;
        self.write(&path, &bytes)
    }

    /// Keeps an encoded delta; when this returns, it survives a crash.
    ///
    /// # Errors
    ///
    /// [`StateError::Io`], for example on a full disk.
    pub fn save_delta(&self, digest: Digest, bytes: &[u8]) -> Result<(), StateError> {
        let path = self.delta(digest);
        self.write(&path, bytes)
    }

    /// Reads an encoded delta; `None` if it is not there, or not what was written.
    ///
    /// # Errors
    ///
    /// [`StateError::Io`] if the disk fails.
    pub fn load_delta(&self, blob: BlobRef) -> Result<Option<Vec<u8>>, StateError> {
        let path = self.delta(blob.digest);
        match fs::read(&path) {
            Ok(bytes) => Ok((BlobRef::of(&bytes) == blob).then_some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error("read", &path)(error)),
        }
    }

    /// Deletes an encoded delta.
    ///
    /// # Errors
    ///
    /// [`StateError::Io`].
    pub fn discard_delta(&self, digest: Digest) -> Result<(), StateError> {
        remove(&self.delta(digest))
    }

    /// Deletes every delta but the one that is held: a crash can leave one behind.
    ///
    /// # Errors
    ///
    /// [`StateError::Io`].
    pub fn discard_others(&self, held: Option<Digest>) -> Result<(), StateError> {
        let kept = held.map(|digest| self.delta(digest));
        let entries = fs::read_dir(&self.folder).map_err(io_error("read", &self.folder))?;
        for entry in entries {
            let path = entry.map_err(io_error("read", &self.folder))?.path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if name.starts_with(DELTA_PREFIX) && Some(&path) != kept.as_ref() {
                remove(&path)?;
            }
        }
        Ok(())
    }

    /// Writes a newer ledger.
    ///
    /// # Errors
    ///
    /// [`StateError::Io`]; the ledger on disk is then the one before.
    pub fn save_ledger(&self, ledger: &Ledger) -> Result<(), StateError> {
        write_json(&self.folder.join(LEDGER), ledger)
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), StateError> {
        let written = match self.durable {
            true => write_secret(path, bytes),
            false => write_whole(path, bytes),
        };
        written.map_err(io_error("write", path))
    }

    fn delta(&self, digest: Digest) -> PathBuf {
        self.folder.join(format!("{DELTA_PREFIX}{digest}.bin"))
    }

    /// Keeps the control variate of `round`; when this returns, it survives a crash. Others go, but
    /// for the one it follows, that of round `since`: it counts until this one does.
    ///
    /// # Errors
    ///
    /// [`StateError::Io`].
    pub fn save_variate(
        &self,
        run: RunId,
        round: RoundId,
        since: Option<RoundId>,
        bytes: &[u8],
    ) -> Result<(), StateError> {
        let path = self.variate_path(round);
        let content = [&run.0[..], bytes].concat();
        self.write(&path, &content)?;
        for old in self.variate_rounds() {
            if old != round && Some(old) != since {
                // One that stays is found again by the next round.
                let _ = fs::remove_file(self.variate_path(old));
            }
        }
        Ok(())
    }

    /// The control variate of `round`; none if it is not there, damaged, or of another run or layout.
    pub fn load_variate(
        &self,
        run: RunId,
        round: RoundId,
        layout: &Arc<Layout>,
    ) -> Option<Adapter> {
        let content = fs::read(self.variate_path(round)).ok()?;
        let bytes = content.strip_prefix(&run.0[..])?;
        decode_adapter(bytes, layout).ok()
    }

    fn variate_path(&self, round: RoundId) -> PathBuf {
        self.folder.join(format!("{VARIATE_PREFIX}{round}.bin"))
    }

    fn variate_rounds(&self) -> Vec<RoundId> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names
            .filter_map(|name| {
                let round = name.strip_prefix(VARIATE_PREFIX)?.strip_suffix(".bin")?;
                round.parse().ok().map(RoundId)
            })
            .collect()
    }
}

fn remove(path: &Path) -> Result<(), StateError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error("remove", path)(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fedllm_shared::{ModelVersion, RoundId, RunId, UpdateMetrics, UpdateOffer};

    fn state(blob: &[u8]) -> ParticipantState {
        ParticipantState {
            run: Some(RunId([3; 16])),
            last_round: Some(RoundId(3)),
            last_version: ModelVersion(4),
            held: Some(UpdateOffer {
                round: RoundId(4),
                base_version: ModelVersion(4),
                blob: BlobRef::of(blob),
                rows: 10,
                loss_tokens: 100,
                metrics: UpdateMetrics::default(),
                variate: Default::default(),
            }),
        }
    }

    #[test]
    fn state_and_delta_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let store = RoundStore::at(folder.path());
        assert_eq!(store.load().unwrap(), ParticipantState::default());
        let blob = BlobRef::of(b"delta");
        store.save_delta(blob.digest, b"delta").unwrap();
        store.save(&state(b"delta")).unwrap();
        let again = RoundStore::at(folder.path());
        assert_eq!(again.load().unwrap(), state(b"delta"));
        assert_eq!(
            again.load_delta(blob).unwrap().as_deref(),
            Some(&b"delta"[..])
        );
        again.discard_delta(blob.digest).unwrap();
        again.discard_delta(blob.digest).unwrap();
        assert_eq!(again.load_delta(blob).unwrap(), None);
    }

    #[test]
    fn a_changed_delta_counts_as_lost_and_strays_are_deleted() {
        let folder = tempfile::tempdir().unwrap();
        let store = RoundStore::at(folder.path());
        let (kept, stray) = (BlobRef::of(b"kept"), BlobRef::of(b"stray"));
        store.save_delta(kept.digest, b"kept").unwrap();
        store.save_delta(stray.digest, b"stray").unwrap();
        store.discard_others(Some(kept.digest)).unwrap();
        assert!(store.load_delta(kept).unwrap().is_some());
        assert!(store.load_delta(stray).unwrap().is_none());
        store.save_delta(kept.digest, b"other").unwrap();
        assert_eq!(store.load_delta(kept).unwrap(), None);
    }

    #[test]
    fn damage_to_the_state_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let store = RoundStore::at(folder.path());
        store.save(&state(b"delta")).unwrap();
        let path = folder.path().join(STATE);
        let bytes = fs::read(&path).unwrap();
        for len in 0..bytes.len() {
            fs::write(&path, &bytes[..len]).unwrap();
            assert!(
                matches!(store.load(), Err(StateError::Damaged { .. })),
                "cut to {len}"
            );
        }
    }

    #[test]
    fn a_variate_is_kept_for_its_run_and_its_round() {
        let folder = tempfile::tempdir().unwrap();
        let store = RoundStore::at(folder.path());
        let spec = fedllm_shared::TensorSpec {
            name: "a".into(),
            rows: 1,
            cols: 3,
        };
        let layout = Arc::new(Layout::new(vec![spec]).unwrap());
        let run = RunId([1; 16]);
        for round in 0..12 {
            let variate = Adapter::new(layout.clone(), vec![round as f32; 3]).unwrap();
            let bytes = fedllm_shared::encode_adapter(&variate, fedllm_shared::Codec::F32).unwrap();
            // Round 10 counts; the update of round 11 is still to be answered for.
            let since = (round > 0).then(|| RoundId(round - 1));
            store
                .save_variate(run, RoundId(round), since, &bytes)
                .unwrap();
        }
        let load = |run, round| store.load_variate(run, RoundId(round), &layout);
        assert_eq!(load(run, 11).unwrap().values(), [11.0; 3]);
        assert_eq!(load(run, 10).unwrap().values(), [10.0; 3]);
        assert!(load(run, 9).is_none(), "older ones are gone");
        assert!(load(RunId([2; 16]), 11).is_none(), "another run's");
        let path = folder.path().join("variate-11.bin");
        let mut bytes = fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert!(load(run, 11).is_none(), "damaged");
    }
}
