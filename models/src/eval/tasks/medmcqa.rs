//! MedMCQA (Pal et al. 2022, arXiv 2203.14371): questions of Indian medical entrance examinations.

use fedllm_shared::Files::FirstOf;

use crate::eval::choose::{self, listed, split};
use crate::eval::{Item, ItemError, Prompts, Row, Source, Task, layout};

pub(super) static TASK: Task = Task {
    about: "4,183 questions of Indian medical entrance examinations, four choices each",
    prompt: "lm-evaluation-harness 0.4 medmcqa: letters as choices",
    suites: &["paper", "medical"],
    source: Source {
        hub: &["openlifescienceai/medmcqa", "medmcqa"],
        // The test split has no answers.
        test: split(
            "validation",
            FirstOf(&[
                &["**/medmcqa/validation-*.parquet"],
                &["data/validation-*.parquet"],
                &["**/medmcqa/dev.json"],
                &["**/medmcqa/test.jsonl"],
                &["dev.json"],
                &["test.jsonl"],
            ]),
        ),
        examples: Some(split(
            "train",
            FirstOf(&[
                &["**/medmcqa/train-*.parquet"],
                &["data/train-*.parquet"],
                &["**/medmcqa/train.json"],
                &["train.json"],
            ]),
        )),
        licence: "MIT",
        ..choose::SOURCE
    },
    ..choose::task("medmcqa", items)
};

fn items(row: &Row<'_>, _: Prompts) -> Result<Vec<Item>, ItemError> {
    let question = match row.has("options") {
        true => layout::with_options(row, "question", "answer_idx")?,
        false => layout::fields(row, "question", &["opa", "opb", "opc", "opd"], right(row)?)?,
    };
    let prompt = format!(
        "Question: {}\nChoices:\n{}Answer:",
        question.text,
        listed(&question.choices)
    );
    Ok(vec![choose::lettered(row.id(), prompt, &question)])
}

/// The right option. The authors' files, `train.json` and `dev.json`, count from 1; the hub from 0.
fn right(row: &Row<'_>) -> Result<usize, ItemError> {
    let got = row.text("cop")?;
    let is_authors = row.path.extension().is_some_and(|ending| ending == "json");
    let first = usize::from(is_authors);
    let number = got.trim().parse::<usize>().ok();
    let right = number.and_then(|number| number.checked_sub(first));
    right.filter(|right| *right < 4).ok_or(ItemError::Value {
        field: "cop",
        got,
        expected: match is_authors {
            true => "1 to 4",
            false => "0 to 3",
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::tasks::tests::{chosen, refused};
    use serde_json::json;

    #[test]
    fn every_layout_asks_the_same() {
        let hub = json!({
            "id": "x", "question": "Where?", "opa": "a", "opb": "b", "opc": "c", "opd": "d",
            "cop": 1, "choice_type": "single", "exp": null,
        });
        let mut authors = hub.clone();
        authors["cop"] = json!(2);
        let renamed = json!({
            "question": "Where?", "options": {"A": "a", "B": "b", "C": "c", "D": "d"},
            "answer_idx": "B", "answer": "b",
        });
        let files = ["validation-0.parquet", "dev.json", "test.jsonl"];
        for (row, file) in [&hub, &authors, &renamed].into_iter().zip(files) {
            let prompt = "Question: Where?\nChoices:\nA. a\nB. b\nC. c\nD. d\nAnswer:";
            chosen(&TASK, file, row, (prompt, &[" A", " B", " C", " D"], 1));
        }
        let mut unlabelled = hub;
        unlabelled["cop"] = json!(-1);
        assert_eq!(
            refused(&TASK, &unlabelled),
            "field `cop` is \"-1\", expected 0 to 3"
        );
    }
}
