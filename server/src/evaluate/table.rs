//! A report as text, Markdown and CSV.

use fedllm_shared::Estimate;

use super::report::{MetricReport, Paired, Part, Report, TaskReport};
use crate::simulate::table::{markdown, quoted};
use crate::simulate::text::{aligned, estimate, printable};

/// Characters that a name may take in a terminal.
const NAME: usize = 32;

impl Report {
    /// As a terminal shows it.
    pub fn text(&self) -> String {
        let clean = |line: Vec<String>| -> Vec<String> {
            line.iter().map(|cell| printable(cell, NAME)).collect()
        };
        let lines: Vec<Vec<String>> = self.lines().into_iter().map(clean).collect();
        let mut text = aligned(&format!("<<>{}", "<".repeat(self.columns())), &lines);
        for (task, reason, hint) in self.refusals() {
            text.push_str(&format!("{task}: not done: {reason}\n  hint: {hint}\n"));
        }
        text
    }

    /// As Markdown: the figures, those of groups and subjects, and how they came about.
    pub fn markdown(&self) -> String {
        let model = &self.model;
        let mut text = format!("# Evaluation of {}\n\n", model.name);
        text.push_str(&markdown(&self.lines()));
        text.push_str("\nValues are means ± standard errors");
        if self.systems.len() > 1 {
            text.push_str("; differences are of the same rows, p of equally good systems");
        }
        text.push_str(".\n");
        let refusals: Vec<String> = self
            .refusals()
            .map(|(task, reason, hint)| format!("- {task}: {reason}; {hint}\n"))
            .collect();
        if !refusals.is_empty() {
            text.push_str("\n## Not done\n\n");
            text.extend(refusals);
        }
        for task in &self.tasks {
            for metric in &task.metrics {
                if !metric.clusters.is_empty() {
                    let title = format!("\n## {}: {}\n\n", task.name, metric.name);
                    text.push_str(&title);
                    text.push_str(&markdown(&self.part_lines(metric)));
                }
            }
        }
        text.push_str("\n## How\n\n");
        text.push_str(&format!(
            "- model {} ({}), {} on {}, texts of {} tokens at most\n",
            model.name,
            model.digest.short(),
            model.precision,
            model.device,
            model.context
        ));
        for task in self.tasks.iter().filter(|task| !task.metrics.is_empty()) {
            text.push_str(&how(task));
        }
        text
    }

    /// As CSV, a line for each figure.
    pub fn csv(&self) -> String {
        let mut text = "task,metric,cluster,system,value,standard_error,rows\n".to_owned();
        let mut push = |task: &str, metric: &str, cluster: &str, values: &[Estimate]| {
            for (system, value) in self.systems.iter().zip(values) {
                let number = |value: Option<f64>| value.map_or(String::new(), |v| v.to_string());
                let cells = [
                    quoted(task),
                    quoted(metric),
                    quoted(cluster),
                    quoted(&system.name),
                    number(value.mean),
                    number(value.standard_error),
                    value.count.to_string(),
                ];
                text.push_str(&(cells.join(",") + "\n"));
            }
        };
        for task in &self.tasks {
            for metric in &task.metrics {
                push(&task.name, &metric.name, "", &metric.values);
                for part in metric.groups.iter().chain(&metric.clusters) {
                    push(&task.name, &metric.name, &part.name, &part.values);
                }
            }
        }
        for mean in &self.means {
            push(&mean.name, &mean.metric, "", &mean.values);
        }
        text
    }

    /// Columns after task, metric and rows.
    fn columns(&self) -> usize {
        2 * self.systems.len() - 1
    }

    /// The header and the figures of all rows, as cells.
    pub(super) fn lines(&self) -> Vec<Vec<String>> {
        let mut header = ["task", "metric", "rows"].map(str::to_owned).to_vec();
        header.extend(self.systems.iter().map(|system| system.name.clone()));
        let adapters = self.systems.iter().skip(1);
        header.extend(adapters.map(|adapter| format!("{} minus base", adapter.name)));
        let mut lines = vec![header];
        for task in &self.tasks {
            for metric in &task.metrics {
                let mut line = line(&task.name, &metric.name, &metric.values);
                line.extend((1..self.systems.len()).map(|system| difference(metric, system)));
                lines.push(line);
            }
            for part in task.main().into_iter().flat_map(|metric| &metric.groups) {
                let metric = &task.metrics[0].name;
                lines.push(line(&format!("  {}", part.name), metric, &part.values));
            }
            if task.metrics.is_empty() {
                lines.push(vec![task.name.clone(), "not done".to_owned()]);
            }
        }
        for mean in &self.means {
            lines.push(line(&mean.name, &mean.metric, &mean.values));
        }
        if !self.ranks.is_empty() {
            let mut line = ["average rank", "", ""].map(str::to_owned).to_vec();
            line.extend(self.ranks.iter().map(|rank| format!("{rank:.2}")));
            lines.push(line);
        }
        for line in &mut lines {
            line.resize(3 + self.columns(), String::new());
        }
        lines
    }

    pub(super) fn part_lines(&self, metric: &MetricReport) -> Vec<Vec<String>> {
        let mut header = ["part", "group", "rows"].map(str::to_owned).to_vec();
        header.extend(self.systems.iter().map(|system| system.name.clone()));
        let row = |part: &Part| {
            line(
                &part.name,
                part.group.as_deref().unwrap_or(""),
                &part.values,
            )
        };
        let rows = metric.clusters.iter().map(row);
        [header].into_iter().chain(rows).collect()
    }

    fn refusals(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        self.tasks.iter().filter_map(|task| {
            let (reason, hint) = task.refusal()?;
            Some((task.name.as_str(), reason, hint))
        })
    }
}

fn line(name: &str, metric: &str, values: &[Estimate]) -> Vec<String> {
    let rows = values.iter().map(|value| value.count).max().unwrap_or(0);
    let mut line = vec![name.to_owned(), metric.to_owned(), rows.to_string()];
    line.extend(values.iter().map(cell));
    line
}

fn cell(value: &Estimate) -> String {
    estimate(value.mean.unwrap_or(f64::NAN), value.standard_error)
}

/// How far a system is from the base, and how likely that is by chance.
fn difference(metric: &MetricReport, system: usize) -> String {
    let is_it = |paired: &&Paired| paired.system == system && paired.against == 0;
    let Some(paired) = metric.comparisons.iter().find(is_it) else {
        return String::new();
    };
    let sign = match paired.difference.mean {
        Some(mean) if mean > 0.0 => "+",
        _ => "",
    };
    let p = match paired.p_value {
        None => String::new(),
        Some(p) if p < 0.001 => " (p < 0.001)".to_owned(),
        Some(p) => format!(" (p {p:.3})"),
    };
    format!("{sign}{}{p}", cell(&paired.difference))
}

/// What a task's figures were made of.
fn how(task: &TaskReport) -> String {
    let mut text = format!(
        "- {}: {} questions, {} shots; {}",
        task.name, task.rows, task.shots, task.prompt
    );
    if let Some(reference) = &task.reference {
        text.push_str(&format!("; as the reference: {reference}"));
    }
    if task.bad_rows > 0 {
        text.push_str(&format!("; {} rows could not be used", task.bad_rows));
    }
    text + "\n"
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::PathBuf;

    use fedllm_models::eval::{Prompts, Scale, task};
    use fedllm_shared::Digest;

    use super::super::report::{AdapterFacts, FORMAT, Model, Outcome, Settings, System, Test};
    use super::*;

    fn value(mean: f64) -> Estimate {
        Estimate {
            mean: Some(mean),
            standard_error: Some(0.02),
            count: 100,
        }
    }

    /// A task with one metric, a hundred rows.
    pub(in crate::evaluate) fn done(name: &str, metric: &str, means: &[f64]) -> TaskReport {
        let values: Vec<Estimate> = means.iter().copied().map(value).collect();
        TaskReport {
            name: name.to_owned(),
            rows: 100,
            metrics: vec![MetricReport {
                name: metric.to_owned(),
                scale: Scale::Share,
                values,
                groups: Vec::new(),
                clusters: Vec::new(),
                comparisons: Vec::new(),
            }],
            ..TaskReport::new(task("mmlu").unwrap(), Prompts::Sound)
        }
    }

    pub(in crate::evaluate) fn report() -> Report {
        let mut mmlu = done("mmlu", "acc", &[0.25, 0.31]);
        let part = |name: &str, group: Option<&str>| Part {
            name: name.to_owned(),
            group: group.map(str::to_owned),
            values: vec![value(0.25), value(0.31)],
        };
        mmlu.metrics[0].groups = vec![part("STEM", None)];
        mmlu.metrics[0].clusters = vec![part("a|b", Some("STEM"))];
        mmlu.metrics[0].comparisons = vec![Paired {
            system: 1,
            against: 0,
            difference: value(0.06),
            p_value: Some(0.0027),
            test: Test::Normal,
        }];
        let missing = TaskReport {
            name: "gsm8k".to_owned(),
            outcome: Outcome::MissingData {
                reason: "no files".to_owned(),
                hint: "get them".to_owned(),
            },
            metrics: Vec::new(),
            ..done("gsm8k", "acc", &[])
        };
        let adapter = AdapterFacts {
            path: PathBuf::from("runs/fedavg"),
            digest: Digest::default(),
        };
        let system = |name: &str, adapter| System {
            name: name.to_owned(),
            adapter,
        };
        Report {
            format: FORMAT,
            version: "0.1.0".to_owned(),
            model: Model {
                name: "tiny".to_owned(),
                digest: Digest::default(),
                tokenizer: Digest::default(),
                precision: "f32".to_owned(),
                device: "cpu".to_owned(),
                context: 512,
            },
            settings: Settings {
                prompts: Prompts::Sound,
                template: "plain".to_owned(),
                conversation: "chat".to_owned(),
                shots: None,
                shot_seed: None,
                limit: None,
                sample: None,
                seed: 0,
                judge: None,
            },
            systems: vec![system("base", None), system("fedavg", Some(adapter))],
            tasks: vec![mmlu, missing],
            means: Vec::new(),
            ranks: vec![2.0, 1.0],
        }
    }

    #[test]
    fn a_terminal_shows_systems_side_by_side() {
        let expected = "\
task          metric    rows  base           fedavg         fedavg minus base
mmlu          acc        100  0.250 ± 0.020  0.310 ± 0.020  +0.060 ± 0.020 (p 0.003)
  STEM        acc        100  0.250 ± 0.020  0.310 ± 0.020
gsm8k         not done
average rank                  2.00           1.00
gsm8k: not done: no files
  hint: get them
";
        let text = report().text();
        assert_eq!(text, expected, "\n{text}");
    }

    #[test]
    fn csv_has_a_line_for_each_figure() {
        let expected = "\
task,metric,cluster,system,value,standard_error,rows
mmlu,acc,,base,0.25,0.02,100
mmlu,acc,,fedavg,0.31,0.02,100
mmlu,acc,STEM,base,0.25,0.02,100
mmlu,acc,STEM,fedavg,0.31,0.02,100
mmlu,acc,a|b,base,0.25,0.02,100
mmlu,acc,a|b,fedavg,0.31,0.02,100
";
        assert_eq!(report().csv(), expected);
    }

    #[test]
    fn markdown_has_parts_and_what_was_not_done() {
        let text = report().markdown();
        for part in [
            "| mmlu | acc | 100 | 0.250 ± 0.020 |",
            "| a\\|b | STEM | 100 |",
            "## Not done\n\n- gsm8k: no files; get them\n",
            "- mmlu: 100 questions, 0 shots; hendrycks",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }

    #[test]
    fn json_is_read_back() {
        let json = serde_json::to_string(&report()).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report());
    }
}
