//! `fedllm-client generate`: talk to a model, with or without an adapter.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use fedllm_models::generate::{Generator, Sampling};
use fedllm_models::template::Message;
use serde::Serialize;

use super::Global;
use super::model::{load, load_adapter, open_base};
use crate::base::{Base, ModelArgs};
use crate::exit::{Code, Explain};

/// Arguments of `generate`.
#[derive(Debug, clap::Args)]
#[command(
    long_about = "Generate text, written as it comes. It ends at the model's end-of-text token or \
        after `--max-tokens`.",
    after_help = "Examples:\n  \
        fedllm-client generate --model smollm2-135m-instruct --chat --prompt 'What causes the tides?'\n  \
        fedllm-client generate --model smollm2-135m-instruct --adapter my-adapter --greedy --prompt 'Once'\n  \
        cat letter.txt | fedllm-client generate --model smollm2-135m-instruct --prompt -"
)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// PEFT directory of an adapter.
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// The text to continue; `-` reads it from standard input.
    #[arg(long, value_name = "TEXT")]
    prompt: String,
    /// Put the prompt into the model's chat template, as the user's message.
    #[arg(long)]
    chat: bool,
    /// With `--chat`: what the model is told first.
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    /// Stop after so many tokens.
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_tokens: usize,
    /// Always take the most probable token.
    #[arg(long, conflicts_with_all = ["temperature", "top_p", "seed"])]
    greedy: bool,
    /// Below 1 is safer, above 1 is wilder.
    #[arg(long, value_name = "T", default_value_t = 0.7)]
    temperature: f32,
    /// Choose among the most probable tokens that together have this probability.
    #[arg(long, value_name = "P", default_value_t = 0.95)]
    top_p: f32,
    /// Seed of the choice.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Go on after the end-of-text token.
    #[arg(long)]
    ignore_eos: bool,
}

/// The answer as JSON.
#[derive(Serialize)]
struct Generated<'a> {
    text: &'a str,
    prompt_ids: &'a [u32],
    ids: &'a [u32],
    finish_reason: &'static str,
    seconds_to_first_token: f64,
    tokens_per_second: f64,
}

/// Runs `generate`.
pub(crate) fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    let started = Instant::now();
    let base = open_base(&args.model.model, global)?;
    let prompt = prompt_ids(&args, &base).code(Code::Data)?;
    let (model, _) = load(&base, &args.model)?;
    let lora = args
        .adapter
        .as_deref()
        .map(|directory| load_adapter(directory, &model))
        .transpose()?;
    let sampling = if args.greedy {
        Sampling::Greedy
    } else {
        Sampling::Nucleus {
            temperature: args.temperature,
            top_p: args.top_p,
            seed: args.seed,
        }
    };
    let ends = &base.tokenizer().special().stop;
    let mut decoder = base.tokenizer().stream(true);
    let (mut ids, mut text) = (Vec::new(), String::new());
    let mut finish_reason = "length";
    let mut first = None;
    for token in Generator::new(&model, lora.as_ref(), &prompt, sampling).take(args.max_tokens) {
        first.get_or_insert_with(Instant::now);
        if ends.contains(&token) && !args.ignore_eos {
            finish_reason = "stop";
            break;
        }
        ids.push(token);
        emit(&decoder.push(token)?, &mut text, global)?;
    }
    emit(&decoder.finish()?, &mut text, global)?;
    if !global.json {
        println!();
        return Ok(());
    }
    let first = first.unwrap_or_else(Instant::now);
    let rest = ids.len().saturating_sub(1) as f64;
    global.print_json(&Generated {
        text: &text,
        prompt_ids: &prompt,
        ids: &ids,
        finish_reason,
        seconds_to_first_token: (first - started).as_secs_f64(),
        tokens_per_second: rest / first.elapsed().as_secs_f64().max(1e-9),
    })
}

fn emit(piece: &str, text: &mut String, global: &Global) -> anyhow::Result<()> {
    text.push_str(piece);
    if !global.json && !piece.is_empty() {
        let mut out = std::io::stdout();
        out.write_all(piece.as_bytes())?;
        out.flush()?;
    }
    Ok(())
}

fn prompt_ids(args: &Args, base: &Base) -> anyhow::Result<Vec<u32>> {
    let mut prompt = args.prompt.clone();
    if prompt == "-" {
        prompt.clear();
        std::io::stdin()
            .read_to_string(&mut prompt)
            .context("cannot read the prompt from standard input")?;
    }
    let ids = if args.chat {
        let template = base
            .chat()
            .with_context(|| format!("{} has no chat template", base.checkpoint().name()))
            .hint("leave `--chat` out to continue the prompt as plain text")?;
        let mut messages = Vec::new();
        messages.extend(
            args.system
                .iter()
                .map(|system| Message::new("system", system)),
        );
        messages.push(Message::new("user", prompt));
        base.tokenizer()
            .encode(&template.render(&messages, true)?, false)?
    } else {
        base.tokenizer().encode(&prompt, true)?
    };
    // A prompt without a token, such as an empty text, continues the beginning of a text.
    let start = base.tokenizer().bos().or(base.tokenizer().eos());
    match (ids.is_empty(), start) {
        (false, _) => Ok(ids),
        (true, Some(start)) => Ok(vec![start]),
        (true, None) => anyhow::bail!("the prompt is empty"),
    }
}
