//! CRASS (Frohberg and Binder 2022, arXiv 2112.11941): what would have happened if.

use fedllm_shared::Files::FirstOf;

use crate::eval::choose::{self, ACCURACY, listed, split};
use crate::eval::layout::Question;
use crate::eval::{Item, ItemError, Prompts, Row, Shots, Source, Task};

pub(super) static TASK: Task = Task {
    about: "274 counterfactual conditionals, three or four outcomes each",
    prompt: "declare-lab/instruct-eval crass.py: the three examples of the paper, letters as \
             choices; the order of the choices is by their hash, not by Python's `random`",
    suites: &["paper", "general"],
    source: Source {
        folders: &["CRASS-data-set"],
        // On GitHub: apergo-ai/CRASS-data-set.
        test: split("test", FirstOf(&[&["**/CRASS_FTM_main_data_set.csv"]])),
        licence: "Apache-2.0",
        ..choose::SOURCE
    },
    shots: Shots {
        description: Some(examples),
        ..Shots::of(EXAMPLES.len())
    },
    metrics: &[ACCURACY],
    ..choose::task("crass", items)
};

fn examples(_: Option<&str>, count: usize) -> String {
    EXAMPLES.iter().take(count).copied().collect()
}

const EXAMPLES: [&str; 3] = [
    "A feather falls from a skyscraper. What would have happened if a computer had fallen from the \
     skyscraper?\nA. The computer would have remained intact.\nB. That is not possible.\nC. The \
     computer would have been crushed.\nAnswer: C\n\n",
    "A lightning hits a tree. What would have happened if a marble would have hit the tree?\nA. It \
     would have burned down.\nB. Nothing special would have happened.\nC. The tree would have \
     kissed the lightning.\nAnswer: B\n\n",
    "A man drinks a beer. What would have happened if the man had drunk a rainbow?\nA. It would \
     have been tasty.\nB. It would have been awful.\nC. That is not possible.\nAnswer: C\n\n",
];

fn items(row: &Row<'_>, _: Prompts) -> Result<Vec<Item>, ItemError> {
    let (premise, asked) = (row.text("Premise")?, row.text("QCC")?);
    let asked = format!("{} {}", premise.trim(), asked.trim());
    let right = row.text("CorrectAnswer")?;
    let mut choices = vec![right.trim().to_owned()];
    for field in ["Answer1", "Answer2", "PossibleAnswer3"] {
        let optional = field == "PossibleAnswer3" && !row.has(field);
        let choice = if optional {
            String::new()
        } else {
            row.text(field)?
        };
        if !choice.trim().is_empty() {
            choices.push(choice.trim().to_owned());
        }
    }
    if choices.len() < 2 || choices[0].is_empty() {
        return Err(ItemError::Value {
            field: "CorrectAnswer",
            got: right,
            expected: "an answer, and others in `Answer1` and `Answer2`",
        });
    }
    // The file has the right one first.
    let hash = |choice: &String| blake3::hash(format!("{asked}\n{choice}").as_bytes());
    choices.sort_by_cached_key(|choice| *hash(choice).as_bytes());
    let question = Question {
        right: choices
            .iter()
            .position(|choice| choice == right.trim())
            .unwrap_or_default(),
        text: asked,
        choices,
    };
    let prompt = format!("{}\n{}Answer:", question.text, listed(&question.choices));
    Ok(vec![choose::lettered(row.id(), prompt, &question)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::Gold;
    use crate::eval::tasks::tests::{one, refused};
    use serde_json::json;
    use std::collections::BTreeSet;

    fn row(premise: &str, fourth: &str) -> serde_json::Value {
        json!({
            "PCTID": "1", "BatchID": "1", "Premise": format!("{premise} "), "QCC": "What if?",
            "CorrectAnswer": "That.", "Answer1": "This.", "Answer2": " Those.",
            "PossibleAnswer3": fourth,
        })
    }

    #[test]
    fn the_right_choice_is_anywhere() {
        let mut places = BTreeSet::new();
        for i in 0..40 {
            let item = one(&TASK, "CRASS.csv", &row(&format!("It rains {i}."), ""));
            let Gold::Choice(right) = item.gold else {
                panic!("{item:?}")
            };
            places.insert(right);
            let line = format!("\n{}. That.\n", ["A", "B", "C"][right]);
            assert!(item.prompt.contains(&line), "{}", item.prompt);
            assert!(
                item.prompt
                    .starts_with(&format!("It rains {i}. What if?\nA. "))
            );
            assert!(item.prompt.ends_with(".\nAnswer:"));
            assert_eq!(item.answer, format!(" {}", ["A", "B", "C"][right]));
        }
        assert_eq!(Vec::from_iter(places), [0, 1, 2]);
        let item = one(&TASK, "CRASS.csv", &row("It snows.", "None."));
        assert!(item.prompt.contains("\nD. "));
        let mut row = row("It snows.", "");
        row["CorrectAnswer"] = json!("");
        assert!(refused(&TASK, &row).starts_with("field `CorrectAnswer` is \"\""));
    }

    #[test]
    fn examples_are_as_many_as_asked_for() {
        assert_eq!(examples(None, 0), "");
        assert!(examples(None, 1).ends_with("crushed.\nAnswer: C\n\n"));
        assert_eq!(examples(None, 3).matches("Answer:").count(), 3);
    }
}
