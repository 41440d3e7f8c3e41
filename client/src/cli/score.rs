//! `fedllm-client score`: what a model thinks of given texts.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use fedllm_models::lora::read_back;
use fedllm_models::{Batch, CausalLm, Lora, Tokenizer};
use serde::{Deserialize, Serialize};

use super::Global;
use super::model::{load, load_adapter, open_base};
use crate::base::ModelArgs;
use crate::exit::{Code, Explain};

/// Tokens that go through the model at once.
const BATCH_TOKENS: usize = 1024;

/// Arguments of `score`.
#[derive(Debug, clap::Args)]
#[command(
    long_about = "Score prompts and completions: the natural logarithm of each completion token's \
        probability, their sum, and whether greedy decoding would write exactly this completion.\n\n\
        FILE.jsonl has one object a line: {\"prompt\": TEXT, \"completion\": TEXT}, each made tokens by \
        itself, or {\"ids\": [..], \"from\": K} to score the tokens from number K (counted from 0) on.",
    after_help = "Example:\n  \
        echo '{\"prompt\": \"The cat sat\", \"completion\": \" on the mat.\"}' > row.jsonl\n  \
        fedllm-client score --model smollm2-135m-instruct --data row.jsonl --json"
)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// PEFT directory of an adapter.
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Rows to score, one JSON object a line.
    #[arg(long, value_name = "FILE.jsonl")]
    data: PathBuf,
    /// Also give the logits of all tokens after the last one of each row.
    #[arg(long, requires = "json")]
    logits: bool,
}

/// One line of the file.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Text { prompt: String, completion: String },
    Ids { ids: Vec<u32>, from: usize },
}

struct Row {
    ids: Vec<u32>,
    from: usize,
}

/// One line of the answer.
#[derive(Serialize)]
struct Scored<'a> {
    /// The tokens of prompt and completion.
    ids: &'a [u32],
    /// The first scored token.
    from: usize,
    /// Log-probability of each token from `from` on.
    logprobs: Vec<f32>,
    /// Their sum.
    sum: f64,
    /// Whether each of them is the most probable one in its place.
    greedy: bool,
    /// Logits after the last token.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_logits: Option<Vec<f32>>,
}

/// Runs `score`.
pub(crate) fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    let base = open_base(&args.model.model, global)?;
    let rows = read_rows(
        &args.data,
        base.tokenizer(),
        base.checkpoint().config().vocab,
    )
    .code(Code::Data)?;
    let (model, _) = load(&base, &args.model)?;
    let lora = args
        .adapter
        .as_deref()
        .map(|directory| load_adapter(directory, &model))
        .transpose()?;
    let bar = global.bar(rows.len() as u64, "scoring");
    let mut start = 0;
    while start < rows.len() {
        let mut tokens = 0;
        let fits = rows[start..].iter().take_while(|row| {
            tokens += row.ids.len();
            tokens <= BATCH_TOKENS
        });
        let end = start + fits.count().max(1);
        score_batch(
            &rows[start..end],
            &model,
            lora.as_ref(),
            args.logits,
            global,
        )?;
        bar.inc((end - start) as u64);
        start = end;
    }
    bar.finish_and_clear();
    Ok(())
}

fn score_batch(
    rows: &[Row],
    model: &CausalLm,
    lora: Option<&Lora>,
    with_logits: bool,
    global: &Global,
) -> anyhow::Result<()> {
    let mut batch = Batch::default();
    for row in rows {
        batch.push(&row.ids, |i| i >= row.from);
    }
    let mut scores = model.score(&batch, lora).into_iter();
    let lasts: Vec<usize> = batch
        .segments
        .iter()
        .map(|segment| segment.end - 1)
        .collect();
    let logits = with_logits.then(|| read_back(model.logits(&batch, &lasts, lora)));
    let vocabulary = model.config().vocab;
    for (index, row) in rows.iter().enumerate() {
        let targets = &row.ids[row.from..];
        let of_row: Vec<_> = scores.by_ref().take(targets.len()).collect();
        let scored = Scored {
            ids: &row.ids,
            from: row.from,
            logprobs: of_row.iter().map(|score| score.log_prob).collect(),
            sum: of_row.iter().map(|score| f64::from(score.log_prob)).sum(),
            greedy: of_row
                .iter()
                .zip(targets)
                .all(|(score, target)| score.top == *target),
            last_logits: logits
                .as_ref()
                .map(|logits| logits[index * vocabulary..][..vocabulary].to_vec()),
        };
        if global.json {
            global.print_json(&scored)?;
        } else {
            let mark = if scored.greedy { "greedy" } else { "" };
            println!("{:>12.4}  {:>5} tokens  {mark}", scored.sum, targets.len());
        }
    }
    Ok(())
}

fn read_rows(path: &Path, tokenizer: &Tokenizer, vocabulary: usize) -> anyhow::Result<Vec<Row>> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut rows = Vec::new();
    for (index, line) in BufReader::new(file).lines().enumerate() {
        let at = || format!("{}, line {}", path.display(), index + 1);
        let line = line.with_context(at)?;
        if line.trim().is_empty() {
            continue;
        }
        rows.push(row_of(&line, tokenizer, vocabulary).with_context(at)?);
    }
    if rows.is_empty() {
        bail!("{} has no rows", path.display());
    }
    Ok(rows)
}

fn row_of(line: &str, tokenizer: &Tokenizer, vocabulary: usize) -> anyhow::Result<Row> {
    let shape = "expected {\"prompt\": TEXT, \"completion\": TEXT} or {\"ids\": [..], \"from\": K}";
    let row = match serde_json::from_str(line).context(shape)? {
        Line::Text { prompt, completion } => {
            let mut ids = tokenizer.encode(&prompt, true)?;
            let from = ids.len();
            ids.extend(tokenizer.encode(&completion, false)?);
            Row { ids, from }
        }
        Line::Ids { ids, from } => Row { ids, from },
    };
    if row.from == 0 || row.from >= row.ids.len() {
        bail!(
            "{} tokens of which number {} is the first to score: at least one must be before it, and it must be there",
            row.ids.len(),
            row.from
        );
    }
    if let Some(id) = row.ids.iter().find(|id| **id as usize >= vocabulary) {
        bail!("token {id} is not one of the model's {vocabulary}");
    }
    Ok(row)
}
