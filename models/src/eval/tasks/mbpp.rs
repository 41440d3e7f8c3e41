//! MBPP (Austin et al. 2021, arXiv 2108.07732): short Python programs from a sentence and tests.

use fedllm_shared::Files;

use crate::eval::code::{PASS, checks, cut, python, python_after};
use crate::eval::written::{fixed, split, task};
use crate::eval::{Ask, Checks, Gold, Grader, Item, ItemError, Language, Program, Prompts, Row};
use crate::eval::{Shots, Source, Task, Writing};

pub(super) static TASK: Task = Task {
    about: "short Python programs from a sentence and three tests",
    prompt: "the paper's, with its first 3 examples, as lm-evaluation-harness mbpp",
    suites: &["paper", "code"],
    source: Source {
        hub: &["google-research-datasets/mbpp", "mbpp"],
        test: split(
            "test",
            Files::FirstOf(&[&["full/test-*.parquet"], &["**/mbpp.jsonl"]]),
        ),
        licence: "CC BY 4.0",
        ..BASE.source
    },
    shots: Shots {
        description: Some(|_, count| fixed(&EXAMPLES, count)),
        ..Shots::of(EXAMPLES.len())
    },
    metrics: &[PASS],
    ..BASE
};

const BASE: Task = task("mbpp", items, Grader::Program(program));

const STOP: &[&str] = &["[DONE]"];

/// Rows 2, 3 and 4 of the data, which the paper shows before each question.
const EXAMPLES: [&str; 3] = [
    "You are an expert Python programmer, and here is your task: Write a function to find the \
     similar elements from the given two tuple lists. Your code should pass these tests:\n\n\
     assert similar_elements((3, 4, 5, 6),(5, 7, 4, 10)) == (4, 5)\n\
     assert similar_elements((1, 2, 3, 4),(5, 4, 3, 7)) == (3, 4)\n\
     assert similar_elements((11, 12, 14, 13),(17, 15, 14, 13)) == (13, 14)\n\
     [BEGIN]\n\
     def similar_elements(test_tup1, test_tup2):\n  \
     res = tuple(set(test_tup1) & set(test_tup2))\n  \
     return (res) \n\
     [DONE]",
    "You are an expert Python programmer, and here is your task: Write a python function to \
     identify non-prime numbers. Your code should pass these tests:\n\n\
     assert is_not_prime(2) == False\n\
     assert is_not_prime(10) == True\n\
     assert is_not_prime(35) == True\n\
     [BEGIN]\n\
     import math\n\
     def is_not_prime(n):\n    \
     result = False\n    \
     for i in range(2,int(math.sqrt(n)) + 1):\n        \
     if n % i == 0:\n            \
     result = True\n    \
     return result\n\
     [DONE]",
    "You are an expert Python programmer, and here is your task: Write a function to find the \
     largest integers from a given list of numbers using heap queue algorithm. Your code should \
     pass these tests:\n\n\
     assert heap_queue_largest( [25, 35, 22, 85, 14, 65, 75, 22, 58],3)==[85, 75, 65] \n\
     assert heap_queue_largest( [25, 35, 22, 85, 14, 65, 75, 22, 58],2)==[85, 75] \n\
     assert heap_queue_largest( [25, 35, 22, 85, 14, 65, 75, 22, 58],5)==[85, 75, 65, 58, 35]\n\
     [BEGIN]\n\
     import heapq as hq\n\
     def heap_queue_largest(nums,n):\n  \
     largest_nums = hq.nlargest(n, nums)\n  \
     return largest_nums\n\
     [DONE]",
];

/// The test split is told by numbers where all rows are in one file.
fn items(row: &Row<'_>, _: Prompts) -> Result<Vec<Item>, ItemError> {
    let number = row.number("task_id")?;
    if !(11..=510).contains(&number) {
        return Ok(Vec::new());
    }
    let (asked, tests) = (row.text("text")?, row.texts("test_list")?.join("\n"));
    let setup = row.text("test_setup_code")?.replace("\r\n", "\n");
    Ok(vec![Item {
        id: number.to_string(),
        cluster: None,
        prompt: format!(
            "You are an expert Python programmer, and here is your task: {asked} Your code should \
             pass these tests:\n\n{tests}\n[BEGIN]\n"
        ),
        answer: format!("{}\n[DONE]", row.text("code")?.replace("\r\n", "\n")),
        ask: Ask::Write(Writing::greedy(512, STOP)),
        gold: Gold::Checks(Checks {
            language: Language::Python,
            before: String::new(),
            after: format!("{setup}\n{tests}"),
        }),
    }])
}

fn program(item: &Item, reply: &str) -> Program {
    let checks = checks(item);
    let code = python_after(&checks.before, cut(reply, STOP));
    python(&code.replace("\r\n", "\n"), &checks.after)
}

#[cfg(test)]
mod tests {
    use crate::eval::testing::{asked, one, program};
    use crate::eval::{Gold, task};
    use serde_json::json;

    #[test]
    fn a_program_is_asked_and_checked() {
        let mut row = json!({
            "text": "Write a function to double.", "code": "def twice(x):\r\n  return 2 * x",
            "task_id": 11, "test_setup_code": "a = 1\r\nb = 2", "challenge_test_list": [],
            "test_list": ["assert twice(a) == 2", "assert twice(b) == 4"],
        });
        let item = one("mbpp", "mbpp.jsonl", &row);
        assert_eq!(
            item.prompt,
            "You are an expert Python programmer, and here is your task: Write a function to double. \
             Your code should pass these tests:\n\nassert twice(a) == 2\nassert twice(b) == 4\n\
             [BEGIN]\n"
        );
        assert_eq!(item.answer, "def twice(x):\n  return 2 * x\n[DONE]");
        let Gold::Checks(checks) = &item.gold else {
            panic!("no checks");
        };
        assert_eq!(
            checks.after,
            "a = 1\nb = 2\nassert twice(a) == 2\nassert twice(b) == 4"
        );
        let made = program("mbpp", &item, "def twice(x):\n  return 2\n[DONE]\nMore");
        assert!(
            made.source
                .contains("\ndef twice(x):\n  return 2\n\na = 1\n")
        );
        for outside in [10, 511] {
            row["task_id"] = json!(outside);
            assert!(asked("mbpp", "mbpp.jsonl", &row).unwrap().is_empty());
        }
        let shown = task("mbpp").unwrap().shots.description.unwrap()(None, 1);
        let code = "[BEGIN]\ndef similar_elements(test_tup1, test_tup2):\n  res = tuple(set(test_tup1) \
                    & set(test_tup2))\n  return (res) \n[DONE]\n\n";
        assert!(shown.ends_with(code), "{shown}");
    }
}
