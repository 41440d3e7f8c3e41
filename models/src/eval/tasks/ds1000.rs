//! DS-1000 (Lai et al. 2022, arXiv 2211.11501): questions on seven Python libraries for data.

use std::sync::Arc;

use fedllm_shared::Files;
use serde_json::Value;

use crate::eval::code::{Code, PASS, checks, code, cut, python};
use crate::eval::written::{split, task};
use crate::eval::{Ask, Checks, Gold, Grader, Item, ItemError, Language, Program, Prompts, Row};
use crate::eval::{Source, Task, Writing};

pub(super) static TASK: Task = Task {
    about: "questions on seven Python libraries for data",
    prompt: "xlang-ai/DS-1000: the prompt of each question; its post-processing and its test program",
    suites: &["paper", "code"],
    source: Source {
        hub: &["xlangai/DS-1000"],
        test: split(
            "test",
            Files::FirstOf(&[
                &["**/ds1000.jsonl.gz"],
                &["**/ds1000.jsonl"],
                &["test.jsonl"],
                &["**/test-*.parquet"],
            ]),
        ),
        licence: "CC BY-SA 4.0",
        ..BASE.source
    },
    metrics: &[PASS],
    group: Some(group),
    ..BASE
};

const BASE: Task = task("ds1000", items, Grader::Program(program));

const STOP: &[&str] = &["</code>", "# SOLUTION END", "\nEND SOLUTION"];

/// What the questions on each library import.
const LIBRARIES: [(&str, &[&str]); 7] = [
    (
        "Matplotlib",
        &["numpy", "pandas", "matplotlib", "seaborn", "PIL"],
    ),
    ("Numpy", &["numpy", "pandas", "scipy"]),
    ("Pandas", &["numpy", "pandas"]),
    ("Pytorch", &["numpy", "pandas", "torch"]),
    ("Scipy", &["numpy", "pandas", "scipy"]),
    ("Sklearn", &["numpy", "pandas", "sklearn"]),
    ("Tensorflow", &["numpy", "pandas", "tensorflow"]),
];

fn items(row: &Row<'_>, _: Prompts) -> Result<Vec<Item>, ItemError> {
    let metadata = row.within("metadata")?;
    let library = metadata.text("library")?;
    let number = metadata.text_of(&["problem_id", "library_problem_id"])?;
    // Variants of a question are not independent of it.
    let origin = metadata.text("perturbation_origin_id");
    let origin = origin.unwrap_or_else(|_| number.clone());
    let context = row.text("code_context")?;
    let also = match context.contains("test_string(") {
        true => "test_string(code)\n",
        false => "",
    };
    Ok(vec![Item {
        id: format!("{library}/{number}"),
        cluster: Some(Arc::from(format!("{library}/{origin}"))),
        prompt: row.text("prompt")?,
        answer: row.text("reference_code")?,
        ask: Ask::Write(Writing::greedy(1024, STOP)),
        gold: Gold::Checks(Checks {
            language: Language::Python,
            before: context,
            after: format!("test_execution(code)\n{also}"),
        }),
    }])
}

/// The answer goes into the context, and that into the program, as a text.
fn program(item: &Item, reply: &str) -> Program {
    let checks = checks(item);
    let reply = cut(reply, STOP).replace("<code>", "");
    let solution = match code(&reply) {
        Code::Rest(rest) => rest,
        Code::Block(block) => block,
    };
    // What JSON quotes, Python quotes alike.
    let solution = Value::from(solution);
    let code = format!("{}\ncode = {solution}", checks.before);
    let library = item.cluster.as_deref().map(group);
    let mut libraries = LIBRARIES.iter();
    let found = libraries.find(|(name, _)| Some(*name) == library);
    Program {
        needs: found.map_or(&["numpy", "pandas"], |(_, needs)| needs),
        ..python(&code, &checks.after)
    }
}

fn group(cluster: &str) -> &'static str {
    let library = cluster.split('/').next().unwrap_or_default();
    let mut libraries = LIBRARIES.iter();
    let found = libraries.find(|(name, _)| *name == library);
    found.map_or("other", |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use crate::eval::task;
    use crate::eval::testing::{one, program};
    use serde_json::json;

    #[test]
    fn an_answer_goes_into_its_context_as_a_text() {
        let mut row = json!({
            "prompt": "Problem:\nAdd.\nBEGIN SOLUTION\n<code>\n", "reference_code": "r = a + 1",
            "metadata": {
                "problem_id": 9, "library": "Numpy", "perturbation_origin_id": 4,
                "perturbation_type": "Semantic",
            },
            "code_context": "def test_execution(solution):\n    exec(solution)\n",
        });
        let item = one("ds1000", "ds1000.jsonl.gz", &row);
        assert_eq!(item.id, "Numpy/9");
        assert_eq!(item.cluster.as_deref(), Some("Numpy/4"));
        assert_eq!(task("ds1000").unwrap().group.unwrap()("Numpy/4"), "Numpy");
        for reply in [
            "r = \"é\\n\"\n</code>\nEND SOLUTION",
            "<code>r = \"é\\n\"\n</code>",
            "```python\nr = \"é\\n\"\n```",
            "r = \"é\\n\"\n\nEND SOLUTION\n<code>",
        ] {
            let made = program("ds1000", &item, reply);
            let code =
                "    exec(solution)\n\ncode = \"r = \\\"é\\\\n\\\"\\n\"\ntest_execution(code)\n";
            assert!(made.source.contains(code), "{}", made.source);
            assert!(!made.source.contains("test_string"));
            assert_eq!(made.needs, ["numpy", "pandas", "scipy"]);
        }
        row["code_context"] = json!("def test_string(solution): ...");
        let item = one("ds1000", "test.jsonl", &row);
        let source = program("ds1000", &item, "").source;
        assert!(
            source.contains("test_execution(code)\ntest_string(code)\n"),
            "{source}"
        );
    }
}
