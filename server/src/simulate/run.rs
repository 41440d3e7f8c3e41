//! One run and its folder: what is written, and how it goes on after it was stopped.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use burn::tensor::Device;
use fedllm_client::files::write_whole;
use fedllm_client::{
    Base, LoraTrainer, Rewards, ScoreError, Shard, StopFlag, Template, TemplateError, score_units,
};
use fedllm_models::device::Selection;
use fedllm_models::lora::{self, Lora, LoraError};
use fedllm_models::train::Memory;
use fedllm_models::{BasePrecision, CausalLm, LoadError, PeftError};
use fedllm_shared::{
    Adapter, ConfigError, Digest, Experiment, ObjectiveConfig, ReferenceConfig, StrategyKind,
    decode_adapter,
};
use thiserror::Error;

use super::data::{DataError, Owners};
use super::devices::{DevicePark, Distribution, ParkSpec};
use super::engine::{Checkpoint, Parts, Simulation, SimulationError};
use super::metrics::{Evaluation, MetricsError, MetricsLog, RoundMetrics, RunSummary};
use super::report::render_report;
use super::split::SplitTable;
use super::tfevents::{EventWriter, event_file_name};
use crate::base::{BaseError, first_adapter};
use crate::evaluate::{central_score, mean_and_error};
use crate::store::{BlobStore, StoreError};

const CONFIG: &str = "config.toml";
const CHECKPOINT: &str = "checkpoint.bin";
const METRICS: &str = "metrics.jsonl";
const SUMMARY: &str = "summary.json";
const SPLIT: &str = "split.json";
const REPORT: &str = "report.html";

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

impl Lab {
    /// Opens the model and deals out the rows.
    pub(crate) fn open(text: &str, experiment: Experiment, base: Base) -> Result<Self, RunError> {
        let owners = Owners::prepare(&experiment, &base)?;
        Ok(Self {
            experiment,
            text: text.to_owned(),
            base,
            owners,
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
        Ok(Arc::new(
            self.base.load(BasePrecision::default(), selection)?,
        ))
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
    base_name: String,
    model: Arc<CausalLm>,
    held_out: Option<Shard>,
    table: SplitTable,
    simulation: Simulation,
    rounds: Vec<RoundMetrics>,
    folder: RunFolder,
    metrics: File,
    events: EventWriter<File>,
    base_scores: Option<Evaluation>,
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
        let trainer = LoraTrainer::new(
            model.clone(),
            base.checkpoint().fingerprint(),
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
        let base_scores = rounds.iter().flat_map(|round| &round.evaluations);
        let base_scores = base_scores
            .clone()
            .find(|scores| scores.arm == "base")
            .cloned();
        let simulation = Simulation::new(parts, checkpoint.map(|at| at.simulation))?;
        Ok(Self {
            base_name: base.checkpoint().name().to_owned(),
            held_out: owners.held_out,
            table: owners.table,
            experiment,
            text,
            model,
            simulation,
            rounds,
            folder,
            metrics,
            events,
            base_scores,
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
                metrics.evaluations = self.evaluate()?;
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

    fn is_measured(&self, round: u64) -> bool {
        let (every, rounds) = (
            self.experiment.evaluation.every,
            self.experiment.federation.rounds.count,
        );
        let last = round + 1 == rounds;
        self.held_out.is_some() && (last || (every > 0 && (round + 1).is_multiple_of(every)))
    }

    /// Measures the adapters on the held-out rows, and the base model once.
    fn evaluate(&mut self) -> Result<Vec<Evaluation>, RunError> {
        let Some(held_out) = self.held_out.clone() else {
            return Ok(Vec::new());
        };
        let mut evaluations = Vec::new();
        if self.experiment.evaluation.base {
            let base = match self.base_scores.clone() {
                Some(base) => base,
                None => self.score("base", None, &held_out)?,
            };
            self.base_scores = Some(base.clone());
            evaluations.push(base);
        }
        let own: Vec<_> = self
            .simulation
            .own_adapters()
            .map(|(name, blob)| (name.to_owned(), blob))
            .collect();
        if self.is_local() {
            let mut owners = Vec::new();
            for (name, blob) in own {
                let adapter = self.load(&blob)?;
                owners.push(self.score(&name, Some(&adapter), &held_out)?);
            }
            evaluations.push(mean_of(&owners));
            evaluations.extend(owners);
        } else {
            let adapter = self.load(&self.simulation.models().adapter.clone())?;
            evaluations.push(self.score("global", Some(&adapter), &held_out)?);
        }
        Ok(evaluations)
    }

    fn score(
        &self,
        arm: &str,
        adapter: Option<&Adapter>,
        held_out: &Shard,
    ) -> Result<Evaluation, RunError> {
        let spec = &self.experiment.federation.lora;
        let (model, device) = (&*self.model, self.model.device());
        let on_device = |adapter: &Adapter| Lora::new(model.config(), spec, adapter, device);
        let lora = adapter.map(on_device).transpose()?;
        let (beta, reference) = match self.experiment.federation.objective {
            ObjectiveConfig::Sft => (0.0, None),
            ObjectiveConfig::Dpo {
                beta, reference, ..
            } => {
                let reference = match reference {
                    ReferenceConfig::Base => None,
                    ReferenceConfig::Initial => Some(self.load(self.simulation.first())?),
                };
                let reference = reference.as_ref().map(on_device).transpose()?;
                (beta, reference)
            }
        };
        let rewards = Rewards {
            beta,
            reference: reference.as_ref(),
        };
        let scores = score_units(model, lora.as_ref(), rewards, held_out, &self.stop);
        let scores = scores.map_err(|error| match error {
            ScoreError::Stopped => self.simulation.stopped().into(),
            other => RunError::Score(other),
        })?;
        let means = central_score(&scores);
        let margin = (!scores.margins.is_empty()).then(|| mean_and_error(&scores.margins));
        Ok(Evaluation {
            arm: arm.to_owned(),
            rows: means.rows,
            loss: means.loss,
            loss_se: means.loss_se,
            accuracy: Some(means.accuracy),
            accuracy_se: Some(means.accuracy_se),
            margin: margin.map(|(mean, _)| mean),
            margin_se: margin.map(|(_, error)| error),
        })
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
        let peft = lora::to_peft(&self.experiment.federation.lora, adapter, &self.base_name)?;
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
            evaluations: self
                .rounds
                .last()
                .map(|round| round.evaluations.clone())
                .unwrap_or_default(),
            adapter_digest: Digest(hash.finalize().into()).to_string(),
            code_version: env!("CARGO_PKG_VERSION").to_owned(),
            wall_seconds: sum(|round| round.seconds),
            train_seconds: sum(|round| round.train_seconds),
            virtual_seconds: self
                .rounds
                .last()
                .map_or(0.0, |round| round.virtual_seconds),
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

/// The mean over owners, each figure's standard error that over owners.
fn mean_of(owners: &[Evaluation]) -> Evaluation {
    let over = |of: fn(&Evaluation) -> Option<f64>| {
        let figures: Vec<f64> = owners.iter().filter_map(of).collect();
        (!figures.is_empty()).then(|| mean_and_error(&figures))
    };
    let (loss, loss_se) = over(|owner| Some(owner.loss)).unwrap_or_default();
    let (accuracy, margin) = (over(|owner| owner.accuracy), over(|owner| owner.margin));
    Evaluation {
        arm: "local mean".to_owned(),
        rows: owners.first().map_or(0, |owner| owner.rows),
        loss,
        loss_se,
        accuracy: accuracy.map(|(mean, _)| mean),
        accuracy_se: accuracy.map(|(_, error)| error),
        margin: margin.map(|(mean, _)| mean),
        margin_se: margin.map(|(_, error)| error),
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

/// Where a run stands.
#[derive(serde::Serialize, serde::Deserialize)]
struct SavedRun {
    /// The round that is next.
    round: u64,
    simulation: Checkpoint,
}

/// The folder of a run.
struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    /// Makes the folder of a run with this configuration, or finds it.
    fn open(path: &Path, text: &str, fresh: bool) -> Result<Self, RunError> {
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

    fn summary(&self) -> Result<Option<RunSummary>, RunError> {
        let Some(bytes) = self.read(SUMMARY)? else {
            return Ok(None);
        };
        let summary = serde_json::from_slice(&bytes);
        Ok(Some(summary.map_err(|error| self.error(SUMMARY, error))?))
    }

    fn checkpoint(&self) -> Result<Option<SavedRun>, RunError> {
        let Some(bytes) = self.read(CHECKPOINT)? else {
            return Ok(None);
        };
        let saved = postcard::from_bytes(&bytes);
        Ok(Some(saved.map_err(|error| self.error(CHECKPOINT, error))?))
    }

    fn save(&self, saved: &SavedRun) -> Result<(), RunError> {
        let bytes = postcard::to_stdvec(saved).map_err(|error| self.error(CHECKPOINT, error))?;
        self.write(CHECKPOINT, &bytes)
    }

    /// The metrics of the rounds before `round`, and the file to add to.
    fn metrics(&self, round: u64) -> Result<(File, MetricsLog), RunError> {
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
    fn events(&self, rounds: u64) -> Result<EventWriter<File>, RunError> {
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
    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), RunError> {
        write_whole(&self.path.join(name), bytes).map_err(|error| self.error(name, error))
    }

    fn error(&self, name: &str, error: impl std::fmt::Display) -> RunError {
        RunError::Folder {
            path: self.path.join(name),
            reason: error.to_string(),
        }
    }
}

fn json(value: &impl serde::Serialize) -> Vec<u8> {
    // Plain structs of texts and numbers always serialize.
    let mut text = serde_json::to_vec_pretty(value).unwrap_or_default();
    text.push(b'\n');
    text
}

fn unix_seconds() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or(Duration::ZERO).as_secs_f64()
}
