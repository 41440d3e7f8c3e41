//! `fedllm-client bench`: how fast this device trains, and what its time goes into.

mod report;
mod table;

use std::slice;

use anyhow::anyhow;
use clap::ValueEnum;
use clap::builder::PossibleValuesParser;
use fedllm_models::device::{self, DeviceChoice, Selection};
use fedllm_models::measure::{
    MeasureError, Operation, Peaks, Workload, base_estimate, measure_peaks, new_adapter,
    time_generation, time_operations, time_steps, training_estimate,
};
use fedllm_models::train::{Memory, Trainer};
use fedllm_models::{BasePrecision, CausalLm, ModelConfig, SHAPES, shape};
use fedllm_shared::RowKind;

use self::report::{GenerationReport, MemoryReport, StepReport, Subject};
use super::Global;
use super::devices;
use super::model::{TrainingArgs, open_base};
use crate::exit::{Code, Explain};

/// What is measured if nothing else is named.
const DEFAULT_MODEL: &str = "smollm2-135m-instruct";
/// Steps before all else: the first allocates, and on a GPU compiles and tunes kernels.
const WARM_UP: usize = 2;
/// Tokens that follow the first new one where generation is measured.
const NEW_TOKENS: usize = 32;

const SHORTER: &str = "take fewer rows (--batch) or shorter ones (--seq), or measure --low-memory; a base in \
     fewer bits is smaller too: --base-precision nf4";

const EXAMPLES: &str = "Examples:
  fedllm-client bench                                  # a step of SmolLM2 on the best device
  fedllm-client bench --roofline --device cpu          # and how far it is from what the device can do
  fedllm-client bench --random-weights llama-3.2-1b --base-precision nf4 --seq 1024 --low-memory
  fedllm-client bench --generate --seq 256             # reading a prompt and writing, instead of training
  fedllm-client bench --json | jq '{tokens_per_second, peak_rss_mib}'";

const LONG_HELP: &str = "\
A step is a training step as `train` and `run` take it: a LoRA adapter on all seven projections of every
layer, AdamW, clipping, `--batch` rows of `--seq` made-up tokens that all carry a loss. With `--objective
dpo` it is a step over `--batch` pairs of such rows, the second half of each being its answer, with the
base as reference.

After two steps to warm up it takes a step, then runs each operation of a step by itself, in turns,
`--steps` times after one round that does not count: the time of 2 * (2 + steps) steps. SmolLM2 takes
half a minute on two cores.

  tokens/s     tokens that go through the model in a second of the middle (median) step
  runs         how often a step does the operation: once a layer, and again where the backward pass
               makes something again
  ms           what all its runs take when they follow each other and nothing comes between, at the
               shapes that a step has, in milliseconds: the median. On the CPU a step trains its rows
               in lanes, a thread each, so the operation runs in as many lanes at once
  share        of the time of a step. `other` is the rest: what a step does between operations, less
               what these gain here from inputs that are still in the caches
  GFLOP/s      useful arithmetic, by the formula: scores that the mask hides and values computed twice
               within an operation do not count
  GB/s         the least traffic, by the formula: inputs and weights, as they are stored, read once,
               results written once
  of roof      with `--roofline`: the time that the operation would take at the device's best, of the
               time that it takes. Its best is bounded by arithmetic or by memory, whichever is slower;
               over 100 % where the caches are faster than the memory

The device's best is measured too, not looked up: a large matrix product of this program (in single
precision; on a GPU also in half) and a pass over more memory than the caches hold. `memory` is the most
that this process held until the end of the first steps, where the system says it, and on a GPU what was
reserved there.

Numbers are those of the machine as it is: a busy or hot one gives others. Compare within one minute.

Examples:
  fedllm-client bench                                  # a step of SmolLM2 on the best device
  fedllm-client bench --roofline --device cpu          # and how far it is from what the device can do
  fedllm-client bench --random-weights llama-3.2-1b --base-precision nf4 --seq 1024 --low-memory
  fedllm-client bench --generate --seq 256             # reading a prompt and writing, instead of training
  fedllm-client bench --json | jq '{tokens_per_second, peak_rss_mib}'";

/// Arguments of `bench`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, after_long_help = LONG_HELP)]
pub(crate) struct Args {
    /// A name of `fedllm-client pull --list`, `org/name` of Hugging Face, a directory or a GGUF file
    /// [default: smollm2-135m-instruct].
    #[arg(long, value_name = "M", conflicts_with = "random_weights")]
    model: Option<String>,
    /// Made-up weights of this shape, as f32 unless `--base-precision` says otherwise: needs no file.
    #[arg(long, value_name = "SHAPE", value_parser = PossibleValuesParser::new(SHAPES))]
    random_weights: Option<String>,
    /// Where to compute: auto, cpu, gpu, a number of `fedllm-client devices`, or part of a name.
    #[arg(long, value_name = "D", default_value = "auto")]
    device: DeviceChoice,
    /// How the frozen base is held: as-stored, f32, f16, int8 or nf4.
    #[arg(long, value_name = "P", default_value_t = BasePrecision::AsStored)]
    base_precision: BasePrecision,
    /// Rows a step, or pairs with `--objective dpo`.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=65536))]
    batch: u32,
    /// Tokens a row, or of the prompt with `--generate`.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(2..=1_048_576))]
    seq: u32,
    /// Rank of the adapter.
    #[arg(long, value_name = "R", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
    rank: u32,
    /// Timed steps; of an odd number the middle one counts.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    steps: u32,
    #[command(flatten)]
    training: TrainingArgs,
    /// What the step minimizes: a loss over rows, or over pairs.
    #[arg(long, value_enum, default_value_t = Objective::Sft)]
    objective: Objective,
    /// Also measure what the device can do at best, and compare.
    #[arg(long)]
    roofline: bool,
    /// Measure greedy generation instead of training: reading the prompt, then 32 tokens.
    #[arg(long, conflicts_with_all = ["batch", "rank", "low_memory", "objective"])]
    generate: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Objective {
    /// Cross-entropy of rows.
    Sft,
    /// Direct preference optimization over pairs.
    Dpo,
}

impl Objective {
    fn name(self) -> &'static str {
        match self {
            Self::Sft => "sft",
            Self::Dpo => "dpo",
        }
    }

    fn rows(self) -> RowKind {
        match self {
            Self::Sft => RowKind::Examples,
            Self::Dpo => RowKind::Preferences,
        }
    }
}

impl Args {
    fn work(&self) -> Workload {
        Workload {
            kind: self.objective.rows(),
            rows: self.batch as usize,
            tokens: self.seq as usize,
        }
    }

    fn memory(&self) -> Memory {
        Memory {
            recompute: self.training.low_memory,
            ..Memory::default()
        }
    }
}

/// Runs `bench`.
pub(crate) fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    let (model, name, selection) = load(&args, global)?;
    if !args.generate {
        args.training.choose_precision(&model, &selection);
    }
    let subject = Subject::new(&args, name, &model, &selection);
    if args.generate {
        return generation(&args, subject, &model, &selection, global);
    }
    let repeats = args.steps as usize;
    let work = args.work();
    let batch = work.batch(model.config().vocab);
    let mut trainer = Trainer::new(&model, new_adapter(&model, args.rank)?, args.memory());
    let operations = Operation::of_step(work.kind).len();
    let bar = global.bar(
        (WARM_UP + (1 + repeats) * (1 + operations)) as u64,
        "warming up",
    );
    let first = slice::from_ref(&batch);
    let warm = time_steps(&mut trainer, first, work.kind, (WARM_UP, 0), &mut || {
        bar.inc(1)
    });
    explained(warm)?;
    // Watched apart from the timed ones, because watching slows it down.
    let watched = device::memory(model.device()).map(|_| {
        let step = || time_steps(&mut trainer, first, work.kind, (1, 0), &mut || {});
        let (step, usage) = device::usage(model.device(), step);
        step.map(|_| usage.dispatches())
    });
    let dispatches = explained(watched.transpose())?;
    // Before operations are taken apart: what a training holds.
    let memory = MemoryReport::now(&model);
    let times = time_operations(&mut trainer, &batch, work.kind, repeats, &mut |next| {
        bar.set_message(next);
        bar.inc(1);
    });
    bar.finish_and_clear();
    let (times, operations) = explained(times)?;
    let mut report = StepReport::new(&args, subject, &model, memory, &batch, &times, &operations);
    report.dispatches = dispatches;
    if let Some(peaks) = peaks(&args, &selection, global)? {
        report.compare(&peaks);
    }
    match global.json {
        true => global.print_json(&report),
        false => global.print(&table::of_step(&report)),
    }
}

/// Measures generation.
fn generation(
    args: &Args,
    subject: Subject,
    model: &CausalLm,
    selection: &Selection,
    global: &Global,
) -> anyhow::Result<()> {
    let row = Workload {
        rows: 1,
        ..args.work()
    };
    let prompt = row.batch(model.config().vocab).ids;
    let repeats = args.steps as usize;
    let bar = global.bar(1 + repeats as u64, "generating");
    let times = time_generation(model, &prompt, NEW_TOKENS, repeats, &mut || bar.inc(1));
    bar.finish_and_clear();
    let tokens = (prompt.len(), NEW_TOKENS);
    let mut report = GenerationReport::new(subject, tokens, &explained(times)?, model);
    if let Some(peaks) = peaks(args, selection, global)? {
        report.compare(&peaks);
    }
    match global.json {
        true => global.print_json(&report),
        false => global.print(&table::of_generation(&report)),
    }
}

/// The device's peaks, if they are wanted.
fn peaks(args: &Args, selection: &Selection, global: &Global) -> anyhow::Result<Option<Peaks>> {
    if !args.roofline {
        return Ok(None);
    }
    let spinner = global.spinner("measuring what the device can do at best");
    let largest = selection.info.memory.largest_buffer_bytes;
    let peaks = measure_peaks(&selection.device, largest);
    spinner.finish_and_clear();
    Ok(Some(explained(peaks.map_err(MeasureError::from))?))
}

/// The model on its device, and its name.
fn load(args: &Args, global: &Global) -> anyhow::Result<(CausalLm, String, Selection)> {
    if let Some((name, config)) = args
        .random_weights
        .as_ref()
        .and_then(|name| Some((name, shape(name)?)))
    {
        let selection = devices::select(&args.device)?;
        let base = base_estimate(&config, args.base_precision);
        ensure_fits(args, &config, base, &selection)?;
        let spinner = global.spinner("making up weights");
        let model = CausalLm::random(&config, args.base_precision, &selection.device)?;
        spinner.finish_and_clear();
        return Ok((model, name.clone(), selection));
    }
    let name = args.model.as_deref().unwrap_or(DEFAULT_MODEL);
    let base = open_base(name, global)?;
    let selection = devices::select(&args.device)?;
    let config = base.checkpoint().config();
    // As stored, the base may stay in its file.
    let bytes = match args.base_precision {
        BasePrecision::AsStored => 0,
        precision => base_estimate(config, precision),
    };
    ensure_fits(args, config, bytes, &selection)?;
    let model = base
        .load(args.base_precision, &selection)
        .code(Code::Data)?;
    Ok((model, name.to_owned(), selection))
}

/// Refuses what cannot fit into the device's memory, where that is known.
fn ensure_fits(
    args: &Args,
    config: &ModelConfig,
    base: u64,
    selection: &Selection,
) -> anyhow::Result<()> {
    let step = match args.generate {
        true => 0,
        false => training_estimate(config, args.rank, &args.work(), &args.memory()),
    };
    let needed = base + step;
    match selection.info.memory.total_bytes {
        Some(total) if needed > total => Err(anyhow!(
            "this needs about {} of memory, and {} has {}",
            table::gib(needed),
            selection.info,
            table::gib(total),
        ))
        .code(Code::Device)
        .hint(SHORTER),
        _ => Ok(()),
    }
}

/// What a device that failed in the middle means for the user.
fn explained<T>(measured: Result<T, MeasureError>) -> anyhow::Result<T> {
    match measured {
        Err(MeasureError::Device(error)) => Err(error).code(Code::Device).hint(SHORTER),
        other => Ok(other?),
    }
}
