//! HumanEvalPack (Muennighoff et al. 2023, arXiv 2308.07124): HumanEval's functions in six languages,
//! to be repaired or written.

mod assemble;

use fedllm_shared::Files;

use crate::eval::code::PASS;
use crate::eval::written::{split, task};
use crate::eval::{Ask, Checks, Gold, Grader, Item, ItemError, Language, Prompts, Row, Source};
use crate::eval::{Task, Writing};

/// Repairing, then writing, in each language.
pub(super) static TASKS: [Task; 12] = [
    fix("humanevalfix-python", PYTHON),
    fix("humanevalfix-javascript", JAVASCRIPT),
    fix("humanevalfix-java", JAVA),
    fix("humanevalfix-go", GO),
    fix("humanevalfix-cpp", CPP),
    fix("humanevalfix-rust", RUST),
    synthesize("humanevalsynthesize-python", PYTHON),
    synthesize("humanevalsynthesize-javascript", JAVASCRIPT),
    synthesize("humanevalsynthesize-java", JAVA),
    synthesize("humanevalsynthesize-go", GO),
    synthesize("humanevalsynthesize-cpp", CPP),
    synthesize("humanevalsynthesize-rust", RUST),
];

const PYTHON: Files = Files::FirstOf(&[
    &["**/python/data/humanevalpack.jsonl"],
    &["**/python/humanevalpack.jsonl"],
    &["python/test-*.parquet"],
]);
const JAVASCRIPT: Files = Files::FirstOf(&[
    &["**/js/data/humanevalpack.jsonl"],
    &["**/js/humanevalpack.jsonl"],
    &["js/test-*.parquet"],
]);
const JAVA: Files = Files::FirstOf(&[
    &["**/java/data/humanevalpack.jsonl"],
    &["**/java/humanevalpack.jsonl"],
    &["java/test-*.parquet"],
]);
const GO: Files = Files::FirstOf(&[
    &["**/go/data/humanevalpack.jsonl"],
    &["**/go/humanevalpack.jsonl"],
    &["go/test-*.parquet"],
]);
const CPP: Files = Files::FirstOf(&[
    &["**/cpp/data/humanevalpack.jsonl"],
    &["**/cpp/humanevalpack.jsonl"],
    &["cpp/test-*.parquet"],
]);
const RUST: Files = Files::FirstOf(&[
    &["**/rust/data/humanevalpack.jsonl"],
    &["**/rust/humanevalpack.jsonl"],
    &["rust/test-*.parquet"],
]);

const fn fix(name: &'static str, files: Files) -> Task {
    Task {
        about: "functions to be repaired so that they pass the tests shown",
        prompt: "bigcode-evaluation-harness humanevalfixtests, prompt `instruct`",
        suites: &["paper", "code"],
        ..pack(name, repaired, files)
    }
}

const fn synthesize(name: &'static str, files: Files) -> Task {
    Task {
        about: "functions to be written from an instruction and their beginning",
        prompt: "bigcode-evaluation-harness humanevalsynthesize, prompt `instruct`",
        suites: &["paper", "code"],
        ..pack(name, written, files)
    }
}

const fn pack(
    name: &'static str,
    items: fn(&Row<'_>, Prompts) -> Result<Vec<Item>, ItemError>,
    files: Files,
) -> Task {
    let base = task(name, items, Grader::Program(assemble::program));
    Task {
        source: Source {
            hub: &["bigcode/humanevalpack"],
            test: split("test", files),
            licence: "MIT",
            ..base.source
        },
        metrics: &[PASS],
        ..base
    }
}

/// What ends a function in a language, as the harness has it.
const fn stops(language: Language) -> &'static [&'static str] {
    const END: &str = "<|endoftext|>";
    match language {
        Language::Python => &[
            "\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif", "\nassert", END,
        ],
        Language::Go => &["\n//", "\nfunc main(", "struct", "\nfunc", END],
        _ => &[END],
    }
}

/// The broken function and its tests, and what to do about them.
fn repaired(row: &Row<'_>, _: Prompts) -> Result<Vec<Item>, ItemError> {
    let language = language(row)?;
    let begin = match language {
        Language::Rust => format!("fn main(){{}}\n{}", row.text("declaration")?),
        _ => row.text("declaration")?,
    };
    let broken = format!(
        "{begin}{}\n{}",
        row.text("buggy_solution")?,
        row.text("test")?
    );
    let instruction = format!("{broken}\nFix bugs in {}.", row.text("entry_point")?);
    item(row, language, &instruction, &begin)
}

/// What the function shall do, and how it begins.
fn written(row: &Row<'_>, _: Prompts) -> Result<Vec<Item>, ItemError> {
    let instruction = row.text("instruction")?;
    item(
        row,
        language(row)?,
        instruction.trim(),
        &row.text("prompt")?,
    )
}

fn item(
    row: &Row<'_>,
    language: Language,
    instruction: &str,
    begin: &str,
) -> Result<Vec<Item>, ItemError> {
    let setup = match language {
        Language::Go => row.text("import")? + "\n" + &row.text("test_setup")? + "\n",
        Language::Rust => row.text("declaration")? + "\n",
        _ => String::new(),
    };
    Ok(vec![Item {
        id: row.text("task_id")?,
        cluster: None,
        prompt: format!("{instruction}\n\n{begin}").trim().to_owned(),
        answer: format!("\n{}", row.text("canonical_solution")?),
        ask: Ask::Write(Writing::greedy(1024, stops(language))),
        gold: Gold::Checks(Checks {
            language,
            before: begin.trim_end().to_owned(),
            after: setup + &row.text("test")?,
        }),
    }])
}

fn language(row: &Row<'_>) -> Result<Language, ItemError> {
    let id = row.text("task_id")?;
    match id.split('/').next().unwrap_or_default() {
        "Python" => Ok(Language::Python),
        "JavaScript" => Ok(Language::JavaScript),
        "Java" => Ok(Language::Java),
        "Go" => Ok(Language::Go),
        "CPP" => Ok(Language::Cpp),
        "Rust" => Ok(Language::Rust),
        _ => Err(ItemError::Value {
            field: "task_id",
            got: id.chars().take(40).collect(),
            expected: "a language of HumanEvalPack and a number, such as `Rust/5`",
        }),
    }
}
