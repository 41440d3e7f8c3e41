//! Social IQa (Sap et al. 2019, arXiv 1904.09728): what people feel and do next.

use fedllm_shared::Files::FirstOf;

use crate::eval::choose::{self, ACCURACY, split};
use crate::eval::layout::{self, Question};
use crate::eval::{Item, ItemError, Prompts, Row, Source, Task};

pub(super) static TASK: Task = Task {
    about: "1,954 questions about situations among people, three answers each",
    prompt: "lm-evaluation-harness 0.4 social_iqa: the answers themselves",
    suites: &["commonsense"],
    source: Source {
        hub: &["lighteval/siqa", "allenai/social_i_qa"],
        folders: &["social_i_qa", "commonsense_llm_adapters"],
        test: split(
            "validation",
            FirstOf(&[
                &["**/social_i_qa/test.json"],
                &["**/siqa/validation-*.parquet"],
                &["data/validation-*.parquet"],
                &["default/validation-*.parquet"],
                &["default/validation/*.parquet"],
                &["test.json"],
            ]),
        ),
        examples: Some(split(
            "train",
            FirstOf(&[
                &["**/siqa/train-*.parquet"],
                &["data/train-*.parquet"],
                &["default/train-*.parquet"],
                &["default/train/*.parquet"],
            ]),
        )),
        licence: "CC BY 4.0",
        ..choose::SOURCE
    },
    metrics: &[ACCURACY],
    ..choose::task("social-iqa", items)
};

fn items(row: &Row<'_>, _: Prompts) -> Result<Vec<Item>, ItemError> {
    let question = match layout::rewritten(row) {
        Some(question) => question?,
        None => fields(row)?,
    };
    let prompt = format!("Q: {}\nA:", question.text);
    Ok(vec![choose::item(row.id(), prompt, &question)])
}

fn fields(row: &Row<'_>) -> Result<Question, ItemError> {
    let right = match row.number("label")? {
        label @ 1..=3 => label - 1,
        label => {
            return Err(ItemError::Value {
                field: "label",
                got: label.to_string(),
                expected: "1, 2 or 3",
            });
        }
    };
    let question = layout::fields(row, "question", &["answerA", "answerB", "answerC"], right)?;
    Ok(Question {
        text: format!("{} {}", row.text("context")?, question.text),
        ..question
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
            "context": "Bo fell.", "question": "How does Bo feel?", "answerA": "sad",
            "answerB": "glad", "answerC": "proud", "label": "1",
        });
        let rewritten = json!({
            "instruction": "Please choose the correct answer to the question: Bo fell. How does Bo \
                            feel?\n\nAnswer1: sad Answer2: glad Answer3: proud\n\nAnswer format: \
                            answer1/answer2/answer3",
            "answer": "answer1",
        });
        for row in [&hub, &rewritten] {
            let prompt = "Q: Bo fell. How does Bo feel?\nA:";
            chosen(
                &TASK,
                "test.json",
                row,
                (prompt, &[" sad", " glad", " proud"], 0),
            );
        }
        let mut row = hub;
        row["label"] = json!("0");
        assert_eq!(
            refused(&TASK, &row),
            "field `label` is \"0\", expected 1, 2 or 3"
        );
    }
}
