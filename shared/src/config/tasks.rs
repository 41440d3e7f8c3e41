//! Benchmarks that adapters are measured on while they are trained.

use serde::{Deserialize, Serialize};

use super::ConfigError;
use super::raw::File;

/// Benchmarks that adapters are measured on while they are trained, as `fedllm-server evaluate`
/// does it.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TasksConfig {
    /// Their names. Which there are is not known here.
    pub names: Vec<String>,
    /// Folders with their data, `DIR` or `TASK=DIR`; then the hub's cache is looked into.
    pub data: Vec<String>,
    /// Rows of a task, or of each of its subjects, at most.
    pub limit: u64,
    /// Examples before a question, if not as many as the task says.
    pub shots: Option<u64>,
}

/// The keys of `[evaluation]` that are about tasks, as they stand.
pub(super) struct RawTasks {
    pub(super) names: Vec<String>,
    pub(super) data: Vec<String>,
    pub(super) limit: u64,
    pub(super) shots: Option<u64>,
}

impl RawTasks {
    /// Rows of a task that are asked, unless the file says otherwise.
    pub(super) const LIMIT: u64 = 100;

    pub(super) fn checked(self, file: &File<'_>) -> Result<TasksConfig, ConfigError> {
        for (key, is_given) in [
            ("evaluation.data", !self.data.is_empty()),
            ("evaluation.shots", self.shots.is_some()),
        ] {
            if self.names.is_empty() && is_given {
                return Err(file.error(key, "needs evaluation.tasks: what to measure"));
            }
        }
        let texts = |key: &str, texts: Vec<String>| -> Result<Vec<String>, ConfigError> {
            let texts = texts.into_iter();
            texts.map(|text| file.text(key, text, 1..=4096)).collect()
        };
        let shots = self.shots;
        let shots = shots.map(|shots| file.bound("evaluation.shots", shots, 0, 1000));
        Ok(TasksConfig {
            names: texts("evaluation.tasks", self.names)?,
            data: texts("evaluation.data", self.data)?,
            limit: file.at_least("evaluation.limit", self.limit, 1)?,
            shots: shots.transpose()?,
        })
    }
}

impl TasksConfig {
    /// Whether nothing is measured.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}
