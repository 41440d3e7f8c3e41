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

use fedllm_models::eval::finance::{self, Medium, Sentiment};
use fedllm_models::eval::is_held_out;
use serde_json::{Map, Value};

use super::rows::{one, string};
use super::{Entry, Fields};
use crate::readers::{Format, Record, RowProblem, text};

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
        let class = Sentiment::of_mood(&text(row, "label")?);
        let class = class.ok_or(RowProblem::UnknownLabel { field: "label" })?;
        return Ok(vec![example(
            fields,
            Medium::News,
            "nwgi",
            &text(row, "news")?,
            class,
        )?]);
    }
    if has("text") && has("label") {
        let class = numbered(row, Sentiment::OF_TWEETS)?;
        return Ok(vec![example(
            fields,
            Medium::Tweet,
            "tfns",
            &text(row, "text")?,
            class,
        )?]);
    }
    phrase(fields)
}

fn example(
    fields: &Fields<'_>,
    medium: Medium,
    source: &str,
    said: &str,
    class: Sentiment,
) -> Result<Entry, RowProblem> {
    if said.trim().is_empty() {
        return Err(RowProblem::Empty { field: "text" });
    }
    let record = Record::Instruction {
        instruction: medium.question().to_owned(),
        input: said.to_owned(),
        output: class.name().to_owned(),
    };
    let mut entries = one(fields, record)?;
    let mut entry = entries.remove(0);
    entry.tags.label = Some(class.name().to_owned());
    entry.tags.source = Some(source.to_owned());
    entry.tags.owner = None; // The key of a sentence is no owner.
    Ok(entry)
}

/// A sentence of FiQA with its scores.
fn fiqa(fields: &Fields<'_>) -> Result<Vec<Entry>, RowProblem> {
    let row = fields.row;
    let sentence = text(row, "sentence")?;
    let file = fields.path.file_name().unwrap_or_default();
    let medium = Medium::of_fiqa(string(row, "format").as_deref(), &file.to_string_lossy());
    let source = match medium {
        Medium::Tweet => "fiqa-post",
        Medium::News => "fiqa-headline",
    };
    let scores = finance::fiqa_scores(row);
    if scores.is_empty() {
        return Err(RowProblem::NoAnswer);
    }
    let entry = |score: Option<&Value>| {
        let class = score.and_then(Sentiment::of_score);
        let class = class.ok_or(RowProblem::UnknownLabel {
            field: "sentiment_score",
        })?;
        example(fields, medium, source, &sentence, class)
    };
    scores.into_iter().map(entry).collect()
}

/// The class that a number stands for, or a class by its name.
fn numbered(row: &Map<String, Value>, classes: [Sentiment; 3]) -> Result<Sentiment, RowProblem> {
    let label = string(row, "label").unwrap_or_default();
    Sentiment::labelled(&label, classes).ok_or(RowProblem::UnknownLabel { field: "label" })
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
        true => Ok(vec![example(
            fields,
            Medium::News,
            "fpb",
            &sentence,
            class,
        )?]),
        false => Err(RowProblem::OtherSplit),
    }
}

/// Sentence and class, whatever the columns are called.
fn parts(row: &Map<String, Value>) -> Result<(String, Sentiment), RowProblem> {
    if row.contains_key("sentence") && row.contains_key("label") {
        let class = numbered(row, Sentiment::OF_PHRASES)?;
        return Ok((text(row, "sentence")?, class));
    }
    let found = finance::phrase(row).map(|(text, class)| (text.to_owned(), class));
    found.map_err(|cells| match (&cells[..], Format::detect(row)) {
        ([_], _) => RowProblem::UnknownLabel { field: "text" },
        // The format's own error names the fields that the row has.
        ([] | [_, _, _, ..], Err(problem)) => problem,
        _ => RowProblem::UnknownLabel { field: "label" },
    })
}
