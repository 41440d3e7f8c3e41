//! `simulate`: a whole federation of virtual clients in one process.

mod settings;

use std::collections::HashMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use fedllm_client::{Base, Code, Explain, StopFlag, limit_threads, stop_on_signals};
use fedllm_models::CausalLm;
use fedllm_models::device::{DeviceChoice, Selection};
use fedllm_shared::{Experiment, ModelSource};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use self::settings::{Setting, Swept, grid};
use super::Global;
use crate::evaluate::TasksError;
use crate::simulate::{
    Lab, RoundMetrics, RunError, RunOptions, RunSummary, SimulationError, SweepRun, SweepTable,
    Watcher, parse_experiment, render_sweep, summary_table,
};

/// Run an experiment: hundreds of virtual clients, one process, virtual time.
///
/// The clients, the server's algorithm, the codecs and the messages are those of `serve` and of
/// `fedllm-client`. One seed fixes everything: two runs on as many threads of the CPU give the same
/// adapter, bit for bit, also if one was stopped (or killed) and run again. The folder of a run holds its
/// configuration, metrics.jsonl, TensorBoard events, adapters, and report.html.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  fedllm-server simulate experiments/alpaca-gpt4-small.toml --dry-run
  fedllm-server simulate finance.toml --data rows.jsonl --set strategy.name=fedprox
  fedllm-server simulate finance.toml --sweep strategy=fedavg,scaffold,local,central --sweep seed=1,2,3

Keys are section.key; strategy, compat, reduce, seed, rounds, clients, alpha, split and lr are short
for strategy.name, strategy.compat, strategy.reduce, experiment.seed, rounds.count, split.clients,
split.alpha, split.kind and local.lr. The strategy `central` trains one owner of all rows.
Parameters of an algorithm that a sweep does not use in a run are left out of that run.

[evaluation] says what is measured between rounds: held-out rows of data.held_out, benchmarks by the
names of `fedllm-server evaluate --list` (evaluation.tasks, found in evaluation.data), clients' rows.")]
pub(crate) struct Args {
    /// The experiment.
    #[arg(value_name = "EXPERIMENT.toml")]
    experiment: PathBuf,
    /// The folder of the run [default: runs/NAME].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// The rows: files or folders, instead of those that the experiment names.
    #[arg(long, value_name = "PATH")]
    data: Vec<PathBuf>,
    /// Change a key of the experiment. Repeat it for others.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<Setting>,
    /// Run every combination of these values, and print one table. Repeat it for other keys.
    #[arg(long, value_name = "KEY=V1,V2,..", num_args = 1..)]
    sweep: Vec<Swept>,
    /// With --sweep: also print how far each arm is from this one, seed by seed.
    #[arg(long, value_name = "ARM", requires = "sweep")]
    baseline: Option<String>,
    /// Show who has which rows, and train nothing.
    #[arg(long)]
    dry_run: bool,
    /// Begin anew where a run is already.
    #[arg(long)]
    fresh: bool,
    /// Where to compute: auto, cpu, gpu, or a device's number or name.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: DeviceChoice,
    /// Threads of the CPU to use [default: all].
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    if let Some(threads) = args.threads {
        limit_threads(threads).code(Code::Usage)?;
    }
    let file = Source::read(&args)?;
    if args.dry_run {
        return dry_run(&args, &file, global);
    }
    let mut stage = Stage {
        stop: stop_on_signals(),
        models: HashMap::new(),
        selection: None,
        global,
        args: &args,
    };
    if args.sweep.is_empty() {
        let text = file.with(&[])?;
        let name = parse_experiment(&text).code(Code::Config)?.name;
        let out = args.out.clone();
        let out = out.unwrap_or_else(|| Path::new("runs").join(folder_name(&name)));
        let summary = stage.run(&text, &out)?;
        return tell(&args, &summary, &out);
    }
    sweep(&args, &file, &mut stage)
}

/// The experiment's file.
struct Source<'a> {
    args: &'a Args,
    text: String,
}

impl<'a> Source<'a> {
    /// Reads and checks the file: its errors name its lines.
    fn read(args: &'a Args) -> anyhow::Result<Self> {
        let path = &args.experiment;
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))
            .code(Code::Config)?;
        let at = || path.display().to_string();
        if args.set.is_empty() && args.sweep.is_empty() && args.data.is_empty() {
            parse_experiment(&text)
                .with_context(at)
                .code(Code::Config)?;
        }
        toml::from_str::<toml::Table>(&text)
            .with_context(at)
            .code(Code::Config)?;
        Ok(Self { args, text })
    }

    /// The text with what the command line changes, and paths that hold from everywhere.
    fn with(&self, more: &[Setting]) -> anyhow::Result<String> {
        let mut table: toml::Table = toml::from_str(&self.text)?;
        let folder = self.args.experiment.parent();
        let folder = folder.filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        settings::absolute_paths(&mut table, folder)?;
        if !self.args.data.is_empty() {
            settings::set_data(&mut table, &self.args.data)?;
        }
        for setting in self.args.set.iter().chain(more) {
            setting.apply(&mut table);
        }
        if !more.is_empty() {
            settings::drop_foreign_parameters(&mut table);
        }
        Ok(toml::to_string(&table)?)
    }
}

/// What runs share: the device, and models that are loaded already.
struct Stage<'a> {
    stop: StopFlag,
    models: HashMap<PathBuf, Arc<CausalLm>>,
    selection: Option<Selection>,
    global: &'a Global,
    args: &'a Args,
}

impl Stage<'_> {
    fn run(&mut self, text: &str, out: &Path) -> anyhow::Result<RunSummary> {
        let (experiment, path) = parse(text, self.global)?;
        let rounds = experiment.federation.rounds.count;
        let lab = lab(text, experiment, &path)?;
        if self.selection.is_none() {
            self.selection = Some(fedllm_client::cli::select_device(&self.args.device)?);
        }
        let selection = self.selection.as_ref().context("no device")?;
        let model = match self.models.get(&path) {
            Some(model) => model.clone(),
            None => {
                let model = lab.load(selection).map_err(explain)?;
                self.models.insert(path, model.clone());
                model
            }
        };
        let quiet = self.global.quiet || self.args.json;
        let mut bar = Bar::new(out, rounds, quiet);
        let summary = lab.run(RunOptions {
            out,
            selection,
            model: Some(model),
            fresh: self.args.fresh,
            stop: &self.stop,
            watcher: &mut bar,
        });
        bar.bar.finish_and_clear();
        summary.map_err(explain)
    }
}

fn parse(text: &str, global: &Global) -> anyhow::Result<(Experiment, PathBuf)> {
    let experiment = parse_experiment(text).code(Code::Config)?;
    let path = match &experiment.federation.model.source {
        ModelSource::Name(name) => {
            let found = fedllm_client::resolve(name, &*global.progress());
            found.map_err(|error| {
                let code = match error.is_network() {
                    true => Code::Network,
                    false => Code::Data,
                };
                let hint = error.hint();
                super::explained(error, code, hint)
            })?
        }
        ModelSource::Path(path) => PathBuf::from(path),
    };
    Ok((experiment, path))
}

fn lab(text: &str, experiment: Experiment, path: &PathBuf) -> anyhow::Result<Lab> {
    let base = Base::open(path).code(Code::Data)?;
    Lab::open(text, experiment, base).map_err(explain)
}

fn explain(error: RunError) -> anyhow::Error {
    let (code, hint) = match &error {
        RunError::Data(data) => (Code::Data, data.hint()),
        RunError::Config(_) | RunError::Base(_) | RunError::Template(_) => (Code::Config, None),
        RunError::Tasks(tasks) => {
            let code = match tasks {
                TasksError::Data { .. } => Code::Data,
                TasksError::Failed(_) => Code::Failure,
                _ => Code::Config,
            };
            (code, tasks.hint().map(str::to_owned))
        }
        RunError::OtherRun(_) => {
            let hint = "choose another --out, or begin anew with --fresh";
            (Code::Config, Some(hint.to_owned()))
        }
        RunError::Simulation(SimulationError::Stopped { .. }) => (Code::Interrupted, None),
        RunError::Store(_)
        | RunError::Simulation(SimulationError::Store(_) | SimulationError::Snapshot(_))
        | RunError::Folder { .. } => {
            let hint = "is the disk full, or was the run's folder changed? --fresh begins anew";
            (Code::Failure, Some(hint.to_owned()))
        }
        _ => (Code::Failure, None),
    };
    super::explained(error, code, hint)
}

fn dry_run(args: &Args, file: &Source<'_>, global: &Global) -> anyhow::Result<()> {
    let text = file.with(&[])?;
    let (experiment, path) = parse(&text, global)?;
    let lab = lab(&text, experiment, &path)?;
    if args.json {
        return super::print_json(lab.table());
    }
    let report = lab.prepared();
    println!("{}", lab.table());
    println!(
        "{} held out; the longest row has {} tokens, the middle one {}, {} were cut",
        lab.held_out(),
        report.longest,
        report.median,
        report.truncated
    );
    for (reason, rows) in report.dropped.iter().chain(&report.bad) {
        println!("{rows} rows left out: {reason}");
    }
    Ok(())
}

fn tell(args: &Args, summary: &RunSummary, out: &Path) -> anyhow::Result<()> {
    if args.json {
        return super::print_json(summary);
    }
    print!("{}", summary_table(summary));
    let outside = summary.wall_seconds - summary.train_seconds;
    println!(
        "\n{} rounds of {} in {:.1} s, {:.1} s of it outside training; adapter {}",
        summary.rounds,
        summary.strategy,
        summary.wall_seconds,
        outside,
        summary.adapter_digest.get(..8).unwrap_or_default()
    );
    println!("{}", out.join("report.html").display());
    Ok(())
}

fn sweep(args: &Args, file: &Source<'_>, stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let arms = grid(&args.sweep);
    // All are checked before the first is trained.
    let mut texts = Vec::with_capacity(arms.len());
    for arm in &arms {
        let text = file.with(arm)?;
        let parsed = parse_experiment(&text);
        let named = || settings::label(arm);
        texts.push((parsed.with_context(named).code(Code::Config)?.name, text));
    }
    let name = texts.first().map_or("sweep", |(name, _)| name.as_str());
    let out = args.out.clone();
    let out = out.unwrap_or_else(|| Path::new("runs").join(format!("{}-sweep", folder_name(name))));
    let mut runs = Vec::with_capacity(arms.len());
    for (index, (arm, (_, text))) in arms.iter().zip(&texts).enumerate() {
        let label = settings::label(arm);
        if !stage.global.quiet {
            eprintln!("run {} of {}: {label}", index + 1, arms.len());
        }
        let summary = stage.run(text, &out.join(folder_name(&label)))?;
        let swept = arm.iter().map(|s| (s.short().to_owned(), s.value.clone()));
        runs.push(SweepRun::new(swept.collect(), &summary));
    }
    let mut table = SweepTable::new(&runs);
    if let Some(baseline) = &args.baseline {
        for metric in table.metrics.clone() {
            table.compare(&metric, baseline).code(Code::Usage)?;
        }
    }
    let json = serde_json::to_string_pretty(&table)?;
    for (name, text) in [
        ("sweep.json", json),
        ("sweep.csv", table.csv()),
        ("sweep.md", table.markdown()),
        ("sweep.html", render_sweep(name, &table)),
    ] {
        let path = out.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if args.json {
        return super::print_json(&table);
    }
    print!("{table}");
    println!("\n{}", out.join("sweep.html").display());
    Ok(())
}

/// A name that is safe as that of a folder.
fn folder_name(name: &str) -> String {
    let safe = |c: char| match c.is_ascii_alphanumeric() || "-_.=".contains(c) {
        true => c,
        false => '-',
    };
    name.chars().map(safe).take(100).collect()
}

/// Rounds on standard error.
struct Bar {
    bar: ProgressBar,
    tells: bool,
}

impl Bar {
    fn new(out: &Path, rounds: u64, quiet: bool) -> Self {
        let bar = ProgressBar::new(rounds);
        if quiet || !std::io::stderr().is_terminal() {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        let template = "{prefix:20} [{bar:24}] round {pos}/{len}  {msg}  {eta}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        let name = out
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        bar.set_prefix(name.unwrap_or_default());
        bar.enable_steady_tick(Duration::from_millis(500));
        Self { bar, tells: !quiet }
    }
}

impl Watcher for Bar {
    fn step(&mut self, client: &str, step: u32, steps: u32, loss: f32) {
        self.bar
            .set_message(format!("{client}: step {step}/{steps}, loss {loss:.3}"));
    }

    fn round(&mut self, round: &RoundMetrics, rounds: u64) {
        self.bar.set_position(round.round + 1);
        if !self.tells {
            return;
        }
        let gap = round.gap.map(|gap| format!(", gap {gap:.2e}"));
        let measured = round.evaluations.iter().map(|scores| {
            let accuracy = scores.accuracy.map(|a| format!(" {:.1} %", 100.0 * a));
            let accuracy = accuracy.unwrap_or_default();
            format!("; {} {:.3}{accuracy}", scores.arm, scores.loss)
        });
        let tasks = round.tasks.iter().filter_map(|one| {
            let (arm, score) = (&one.arm, &one.score);
            Some(format!("; {arm} {:.3} {}", score.value?, score.task))
        });
        let measured: String = measured.take(3).chain(tasks.take(6)).collect();
        let held_out = round.held_out.map(|scores| {
            let (rows, clients) = (scores.rows, scores.clients);
            format!(
                "; {:.3} before it on {rows} rows of {clients} clients",
                scores.loss
            )
        });
        let line = format!(
            "round {}/{rounds}: loss {:.4}, {} of {} updates, drift {:.2}{}{measured}{}",
            round.round + 1,
            round.loss,
            round.updates,
            round.cohort,
            round.drift,
            gap.unwrap_or_default(),
            held_out.unwrap_or_default(),
        );
        match self.bar.is_hidden() {
            true => eprintln!("{line}"),
            false => self.bar.println(line),
        }
    }
}
