//! `fedllm-client train`: the training of a federation's client, alone.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow};
use clap::ValueEnum;
use fedllm_models::objective::PreferenceSettings;
use fedllm_models::train::Memory;
use fedllm_models::{ModelConfig, lora};
use fedllm_shared::{
    Adapter, Factors, LocalOptimizer, LocalSpec, LoraSpec, PreferenceLoss, PreferenceMetrics,
    RowKind, Targets,
};
use serde::Serialize;

use super::Global;
use super::model::{TrainingArgs, load, open_base, read_adapter};
use crate::base::{Base, ModelArgs};
use crate::exit::{Code, Explain};
use crate::governor;
use crate::prepare::{PrepareError, PrepareOptions, Vocabulary, shard_or_rows};
use crate::readers::Format;
use crate::shard::Shard;
use crate::template::TemplateName;
use crate::train::{Fit, Schedule, StepReport, TrainError, Trained};

/// Arguments of `train`.
#[derive(Debug, clap::Args)]
#[command(
    long_about = "Train an adapter alone, without a server: what a client of a federation does in its \
        rounds, on the same code. The result is a PEFT directory (adapter_config.json and \
        adapter_model.safetensors) that `fedllm-client generate --adapter`, PEFT and others load.\n\n\
        DATA is a shard of `fedllm-client prepare`, or a file of rows that `prepare` would take. Rows of \
        a chosen and a rejected answer are trained on by direct preference optimization (DPO), \
        compared with the base model, or with --init-adapter on it.",
    after_help = "Example:\n  \
        fedllm-client train --model smollm2-135m-instruct --data notes.jsonl --out my-adapter --steps 50\n  \
        fedllm-client generate --model smollm2-135m-instruct --adapter my-adapter --chat --prompt 'Hello'"
)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// A shard, or a file of rows.
    #[arg(long, value_name = "FILE_OR_SHARD")]
    data: PathBuf,
    /// Directory to write the adapter to; made if it is not there.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Start from this PEFT adapter, with its targets, rank and alpha.
    #[arg(long, value_name = "DIR")]
    init_adapter: Option<PathBuf>,
    /// Projections to adapt [default: q,k,v,o,gate,up,down].
    #[arg(long, value_name = "LIST")]
    targets: Option<Targets>,
    /// Rank of the adapter [default: 8].
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u32).range(1..=1024))]
    rank: Option<u32>,
    /// The scale is alpha / rank [default: 16].
    #[arg(long, value_name = "A")]
    alpha: Option<f32>,
    /// Scale by alpha / sqrt(rank) instead.
    #[arg(long)]
    rslora: bool,
    /// Probability that an input of the adapter is dropped.
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    dropout: f32,
    /// Learning rate, constant.
    #[arg(long, value_name = "RATE", default_value_t = 2e-4)]
    lr: f32,
    /// Rows a step.
    #[arg(long, value_name = "ROWS", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=65536))]
    batch: u32,
    /// Optimizer steps [default: once through the data].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    steps: Option<u32>,
    /// Longer rows are cut.
    #[arg(long, value_name = "N", default_value_t = PrepareOptions::DEFAULT_MAX_TOKENS, value_parser = clap::value_parser!(u32).range(2..))]
    max_tokens: u32,
    /// Clip the gradient to this norm; 0 clips nothing.
    #[arg(long, value_name = "NORM", default_value_t = 1.0)]
    max_grad_norm: f32,
    /// Decoupled weight decay.
    #[arg(long, value_name = "W", default_value_t = 0.0)]
    weight_decay: f32,
    /// For pairs: how strongly the policy is kept near the reference.
    #[arg(long, value_name = "B", default_value_t = 0.1)]
    beta: f32,
    /// For pairs: the share of them that are labelled the wrong way round.
    #[arg(long, value_name = "E", default_value_t = 0.0)]
    label_smoothing: f32,
    /// For pairs: the loss.
    #[arg(long, value_enum, default_value_t = PairLoss::Sigmoid)]
    pair_loss: PairLoss,
    /// How rows become text: alpaca, vicuna, chat or plain [default: chosen by the rows].
    #[arg(long, value_name = "T")]
    template: Option<TemplateName>,
    /// What the rows are [default: detected].
    #[arg(long, value_name = "F")]
    format: Option<Format>,
    /// Count rows that cannot be read instead of stopping at the first.
    #[arg(long)]
    skip_bad_rows: bool,
    /// Seed of the first adapter, the order of rows and dropout.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Take rows in random order; false takes them as they are in the file.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    shuffle: bool,
    #[command(flatten)]
    training: TrainingArgs,
    /// Tokens that go through the model at once; a larger step is accumulated.
    #[arg(long, value_name = "N", default_value_t = Memory::default().micro_batch_tokens)]
    micro_batch_tokens: usize,
    /// Append one JSON line a step: step, loss, grad_norm, tokens, loss_tokens, seconds.
    #[arg(long, value_name = "FILE")]
    log_json: Option<PathBuf>,
}

/// A loss over pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PairLoss {
    /// DPO; with label smoothing cDPO.
    Sigmoid,
    /// SLiC's.
    Hinge,
    /// IPO.
    Ipo,
    /// IPO on log-probabilities averaged over an answer's tokens.
    IpoMean,
}

impl PairLoss {
    fn loss(self) -> PreferenceLoss {
        match self {
            Self::Sigmoid => PreferenceLoss::Sigmoid,
            Self::Hinge => PreferenceLoss::Hinge,
            Self::Ipo => PreferenceLoss::Ipo,
            Self::IpoMean => PreferenceLoss::IpoMean,
        }
    }
}

/// Runs `train`.
pub(crate) fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    let base = open_base(&args.model.model, global)?;
    let (spec, start) = first_adapter(&args, base.checkpoint().config())?;
    let shard = rows(&args, &base)?;
    let local = local(&args, &shard);
    let (model, selection) = load(&base, &args.model)?;
    let device = selection.info.to_string();
    let memory = Memory {
        micro_batch_tokens: args.micro_batch_tokens,
        ..args.training.prepare(&model, &selection)
    };
    let mut fit =
        Fit::new(&model, &device, &spec, &start, None, memory).code(Code::Incompatible)?;
    if shard.kind() == RowKind::Preferences {
        let settings = PreferenceSettings {
            beta: args.beta,
            label_smoothing: args.label_smoothing,
            loss: args.pair_loss.loss(),
        };
        let reference = args.init_adapter.is_some().then_some(&start);
        fit = fit
            .prefer(settings, &spec, reference)
            .code(Code::Incompatible)?;
    }

    let mut log = args.log_json.as_deref().map(StepLog::create).transpose()?;
    let bar = global.bar(local.steps.into(), "training");
    let stop = governor::stop_on_signals();
    let schedule = Schedule {
        local: &local,
        dropout: args.dropout,
        seed: args.seed,
    };
    let outcome = fit.run(&schedule, &shard, &stop, &mut |step| {
        bar.set_message(format!("loss {:.4}", step.loss));
        bar.inc(1);
        if let Some(log) = &mut log {
            log.write(&step);
        }
    });
    bar.finish_and_clear();
    if let Some(log) = log {
        log.finish()?;
    }
    let trained = match outcome {
        // What was learned until then is worth keeping.
        Err(TrainError::Stopped { step, steps }) => {
            tracing::warn!("stopped after step {step} of {steps}");
            None
        }
        other => Some(other.code(Code::Data)?),
    };
    let adapter = fit.adapter()?;
    lora::to_peft(&spec, &adapter, base.checkpoint().name())?
        .write(&args.out)
        .code(Code::Data)?;
    report(&args, global, trained)
}

/// The adapter to start from, and its settings.
fn first_adapter(args: &Args, config: &ModelConfig) -> anyhow::Result<(LoraSpec, Adapter)> {
    if let Some(directory) = &args.init_adapter {
        let (spec, adapter) = read_adapter(directory, config)?;
        let asked = LoraSpec {
            rank: args.rank.unwrap_or(spec.rank),
            alpha: args.alpha.unwrap_or(spec.alpha),
            targets: args.targets.unwrap_or(spec.targets),
            rslora: args.rslora || spec.rslora,
            ..spec.clone()
        };
        if asked != spec {
            let (rank, alpha, targets) = (spec.rank, spec.alpha, spec.targets);
            let found = anyhow!(
                "the adapter to start from has rank {rank}, alpha {alpha}, targets {targets}"
            );
            return Err(found).code(Code::Usage).hint(
                "leave `--rank`, `--alpha`, `--targets` and `--rslora` out, or start without it",
            );
        }
        let spec = LoraSpec {
            dropout: args.dropout,
            seed: args.seed,
            ..spec
        };
        return Ok((spec, adapter));
    }
    let spec = LoraSpec {
        rank: args.rank.unwrap_or(8),
        alpha: args.alpha.unwrap_or(16.0),
        dropout: args.dropout,
        rslora: args.rslora,
        targets: args.targets.unwrap_or(Targets::ALL),
        seed: args.seed,
        train: Factors::Both,
    };
    let layout = Arc::new(lora::layout(config, &spec).code(Code::Incompatible)?);
    let adapter = lora::init(&layout, args.seed)?;
    Ok((spec, adapter))
}

fn rows(args: &Args, base: &Base) -> anyhow::Result<Shard> {
    let vocabulary = Vocabulary {
        tokenizer: base.tokenizer(),
        chat: base.chat(),
    };
    let options = PrepareOptions {
        format: args.format,
        template: args.template,
        max_tokens: args.max_tokens,
        skip_bad_rows: args.skip_bad_rows,
        ..PrepareOptions::new(vec![args.data.clone()])
    };
    let shard = shard_or_rows(&args.data, vocabulary, &options, &mut |_, _| {});
    let hint = shard.as_ref().err().and_then(PrepareError::hint);
    let shard = shard.code(Code::Data);
    match hint {
        Some(hint) => shard.hint(hint),
        None => shard,
    }
}

fn local(args: &Args, shard: &Shard) -> LocalSpec {
    let epoch = (shard.units() as u64)
        .div_ceil(args.batch.into())
        .clamp(1, u32::MAX.into());
    LocalSpec {
        steps: args.steps.unwrap_or(epoch as u32),
        batch: args.batch,
        max_tokens: args.max_tokens,
        lr: args.lr,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: args.weight_decay,
        max_grad_norm: args.max_grad_norm,
        keep_optimizer: false,
        shuffle: args.shuffle,
        optimizer: LocalOptimizer::AdamW,
    }
}

fn report(args: &Args, global: &Global, trained: Option<Trained>) -> anyhow::Result<()> {
    let adapter = args.out.display().to_string();
    if global.json {
        return global.print_json(&serde_json::json!({
            "adapter": adapter,
            "stopped": trained.is_none(),
            "loss_first": trained.as_ref().map(|t| t.metrics.loss_first),
            "loss_last": trained.as_ref().map(|t| t.metrics.loss_last),
            "tokens": trained.as_ref().map(|t| t.metrics.tokens),
            "loss_tokens": trained.as_ref().map(|t| t.loss_tokens),
            "seconds": trained.as_ref().map(|t| t.metrics.seconds),
        }));
    }
    if let Some(Trained { metrics, .. }) = trained {
        println!(
            "loss {:.4} -> {:.4}, {} tokens in {:.1} s ({:.0} a second)",
            metrics.loss_first,
            metrics.loss_last,
            metrics.tokens,
            metrics.seconds,
            metrics.tokens as f64 / metrics.seconds.max(1e-9)
        );
    }
    println!("adapter written to {adapter}");
    Ok(())
}

/// One JSON line a step.
struct StepLog {
    path: PathBuf,
    file: BufWriter<File>,
    failed: Option<std::io::Error>,
}

#[derive(Serialize)]
struct LoggedStep {
    step: u32,
    loss: f32,
    grad_norm: f32,
    tokens: u64,
    loss_tokens: u64,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    preference: Option<PreferenceMetrics>,
}

impl StepLog {
    fn create(path: &Path) -> anyhow::Result<Self> {
        let file = File::create(path)
            .with_context(|| format!("cannot write {}", path.display()))
            .code(Code::Data)?;
        Ok(Self {
            path: path.to_owned(),
            file: BufWriter::new(file),
            failed: None,
        })
    }

    /// Writes a line at once, so that the log can be followed. A failure is kept for
    /// [`Self::finish`]: training goes on without its log.
    fn write(&mut self, step: &StepReport) {
        let line = LoggedStep {
            step: step.step,
            loss: step.loss,
            grad_norm: step.grad_norm,
            tokens: step.tokens,
            loss_tokens: step.loss_tokens,
            seconds: step.seconds,
            preference: step.preference,
        };
        let written = serde_json::to_writer(&mut self.file, &line)
            .map_err(std::io::Error::from)
            .and_then(|()| self.file.write_all(b"\n"))
            .and_then(|()| self.file.flush());
        if let Err(error) = written {
            self.failed.get_or_insert(error);
        }
    }

    fn finish(self) -> anyhow::Result<()> {
        match self.failed {
            None => Ok(()),
            Some(error) => {
                Err(error).with_context(|| format!("cannot write {}", self.path.display()))
            }
        }
    }
}
