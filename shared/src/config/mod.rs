//! `federation.toml`, what an operator decides, and `EXPERIMENT.toml`, what a researcher does.

mod experiment;
mod raw;
mod schedule;
mod tasks;

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use experiment::{
    DataSource, DevicesConfig, EvaluationConfig, Experiment, OutputConfig, SplitConfig, SplitKind,
};
pub use schedule::{LrSchedule, ScheduleKind};
pub use tasks::TasksConfig;

use crate::codec::Codec;
use crate::id::{Digest, RoundId};
use crate::strategy::{Strategy, Weighting};
use crate::wire::{LocalSpec, LoraSpec, PreferenceLoss};

/// A federation as its operator describes it, checked.
///
/// [`Federation::DEFAULT_TOML`] explains every key, and is the default:
///
/// ```
/// use fedllm_shared::Federation;
///
/// let federation = Federation::parse(Federation::DEFAULT_TOML)?;
/// assert_eq!(federation, Federation::parse("")?);
/// assert_eq!(federation.rounds.count, 10);
///
/// let error = Federation::parse("[rounds]\ncohort = 4\nquorum = 5\n").unwrap_err();
/// assert_eq!(error.to_string(), "line 3: rounds.quorum must be 1 to 4 (the cohort), got 5");
/// # Ok::<(), fedllm_shared::ConfigError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Federation {
    /// What clients are told it is called.
    pub name: String,
    /// The seed of everything random on the server.
    pub seed: u64,
    /// The base model.
    pub model: ModelConfig,
    /// What the shards must be made with.
    pub data: DataConfig,
    /// The adapter.
    pub lora: LoraSpec,
    /// Lower ranks that clients may train, the highest first.
    pub ranks: Vec<u32>,
    /// A PEFT directory that the first adapter is read from, instead of a fresh one.
    pub start: Option<String>,
    /// What is minimized.
    pub objective: ObjectiveConfig,
    /// When rounds open and close.
    pub rounds: RoundsConfig,
    /// What clients do in a round.
    pub local: LocalConfig,
    /// The algorithm.
    pub strategy: Strategy,
    /// The N of SCAFFOLD: how many clients there are, at least.
    pub population: u64,
    /// What an update weighs.
    pub weighting: Weighting,
    /// How updates travel.
    pub wire: WireConfig,
    /// What the server measures.
    pub evaluation: CentralEvaluation,
    /// Where the server is.
    pub server: ServerConfig,
}

/// The base model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// Where it comes from.
    pub source: ModelSource,
    /// The fingerprint it must have.
    pub digest: Option<Digest>,
}

/// Where a base model comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelSource {
    /// The catalog, by this name.
    Name(String),
    /// A directory or a file.
    Path(String),
}

/// What the shards must be made with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataConfig {
    /// The template's name.
    pub template: String,
    /// The longest row, in tokens.
    pub max_tokens: u32,
}

/// What is minimized.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectiveConfig {
    /// The cross-entropy of answers.
    Sft,
    /// A loss over pairs of answers.
    Dpo {
        /// The β that keeps the policy near the reference.
        beta: f32,
        /// The ε of labels that are wrong.
        label_smoothing: f32,
        /// The loss.
        loss: PreferenceLoss,
        /// What the policy is compared with.
        reference: ReferenceConfig,
    },
}

/// What a policy is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReferenceConfig {
    /// The base with the adapter off.
    Base,
    /// The base with the run's first adapter.
    Initial,
}

/// When rounds open and close.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundsConfig {
    /// Rounds of the run.
    pub count: u64,
    /// Clients asked in a round.
    pub cohort: u32,
    /// Clients that must be connected before a round opens.
    pub min_clients: u32,
    /// Updates that close a round at its deadline.
    pub quorum: u32,
    /// How long a round waits for updates.
    pub deadline: Duration,
}

/// What clients do in a round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LocalConfig {
    /// How the learning rate moves over the rounds.
    pub lr: LrSchedule,
    /// Everything else; its `lr` is replaced in each round.
    spec: LocalSpec,
}

impl LocalConfig {
    /// The local training of `round`, with that round's learning rate.
    pub fn at(&self, round: RoundId) -> LocalSpec {
        LocalSpec {
            lr: self.lr.at(round),
            ..self.spec.clone()
        }
    }
}

/// How updates travel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WireConfig {
    /// How they are written.
    pub codec: Codec,
    /// The longest update (L2).
    pub max_norm: Option<f32>,
}

/// What the server measures by itself.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CentralEvaluation {
    /// After how many rounds the adapter is measured; 0 only after the last.
    pub every: u64,
    /// Files of rows to measure on.
    pub held_out: Vec<String>,
    /// Benchmarks to measure on.
    pub tasks: TasksConfig,
}

impl CentralEvaluation {
    /// Whether the adapter that `round` of `rounds` made is measured.
    pub fn is_due(&self, round: RoundId, rounds: u64) -> bool {
        let done = round.next().0;
        let is_due = self.every > 0 && done.is_multiple_of(self.every);
        let measures = !self.held_out.is_empty() || !self.tasks.is_empty();
        measures && (is_due || done == rounds)
    }
}

/// Where the server is and what it keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerConfig {
    /// Where it listens (UDP).
    pub listen: SocketAddr,
    /// What clients connect to, `host:port`.
    pub address: String,
    /// Where status and metrics are served (TCP).
    pub status_listen: SocketAddr,
    /// For how many rounds updates are kept after they were averaged.
    pub keep_updates_rounds: u32,
}

/// A `federation.toml` that says something wrong: the operator's to correct.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{problem}", line_prefix(*.line))]
pub struct ConfigError {
    /// The line, counted from 1, if the key stands in the file.
    pub line: Option<usize>,
    /// The key as `section.key`, if it is about one.
    pub key: Option<String>,
    /// What is wrong with it.
    pub problem: String,
}

impl Federation {
    /// Every key with its default and what it is for: the file that `init` writes.
    pub const DEFAULT_TOML: &str = include_str!("federation.toml");

    /// Every key with its default and what it is for.
    pub fn default_toml() -> &'static str {
        Self::DEFAULT_TOML
    }

    /// Reads and checks a `federation.toml`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with the line and the key of what is wrong.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        raw::parse(text)
    }

    /// An error about a key of this text that was found after parsing.
    pub fn error(text: &str, key: &str, problem: &str) -> ConfigError {
        raw::File { text }.error(key, problem)
    }
}

fn line_prefix(line: Option<usize>) -> String {
    line.map(|line| format!("line {line}: "))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_file_says_what_the_defaults_are() {
        let written = Federation::parse(Federation::DEFAULT_TOML).unwrap();
        assert_eq!(written, Federation::parse("").unwrap());
        let bytes = postcard::to_stdvec(&written).unwrap();
        assert_eq!(postcard::from_bytes::<Federation>(&bytes).unwrap(), written);
    }

    #[test]
    fn keys_in_comments_are_keys() {
        let text = Federation::DEFAULT_TOML
            .replace("name = \"smollm2-135m-instruct\"", "")
            .replace("# path =", "path =")
            .replace("# digest =", "digest =")
            .replace("# max_norm =", "max_norm =")
            .replace("tasks = []", "tasks = [\"mmlu\"]")
            .replace("# shots =", "shots =");
        let federation = Federation::parse(&text).unwrap();
        let source = ModelSource::Path("/models/my-model".to_owned());
        assert_eq!(federation.model.source, source);
        assert_eq!(federation.model.digest, Some(Digest::default()));
        assert_eq!(federation.wire.max_norm, Some(10.0));
        assert_eq!(federation.evaluation.tasks.shots, Some(0));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let cases = [
            (
                "[rounds]\n\ncohort = 0",
                Some(3),
                "rounds.cohort",
                "must be at least 1, got 0",
            ),
            (
                "[rounds]\nquorum = 11",
                Some(2),
                "rounds.quorum",
                "1 to 10 (the cohort)",
            ),
            (
                "[rounds]\ncohort = 1",
                None,
                "rounds.quorum",
                "1 to 1 (the cohort), got 2",
            ),
            (
                "[rounds]\nmin_clients = 1",
                Some(2),
                "rounds.min_clients",
                "quorum",
            ),
            ("[local]\nlr = -1.0", Some(2), "local.lr", "0 to 10"),
            ("[local]\nlr = nan", Some(2), "local.lr", "NaN"),
            (
                "[local]\nschedule = \"wild\"",
                Some(2),
                "local.schedule",
                "constant",
            ),
            (
                "[adapter]\ntargets = \"q,x\"",
                Some(2),
                "adapter.targets",
                "q,x",
            ),
            (
                "[strategy]\nname = \"fedadgrad\"",
                Some(2),
                "strategy.name",
                "did you mean \"fedadagrad\"",
            ),
            (
                "[strategy]\nname = \"fedprox\"\n\ntau = 1.0",
                Some(4),
                "strategy.tau",
                "it has mu, server_lr",
            ),
            (
                "[strategy]\nname = \"fedadam\"\nbeta2 = 2.0",
                Some(3),
                "strategy.beta2",
                "got 2",
            ),
            (
                "[strategy]\nname = \"fedyogi\"\nreduce = \"exact\"",
                Some(3),
                "strategy.reduce",
                "momentum",
            ),
            ("[adapter]\nranks = [4]", Some(2), "adapter.ranks", "exact"),
            (
                "[adapter]\nranks = [4, 8]\n[strategy]\nreduce = \"exact\"",
                Some(2),
                "adapter.ranks",
                "below 8",
            ),
            (
                "[objective]\nkind = \"dpo\"\nbeta = 0.0",
                Some(3),
                "objective.beta",
                "got 0",
            ),
            ("[objective]\nbeta = 0.2", Some(2), "objective.beta", "dpo"),
            (
                "[objective]\nkind = \"dpo\"\nloss = \"ipo\"\nlabel_smoothing = 0.1",
                Some(4),
                "objective.label_smoothing",
                "sigmoid",
            ),
            ("[wire]\ncodec = \"int4\"", Some(2), "wire.codec", "bf16"),
            ("[wire]\nmax_norm = 0", Some(2), "wire.max_norm", "above 0"),
            (
                "[evaluation]\nevery = 2",
                Some(2),
                "evaluation.every",
                "evaluation.held_out or evaluation.tasks",
            ),
            (
                "[evaluation]\ndata = [\"a\"]",
                Some(2),
                "evaluation.data",
                "needs evaluation.tasks",
            ),
            (
                "[evaluation]\nshots = 2",
                Some(2),
                "evaluation.shots",
                "needs evaluation.tasks",
            ),
            (
                "[evaluation]\ntasks = [\"mmlu\"]\nlimit = 0",
                Some(3),
                "evaluation.limit",
                "at least 1",
            ),
            (
                "[strategy]\nname = \"local\"\n[evaluation]\ntasks = [\"mmlu\"]",
                Some(4),
                "evaluation.tasks",
                "has none",
            ),
            (
                "[strategy]\nname = \"local\"\n[evaluation]\nheld_out = [\"a\"]",
                Some(4),
                "evaluation.held_out",
                "has none",
            ),
            (
                "[evaluation]\nheld_out = [\"\"]",
                Some(2),
                "evaluation.held_out",
                "1 to 4096 bytes",
            ),
            (
                "[server]\nlisten = \"here\"",
                Some(2),
                "server.listen",
                "here",
            ),
            (
                "[server]\naddress = \"host\"",
                Some(2),
                "server.address",
                "host:port",
            ),
            (
                "[model]\nname = \"a\"\npath = \"b\"",
                Some(3),
                "model.path",
                "one of",
            ),
            (
                "[model]\ndigest = \"00\"",
                Some(2),
                "model.digest",
                "64 hex digits",
            ),
        ];
        for (text, line, key, problem) in cases {
            let error = Federation::parse(text).unwrap_err();
            assert_eq!(
                (error.line, error.key.as_deref()),
                (line, Some(key)),
                "{error}"
            );
            assert!(error.problem.contains(problem), "{error}");
            assert!(error.to_string().contains(key), "{error}");
        }
    }

    #[test]
    fn unknown_keys_and_wrong_types_are_errors_with_lines() {
        let cases = [
            ("\n[rounds]\ncohrt = 3", Some(3), "did you mean `cohort`?"),
            ("[round]\ncohort = 3", Some(1), "did you mean `rounds`?"),
            ("[rounds]\ncohort = \"3\"", Some(2), "invalid type"),
            ("[rounds]\ncohort = -3", Some(2), "-3"),
            ("[rounds]\ncohort =", Some(2), ""),
            ("[rounds]\ncohort = 3\ncohort = 4", Some(3), "duplicate"),
        ];
        for (text, line, problem) in cases {
            let error = Federation::parse(text).unwrap_err();
            assert_eq!(error.line, line, "{text}: {error}");
            assert!(error.problem.contains(problem), "{error}");
        }
    }

    #[test]
    fn adapters_are_measured_every_so_often_and_at_the_end() {
        let due = |text: &str| -> Vec<u64> {
            let evaluation = Federation::parse(text).unwrap().evaluation;
            (0..5)
                .filter(|round| evaluation.is_due(RoundId(*round), 5))
                .collect()
        };
        assert!(due("").is_empty());
        assert_eq!(due("[evaluation]\nheld_out = [\"a.jsonl\"]"), [4]);
        assert_eq!(
            due("[evaluation]\nheld_out = [\"a.jsonl\"]\nevery = 2"),
            [1, 3, 4]
        );
        assert_eq!(due("[evaluation]\ntasks = [\"mmlu\"]"), [4]);
    }

    #[test]
    fn a_round_has_its_own_learning_rate() {
        let text = "[local]\nschedule = \"cosine\"\nlr = 1e-3\nlr_min = 0.0";
        let federation = Federation::parse(text).unwrap();
        assert_eq!(federation.local.at(RoundId(0)).lr, 1e-3);
        assert!((federation.local.at(RoundId(5)).lr - 4.131_759e-4).abs() < 1e-9);
        assert_eq!(federation.local.at(RoundId(9)).lr, 0.0);
        assert_eq!(federation.local.at(RoundId(5)).steps, 10);
    }
}
