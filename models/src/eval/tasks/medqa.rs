//! MedQA (Jin et al. 2020, arXiv 2009.13081): questions of the US medical licensing examination.

use fedllm_shared::Files::FirstOf;

use crate::eval::choose::{self, listed, split};
use crate::eval::row::choice;
use crate::eval::{Item, ItemError, Prompts, Row, Source, Task, layout};

const PROMPT: &str = "lm-evaluation-harness 0.4 medqa_4options: letters as choices";

pub(super) static FOUR: Task = Task {
    about: "1,273 questions of the US medical licensing examination, four choices each",
    prompt: PROMPT,
    suites: &["paper", "medical"],
    source: Source {
        hub: &[
            "GBaker/MedQA-USMLE-4-options-hf",
            "GBaker/MedQA-USMLE-4-options",
        ],
        folders: &["medqa"],
        test: split(
            "test",
            FirstOf(&[
                &["**/US/4_options/phrases_no_exclude_test.jsonl"],
                &["**/phrases_no_exclude_test.jsonl"],
                &["**/medqa_test.jsonl"],
                &["test.json"],
                &["**/medqa/test.json"],
                &["data/test-*.parquet"],
            ]),
        ),
        examples: Some(split(
            "train",
            FirstOf(&[
                &["**/phrases_no_exclude_train.jsonl"],
                &["train.json"],
                &["**/medqa/train.json"],
                &["data/train-*.parquet"],
            ]),
        )),
        licence: "MIT",
        ..choose::SOURCE
    },
    ..choose::task("medqa", items)
};

pub(super) static FIVE: Task = Task {
    about: "1,273 questions of the US medical licensing examination, five choices each",
    prompt: PROMPT,
    suites: &["medical"],
    source: Source {
        hub: &["bigbio/med_qa"],
        folders: &["medqa"],
        test: split(
            "test",
            FirstOf(&[
                &["**/questions/US/test.jsonl"],
                &["**/US/test.jsonl"],
                &["**/medqa_5options_test.jsonl"],
                &["med_qa_en_source/*test*.parquet"],
            ]),
        ),
        examples: Some(split(
            "train",
            FirstOf(&[
                &["**/US/train.jsonl"],
                &["med_qa_en_source/*train*.parquet"],
            ]),
        )),
        licence: "MIT",
        ..choose::SOURCE
    },
    ..choose::task("medqa-5", items)
};

fn items(row: &Row<'_>, _: Prompts) -> Result<Vec<Item>, ItemError> {
    let question = match row.has("ending0") {
        true => {
            let right = choice(&row.text("label")?, 4, "label")?;
            layout::fields(
                row,
                "sent1",
                &["ending0", "ending1", "ending2", "ending3"],
                right,
            )?
        }
        false => layout::with_options(row, "question", "answer_idx")?,
    };
    let prompt = format!(
        "Question: {}\n{}Answer:",
        question.text,
        listed(&question.choices)
    );
    Ok(vec![choose::lettered(row.id(), prompt, &question)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::tasks::tests::{chosen, refused};
    use serde_json::json;

    #[test]
    fn every_layout_asks_the_same() {
        let hub = json!({
            "id": "test-00000", "sent1": "What helps?", "sent2": "", "ending0": "a", "ending1": "b",
            "ending2": "c", "ending3": "d", "label": 2,
        });
        let authors = json!({
            "question": "What helps?", "answer": "c", "meta_info": "step1", "answer_idx": "C",
            "options": {"B": "b", "A": "a", "C": "c", "D": "d"},
        });
        let listed = json!({
            "question": "What helps?", "answer": "c", "answer_idx": "C",
            "options": [{"key": "A", "value": "a"}, {"key": "B", "value": "b"},
                        {"key": "C", "value": "c"}, {"key": "D", "value": "d"}],
        });
        for row in [hub, authors, listed] {
            let prompt = "Question: What helps?\nA. a\nB. b\nC. c\nD. d\nAnswer:";
            chosen(
                &FOUR,
                "test.json",
                &row,
                (prompt, &[" A", " B", " C", " D"], 2),
            );
        }
    }

    #[test]
    fn five_options_have_five_letters() {
        let mut row = json!({
            "question": "Which?", "answer_idx": "E",
            "options": {"A": "a", "B": "b", "C": "c", "D": "d", "E": "e"},
        });
        let prompt = "Question: Which?\nA. a\nB. b\nC. c\nD. d\nE. e\nAnswer:";
        chosen(
            &FIVE,
            "test.jsonl",
            &row,
            (prompt, &[" A", " B", " C", " D", " E"], 4),
        );
        row["answer_idx"] = json!("F");
        let expected = "field `answer_idx` is \"F\", expected the letter or the number of a choice";
        assert_eq!(refused(&FIVE, &row), expected);
        row["options"] = json!({"A": "a"});
        assert_eq!(
            refused(&FIVE, &row),
            "field `options` is not two to ten choices"
        );
    }
}
