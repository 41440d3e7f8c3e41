//! NumGLUE (Mishra et al. 2022, arXiv 2204.05660): eight tasks that need simple arithmetic.

use std::sync::Arc;

use fedllm_shared::{Files, drop_score, last_number, numbers_equal};

use super::drop::{MOST_SPANS, spans_of};
use crate::eval::written::{EXACT, first_line, share, split, task, text};
use crate::eval::{Ask, Gold, Grade, Grader, Item, ItemError, Metric, Prompts, Reply, Row, Shots};
use crate::eval::{Source, Task, Writing};

/// The words of the answer are the right ones, as DROP has it.
const F1: Metric = Metric::mean("f1");

pub(super) static TASK: Task = Task {
    about: "eight kinds of questions that need simple arithmetic",
    prompt: "the fields of each kind with their names and `Answer:`, 4 examples of its kind (the \
             paper publishes none for language models)",
    suites: &["math"],
    source: Source {
        hub: &["metaeval/num-glue"],
        test: split(
            "test",
            Files::FirstOf(&[
                &["**/NumGLUE_test.json"],
                &["**/NumGLUE_test.jsonl"],
                &["**/numglue/test.jsonl"],
                &["test.jsonl"],
                &["data/test-*.parquet"],
            ]),
        ),
        examples: Some(split(
            "train",
            Files::FirstOf(&[
                &["**/NumGLUE_train.json"],
                &["**/NumGLUE_train.jsonl"],
                &["**/numglue/train.jsonl"],
                &["train.jsonl"],
                &["data/train-*.parquet"],
            ]),
        )),
        licence: "Apache-2.0; its sources have their own",
        ..BASE.source
    },
    shots: Shots {
        of_cluster: true,
        ..Shots::of(4)
    },
    metrics: &[EXACT, F1],
    group: Some(group),
    ..BASE
};

const BASE: Task = task("numglue", items, Grader::Direct(grade));

const WRITING: Writing = Writing::greedy(64, &["\n"]);

fn items(row: &Row<'_>, _: Prompts) -> Result<Vec<Item>, ItemError> {
    let kind = row.text("type")?;
    let (asked, gold) = match kind.as_str() {
        "Type_3" => {
            let options = (row.text("Option1")?, row.text("Option2")?);
            let question = row.text("question")?;
            let asked = format!(
                "Question: {}\nOption 1: {}\nOption 2: {}",
                question.trim(),
                options.0.trim(),
                options.1.trim()
            );
            let gold = match row.text("answer")?.replace(' ', "").as_str() {
                "Option1" => vec!["Option 1".to_owned(), options.0],
                "Option2" => vec!["Option 2".to_owned(), options.1],
                got => {
                    return Err(ItemError::Value {
                        field: "answer",
                        got: got.chars().take(40).collect(),
                        expected: "`Option 1` or `Option 2`",
                    });
                }
            };
            (asked, Gold::AnyOf(gold))
        }
        "Type_7" => {
            let (first, second) = (row.text("statement1")?, row.text("statement2")?);
            let asked = format!(
                "Statement 1: {}\nStatement 2: {}\nQuestion: {}",
                first.trim(),
                second.trim(),
                row.text("options")?.trim()
            );
            (asked, Gold::AnyOf(vec![row.text("answer")?]))
        }
        _ => {
            let passage = row.text("passage").ok();
            let passage = passage.map(|passage| format!("Passage: {}\n", passage.trim()));
            let question = row.text("question")?;
            let asked = format!(
                "{}Question: {}",
                passage.unwrap_or_default(),
                question.trim()
            );
            (asked, answers(row)?)
        }
    };
    let answer = match &gold {
        Gold::Spans(spans) => spans
            .iter()
            .flatten()
            .cloned()
            .collect::<Vec<_>>()
            .join(", "),
        Gold::AnyOf(answers) => answers.first().cloned().unwrap_or_default(),
        _ => String::new(),
    };
    Ok(vec![Item {
        id: row.id(),
        cluster: Some(Arc::from(kind)),
        prompt: format!("{asked}\nAnswer:"),
        answer: format!(" {answer}"),
        ask: Ask::Write(WRITING),
        gold,
    }])
}

/// A number or a text, or one of DROP's answers, of which only one kind is filled.
fn answers(row: &Row<'_>) -> Result<Gold, ItemError> {
    match row.within("answer") {
        Ok(answer) => Ok(Gold::Spans(vec![spans_of(&answer)?])),
        Err(_) => Ok(Gold::AnyOf(vec![row.text("answer")?])),
    }
}

/// A number in the first line counts as it is, whatever is written around it.
fn grade(item: &Item, reply: &Reply, _: Prompts) -> Grade {
    let said = first_line(text(reply)).trim_end_matches('.');
    let alternatives: Vec<Vec<String>> = match &item.gold {
        Gold::Spans(spans) => spans.clone(),
        Gold::AnyOf(answers) => answers.iter().map(|answer| vec![answer.clone()]).collect(),
        _ => return Grade::default(),
    };
    let number = alternatives.iter().flatten().find_map(|gold| {
        let gold: f64 = gold.trim().parse().ok()?;
        Some(numbers_equal(last_number(said)?, gold))
    });
    let score = match number {
        Some(true) => (1.0, 1.0),
        _ => alternatives
            .iter()
            .map(|gold| scores(said, gold))
            .fold((0.0, 0.0), |(exact, f1): (f64, f64), score| {
                (exact.max(score.0), f1.max(score.1))
            }),
    };
    Grade::of(EXACT.name, score.0)
        .and(F1.name, score.1)
        .answering(said)
}

/// DROP's scores. Of several spans, those of the answer stand between commas.
fn scores(said: &str, gold: &[String]) -> (f64, f64) {
    let spans: Vec<&str> = match gold.len() {
        1 => vec![said],
        _ => said.split(", ").take(MOST_SPANS).collect(),
    };
    let score = drop_score(&spans, &[gold.to_vec()]);
    (share(score.exact), score.f1)
}

fn group(kind: &str) -> &'static str {
    match kind {
        "Type_1" => "commonsense and arithmetic",
        "Type_2" => "domain knowledge and arithmetic",
        "Type_3" => "commonsense and comparison",
        "Type_4" => "fill in the blank",
        "Type_5" => "reading and explicit arithmetic",
        "Type_6" => "reading and implicit arithmetic",
        "Type_7" => "inference",
        "Type_8" => "word problems",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use crate::eval::testing::{asked, figures, one};
    use crate::eval::{Item, task};
    use serde_json::{Value, json};

    fn ask(row: Value) -> Item {
        one("numglue", "NumGLUE_test.json", &row)
    }

    #[test]
    fn each_kind_has_its_fields() {
        let item = ask(json!({"question": "8 - 3 = _____", "answer": 5, "type": "Type_4"}));
        assert_eq!(item.prompt, "Question: 8 - 3 = _____\nAnswer:");
        assert_eq!(item.answer, " 5");
        assert_eq!(item.cluster.as_deref(), Some("Type_4"));
        let item = ask(json!({
            "question": "Which is nearer? ", "Option1": "the hill", "Option2": "Ann",
            "answer": "Option 2", "type": "Type_3",
        }));
        let prompt = "Question: Which is nearer?\nOption 1: the hill\nOption 2: Ann\nAnswer:";
        assert_eq!(item.prompt, prompt);
        for (reply, score) in [(" Option 2", 1.0), (" Ann.", 1.0), (" Option 1", 0.0)] {
            assert_eq!(figures("numglue", &item, reply)[1], score, "{reply}");
        }
        let item = ask(json!({
            "statement1": "Ann has 3.", "statement2": "Ann has 2.",
            "options": " Entailment or contradiction or neutral?", "answer": "contradiction",
            "type": "Type_7",
        }));
        assert!(
            item.prompt
                .starts_with("Statement 1: Ann has 3.\nStatement 2: Ann has 2.\nQuestion: E")
        );
        assert_eq!(figures("numglue", &item, " Contradiction\n"), [1.0, 1.0]);
        let date = json!({"day": "", "month": "", "year": ""});
        let item = ask(json!({
            "passage": "Ann and Bob ran.", "question": "Who ran?", "type": "Type_6",
            "answer": {"number": "", "date": date, "spans": ["Ann", "Bob"]},
        }));
        assert_eq!(
            item.prompt,
            "Passage: Ann and Bob ran.\nQuestion: Who ran?\nAnswer:"
        );
        assert_eq!(item.answer, " Ann, Bob");
        assert_eq!(figures("numglue", &item, " Bob, Ann"), [1.0, 1.0]);
        assert_eq!(figures("numglue", &item, " Bob"), [0.0, 0.5]);
        let row =
            json!({"question": "", "Option1": "", "Option2": "", "answer": "3", "type": "Type_3"});
        let error = asked("numglue", "", &row).unwrap_err().to_string();
        assert!(error.contains("`Option 1` or `Option 2`"), "{error}");
        assert_eq!(
            task("numglue").unwrap().group.unwrap()("Type_8"),
            "word problems"
        );
    }

    #[test]
    fn numbers_count_whatever_stands_around_them() {
        let item = ask(json!({"question": "", "answer": "1.25", "type": "Type_8"}));
        for (reply, score) in [
            (" 1.25", 1.0),
            (" They get 1.2500 each.\nQuestion: 3", 1.0),
            (" 1.3", 0.0),
            (" none", 0.0),
        ] {
            assert_eq!(figures("numglue", &item, reply), [score, score], "{reply}");
        }
    }
}
