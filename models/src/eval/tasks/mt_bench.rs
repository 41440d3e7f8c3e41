//! MT-Bench (Zheng et al. 2023, arXiv 2306.05685): conversations of two turns, rated by a judge.

use std::sync::Arc;

use fedllm_shared::Files;

use crate::eval::judge_prompts::{SECOND, SECOND_MATH, SINGLE, SINGLE_MATH};
use crate::eval::judging::{item, rating, reference, turn};
use crate::eval::written::{split, task};
use crate::eval::{Beside, Grader, Item, ItemError, Judgement, Measure, Metric, Prompts, Row};
use crate::eval::{Source, Task};
use serde_json::Value;

const MEAN: Metric = Metric {
    measure: Measure::MeanOf(&[FIRST.name, LATER.name]),
    ..rating("rating")
};
const FIRST: Metric = rating("turn_1");
const LATER: Metric = rating("turn_2");

pub(super) static TASK: Task = Task {
    about: "conversations of two turns in eight categories, rated by a judge",
    prompt: "lm-sys/FastChat llm_judge: its temperatures, single answers rated by its judge prompts",
    suites: &["paper", "judged"],
    source: Source {
        hub: &["HuggingFaceH4/mt_bench_prompts"],
        folders: &["mtbench"],
        test: split(
            "test",
            Files::FirstOf(&[
                &["**/mtbench/question.jsonl"],
                &["**/mt_bench/question.jsonl"],
                &["question.jsonl"],
                &["data/train-*.parquet"],
            ]),
        ),
        beside: Some(Beside {
            files: Files::FirstOf(&[
                &["**/mtbench/reference_answer/gpt-4.jsonl"],
                &["**/mt_bench/reference_answer/gpt-4.jsonl"],
                &["reference_answer/gpt-4.jsonl"],
            ]),
            by: "question_id",
        }),
        licence: "Apache-2.0",
        ..BASE.source
    },
    metrics: &[MEAN, FIRST, LATER],
    group: Some(category),
    ..BASE
};

const BASE: Task = task("mt-bench", items, Grader::Judge(judge));

/// A category, its temperature, and whether its answers are compared with a reference.
const CATEGORIES: [(&str, f32, bool); 8] = [
    ("writing", 0.7, false),
    ("roleplay", 0.7, false),
    ("extraction", 0.0, false),
    ("math", 0.0, true),
    ("coding", 0.0, true),
    ("reasoning", 0.0, true),
    ("stem", 0.1, false),
    ("humanities", 0.1, false),
];

fn items(row: &Row<'_>, _: Prompts) -> Result<Vec<Item>, ItemError> {
    let name = row.text("category")?;
    let turns = match row.has("turns") {
        true => row.texts("turns")?,
        false => row.texts("prompt")?,
    };
    let mut categories = CATEGORIES.iter();
    let found = categories.find(|(category, ..)| *category == name);
    let (temperature, compared) = found.map_or((0.7, false), |(_, t, compared)| (*t, *compared));
    let references = match compared {
        true => references(row, turns.len())?,
        false => Vec::new(),
    };
    let id = row.text_of(&["question_id", "prompt_id"])?;
    Ok(vec![Item {
        cluster: Some(Arc::from(name)),
        ..item(id, turns, references, (temperature, 1024))
    }])
}

/// The reference answers: a list of the row, or the turns of the first choice of an answer beside it.
fn references(row: &Row<'_>, turns: usize) -> Result<Vec<Option<String>>, ItemError> {
    let answers = match row.fields.get("choices") {
        Some(Value::Array(choices)) => {
            let expected = "a list of answers with `turns`";
            let field = "choices";
            let first = choices.first().and_then(Value::as_object);
            let fields = first.ok_or(ItemError::Kind { field, expected })?;
            Row { fields, ..*row }.texts("turns")?
        }
        _ => row.texts("reference")?,
    };
    match answers.len() >= turns {
        true => Ok(answers.into_iter().map(Some).collect()),
        false => Err(ItemError::Kind {
            field: "reference",
            expected: "an answer to each turn",
        }),
    }
}

fn judge(item: &Item, replies: &[String]) -> Vec<Judgement> {
    let (question, answer) = turn(item, replies, 0);
    let (question_2, answer_2) = turn(item, replies, 1);
    let references = reference(item, 0).zip(reference(item, 1));
    let (ref_1, ref_2) = references.unwrap_or_default();
    let values = [
        ("question", question),
        ("answer", answer),
        ("question_1", question),
        ("answer_1", answer),
        ("question_2", question_2),
        ("answer_2", answer_2),
        ("ref_answer_1", ref_1),
        ("ref_answer_2", ref_2),
    ];
    let (first, second) = match references {
        Some(_) => (&SINGLE_MATH, &SECOND_MATH),
        None => (&SINGLE, &SECOND),
    };
    let first = first.judgement(FIRST, 0.0, &values);
    match replies.len() {
        0 | 1 => vec![first],
        _ => vec![first, second.judgement(LATER, 0.0, &values)],
    }
}

fn category(cluster: &str) -> &'static str {
    let mut categories = CATEGORIES.iter();
    let found = categories.find(|(name, ..)| *name == cluster);
    found.map_or("other", |(name, ..)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::testing::{asked, one};
    use crate::eval::{Ask, Gold, Writing};
    use crate::generate::Sampling;
    use serde_json::json;

    fn replies() -> [String; 2] {
        ["Four.", "Five."].map(str::to_owned)
    }

    #[test]
    fn a_conversation_is_rated_turn_by_turn() {
        let row = json!({
            "question_id": 81, "category": "writing", "turns": ["Write {answer}.", "Shorter."],
        });
        let item = one("mt-bench", "mtbench/question.jsonl", &row);
        assert_eq!(item.prompt, "Write {answer}.");
        assert_eq!(item.cluster.as_deref(), Some("writing"));
        let Ask::Converse { turns, writing } = &item.ask else {
            panic!("no conversation");
        };
        assert_eq!(turns, &["Shorter."]);
        assert!(matches!(
            writing.sampling,
            Sampling::Nucleus {
                temperature: 0.7,
                ..
            }
        ));
        let judgements = judge(&item, &replies());
        assert_eq!(judgements[0].metric, "turn_1");
        assert!(
            judgements[0]
                .prompt
                .contains("[Question]\nWrite {answer}.\n\n")
        );
        assert!(
            judgements[0]
                .prompt
                .contains("[The Start of Assistant's Answer]\nFour.\n")
        );
        assert_eq!(judgements[1].metric, "turn_2");
        let second =
            "### Assistant A:\nFour.\n\n### User:\nShorter.\n\n### Assistant A:\nFive.\n\n";
        assert!(
            judgements[1].prompt.contains(second),
            "{}",
            judgements[1].prompt
        );
        assert_eq!(judge(&item, &replies()[..1]).len(), 1);
    }

    #[test]
    fn answers_that_can_be_wrong_are_rated_beside_others() {
        let mut row = json!({
            "question_id": 101, "category": "math", "turns": ["2 + 2?", "And 1?"],
        });
        let error = asked("mt-bench", "question.jsonl", &row)
            .unwrap_err()
            .to_string();
        assert!(error.contains("`reference` is missing"), "{error}");
        let hub = json!({
            "prompt_id": 101, "category": "math", "prompt": ["2 + 2?", "And 1?"],
            "reference": ["4", "5"],
        });
        let hub = one("mt-bench", "data/train-0.parquet", &hub);
        row["choices"] = json!([{"index": 0, "turns": ["4", "5"]}]);
        let item = one("mt-bench", "question.jsonl", &row);
        assert_eq!(item, hub);
        let writing = Writing::greedy(1024, &[]);
        assert!(matches!(&item.ask, Ask::Converse { writing: w, .. } if *w == writing));
        assert_eq!(
            item.gold,
            Gold::References(["4", "5"].map(|a| Some(a.to_owned())).to_vec())
        );
        let judgements = judge(&item, &replies());
        assert!(
            judgements[0]
                .prompt
                .contains("[The Start of Reference Answer]\n4\n")
        );
        let both = "### Reference answer:\n4\n\n### User:\nAnd 1?\n\n### Reference answer:\n5\n";
        assert!(
            judgements[1].prompt.contains(both),
            "{}",
            judgements[1].prompt
        );
        row["choices"] = json!([{"index": 0, "turns": ["4"]}]);
        assert!(asked("mt-bench", "question.jsonl", &row).is_err());
    }
}
