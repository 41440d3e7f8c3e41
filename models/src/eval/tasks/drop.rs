//! DROP (Dua et al. 2019, arXiv 1903.00161): questions on passages that need counting, sorting and
//! arithmetic.

use std::sync::Arc;

use fedllm_shared::{Files, JsonObject, ReadAs, drop_score};
use serde_json::{Map, Value};

use crate::eval::written::{first_line, share, split, task, text};
use crate::eval::{Ask, Gold, Grade, Grader, Item, ItemError, Metric, Prompts, Reply, Row, Shots};
use crate::eval::{Source, Task, Writing};

/// The spans are the right ones.
const EM: Metric = Metric::mean("em");
/// The words of the spans are the right ones.
const F1: Metric = Metric::mean("f1");

pub(super) static TASK: Task = Task {
    about: "questions on passages that need counting, sorting and arithmetic",
    prompt: "declare-lab/instruct-eval drop.py: passage, question and `Answer:`, 3 examples",
    suites: &["paper", "general"],
    source: Source {
        hub: &["EleutherAI/drop", "ucinlp/drop"],
        test: split(
            "validation",
            Files::FirstOf(&[
                &["**/drop_dataset_dev.json"],
                &["**/drop/drop.json"],
                &["drop.json"],
                &["**/validation-*.parquet"],
            ]),
        ),
        examples: Some(split(
            "train",
            Files::FirstOf(&[&["**/drop_dataset_train.json"], &["**/train-*.parquet"]]),
        )),
        read_as: ReadAs {
            object: JsonObject::OfRows,
            ..ReadAs::ITSELF
        },
        licence: "CC BY-SA 4.0",
        ..BASE.source
    },
    shots: Shots::of(3),
    metrics: &[F1, EM],
    ..BASE
};

const BASE: Task = task("drop", items, Grader::Direct(grade));

/// More spans than any answer has.
pub(super) const MOST_SPANS: usize = 64;

const WRITING: Writing = Writing::greedy(64, &["\n", "</s>", "<|im_end|>"]);

/// One question, or all questions of a passage.
fn items(row: &Row<'_>, _: Prompts) -> Result<Vec<Item>, ItemError> {
    let passage = row.text("passage")?;
    if !row.has("qa_pairs") {
        let section = row.text_of(&["section_id", "passage_id"]);
        return Ok(vec![item(row, &passage, section.ok().as_deref())?]);
    }
    let field = "qa_pairs";
    let expected = "a list of questions";
    let wrong = || ItemError::Kind { field, expected };
    let pairs = row.field(field)?.as_array().ok_or_else(wrong)?;
    let pair = |pair: &Value| {
        let fields = pair.as_object().ok_or_else(wrong)?;
        item(&Row { fields, ..*row }, &passage, row.key)
    };
    pairs.iter().map(pair).collect()
}

fn item(row: &Row<'_>, passage: &str, section: Option<&str>) -> Result<Item, ItemError> {
    let question = row.text("question")?;
    let alternatives = match row.has("answers_spans") {
        true => alone_and_together(row.within("answers_spans")?.texts("spans")?),
        false => alternatives(row)?,
    };
    let first = alternatives.first().cloned().unwrap_or_default();
    Ok(Item {
        id: row.text("query_id").unwrap_or_else(|_| row.id()),
        cluster: section.map(Arc::from),
        prompt: format!("{} {}\nAnswer:", passage.trim(), question.trim()),
        answer: format!(" {}", first.join(", ")),
        ask: Ask::Write(WRITING),
        gold: Gold::Spans(alternatives),
    })
}

/// The answer, and those that others gave: a list of answers, or a column of each of their fields.
fn alternatives(row: &Row<'_>) -> Result<Vec<Vec<String>>, ItemError> {
    let mut answers = vec![spans_of(&row.within("answer")?)?];
    match row.fields.get("validated_answers") {
        Some(Value::Array(others)) => {
            for fields in others.iter().filter_map(Value::as_object) {
                answers.push(spans_of(&Row { fields, ..*row })?);
            }
        }
        Some(Value::Object(columns)) => {
            let count = columns.get("number").and_then(Value::as_array);
            for i in 0..count.map_or(0, Vec::len) {
                let cell = |(name, column): (&String, &Value)| {
                    Some((name.clone(), column.get(i)?.clone()))
                };
                let fields: Map<String, Value> = columns.iter().filter_map(cell).collect();
                let fields = &fields;
                answers.push(spans_of(&Row { fields, ..*row })?);
            }
        }
        _ => {}
    }
    let mut seen = Vec::new();
    answers.retain(|answer| !answer.concat().trim().is_empty());
    answers.retain(|answer| {
        let is_new = !seen.contains(answer);
        seen.push(answer.clone());
        is_new
    });
    Ok(answers)
}

/// The spans of an answer, of which a number or a date is one.
pub(super) fn spans_of(answer: &Row<'_>) -> Result<Vec<String>, ItemError> {
    let number = answer.text("number").unwrap_or_default();
    if !number.is_empty() {
        return Ok(vec![number]);
    }
    let spans = answer.texts("spans")?;
    if !spans.is_empty() {
        return Ok(spans);
    }
    let date = answer.within("date")?;
    let parts = ["day", "month", "year"].map(|part| date.text(part).unwrap_or_default());
    Ok(vec![parts.join(" ").trim().to_owned()])
}

/// A copy that has lost which spans belong together: each may be the answer, or all of them.
fn alone_and_together(spans: Vec<String>) -> Vec<Vec<String>> {
    let mut distinct: Vec<String> = Vec::new();
    for span in spans {
        if !distinct.contains(&span) {
            distinct.push(span);
        }
    }
    let mut alternatives: Vec<_> = distinct.iter().map(|span| vec![span.clone()]).collect();
    if distinct.len() > 1 {
        alternatives.push(distinct);
    }
    alternatives
}

/// The first line is the answer. Beside answers of several spans, its own stand between commas.
fn grade(item: &Item, reply: &Reply, _: Prompts) -> Grade {
    let Gold::Spans(alternatives) = &item.gold else {
        return Grade::default();
    };
    let said = first_line(text(reply));
    let whole = drop_score(&[said], alternatives);
    let several: Vec<_> = alternatives
        .iter()
        .filter(|spans| spans.len() > 1)
        .cloned()
        .collect();
    let parts: Vec<&str> = said.split(", ").take(MOST_SPANS).collect();
    let apart = drop_score(&parts, &several);
    Grade::of(F1.name, whole.f1.max(apart.f1))
        .and(EM.name, share(whole.exact || apart.exact))
        .answering(said)
}

#[cfg(test)]
mod tests {
    use crate::eval::Gold;
    use crate::eval::Prompts;
    use crate::eval::testing::{asked_as, figures, one};
    use serde_json::json;

    fn spans(alternatives: &[&[&str]]) -> Gold {
        let texts = |spans: &&[&str]| spans.iter().map(|span| (*span).to_owned()).collect();
        Gold::Spans(alternatives.iter().map(texts).collect())
    }

    #[test]
    fn all_layouts_ask_alike() {
        let none = json!({"day": "", "month": "", "year": ""});
        let number = json!({"number": "2", "date": none, "spans": []});
        let names = json!({"number": "", "date": none, "spans": ["Ann", "Bob"]});
        let date = json!({
            "number": "", "date": {"day": "3", "month": "May", "year": ""}, "spans": [],
        });
        let passage = json!({
            "passage": "Ann and Bob ran. ",
            "qa_pairs": [
                {"question": "How many?", "query_id": "a", "answer": number},
                {
                    "question": "Who?", "query_id": "b", "answer": names,
                    "validated_answers": [names, date],
                },
            ],
        });
        let path = "drop_dataset_dev.json";
        let items = asked_as("drop", Prompts::Sound, path, Some("nfl_1"), &passage).unwrap();
        assert_eq!(items[0].prompt, "Ann and Bob ran. How many?\nAnswer:");
        assert_eq!(items[0].answer, " 2");
        assert_eq!(items[0].cluster.as_deref(), Some("nfl_1"));
        assert_eq!(items[0].gold, spans(&[&["2"]]));
        assert_eq!(items[1].answer, " Ann, Bob");
        assert_eq!(items[1].gold, spans(&[&["Ann", "Bob"], &["3 May"]]));

        let columns = json!({
            "section_id": "nfl_1", "query_id": "b", "passage": "Ann and Bob ran.",
            "question": "Who?", "answer": names,
            "validated_answers": {
                "number": ["", ""], "date": [none, {"day": "3", "month": "May", "year": ""}],
                "spans": [["Ann", "Bob"], []],
            },
        });
        let item = one("drop", "data/validation-0.parquet", &columns);
        assert_eq!(item, items[1]);

        let flat = json!({
            "section_id": "nfl_1", "query_id": "b", "passage": "Ann and Bob ran.",
            "question": "Who?",
            "answers_spans": {"spans": ["Ann", "Bob", "Ann"], "types": ["span", "span", "span"]},
        });
        let item = one("drop", "data/validation-0.parquet", &flat);
        assert_eq!(item.prompt, items[1].prompt);
        assert_eq!(item.gold, spans(&[&["Ann"], &["Bob"], &["Ann", "Bob"]]));
    }

    #[test]
    fn spans_stand_between_commas() {
        let row = |spans: &[&str]| {
            let answer = json!({"number": "", "spans": spans});
            let row = json!({"passage": "", "question": "", "query_id": "", "answer": answer});
            one("drop", "drop.json", &row)
        };
        let both = row(&["Ann", "Bob"]);
        assert_eq!(figures("drop", &both, " Bob, Ann\n"), [1.0, 1.0]);
        assert_eq!(figures("drop", &both, " Ann"), [0.5, 0.0]);
        let town = row(&["Paris, Texas"]);
        assert_eq!(figures("drop", &town, " Paris, Texas"), [1.0, 1.0]);
        assert_eq!(figures("drop", &town, " London"), [0.0, 0.0]);
        assert_eq!(
            figures("drop", &row(&["the 78-yard run"]), " 78 yard run."),
            [1.0, 1.0]
        );
    }
}
