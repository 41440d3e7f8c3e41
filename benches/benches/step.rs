//! The training step: tokens a second and peak memory, beside a reference program.
//!
//! Each measurement runs in a process of its own, because peak memory is a process's. With
//! `--reference` the two programs alternate, so that both see the same machine.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, bail};
use clap::Parser;
use fedllm_benches::{peak_rss_mib, run_reference};
use fedllm_client::{PrepareOptions, Silent, TemplateName, Vocabulary, resolve, shard_or_rows};
use fedllm_models::device::{self, DeviceChoice};
use fedllm_models::measure::{Workload, median, new_adapter, time_steps};
use fedllm_models::train::{Memory, Trainer};
use fedllm_models::{BasePrecision, Batch, CausalLm, Checkpoint, shape};
use fedllm_shared::RowKind;
use serde::{Deserialize, Serialize};

/// Measures the training step of a LoRA adapter on all seven projections.
#[derive(Clone, Debug, Parser)]
struct Args {
    /// A model: name, directory or GGUF file.
    #[arg(long, default_value = "smollm2-135m-instruct")]
    model: String,
    /// Made-up weights of a shape that `fedllm-client bench --help` lists instead.
    #[arg(long)]
    random_weights: Option<String>,
    /// auto, cpu, gpu or a number of `fedllm-client devices`.
    #[arg(long, default_value = "cpu")]
    device: DeviceChoice,
    /// Rows a step.
    #[arg(long, default_value_t = 4)]
    batch: usize,
    /// Tokens a row.
    #[arg(long, default_value_t = 128)]
    seq: usize,
    /// Rank of the adapter.
    #[arg(long, default_value_t = 8)]
    rank: u32,
    /// Measured steps of each process, after two to warm up.
    #[arg(long, default_value_t = 5)]
    steps: usize,
    /// Processes of each kind.
    #[arg(long, default_value_t = 2)]
    runs: usize,
    /// Only this mode: keep, low-memory or rows.
    // A child is given the parent's arguments and then its own mode.
    #[arg(long, overrides_with = "mode")]
    mode: Option<Mode>,
    /// How the base is held: as-stored, f32, f16, int8 or nf4.
    #[arg(long, default_value_t = BasePrecision::AsStored)]
    base_precision: BasePrecision,
    /// Train on these rows (Alpaca template, at most 512 tokens) and report rows a second.
    #[arg(long)]
    rows: Option<PathBuf>,
    /// A command line that prints JSON with `median_s`; `{mode}` becomes `--gc` in the low-memory mode
    /// and nothing otherwise.
    #[arg(long)]
    reference: Option<String>,
    /// Measure here, in this process.
    #[arg(long, hide = true)]
    child: bool,
    /// Cargo passes this.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Mode {
    /// What the backward pass needs is kept.
    Keep,
    /// Blocks are computed again in the backward pass.
    LowMemory,
    /// Real rows, nothing computed again.
    Rows,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::LowMemory => "low-memory",
            Self::Rows => "rows",
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Measured {
    tokens_per_second: f64,
    rows_per_second: f64,
    seconds: f64,
    peak_rss_mib: u64,
    loss: f32,
}

fn main() -> anyhow::Result<()> {
    if let Some(code) = device::probe::child_entry() {
        std::process::exit(i32::from(code != std::process::ExitCode::SUCCESS));
    }
    let args = Args::parse();
    let modes = match (args.mode, &args.rows) {
        (Some(mode), _) => vec![mode],
        (None, Some(_)) => vec![Mode::Rows],
        (None, None) => vec![Mode::Keep, Mode::LowMemory],
    };
    if args.child {
        println!("{}", serde_json::to_string(&measure(&args, modes[0])?)?);
        return Ok(());
    }
    println!(
        "{:<12} {:>10} {:>10} {:>10} {:>10} {:>10}",
        "mode", "tok/s", "rows/s", "s/step", "peak MiB", "ratio"
    );
    for mode in modes {
        compare(&args, mode)?;
    }
    Ok(())
}

/// Runs our processes and the reference's in turn, and prints a line for each kind.
fn compare(args: &Args, mode: Mode) -> anyhow::Result<()> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..args.runs {
        ours.push(in_child(mode)?);
        if let Some(command) = &args.reference {
            let flag = if mode == Mode::LowMemory { "--gc" } else { "" };
            theirs.push(run_reference(
                &command.replace("{mode}", flag),
                args.batch * args.seq,
            )?);
        }
    }
    let of = |f: fn(&Measured) -> f64| median(&ours.iter().map(f).collect::<Vec<_>>());
    let speed = of(|m| m.tokens_per_second);
    let reference = median(
        &theirs
            .iter()
            .map(|r| r.tokens_per_second)
            .collect::<Vec<_>>(),
    );
    let ratio = if reference > 0.0 {
        format!("{:.2}x", speed / reference)
    } else {
        "-".to_owned()
    };
    println!(
        "{:<12} {:>10.1} {:>10.2} {:>10.3} {:>10.0} {:>10}",
        mode.name(),
        speed,
        of(|m| m.rows_per_second),
        of(|m| m.seconds),
        of(|m| m.peak_rss_mib as f64),
        ratio
    );
    if reference > 0.0 {
        let memory = median(&theirs.iter().map(|r| r.peak_rss_mib).collect::<Vec<_>>());
        println!(
            "{:<12} {:>10.1} {:>10} {:>10} {:>10.0}",
            "  reference", reference, "", "", memory
        );
    }
    Ok(())
}

fn in_child(mode: Mode) -> anyhow::Result<Measured> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(std::env::args_os().skip(1))
        .args(["--child", "--mode", mode.name()]);
    let output = command.output()?;
    if !output.status.success() {
        bail!(
            "the measurement failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    serde_json::from_slice(&output.stdout).context("the measurement printed no result")
}

fn measure(args: &Args, mode: Mode) -> anyhow::Result<Measured> {
    let selection = device::Prober::this_program()?.select(&args.device)?;
    let precision = args.base_precision;
    let rows = Workload {
        kind: RowKind::Examples,
        rows: args.batch,
        tokens: args.seq,
    };
    let (model, batches) = match &args.random_weights {
        Some(name) => {
            let config = shape(name).with_context(|| format!("there is no shape {name}"))?;
            let model = CausalLm::random(&config, precision, &selection.device)?;
            let batches = vec![rows.batch(config.vocab)];
            (model, batches)
        }
        None => {
            let path = resolve(&args.model, &Silent)?;
            let checkpoint = Checkpoint::open(&path)?;
            let batches = match &args.rows {
                Some(file) => real_rows(args, &checkpoint, file)?,
                None => vec![rows.batch(checkpoint.config().vocab)],
            };
            (
                CausalLm::load(&checkpoint, precision, &selection.device)?,
                batches,
            )
        }
    };
    let memory = Memory {
        recompute: mode == Mode::LowMemory,
        ..Memory::default()
    };
    model
        .mixed_precision()
        .set(selection.takes_mixed_precision());
    let mut trainer = Trainer::new(&model, new_adapter(&model, args.rank)?, memory);
    // Real rows differ, so each batch of them is one step; made-up ones are the same each time.
    let repeats = match &args.rows {
        Some(_) => (1, batches.len()),
        None => (2, args.steps),
    };
    let kind = RowKind::Examples;
    let times = time_steps(&mut trainer, &batches, kind, repeats, &mut || {})?;
    let (seconds, steps) = match &args.rows {
        Some(_) => (times.seconds.iter().sum(), batches.len()),
        None => (times.median(), 1),
    };
    let total = |f: fn(&Batch) -> usize| batches.iter().map(f).sum::<usize>() as f64;
    Ok(Measured {
        tokens_per_second: total(Batch::tokens) / seconds,
        rows_per_second: total(|batch| batch.segments.len()) / seconds,
        seconds: seconds / steps as f64,
        peak_rss_mib: peak_rss_mib(),
        loss: times.loss,
    })
}

/// The rows of a file in batches, in file order.
fn real_rows(
    args: &Args,
    checkpoint: &Checkpoint,
    file: &std::path::Path,
) -> anyhow::Result<Vec<Batch>> {
    let tokenizer = checkpoint.tokenizer()?;
    let vocabulary = Vocabulary {
        tokenizer: &tokenizer,
        chat: None,
    };
    let mut options = PrepareOptions::new(vec![file.to_owned()]);
    options.template = Some(TemplateName::Alpaca);
    let shard = shard_or_rows(file, vocabulary, &options, &mut |_, _| {})?;
    let rows: Vec<usize> = (0..shard.rows().min(512)).collect();
    Ok(rows
        .chunks(args.batch)
        .map(|rows| {
            let mut batch = Batch::default();
            for &row in rows {
                let row = shard.row(row);
                batch.push(row.ids, |i| row.loss[i] != 0);
            }
            batch
        })
        .collect())
}
