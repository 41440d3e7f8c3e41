//! The AI2 Reasoning Challenge (Clark et al. 2018, arXiv 1803.05457): science questions of schools.

use fedllm_shared::Files::FirstOf;

use crate::eval::choose::{self, split};
use crate::eval::{Item, ItemError, Prompts, Row, Source, Task, layout};

const PROMPT: &str = "lm-evaluation-harness 0.4 arc_easy and arc_challenge: the choices themselves";

pub(super) static EASY: Task = Task {
    about: "2,376 science questions of schools that are easy to look up",
    prompt: PROMPT,
    suites: &["commonsense"],
    source: Source {
        hub: &["allenai/ai2_arc"],
        folders: &["ARC-Easy", "commonsense_llm_adapters"],
        test: split(
            "test",
            FirstOf(&[
                &["**/ARC-Easy/test-*.parquet"],
                &["**/ARC-Easy-Test.jsonl"],
                &["**/ARC-Easy/test.json"],
                &["test.json"],
            ]),
        ),
        examples: Some(split(
            "train",
            FirstOf(&[
                &["**/ARC-Easy/train-*.parquet"],
                &["**/ARC-Easy-Train.jsonl"],
            ]),
        )),
        licence: "CC BY-SA 4.0",
        ..choose::SOURCE
    },
    ..choose::task("arc-easy", items)
};

pub(super) static CHALLENGE: Task = Task {
    about: "1,172 science questions of schools that neither retrieval nor co-occurrence answers",
    prompt: PROMPT,
    suites: &["commonsense"],
    source: Source {
        hub: &["allenai/ai2_arc"],
        folders: &["ARC-Challenge", "commonsense_llm_adapters"],
        test: split(
            "test",
            FirstOf(&[
                &["**/ARC-Challenge/test-*.parquet"],
                &["**/ARC-Challenge-Test.jsonl"],
                &["**/ARC-Challenge/test.json"],
                &["test.json"],
            ]),
        ),
        examples: Some(split(
            "train",
            FirstOf(&[
                &["**/ARC-Challenge/train-*.parquet"],
                &["**/ARC-Challenge-Train.jsonl"],
            ]),
        )),
        licence: "CC BY-SA 4.0",
        ..choose::SOURCE
    },
    ..choose::task("arc-challenge", items)
};

fn items(row: &Row<'_>, _: Prompts) -> Result<Vec<Item>, ItemError> {
    let question = layout::science(row, "question")?;
    let prompt = format!("Question: {}\nAnswer:", question.text);
    Ok(vec![choose::item(row.id(), prompt, &question)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::tasks::tests::{chosen, refused};
    use serde_json::json;

    #[test]
    fn every_layout_asks_the_same() {
        let hub = json!({
            "id": "x", "question": "Why?", "answerKey": "2",
            "choices": {"text": ["rain", "wind"], "label": ["1", "2"]},
        });
        let authors = json!({
            "question": {"stem": "Why?", "choices": [
                {"text": "rain", "label": "A"}, {"text": "wind", "label": "B"},
            ]},
            "answerKey": "B",
        });
        let rewritten = json!({
            "instruction": "Please choose the correct answer to the question: Why?\n\nAnswer1: \
                            rain Answer2: wind\n\nAnswer format: answer1/answer2",
            "input": "", "output": "the correct answer is answer2", "answer": "answer2",
        });
        for row in [hub, authors, rewritten] {
            let expected = ("Question: Why?\nAnswer:", &[" rain", " wind"][..], 1);
            chosen(&EASY, "test.json", &row, expected);
        }
    }

    #[test]
    fn bad_rows_name_their_field() {
        let row = json!({
            "question": "Why?", "answerKey": "E",
            "choices": {"text": ["a", "b"], "label": ["A", "B"]},
        });
        let expected = "field `answerKey` is \"E\", expected the label of a choice";
        assert_eq!(refused(&CHALLENGE, &row), expected);
        let row = json!({"instruction": "What: x Answer1: a", "answer": "answer1"});
        assert!(refused(&CHALLENGE, &row).starts_with("field `instruction` is "));
        let row = json!({
            "instruction": "What: x\n\nAnswer1: a Answer2: b\n\nAnswer format: answer1/answer2",
            "answer": "answer3",
        });
        let expected = "field `answer` is \"answer3\", expected a word of the answer format";
        assert_eq!(refused(&CHALLENGE, &row), expected);
    }
}
