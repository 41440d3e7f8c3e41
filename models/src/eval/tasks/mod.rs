//! The tasks, a file each, and the table that lists them.

mod advbench;
mod bbh;
mod conala;
mod drop;
mod ds1000;
mod gsm8k;
mod humaneval;
mod humanevalpack;
mod math;
mod mbpp;
mod mmlu;
mod mt_bench;
mod numglue;
mod open_ended;
mod svamp;

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
    use crate::eval::Grader;
    use std::collections::BTreeSet;

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
