//! FiQA 2018, task 1 (Maia et al. 2018): the sentiment of headlines and posts about companies.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use fedllm_shared::Files::FirstOf;
use fedllm_shared::{JsonObject, ReadAs};
use serde_json::Value;

use crate::eval::choose::{self, split};
use crate::eval::sentiment::{self, Medium, NEGATIVE, NEUTRAL, POSITIVE, Said};
use crate::eval::split::test_rows;
use crate::eval::{Item, ItemError, Prompts, Row, Source, Task};

const READ_AS: ReadAs = ReadAs {
    object: JsonObject::OfRows,
    ..ReadAs::ITSELF
};

const REFERENCE: &str = "OpenFedLLM branch eval, fiqa.py: Alpaca's headings; the answer searched \
                         anywhere for `positive`, `Positive`, then for `negative`, `Negative`, \
                         else neutral";

pub(super) static TASK: Task = Task {
    about: "275 headlines and posts: those that FinGPT tests (`train_test_split(0.226, seed=42)` \
            of the hub's train, validation and test rows); of the organizers' files the test rows",
    reference: Some(REFERENCE),
    source: Source {
        hub: &["pauri32/fiqa-2018"],
        folders: &["fiqa", "fingpt_sources"],
        test: split(
            "test",
            FirstOf(&[
                &["train.csv", "validation.csv", "test.csv"],
                &[
                    "**/fiqa-2018/train.csv",
                    "**/fiqa-2018/validation.csv",
                    "**/fiqa-2018/test.csv",
                ],
                &[
                    "data/train-*.parquet",
                    "data/validation-*.parquet",
                    "data/test-*.parquet",
                ],
                &[
                    "default/train/*.parquet",
                    "default/validation/*.parquet",
                    "default/test/*.parquet",
                ],
                &["**/*headline_ABSA_test.json", "**/*post_ABSA_test.json"],
            ]),
        ),
        beside: None,
        read_as: READ_AS,
        licence: "none is stated",
        ..choose::SOURCE
    },
    ..sentiment::task("fiqa-sa", items)
};

pub(super) static HELD_OUT: Task = Task {
    about: "headlines and posts of the test and validation files, on which `prepare \
            finance-sentiment` does not train",
    reference: Some(REFERENCE),
    suites: &["finance-held-out"],
    source: Source {
        hub: &["pauri32/fiqa-2018"],
        folders: &["fiqa", "fingpt_sources"],
        test: split(
            "test",
            FirstOf(&[
                &["**/*headline_ABSA_test.json", "**/*post_ABSA_test.json"],
                &["validation.csv", "test.csv"],
                &["**/fiqa-2018/validation.csv", "**/fiqa-2018/test.csv"],
                &["data/validation-*.parquet", "data/test-*.parquet"],
                &["default/validation/*.parquet", "default/test/*.parquet"],
            ]),
        ),
        beside: None,
        read_as: READ_AS,
        licence: "none is stated",
        ..choose::SOURCE
    },
    ..sentiment::task("fiqa-sa-held-out", held_out)
};

/// The rows of the hub's three splits, one after the other.
const TRAIN: usize = 961;
const VALIDATION: usize = 102;
const TEST: usize = 150;

fn items(row: &Row<'_>, prompts: Prompts) -> Result<Vec<Item>, ItemError> {
    static ASKED: LazyLock<BTreeSet<usize>> =
        LazyLock::new(|| test_rows(TRAIN + VALIDATION + TEST, 0.226, 42));
    let before = match part(row) {
        Some("train") => Some(0),
        Some("validation") => Some(TRAIN),
        Some("test") => Some(TRAIN + VALIDATION),
        _ => None,
    };
    match before {
        Some(before) if !ASKED.contains(&(before + row.index)) => Ok(Vec::new()),
        _ => held_out(row, prompts),
    }
}

/// Which of the hub's splits the row is of.
fn part<'a>(row: &'a Row<'_>) -> Option<&'a str> {
    let stem = row.stem();
    let of_name = stem.split('-').next().unwrap_or_default();
    let parts = ["train", "validation", "test"];
    [of_name, row.folder()]
        .into_iter()
        .find(|part| parts.contains(part))
}

/// A sentence about two companies has two scores, and is asked about twice, as in the table that
/// FinGPT reads.
fn held_out(row: &Row<'_>, prompts: Prompts) -> Result<Vec<Item>, ItemError> {
    let text = row.text("sentence")?;
    let id = format!("{}/{}", part(row).unwrap_or(row.stem()), row.id());
    let single = [Value::Object(row.fields.clone())];
    let scored = match row.fields.get("info") {
        Some(Value::Array(info)) => &info[..],
        _ => &single,
    };
    let item = |(i, scored): (usize, &Value)| {
        let said = Said {
            id: if scored == &single[0] {
                id.clone()
            } else {
                format!("{id}/{i}")
            },
            medium: medium(row),
            text: text.clone(),
            class: class(scored)?,
        };
        Ok(sentiment::item(said, prompts, sentiment::alpaca))
    };
    scored.iter().enumerate().map(item).collect()
}

fn medium(row: &Row<'_>) -> Medium {
    let is_post = match row.text("format") {
        Ok(format) => format == "post",
        Err(_) => row.stem().to_lowercase().contains("post"),
    };
    if is_post { Medium::Tweet } else { Medium::News }
}

/// The class of a `sentiment_score`, which the organizers write as a text.
fn class(scored: &Value) -> Result<usize, ItemError> {
    const FIELD: &str = "sentiment_score";
    let score = match scored.get(FIELD) {
        Some(Value::String(score)) => score.trim().parse().ok(),
        Some(score) => score.as_f64(),
        None => None,
    };
    match score {
        Some(score) if score < -0.1 => Ok(NEGATIVE),
        Some(score) if score < 0.1 => Ok(NEUTRAL),
        Some(score) if score >= 0.1 => Ok(POSITIVE),
        _ => Err(ItemError::Kind {
            field: FIELD,
            expected: "a number",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::Gold;
    use crate::eval::tasks::tests::{asked, refused};
    use serde_json::json;

    #[test]
    fn the_rows_of_the_hub_are_those_that_the_paper_asks() {
        let row = json!({
            "sentence": "Shares rise", "sentiment_score": "0.4", "format": "headline",
        });
        let count = |file: &str, rows: usize| {
            let ask = |i| asked(&TASK, file, &row, i, Prompts::Sound).unwrap().len();
            (0..rows).map(ask).sum::<usize>()
        };
        let counts = [
            ("train.csv", TRAIN),
            ("validation.csv", VALIDATION),
            ("test.csv", TEST),
        ]
        .map(|(file, rows)| count(file, rows));
        assert_eq!(counts.iter().sum::<usize>(), 275);
        assert!(count("data/test-00000-of-00001.parquet", TEST) == counts[2]);
        assert!(count("default/train/0000.parquet", TRAIN) == counts[0]);
    }

    #[test]
    fn sentences_are_asked_about_once_a_score() {
        let row = json!({
            "sentence": "$A up, $B down", "info": [
                {"snippets": "['up']", "target": "A", "sentiment_score": "0.1"},
                {"snippets": "['down']", "target": "B", "sentiment_score": "-0.3"},
            ],
        });
        let items = asked(&TASK, "task1_post_ABSA_test.json", &row, 3, Prompts::Sound).unwrap();
        let golds: Vec<_> = items
            .iter()
            .map(|item| (&item.id[..], &item.gold))
            .collect();
        let id = "task1_post_ABSA_test/3";
        let expected = [
            (format!("{id}/0"), Gold::Class(POSITIVE)),
            (format!("{id}/1"), Gold::Class(NEGATIVE)),
        ];
        let expected: Vec<_> = expected.iter().map(|(id, gold)| (&id[..], gold)).collect();
        assert_eq!(golds, expected);
        assert!(items[0].prompt.contains("the sentiment of this tweet?"));
        let theirs = asked(
            &TASK,
            "headline_ABSA_test.json",
            &row,
            3,
            Prompts::Reference,
        )
        .unwrap();
        assert_eq!(
            theirs[0].prompt,
            "Below is an instruction that describes a task. Write a response that appropriately \
             completes the request.\n\n### Instruction:\n What is the sentiment of this news? \
             Please choose an answer from {negative/neutral/positive}.\n\n### Input:\n $A up, \
             $B down\n\n### Response: "
        );
    }

    #[test]
    fn small_scores_are_neutral() {
        for (score, expected) in [
            (json!(-0.1), NEUTRAL),
            (json!("0.099"), NEUTRAL),
            (json!(0.1), POSITIVE),
            (json!("-0.101"), NEGATIVE),
        ] {
            assert_eq!(class(&json!({"sentiment_score": score})), Ok(expected));
        }
        let row = json!({"sentence": "a", "sentiment_score": "b"});
        assert_eq!(
            refused(&HELD_OUT, &row),
            "field `sentiment_score` is not a number"
        );
    }
}
