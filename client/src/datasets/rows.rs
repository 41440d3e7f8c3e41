//! What the fields of each data set mean.

use serde_json::{Map, Value};

use super::{Entry, Fields, RowTags};
use crate::readers::{Format, Record, RowProblem, text};

type Entries = Result<Vec<Entry>, RowProblem>;

/// `instruction`, `input` and `output`, as they are.
pub(super) fn alpaca(fields: &Fields<'_>) -> Entries {
    one(fields, Format::Alpaca.record(fields.row)?)
}

/// A finance instruction whose answer is a class.
pub(super) fn classified(fields: &Fields<'_>) -> Entries {
    let mut entries = alpaca(fields)?;
    for entry in &mut entries {
        if let Record::Instruction { output, .. } = &entry.record {
            entry.tags.label = Some(output.trim().to_owned());
        }
    }
    Ok(entries)
}

/// Medical flashcards: the constant instruction is dropped, the input is the question.
pub(super) fn flashcards(fields: &Fields<'_>) -> Entries {
    let record = question(fields.row, "input", "output")?;
    one(fields, record)
}

/// `question` and `answer`.
pub(super) fn qa(fields: &Fields<'_>) -> Entries {
    one(fields, Format::Qa.record(fields.row)?)
}

/// Problems of MATH, with their subject as label.
pub(super) fn math(fields: &Fields<'_>) -> Entries {
    let mut entries = one(fields, question(fields.row, "problem", "solution")?)?;
    entries[0].tags.label = string(fields.row, "type");
    Ok(entries)
}

/// `prompt`, `chosen` and `rejected`.
pub(super) fn preference(fields: &Fields<'_>) -> Entries {
    one(
        fields,
        Format::Preference.record_as(fields.row, fields.compat)?,
    )
}

/// Two dialogues of HH-RLHF; the source is the directory that holds the file.
pub(super) fn hh(fields: &Fields<'_>) -> Entries {
    let mut entries = one(fields, Format::Hh.record_as(fields.row, fields.compat)?)?;
    let directory = fields.path.parent().and_then(|parent| parent.file_name());
    entries[0].tags.source = directory.map(|name| name.to_string_lossy().into_owned());
    Ok(entries)
}

/// Rows of FedLLM-Bench, each in a list that its owner's name has. Its test rows have the answer
/// in `reference`.
pub(super) fn owned(fields: &Fields<'_>) -> Entries {
    let row = fields.row;
    let record = match row.contains_key("reference") {
        true => question(row, "instruction", "reference")?,
        false => Format::detect(row)?.record_as(row, fields.compat)?,
    };
    one(fields, record)
}

/// One thing to learn, with the tags that its fields tell.
pub(super) fn one(fields: &Fields<'_>, record: Record) -> Entries {
    Ok(vec![Entry {
        record,
        tags: tags(fields),
        unique: None,
    }])
}

/// The tags of a row whose data set says nothing else about them.
pub(super) fn tags(fields: &Fields<'_>) -> RowTags {
    RowTags {
        label: string(fields.row, "label"),
        source: string(fields.row, "source"),
        owner: fields
            .key
            .map(str::to_owned)
            .or_else(|| string(fields.row, "owner")),
    }
}

/// A field as a text, if it is a text, a number or a truth value.
pub(crate) fn string(row: &Map<String, Value>, field: &str) -> Option<String> {
    match row.get(field)? {
        Value::String(text) => Some(text.clone()),
        value @ (Value::Number(_) | Value::Bool(_)) => Some(value.to_string()),
        _ => None,
    }
}

fn question(
    row: &Map<String, Value>,
    question: &'static str,
    answer: &'static str,
) -> Result<Record, RowProblem> {
    let output = text(row, answer)?;
    if output.trim().is_empty() {
        return Err(RowProblem::Empty { field: answer });
    }
    Ok(Record::Instruction {
        instruction: text(row, question)?,
        input: String::new(),
        output,
    })
}
