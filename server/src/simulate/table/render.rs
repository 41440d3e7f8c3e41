//! Tables as text, Markdown and CSV.

use std::fmt::{self, Write as _};

use fedllm_shared::Estimate;

use super::{SweepArm, SweepTable};
use crate::simulate::metrics::{Evaluation, RunSummary, TaskEvaluation};
use crate::simulate::text::{aligned, estimate, grouped, printable};

/// Characters that a setting or a model's name may take in a terminal.
const NAME: usize = 32;

/// Characters that the head of a column may take.
const HEADER: usize = 60;

/// The final figures of one run, with their standard errors over rows: on held-out rows, then on
/// benchmarks.
pub fn summary_table(summary: &RunSummary) -> String {
    let tables = [held_out(summary), benchmarks(summary)];
    let tables: Vec<String> = tables.into_iter().flatten().collect();
    tables.join("\n")
}

fn benchmarks(summary: &RunSummary) -> Option<String> {
    let line = |one: &TaskEvaluation| {
        let score = &one.score;
        let value = score.value.unwrap_or(f64::NAN);
        vec![
            score.task.clone(),
            score.metric.clone(),
            printable(&one.arm, NAME),
            grouped(score.rows),
            estimate(value, score.standard_error),
        ]
    };
    let header = ["task", "metric", "model", "rows", "value"].map(str::to_owned);
    let mut lines: Vec<Vec<String>> = summary.tasks.iter().map(line).collect();
    // Models side by side, in the order in which they were measured.
    lines.sort_by(|a, b| a[0].cmp(&b[0]));
    lines.insert(0, header.to_vec());
    (lines.len() > 1).then(|| aligned("<<<><", &lines))
}

fn held_out(summary: &RunSummary) -> Option<String> {
    if summary.evaluations.is_empty() && !summary.tasks.is_empty() {
        return None;
    }
    let evaluations = &summary.evaluations;
    let has = |part: fn(&Evaluation) -> Option<f64>| evaluations.iter().any(|e| part(e).is_some());
    let (accuracy, margin) = (has(|e| e.accuracy), has(|e| e.margin));
    let mut header = vec!["model", "rows", "loss (nats)"];
    header.extend(accuracy.then_some("accuracy (%)"));
    header.extend(margin.then_some("margin (nats)"));
    let mut lines = vec![header.into_iter().map(String::from).collect::<Vec<_>>()];
    for evaluation in evaluations {
        let mut line = vec![
            printable(&evaluation.arm, NAME),
            grouped(evaluation.rows),
            estimate(evaluation.loss, Some(evaluation.loss_se)),
        ];
        let optional = |value: Option<f64>, error: Option<f64>, factor| {
            let error = error.map(|error| error * factor);
            estimate(value.map_or(f64::NAN, |value| value * factor), error)
        };
        if accuracy {
            line.push(optional(evaluation.accuracy, evaluation.accuracy_se, 100.0));
        }
        if margin {
            line.push(optional(evaluation.margin, evaluation.margin_se, 1.0));
        }
        lines.push(line);
    }
    Some(aligned("<><<<", &lines))
}

impl SweepTable {
    /// The table as Markdown.
    pub fn markdown(&self) -> String {
        markdown(&self.lines())
    }

    /// The table as CSV: each metric's mean, standard error and number of runs, unrounded.
    pub fn csv(&self) -> String {
        let mut header: Vec<String> = self.keys.iter().map(|key| quoted(key)).collect();
        let baseline = |difference: &super::Differences| {
            let label = self.label(&self.arms[difference.baseline]);
            format!("{} minus {label}", self.metrics[difference.metric])
        };
        let differences = self.differences.iter().map(baseline);
        for name in self.metrics.iter().cloned().chain(differences) {
            let parts = ["mean", "standard error", "runs"];
            header.extend(parts.map(|part| quoted(&format!("{name}, {part}"))));
        }
        let mut text = header.join(",") + "\n";
        for (index, arm) in self.arms.iter().enumerate() {
            let mut cells: Vec<String> = arm.settings.iter().map(|value| quoted(value)).collect();
            let compared = self.differences.iter().map(|all| &all.estimates[index]);
            for estimate in arm.estimates.iter().chain(compared) {
                let number = |value: Option<f64>| value.map_or(String::new(), |v| v.to_string());
                cells.extend([
                    number(estimate.mean),
                    number(estimate.standard_error),
                    estimate.count.to_string(),
                ]);
            }
            text.push_str(&(cells.join(",") + "\n"));
        }
        text
    }

    /// The header and the arms, as cells. A mean that not every run is in says how many are.
    pub(in crate::simulate) fn lines(&self) -> Vec<Vec<String>> {
        let mut header = self.keys.clone();
        header.push("runs".into());
        header.extend(self.metrics.iter().cloned());
        header.extend(self.differences.iter().map(|difference| {
            let label = self.label(&self.arms[difference.baseline]);
            format!("{} minus {label}", self.metrics[difference.metric])
        }));
        let rows = self.arms.iter().enumerate();
        let rows = rows.map(|(index, arm)| self.line(index, arm));
        [header].into_iter().chain(rows).collect()
    }

    fn line(&self, index: usize, arm: &SweepArm) -> Vec<String> {
        let runs = arm.runs.len();
        let mut line = arm.settings.clone();
        line.push(runs.to_string());
        line.extend(
            arm.estimates
                .iter()
                .map(|estimate| cell(estimate, runs, "")),
        );
        line.extend(self.differences.iter().map(|difference| {
            let estimate = &difference.estimates[index];
            match estimate.mean {
                _ if index == difference.baseline => String::new(),
                Some(mean) if mean > 0.0 => cell(estimate, runs, "+"),
                _ => cell(estimate, runs, ""),
            }
        }));
        line
    }
}

impl fmt::Display for SweepTable {
    /// As a terminal shows it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let clean = |(index, line): (usize, Vec<String>)| {
            let width = if index == 0 { HEADER } else { NAME };
            line.iter().map(|cell| printable(cell, width)).collect()
        };
        let lines: Vec<Vec<String>> = self.lines().into_iter().enumerate().map(clean).collect();
        let columns = self.keys.len() + 1 + self.metrics.len() + self.differences.len();
        let mut sides = "<".repeat(columns);
        sides.replace_range(self.keys.len()..=self.keys.len(), ">");
        f.write_str(&aligned(&sides, &lines))
    }
}

fn cell(value: &Estimate, runs: usize, sign: &str) -> String {
    let mean = value.mean.unwrap_or(f64::NAN);
    let mut text = format!("{sign}{}", estimate(mean, value.standard_error));
    if value.count < runs {
        // Writing to a string does not fail.
        let _ = write!(text, " ({} of {runs})", value.count);
    }
    text
}

/// Lines of cells, the header first, as a table of Markdown.
pub(crate) fn markdown(lines: &[Vec<String>]) -> String {
    let escape = |cell: &String| printable(cell, usize::MAX).replace('|', "\\|");
    let mut text = String::new();
    for (index, line) in lines.iter().enumerate() {
        let cells: Vec<String> = line.iter().map(escape).collect();
        text.push_str(&format!("| {} |\n", cells.join(" | ")));
        if index == 0 {
            text.push_str(&format!("|{}\n", " --- |".repeat(line.len())));
        }
    }
    text
}

/// A cell of CSV, in quotes where RFC 4180 wants them.
pub(crate) fn quoted(cell: &str) -> String {
    if cell.contains(['"', ',', '\n', '\r']) {
        format!("\"{}\"", cell.replace('"', "\"\""))
    } else {
        cell.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{run, strategies};
    use super::*;
    use crate::simulate::metrics::tests::task;

    #[test]
    fn a_terminal_shows_means_errors_and_differences() {
        let mut table = strategies();
        table.compare("loss (nats)", "fedavg").unwrap();
        let expected = "\
strategy  runs  loss (nats)  accuracy (%)    loss (nats) minus fedavg
fedavg       3  3.00 ± 0.58  50.00 ± 0.00
fedprox      3  2.67 ± 0.58  50.00 ± 0.00    -0.333 ± 0.083
";
        let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(
            squeezed(&table.to_string()),
            squeezed(expected),
            "\n{table}"
        );
        let starts = |line: &str| line.find("3.00").or(line.find("2.67"));
        let starts: Vec<_> = table.to_string().lines().filter_map(starts).collect();
        assert_eq!(starts[0], starts[1], "columns are aligned");
    }

    #[test]
    fn a_single_run_has_no_error_and_a_lost_one_shows() {
        let table = SweepTable::new(&[
            run(&[("lr", "1"), ("seed", "1")], &[("loss", 1.5)]),
            run(&[("lr", "2"), ("seed", "1")], &[("loss", 2.0)]),
            run(&[("lr", "2"), ("seed", "2")], &[("loss", f64::NAN)]),
            run(&[("lr", "3"), ("seed", "2")], &[("loss", f64::NAN)]),
        ]);
        let lines: Vec<String> = table.to_string().lines().map(str::to_owned).collect();
        assert!(lines[1].ends_with("  1.500"), "\n{table}");
        assert!(lines[2].ends_with("  2.000 (1 of 2)"), "\n{table}");
        assert!(lines[3].ends_with("  – (0 of 1)"), "\n{table}");
    }

    #[test]
    fn markdown_and_csv_escape_what_they_must() {
        let mut table = SweepTable::new(&[
            run(&[("data", "a|b"), ("seed", "1")], &[("loss (nats)", 1.5)]),
            run(
                &[("data", "say \"c\""), ("seed", "1")],
                &[("loss (nats)", 2.0)],
            ),
        ]);
        table.compare("loss (nats)", "a|b").unwrap();
        let markdown = "\
| data | runs | loss (nats) | loss (nats) minus a\\|b |
| --- | --- | --- | --- |
| a\\|b | 1 | 1.500 |  |
| say \"c\" | 1 | 2.000 | +0.5000 |
";
        assert_eq!(table.markdown(), markdown);
        let csv = "\
data,\"loss (nats), mean\",\"loss (nats), standard error\",\"loss (nats), runs\",\
\"loss (nats) minus a|b, mean\",\"loss (nats) minus a|b, standard error\",\
\"loss (nats) minus a|b, runs\"
a|b,1.5,,1,0,,1
\"say \"\"c\"\"\",2,,1,0.5,,1
";
        assert_eq!(table.csv(), csv);
    }

    #[test]
    fn json_has_every_run() {
        let json = serde_json::to_value(strategies()).unwrap();
        assert_eq!(json["arms"][1]["runs"][0]["seed"], "3");
        assert_eq!(json["arms"][1]["runs"][0]["values"][0], 3.75);
        assert_eq!(json["arms"][0]["estimates"][0]["mean"], 3.0);
    }

    #[test]
    fn a_summary_has_a_line_for_each_model() {
        let evaluation = |arm: &str, loss, accuracy: Option<f64>| Evaluation {
            arm: arm.into(),
            rows: 1200,
            loss,
            loss_se: 0.0345,
            accuracy,
            accuracy_se: accuracy.map(|_| 0.0125),
            margin: None,
            margin_se: None,
        };
        let summary = RunSummary {
            evaluations: vec![
                evaluation("base", 2.5, None),
                evaluation("global", 1.25, Some(0.5)),
            ],
            ..RunSummary::default()
        };
        let expected = "\
model    rows  loss (nats)    accuracy (%)
base    1,200  2.500 ± 0.035  –
global  1,200  1.250 ± 0.035  50.0 ± 1.2
";
        assert_eq!(summary_table(&summary), expected);

        let tasks = vec![task("base", "mmlu", 0.25), task("global", "mmlu", 0.375)];
        let both = RunSummary { tasks, ..summary };
        let more = "
task  metric  model   rows  value
mmlu  acc     base      60  0.250 ± 0.062
mmlu  acc     global    60  0.375 ± 0.062
";
        assert_eq!(summary_table(&both), format!("{expected}{more}"));
        let alone = RunSummary {
            evaluations: Vec::new(),
            ..both
        };
        assert_eq!(summary_table(&alone), more.trim_start());
    }
}
