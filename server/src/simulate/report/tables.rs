//! The figures of a run in tables.

use crate::report::html::{bytes, duration, name, table};
use crate::simulate::metrics::{Evaluation, RoundMetrics, RunSummary};
use crate::simulate::text::{estimate, grouped};

/// Models that the table of the final evaluations shows at once.
const MODELS: usize = 20;

/// How the models do on held-out rows; of many, most are folded away.
pub(super) fn evaluations(summary: &RunSummary) -> String {
    let evaluations = &summary.evaluations;
    let loss = format!("loss, {}", summary.loss_unit());
    let accuracy = evaluations.iter().any(|e| e.accuracy.is_some());
    let margin = evaluations.iter().any(|e| e.margin.is_some());
    let mut header = vec!["model", "rows", loss.as_str()];
    header.extend(accuracy.then_some("accuracy, %"));
    header.extend(margin.then_some("reward margin, nats"));
    let header: Vec<String> = header.into_iter().map(String::from).collect();
    let optional = |value: Option<f64>, error: Option<f64>, factor: f64| {
        let value = value.map_or(f64::NAN, |value| value * factor);
        estimate(value, error.map(|error| error * factor))
    };
    let line = |e: &Evaluation| {
        let loss = estimate(e.loss, Some(e.loss_se));
        let mut line = vec![name(&e.arm), grouped(e.rows), loss];
        line.extend(accuracy.then(|| optional(e.accuracy, e.accuracy_se, 100.0)));
        line.extend(margin.then(|| optional(e.margin, e.margin_se, 1.0)));
        line
    };
    let lines: Vec<Vec<String>> = evaluations.iter().map(line).collect();
    let caption = "On held-out rows, ± standard errors over rows.";
    folded(caption, &header, &lines)
}

/// A table of models; of many, most are folded away.
pub(super) fn folded(caption: &str, header: &[String], lines: &[Vec<String>]) -> String {
    let (first, others) = lines.split_at(lines.len().min(MODELS));
    let mut html = table(caption, header, first);
    if !others.is_empty() {
        let others = table(caption, header, others);
        let count = grouped((lines.len() - MODELS) as u64);
        html.push_str(&format!(
            "<details><summary>{count} others</summary>{others}</details>"
        ));
    }
    format!("<div>{html}</div>\n")
}

/// The figures of every round, for those who want them in numbers.
pub(super) fn numbers(rounds: &[RoundMetrics]) -> String {
    let gap = rounds.iter().any(|round| round.gap.is_some());
    let mut header = vec!["round", "loss", "drift"];
    header.extend(gap.then_some("gap"));
    header.extend([
        "mean update",
        "learning rate",
        "asked",
        "averaged",
        "vanished",
        "late",
    ]);
    header.extend(["sent", "received", "closed at", "took", "training"]);
    let header: Vec<String> = header.into_iter().map(String::from).collect();
    let line = |round: &RoundMetrics| {
        let number = |value: f64| estimate(value, None);
        let mut line = vec![
            grouped(round.round + 1),
            number(round.loss),
            number(round.drift),
        ];
        line.extend(gap.then(|| number(round.gap.unwrap_or(f64::NAN))));
        line.extend([
            number(round.delta_norm),
            number(round.lr.into()),
            round.cohort.to_string(),
            round.updates.to_string(),
            round.dropped.to_string(),
            round.late.to_string(),
            bytes(round.bytes_up),
            bytes(round.bytes_down),
            duration(round.virtual_seconds),
            duration(round.seconds),
            duration(round.train_seconds),
        ]);
        line
    };
    let lines: Vec<Vec<String>> = rounds.iter().map(line).collect();
    table(
        "Closing times are virtual; what rounds took is wall-clock time.",
        &header,
        &lines,
    )
}
