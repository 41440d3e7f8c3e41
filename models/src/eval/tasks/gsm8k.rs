//! GSM8K (Cobbe et al. 2021, arXiv 2110.14168): word problems of primary school.

use fedllm_shared::Files;

use crate::eval::written::{share, split, task, text};
use crate::eval::{Ask, Gold, Grade, Grader, Item, ItemError, Metric, Prompts, Reply, Row, Shots};
use crate::eval::{Source, Task, Writing};

/// The number after `####` is the right one.
const STRICT: Metric = Metric::mean("strict-match");
/// The last number is the right one.
const FLEXIBLE: Metric = Metric::mean("flexible-extract");

pub(super) static TASK: Task = Task {
    about: "word problems of primary school, worked out in steps",
    prompt: "lm-evaluation-harness gsm8k: 5 worked examples; both of its filters",
    suites: &["paper", "math"],
    source: Source {
        hub: &["openai/gsm8k", "gsm8k"],
        folders: &["grade_school_math"],
        test: split(
            "test",
            Files::FirstOf(&[
                &["main/test-*.parquet"],
                &["**/gsm8k/test.jsonl"],
                &["**/grade_school_math/data/test.jsonl"],
                &["test.jsonl"],
            ]),
        ),
        examples: Some(split(
            "train",
            Files::FirstOf(&[
                &["main/train-*.parquet"],
                &["**/gsm8k/train.jsonl"],
                &["**/grade_school_math/data/train.jsonl"],
                &["train.jsonl"],
            ]),
        )),
        licence: "MIT",
        ..BASE.source
    },
    shots: Shots::of(5),
    metrics: &[STRICT, FLEXIBLE],
    ..BASE
};

const BASE: Task = task("gsm8k", items, Grader::Direct(grade));

const WRITING: Writing = Writing::greedy(256, &["Question:", "</s>", "<|im_end|>"]);

fn items(row: &Row<'_>, _: Prompts) -> Result<Vec<Item>, ItemError> {
    let (question, answer) = (row.text("question")?, row.text("answer")?);
    let number = answer.rsplit("#### ").next().unwrap_or_default();
    Ok(vec![Item {
        id: row.id(),
        cluster: None,
        prompt: format!("Question: {question}\nAnswer:"),
        answer: format!(" {answer}"),
        ask: Ask::Write(WRITING),
        gold: Gold::Text(number.trim().to_owned()),
    }])
}

/// Compares what the harness's filters find as it does: as texts without commas, dollars and a
/// last dot.
fn grade(item: &Item, reply: &Reply, _: Prompts) -> Grade {
    let Gold::Text(gold) = &item.gold else {
        return Grade::default();
    };
    let gold = bare(gold);
    let (marked, last) = (marked(text(reply)), last(text(reply)));
    let right = |answer: Option<&str>| share(answer.is_some_and(|answer| bare(answer) == gold));
    Grade::of(STRICT.name, right(marked))
        .and(FLEXIBLE.name, right(last))
        .answering(marked.or(last).unwrap_or_default())
}

fn bare(answer: &str) -> String {
    let answer = answer.to_lowercase().replace([',', '$'], "");
    answer.strip_suffix('.').unwrap_or(&answer).to_owned()
}

/// The first number right after `#### `.
fn marked(text: &str) -> Option<&str> {
    text.match_indices("#### ").find_map(|(at, mark)| {
        let rest = &text[at + mark.len()..];
        let sign = usize::from(rest.starts_with('-'));
        let digits = run(&rest[sign..], |byte| {
            byte.is_ascii_digit() || matches!(byte, b'.' | b',')
        });
        (digits > 0).then(|| &rest[..sign + digits])
    })
}

/// The last match of `(-?[$0-9.,]{2,})|(-?[0-9]+)`.
fn last(text: &str) -> Option<&str> {
    let mut found = None;
    let mut at = 0;
    while at < text.len() {
        let sign = usize::from(text.as_bytes()[at] == b'-');
        let rest = text.as_bytes().get(at + sign..).unwrap_or_default();
        let first = rest.first().copied().unwrap_or_default();
        let length = run_of(rest, |byte| {
            byte.is_ascii_digit() || matches!(byte, b'$' | b'.' | b',')
        });
        if length > 1 || first.is_ascii_digit() {
            found = Some((at, at + sign + length));
            at += sign + length;
        } else {
            at += 1;
        }
    }
    found.map(|(start, end)| &text[start..end]) // All of it is ASCII.
}

fn run(text: &str, belongs: fn(u8) -> bool) -> usize {
    run_of(text.as_bytes(), belongs)
}

fn run_of(bytes: &[u8], belongs: fn(u8) -> bool) -> usize {
    let end = bytes.iter().position(|byte| !belongs(*byte));
    end.unwrap_or(bytes.len())
}

#[cfg(test)]
mod tests {
    use crate::eval::testing::{figures, graded, one};
    use crate::eval::{Ask, Gold, Prompts};
    use serde_json::json;

    #[test]
    fn a_problem_is_asked() {
        let item = one(
            "gsm8k",
            "gsm8k/test.jsonl",
            &json!({"question": "2 + 2?", "answer": "2+2 = <<2+2=4>>4\n#### 4"}),
        );
        assert_eq!(item.id, "7");
        assert_eq!(item.prompt, "Question: 2 + 2?\nAnswer:");
        assert_eq!(item.answer, " 2+2 = <<2+2=4>>4\n#### 4");
        assert_eq!(item.gold, Gold::Text("4".to_owned()));
        assert_eq!(item.ask, Ask::Write(super::WRITING));
    }

    /// What the regular expressions of the harness find, for which they were asked.
    #[test]
    fn both_filters_are_those_of_the_harness() {
        let item = |answer: &str| {
            let row = json!({"question": "", "answer": format!("So\n#### {answer}")});
            one("gsm8k", "test.jsonl", &row)
        };
        for (answer, reply, expected) in [
            ("18", "2 * 9 = 18\n#### 18", [1.0, 1.0]),
            ("1,200", "#### 1200", [1.0, 1.0]),
            ("-5", " #### -5.", [1.0, 1.0]),
            ("18", "It is $18.", [0.0, 1.0]),
            ("18", "It is 18. Then 5.", [0.0, 0.0]),
            ("18", "#### 18\n#### 5", [1.0, 0.0]),
            ("18", "####18", [0.0, 1.0]),
            ("18", "#### x #### 18", [1.0, 1.0]),
            ("18", "#### 18.0", [0.0, 0.0]),
            ("3", "2-3", [0.0, 0.0]), // The last number is -3.
            ("3", "a3.", [0.0, 1.0]),
            ("5", "5 ..", [0.0, 0.0]), // Two dots are a number to the harness.
            ("5", "", [0.0, 0.0]),
        ] {
            assert_eq!(
                figures("gsm8k", &item(answer), reply),
                expected,
                "{reply:?}"
            );
        }
        let grade = graded("gsm8k", &item("18"), "$18 each", Prompts::Sound);
        assert_eq!(grade.answer.as_deref(), Some("$18"));
    }
}
