//! `fedllm-client prepare`.

use std::path::{Path, PathBuf};

use fedllm_shared::{Compat, RowKind};
use serde::Serialize;

use super::Global;
use super::model::open_base;
use crate::datasets::{self, DATASETS, Dataset, DatasetError};
use crate::exit::{Code, Explain};
use crate::governor::{self, StopFlag};
use crate::prepare::{PrepareError, PrepareOptions, PrepareReport, Vocabulary, prepare_rows};
use crate::readers::Format;
use crate::shard::{Row, RowSink, ShardError, ShardFacts, ShardWriter};
use crate::template::TemplateName;

const ABOUT: &str = "Turn your own texts into a shard: token numbers in one file, read at training \
    time. Nothing leaves this machine, and no text is in the shard's header or in a log.\n\n\
    FILEs are JSON arrays, JSON Lines, CSV and TSV with a header line, plain text with blank lines \
    between its rows, or Parquet (if built in), each also as .gz or .zst. Their size does not \
    matter: they are read once, in constant memory.\n\n\
    Rows are known by their fields:\n  \
    alpaca      instruction, input (optional), output or response\n  \
    messages    messages: a list of {role, content}\n  \
    sharegpt    conversations: a list of {from, value}\n  \
    completion  prompt and completion: two texts, or two lists of messages\n  \
    qa          question, answer\n  \
    text        text\n  \
    preference  prompt, chosen, rejected: texts, or lists of messages that end with the answer\n  \
    hh          chosen, rejected: two dialogues \"\\n\\nHuman: ...\\n\\nAssistant: ...\"\n\n\
    The last two are preferences: each becomes a pair of rows, for objectives like DPO. One shard \
    holds examples or preferences, never both.\n\n\
    Templates:\n  \
    alpaca   one instruction, one answer, as OpenFedLLM writes it\n  \
    vicuna   the same in Vicuna's words; for preferences conversations, too\n  \
    chat     the model's own chat template; every answer is learned\n  \
    plain    nothing is added: texts, and prompts with their completions\n\n\
    An example longer than --max-tokens loses its end; one whose answer would be lost is dropped \
    and counted. A preference keeps at least half of --max-tokens for its answers, and its prompt \
    loses its beginning. All clients of a federation must use one template.";

const EXAMPLES: &str = "Examples:\n  \
    fedllm-client prepare --model smollm2-135m-instruct --data notes.jsonl --out notes.shard\n  \
    fedllm-client prepare --model smollm2-135m-instruct --data a.json b.csv.gz --template alpaca \
    --max-tokens 1024 --skip-bad-rows --out mine.shard\n  \
    fedllm-client prepare --model smollm2-135m-instruct --dataset gsm8k --split train \
    --out gsm8k.shard\n  \
    fedllm-client prepare --model smollm2-135m-instruct --dataset hh-rlhf --data hh-rlhf/ \
    --split harmless-base --template vicuna --compat openfedllm --out pairs.shard";

/// Arguments of `prepare`.
#[derive(Debug, clap::Args)]
#[command(long_about = long_about(), after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The model that will train on the shard: its tokenizer and chat template are used.
    #[arg(long, value_name = "M")]
    model: String,
    /// Files of rows; with --dataset also directories of files [default: the Hugging Face cache].
    #[arg(long, value_name = "FILE", required_unless_present = "dataset", num_args = 1..)]
    data: Vec<PathBuf>,
    /// Read the files as those of a known data set.
    #[arg(long, value_name = "NAME", conflicts_with = "format")]
    dataset: Option<String>,
    /// Which part of the data set to take [default: files whole, of a directory the first split].
    #[arg(long, value_name = "NAME", requires = "dataset")]
    split: Option<String>,
    /// Whose cutting of preferences to follow: paper (at turns) or openfedllm (its split_hh).
    #[arg(long, value_name = "WHOSE", default_value = "paper", value_parser = compat)]
    compat: Compat,
    /// What the rows are, by the names above [default: detected].
    #[arg(long, value_name = "F")]
    format: Option<Format>,
    /// How rows become tokens: alpaca, vicuna, chat or plain [default: chosen by the rows].
    #[arg(long, value_name = "T")]
    template: Option<TemplateName>,
    /// Longer rows are cut.
    #[arg(long, value_name = "N", default_value_t = PrepareOptions::DEFAULT_MAX_TOKENS, value_parser = clap::value_parser!(u32).range(2..))]
    max_tokens: u32,
    /// Count rows that cannot be read instead of stopping at the first.
    #[arg(long)]
    skip_bad_rows: bool,
    /// The shard to write.
    #[arg(long, value_name = "SHARD")]
    out: PathBuf,
}

fn long_about() -> String {
    let sets: Vec<String> = DATASETS
        .iter()
        .map(|set| format!("  {:<24} {}", set.name, set.about))
        .collect();
    format!(
        "{ABOUT}\n\nData sets, by these names or those of the Hugging Face hub:\n{}",
        sets.join("\n")
    )
}

fn compat(name: &str) -> Result<Compat, String> {
    let named = Compat::NAMES.into_iter().find(|(n, _)| *n == name);
    named.map(|(_, compat)| compat).ok_or_else(|| {
        let names = Compat::NAMES.map(|(name, _)| name).join(" or ");
        format!("it is {names}")
    })
}

/// Runs `prepare`.
pub(crate) fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    let dataset = known(args.dataset.as_deref())?;
    let base = open_base(&args.model, global)?;
    let vocabulary = Vocabulary {
        tokenizer: base.tokenizer(),
        chat: base.chat(),
    };
    let options = PrepareOptions {
        files: args.data,
        dataset,
        split: args.split,
        compat: args.compat,
        format: args.format,
        template: args.template,
        max_tokens: args.max_tokens,
        skip_bad_rows: args.skip_bad_rows,
    };
    let written = write(vocabulary, &options, &args.out, global);
    let code = match written {
        Err(PrepareError::Shard(ShardError::Stopped)) => Code::Interrupted,
        _ => Code::Data,
    };
    let hint = written.as_ref().err().and_then(PrepareError::hint);
    let written = written.code(code);
    let (facts, report) = match hint {
        Some(hint) => written.hint(hint),
        None => written,
    }?;
    show(&args.out, facts, &report, global)
}

fn known(name: Option<&str>) -> anyhow::Result<Option<&'static Dataset>> {
    let Some(name) = name else {
        return Ok(None);
    };
    let found = datasets::dataset(name);
    let hint = found.as_ref().err().and_then(DatasetError::hint);
    let found = found.map(Some).code(Code::Usage);
    match hint {
        Some(hint) => found.hint(hint),
        None => found,
    }
}

fn write(
    vocabulary: Vocabulary<'_>,
    options: &PrepareOptions,
    out: &Path,
    global: &Global,
) -> Result<(ShardFacts, PrepareReport), PrepareError> {
    let mut sink = Stoppable {
        writer: ShardWriter::create(out)?,
        stop: governor::stop_on_signals(),
    };
    let bar = global.bytes_bar(0, "preparing");
    let prepared = prepare_rows(vocabulary, options, &mut sink, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let (origin, report) = prepared?;
    Ok((sink.writer.finish(origin)?, report))
}

/// Ends the work at the next row once a signal asked for it, so that no part of a shard is left.
struct Stoppable {
    writer: ShardWriter,
    stop: StopFlag,
}

impl Stoppable {
    fn writer(&mut self) -> Result<&mut ShardWriter, ShardError> {
        match self.stop.is_stopped() {
            true => Err(ShardError::Stopped),
            false => Ok(&mut self.writer),
        }
    }
}

impl RowSink for Stoppable {
    fn push(&mut self, ids: &[u32], loss: &[u8]) -> Result<(), ShardError> {
        self.writer()?.push(ids, loss)
    }

    fn push_pair(&mut self, chosen: Row<'_>, rejected: Row<'_>) -> Result<(), ShardError> {
        self.writer()?.push_pair(chosen, rejected)
    }
}

#[derive(Serialize)]
struct Written<'a> {
    shard: &'a Path,
    bytes: u64,
    #[serde(flatten)]
    report: &'a PrepareReport,
    header: ShardFacts,
}

fn show(
    out: &Path,
    header: ShardFacts,
    report: &PrepareReport,
    global: &Global,
) -> anyhow::Result<()> {
    let bytes = std::fs::metadata(out).map_or(0, |metadata| metadata.len());
    if global.json {
        return global.print_json(&Written {
            shard: out,
            bytes,
            report,
            header,
        });
    }
    println!("{}", table(out, bytes, &header, report));
    Ok(())
}

fn table(out: &Path, bytes: u64, header: &ShardFacts, report: &PrepareReport) -> String {
    let noun = match report.kind {
        RowKind::Examples => "rows",
        RowKind::Preferences => "pairs",
    };
    let mut lines = vec![line("shard", out.display().to_string())];
    let mut add = |name: &str, value: String| lines.push(line(name, value));
    add(
        "",
        format!("{bytes} bytes, content {}", header.content.short()),
    );
    for file in &report.files {
        let (path, format, units) = (file.path.display(), file.format, file.units);
        add("from", format!("{path} ({format}, {units} {noun})"));
        if !file.ignored.is_empty() {
            add(
                "not read",
                format!("the fields {}", file.ignored.join(", ")),
            );
        }
    }
    add("template", report.template.to_string());
    add(noun, report.units.to_string());
    let mean = report.tokens as f64 / report.rows.max(1) as f64;
    add(
        "tokens",
        format!(
            "{}, {mean:.0} a row, median {}, longest {}",
            report.tokens, report.median, report.longest
        ),
    );
    let share = 100.0 * report.loss_tokens as f64 / report.tokens.max(1) as f64;
    add(
        "loss tokens",
        format!(
            "{} ({share:.0} %), median {} a row",
            report.loss_tokens, report.median_loss
        ),
    );
    add(
        "truncated",
        format!(
            "{} {noun}, to {} tokens",
            report.truncated, report.max_tokens
        ),
    );
    for (reason, count) in &report.dropped {
        add("dropped", format!("{count} rows: {reason}"));
    }
    for (reason, count) in &report.bad {
        add("skipped", format!("{count} rows: {reason}"));
    }
    let speed = report.tokens as f64 / report.seconds.max(1e-9);
    add(
        "time",
        format!("{:.1} s, {speed:.0} tokens a second", report.seconds),
    );
    lines.join("\n")
}

fn line(name: &str, value: String) -> String {
    format!("{name:<12} {value}")
}
