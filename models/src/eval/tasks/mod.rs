//! The tasks, a file each, and the table that lists them.

mod advbench;
mod agieval;
mod agieval_cloze;
mod arc;
mod bbh;
mod boolq;
mod conala;
mod crass;
mod drop;
mod ds1000;
mod fiqa;
mod fpb;
mod gsm8k;
mod hellaswag;
mod hh_rlhf;
mod humaneval;
mod humanevalpack;
mod math;
mod mbpp;
mod medmcqa;
mod medqa;
mod mmlu;
mod mt_bench;
mod numglue;
mod nwgi;
mod open_ended;
mod openbookqa;
mod perplexity;
mod piqa;
mod pubmedqa;
mod social_iqa;
mod svamp;
mod tfns;
mod truthfulqa;
mod ultrafeedback;
mod winogrande;

use super::Task;

/// Every task.
pub static TASKS: &[&Task] = &[
    &mmlu::TASK,
    &bbh::DIRECT,
    &bbh::COT,
    &drop::TASK,
    &gsm8k::TASK,
    &svamp::TASK,
    &math::TASK,
    &numglue::TASK,
    &humaneval::TASK,
    &humanevalpack::TASKS[0],
    &humanevalpack::TASKS[1],
    &humanevalpack::TASKS[2],
    &humanevalpack::TASKS[3],
    &humanevalpack::TASKS[4],
    &humanevalpack::TASKS[5],
    &humanevalpack::TASKS[6],
    &humanevalpack::TASKS[7],
    &humanevalpack::TASKS[8],
    &humanevalpack::TASKS[9],
    &humanevalpack::TASKS[10],
    &humanevalpack::TASKS[11],
    &mbpp::TASK,
    &ds1000::TASK,
    &conala::CONALA,
    &conala::CONCODE,
    &mt_bench::TASK,
    &open_ended::VICUNA,
    &open_ended::FED_AYA_SET,
    &open_ended::FED_CHATBOT,
    &open_ended::FED_WILDCHAT,
    &advbench::TASK,
    &mmlu::MEDICAL,
    &crass::TASK,
    &agieval::ENGLISH,
    &agieval::CHINESE,
    &agieval_cloze::TASK,
    &truthfulqa::MC1,
    &truthfulqa::MC2,
    &arc::EASY,
    &arc::CHALLENGE,
    &hellaswag::TASK,
    &winogrande::TASK,
    &piqa::TASK,
    &social_iqa::TASK,
    &boolq::TASK,
    &openbookqa::TASK,
    &medqa::FOUR,
    &medqa::FIVE,
    &medmcqa::TASK,
    &pubmedqa::TASK,
    &fpb::TASK,
    &fpb::HELD_OUT,
    &fiqa::TASK,
    &fiqa::HELD_OUT,
    &tfns::TASK,
    &nwgi::TASK,
    &hh_rlhf::TASK,
    &ultrafeedback::TASK,
    &perplexity::TASK,
];

/// The task of this name.
///
/// # Errors
///
/// The name that is most like it.
pub fn task(name: &str) -> Result<&'static Task, &'static str> {
    let found = TASKS.iter().find(|task| task.name == name).copied();
    found.ok_or_else(|| fedllm_shared::nearest(name, TASKS.iter().map(|task| task.name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::{Ask, Gold, Grader, Item, ItemError, Prompts, Row};
    use serde_json::Value;
    use std::collections::BTreeSet;
    use std::path::Path;

    /// What a row of a file asks.
    pub(super) fn asked(
        task: &Task,
        file: &str,
        row: &Value,
        index: usize,
        prompts: Prompts,
    ) -> Result<Vec<Item>, ItemError> {
        let row = Row {
            fields: row.as_object().unwrap(),
            key: None,
            path: Path::new(file),
            index,
        };
        (task.items)(&row, prompts)
    }

    /// What a row at some place asks.
    pub(super) fn at(
        task: &Task,
        row: &Value,
        index: usize,
        prompts: Prompts,
    ) -> Result<Vec<Item>, ItemError> {
        asked(task, "test.jsonl", row, index, prompts)
    }

    /// The only question of a row.
    pub(super) fn one(task: &Task, file: &str, row: &Value) -> Item {
        let mut items = asked(task, file, row, 0, Prompts::Sound).unwrap();
        assert_eq!(items.len(), 1, "{row}");
        items.remove(0)
    }

    /// Checks prompt, continuations and right choice of a row's only question.
    pub(super) fn chosen(task: &Task, file: &str, row: &Value, expected: (&str, &[&str], usize)) {
        let item = one(task, file, row);
        let (prompt, choices, right) = expected;
        assert_eq!(item.prompt, prompt, "{row}");
        let choices = choices.iter().map(|&choice| choice.to_owned()).collect();
        assert_eq!(item.ask, Ask::Choose(choices), "{row}");
        assert_eq!(item.gold, Gold::Choice(right), "{row}");
        assert_eq!(item.answer, expected.1[right], "{row}");
    }

    /// Why a row is refused.
    pub(super) fn refused(task: &Task, row: &Value) -> String {
        let refused = asked(task, "test.jsonl", row, 0, Prompts::Sound);
        refused.unwrap_err().to_string()
    }

    #[test]
    fn the_table_is_consistent() {
        let names: BTreeSet<&str> = TASKS.iter().map(|task| task.name).collect();
        assert_eq!(names.len(), TASKS.len(), "two tasks of one name");
        for task in TASKS {
            assert!(!task.metrics.is_empty(), "{} reports nothing", task.name);
            assert!(
                !task.about.is_empty() && !task.prompt.is_empty(),
                "{}",
                task.name
            );
            if task.shots.count > 0 && task.source.examples.is_none() {
                assert!(
                    task.shots.description.is_some(),
                    "{}: whence its examples?",
                    task.name
                );
            }
            if let Grader::Relative(_) = task.grader {
                assert_eq!(task.shots.count, 0, "{}", task.name);
            }
        }
        assert_eq!(task("mlmu").unwrap_err(), "mmlu");
    }
}
