//! OpenBookQA (Mihaylov et al. 2018, arXiv 1809.02789): elementary science, the facts not given.

use fedllm_shared::Files::FirstOf;

use crate::eval::choose::{self, split};
use crate::eval::{Item, ItemError, Prompts, Row, Source, Task, layout};

pub(super) static TASK: Task = Task {
    about: "500 questions of elementary science that a fact and common sense answer together",
    prompt: "lm-evaluation-harness 0.4 openbookqa: the choices themselves after the bare question",
    suites: &["commonsense"],
    source: Source {
        hub: &["allenai/openbookqa", "openbookqa"],
        folders: &["commonsense_llm_adapters"],
        test: split(
            "test",
            FirstOf(&[
                &["main/test-*.parquet"],
                &["**/openbookqa/main/test-*.parquet"],
                &["**/OpenBookQA-V1-Sep2018/Data/Main/test.jsonl"],
                &["**/Data/Main/test.jsonl"],
                &["**/openbookqa/test.json"],
                &["test.json"],
            ]),
        ),
        examples: Some(split(
            "train",
            FirstOf(&[
                &["main/train-*.parquet"],
                &["**/openbookqa/main/train-*.parquet"],
                &["**/Data/Main/train.jsonl"],
            ]),
        )),
        licence: "Apache-2.0",
        ..choose::SOURCE
    },
    ..choose::task("openbookqa", items)
};

fn items(row: &Row<'_>, _: Prompts) -> Result<Vec<Item>, ItemError> {
    let question = layout::science(row, "question_stem")?;
    Ok(vec![choose::item(
        row.id(),
        question.text.clone(),
        &question,
    )])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::tasks::tests::chosen;
    use serde_json::json;

    #[test]
    fn every_layout_asks_the_same() {
        let hub = json!({
            "question_stem": "Ice becomes", "answerKey": " B",
            "choices": {"text": ["air", "water"], "label": ["A", "B"]},
        });
        let authors = json!({
            "question": {"stem": "Ice becomes", "choices": [
                {"text": "air", "label": "A"}, {"text": "water", "label": "B"},
            ]},
            "answerKey": "B",
        });
        let rewritten = json!({
            "instruction": "Please choose the correct answer to the question: Ice becomes\n\n\
                            Answer1: air Answer2: water\n\nAnswer format: answer1/answer2",
            "answer": "answer2",
        });
        for row in [hub, authors, rewritten] {
            chosen(
                &TASK,
                "test.json",
                &row,
                ("Ice becomes", &[" air", " water"], 1),
            );
        }
    }
}
