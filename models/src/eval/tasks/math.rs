//! MATH (Hendrycks et al. 2021, arXiv 2103.03874): problems of mathematical competitions.

use std::sync::Arc;

use fedllm_shared::{Files, JsonObject, ReadAs, last_boxed, maths_equal};

use crate::eval::written::{EXACT, share, split, task, text};
use crate::eval::{Ask, Gold, Grade, Grader, Item, ItemError, Metric, Prompts, Reply, Row, Source};
use crate::eval::{Task, Writing};

/// The answer is right, in a box or however else it is said.
const BOXED: Metric = Metric::mean("boxed_match");

pub(super) static TASK: Task = Task {
    about: "problems of mathematical competitions in seven subjects",
    prompt: "lm-evaluation-harness hendrycks_math, whose exact_match is `is_equiv` of what stands \
             between the first and the last dollar; boxed_match also looks into a box",
    suites: &["math"],
    source: Source {
        hub: &["EleutherAI/hendrycks_math", "HuggingFaceH4/MATH-500"],
        folders: &["MATH"],
        test: split(
            "test",
            Files::FirstOf(&[
                &["*/test-*.parquet"],
                &["**/MATH/test/*/*.json"],
                &["test/*/*.json"],
                &["**/math/test.jsonl"],
                &["test.jsonl"],
            ]),
        ),
        examples: Some(split(
            "train",
            Files::FirstOf(&[
                &["*/train-*.parquet"],
                &["**/MATH/train/*/*.json"],
                &["train/*/*.json"],
                &["**/math/train.jsonl"],
                &["train.jsonl"],
            ]),
        )),
        read_as: ReadAs {
            object: JsonObject::LongRow,
            ..ReadAs::ITSELF
        },
        licence: "MIT",
        ..BASE.source
    },
    metrics: &[EXACT, BOXED],
    group: Some(group),
    ..BASE
};

const BASE: Task = task("math", items, Grader::Direct(grade));

const WRITING: Writing = Writing::greedy(1024, &["Problem:", "</s>", "<|im_end|>"]);

fn items(row: &Row<'_>, _: Prompts) -> Result<Vec<Item>, ItemError> {
    let (problem, solution) = (row.text("problem")?, row.text("solution")?);
    let answer = last_boxed(&solution).ok_or_else(|| ItemError::Value {
        field: "solution",
        got: solution.chars().take(40).collect(),
        expected: "a text with a \\boxed{} answer",
    })?;
    let subject = row.text_of(&["type", "subject"])?;
    let number = row.text_of(&["unique_id", "idx"]);
    // In the authors' archive each problem is a file.
    let id = number.unwrap_or_else(|_| format!("{}/{}/{}", row.folder(), row.stem(), row.id()));
    Ok(vec![Item {
        id,
        cluster: Some(Arc::from(subject)),
        prompt: format!("Problem: {problem}\nAnswer:"),
        answer: format!(" {answer}"),
        ask: Ask::Write(WRITING),
        gold: Gold::Text(answer.to_owned()),
    }])
}

fn grade(item: &Item, reply: &Reply, _: Prompts) -> Grade {
    let Gold::Text(gold) = &item.gold else {
        return Grade::default();
    };
    let between = between_dollars(text(reply));
    let boxed = last_boxed(text(reply)).unwrap_or(between);
    let boxed = boxed.trim().trim_end_matches('.');
    Grade::of(EXACT.name, share(maths_equal(between, gold)))
        .and(BOXED.name, share(maths_equal(boxed, gold)))
        .answering(boxed)
}

/// What stands between the first and the last dollar; all of it if there are not two.
fn between_dollars(text: &str) -> &str {
    match (text.find('$'), text.rfind('$')) {
        (Some(first), Some(last)) if first < last => &text[first + 1..last],
        _ => text,
    }
}

fn group(subject: &str) -> &'static str {
    const SUBJECTS: [&str; 7] = [
        "Algebra",
        "Counting & Probability",
        "Geometry",
        "Intermediate Algebra",
        "Number Theory",
        "Prealgebra",
        "Precalculus",
    ];
    let mut subjects = SUBJECTS.into_iter();
    subjects.find(|name| *name == subject).unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use crate::eval::testing::{asked, figures, one};
    use crate::eval::{Gold, task};
    use serde_json::json;

    #[test]
    fn all_layouts_ask_alike() {
        let mut row = json!({
            "problem": "Find $x$.", "level": "Level 1", "type": "Algebra",
            "solution": "First \\boxed{1}, so \\boxed{\\frac{1}{\\sqrt{2}}}.",
        });
        let item = one("math", "MATH/test/algebra/12.json", &row);
        assert_eq!(item.id, "algebra/12/7");
        assert_eq!(item.cluster.as_deref(), Some("Algebra"));
        assert_eq!(item.prompt, "Problem: Find $x$.\nAnswer:");
        assert_eq!(item.answer, " \\frac{1}{\\sqrt{2}}");
        assert_eq!(item.gold, Gold::Text("\\frac{1}{\\sqrt{2}}".to_owned()));
        row["idx"] = json!(3);
        assert_eq!(one("math", "math/test.jsonl", &row).id, "3");
        row["solution"] = json!("None.");
        let error = asked("math", "test.jsonl", &row).unwrap_err().to_string();
        assert!(
            error.contains("`solution`") && error.contains("boxed"),
            "{error}"
        );
        assert_eq!(task("math").unwrap().group.unwrap()("Algebra"), "Algebra");
    }

    #[test]
    fn answers_stand_between_dollars_or_in_a_box() {
        let row = json!({"problem": "", "solution": "\\boxed{\\frac12}", "type": "Geometry"});
        let item = one("math", "test.jsonl", &row);
        for (reply, expected) in [
            (" 1/2", [1.0, 1.0]),
            (" $\\frac{1}{2}$", [1.0, 1.0]),
            (" It is $\\tfrac{1}{2}$.", [1.0, 1.0]),
            (" So $x = 2$ and \\boxed{\\frac{1}{2}}.", [0.0, 1.0]),
            (" $x$ is $\\boxed{0.5}$", [0.0, 1.0]),
            (" \\frac{1}{3}", [0.0, 0.0]),
            (" $", [0.0, 0.0]),
        ] {
            assert_eq!(figures("math", &item, reply), expected, "{reply}");
        }
    }
}
