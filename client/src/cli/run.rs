//! `fedllm-client run`: take part in a federation.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, anyhow};
use fedllm_models::lora;
use fedllm_shared::{Adapter, DeclineReason, ErrorCode, HeldOutScore, LoraSpec};
use serde::Serialize;

use super::model::{TrainingArgs, load, open_base};
use super::run_view::View;
use super::{Global, net_hint, runtime};
use crate::base::{Base, ModelArgs};
use crate::exit::{Code, Explain};
use crate::governor;
use crate::held_out::hold_out;
use crate::ledger::{Ledger, Meter};
use crate::net::{Congestion, DialOptions, NetError, QuicDialer};
use crate::session::{Ending, Session, SessionError, SessionParts};
use crate::shard::{RowSink, Shard, ShardBuilder, ShardError, ShardOrigin};
use crate::state::{Enrollment, StateDir, StateError};
use crate::train::{LoraTrainer, TrainError};
use crate::work::WorkError;

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
#[command(
    long_about = "Take part in a federation that this client has joined: wait until the server asks, \
        train on the shard, send the delta, and wait for the next round. Texts and tokens stay on \
        this machine; `fedllm-client status` lists what was sent.\n\n\
        A lost connection is made again, and an update that was not confirmed is offered again. \
        Ctrl-C leaves after the current step; a second one at once.",
    after_help = "Example:\n  \
        fedllm-client run --shard notes.shard --model smollm2-135m-instruct\n  \
        fedllm-client run --shard notes.shard --model model.gguf --device cpu --once --json\n  \
        fedllm-client run --shard notes.shard --model smollm2-135m-instruct --held-out 5%"
)]
pub(crate) struct Args {
    /// A shard that `prepare` made of your data. Given several times, they are joined in memory.
    #[arg(long, value_name = "SHARD", required = true)]
    shard: Vec<PathBuf>,
    /// Rows that are not trained on: a shard of its own, or a part of the given ones, for example 5%.
    /// Before it trains, the client scores each round's adapter on them and tells the server the mean
    /// loss, the share of rows that are right, and the number of rows. Nothing is held out otherwise.
    #[arg(long, value_name = "SHARD|PERCENT")]
    held_out: Option<HeldOut>,
    /// The federation, if this client has joined several.
    #[arg(long, value_name = "NAME")]
    federation: Option<String>,
    /// Leave after this many updates that the server has received.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_rounds: Option<u64>,
    /// Leave after one update that the server has received.
    #[arg(long, conflicts_with = "max_rounds")]
    once: bool,
    /// Write the shared adapter to this PEFT directory when the run is over.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    training: TrainingArgs,
    /// Train adapters of at most this rank: for machines that cannot train the federation's own. The
    /// federation must offer lower ranks.
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u32).range(1..=1024))]
    max_rank: Option<u32>,
    /// Pace uploads by measured bandwidth (BBR): faster where packets are lost by radio.
    #[arg(long)]
    bbr: bool,
    // Last, because its heading holds for all that follows.
    #[command(flatten)]
    model: ModelArgs,
}

/// Runs `run`.
pub(crate) fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    let enrollment = enrollment(&args, global)?;
    let _lock = enrollment
        .lock()
        .hint("stop the other one, or give this one its own --state and join again")?;
    let base = open_base(&args.model.model, global)?;
    let shard = open_shards(&args.shard, &base, global)?;
    let (shard, held_out) = divide(shard, args.held_out.as_ref(), &base, global)?;
    let (model, selection) = load(&base, &args.model)?;
    let memory = args.training.prepare(&model, &selection);
    let trainer = LoraTrainer::new(
        Arc::new(model),
        base.checkpoint().fingerprint(),
        selection.info.to_string(),
        memory,
    );

    let meter = Meter::new(enrollment.ledger.clone());
    let congestion = if args.bbr {
        Congestion::Bbr
    } else {
        Congestion::Cubic
    };
    let dialer = QuicDialer::new(&enrollment.membership, DialOptions::new(congestion));
    let parts = SessionParts {
        dialer: dialer.code(Code::Network)?,
        trainer: Box::new(trainer),
        shard,
        held_out,
        store: enrollment.rounds(),
        meter: meter.clone(),
        notices: View::new(global).into_notices(),
        stop: governor::stop_on_signals(),
        max_rank: args.max_rank,
        max_rounds: if args.once { Some(1) } else { args.max_rounds },
        seed: seed(),
    };
    let outcome = runtime()?.block_on(async { Session::new(parts)?.run().await });
    let ending = explain(outcome)?;
    let adapter = match &ending {
        Ending::Finished {
            adapter: Some((spec, adapter)),
            ..
        } => write_adapter(args.out.as_deref(), spec, adapter, &base)?,
        _ => None,
    };
    tell(&enrollment, &ending, adapter, &meter.ledger(), global)
}

/// The membership, if its certificate is valid now.
fn enrollment(args: &Args, global: &Global) -> anyhow::Result<Enrollment> {
    let state = StateDir::locate(global.state.clone())?;
    let opened = state.open(args.federation.as_deref());
    let enrollment = match opened {
        Err(error @ StateError::NotEnrolled { .. }) => Err(error)
            .code(Code::Network)
            .hint("ask the operator for a join token, then: fedllm-client join TOKEN"),
        Err(error @ StateError::Ambiguous { .. }) => Err(error)
            .code(Code::Usage)
            .hint("choose one with --federation NAME"),
        other => other.map_err(anyhow::Error::from),
    }?;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    if now > enrollment.facts.not_after {
        let days = (now - enrollment.facts.not_after) / 86_400;
        return Err(NetError::ClientCertificateExpired)
            .with_context(|| {
                format!(
                    "the certificate for {} cannot be used",
                    enrollment.membership.name
                )
            })
            .code(Code::Network)
            .hint(format!("it ended {days} days ago, by this machine's clock"))
            .hint(net_hint(&NetError::ClientCertificateExpired));
    }
    Ok(enrollment)
}

fn open_shards(paths: &[PathBuf], base: &Base, global: &Global) -> anyhow::Result<Shard> {
    let tokenizer = base.tokenizer().fingerprint();
    let mut shards = Vec::new();
    for path in paths {
        let shard = data(Shard::open(path))?;
        data(shard.check_tokenizer(tokenizer))?;
        let bar = global.bytes_bar(0, "checking the shard");
        let verified = shard.verify(|done, total| {
            bar.set_length(total);
            bar.set_position(done);
        });
        bar.finish_and_clear();
        data(verified)?;
        shards.push(shard);
    }
    match <[Shard; 1]>::try_from(shards) {
        Ok([only]) => Ok(only),
        Err(shards) => joined(&shards),
    }
}

/// Several shards as one.
fn joined(shards: &[Shard]) -> anyhow::Result<Shard> {
    let first = shards.first().context("no shard was given")?;
    if shards
        .iter()
        .any(|shard| shard.template() != first.template())
    {
        return Err(anyhow!("the shards were made with different templates"))
            .code(Code::Data)
            .hint("prepare them again with the same --template");
    }
    let mut builder = ShardBuilder::new();
    for shard in shards {
        for unit in 0..shard.units() {
            data(builder.push_unit(shard, unit))?;
        }
    }
    Ok(builder.finish(ShardOrigin {
        tokenizer: first.tokenizer(),
        template: first.template(),
        max_tokens: shards
            .iter()
            .map(|shard| shard.facts().max_tokens)
            .max()
            .unwrap_or_default(),
    }))
}

/// What is trained on, and what is held out.
fn divide(
    shard: Shard,
    held_out: Option<&HeldOut>,
    base: &Base,
    global: &Global,
) -> anyhow::Result<(Shard, Option<Shard>)> {
    let few = HeldOutScore::MIN_ROWS;
    let why = format!("at least {few} rows must be held out: the mean of one row is that row");
    match held_out {
        None => Ok((shard, None)),
        Some(HeldOut::Share(share)) => {
            let (trained, held_out) = hold_out(&shard, *share)
                .with_context(|| {
                    let (percent, rows) = (100.0 * share, shard.units());
                    format!("{percent}% of {rows} rows is too little to hold out")
                })
                .code(Code::Data)
                .hint(why)?;
            Ok((trained, Some(held_out)))
        }
        Some(HeldOut::Shard(path)) => {
            let held_out = open_shards(std::slice::from_ref(path), base, global)?;
            if held_out.kind() != shard.kind() || held_out.template() != shard.template() {
                return Err(anyhow!(
                    "{} has {} and the shard {}, or another template",
                    path.display(),
                    held_out.kind(),
                    shard.kind()
                ))
                .code(Code::Data)
                .hint("prepare both from rows of one kind, with the same --template");
            }
            if held_out.units() < few as usize {
                return Err(anyhow!("{} has {} rows", path.display(), held_out.units()))
                    .code(Code::Data)
                    .hint(why);
            }
            Ok((shard, Some(held_out)))
        }
    }
}

/// What `--held-out` names.
#[derive(Clone, Debug, PartialEq)]
enum HeldOut {
    /// A shard.
    Shard(PathBuf),
    /// This share of the shard that is trained on otherwise.
    Share(f64),
}

impl FromStr for HeldOut {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some(percent) = text.strip_suffix('%') else {
            return Ok(Self::Shard(text.into()));
        };
        match percent.trim().parse::<f64>() {
            Ok(percent) if percent > 0.0 && percent <= 50.0 => Ok(Self::Share(percent / 100.0)),
            _ => Err("a part is above 0% and at most 50%".to_owned()),
        }
    }
}

fn data<T>(result: Result<T, ShardError>) -> anyhow::Result<T> {
    let hint = result.as_ref().err().and_then(ShardError::hint);
    let result = result.code(Code::Data);
    match hint {
        Some(hint) => result.hint(hint),
        None => result,
    }
}

fn write_adapter(
    out: Option<&Path>,
    spec: &LoraSpec,
    adapter: &Adapter,
    base: &Base,
) -> anyhow::Result<Option<PathBuf>> {
    let Some(out) = out else { return Ok(None) };
    lora::to_peft(spec, adapter, base.checkpoint().name())?
        .write(out)
        .code(Code::Data)?;
    Ok(Some(out.to_owned()))
}

/// How it ended, in one line or one object.
fn tell(
    enrollment: &Enrollment,
    ending: &Ending,
    adapter: Option<PathBuf>,
    ledger: &Ledger,
    global: &Global,
) -> anyhow::Result<()> {
    let ended = Ended {
        event: "ended",
        reason: if matches!(ending, Ending::Left) {
            "left"
        } else {
            "finished"
        },
        rounds: ledger.rounds_received - enrollment.ledger.rounds_received,
        sent_bytes: ledger.sent_bytes() - enrollment.ledger.sent_bytes(),
        adapter,
    };
    if global.json {
        return global.print_json(&ended);
    }
    let bytes = indicatif::HumanBytes(ended.sent_bytes);
    let mut text = format!(
        "{}: {} rounds received by the server, {bytes} sent\n",
        ended.reason, ended.rounds
    );
    if let Some(adapter) = &ended.adapter {
        text += &format!("the shared adapter is in {}\n", adapter.display());
    }
    global.print(&text)
}

#[derive(Serialize)]
struct Ended {
    event: &'static str,
    reason: &'static str,
    rounds: u64,
    sent_bytes: u64,
    adapter: Option<PathBuf>,
}

/// Gives an error its exit code, and the user something to do.
fn explain(outcome: Result<Ending, SessionError>) -> anyhow::Result<Ending> {
    let error = match outcome {
        Ok(ending) => return Ok(ending),
        Err(error) => error,
    };
    let (code, hint) = match &error {
        SessionError::Net(error @ NetError::Version { .. }) => {
            (Code::Incompatible, net_hint(error))
        }
        SessionError::Net(error) => (Code::Network, net_hint(error)),
        SessionError::Rejected { code, .. } => rejected(*code),
        SessionError::Unfit(reason) => unfit(*reason),
        SessionError::Training { source, .. } => training(source),
        SessionError::State(_) => (
            Code::Failure,
            "is the disk full, or was the state directory moved? Then mend that and run again"
                .to_owned(),
        ),
    };
    Err(error).code(code).hint(hint)
}

fn rejected(code: ErrorCode) -> (Code, String) {
    let (exit, hint) = match code {
        ErrorCode::Version => (
            Code::Incompatible,
            "install the version of fedllm-client that the operator names",
        ),
        ErrorCode::WrongBase => (
            Code::Incompatible,
            "this federation trains another base model: ask the operator which, and give it as \
             --model (a quantized file of the same model is another one)",
        ),
        ErrorCode::WrongTokenizer => (
            Code::Incompatible,
            "the shard was made for another model: `fedllm-client prepare` it again with the \
             federation's --model",
        ),
        ErrorCode::WrongTemplate => (
            Code::Incompatible,
            "the shard was made with another template: `fedllm-client prepare` it again with the \
             --template that the operator names",
        ),
        ErrorCode::EmptyShard => (
            Code::Data,
            "the shard has no row with a token to learn: look at what `prepare` said",
        ),
        ErrorCode::NotAdmitted => (
            Code::Network,
            "the operator may have revoked this client: ask for a new token and join again",
        ),
        ErrorCode::Replaced => (
            Code::Network,
            "another process uses this client's key; if it is not yours, tell the operator to \
             revoke it",
        ),
        _ => (Code::Failure, "show the operator this message"),
    };
    (exit, hint.to_owned())
}

fn unfit(reason: DeclineReason) -> (Code, String) {
    let hint = match reason {
        DeclineReason::WrongBase | DeclineReason::WrongLayout => {
            "is --model the federation's base model, in the same shape?"
        }
        _ => {
            "the server may be newer: install the version of fedllm-client that the operator names"
        }
    };
    (Code::Incompatible, hint.to_owned())
}

fn training(source: &WorkError) -> (Code, String) {
    match source {
        WorkError::Train(TrainError::Device { .. }) => (
            Code::Device,
            "`fedllm-client devices` tests the devices; `--device cpu` always works".to_owned(),
        ),
        WorkError::Train(TrainError::Data { .. }) => (
            Code::Data,
            "prepare the shard again, with the federation's --max-tokens".to_owned(),
        ),
        WorkError::Fetch(error) => (Code::Network, net_hint(error)),
        _ => (
            Code::Failure,
            "if values are not finite, try --device cpu and --base-precision f32, and tell the \
             operator"
                .to_owned(),
        ),
    }
}

/// Spreads this client's waiting times from the others'.
fn seed() -> u64 {
    getrandom::u64().unwrap_or_else(|_| std::process::id().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_ends_with_a_percent_sign() {
        assert_eq!("5%".parse(), Ok(HeldOut::Share(0.05)));
        assert_eq!(
            "rows.shard".parse(),
            Ok(HeldOut::Shard("rows.shard".into()))
        );
        for wrong in ["0%", "-1%", "51%", "nan%", "some%", "%"] {
            assert!(wrong.parse::<HeldOut>().is_err(), "{wrong}");
        }
    }
}
