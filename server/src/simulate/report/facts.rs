//! What a run came to, in a few words.

use crate::report::html::{bytes, duration, percent_of};
use crate::report::page::Fact;
use crate::simulate::metrics::{Evaluation, RunSummary};
use crate::simulate::split::SplitTable;
use crate::simulate::text::{estimate, grouped};

/// A value of an evaluation, and its standard error.
type Measure = fn(&Evaluation) -> Option<(f64, Option<f64>)>;

/// One sentence that says what was done and what came of it.
pub(super) fn lead(summary: &RunSummary) -> String {
    let mut lead = format!(
        "{} of {} ({}) over {}.",
        counted(summary.rounds, "round"),
        summary.strategy,
        summary.objective,
        counted(summary.clients.into(), "client")
    );
    let loss = |name| {
        arm(summary, name)
            .map(|evaluation| evaluation.loss)
            .filter(|l| l.is_finite())
    };
    if let (Some(base), Some(global)) = (loss("base"), loss("global")) {
        let (unit, base) = (summary.loss_unit(), estimate(base, None));
        let global = estimate(global, None);
        lead.push_str(&format!(
            " The held-out loss went from {base} {unit} for the base model to {global} for the \
             federation’s."
        ));
    }
    lead
}

/// So many of something.
fn counted(count: u64, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{} {what}{plural}", grouped(count))
}

fn arm<'a>(summary: &'a RunSummary, arm: &str) -> Option<&'a Evaluation> {
    summary
        .evaluations
        .iter()
        .find(|evaluation| evaluation.arm == arm)
}

/// What a run came to, and what it took.
pub(super) fn facts(summary: &RunSummary) -> Vec<Fact> {
    let mut facts = Vec::new();
    if let Some(global) = arm(summary, "global") {
        let base = arm(summary, "base");
        let mut fact = |term, unit: &str, of: Measure| {
            if let Some((value, error)) = of(global) {
                let base = base.and_then(of);
                let base = base.map_or(String::new(), |(base, error)| {
                    format!("; base model {}", estimate(base, error))
                });
                facts.push((term, estimate(value, error), format!("{unit}{base}")));
            }
        };
        fact("Held-out loss", summary.loss_unit(), |e| {
            Some((e.loss, Some(e.loss_se)))
        });
        fact("Held-out accuracy", "percent", |e| {
            let error = e.accuracy_se.map(|error| error * 100.0);
            Some((e.accuracy? * 100.0, error))
        });
        fact("Reward margin", "nats", |e| Some((e.margin?, e.margin_se)));
    }
    let training = percent_of(summary.train_seconds, summary.wall_seconds);
    let plain = |text: String| (text, String::new());
    let rest = [
        (
            "Strategy",
            (summary.strategy.clone(), summary.objective.clone()),
        ),
        ("Rounds", plain(grouped(summary.rounds))),
        ("Clients", plain(grouped(summary.clients.into()))),
        (
            "Sent by clients",
            (
                bytes(summary.bytes_up),
                format!("{} received", bytes(summary.bytes_down)),
            ),
        ),
        ("Virtual time", plain(duration(summary.virtual_seconds))),
        (
            "Wall-clock time",
            (
                duration(summary.wall_seconds),
                format!("{training} in training steps"),
            ),
        ),
        ("Seed", plain(summary.seed.to_string())),
        (
            "Final adapter",
            plain(summary.adapter_digest.chars().take(12).collect()),
        ),
        ("Code", plain(summary.code_version.clone())),
    ];
    facts.extend(rest.map(|(term, (value, remark))| (term, value, remark)));
    facts
}

/// How the data was split.
pub(super) fn data(split: &SplitTable) -> Vec<Fact> {
    let skew = &split.skew;
    let plain = |term, text| (term, text, String::new());
    let mut facts = vec![
        plain("Split", split.partition.clone()),
        plain("Owners", grouped(split.owners.len() as u64)),
        plain("Rows", grouped(split.rows)),
        plain("Tokens", grouped(split.tokens)),
        (
            "Rows an owner",
            format!("{} to {}", grouped(skew.min_rows), grouped(skew.max_rows)),
            format!("Gini coefficient {:.2}", skew.gini),
        ),
    ];
    if let (Some(distance), Some(chance)) = (skew.label_distance, skew.label_distance_iid) {
        facts.push((
            "Label distance",
            format!("{distance:.2}"),
            format!("dealt at random it would be {chance:.2}"),
        ));
    }
    if split.dropped_owners > 0 {
        facts.push((
            "Left out",
            format!("{} owners", grouped(split.dropped_owners)),
            format!("with too few rows, {} in all", grouped(split.dropped_rows)),
        ));
    }
    facts
}
