//! `quickstart`: the whole of it on one machine, and whether it helped.

mod evaluate;
mod federation;
mod lab;
mod owners;
mod report;
mod view;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, ensure};
use fedllm_client::{Code, Explain, Shard, StopFlag};
use fedllm_models::device::DeviceChoice;
use fedllm_shared::{Adapter, StrategyKind};

use self::lab::{Bench, Lab};
use self::owners::{OWNERS, Owner};
use self::report::{OwnerScore, Report, Score, Seconds, Settings};
use self::view::View;
use super::Global;
use crate::Folder;

/// See all of it at once: a real server and three real clients on this machine.
///
/// Three owners each have a small instruction set of their own: a harbour office, a seed library, a
/// bicycle workshop. A server and three client processes train one adapter over QUIC with mutual
/// TLS; then each owner trains alone for the same number of steps. On rows that nobody trained on,
/// the base model, each owner alone and the federation are compared. Takes minutes on a laptop.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  fedllm-server quickstart
  fedllm-server quickstart --rounds 6 --out my-quickstart --json report.json")]
pub(crate) struct Args {
    /// The base model: a name of the catalog, or a directory or GGUF file.
    #[arg(
        long,
        value_name = "NAME_OR_PATH",
        default_value = "smollm2-135m-instruct"
    )]
    model: String,
    /// Where everything goes: shards, the server's folder, the adapter. What an earlier quickstart
    /// left there is replaced.
    #[arg(long, value_name = "DIR", default_value = "fedllm-quickstart")]
    out: PathBuf,
    /// Rounds of the federation.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Optimizer steps of an owner in a round.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1000))]
    steps: u32,
    /// Rows in a step.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    batch: u32,
    /// The learning rate of the first round; it falls by a cosine.
    #[arg(long, value_name = "RATE", default_value_t = 3e-3)]
    lr: f32,
    /// The server's algorithm: fedavg, fedprox, scaffold, fedavgm, fedadagrad, fedyogi, fedadam, or
    /// local, which averages nothing.
    #[arg(long, value_name = "NAME", default_value = "fedavg")]
    strategy: String,
    /// Where to compute: auto, cpu, gpu, or a device's number or name.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: DeviceChoice,
    /// One round of one step: shows that everything works, too short to learn from.
    #[arg(long)]
    quick: bool,
    /// Also write everything that was measured to this file, as one JSON object.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Args {
    fn is_local(&self) -> bool {
        self.strategy == StrategyKind::Local.name()
    }

    /// Rounds, and steps of an owner in each.
    fn extent(&self) -> (u32, u32) {
        match self.quick {
            true => (1, 1),
            false => (self.rounds, self.steps),
        }
    }
}

/// What the parts of a quickstart share.
struct Plan {
    /// The model's file or directory.
    model: PathBuf,
    /// The device that was asked for.
    device: DeviceChoice,
    /// The directory of everything.
    out: PathBuf,
    /// The shards to train on, in the owners' order.
    shards: Vec<PathBuf>,
    /// Raised by Ctrl-C.
    stop: StopFlag,
}

pub(crate) fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    let report = quickstart(&args, global)?;
    if let Some(path) = &args.json {
        let json = serde_json::to_string_pretty(&report)?;
        fs::write(path, json + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    conclude(&args, &report);
    Ok(())
}

fn quickstart(args: &Args, global: &Global) -> anyhow::Result<Report> {
    let runtime = tokio::runtime::Runtime::new().context("the network cannot be used")?;
    let mut clock = Instant::now();
    let mut seconds = Seconds::default();
    let mut plan = Plan {
        model: find_model(&args.model, global)?,
        device: args.device.clone(),
        out: fresh_directory(&args.out)?,
        shards: Vec::new(),
        stop: fedllm_client::stop_on_signals(),
    };
    seconds.model = lap(&mut clock);

    let mut view = View::new(global.quiet, args.extent().1);
    let folder = federation::found(args, &plan.model, &plan.out.join("server"))?;
    let lab = Lab::open(&plan.model, folder.federation())?;
    let held_out = prepare(&lab, &mut plan, &view)?;
    seconds.prepare = lap(&mut clock);

    view.say(match args.is_local() {
        true => "three owners, each for itself: one server, three clients, QUIC with mutual TLS",
        false => "a federation of three: one server, three clients, QUIC with mutual TLS",
    });
    let rounds = federation::serve(&plan, &folder, &runtime, &mut view)?;
    seconds.federation = lap(&mut clock);

    let bench = lab.load(&plan.device)?;
    let trained = match args.is_local() {
        true => Trained::apart(&bench, &plan, &folder)?,
        false => Trained::together(&bench, &plan, &folder, &view)?,
    };
    seconds.local = lap(&mut clock);

    view.say("all of them on rows that nobody trained on");
    let measure = |name: &str, adapter: Option<&Adapter>| {
        let score = bench.score(adapter, &held_out)?;
        view.say(&format!("  {name:16} loss {:.3}", score.loss));
        anyhow::Ok(score)
    };
    let report = Report {
        model: args.model.clone(),
        device: bench.device().to_owned(),
        base: measure("base", None)?,
        local: score_alone(&trained.alone, measure)?,
        federated: match &trained.federated {
            Some(adapter) => Some(measure("federated", Some(adapter))?),
            None => None,
        },
        rounds,
        adapter: trained.path,
        settings: settings(args, &folder),
        seconds,
    };
    seconds.evaluate = lap(&mut clock);
    seconds.total = seconds.prepare + seconds.federation + seconds.local + seconds.evaluate;
    Ok(Report { seconds, ..report })
}

/// The model's path; what is not here is downloaded.
fn find_model(name: &str, global: &Global) -> anyhow::Result<PathBuf> {
    fedllm_client::resolve(name, &*global.progress()).or_else(|error| {
        let code = match error.is_network() {
            true => Code::Network,
            false => Code::Data,
        };
        let hint = error.hint();
        let failed = Err(error).code(code);
        match hint {
            Some(hint) => failed.hint(hint),
            None => failed,
        }
    })
}

/// Turns the owners' rows into shards: files to train on, memory to measure on.
fn prepare(lab: &Lab, plan: &mut Plan, view: &View) -> anyhow::Result<Vec<(&'static str, Shard)>> {
    let data = plan.out.join("data");
    fs::create_dir_all(&data)?;
    let mut held_out = Vec::new();
    for owner in OWNERS {
        let (train, test) = owner.write(&data)?;
        let shard = data.join(format!("{}.shard", owner.name));
        lab.prepare(train, &shard)?;
        plan.shards.push(shard);
        held_out.push((owner.name, lab.rows(test)?));
        view.say(&format!("  {:10} {}", owner.name, owner.about));
    }
    Ok(held_out)
}

/// What there is to measure.
struct Trained {
    /// Each owner's own adapter.
    alone: Vec<Adapter>,
    /// The federation's, unless its strategy averages nothing.
    federated: Option<Adapter>,
    /// A PEFT directory to try out: the federation's adapter, or else the first owner's.
    path: PathBuf,
}

impl Trained {
    /// The federation's adapter, and those of owners who train here for as many steps.
    fn together(
        bench: &Bench<'_>,
        plan: &Plan,
        folder: &Folder,
        view: &View,
    ) -> anyhow::Result<Self> {
        view.say("each owner alone, with as many steps");
        let alone = train_alone(bench, plan, view)?;
        let path = plan.out.join("adapter");
        federation::export(folder, None, &path)?;
        let federated = Some(bench.read(&path)?);
        Ok(Self {
            alone,
            federated,
            path,
        })
    }

    /// The owners' own adapters, as the server of `--strategy local` keeps them.
    fn apart(bench: &Bench<'_>, plan: &Plan, folder: &Folder) -> anyhow::Result<Self> {
        let path_of = |owner: &Owner| plan.out.join("adapters").join(owner.name);
        let own = OWNERS.iter().map(|owner| {
            federation::export(folder, Some(owner.name), &path_of(owner))?;
            bench.read(&path_of(owner))
        });
        Ok(Self {
            alone: own.collect::<anyhow::Result<_>>()?,
            federated: None,
            path: path_of(&OWNERS[0]),
        })
    }
}

/// Each owner's own adapter: the same first adapter, rows, steps and learning rate, but no others.
fn train_alone(bench: &Bench<'_>, plan: &Plan, view: &View) -> anyhow::Result<Vec<Adapter>> {
    let shards = plan.shards.iter().enumerate();
    let trained = shards.map(|(owner, shard)| {
        let trained = bench.train(shard, &plan.stop, &mut |step| view.step(owner, &step));
        match plan.stop.is_stopped() {
            true => trained.code(Code::Interrupted),
            false => trained,
        }
    });
    trained.collect()
}

fn score_alone(
    alone: &[Adapter],
    measure: impl Fn(&str, Option<&Adapter>) -> anyhow::Result<Score>,
) -> anyhow::Result<Vec<OwnerScore>> {
    let scores = OWNERS.iter().zip(alone).map(|(owner, adapter)| {
        let score = measure(&format!("{} alone", owner.name), Some(adapter))?;
        let owner = owner.name.to_owned();
        Ok(OwnerScore { owner, score })
    });
    scores.collect()
}

fn settings(args: &Args, folder: &Folder) -> Settings {
    let (rounds, steps) = args.extent();
    Settings {
        strategy: args.strategy.clone(),
        rounds,
        steps,
        batch: args.batch,
        lr: args.lr,
        rank: folder.federation().lora.rank,
    }
}

/// Seconds since the last lap.
fn lap(clock: &mut Instant) -> f64 {
    let now = Instant::now();
    now.duration_since(std::mem::replace(clock, now))
        .as_secs_f64()
}

/// Says that a directory is a quickstart's, which the next one may replace.
const MARKER: &str = ".fedllm-quickstart";

/// Makes the directory, or empties one that an earlier quickstart made.
fn fresh_directory(path: &Path) -> anyhow::Result<PathBuf> {
    if path.exists() {
        ensure_replaceable(path).hint("choose an empty or new directory with --out")?;
        fs::remove_dir_all(path).with_context(|| format!("cannot empty {}", path.display()))?;
    }
    fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
    fs::write(
        path.join(MARKER),
        "The next quickstart replaces this directory.\n",
    )?;
    path.canonicalize().context("the new directory is gone")
}

fn ensure_replaceable(path: &Path) -> anyhow::Result<()> {
    let mut entries =
        fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
    let ours = path.join(MARKER).exists() || entries.next().is_none();
    ensure!(ours, "{} is not a quickstart's directory", path.display());
    Ok(())
}

/// The table, and what to do next.
fn conclude(args: &Args, report: &Report) {
    println!();
    print!("{}", report.table());
    println!();
    match report.federation_wins() {
        _ if args.is_local() => println!(
            "Nothing was averaged: each owner trained alone. Another --strategy compares them with a federation."
        ),
        true => println!("The federation beats the base model and every owner alone on all rows."),
        false => println!("The federation did not win this time; try more rounds or steps."),
    }
    println!(
        "Trained and measured in {:.0} s on {}.",
        report.seconds.total, report.device
    );
    let Some(prompt) = OWNERS.first().and_then(Owner::example) else {
        return;
    };
    println!("\nTalk to the adapter:");
    println!(
        "  fedllm-client generate --model {} --adapter {} --chat --greedy --prompt '{prompt}'",
        args.model,
        report.adapter.display()
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_of_a_quickstart_are_replaced() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("out");
        fresh_directory(&path).unwrap();
        fs::write(path.join("old"), "").unwrap();
        fresh_directory(&path).unwrap();
        assert!(!path.join("old").exists());

        let other = parent.path().join("other");
        fs::create_dir(&other).unwrap();
        fresh_directory(&other).unwrap();
        fs::remove_file(other.join(MARKER)).unwrap();
        fs::write(other.join("thesis"), "").unwrap();
        assert!(fresh_directory(&other).is_err());
        assert!(other.join("thesis").exists());
    }
}
