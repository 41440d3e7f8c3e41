//! AGIEval (Zhong et al. 2023, arXiv 2304.06364): examinations that people sit.

use std::path::Path;
use std::sync::Arc;

use fedllm_shared::Files::AnyOf;
use serde_json::Value;

use crate::eval::choose::{self, split};
use crate::eval::layout::{self, Question};
use crate::eval::row::choice;
use crate::eval::{Gold, Item, ItemError, Prompts, Row, Source, Task};

const PROMPT: &str = "AGIEval's zero-shot prompt, as lm-evaluation-harness 0.4 agieval has it: the \
                      options themselves, letters and all";

pub(super) static ENGLISH: Task = Task {
    about: "2,852 questions of LSAT, SAT, civil service and other examinations, in English",
    prompt: PROMPT,
    suites: &["general"],
    source: Source {
        hub: &[
            "hails/agieval-aqua-rat",
            "hails/agieval-gaokao-english",
            "hails/agieval-logiqa-en",
            "hails/agieval-lsat-ar",
            "hails/agieval-lsat-lr",
            "hails/agieval-lsat-rc",
            "hails/agieval-sat-en",
            "hails/agieval-sat-en-without-passage",
            "hails/agieval-sat-math",
        ],
        folders: &["agieval"],
        test: split(
            "test",
            AnyOf(&[
                "**/aqua-rat.jsonl",
                "**/gaokao-english.jsonl",
                "**/logiqa-en.jsonl",
                "**/lsat-ar.jsonl",
                "**/lsat-lr.jsonl",
                "**/lsat-rc.jsonl",
                "**/sat-en.jsonl",
                "**/sat-en-without-passage.jsonl",
                "**/sat-math.jsonl",
                "data/test-*.parquet",
            ]),
        ),
        licence: "MIT; LogiQA CC BY-NC-SA 4.0",
        ..choose::SOURCE
    },
    ..choose::task("agieval-en", english)
};

pub(super) static CHINESE: Task = Task {
    about: "2,299 questions of the Gaokao and LogiQA, in Chinese",
    prompt: PROMPT,
    suites: &["general"],
    source: Source {
        hub: &[
            "hails/agieval-gaokao-biology",
            "hails/agieval-gaokao-chemistry",
            "hails/agieval-gaokao-chinese",
            "hails/agieval-gaokao-geography",
            "hails/agieval-gaokao-history",
            "hails/agieval-gaokao-mathqa",
            "hails/agieval-gaokao-physics",
            "hails/agieval-logiqa-zh",
        ],
        folders: &["agieval"],
        test: split(
            "test",
            AnyOf(&[
                "**/gaokao-biology.jsonl",
                "**/gaokao-chemistry.jsonl",
                "**/gaokao-chinese.jsonl",
                "**/gaokao-geography.jsonl",
                "**/gaokao-history.jsonl",
                "**/gaokao-mathqa.jsonl",
                "**/gaokao-physics.jsonl",
                "**/logiqa-zh.jsonl",
                "data/test-*.parquet",
            ]),
        ),
        licence: "MIT; LogiQA CC BY-NC-SA 4.0",
        ..choose::SOURCE
    },
    ..choose::task("agieval-zh", chinese)
};

fn english(row: &Row<'_>, _: Prompts) -> Result<Vec<Item>, ItemError> {
    items(row, |passage, question, options, last| {
        format!(
            "{passage}Q: {question} Answer Choices: {options}\nA: Among A through {last}, the \
             answer is"
        )
    })
}

fn chinese(row: &Row<'_>, _: Prompts) -> Result<Vec<Item>, ItemError> {
    items(row, |passage, question, options, last| {
        format!("{passage}问题：{question} 选项：{options}\n答案：从A到{last}, 我们应选择")
    })
}

/// A row as the authors have it, or with the prompt as `query`, as the hub has it.
fn items(
    row: &Row<'_>,
    prompt: impl Fn(&str, &str, &str, &str) -> String,
) -> Result<Vec<Item>, ItemError> {
    let of_hub = row.has("query");
    let field = if of_hub { "choices" } else { "options" };
    let choices = layout::options(row, field)?;
    let prompt = match of_hub {
        true => row.text("query")?,
        false => {
            let passage = match row.fields.get("passage") {
                None | Some(Value::Null) => String::new(),
                Some(_) => row.text("passage")?,
            };
            let last = choose::LETTERS[choices.len() - 1];
            prompt(&passage, &row.text("question")?, &choices.join(" "), last)
        }
    };
    let right = right(row, if of_hub { "gold" } else { "label" }, choices.len())?;
    let first = right.iter().position(|right| *right).unwrap_or_default();
    let question = Question {
        text: String::new(),
        choices,
        right: first,
    };
    let exam = exam(row.path);
    let item = choose::item(format!("{exam}/{}", row.index), prompt, &question);
    let gold = match right.iter().filter(|right| **right).count() {
        1 => Gold::Choice(first),
        _ => Gold::Choices(right),
    };
    Ok(vec![Item {
        cluster: Some(Arc::from(exam)),
        gold,
        ..item
    }])
}

/// Which options are right: a letter or a number, or several in a list or a text.
fn right(row: &Row<'_>, field: &'static str, choices: usize) -> Result<Vec<bool>, ItemError> {
    let labels = match row.field(field)? {
        Value::Array(_) => row.texts(field)?,
        _ => {
            let letters = row.text(field)?;
            let letters = letters.chars().filter(|letter| !letter.is_whitespace());
            letters.map(String::from).collect()
        }
    };
    let mut right = vec![false; choices];
    for label in &labels {
        right[choice(label, choices, field)?] = true;
    }
    match labels.is_empty() {
        true => Err(ItemError::Kind {
            field,
            expected: "the letter of an option, or several",
        }),
        false => Ok(right),
    }
}

/// The examination, which only the path of the file names.
fn exam(path: &Path) -> &'static str {
    const EXAMS: &[&str] = &[
        "sat-en-without-passage",
        "aqua-rat",
        "gaokao-biology",
        "gaokao-chemistry",
        "gaokao-chinese",
        "gaokao-english",
        "gaokao-geography",
        "gaokao-history",
        "gaokao-mathqa",
        "gaokao-physics",
        "logiqa-en",
        "logiqa-zh",
        "lsat-ar",
        "lsat-lr",
        "lsat-rc",
        "sat-en",
        "sat-math",
    ];
    let names = |exam: &&&str| {
        let mut parts = path.iter().filter_map(|part| part.to_str());
        parts.any(|part| {
            let name = part.rsplit("agieval-").next().unwrap_or(part);
            name.split('.').next() == Some(**exam)
        })
    };
    EXAMS.iter().find(names).copied().unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::tasks::tests::{chosen, one, refused};
    use serde_json::json;

    #[test]
    fn every_layout_asks_the_same() {
        let authors = json!({
            "passage": "Ann is old. ", "question": "Who is?", "options": ["(A)Ann", "(B)Bo"],
            "label": "A", "answer": null, "other": null,
        });
        let query = "Ann is old. Q: Who is? Answer Choices: (A)Ann (B)Bo\nA: Among A through B, \
                     the answer is";
        let hub = json!({"query": query, "choices": ["(A)Ann", "(B)Bo"], "gold": [0]});
        let cached = "x/datasets--hails--agieval-lsat-ar/snapshots/0/data/test-0.parquet";
        for (row, file) in [(authors, "agieval/lsat-ar.jsonl"), (hub, cached)] {
            chosen(&ENGLISH, file, &row, (query, &[" (A)Ann", " (B)Bo"], 0));
            let item = one(&ENGLISH, file, &row);
            assert_eq!(item.cluster.as_deref(), Some("lsat-ar"));
            assert_eq!(item.id, "lsat-ar/0");
        }
    }

    #[test]
    fn several_options_can_be_right() {
        let row = json!({
            "passage": null, "question": "问", "options": ["(A)a", "(B)b", "(C)c"],
            "label": ["A", "C"],
        });
        let item = one(&CHINESE, "gaokao-physics.jsonl", &row);
        assert_eq!(item.gold, Gold::Choices(vec![true, false, true]));
        let mut row = row;
        row["label"] = json!("A C");
        let item = one(&CHINESE, "gaokao-mathqa.jsonl", &row);
        assert_eq!(item.gold, Gold::Choices(vec![true, false, true]));
        assert_eq!(
            item.prompt,
            "问题：问 选项：(A)a (B)b (C)c\n答案：从A到C, 我们应选择"
        );
        assert_eq!(
            exam(Path::new("v1/sat-en-without-passage.jsonl")),
            "sat-en-without-passage"
        );
    }

    #[test]
    fn rows_without_options_or_label_are_refused() {
        let mut row = json!({"passage": null, "question": "a", "options": null, "label": null});
        assert_eq!(
            refused(&ENGLISH, &row),
            "field `options` is not a list of texts"
        );
        row["options"] = json!(["(A)a", "(B)b"]);
        assert_eq!(refused(&ENGLISH, &row), "field `label` is not a text");
        row["label"] = json!([]);
        let expected = "field `label` is not the letter of an option, or several";
        assert_eq!(refused(&ENGLISH, &row), expected);
    }
}
