//! One run: its rounds, what is written of them, and how it goes on after it was stopped.

mod folder;
mod measure;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use burn::tensor::Device;
use fedllm_client::{Base, LoraTrainer, ScoreError, Shard, StopFlag, Template, TemplateError};
use fedllm_models::device::Selection;
use fedllm_models::lora::{self, LoraError};
use fedllm_models::train::Memory;
use fedllm_models::{BasePrecision, CausalLm, LoadError, PeftError};
use fedllm_shared::{
    Adapter, ConfigError, Digest, Experiment, ObjectiveConfig, StrategyKind, decode_adapter,
};
use thiserror::Error;

use super::data::{DataError, Owners};
use super::devices::{DevicePark, Distribution, ParkSpec};
use super::engine::{Parts, Simulation, SimulationError};
use super::metrics::{MetricsError, RoundMetrics, RunSummary};
use super::report::render_report;
use super::split::SplitTable;
use super::tfevents::EventWriter;
use crate::base::{BaseError, first_adapter};
use crate::evaluate::{Tasks, TasksError, find_tasks, loaded_digest};
use crate::store::{BlobStore, StoreError};
use folder::{METRICS, REPORT, RunFolder, SPLIT, SUMMARY, SavedRun, json};
use measure::Measures;

/// How the base is held.
const PRECISION: BasePrecision = BasePrecision::AsStored;

/// Why a run cannot be done.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RunError {
    /// The rows.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A key of the experiment.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The simulation.
    #[error(transparent)]
    Simulation(#[from] SimulationError),
    /// The adapter to start from.
    #[error(transparent)]
    Base(#[from] BaseError),
    /// The template.
    #[error("data.template: {0}")]
    Template(String),
    /// The model cannot use the template.
    #[error("data.template: {0}")]
    TemplateUse(#[from] TemplateError),
    /// Held-out rows cannot be scored.
    #[error(transparent)]
    Score(ScoreError),
    /// Benchmarks cannot be measured.
    #[error(transparent)]
    Tasks(#[from] TasksError),
    /// The base model.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// An adapter does not fit the model.
    #[error(transparent)]
    Lora(#[from] LoraError),
    /// An adapter cannot be written.
    #[error(transparent)]
    Peft(#[from] PeftError),
    /// A stored adapter cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What the folder has cannot be read or written.
    #[error("{path}: {reason}")]
    Folder {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The folder's metrics.
    #[error("{METRICS}: {0}")]
    Metrics(#[from] MetricsError),
    /// The folder belongs to another experiment.
    #[error("{0} holds a run of another configuration")]
    OtherRun(PathBuf),
}

/// An experiment, its model and its rows: everything before training.
pub(crate) struct Lab {
    experiment: Experiment,
    /// The text that the experiment was read from.
    text: String,
    base: Base,
    owners: Owners,
    tasks: Option<Tasks>,
}

/// What a run is told to do.
pub(crate) struct RunOptions<'a> {
    /// The folder of the run.
    pub(crate) out: &'a Path,
    /// Where the model computes.
    pub(crate) selection: &'a Selection,
    /// The model, if it is loaded already.
    pub(crate) model: Option<Arc<CausalLm>>,
    /// Begin anew where another run, or another configuration's, is.
    pub(crate) fresh: bool,
    /// Asks for the end.
    pub(crate) stop: &'a StopFlag,
    /// Hears how the run goes.
    pub(crate) watcher: &'a mut dyn Watcher,
}

/// Hears how a run goes.
pub(crate) trait Watcher {
    /// A client takes a step.
    fn step(&mut self, client: &str, step: u32, steps: u32, loss: f32);
    /// A round is over.
    fn round(&mut self, round: &RoundMetrics, rounds: u64);
}

/// Reads and checks an experiment, with the names of its tasks.
///
/// # Errors
///
/// [`ConfigError`] with the line and the key of what is wrong.
pub(crate) fn parse_experiment(text: &str) -> Result<Experiment, ConfigError> {
    let experiment = Experiment::parse(text)?;
    match find_tasks(&experiment.evaluation.tasks.names) {
        Ok(_) => Ok(experiment),
        Err(problem) => Err(Experiment::error(text, "evaluation.tasks", &problem)),
    }
}

impl Lab {
    /// Opens the model, deals out the rows, and reads those of the tasks.
    pub(crate) fn open(text: &str, experiment: Experiment, base: Base) -> Result<Self, RunError> {
        let tasks = Tasks::open(&experiment.evaluation.tasks, &base)?;
        let owners = Owners::prepare(&experiment, &base)?;
        Ok(Self {
            experiment,
            text: text.to_owned(),
            base,
            owners,
            tasks,
        })
    }

    /// Who has what.
    pub(crate) fn table(&self) -> &SplitTable {
        &self.owners.table
    }

    /// What became of the files' rows.
    pub(crate) fn prepared(&self) -> &fedllm_client::PrepareReport {
        &self.owners.report
    }

    /// How many rows are held out.
    pub(crate) fn held_out(&self) -> usize {
        self.owners.held_out.as_ref().map_or(0, Shard::units)
    }

    /// Loads the model to a device.
    pub(crate) fn load(&self, selection: &Selection) -> Result<Arc<CausalLm>, RunError> {
        Ok(Arc::new(self.base.load(PRECISION, selection)?))
    }

    /// Runs the experiment to its end, from where it was stopped if it was.
    pub(crate) fn run(self, options: RunOptions<'_>) -> Result<RunSummary, RunError> {
        let folder = RunFolder::open(options.out, &self.text, options.fresh)?;
        if let Some(summary) = folder.summary()? {
            return Ok(summary);
        }
        let model = match options.model.clone() {
            Some(model) => model,
            None => self.load(options.selection)?,
        };
        Run::begin(self, folder, model, &options)?.finish(options.watcher)
    }
}

/// A run under way.
struct Run {
    experiment: Experiment,
    text: String,
    base: Base,
    model: Arc<CausalLm>,
    measures: Measures,
    table: SplitTable,
    simulation: Simulation,
    rounds: Vec<RoundMetrics>,
    folder: RunFolder,
    metrics: File,
    events: EventWriter<File>,
    clients: u32,
    stop: StopFlag,
}

impl Run {
    fn begin(
        lab: Lab,
        folder: RunFolder,
        model: Arc<CausalLm>,
        options: &RunOptions<'_>,
    ) -> Result<Self, RunError> {
        let Lab {
            experiment,
            text,
            base,
            owners,
            tasks,
        } = lab;
        let federation = &experiment.federation;
        let name = federation
            .data
            .template
            .parse()
            .map_err(RunError::Template)?;
        let template = Template::new(name, base.tokenizer(), base.chat())?.digest();
        let layout = lora::layout(model.config(), &federation.lora);
        let layout = Arc::new(layout.map_err(LoraError::from)?);
        let weights = base.checkpoint().fingerprint();
        let trainer = LoraTrainer::new(
            model.clone(),
            weights,
            options.selection.info.to_string(),
            Memory::default(),
        );
        folder.write(SPLIT, &json(&owners.table))?;
        let checkpoint = folder.checkpoint()?;
        let (metrics, log) = folder.metrics(checkpoint.as_ref().map_or(0, |at| at.round))?;
        let clients = owners.owners.len() as u32;
        let parts = Parts {
            experiment: &experiment,
            trainer,
            tokenizer: base.tokenizer().fingerprint(),
            template,
            adapter: first_adapter(federation, model.config(), &layout)?,
            owners: owners.owners,
            park: park(&experiment, &text)?,
            folder: folder.path.clone(),
            device: Device::flex(),
            stop: options.stop.clone(),
        };
        let rounds = log.into_rounds();
        let events = folder.events(rounds.len() as u64)?;
        let mut known = rounds.iter().flat_map(|round| &round.evaluations);
        let measures = Measures {
            held_out: owners.held_out,
            tasks: tasks.map(|tasks| tasks.kept_in(folder.path.join("evaluation"))),
            digest: loaded_digest(weights, base.tokenizer().fingerprint(), PRECISION),
            base: known.find(|scores| scores.arm == "base").cloned(),
            // Replies are kept: asking again costs nothing.
            base_tasks: None,
        };
        let simulation = Simulation::new(parts, checkpoint.map(|at| at.simulation))?;
        Ok(Self {
            base,
            measures,
            table: owners.table,
            experiment,
            text,
            model,
            simulation,
            rounds,
            folder,
            metrics,
            events,
            clients,
            stop: options.stop.clone(),
        })
    }

    fn finish(mut self, watcher: &mut dyn Watcher) -> Result<RunSummary, RunError> {
        let rounds = self.experiment.federation.rounds.count;
        while !self.simulation.is_finished() {
            let began = Instant::now();
            let mut on_step = |client: &str, step, steps, loss| {
                watcher.step(client, step, steps, loss);
            };
            let mut metrics = self.simulation.next_round(&mut on_step)?;
            if self.is_measured(metrics.round) {
                self.measure(&mut metrics)?;
            }
            metrics.seconds = began.elapsed().as_secs_f64();
            self.keep_adapter(metrics.round)?;
            metrics
                .write_line(&self.metrics)
                .map_err(|error| self.folder.error(METRICS, error))?;
            self.events
                .round(unix_seconds(), &metrics)
                .map_err(|error| self.folder.error("TensorBoard events", error))?;
            self.folder.save(&SavedRun {
                round: metrics.round + 1,
                simulation: self.simulation.checkpoint(),
            })?;
            self.simulation.forget_earlier()?;
            watcher.round(&metrics, rounds);
            self.rounds.push(metrics);
        }
        self.conclude()
    }

    fn load(&self, blob: &fedllm_shared::BlobRef) -> Result<Adapter, RunError> {
        let bytes = self.simulation.blobs().load(blob)?;
        let adapter = decode_adapter(&bytes, self.simulation.layout());
        adapter.map_err(|error| self.folder.error("blobs", error))
    }

    /// Writes the adapter as a PEFT directory if it is time to.
    fn keep_adapter(&self, round: u64) -> Result<(), RunError> {
        let every = self.experiment.output.adapter_every;
        if every == 0 || !(round + 1).is_multiple_of(every) || self.is_local() {
            return Ok(());
        }
        let adapter = self.load(&self.simulation.models().adapter)?;
        self.write_adapter(&adapter, &format!("adapters/round-{round:04}"))
    }

    fn write_adapter(&self, adapter: &Adapter, name: &str) -> Result<(), RunError> {
        let name_of_base = self.base.checkpoint().name();
        let peft = lora::to_peft(&self.experiment.federation.lora, adapter, name_of_base)?;
        let path = self.folder.path.join(name);
        fs::create_dir_all(&path).map_err(|error| self.folder.error(name, error))?;
        Ok(peft.write(&path)?)
    }

    fn is_local(&self) -> bool {
        self.experiment.federation.strategy.kind == StrategyKind::Local
    }

    /// What is left when all rounds are done.
    fn conclude(self) -> Result<RunSummary, RunError> {
        let mut hash = blake3::Hasher::new();
        if self.is_local() {
            let own: Vec<_> = self
                .simulation
                .own_adapters()
                .map(|(name, blob)| (name.to_owned(), blob))
                .collect();
            for (index, (_, blob)) in own.iter().enumerate() {
                let adapter = self.load(blob)?;
                hash.update(bytemuck::cast_slice(adapter.values()));
                self.write_adapter(&adapter, &format!("owners/{index:04}"))?;
            }
        } else {
            let adapter = self.load(&self.simulation.models().adapter)?;
            hash.update(bytemuck::cast_slice(adapter.values()));
            self.write_adapter(&adapter, "adapter")?;
        }
        let sum = |of: fn(&RoundMetrics) -> f64| self.rounds.iter().map(of).sum::<f64>();
        let federation = &self.experiment.federation;
        let last_round = self.rounds.last();
        let summary = RunSummary {
            name: self.experiment.name.clone(),
            strategy: federation.strategy.kind.to_string(),
            objective: match federation.objective {
                ObjectiveConfig::Sft => "sft".to_owned(),
                ObjectiveConfig::Dpo { .. } => "dpo".to_owned(),
            },
            seed: federation.seed,
            rounds: federation.rounds.count,
            clients: self.clients,
            evaluations: last_round.map_or(Vec::new(), |round| round.evaluations.clone()),
            tasks: last_round.map_or(Vec::new(), |round| round.tasks.clone()),
            adapter_digest: Digest(hash.finalize().into()).to_string(),
            code_version: env!("CARGO_PKG_VERSION").to_owned(),
            wall_seconds: sum(|round| round.seconds),
            train_seconds: sum(|round| round.train_seconds),
            virtual_seconds: last_round.map_or(0.0, |round| round.virtual_seconds),
            bytes_up: self.rounds.iter().map(|round| round.bytes_up).sum(),
            bytes_down: self.rounds.iter().map(|round| round.bytes_down).sum(),
        };
        let page = render_report(&summary, &self.rounds, Some(&self.table), &self.text);
        self.folder.write(REPORT, page.as_bytes())?;
        self.folder.write(SUMMARY, &json(&summary))?;
        // As it is read when somebody asks again: parsing may move the last bit of a number.
        Ok(self.folder.summary()?.unwrap_or(summary))
    }
}

/// The clients' devices.
fn park(experiment: &Experiment, text: &str) -> Result<DevicePark, RunError> {
    let devices = &experiment.devices;
    let read = |key: &str, value: &str| {
        value.parse::<Distribution>().map_err(|error| {
            Experiment::error(
                text,
                &format!("devices.{key}"),
                &format!("is wrong: {error}"),
            )
        })
    };
    let spec = ParkSpec {
        tokens_per_second: read("tokens_per_second", &devices.tokens_per_second)?,
        uplink: read("uplink", &devices.uplink)?,
        downlink: read("downlink", &devices.downlink)?,
        latency: read("latency", &devices.latency)?,
        drop_out: devices.drop_out,
        straggler: devices.straggler,
        straggler_slowdown: read("slowdown", &devices.slowdown)?,
    };
    let park = DevicePark::new(spec, experiment.federation.seed);
    Ok(park.map_err(|error| Experiment::error(text, "devices", &format!("is wrong: {error}")))?)
}

fn unix_seconds() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or(Duration::ZERO).as_secs_f64()
}
