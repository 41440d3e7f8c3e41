//! `EXPERIMENT.toml`: a federation of virtual clients, with its data and their devices.

use serde::{Deserialize, Serialize};

use super::raw::{
    File, Raw, RawAdapter, RawCentral, RawFederation, RawLocal, RawModel, RawObjective, RawRounds,
    RawServer, RawStrategy, RawWire, federation, read, section,
};
use super::tasks::{RawTasks, TasksConfig};
use super::{ConfigError, Federation};

/// A simulated federation as a researcher describes it, checked.
///
/// [`Experiment::DEFAULT_TOML`] explains every key of its own; the sections `model`, `adapter`,
/// `objective`, `local`, `strategy` and `wire` are those of a [`Federation`].
///
/// ```
/// use fedllm_shared::Experiment;
///
/// let text = "[data]\npath = [\"rows.jsonl\"]\n[split]\nclients = 3\n";
/// let experiment = Experiment::parse(text)?;
/// assert_eq!(experiment.federation.rounds.cohort, 3);
///
/// let error = Experiment::parse("[split]\nkind = \"dirichlt\"\n").unwrap_err();
/// assert!(error.to_string().starts_with("line 2: split.kind must be"), "{error}");
/// # Ok::<(), fedllm_shared::ConfigError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Experiment {
    /// What it is called.
    pub name: String,
    /// What is trained, and how.
    pub federation: Federation,
    /// The rows.
    pub data: DataSource,
    /// Who has which rows.
    pub split: SplitConfig,
    /// What the clients compute and talk with.
    pub devices: DevicesConfig,
    /// What is measured.
    pub evaluation: EvaluationConfig,
    /// What is kept.
    pub output: OutputConfig,
}

/// Where rows come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DataSource {
    /// The data set, by its name in the catalog; any files if `None`.
    pub dataset: Option<String>,
    /// Files or folders; the hub's cache if empty.
    pub path: Vec<String>,
    /// The part of the data set; its training part if `None`.
    pub part: Option<String>,
    /// Rows that are drawn; all if `None`.
    pub rows: Option<u64>,
    /// Rows of them that are held out and measured on.
    pub held_out: u64,
    /// Files of rows to measure on, instead of held-out ones.
    pub held_out_path: Vec<String>,
    /// Whether rows are read as OpenFedLLM reads them.
    pub reference: bool,
}

/// Who has which rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SplitConfig {
    /// How they are dealt out.
    pub kind: SplitKind,
    /// The number of owners; that of the categories for natural owners.
    pub clients: u32,
    /// The concentration of the Dirichlet distribution.
    pub alpha: f64,
    /// The category of a row: `label`, `source`, `owner`, or the name of a field.
    pub by: String,
    /// Rows that every owner has at least.
    pub min_rows: u32,
    /// Whether natural owners with fewer rows are left out.
    pub drop_small: bool,
}

/// How rows are dealt out to owners.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SplitKind {
    /// At random, evenly.
    Iid,
    /// Each category by a Dirichlet distribution of its own.
    Dirichlet,
    /// At random, in amounts by a Dirichlet distribution.
    Quantity,
    /// Each category is an owner.
    Natural,
    /// All rows to one owner, who takes as many steps as a cohort does together: what no federation
    /// could do.
    Central,
}

/// What the clients compute and talk with: distributions by their texts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DevicesConfig {
    /// Tokens that a client trains on in a second.
    pub tokens_per_second: String,
    /// Bytes that it sends in a second.
    pub uplink: String,
    /// Bytes that it receives in a second.
    pub downlink: String,
    /// Seconds that a message takes.
    pub latency: String,
    /// The probability that a client vanishes in a round.
    pub drop_out: f64,
    /// The probability that a client is slow in a round.
    pub straggler: f64,
    /// How many times slower it is then.
    pub slowdown: String,
    /// The highest ranks that clients can train, the first client's first and round again; any if
    /// empty.
    pub max_ranks: Vec<u32>,
}

/// What is measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvaluationConfig {
    /// After how many rounds the adapter is measured; 0 only after the last.
    pub every: u64,
    /// Whether the base model is measured too.
    pub base: bool,
    /// The share of its rows that each client holds out, to score each round's adapter on.
    pub clients: f64,
    /// Benchmarks that models are measured on, too.
    pub tasks: TasksConfig,
}

/// What is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OutputConfig {
    /// After how many rounds the adapter is written as a PEFT directory; 0 only after the last.
    pub adapter_every: u64,
    /// Whether the gap between plain and exact averaging is measured each round.
    pub gap: bool,
}

/// The file as it stands.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawExperiment {
    experiment: RawName,
    model: RawModel,
    data: RawSource,
    split: RawSplit,
    devices: RawDevices,
    adapter: RawAdapter,
    objective: RawObjective,
    rounds: RawExtent,
    local: RawLocal,
    strategy: RawStrategy,
    wire: RawWire,
    evaluation: RawEvaluation,
    output: RawOutput,
}

section!(RawName {
    name: String = "experiment".into(),
    seed: u64 = 1,
});
section!(RawSource {
    dataset: Option<String> = None,
    path: Vec<String> = Vec::new(),
    part: Option<String> = None,
    rows: Option<u64> = None,
    held_out: u64 = 0,
    held_out_path: Vec<String> = Vec::new(),
    reference: bool = false,
    template: String = "chat".into(),
    max_tokens: u32 = 512,
});
section!(RawSplit {
    kind: String = "iid".into(),
    clients: u32 = 10,
    alpha: f64 = 0.5,
    by: String = "label".into(),
    min_rows: u32 = 1,
    drop_small: bool = false,
});
section!(RawDevices {
    tokens_per_second: String = "1000".into(),
    uplink: String = "1e6".into(),
    downlink: String = "4e6".into(),
    latency: String = "0.05".into(),
    drop_out: f64 = 0.0,
    straggler: f64 = 0.0,
    slowdown: String = "4".into(),
    max_ranks: Vec<u32> = Vec::new(),
});
section!(RawExtent {
    count: u64 = 10,
    cohort: Option<u32> = None,
    quorum: Option<u32> = None,
    deadline_seconds: u64 = 86_400,
});
section!(RawEvaluation {
    every: u64 = 0,
    base: bool = true,
    clients: f64 = 0.0,
    tasks: Vec<String> = Vec::new(),
    data: Vec<String> = Vec::new(),
    limit: u64 = RawTasks::LIMIT,
    shots: Option<u64> = None,
});
section!(RawOutput {
    adapter_every: u64 = 0,
    gap: bool = true,
});

const SPLITS: [(&str, SplitKind); 5] = [
    ("iid", SplitKind::Iid),
    ("dirichlet", SplitKind::Dirichlet),
    ("quantity", SplitKind::Quantity),
    ("natural", SplitKind::Natural),
    ("central", SplitKind::Central),
];

impl Experiment {
    /// Every key of an experiment's own with its default and what it is for.
    pub const DEFAULT_TOML: &str = include_str!("experiment.toml");

    /// Reads and checks an `EXPERIMENT.toml`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with the line and the key of what is wrong.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let raw: RawExperiment = read(text)?;
        let file = File { text };
        let split = split(&file, &raw.split)?;
        let mut raw = raw;
        if split.kind == SplitKind::Central {
            let together = rounds(&raw.rounds, raw.split.clients).cohort;
            raw.local.steps = raw.local.steps.saturating_mul(together);
        }
        let rounds = rounds(&raw.rounds, split.clients);
        let tasks = RawTasks {
            names: raw.evaluation.tasks,
            data: raw.evaluation.data,
            limit: raw.evaluation.limit,
            shots: raw.evaluation.shots,
        };
        let data = source(&file, raw.data)?;
        if raw.local.keep_optimizer {
            let problem = "keeps a client's moments on its device; virtual clients share one";
            return Err(file.error("local.keep_optimizer", problem));
        }
        let federation = federation(
            &file,
            Raw {
                federation: RawFederation {
                    name: raw.experiment.name.clone(),
                    seed: raw.experiment.seed,
                },
                model: raw.model,
                data: data.1,
                adapter: raw.adapter,
                objective: raw.objective,
                rounds,
                local: raw.local,
                strategy: raw.strategy,
                wire: raw.wire,
                evaluation: RawCentral::default(),
                server: RawServer::default(),
            },
        )?;
        Ok(Self {
            name: file.text("experiment.name", raw.experiment.name, 1..=100)?,
            federation,
            data: data.0,
            split,
            devices: devices(&file, raw.devices)?,
            evaluation: EvaluationConfig {
                every: raw.evaluation.every,
                base: raw.evaluation.base,
                clients: file.bound("evaluation.clients", raw.evaluation.clients, 0.0, 0.5)?,
                tasks: tasks.checked(&file)?,
            },
            output: OutputConfig {
                adapter_every: raw.output.adapter_every,
                gap: raw.output.gap,
            },
        })
    }

    /// An error about a key of this text that was found after parsing.
    pub fn error(text: &str, key: &str, problem: &str) -> ConfigError {
        Federation::error(text, key, problem)
    }
}

fn split(file: &File<'_>, raw: &RawSplit) -> Result<SplitConfig, ConfigError> {
    let kind = file.one_of("split.kind", &raw.kind, &SPLITS)?;
    let clients = file.bound("split.clients", raw.clients, 1, 100_000)?;
    Ok(SplitConfig {
        kind,
        clients: match kind {
            SplitKind::Central => 1,
            _ => clients,
        },
        alpha: file.bound("split.alpha", raw.alpha, 1e-6, 1e9)?,
        by: file.text("split.by", raw.by.clone(), 1..=100)?,
        min_rows: file.at_least("split.min_rows", raw.min_rows, 1)?,
        drop_small: raw.drop_small,
    })
}

/// Ten clients a round, or all if there are fewer; half of them make a quorum.
fn rounds(raw: &RawExtent, clients: u32) -> RawRounds {
    let cohort = raw.cohort.unwrap_or(10).min(clients);
    let quorum = raw.quorum.unwrap_or(cohort.div_ceil(2));
    RawRounds {
        count: raw.count,
        cohort,
        min_clients: quorum,
        quorum,
        deadline_seconds: raw.deadline_seconds,
    }
}

fn source(
    file: &File<'_>,
    raw: RawSource,
) -> Result<(DataSource, super::raw::RawData), ConfigError> {
    if raw.dataset.is_none() && raw.path.is_empty() {
        let problem = "or data.dataset is needed: files of rows, or the name of a data set";
        return Err(file.error("data.path", problem));
    }
    if let Some(rows) = raw.rows {
        file.at_least("data.rows", rows, 1)?;
        if raw.held_out_path.is_empty() && raw.held_out >= rows {
            let problem = format!("must be below {rows} (data.rows), got {}", raw.held_out);
            return Err(file.error("data.held_out", &problem));
        }
    }
    let data = super::raw::RawData {
        template: raw.template,
        max_tokens: raw.max_tokens,
    };
    let source = DataSource {
        dataset: raw.dataset,
        path: raw.path,
        part: raw.part,
        rows: raw.rows,
        held_out: raw.held_out,
        held_out_path: raw.held_out_path,
        reference: raw.reference,
    };
    Ok((source, data))
}

fn devices(file: &File<'_>, raw: RawDevices) -> Result<DevicesConfig, ConfigError> {
    let drop_out = file.bound("devices.drop_out", raw.drop_out, 0.0, 0.99)?;
    let straggler = file.bound("devices.straggler", raw.straggler, 0.0, 1.0)?;
    Ok(DevicesConfig {
        tokens_per_second: raw.tokens_per_second,
        uplink: raw.uplink,
        downlink: raw.downlink,
        latency: raw.latency,
        drop_out,
        straggler,
        slowdown: raw.slowdown,
        max_ranks: raw.max_ranks,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_file_says_what_the_defaults_are() {
        let written = Experiment::parse(Experiment::DEFAULT_TOML).unwrap();
        let bare = "[data]\npath = [\"rows.jsonl\"]\n";
        assert_eq!(written, Experiment::parse(bare).unwrap());
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, line, problem) in [
            ("[splt]\nclients = 2", Some(1), "did you mean `split`?"),
            ("[split]\nclinets = 2", Some(2), "did you mean `clients`?"),
            ("[split]\nclients = 0", Some(2), "split.clients must be 1"),
            ("[data]\nrows = 5", None, "data.path"),
            (
                "[data]\ndataset = \"a\"\nrows = 5\nheld_out = 5",
                Some(4),
                "below 5",
            ),
            (
                "[data]\ndataset = \"a\"\n[local]\nkeep_optimizer = true",
                Some(4),
                "share one",
            ),
            (
                "[data]\ndataset = \"a\"\n[strategy]\nname = \"fedadgrad\"",
                Some(4),
                "fedadagrad",
            ),
            (
                "[data]\ndataset = \"a\"\n[evaluation]\nclients = 1.0",
                Some(4),
                "evaluation.clients must be 0 to 0.5",
            ),
            (
                "[data]\ndataset = \"a\"\n[evaluation]\ndata = [\"b\"]",
                Some(4),
                "evaluation.data needs evaluation.tasks",
            ),
            (
                "[data]\ndataset = \"a\"\n[evaluation]\ntasks = [\"mmlu\", \"\"]",
                Some(4),
                "evaluation.tasks must have 1 to 4096 bytes",
            ),
            (
                "[data]\ndataset = \"a\"\n[devices]\ndrop_out = 2.0",
                Some(4),
                "devices.drop_out",
            ),
        ] {
            let error = Experiment::parse(text).unwrap_err();
            assert_eq!(error.line, line, "{error}");
            assert!(error.to_string().contains(problem), "{error}");
        }
    }

    #[test]
    fn one_owner_of_everything_is_a_cohort_of_one() {
        let text = "[data]\ndataset = \"a\"\n[split]\nkind = \"central\"\nclients = 9";
        let experiment = Experiment::parse(text).unwrap();
        assert_eq!(experiment.split.clients, 1);
        let federation = &experiment.federation;
        assert_eq!(federation.rounds.cohort, 1);
        assert_eq!(federation.local.at(crate::id::RoundId(0)).steps, 9 * 10);
    }
}
