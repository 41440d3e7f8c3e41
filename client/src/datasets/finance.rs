//! Financial sentiment from its sources, as FinGPT (Yang et al. 2023, arXiv 2306.06031) asks for
//! it.
//!
//! | source | layout | class |
//! |---|---|---|
//! | Financial PhraseBank (Malo et al. 2014) | a table of class and sentence, with or without a header; `sentence@class`; both Latin-1 | as written |
//! | FiQA 2018, task 1 | an object of sentences, each with one score or more; a table of scores | below -0.1 negative, from 0.1 positive |
//! | Twitter financial news sentiment | a table of `text` and `label` | 0 negative, 1 positive, 2 neutral |
//! | news with GPT instructions | `news` and one of seven labels | mild ones are neutral |
//!
//! A sentence of FiQA that is about two companies has two scores and makes two examples, as in the
//! table that FinGPT reads; it can be good news for one and bad for the other.

use fedllm_models::eval::is_held_out;
use serde_json::{Map, Value};

use super::rows::{one, string};
use super::{Entry, Fields};
use crate::readers::{Format, Record, RowProblem, text};

/// What a class is called, and what a table without a header begins with.
pub(super) const CLASSES: &[&str] = &["negative", "neutral", "positive"];

/// An example, or several, of whatever source the fields show.
pub(super) fn sentiment(fields: &Fields<'_>) -> Result<Vec<Entry>, RowProblem> {
    let row = fields.row;
    let has = |name: &str| row.contains_key(name);
    if has("instruction") && has("output") {
        return super::rows::classified(fields);
    }
    if has("sentence") && (has("info") || has("sentiment_score")) {
        return fiqa(fields);
    }
    if has("news") {
        let class = news_class(&text(row, "label")?)?;
        return Ok(vec![example(
            fields,
            News,
            "nwgi",
            &text(row, "news")?,
            class,
        )?]);
    }
    if has("text") && has("label") {
        let class = numbered(row, ["negative", "positive", "neutral"])?;
        return Ok(vec![example(
            fields,
            Tweet,
            "tfns",
            &text(row, "text")?,
            class,
        )?]);
    }
    phrase(fields)
}

/// What a text is called in the question about it.
#[derive(Clone, Copy)]
enum Medium {
    News,
    Tweet,
}
use Medium::{News, Tweet};

fn example(
    fields: &Fields<'_>,
    medium: Medium,
    source: &str,
    said: &str,
    class: &str,
) -> Result<Entry, RowProblem> {
    if said.trim().is_empty() {
        return Err(RowProblem::Empty { field: "text" });
    }
    let medium = match medium {
        News => "news",
        Tweet => "tweet",
    };
    let record = Record::Instruction {
        instruction: format!(
            "What is the sentiment of this {medium}? Please choose an answer from \
             {{negative/neutral/positive}}."
        ),
        input: said.to_owned(),
        output: class.to_owned(),
    };
    let mut entries = one(fields, record)?;
    let mut entry = entries.remove(0);
    entry.tags.label = Some(class.to_owned());
    entry.tags.source = Some(source.to_owned());
    entry.tags.owner = None; // The key of a sentence is no owner.
    Ok(entry)
}

/// A sentence of FiQA with its scores.
fn fiqa(fields: &Fields<'_>) -> Result<Vec<Entry>, RowProblem> {
    let row = fields.row;
    let sentence = text(row, "sentence")?;
    let file = fields.path.file_name().unwrap_or_default();
    let format = string(row, "format");
    let is_post = match &format {
        Some(format) => format == "post",
        None => file.to_string_lossy().to_lowercase().contains("post"),
    };
    let (medium, source) = match is_post {
        true => (Tweet, "fiqa-post"),
        false => (News, "fiqa-headline"),
    };
    let single = [Value::Object(row.clone())];
    let scored = match row.get("info") {
        Some(Value::Array(info)) => &info[..],
        _ => &single,
    };
    if scored.is_empty() {
        return Err(RowProblem::NoAnswer);
    }
    scored
        .iter()
        .map(|scored| example(fields, medium, source, &sentence, score_class(scored)?))
        .collect()
}

/// The class of a `sentiment_score`, which FiQA writes as a text.
fn score_class(scored: &Value) -> Result<&'static str, RowProblem> {
    const FIELD: &str = "sentiment_score";
    let score = match scored.get(FIELD) {
        Some(Value::String(score)) => score.trim().parse().ok(),
        Some(score) => score.as_f64(),
        None => None,
    };
    match score {
        Some(score) if score < -0.1 => Ok("negative"),
        Some(score) if score < 0.1 => Ok("neutral"),
        Some(score) if score >= 0.1 => Ok("positive"),
        _ => Err(RowProblem::UnknownLabel { field: FIELD }),
    }
}

fn news_class(label: &str) -> Result<&'static str, RowProblem> {
    match label.trim().to_lowercase().as_str() {
        "strong negative" | "moderately negative" | "negative" => Ok("negative"),
        "mildly negative" | "neutral" | "mildly positive" => Ok("neutral"),
        "moderately positive" | "strong positive" | "positive" => Ok("positive"),
        _ => Err(RowProblem::UnknownLabel { field: "label" }),
    }
}

/// The class that a number stands for, or a class by its name.
fn numbered(
    row: &Map<String, Value>,
    classes: [&'static str; 3],
) -> Result<&'static str, RowProblem> {
    let label = string(row, "label").unwrap_or_default();
    let label = label.trim();
    class(label)
        .or_else(|| classes.get(label.parse::<usize>().ok()?).copied())
        .ok_or(RowProblem::UnknownLabel { field: "label" })
}

/// The class of this name.
fn class(name: &str) -> Option<&'static str> {
    let is_named = |class: &&&'static str| class.eq_ignore_ascii_case(name.trim());
    CLASSES.iter().find(is_named).copied()
}

/// A sentence of the Financial PhraseBank, which has no split of its own: a quarter is for tests.
fn phrase(fields: &Fields<'_>) -> Result<Vec<Entry>, RowProblem> {
    let (sentence, class) = parts(fields.row)?;
    let wanted = match fields.split.map(|split| split.name) {
        Some("train") => !is_held_out(&sentence),
        Some("test") => is_held_out(&sentence),
        _ => true,
    };
    match wanted {
        true => Ok(vec![example(fields, News, "fpb", &sentence, class)?]),
        false => Err(RowProblem::OtherSplit),
    }
}

/// Sentence and class, whatever the columns are called.
fn parts(row: &Map<String, Value>) -> Result<(String, &'static str), RowProblem> {
    if row.contains_key("sentence") && row.contains_key("label") {
        let class = numbered(row, ["negative", "neutral", "positive"])?;
        return Ok((text(row, "sentence")?, class));
    }
    let cells: Vec<&str> = row.values().filter_map(Value::as_str).collect();
    match cells[..] {
        [line] => {
            let parts = line.rsplit_once('@');
            let found = parts.and_then(|(text, name)| Some((text.to_owned(), class(name)?)));
            found.ok_or(RowProblem::UnknownLabel { field: "text" })
        }
        [one, other] => match (class(one), class(other)) {
            (Some(class), None) => Ok((other.to_owned(), class)),
            (None, Some(class)) => Ok((one.to_owned(), class)),
            _ => Err(RowProblem::UnknownLabel { field: "label" }),
        },
        // The format's own error names the fields that the row has.
        _ => match Format::detect(row) {
            Err(problem) => Err(problem),
            Ok(_) => Err(RowProblem::UnknownLabel { field: "label" }),
        },
    }
}
