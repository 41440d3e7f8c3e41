//! How well a model predicts any text.

use fedllm_shared::Files::AnyOf;

use crate::eval::choose::{self, split};
use crate::eval::{Ask, Gold, Grade, Grader, Item, ItemError, Measure, Metric, Prompts, Reply};
use crate::eval::{Row, Scale, Source, Task};

pub(super) static TASK: Task = Task {
    about: "any text: of .txt each block between blank lines, of other files the field `text`",
    prompt: "the text itself, no prompt",
    suites: &[],
    source: Source {
        test: split(
            "test",
            AnyOf(&[
                "**/*.txt",
                "**/*.jsonl",
                "**/*.json",
                "**/*.csv",
                "**/*.parquet",
            ]),
        ),
        licence: "that of the text",
        ..choose::SOURCE
    },
    grader: Grader::Direct(grade),
    metrics: &[Metric {
        name: "perplexity",
        measure: Measure::Perplexity,
        scale: Scale::Loss,
    }],
    ..choose::task("perplexity", items)
};

fn items(row: &Row<'_>, _: Prompts) -> Result<Vec<Item>, ItemError> {
    let text = row.text_of(&["text", "content", "page", "passage"])?;
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    Ok(vec![Item {
        id: format!("{}/{}", row.stem(), row.id()),
        cluster: None,
        prompt: text,
        answer: String::new(),
        ask: Ask::Read,
        gold: Gold::Open,
    }])
}

/// The figures that the perplexity of all rows is made from.
fn grade(_: &Item, reply: &Reply, _: Prompts) -> Grade {
    let Reply::Scores(scores) = reply else {
        return Grade::default();
    };
    let log_prob = scores.iter().map(|score| score.log_prob).sum();
    let tokens: usize = scores.iter().map(|score| score.tokens).sum();
    Grade::of("log_prob", log_prob).and("tokens", tokens as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::ContinuationScore;
    use crate::eval::tasks::tests::{asked, one, refused};
    use serde_json::json;

    #[test]
    fn every_text_is_read_whole() {
        for row in [
            json!({"text": " A b.\n"}),
            json!({"content": " A b.\n", "id": 1}),
        ] {
            let item = one(&TASK, "some.txt", &row);
            assert_eq!((&item.prompt[..], &item.ask), (" A b.\n", &Ask::Read));
            assert_eq!(item.id, "some/0");
            let score = ContinuationScore {
                log_prob: -3.0,
                tokens: 2,
                greedy: false,
            };
            let grade = grade(&item, &Reply::Scores(vec![score; 2]), Prompts::Sound);
            assert_eq!(grade.value("log_prob"), Some(-6.0));
            assert_eq!(grade.value("tokens"), Some(4.0));
        }
        let blank = json!({"text": " \n"});
        assert!(
            asked(&TASK, "some.txt", &blank, 0, Prompts::Sound)
                .unwrap()
                .is_empty()
        );
        assert_eq!(
            refused(&TASK, &json!({"a": 1})),
            "field `text` is missing; the row has a"
        );
    }
}
