//! FiQA 2018, task 1 (Maia et al. 2018): the sentiment of headlines and posts about companies.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use fedllm_shared::Files::FirstOf;
use fedllm_shared::{JsonObject, ReadAs};
use serde_json::Value;

use crate::eval::choose::{self, split};
use crate::eval::finance::{Medium, Sentiment, fiqa_scores};
use crate::eval::sentiment::{self, Said};
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

/// A sentence about two companies has two scores, and is asked about twice.
fn held_out(row: &Row<'_>, prompts: Prompts) -> Result<Vec<Item>, ItemError> {
    const FIELD: &str = "sentiment_score";
    let text = row.text("sentence")?;
    let medium = Medium::of_fiqa(row.text("format").ok().as_deref(), row.stem());
    let id = format!("{}/{}", part(row).unwrap_or(row.stem()), row.id());
    let item = |(i, score): (usize, Option<&Value>)| {
        let class = score.and_then(Sentiment::of_score);
        let said = Said {
            id: match row.has("info") {
                true => format!("{id}/{i}"),
                false => id.clone(),
            },
            medium,
            text: text.clone(),
            class: class.ok_or(ItemError::Kind {
                field: FIELD,
                expected: "a number",
            })?,
        };
        Ok(sentiment::item(said, prompts, sentiment::alpaca))
    };
    fiqa_scores(row.fields)
        .into_iter()
        .enumerate()
        .map(item)
        .collect()
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
            (format!("{id}/0"), Gold::Class(Sentiment::Positive as usize)),
            (format!("{id}/1"), Gold::Class(Sentiment::Negative as usize)),
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
    fn a_score_that_is_no_number_is_refused() {
        let row = json!({"sentence": "a", "sentiment_score": "b"});
        assert_eq!(
            refused(&HELD_OUT, &row),
            "field `sentiment_score` is not a number"
        );
    }
}
