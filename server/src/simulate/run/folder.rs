//! The folder of a run: what is in it, and how it is read again.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use fedllm_client::files::write_whole;

use super::{RunError, unix_seconds};
use crate::simulate::engine::Checkpoint;
use crate::simulate::metrics::{MetricsLog, RunSummary};
use crate::simulate::tfevents::{EventWriter, event_file_name};

const CONFIG: &str = "config.toml";
const CHECKPOINT: &str = "checkpoint.bin";
pub(super) const METRICS: &str = "metrics.jsonl";
pub(super) const SUMMARY: &str = "summary.json";
pub(super) const SPLIT: &str = "split.json";
pub(super) const REPORT: &str = "report.html";

/// Where a run stands.
#[derive(serde::Serialize, serde::Deserialize)]
pub(super) struct SavedRun {
    /// The round that is next.
    pub(super) round: u64,
    pub(super) simulation: Checkpoint,
}

/// The folder of a run.
pub(super) struct RunFolder {
    pub(super) path: PathBuf,
}

impl RunFolder {
    /// Makes the folder of a run with this configuration, or finds it.
    pub(super) fn open(path: &Path, text: &str, fresh: bool) -> Result<Self, RunError> {
        let folder = Self {
            path: path.to_owned(),
        };
        let config = path.join(CONFIG);
        match fs::read_to_string(&config) {
            Ok(found) if found == text && !fresh => return Ok(folder),
            Ok(_) if fresh => {
                fs::remove_dir_all(path).map_err(|error| folder.error("", error))?;
            }
            Ok(_) => return Err(RunError::OtherRun(path.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(folder.error(CONFIG, error)),
        }
        fs::create_dir_all(path).map_err(|error| folder.error("", error))?;
        folder.write(CONFIG, text.as_bytes())?;
        Ok(folder)
    }

    pub(super) fn summary(&self) -> Result<Option<RunSummary>, RunError> {
        let Some(bytes) = self.read(SUMMARY)? else {
            return Ok(None);
        };
        let summary = serde_json::from_slice(&bytes);
        Ok(Some(summary.map_err(|error| self.error(SUMMARY, error))?))
    }

    pub(super) fn checkpoint(&self) -> Result<Option<SavedRun>, RunError> {
        let Some(bytes) = self.read(CHECKPOINT)? else {
            return Ok(None);
        };
        let saved = postcard::from_bytes(&bytes);
        Ok(Some(saved.map_err(|error| self.error(CHECKPOINT, error))?))
    }

    pub(super) fn save(&self, saved: &SavedRun) -> Result<(), RunError> {
        let bytes = postcard::to_stdvec(saved).map_err(|error| self.error(CHECKPOINT, error))?;
        self.write(CHECKPOINT, &bytes)
    }

    /// The metrics of the rounds before `round`, and the file to add to.
    pub(super) fn metrics(&self, round: u64) -> Result<(File, MetricsLog), RunError> {
        let mut log = MetricsLog::parse(&self.read(METRICS)?.unwrap_or_default())?;
        let length = log.rewind(round);
        let open = || {
            let mut options = OpenOptions::new();
            let file = options
                .create(true)
                .append(true)
                .open(self.path.join(METRICS))?;
            file.set_len(length)?;
            Ok(file)
        };
        let file = open().map_err(|error: io::Error| self.error(METRICS, error))?;
        Ok((file, log))
    }

    /// A new file of events for TensorBoard, which goes on after `rounds` rounds.
    pub(super) fn events(&self, rounds: u64) -> Result<EventWriter<File>, RunError> {
        let now = unix_seconds();
        let path = self.path.join(event_file_name(now as u64));
        let open = || {
            let file = File::create(&path)?;
            match rounds {
                0 => EventWriter::new(file, now),
                rounds => EventWriter::resume(file, now, rounds + 1),
            }
        };
        open().map_err(|error: io::Error| self.error("TensorBoard events", error))
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, RunError> {
        match fs::read(self.path.join(name)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.error(name, error)),
        }
    }

    /// Replaces a file as a whole: a run that is killed leaves the old one or the new one.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), RunError> {
        write_whole(&self.path.join(name), bytes).map_err(|error| self.error(name, error))
    }

    pub(super) fn error(&self, name: &str, error: impl std::fmt::Display) -> RunError {
        RunError::Folder {
            path: self.path.join(name),
            reason: error.to_string(),
        }
    }
}

/// As files have it.
pub(super) fn json(value: &impl serde::Serialize) -> Vec<u8> {
    // Plain structs of texts and numbers always serialize.
    let mut text = serde_json::to_vec_pretty(value).unwrap_or_default();
    text.push(b'\n');
    text
}
