//! PubMedQA (Jin et al. 2019, arXiv 1909.06146): whether an abstract says yes to its own title.

use fedllm_shared::Files::FirstOf;
use fedllm_shared::{JsonObject, ReadAs};

use crate::eval::choose::{self, ACCURACY, split};
use crate::eval::layout::Question;
use crate::eval::{Item, ItemError, Prompts, Row, Source, Task};

pub(super) static TASK: Task = Task {
    about: "500 questions (1,000 where the files are not split) that an abstract answers",
    prompt: "lm-evaluation-harness 0.4 pubmedqa: ` yes`, ` no` or ` maybe` after the abstract",
    suites: &["paper", "medical"],
    source: Source {
        hub: &["bigbio/pubmed_qa", "qiaojin/PubMedQA"],
        folders: &[],
        test: split(
            "test",
            FirstOf(&[
                // What the authors' split_dataset.py writes.
                &["**/pubmedqa/data/test_set.json"],
                &["**/test_set.json"],
                &["**/pubmed_qa_labeled_fold0_source/*test*.parquet"],
                &["**/ori_pqal.json"],
                &["**/pqa_labeled/train-*.parquet"],
            ]),
        ),
        examples: Some(split(
            "train",
            FirstOf(&[
                &["**/pqal_fold0/train_set.json"],
                &["**/pubmed_qa_labeled_fold0_source/*train*.parquet"],
            ]),
        )),
        beside: None,
        read_as: ReadAs {
            object: JsonObject::OfRows,
            ..ReadAs::ITSELF
        },
        licence: "MIT",
    },
    metrics: &[ACCURACY],
    ..choose::task("pubmedqa", items)
};

const ANSWERS: [&str; 3] = ["yes", "no", "maybe"];

fn items(row: &Row<'_>, _: Prompts) -> Result<Vec<Item>, ItemError> {
    let (question, contexts) = match row.has("QUESTION") {
        true => (row.text("QUESTION")?, row.texts("CONTEXTS")?),
        false => (
            row.text("question")?,
            row.within("context")?.texts("contexts")?,
        ),
    };
    let prompt = format!(
        "Abstract: {}\nQuestion: {question}\nAnswer:",
        contexts.join("\n")
    );
    let decision = row.text("final_decision")?;
    let right = ANSWERS.iter().position(|answer| *answer == decision.trim());
    let question = Question {
        text: question,
        choices: ANSWERS.map(str::to_owned).to_vec(),
        right: right.ok_or(ItemError::Value {
            field: "final_decision",
            got: decision,
            expected: "yes, no or maybe",
        })?,
    };
    Ok(vec![choose::item(row.id(), prompt, &question)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::tasks::tests::{chosen, refused};
    use serde_json::json;

    #[test]
    fn every_layout_asks_the_same() {
        let authors = json!({
            "QUESTION": "Does it help?", "CONTEXTS": ["We tried.", "It did."], "LABELS": [],
            "final_decision": "maybe", "LONG_ANSWER": "Perhaps.",
        });
        let hub = json!({
            "pubid": 1, "question": "Does it help?", "final_decision": "maybe",
            "context": {"contexts": ["We tried.", "It did."], "labels": []},
        });
        for row in [&authors, &hub] {
            let prompt = "Abstract: We tried.\nIt did.\nQuestion: Does it help?\nAnswer:";
            chosen(
                &TASK,
                "ori_pqal.json",
                row,
                (prompt, &[" yes", " no", " maybe"], 2),
            );
        }
        let mut row = authors;
        row["final_decision"] = json!("perhaps");
        let expected = "field `final_decision` is \"perhaps\", expected yes, no or maybe";
        assert_eq!(refused(&TASK, &row), expected);
    }
}
