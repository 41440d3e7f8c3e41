//! PIQA (Bisk et al. 2019, arXiv 1911.11641): how something is done.

use fedllm_shared::Files::FirstOf;

use crate::eval::choose::{self, split};
use crate::eval::row::choice;
use crate::eval::{Item, ItemError, Prompts, Row, Source, Task, layout};

pub(super) static TASK: Task = Task {
    about: "1,838 things to do in the physical world, two ways each",
    prompt: "lm-evaluation-harness 0.4 piqa: the solutions themselves",
    suites: &["commonsense"],
    source: Source {
        hub: &["baber/piqa", "ybisk/piqa", "piqa"],
        folders: &["commonsense_llm_adapters"],
        test: split(
            "validation",
            FirstOf(&[
                &["**/piqa/test.json"],
                &["**/piqa/validation-*.parquet"],
                &["plain_text/validation-*.parquet"],
                &["data/validation-*.parquet"],
                &["plain_text/validation/*.parquet"],
                &["test.json"],
            ]),
        ),
        examples: Some(split(
            "train",
            FirstOf(&[
                &["**/piqa/train-*.parquet"],
                &["plain_text/train-*.parquet"],
                &["data/train-*.parquet"],
                &["plain_text/train/*.parquet"],
            ]),
        )),
        licence: "AFL-3.0",
        ..choose::SOURCE
    },
    ..choose::task("piqa", items)
};

fn items(row: &Row<'_>, _: Prompts) -> Result<Vec<Item>, ItemError> {
    let question = match layout::rewritten(row) {
        Some(question) => question?,
        None => {
            let right = choice(&row.text("label")?, 2, "label")?;
            layout::fields(row, "goal", &["sol1", "sol2"], right)?
        }
    };
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
        let hub = json!({"goal": "Open it: how?", "sol1": "Push.", "sol2": "Pull.", "label": 1});
        let rewritten = json!({
            "instruction": "Please choose the correct solution to the question: Open it: how?\n\n\
                            Solution1: Push.\n\nSolution2: Pull.\n\nAnswer format: \
                            solution1/solution2",
            "answer": "solution2",
        });
        for row in [hub, rewritten] {
            let expected = (
                "Question: Open it: how?\nAnswer:",
                &[" Push.", " Pull."][..],
                1,
            );
            chosen(&TASK, "test.json", &row, expected);
        }
        // The authors' archive has the labels in a file of their own.
        let row = json!({"goal": "a", "sol1": "b", "sol2": "c"});
        let expected = "field `label` is missing; the row has goal, sol1, sol2";
        assert_eq!(refused(&TASK, &row), expected);
    }
}
