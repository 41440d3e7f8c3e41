//! HumanEval (Chen et al. 2021, arXiv 2107.03374): Python functions to be written from their
//! description.

use fedllm_shared::Files;

use crate::eval::code::{PASS, checks, cut, python, python_after};
use crate::eval::written::{split, task};
use crate::eval::{Ask, Checks, Gold, Grader, Item, ItemError, Language, Program, Prompts, Row};
use crate::eval::{Source, Task, Writing};

pub(super) static TASK: Task = Task {
    about: "Python functions to be written from their description",
    prompt: "openai/human-eval: the function's beginning; ends as in lm-evaluation-harness humaneval",
    suites: &["paper", "general", "code"],
    source: Source {
        hub: &["openai/openai_humaneval", "openai_humaneval"],
        folders: &["human-eval"],
        test: split(
            "test",
            Files::FirstOf(&[
                &["openai_humaneval/test-*.parquet"],
                &["**/HumanEval.jsonl.gz"],
                &["**/HumanEval.jsonl"],
            ]),
        ),
        licence: "MIT",
        ..BASE.source
    },
    metrics: &[PASS],
    ..BASE
};

const BASE: Task = task("humaneval", items, Grader::Program(program));

const STOP: &[&str] = &["\nclass", "\ndef", "\n#", "\nif", "\nprint"];

fn items(row: &Row<'_>, _: Prompts) -> Result<Vec<Item>, ItemError> {
    let (prompt, entry) = (row.text("prompt")?, row.text("entry_point")?);
    Ok(vec![Item {
        id: row.text("task_id")?,
        cluster: None,
        answer: row.text("canonical_solution")?,
        ask: Ask::Write(Writing::greedy(512, STOP)),
        gold: Gold::Checks(Checks {
            language: Language::Python,
            before: prompt.clone(),
            after: format!("{}\ncheck({entry})", row.text("test")?),
        }),
        prompt,
    }])
}

fn program(item: &Item, reply: &str) -> Program {
    let checks = checks(item);
    let code = match reply.contains("```") {
        true => reply,
        false => cut(reply, STOP),
    };
    python(&python_after(&checks.before, code), &checks.after)
}

#[cfg(test)]
mod tests {
    use crate::eval::testing::{one, program};
    use crate::eval::{Ask, Language, Writing};
    use serde_json::json;

    #[test]
    fn a_function_is_asked_and_checked() {
        let prompt = "def twice(x):\n    \"\"\" Doubles x.\n    \"\"\"\n";
        let row = json!({
            "task_id": "HumanEval/3", "prompt": prompt, "entry_point": "twice",
            "canonical_solution": "    return 2 * x\n",
            "test": "\n\ndef check(candidate):\n    assert candidate(2) == 4\n",
        });
        let item = one("humaneval", "HumanEval.jsonl.gz", &row);
        assert_eq!(item.id, "HumanEval/3");
        assert_eq!(item.prompt, prompt);
        assert_eq!(item.ask, Ask::Write(Writing::greedy(512, super::STOP)));
        let made = program(
            "humaneval",
            &item,
            "    return 2 * x\n\ndef main():\n    pass\n",
        );
        assert_eq!(made.language, Language::Python);
        let middle = "\"\"\"\n    return 2 * x\n\n\n\ndef check(candidate):\n    assert candidate(2) == 4\n\n\
                      check(twice)\n";
        assert!(made.source.contains(middle), "{}", made.source);
        let block = "Sure:\n```python\ndef twice(x):\n    return x + x\n```";
        let made = program("humaneval", &item, block);
        let middle = "\"\"\"\n    pass\n\ndef twice(x):\n    return x + x\n";
        assert!(made.source.contains(middle), "{}", made.source);
    }
}
