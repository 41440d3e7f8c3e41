//! What an evaluation came to.
//!
//! `report.json` is this type. Lists of figures are in the order of [`Report::systems`].

use std::path::PathBuf;

use fedllm_models::eval::{Grader, Prompts, Scale, Task};
use fedllm_shared::{Digest, Estimate};
use serde::{Deserialize, Serialize};

use super::grades::Refusal;

/// The version of the format; changes of it that old readers misunderstand have another.
pub const FORMAT: u32 = 1;

/// What an evaluation came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The version of the format.
    pub format: u32,
    /// The version of the program.
    pub version: String,
    /// The base model.
    pub model: Model,
    /// How it was asked.
    pub settings: Settings,
    /// What was compared: the base first, then the adapters in the order of the command line.
    pub systems: Vec<System>,
    /// The tasks, in the order in which they were asked for.
    pub tasks: Vec<TaskReport>,
    /// Means over several tasks.
    pub means: Vec<MeanReport>,
    /// The mean over tasks of each system's rank in the main metric, 1 being the best; empty with
    /// one system.
    pub ranks: Vec<f64>,
}

/// A base model, and what ran it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Model {
    /// Its name.
    pub name: String,
    /// The fingerprint of its weights.
    pub digest: Digest,
    /// The fingerprint of its tokenizer.
    pub tokenizer: Digest,
    /// How its weights were held.
    pub precision: String,
    /// What computed.
    pub device: String,
    /// Tokens that a text may have.
    pub context: usize,
}

/// How questions were put.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Whose prompts.
    pub prompts: Prompts,
    /// The template around prompts that are to be answered in writing.
    pub template: String,
    /// The template around conversations.
    pub conversation: String,
    /// Examples before each question, if not as many as the task says.
    pub shots: Option<usize>,
    /// What chose the examples at random; without it they are the first of their split.
    pub shot_seed: Option<u64>,
    /// Only the first so many rows of a task, or of each of its clusters.
    pub limit: Option<usize>,
    /// So many rows of a task, at random.
    pub sample: Option<usize>,
    /// What chose them, and resamples.
    pub seed: u64,
    /// The model that judged.
    pub judge: Option<String>,
}

/// One of those that were compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct System {
    /// Its name.
    pub name: String,
    /// Its adapter; the base has none.
    pub adapter: Option<AdapterFacts>,
}

/// An adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdapterFacts {
    /// Where it was read from.
    pub path: PathBuf,
    /// The hash of its values and settings.
    pub digest: Digest,
}

/// A task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskReport {
    /// Its name.
    pub name: String,
    /// What it asks.
    pub about: String,
    /// The published prompt that it follows.
    pub prompt: String,
    /// What its prompt does otherwise with the reference's prompts, if these were used.
    pub reference: Option<String>,
    /// Whether it was done.
    pub outcome: Outcome,
    /// The files that its rows and examples came from.
    pub files: Vec<DataFile>,
    /// Rows that could not be used and were left out.
    pub bad_rows: usize,
    /// Questions.
    pub rows: usize,
    /// Examples before each question.
    pub shots: usize,
    /// Its figures, the main one first; empty if it was not done.
    pub metrics: Vec<MetricReport>,
}

/// Whether a task was done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Outcome {
    /// It was.
    Done,
    /// Its data is not here.
    MissingData {
        /// What was looked for, and where.
        reason: String,
        /// How to get it.
        hint: String,
    },
    /// It runs programs that the model wrote, which was not allowed or cannot be done safely.
    NeedsCodeExecution {
        /// Why not.
        reason: String,
        /// What to do.
        hint: String,
    },
    /// A judge has to read its answers, and there was none.
    NeedsJudge {
        /// Why not.
        reason: String,
        /// What to do.
        hint: String,
    },
}

/// A file of rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataFile {
    /// Where it is.
    pub path: PathBuf,
    /// The BLAKE3 hash of its bytes.
    pub digest: Digest,
    /// Rows in it.
    pub rows: usize,
    /// Whether it is questions or examples.
    pub used_for: UsedFor,
}

/// What a file is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UsedFor {
    /// Its rows are asked.
    Questions,
    /// Its rows are examples.
    Examples,
    /// Its rows say more about those that are asked.
    References,
}

/// A metric of a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MetricReport {
    /// Its name.
    pub name: String,
    /// Its unit and direction.
    pub scale: Scale,
    /// What each system has.
    pub values: Vec<Estimate>,
    /// The same for each group of clusters.
    pub groups: Vec<Part>,
    /// The same for each cluster, where clusters mean something to people (subjects).
    pub clusters: Vec<Part>,
    /// Systems against each other on the same rows.
    pub comparisons: Vec<Paired>,
}

/// A part of a task's rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// The cluster or group.
    pub name: String,
    /// The group of a cluster.
    pub group: Option<String>,
    /// What each system has.
    pub values: Vec<Estimate>,
}

/// Two systems on the same rows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Paired {
    /// The number of a system.
    pub system: usize,
    /// The number of the one that it is compared with.
    pub against: usize,
    /// The mean of the differences, `system` minus `against`.
    pub difference: Estimate,
    /// How likely a difference of this size or more is between equally good systems; none if the
    /// rows cannot say.
    pub p_value: Option<f64>,
    /// Where the p-value comes from.
    pub test: Test,
}

/// A test of systems against each other on the same rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Test {
    /// McNemar's, exact.
    McNemar,
    /// The normal distribution of the mean difference.
    Normal,
    /// Rows drawn again.
    Bootstrap,
}

/// A mean over tasks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeanReport {
    /// Its name.
    pub name: String,
    /// The tasks; all of them were done.
    pub tasks: Vec<String>,
    /// The metric of each.
    pub metric: String,
    /// What each system has. The count is that of the rows of all tasks.
    pub values: Vec<Estimate>,
}

impl Outcome {
    /// A task that cannot be graded.
    pub(super) fn refused(task: &Task, refusal: Refusal) -> Self {
        let Refusal { reason, hint } = refusal;
        match task.grader {
            Grader::Program(_) => Self::NeedsCodeExecution { reason, hint },
            _ => Self::NeedsJudge { reason, hint },
        }
    }
}

impl TaskReport {
    /// A task that nothing is known of yet.
    pub(super) fn new(task: &Task, prompts: Prompts) -> Self {
        Self {
            name: task.name.to_owned(),
            about: task.about.to_owned(),
            prompt: task.prompt.to_owned(),
            reference: match prompts {
                Prompts::Sound => None,
                Prompts::Reference => task.reference.map(str::to_owned),
            },
            outcome: Outcome::Done,
            files: Vec::new(),
            bad_rows: 0,
            rows: 0,
            shots: 0,
            metrics: Vec::new(),
        }
    }

    /// The metric that systems are compared by; none if the task was not done.
    pub fn main(&self) -> Option<&MetricReport> {
        self.metrics.first()
    }

    /// What is wrong, and what to do about it, if the task was not done.
    pub fn refusal(&self) -> Option<(&str, &str)> {
        match &self.outcome {
            Outcome::Done => None,
            Outcome::MissingData { reason, hint }
            | Outcome::NeedsCodeExecution { reason, hint }
            | Outcome::NeedsJudge { reason, hint } => Some((reason, hint)),
        }
    }
}
