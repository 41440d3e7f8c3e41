//! HellaSwag (Zellers et al. 2019, arXiv 1905.07830): how a description goes on.

use fedllm_shared::Files::FirstOf;

use crate::eval::choose::{self, split};
use crate::eval::layout::Question;
use crate::eval::row::choice;
use crate::eval::{Item, ItemError, Prompts, Row, Source, Task};

pub(super) static TASK: Task = Task {
    about: "10,042 descriptions of films and instructions of WikiHow, four endings each",
    prompt: "lm-evaluation-harness 0.4 hellaswag: the endings themselves, WikiHow's marks removed",
    suites: &["commonsense"],
    source: Source {
        hub: &["Rowan/hellaswag"],
        test: split(
            "validation",
            FirstOf(&[
                &["**/hellaswag_val.jsonl"],
                &["**/hellaswag/validation-*.parquet"],
                &["data/validation-*.parquet"],
            ]),
        ),
        examples: Some(split(
            "train",
            FirstOf(&[
                &["**/hellaswag_train.jsonl"],
                &["**/hellaswag/train-*.parquet"],
                &["data/train-*.parquet"],
            ]),
        )),
        licence: "MIT",
        ..choose::SOURCE
    },
    ..choose::task("hellaswag", items)
};

fn items(row: &Row<'_>, _: Prompts) -> Result<Vec<Item>, ItemError> {
    let label = row.text("activity_label")?;
    let (before, start) = (row.text("ctx_a")?, row.text("ctx_b")?);
    let choices: Vec<String> = row
        .texts("endings")?
        .iter()
        .map(|ending| clean(ending))
        .collect();
    let question = Question {
        text: clean(&format!("{label}: {before} {}", capitalized(&start))),
        right: choice(&row.text("label")?, choices.len(), "label")?,
        choices,
    };
    Ok(vec![choose::item(
        row.id(),
        question.text.clone(),
        &question,
    )])
}

/// The first letter large, all others small.
fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    match letters.next() {
        Some(first) => first
            .to_uppercase()
            .chain(letters.as_str().to_lowercase().chars())
            .collect(),
        None => String::new(),
    }
}

/// Without what WikiHow's markup left in a text.
fn clean(text: &str) -> String {
    let text = text.trim().replace(" [title]", ". ");
    let mut cleaned = String::new();
    let mut rest = &text[..];
    while let Some((before, bracketed)) = rest.split_once('[') {
        cleaned.push_str(before);
        let line = bracketed.split('\n').next().unwrap_or_default();
        rest = match line.find(']') {
            Some(end) => &bracketed[end + 1..],
            None => {
                cleaned.push('[');
                bracketed
            }
        };
    }
    cleaned.push_str(rest);
    cleaned.replace("  ", " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::tasks::tests::{chosen, refused};
    use serde_json::json;

    #[test]
    fn texts_are_cleaned_as_the_harness_does() {
        let row = json!({
            "ind": 4, "activity_label": "Baking",
            "ctx_a": "[header] How to bake [title] Mix it. [step] First",
            "ctx_b": "the Cook", "endings": ["stirs.", " [substeps] sits  down.", "a [b", "c"],
            "label": "1",
        });
        let prompt = "Baking: How to bake. Mix it. First The cook";
        let choices = [" stirs.", "  sits down.", " a [b", " c"];
        chosen(&TASK, "hellaswag_val.jsonl", &row, (prompt, &choices, 1));
    }

    #[test]
    fn a_row_without_a_label_is_refused() {
        let row = json!({
            "activity_label": "", "ctx_a": "", "ctx_b": "", "endings": ["a", "b"], "label": "",
        });
        let expected = "field `label` is \"\", expected the letter or the number of a choice";
        assert_eq!(refused(&TASK, &row), expected);
    }
}
