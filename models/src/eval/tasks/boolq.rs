//! BoolQ (Clark et al. 2019, arXiv 1905.10044): questions of searchers, answered by a passage.

use fedllm_shared::Files::FirstOf;

use crate::eval::choose::{self, ACCURACY, split};
use crate::eval::layout::Question;
use crate::eval::{Item, ItemError, Prompts, Row, Source, Task};

pub(super) static TASK: Task = Task {
    about: "3,270 yes-or-no questions, each with a passage that answers it",
    prompt: "lm-evaluation-harness 0.4 boolq: ` yes` or ` no`; without a passage if there is none",
    suites: &["commonsense"],
    source: Source {
        hub: &["aps/super_glue", "super_glue", "google/boolq"],
        folders: &["commonsense_llm_adapters"],
        test: split(
            "validation",
            FirstOf(&[
                &["**/boolq/validation-*.parquet"],
                &["**/BoolQ/val.jsonl"],
                &["**/boolq/dev.jsonl"],
                &["**/boolq/test.json"],
                &["data/validation-*.parquet"],
                &["dev.jsonl"],
                &["test.json"],
            ]),
        ),
        examples: Some(split(
            "train",
            FirstOf(&[
                &["**/boolq/train-*.parquet"],
                &["**/BoolQ/train.jsonl"],
                &["**/boolq/train.jsonl"],
                &["data/train-*.parquet"],
            ]),
        )),
        licence: "CC BY-SA 3.0",
        ..choose::SOURCE
    },
    metrics: &[ACCURACY],
    ..choose::task("boolq", items)
};

fn items(row: &Row<'_>, _: Prompts) -> Result<Vec<Item>, ItemError> {
    let question = match row.has("instruction") {
        true => rewritten(row)?,
        false => row.text("question")?,
    };
    let passage = match row.has("passage") {
        true => row.text("passage")? + "\n",
        false => String::new(),
    };
    let prompt = format!("{passage}Question: {question}?\nAnswer:");
    let question = Question {
        text: question,
        choices: vec!["no".to_owned(), "yes".to_owned()],
        right: usize::from(is_true(row)?),
    };
    Ok(vec![choose::item(row.id(), prompt, &question)])
}

/// The question in the instruction of LLM-Adapters, without its question mark.
fn rewritten(row: &Row<'_>) -> Result<String, ItemError> {
    let instruction = row.text("instruction")?;
    let parts = instruction
        .split_once("question: ")
        .and_then(|(_, asked)| asked.rsplit_once("Answer format:"));
    match parts {
        Some((question, _)) => {
            let question = question.trim();
            Ok(question.strip_suffix('?').unwrap_or(question).to_owned())
        }
        None => Err(ItemError::Value {
            field: "instruction",
            got: instruction.chars().take(40).collect(),
            expected: "`question: ` and `Answer format:`",
        }),
    }
}

fn is_true(row: &Row<'_>) -> Result<bool, ItemError> {
    let field = if row.has("label") { "label" } else { "answer" };
    let got = row.text(field)?;
    match got.trim() {
        "1" | "true" | "True" | "yes" => Ok(true),
        "0" | "false" | "False" | "no" => Ok(false),
        _ => Err(ItemError::Value {
            field,
            got,
            expected: "true or false",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::tasks::tests::{chosen, refused};
    use serde_json::json;

    #[test]
    fn every_layout_asks_with_its_passage() {
        let hub =
            json!({"question": "is ice cold", "passage": "Ice is cold.", "label": 1, "idx": 0});
        let authors = json!({
            "question": "is ice cold", "title": "", "answer": true, "passage": "Ice is cold.",
        });
        for row in [hub, authors] {
            let prompt = "Ice is cold.\nQuestion: is ice cold?\nAnswer:";
            chosen(&TASK, "dev.jsonl", &row, (prompt, &[" no", " yes"], 1));
        }
        let rewritten = json!({
            "instruction": "Please answer the following question with true or false, question: is \
                            ice hot?\n\nAnswer format: true/false",
            "answer": "false",
        });
        let prompt = "Question: is ice hot?\nAnswer:";
        chosen(
            &TASK,
            "test.json",
            &rewritten,
            (prompt, &[" no", " yes"], 0),
        );
        let row = json!({"question": "a", "passage": "b", "label": -1});
        assert_eq!(
            refused(&TASK, &row),
            "field `label` is \"-1\", expected true or false"
        );
    }
}
