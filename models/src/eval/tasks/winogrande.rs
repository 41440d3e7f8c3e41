//! WinoGrande (Sakaguchi et al. 2019, arXiv 1907.10641): which of two names a blank stands for.

use fedllm_shared::Files::FirstOf;

use crate::eval::choose::{self, ACCURACY, split};
use crate::eval::layout::{self, Question};
use crate::eval::{Ask, Gold, Item, ItemError, Prompts, Row, Source, Task};

pub(super) static TASK: Task = Task {
    about: "1,267 sentences with a blank that one of two names fills",
    prompt: "lm-evaluation-harness 0.4 winogrande: the rest of the sentence after either name",
    suites: &["commonsense"],
    source: Source {
        hub: &["allenai/winogrande", "winogrande"],
        folders: &["commonsense_llm_adapters"],
        test: split(
            "validation",
            FirstOf(&[
                &["**/winogrande_xl/validation-*.parquet"],
                &["**/winogrande_1.1/dev.jsonl"],
                &["**/winogrande/dev.jsonl"],
                &["**/winogrande/test.json"],
                &["dev.jsonl"],
                &["test.json"],
            ]),
        ),
        examples: Some(split(
            "train",
            FirstOf(&[
                &["**/winogrande_xl/train-*.parquet"],
                &["**/train_xl.jsonl"],
            ]),
        )),
        licence: "CC BY 4.0",
        ..choose::SOURCE
    },
    metrics: &[ACCURACY],
    ..choose::task("winogrande", items)
};

fn items(row: &Row<'_>, _: Prompts) -> Result<Vec<Item>, ItemError> {
    let (field, question) = match layout::rewritten(row) {
        Some(question) => ("instruction", question?),
        None => ("sentence", fields(row)?),
    };
    let blank = question.text.split_once('_');
    let (before, after) = blank.ok_or_else(|| ItemError::Value {
        field,
        got: question.text.chars().take(40).collect(),
        expected: "a sentence with a `_`",
    })?;
    let names = question.choices.iter();
    let beginnings: Vec<String> = names.map(|name| format!("{before}{name}")).collect();
    let rest = format!(" {}", after.trim());
    Ok(vec![Item {
        id: row.id(),
        cluster: None,
        prompt: beginnings[question.right].clone(),
        answer: rest.clone(),
        ask: Ask::Fill { beginnings, rest },
        gold: Gold::Choice(question.right),
    }])
}

fn fields(row: &Row<'_>) -> Result<Question, ItemError> {
    let answer = row.text("answer")?;
    let right = match answer.trim() {
        "1" => 0,
        "2" => 1,
        _ => {
            return Err(ItemError::Value {
                field: "answer",
                got: answer,
                expected: "1 or 2",
            });
        }
    };
    layout::fields(row, "sentence", &["option1", "option2"], right)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::tasks::tests::{one, refused};
    use serde_json::json;

    #[test]
    fn every_layout_fills_the_blank() {
        let hub = json!({
            "sentence": "Ann thanked Eve because _ helped .", "option1": "Ann", "option2": "Eve",
            "answer": "2",
        });
        let rewritten = json!({
            "instruction": "Please choose the correct answer to fill in the blank to complete the \
                            given sentence: Ann thanked Eve because _ helped .\n\nOption1: Ann \
                            Option2: Eve Answer format: option1/option2",
            "answer": "option2",
        });
        for row in [hub, rewritten] {
            let item = one(&TASK, "dev.jsonl", &row);
            let beginning = |name| format!("Ann thanked Eve because {name}");
            assert_eq!(item.prompt, beginning("Eve"));
            assert_eq!(item.answer, " helped .");
            assert_eq!(item.gold, Gold::Choice(1));
            let beginnings = vec![beginning("Ann"), beginning("Eve")];
            let rest = " helped .".to_owned();
            assert_eq!(item.ask, Ask::Fill { beginnings, rest });
        }
    }

    #[test]
    fn bad_rows_name_their_field() {
        let mut row = json!({"sentence": "No blank", "option1": "a", "option2": "b", "answer": ""});
        assert_eq!(
            refused(&TASK, &row),
            "field `answer` is \"\", expected 1 or 2"
        );
        row["answer"] = json!("1");
        let expected = "field `sentence` is \"No blank\", expected a sentence with a `_`";
        assert_eq!(refused(&TASK, &row), expected);
    }
}
