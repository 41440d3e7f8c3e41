//! The figures of how well models do, in training and on held-out rows.

use std::collections::BTreeMap;

use fedllm_shared::{ClientsScore, Mean};

use super::figure::{Drawing, Figure};
use super::figures::{line, point, simple};
use super::plot::{Line, Plot, Point};
use crate::report::svg::STYLES;
use crate::simulate::metrics::{Evaluation, PreferenceRound, RoundMetrics, RunSummary};

/// Clients that have a line of their own.
const CLIENTS: usize = 60;

/// Points of a client's line.
const CLIENT_POINTS: usize = 120;

/// Models that come first in a legend.
const ARMS: [&str; 4] = ["global", "base", "local mean", "central"];

/// A value of an evaluation and its standard error.
type Measure = fn(&Evaluation) -> Option<(f64, f64)>;

/// One model's figures by round.
pub(super) type Arm<'a, T> = (&'a str, Vec<(f64, &'a T)>);

/// How well the models do.
pub(super) fn learning(summary: &RunSummary, rounds: &[RoundMetrics]) -> Vec<Figure<'static>> {
    let arms = evaluations(summary, rounds);
    let held_out = |title: &str, unit: &str, caption: &str, of: Measure| Figure {
        title: title.into(),
        caption: format!("{caption} Bars and bands are standard errors over rows."),
        drawing: Drawing::Plot(arms_plot(&arms, unit, of)),
    };
    vec![
        training_loss(summary, rounds),
        held_out(
            "Held-out loss",
            summary.loss_unit(),
            "Lower is better.",
            |e| Some((e.loss, e.loss_se)),
        ),
        held_out(
            "Held-out accuracy",
            "%",
            "Share of rows answered rightly.",
            |e| Some((e.accuracy? * 100.0, e.accuracy_se.unwrap_or(0.0) * 100.0)),
        ),
        held_out(
            "Held-out reward margin",
            "nats",
            "Implicit reward of chosen answers minus that of rejected ones.",
            |e| Some((e.margin?, e.margin_se.unwrap_or(0.0))),
        ),
        of_clients(
            "Clients’ held-out loss",
            summary.loss_unit(),
            rounds,
            |score| score.loss,
        ),
        of_clients("Clients’ held-out accuracy", "%", rounds, |score| {
            score.accuracy * 100.0
        }),
        rewards(rounds),
        preference_accuracy(rounds),
    ]
}

fn training_loss(summary: &RunSummary, rounds: &[RoundMetrics]) -> Figure<'static> {
    let mut clients: BTreeMap<u32, (String, Vec<Point>)> = BTreeMap::new();
    for round in rounds {
        for client in &round.clients {
            let (_, points) = clients
                .entry(client.client)
                .or_insert_with(|| (client.name.clone(), Vec::new()));
            points.push(point(round, client.loss_mean.into()));
        }
    }
    let count = clients.len();
    let shown = count.min(CLIENTS);
    let all: Vec<(String, Vec<Point>)> = clients.into_values().collect();
    let faint = (0..shown).map(|index| {
        let (name, points) = &all[index * count / shown];
        let stride = points.len().div_ceil(CLIENT_POINTS).max(1);
        (
            name.clone(),
            points.iter().copied().step_by(stride).collect(),
        )
    });
    let of = if shown < count {
        format!("{shown} of {count}")
    } else {
        count.to_string()
    };
    Figure {
        title: "Training loss".into(),
        caption: format!("Mean loss of each round’s local steps, for the cohort and {of} clients."),
        drawing: Drawing::Plot(Plot {
            unit: summary.loss_unit().into(),
            lines: vec![line("weighted mean", rounds, |round| Some(round.loss))],
            faint_name: "clients".into(),
            faint: faint.collect(),
            from_zero: false,
        }),
    }
}

/// Each model's evaluations by round.
fn evaluations<'a>(
    summary: &'a RunSummary,
    rounds: &'a [RoundMetrics],
) -> Vec<Arm<'a, Evaluation>> {
    let of = |after, all: &'a [Evaluation]| all.iter().map(move |e| (after, e.arm.as_str(), e));
    let last = summary.rounds.max(1) as f64;
    let known = rounds
        .iter()
        .flat_map(|round| of(round.round as f64 + 1.0, &round.evaluations));
    arms(known.chain(of(last, &summary.evaluations)))
}

/// Each model's figures by round, the well-known models first. What was measured at the end may be in
/// the last round's line too.
pub(super) fn arms<'a, T>(known: impl Iterator<Item = (f64, &'a str, &'a T)>) -> Vec<Arm<'a, T>> {
    let mut arms: Vec<Arm<'a, T>> = Vec::new();
    for (round, arm, figures) in known {
        match arms.iter_mut().find(|(name, _)| *name == arm) {
            Some((_, points)) if points.last().is_none_or(|(known, _)| *known < round) => {
                points.push((round, figures));
            }
            Some(_) => {}
            None => arms.push((arm, vec![(round, figures)])),
        }
    }
    let rank = |name: &str| {
        ARMS.iter()
            .position(|arm| *arm == name)
            .unwrap_or(ARMS.len())
    };
    arms.sort_by_key(|(name, _)| rank(name));
    arms
}

/// A line for each model, thin ones for those that are too many.
pub(super) fn arms_plot<T>(
    arms: &[Arm<'_, T>],
    unit: &str,
    of: impl Fn(&T) -> Option<(f64, f64)>,
) -> Plot {
    let points = |figures: &[(f64, &T)]| -> Vec<Point> {
        let point = |(round, figures): &(f64, &T)| {
            let (value, error) = of(figures)?;
            Some(Point {
                round: *round,
                value,
                error,
            })
        };
        figures.iter().filter_map(point).collect()
    };
    let measured = arms
        .iter()
        .map(|(name, all)| ((*name).to_owned(), points(all)));
    let mut measured: Vec<(String, Vec<Point>)> =
        measured.filter(|(_, points)| !points.is_empty()).collect();
    let faint = measured.split_off(measured.len().min(STYLES));
    Plot {
        unit: unit.into(),
        lines: measured
            .into_iter()
            .map(|(name, points)| Line { name, points })
            .collect(),
        faint_name: format!("{} others", faint.len()),
        faint,
        from_zero: false,
    }
}

/// What clients say of rows that they hold out.
fn of_clients(
    title: &str,
    unit: &str,
    rounds: &[RoundMetrics],
    of: fn(&ClientsScore) -> f64,
) -> Figure<'static> {
    // They score the adapter that a round begins with, which earlier rounds made.
    let point = |round: &RoundMetrics| {
        Some(Point {
            round: round.round as f64,
            value: of(round.held_out.as_ref()?),
            error: 0.0,
        })
    };
    let points: Vec<Point> = rounds.iter().filter_map(point).collect();
    let lines = match points.is_empty() {
        true => Vec::new(),
        false => vec![Line {
            name: "mean over rows".into(),
            points,
        }],
    };
    Figure {
        title: title.into(),
        caption: "On rows that the clients hold out, of the adapter that each round begins with."
            .into(),
        drawing: Drawing::Plot(Plot {
            unit: unit.into(),
            lines,
            ..Plot::default()
        }),
    }
}

fn rewards(rounds: &[RoundMetrics]) -> Figure<'static> {
    simple(
        "Rewards in training",
        "nats",
        "Implicit rewards of chosen and rejected answers, weighted over the cohort.",
        rounds,
        &[
            ("margin", |round| preference(round, |p| p.margin)),
            ("chosen", |round| preference(round, |p| p.chosen)),
            ("rejected", |round| preference(round, |p| p.rejected)),
        ],
    )
}

fn preference_accuracy(rounds: &[RoundMetrics]) -> Figure<'static> {
    simple(
        "Preference accuracy in training",
        "%",
        "Share of pairs whose chosen answer has the larger reward.",
        rounds,
        &[("accuracy", |round| {
            Some(preference(round, |p| p.accuracy)? * 100.0)
        })],
    )
}

/// The weighted mean over the cohort of what clients measured of preferences.
fn preference(round: &RoundMetrics, part: fn(&PreferenceRound) -> f32) -> Option<f64> {
    let mut mean = Mean::default();
    for client in &round.clients {
        if let Some(preference) = &client.preference {
            mean.add(part(preference).into(), client.weight);
        }
    }
    mean.value()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::metrics::tests::round;

    fn evaluation(arm: &str, loss: f64) -> Evaluation {
        Evaluation {
            arm: arm.into(),
            loss,
            ..round(0).evaluations.remove(0)
        }
    }

    fn plot<'a>(figure: &'a Figure<'_>) -> &'a Plot {
        match &figure.drawing {
            Drawing::Plot(plot) => plot,
            _ => panic!("{} is no plot", figure.title),
        }
    }

    #[test]
    fn models_come_in_order_and_the_end_counts_once() {
        let mut rounds = vec![round(0), round(1)];
        for round in &mut rounds {
            round.evaluations = vec![evaluation("b owner", 1.0), evaluation("global", 2.0)];
        }
        let summary = RunSummary {
            rounds: 2,
            evaluations: vec![evaluation("global", 2.0), evaluation("base", 3.0)],
            ..RunSummary::default()
        };
        let figures = learning(&summary, &rounds);
        let lines = &plot(&figures[1]).lines;
        let shape: Vec<(&str, usize)> = lines
            .iter()
            .map(|line| (line.name.as_str(), line.points.len()))
            .collect();
        assert_eq!(shape, [("global", 2), ("base", 1), ("b owner", 2)]);
        assert_eq!(
            (lines[1].points[0].round, lines[1].points[0].value),
            (2.0, 3.0)
        );
        assert!(
            plot(&figures[3]).lines.is_empty(),
            "nobody measured a margin"
        );
    }

    #[test]
    fn clients_score_the_adapter_that_a_round_begins_with() {
        let rounds = [round(0), round(1)];
        let figures = learning(&RunSummary::default(), &rounds);
        let loss = &plot(&figures[4]).lines[0].points;
        assert_eq!(
            (loss[1].round, loss[1].value, loss.len()),
            (1.0, 1.25, 2),
            "{}",
            figures[4].title
        );
        assert_eq!(plot(&figures[5]).lines[0].points[0].value, 25.0);
        let mut none = round(0);
        none.held_out = None;
        let figures = learning(&RunSummary::default(), &[none]);
        assert!(plot(&figures[4]).lines.is_empty());
    }

    #[test]
    fn many_models_are_thin_lines() {
        let mut one = round(0);
        one.evaluations = (0..30)
            .map(|index| evaluation(&format!("{index}"), 1.0))
            .collect();
        let figures = learning(&RunSummary::default(), &[one]);
        let plot = plot(&figures[1]);
        assert_eq!((plot.lines.len(), plot.faint.len()), (STYLES, 30 - STYLES));
    }

    #[test]
    fn clients_have_a_line_each_until_there_are_too_many() {
        let mut one = round(0);
        let template = one.clients.remove(0);
        let client = |client| crate::simulate::ClientRound {
            client,
            ..template.clone()
        };
        one.clients = (0..250).map(client).collect();
        let figure = training_loss(&RunSummary::default(), &[one.clone()]);
        assert_eq!(plot(&figure).faint.len(), CLIENTS);
        assert!(
            figure.caption.contains("60 of 250 clients"),
            "{}",
            figure.caption
        );
        one.clients.truncate(7);
        assert_eq!(
            plot(&training_loss(&RunSummary::default(), &[one]))
                .faint
                .len(),
            7
        );
    }

    #[test]
    fn preferences_are_weighted() {
        let mut one = round(0);
        one.clients[0].weight = 3.0;
        one.clients[1].weight = 1.0;
        for (client, margin) in one.clients.iter_mut().zip([1.0, 5.0]) {
            client.preference.as_mut().unwrap().margin = margin;
        }
        assert_eq!(preference(&one, |p| p.margin), Some(2.0));
        one.clients
            .iter_mut()
            .for_each(|client| client.preference = None);
        assert_eq!(preference(&one, |p| p.margin), None);
    }
}
