//! `evaluate --list`: the tasks.

use fedllm_models::eval::{Grader, Metric, Source, Task};
use serde::Serialize;

use crate::simulate::text::{aligned, printable};

/// A task as `--list --json` has it.
#[derive(Serialize)]
struct Listed<'a> {
    name: &'a str,
    about: &'a str,
    prompt: &'a str,
    reference: Option<&'a str>,
    suites: &'a [&'a str],
    metrics: &'a [Metric],
    shots: usize,
    source: Source,
    needs: Vec<&'static str>,
}

impl<'a> Listed<'a> {
    fn of(task: &'a Task) -> Self {
        Self {
            name: task.name,
            about: task.about,
            prompt: task.prompt,
            reference: task.reference,
            suites: task.suites,
            metrics: task.metrics,
            shots: task.shots.count,
            source: task.source,
            needs: needs(task),
        }
    }
}

/// Prints the tasks.
pub(super) fn list(tasks: &[&Task], json: bool) -> anyhow::Result<()> {
    if json {
        let tasks: Vec<Listed<'_>> = tasks.iter().map(|task| Listed::of(task)).collect();
        return super::super::print_json(&tasks);
    }
    let mut lines = vec![
        ["task", "suites", "metrics", "shots", "needs", "about"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for task in tasks {
        let metrics: Vec<&str> = task.metrics.iter().map(|metric| metric.name).collect();
        lines.push(vec![
            task.name.to_owned(),
            task.suites.join(" "),
            metrics.join(" "),
            task.shots.count.to_string(),
            needs(task).join(" "),
            printable(task.about, 80),
        ]);
    }
    print!("{}", aligned("<<<><<", &lines));
    Ok(())
}

/// What a task needs besides its data.
fn needs(task: &Task) -> Vec<&'static str> {
    match task.grader {
        Grader::Direct(_) | Grader::Relative(_) => Vec::new(),
        Grader::Program(_) => vec!["code execution"],
        Grader::Judge(_) => vec!["judge"],
    }
}
