//! Rows and replies for the tests of tasks.

use std::path::Path;

use serde_json::Value;

use super::{Grade, Grader, Item, ItemError, Program, Prompts, Reply, Row, Task, task};

/// What a row of the file at `path` asks.
pub(super) fn asked(name: &str, path: &str, fields: &Value) -> Result<Vec<Item>, ItemError> {
    asked_as(name, Prompts::Sound, path, None, fields)
}

/// What a row asks, by whosever prompts, if the file has a name for it.
pub(super) fn asked_as(
    name: &str,
    prompts: Prompts,
    path: &str,
    key: Option<&str>,
    fields: &Value,
) -> Result<Vec<Item>, ItemError> {
    let row = Row {
        fields: fields.as_object().unwrap(),
        key,
        path: Path::new(path),
        index: 7,
    };
    (named(name).items)(&row, prompts)
}

/// The only question of a row.
pub(super) fn one(name: &str, path: &str, fields: &Value) -> Item {
    let mut items = asked(name, path, fields).unwrap();
    assert_eq!(items.len(), 1);
    items.remove(0)
}

/// How a reply is graded.
pub(super) fn graded(name: &str, item: &Item, reply: &str, prompts: Prompts) -> Grade {
    let Grader::Direct(grade) = named(name).grader else {
        panic!("{name} is not graded by itself");
    };
    grade(item, &Reply::Texts(vec![reply.to_owned()]), prompts)
}

/// The figures of a reply, in the order in which the grade has them.
pub(super) fn figures(name: &str, item: &Item, reply: &str) -> Vec<f64> {
    let grade = graded(name, item, reply, Prompts::Sound);
    grade.values.iter().map(|(_, value)| *value).collect()
}

/// The program that a reply makes.
pub(super) fn program(name: &str, item: &Item, reply: &str) -> Program {
    let Grader::Program(program) = named(name).grader else {
        panic!("{name} makes no programs");
    };
    program(item, reply)
}

fn named(name: &str) -> &'static Task {
    task(name).unwrap()
}

/// Replies that nobody expects.
pub(super) const ODD: [&str; 12] = [
    "",
    " \n\t\r\n",
    "\u{0}\u{feff}\u{202e}",
    "ß\u{301}é \u{1f469}\u{200d}\u{1f680}",
    "#### ",
    "the answer is",
    "$",
    "\\boxed{",
    "}}}}{{{{",
    "```",
    "```\n```\n```",
    "-.,$\u{2212}",
];

/// No task panics over odd replies, nor takes long over long ones.
#[test]
fn odd_replies_are_graded() {
    let long = [
        "#### -",
        "{",
        "}",
        ", ",
        "```\n",
        "$1",
        "[[1",
        "\\boxed{",
        "answer is ",
    ];
    let long: Vec<String> = long.iter().map(|part| part.repeat(5_000)).collect();
    let replies = ODD.into_iter().chain(long.iter().map(String::as_str));
    let replies: Vec<&str> = replies.collect();
    for task in super::TASKS {
        let mut item = Item {
            id: String::new(),
            cluster: None,
            prompt: String::new(),
            answer: String::new(),
            ask: super::Ask::Read,
            gold: super::Gold::Text("7".to_owned()),
        };
        for reply in &replies {
            match task.grader {
                Grader::Direct(grade) => {
                    for prompts in [Prompts::Sound, Prompts::Reference] {
                        item.gold = match task.name {
                            "drop" | "numglue" => {
                                let spans = ["a", "b"].map(str::to_owned).to_vec();
                                super::Gold::Spans(vec![spans])
                            }
                            _ => super::Gold::Text("7".to_owned()),
                        };
                        grade(&item, &Reply::Texts(vec![(*reply).to_owned()]), prompts);
                    }
                }
                Grader::Program(program) => {
                    for language in LANGUAGES {
                        item.gold = super::Gold::Checks(super::Checks {
                            language,
                            before: "fn main(){}\nfn f() {".to_owned(),
                            after: "#[cfg(test)]".to_owned(),
                        });
                        program(&item, reply);
                    }
                }
                Grader::Judge(judge) => {
                    for judgement in judge(&item, &[(*reply).to_owned(), String::new()]) {
                        (judgement.figure)(reply);
                    }
                }
                Grader::Relative(_) => {}
            }
        }
    }
}

const LANGUAGES: [super::Language; 6] = [
    super::Language::Python,
    super::Language::JavaScript,
    super::Language::Java,
    super::Language::Go,
    super::Language::Cpp,
    super::Language::Rust,
];
