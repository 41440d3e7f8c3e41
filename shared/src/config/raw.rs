//! The file as it stands, and how it becomes a [`Federation`].

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use toml::de::DeTable;

use super::tasks::RawTasks;
use super::*;
use crate::nearest::nearest;
use crate::strategy::{Compat, ReduceRule, Reduction, StrategyError, StrategyKind, WeightBy};
use crate::wire::{LocalOptimizer, Targets};

/// A `federation.toml` as it stands. Each section's defaults are those of `federation.toml`.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Raw {
    pub(super) federation: RawFederation,
    pub(super) model: RawModel,
    pub(super) data: RawData,
    pub(super) adapter: RawAdapter,
    pub(super) objective: RawObjective,
    pub(super) rounds: RawRounds,
    pub(super) local: RawLocal,
    pub(super) strategy: RawStrategy,
    pub(super) wire: RawWire,
    pub(super) evaluation: RawCentral,
    pub(super) server: RawServer,
}

/// A section with its defaults, one line a key.
macro_rules! section {
    ($name:ident { $($key:ident: $type:ty = $default:expr,)* }) => {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub(super) struct $name {
            $(pub(super) $key: $type,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($key: $default,)* }
            }
        }
    };
}
pub(super) use section;

section!(RawFederation {
    name: String = "my federation".into(),
    seed: u64 = 1,
});
section!(RawModel {
    name: Option<String> = None,
    path: Option<String> = None,
    digest: Option<String> = None,
});
section!(RawData {
    template: String = "chat".into(),
    max_tokens: u32 = 512,
});
section!(RawAdapter {
    rank: u32 = 8,
    alpha: f32 = 16.0,
    dropout: f32 = 0.0,
    rslora: bool = false,
    targets: String = Targets::ALL.to_string(),
    ranks: Vec<u32> = Vec::new(),
    start: Option<String> = None,
});
section!(RawObjective {
    kind: String = "sft".into(),
    beta: Option<f32> = None,
    label_smoothing: Option<f32> = None,
    loss: Option<String> = None,
    reference: Option<String> = None,
});
section!(RawRounds {
    count: u64 = 10,
    cohort: u32 = 10,
    min_clients: u32 = 2,
    quorum: u32 = 2,
    deadline_seconds: u64 = 3600,
});
section!(RawLocal {
    steps: u32 = 10,
    batch: u32 = 4,
    lr: f32 = 2e-4,
    schedule: String = "constant".into(),
    lr_min: f32 = 1e-6,
    warmup_rounds: u64 = 0,
    beta1: f32 = 0.9,
    beta2: f32 = 0.999,
    eps: f32 = 1e-8,
    weight_decay: f32 = 0.0,
    max_grad_norm: f32 = 1.0,
    keep_optimizer: bool = false,
    shuffle: bool = true,
    optimizer: String = "adamw".into(),
});
section!(RawStrategy {
    name: String = "fedavg".into(),
    compat: String = "paper".into(),
    reduce: String = "plain".into(),
    weight_by: Option<String> = None,
    max_weight: u64 = 1_000_000,
    population: u64 = 0,
    server_lr: Option<f64> = None,
    mu: Option<f64> = None,
    eta_g: Option<f64> = None,
    beta: Option<f64> = None,
    eta: Option<f64> = None,
    tau: Option<f64> = None,
    beta1: Option<f64> = None,
    beta2: Option<f64> = None,
});

impl RawStrategy {
    /// The parameters that stand in the file.
    fn parameters(&self) -> Vec<(&'static str, f64)> {
        let all = [
            ("server_lr", self.server_lr),
            ("mu", self.mu),
            ("eta_g", self.eta_g),
            ("beta", self.beta),
            ("eta", self.eta),
            ("tau", self.tau),
            ("beta1", self.beta1),
            ("beta2", self.beta2),
        ];
        let given = all.into_iter();
        given
            .filter_map(|(name, value)| Some((name, value?)))
            .collect()
    }
}
section!(RawWire {
    codec: String = "bf16".into(),
    max_norm: Option<f32> = None,
});
section!(RawCentral {
    every: u64 = 0,
    held_out: Vec<String> = Vec::new(),
    tasks: Vec<String> = Vec::new(),
    data: Vec<String> = Vec::new(),
    limit: u64 = RawTasks::LIMIT,
    shots: Option<u64> = None,
});
section!(RawServer {
    listen: String = "0.0.0.0:7433".into(),
    address: String = "localhost:7433".into(),
    status_listen: String = "127.0.0.1:7434".into(),
    keep_updates_rounds: u32 = 0,
});

const DEFAULT_MODEL: &str = "smollm2-135m-instruct";

pub(super) fn parse(text: &str) -> Result<Federation, ConfigError> {
    federation(&File { text }, read(text)?)
}

/// The sections of a file.
pub(super) fn read<T: DeserializeOwned>(text: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| ConfigError {
        line: error.span().map(|span| line_at(text, span.start)),
        key: None,
        problem: with_nearest(error.message()),
    })
}

/// Checks the sections of a federation.
pub(super) fn federation(file: &File<'_>, raw: Raw) -> Result<Federation, ConfigError> {
    let seed = raw.federation.seed;
    let rounds = rounds(file, &raw.rounds)?;
    let (strategy, reduction) = strategy(file, &raw.strategy)?;
    let mut lora = lora(file, &raw.adapter, seed)?;
    lora.train = reduction.factors();
    let weight_by = match &raw.strategy.weight_by {
        Some(name) => file.one_of("strategy.weight_by", name, &WEIGHTS)?,
        None => strategy.kind.weight_by(strategy.compat),
    };
    Ok(Federation {
        name: file.text("federation.name", raw.federation.name, 1..=100)?,
        seed,
        model: model(file, raw.model)?,
        ranks: ranks(file, &raw.adapter, &strategy)?,
        start: raw.adapter.start,
        lora,
        objective: objective(file, &raw.objective)?,
        local: local(
            file,
            &raw.local,
            raw.data.max_tokens,
            rounds.count,
            strategy.compat,
        )?,
        data: data(file, raw.data)?,
        rounds,
        population: raw.strategy.population,
        evaluation: evaluation(file, raw.evaluation, strategy.kind)?,
        strategy,
        weighting: Weighting {
            by: weight_by,
            max: file.bound("strategy.max_weight", raw.strategy.max_weight, 1, 1 << 52)?,
        },
        wire: wire(file, &raw.wire)?,
        server: server(file, raw.server)?,
    })
}

const WEIGHTS: [(&str, WeightBy); 3] = [
    ("rows", WeightBy::Rows),
    ("loss_tokens", WeightBy::LossTokens),
    ("uniform", WeightBy::Uniform),
];
const SCHEDULES: [(&str, ScheduleKind); 3] = [
    ("constant", ScheduleKind::Constant),
    ("cosine", ScheduleKind::Cosine),
    ("linear", ScheduleKind::Linear),
];
const OPTIMIZERS: [(&str, LocalOptimizer); 2] = [
    ("adamw", LocalOptimizer::AdamW),
    ("sgd", LocalOptimizer::Sgd),
];
const LOSSES: [(&str, PreferenceLoss); 4] = [
    ("sigmoid", PreferenceLoss::Sigmoid),
    ("hinge", PreferenceLoss::Hinge),
    ("ipo", PreferenceLoss::Ipo),
    ("ipo_mean", PreferenceLoss::IpoMean),
];
const REFERENCES: [(&str, ReferenceConfig); 2] = [
    ("base", ReferenceConfig::Base),
    ("initial", ReferenceConfig::Initial),
];
const CODECS: [(&str, Codec); 3] = [
    ("f32", Codec::F32),
    ("bf16", Codec::Bf16),
    ("int8", Codec::Int8Rows),
];

fn model(file: &File<'_>, raw: RawModel) -> Result<ModelConfig, ConfigError> {
    let source = match (raw.name, raw.path) {
        (Some(_), Some(_)) => {
            return Err(file.error("model.path", "or model.name: give one of them only"));
        }
        (None, Some(path)) => ModelSource::Path(file.text("model.path", path, 1..=4096)?),
        (Some(name), None) => ModelSource::Name(file.text("model.name", name, 1..=100)?),
        (None, None) => ModelSource::Name(DEFAULT_MODEL.to_owned()),
    };
    let digest = raw.digest.map(|text| file.read("model.digest", &text));
    Ok(ModelConfig {
        source,
        digest: digest.transpose()?,
    })
}

fn data(file: &File<'_>, raw: RawData) -> Result<DataConfig, ConfigError> {
    Ok(DataConfig {
        template: file.text("data.template", raw.template, 1..=100)?,
        max_tokens: file.bound("data.max_tokens", raw.max_tokens, 2, 1 << 20)?,
    })
}

fn lora(file: &File<'_>, raw: &RawAdapter, seed: u64) -> Result<LoraSpec, ConfigError> {
    Ok(LoraSpec {
        rank: file.bound("adapter.rank", raw.rank, 1, 1024)?,
        alpha: file.above_zero("adapter.alpha", raw.alpha, 1e6)?,
        dropout: file.bound("adapter.dropout", raw.dropout, 0.0, 0.99)?,
        rslora: raw.rslora,
        targets: file.read("adapter.targets", &raw.targets)?,
        seed,
        train: Default::default(),
    })
}

/// The lower ranks, the highest first.
fn ranks(file: &File<'_>, raw: &RawAdapter, strategy: &Strategy) -> Result<Vec<u32>, ConfigError> {
    let key = "adapter.ranks";
    if !raw.ranks.is_empty() && strategy.reduce != ReduceRule::Products {
        let problem = "needs strategy.reduce = \"exact\": factors of different ranks have no mean";
        return Err(file.error(key, problem));
    }
    let mut ranks = raw.ranks.clone();
    ranks.sort_unstable_by(|a, b| b.cmp(a));
    ranks.dedup();
    match ranks.iter().find(|rank| **rank == 0 || **rank >= raw.rank) {
        None => Ok(ranks),
        Some(wrong) => {
            let problem = format!(
                "must be above 0 and below {} (the rank), got {wrong}",
                raw.rank
            );
            Err(file.error(key, &problem))
        }
    }
}

fn objective(file: &File<'_>, raw: &RawObjective) -> Result<ObjectiveConfig, ConfigError> {
    let is_dpo = file.one_of(
        "objective.kind",
        &raw.kind,
        &[("sft", false), ("dpo", true)],
    )?;
    if !is_dpo {
        let given = [
            ("objective.beta", raw.beta.is_some()),
            ("objective.label_smoothing", raw.label_smoothing.is_some()),
            ("objective.loss", raw.loss.is_some()),
            ("objective.reference", raw.reference.is_some()),
        ];
        return match given.into_iter().find(|(_, given)| *given) {
            Some((key, _)) => Err(file.error(key, "is for objective.kind = \"dpo\" only")),
            None => Ok(ObjectiveConfig::Sft),
        };
    }
    let (loss, reference) = (raw.loss.as_deref(), raw.reference.as_deref());
    let loss = file.one_of("objective.loss", loss.unwrap_or("sigmoid"), &LOSSES)?;
    let smoothing = raw.label_smoothing.unwrap_or(0.0);
    let label_smoothing = file.bound("objective.label_smoothing", smoothing, 0.0, 0.499)?;
    if label_smoothing > 0.0 && loss != PreferenceLoss::Sigmoid {
        let problem = "is for objective.loss = \"sigmoid\" only";
        return Err(file.error("objective.label_smoothing", problem));
    }
    Ok(ObjectiveConfig::Dpo {
        beta: file.bound("objective.beta", raw.beta.unwrap_or(0.1), 1e-6, 1e3)?,
        label_smoothing,
        loss,
        reference: file.one_of(
            "objective.reference",
            reference.unwrap_or("base"),
            &REFERENCES,
        )?,
    })
}

fn rounds(file: &File<'_>, raw: &RawRounds) -> Result<RoundsConfig, ConfigError> {
    let cohort = file.at_least("rounds.cohort", raw.cohort, 1)?;
    if raw.quorum == 0 || raw.quorum > cohort {
        let problem = format!("must be 1 to {cohort} (the cohort), got {}", raw.quorum);
        return Err(file.error("rounds.quorum", &problem));
    }
    if raw.min_clients < raw.quorum {
        let (got, quorum) = (raw.min_clients, raw.quorum);
        let problem = format!("must be at least {quorum} (the quorum), got {got}");
        return Err(file.error("rounds.min_clients", &problem));
    }
    let deadline = file.bound("rounds.deadline_seconds", raw.deadline_seconds, 1, 1 << 32)?;
    Ok(RoundsConfig {
        count: file.at_least("rounds.count", raw.count, 1)?,
        cohort,
        min_clients: raw.min_clients,
        quorum: raw.quorum,
        deadline: Duration::from_secs(deadline),
    })
}

fn local(
    file: &File<'_>,
    raw: &RawLocal,
    max_tokens: u32,
    rounds: u64,
    compat: Compat,
) -> Result<LocalConfig, ConfigError> {
    let lr = file.bound("local.lr", raw.lr, 0.0, 10.0)?;
    Ok(LocalConfig {
        lr: LrSchedule {
            kind: file.one_of("local.schedule", &raw.schedule, &SCHEDULES)?,
            lr,
            lr_min: file.bound("local.lr_min", raw.lr_min, 0.0, 10.0)?,
            warmup_rounds: raw.warmup_rounds,
            rounds,
            compat,
        },
        spec: LocalSpec {
            steps: file.bound("local.steps", raw.steps, 1, 1_000_000)?,
            batch: file.bound("local.batch", raw.batch, 1, 65_536)?,
            max_tokens,
            lr,
            beta1: file.bound("local.beta1", raw.beta1, 0.0, 0.999_999)?,
            beta2: file.bound("local.beta2", raw.beta2, 0.0, 0.999_999_9)?,
            eps: file.above_zero("local.eps", raw.eps, 1.0)?,
            weight_decay: file.bound("local.weight_decay", raw.weight_decay, 0.0, 10.0)?,
            max_grad_norm: file.bound("local.max_grad_norm", raw.max_grad_norm, 0.0, 1e9)?,
            keep_optimizer: raw.keep_optimizer,
            shuffle: raw.shuffle,
            optimizer: file.one_of("local.optimizer", &raw.optimizer, &OPTIMIZERS)?,
        },
    })
}

fn strategy(file: &File<'_>, raw: &RawStrategy) -> Result<(Strategy, Reduction), ConfigError> {
    let kind: StrategyKind = raw.name.parse().map_err(|error: StrategyError| {
        file.error("strategy.name", &format!("= {:?}: {error}", raw.name))
    })?;
    let compat = file.one_of("strategy.compat", &raw.compat, &Compat::NAMES)?;
    let reduction = file.one_of("strategy.reduce", &raw.reduce, &Reduction::NAMES)?;
    let strategy = Strategy::new(kind, compat, reduction, &raw.parameters());
    let strategy = strategy.map_err(|error| {
        let key = match &error {
            StrategyError::UnknownParameter { name, .. } => format!("strategy.{name}"),
            StrategyError::OutOfRange { name, .. } => format!("strategy.{name}"),
            StrategyError::Reduction { .. } => "strategy.reduce".to_owned(),
            StrategyError::Unknown { .. } => "strategy.name".to_owned(),
        };
        file.error(&key, &format!("is wrong: {error}"))
    })?;
    Ok((strategy, reduction))
}

fn wire(file: &File<'_>, raw: &RawWire) -> Result<WireConfig, ConfigError> {
    let norm = raw.max_norm;
    let norm = norm.map(|norm| file.above_zero("wire.max_norm", norm, 1e9));
    Ok(WireConfig {
        codec: file.one_of("wire.codec", &raw.codec, &CODECS)?,
        max_norm: norm.transpose()?,
    })
}

fn evaluation(
    file: &File<'_>,
    raw: RawCentral,
    strategy: StrategyKind,
) -> Result<CentralEvaluation, ConfigError> {
    if raw.every > 0 && raw.held_out.is_empty() && raw.tasks.is_empty() {
        let problem = "needs evaluation.held_out or evaluation.tasks: what to measure on";
        return Err(file.error("evaluation.every", problem));
    }
    for (key, is_given) in [
        ("evaluation.held_out", !raw.held_out.is_empty()),
        ("evaluation.tasks", !raw.tasks.is_empty()),
    ] {
        if strategy == StrategyKind::Local && is_given {
            let problem = "needs a shared adapter, and strategy.name = \"local\" has none";
            return Err(file.error(key, problem));
        }
    }
    let tasks = RawTasks {
        names: raw.tasks,
        data: raw.data,
        limit: raw.limit,
        shots: raw.shots,
    };
    let path = |path| file.text("evaluation.held_out", path, 1..=4096);
    Ok(CentralEvaluation {
        every: raw.every,
        held_out: raw
            .held_out
            .into_iter()
            .map(path)
            .collect::<Result<_, _>>()?,
        tasks: tasks.checked(file)?,
    })
}

fn server(file: &File<'_>, raw: RawServer) -> Result<ServerConfig, ConfigError> {
    let host_and_port = raw.address.rsplit_once(':');
    let port = host_and_port.and_then(|(_, port)| port.parse::<u16>().ok());
    if port.is_none_or(|port| port == 0) || raw.address.starts_with(':') {
        let problem = format!("must be host:port, got {:?}", raw.address);
        return Err(file.error("server.address", &problem));
    }
    Ok(ServerConfig {
        listen: file.read("server.listen", &raw.listen)?,
        status_listen: file.read("server.status_listen", &raw.status_listen)?,
        address: raw.address,
        keep_updates_rounds: raw.keep_updates_rounds,
    })
}

/// The text, for errors that name lines.
pub(super) struct File<'a> {
    pub(super) text: &'a str,
}

impl File<'_> {
    pub(super) fn bound<T>(&self, key: &str, value: T, low: T, high: T) -> Result<T, ConfigError>
    where
        T: PartialOrd + fmt::Display + Copy,
    {
        // A value that is no number is in no range.
        if value >= low && value <= high {
            return Ok(value);
        }
        Err(self.error(key, &format!("must be {low} to {high}, got {value}")))
    }

    pub(super) fn at_least<T>(&self, key: &str, value: T, low: T) -> Result<T, ConfigError>
    where
        T: PartialOrd + fmt::Display,
    {
        if value >= low {
            return Ok(value);
        }
        Err(self.error(key, &format!("must be at least {low}, got {value}")))
    }

    fn above_zero(&self, key: &str, value: f32, high: f32) -> Result<f32, ConfigError> {
        if value > 0.0 && value <= high {
            return Ok(value);
        }
        let problem = format!("must be above 0 and at most {high}, got {value}");
        Err(self.error(key, &problem))
    }

    pub(super) fn text(
        &self,
        key: &str,
        value: String,
        bytes: std::ops::RangeInclusive<usize>,
    ) -> Result<String, ConfigError> {
        if bytes.contains(&value.len()) {
            return Ok(value);
        }
        let (low, high, got) = (bytes.start(), bytes.end(), value.len());
        Err(self.error(key, &format!("must have {low} to {high} bytes, got {got}")))
    }

    pub(super) fn read<T>(&self, key: &str, value: &str) -> Result<T, ConfigError>
    where
        T: FromStr,
        T::Err: fmt::Display,
    {
        let value_of = value.parse();
        value_of.map_err(|error| self.error(key, &format!("= {value:?} is wrong: {error}")))
    }

    pub(super) fn one_of<T: Clone>(
        &self,
        key: &str,
        value: &str,
        table: &[(&str, T)],
    ) -> Result<T, ConfigError> {
        if let Some((_, found)) = table.iter().find(|(name, _)| *name == value) {
            return Ok(found.clone());
        }
        let names: Vec<_> = table.iter().map(|(name, _)| format!("{name:?}")).collect();
        let problem = format!("must be {}, got {value:?}", names.join(" or "));
        Err(self.error(key, &problem))
    }

    pub(super) fn error(&self, key: &str, problem: &str) -> ConfigError {
        ConfigError {
            line: self.line_of(key),
            key: Some(key.to_owned()),
            problem: format!("{key} {problem}"),
        }
    }

    /// The line where `section.key` stands, if it does.
    pub(super) fn line_of(&self, path: &str) -> Option<usize> {
        let (section, key) = path.split_once('.')?;
        let file = DeTable::parse(self.text).ok()?.into_inner();
        let table = file.get(section)?.get_ref().as_table()?;
        let (key, _) = table.get_key_value(key)?;
        Some(line_at(self.text, key.span().start))
    }
}

/// An error of the parser; the name that was probably meant is added to an unknown one.
fn with_nearest(message: &str) -> String {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    match quoted.split_first() {
        Some((unknown, known)) if message.starts_with("unknown field") && !known.is_empty() => {
            let meant = nearest(unknown, known.iter().copied());
            format!("{message}; did you mean `{meant}`?")
        }
        _ => message.to_owned(),
    }
}

fn line_at(text: &str, offset: usize) -> usize {
    let before = text.get(..offset).unwrap_or(text);
    before.matches('\n').count() + 1
}
