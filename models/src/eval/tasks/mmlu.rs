//! MMLU (Hendrycks et al. 2021, arXiv 2009.03300): 57 subjects, four choices.

use std::sync::Arc;

use fedllm_shared::{Files, Header, ReadAs, Split};

use crate::eval::choose::{self, ACCURACY, LETTERS};
use crate::eval::row::choice;
use crate::eval::{Ask, Gold, Grader, Item, ItemError, Prompts, Row, Shots, Source, Task};

/// All subjects.
pub(super) static TASK: Task = Task {
    name: "mmlu",
    about: "57 subjects from elementary mathematics to law, four choices each",
    prompt: "hendrycks/test evaluate.py: 5 examples of the subject, letters as choices",
    reference: None,
    suites: &["paper", "general"],
    source: SOURCE,
    shots: SHOTS,
    items,
    grader: Grader::Direct(choose::grade),
    metrics: &[ACCURACY],
    group: Some(group),
};

/// The subjects that models for medicine are compared by.
pub(super) static MEDICAL: Task = Task {
    about: "the six subjects of MMLU about medicine, four choices each",
    prompt: "as mmlu",
    suites: &["medical"],
    source: SOURCE,
    shots: SHOTS,
    metrics: &[ACCURACY],
    ..choose::task("mmlu-medical", medical)
};

const SOURCE: Source = Source {
    hub: &["cais/mmlu"],
    folders: &["mmlu", "hendrycks_test"],
    test: Split {
        name: "test",
        files: Files::FirstOf(&[&["**/*_test.csv"], &["all/test-*.parquet"]]),
    },
    examples: Some(Split {
        name: "dev",
        files: Files::FirstOf(&[&["**/*_dev.csv"], &["all/dev-*.parquet"]]),
    }),
    beside: None,
    read_as: ReadAs {
        header: Header::IfFirstIs(&["question"]),
        ..ReadAs::ITSELF
    },
    licence: "MIT",
};

const SHOTS: Shots = Shots {
    of_cluster: true,
    description: Some(description),
    ..Shots::of(5)
};

fn description(subject: Option<&str>, _: usize) -> String {
    let subject = subject.unwrap_or_default().replace('_', " ");
    format!("The following are multiple choice questions (with answers) about {subject}.\n\n")
}

fn medical(row: &Row<'_>, prompts: Prompts) -> Result<Vec<Item>, ItemError> {
    const SUBJECTS: [&str; 6] = [
        "anatomy",
        "clinical_knowledge",
        "college_biology",
        "college_medicine",
        "medical_genetics",
        "professional_medicine",
    ];
    match SUBJECTS.contains(&&subject(row)?[..]) {
        true => items(row, prompts),
        false => Ok(Vec::new()),
    }
}

fn items(row: &Row<'_>, _: Prompts) -> Result<Vec<Item>, ItemError> {
    let subject = subject(row)?;
    let (question, choices, answer) = fields(row)?;
    let right = choice(&answer, choices.len(), "answer")?;
    let listed: String = choices
        .iter()
        .zip(LETTERS)
        .map(|(choice, letter)| format!("{letter}. {choice}\n"))
        .collect();
    Ok(vec![Item {
        id: format!("{subject}/{}", row.index),
        cluster: Some(Arc::from(subject)),
        prompt: format!("{}\n{listed}Answer:", question.trim()),
        answer: format!(" {}", LETTERS[right]),
        ask: Ask::Choose(LETTERS[..4].iter().map(|l| format!(" {l}")).collect()),
        gold: Gold::Choice(right),
    }])
}

/// The subject, which the hub has as a column, the authors' archive as the file's name.
fn subject(row: &Row<'_>) -> Result<String, ItemError> {
    if row.has("subject") {
        return row.text("subject");
    }
    let stem = row.stem();
    let endings = ["_test", "_dev", "_val"];
    let subject = endings.iter().find_map(|ending| stem.strip_suffix(ending));
    Ok(subject.unwrap_or(stem).to_owned())
}

/// Question, four choices and the answer in any of the layouts: columns without names, `choices`
/// as a list, `choice0` to `choice3`.
fn fields(row: &Row<'_>) -> Result<(String, Vec<String>, String), ItemError> {
    let named = |names: [&'static str; 4]| names.map(|name| row.text(name)).into_iter().collect();
    if row.has("choices") {
        return Ok((
            row.text("question")?,
            row.texts("choices")?,
            row.text("answer")?,
        ));
    }
    if row.has("question") {
        let choices: Result<_, _> = named(["choice0", "choice1", "choice2", "choice3"]);
        return Ok((row.text("question")?, choices?, row.text("answer")?));
    }
    let choices: Result<_, _> = named(["1", "2", "3", "4"]);
    Ok((row.text("0")?, choices?, row.text("5")?))
}

/// The authors' four groups of subjects (categories.py).
fn group(subject: &str) -> &'static str {
    const STEM: &[&str] = &[
        "abstract_algebra",
        "astronomy",
        "college_biology",
        "college_chemistry",
        "college_computer_science",
        "college_mathematics",
        "college_physics",
        "computer_security",
        "conceptual_physics",
        "electrical_engineering",
        "elementary_mathematics",
        "high_school_biology",
        "high_school_chemistry",
        "high_school_computer_science",
        "high_school_mathematics",
        "high_school_physics",
        "high_school_statistics",
        "machine_learning",
    ];
    const HUMANITIES: &[&str] = &[
        "formal_logic",
        "high_school_european_history",
        "high_school_us_history",
        "high_school_world_history",
        "international_law",
        "jurisprudence",
        "logical_fallacies",
        "moral_disputes",
        "moral_scenarios",
        "philosophy",
        "prehistory",
        "professional_law",
        "world_religions",
    ];
    const SOCIAL: &[&str] = &[
        "econometrics",
        "high_school_geography",
        "high_school_government_and_politics",
        "high_school_macroeconomics",
        "high_school_microeconomics",
        "high_school_psychology",
        "human_sexuality",
        "professional_psychology",
        "public_relations",
        "security_studies",
        "sociology",
        "us_foreign_policy",
    ];
    match subject {
        subject if STEM.contains(&subject) => "STEM",
        subject if HUMANITIES.contains(&subject) => "humanities",
        subject if SOCIAL.contains(&subject) => "social sciences",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::tasks::tests::{asked, chosen, one, refused};
    use serde_json::json;

    #[test]
    fn every_layout_asks_the_same() {
        let choices = ["bone", "skin", "nail", "None"];
        let hub = json!({
            "question": " What breaks? ", "subject": "anatomy", "choices": choices, "answer": 0,
        });
        let authors = json!({
            "0": " What breaks? ", "1": "bone", "2": "skin", "3": "nail", "4": "None", "5": "A",
        });
        let named = json!({
            "question": " What breaks? ", "choice0": "bone", "choice1": "skin", "choice2": "nail",
            "choice3": "None", "answer": "0",
        });
        for row in [hub, authors, named] {
            let prompt = "What breaks?\nA. bone\nB. skin\nC. nail\nD. None\nAnswer:";
            for task in [&TASK, &MEDICAL] {
                let file = "mmlu/test/anatomy_test.csv";
                chosen(task, file, &row, (prompt, &[" A", " B", " C", " D"], 0));
                let item = one(task, file, &row);
                assert_eq!(item.id, "anatomy/0");
                assert_eq!(item.cluster.as_deref(), Some("anatomy"));
            }
            let law = asked(&MEDICAL, "jurisprudence_test.csv", &row, 0, Prompts::Sound).unwrap();
            assert_eq!(law.len(), usize::from(row.get("subject").is_some()));
        }
        let row = json!({"question": "a", "subject": "b", "choices": ["c"], "answer": 1});
        assert!(refused(&TASK, &row).starts_with("field `answer` is \"1\""));
        let start =
            "The following are multiple choice questions (with answers) about us foreign policy";
        assert_eq!(
            description(Some("us_foreign_policy"), 5),
            format!("{start}.\n\n")
        );
    }
}
