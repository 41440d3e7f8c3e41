//! How models do on benchmarks: by round, and at the end.

use fedllm_shared::TaskScore;

use super::figure::{Drawing, Figure};
use super::learning::{arms, arms_plot};
use super::tables::folded;
use crate::report::html::{escape, name};
use crate::simulate::metrics::{RoundMetrics, RunSummary, TaskEvaluation};
use crate::simulate::text::{estimate, grouped};

/// A task and its metric.
type Key<'a> = (&'a str, &'a str);

fn key(evaluation: &TaskEvaluation) -> Key<'_> {
    (&evaluation.score.task, &evaluation.score.metric)
}

/// The tasks, in the order in which they were measured.
fn keys<'a>(evaluations: impl Iterator<Item = &'a TaskEvaluation>) -> Vec<Key<'a>> {
    let mut keys = Vec::new();
    for key in evaluations.map(key) {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys
}

/// A plot of each task.
pub(super) fn plots(summary: &RunSummary, rounds: &[RoundMetrics]) -> Vec<Figure<'static>> {
    let of = |after: f64, all| -> Vec<(f64, &TaskEvaluation)> {
        let all: &[TaskEvaluation] = all;
        all.iter().map(|evaluation| (after, evaluation)).collect()
    };
    let last = summary.rounds.max(1) as f64;
    let mut known: Vec<(f64, &TaskEvaluation)> = rounds
        .iter()
        .flat_map(|round| of(round.round as f64 + 1.0, &round.tasks))
        .collect();
    known.extend(of(last, &summary.tasks));
    let figure = |(task, metric): Key<'_>| {
        let known = known.iter().filter(|(_, one)| key(one) == (task, metric));
        let rows = known.clone().map(|(_, one)| one.score.rows).max();
        let arms = arms(known.map(|(round, one)| (*round, one.arm.as_str(), &one.score)));
        let of = |score: &TaskScore| Some((score.value?, score.standard_error.unwrap_or(0.0)));
        Figure {
            title: task.to_owned(),
            caption: format!(
                "{metric} of {} rows. Bars and bands are standard errors over rows; those of the \
                 local mean are over owners.",
                grouped(rows.unwrap_or(0))
            ),
            drawing: Drawing::Plot(arms_plot(&arms, metric, of)),
        }
    };
    let tasks = keys(known.iter().map(|(_, evaluation)| *evaluation));
    tasks.into_iter().map(figure).collect()
}

/// The figures at the end, a line for each model.
pub(super) fn table(summary: &RunSummary) -> String {
    let tasks = keys(summary.tasks.iter());
    let columns = tasks
        .iter()
        .map(|(task, metric)| escape(&format!("{task}, {metric}")));
    let header: Vec<String> = ["model".to_owned()].into_iter().chain(columns).collect();
    let mut models: Vec<&str> = Vec::new();
    for evaluation in &summary.tasks {
        if !models.contains(&evaluation.arm.as_str()) {
            models.push(&evaluation.arm);
        }
    }
    let line = |model: &&str| {
        let cell = |task: &Key<'_>| {
            let mut all = summary.tasks.iter();
            let score = all.find(|one| one.arm == *model && key(one) == *task);
            score.map_or_else(String::new, |one| {
                let value = one.score.value.unwrap_or(f64::NAN);
                estimate(value, one.score.standard_error)
            })
        };
        let cells = tasks.iter().map(cell);
        [name(model)].into_iter().chain(cells).collect()
    };
    let lines: Vec<Vec<String>> = models.iter().map(line).collect();
    let caption =
        "At the end, ± standard errors over rows; those of the local mean are over owners.";
    folded(caption, &header, &lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::metrics::tests::{round, task};

    #[test]
    fn each_task_has_a_plot_with_a_line_for_each_model() {
        let mut rounds = [round(0), round(1)];
        rounds[0].tasks.clear();
        let ends = vec![
            task("base", "mmlu", 0.25),
            task("base", "fpb", 0.5),
            task("global", "mmlu", 0.375),
            task("global", "fpb", 0.625),
        ];
        rounds[1].tasks.clone_from(&ends);
        let summary = RunSummary {
            rounds: 2,
            tasks: ends,
            ..RunSummary::default()
        };
        let figures = plots(&summary, &rounds);
        let titles: Vec<&str> = figures.iter().map(|figure| figure.title.as_ref()).collect();
        assert_eq!(titles, ["mmlu", "fpb"]);
        let Drawing::Plot(plot) = &figures[1].drawing else {
            panic!("a plot");
        };
        let names: Vec<&str> = plot.lines.iter().map(|line| line.name.as_str()).collect();
        assert_eq!(names, ["global", "base"]);
        let points = &plot.lines[0].points;
        assert_eq!((points.len(), points[0].round), (1, 2.0));
        assert_eq!((points[0].value, points[0].error), (0.625, 0.0625));
        assert!(figures[0].caption.contains("acc of 60 rows"));

        let table = table(&summary);
        for part in ["fpb, acc", "0.625 ± 0.062", "0.375 ± 0.062"] {
            assert!(table.contains(part), "{part}: {table}");
        }
        assert!(plots(&RunSummary::default(), &[]).is_empty());
    }
}
