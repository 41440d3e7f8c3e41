//! The figures of updates and costs: which lines they have, and what is said of them.

use super::figure::{Drawing, Figure};
use super::plot::{Line, Plot, Point};
use crate::report::html::{byte_unit, percent_of, time_unit};
use crate::simulate::metrics::RoundMetrics;

/// What updates are like.
pub(super) fn updates(rounds: &[RoundMetrics]) -> Vec<Figure<'static>> {
    let drift = simple(
        "Drift and aggregation gap",
        "relative",
        "Drift: mean distance of clients’ updates from their mean, over the mean’s length. Gap: \
         distance of the product of mean factors from the mean product, over the latter’s length. \
         Discarded: the part of the mean product that the adapter’s rank cannot hold.",
        rounds,
        &[
            ("drift", |round| Some(round.drift)),
            ("gap", |round| round.gap),
            ("discarded", |round| round.discarded),
        ],
    );
    let norms = simple(
        "Length of the step",
        "L2 norm",
        "The mean update, and the step that the server made of it.",
        rounds,
        &[
            ("mean update", |round| Some(round.delta_norm)),
            ("server’s step", |round| Some(round.step_norm)),
        ],
    );
    let lr = simple(
        "Learning rate",
        "of the clients",
        "",
        rounds,
        &[("learning rate", |round| Some(round.lr.into()))],
    );
    let clients = simple(
        "Clients in each round",
        "clients",
        "Asked to train; averaged; vanished; too late to count.",
        rounds,
        &[
            ("asked", |round| Some(round.cohort.into())),
            ("averaged", |round| Some(round.updates.into())),
            ("vanished", |round| Some(round.dropped.into())),
            ("late", |round| Some(round.late.into())),
        ],
    );
    vec![drift, norms, clients, lr]
}

/// What the run took.
pub(super) fn costs(rounds: &[RoundMetrics]) -> Vec<Figure<'static>> {
    vec![traffic(rounds), virtual_time(rounds), wall_time(rounds)]
}

/// A line's name, and what it is of.
type Quantity = (&'static str, fn(&RoundMetrics) -> Option<f64>);

fn traffic(rounds: &[RoundMetrics]) -> Figure<'static> {
    let totals = running(rounds, |round| {
        (round.bytes_up as f64, round.bytes_down as f64)
    });
    let (up, down) = totals.last().copied().unwrap_or_default();
    let (factor, unit) = byte_unit(up.max(down));
    let mut plot = cumulative(
        rounds,
        &totals,
        factor,
        ["sent by clients", "received by clients"],
    );
    plot.unit = unit.into();
    Figure {
        title: "Bytes over the network".into(),
        caption: "Since the run began, all clients together.".into(),
        drawing: Drawing::Plot(plot),
    }
}

fn virtual_time(rounds: &[RoundMetrics]) -> Figure<'static> {
    let (factor, unit) = time_unit(rounds.last().map_or(0.0, |round| round.virtual_seconds));
    let mut elapsed = line("virtual time", rounds, |round| Some(round.virtual_seconds));
    elapsed
        .points
        .iter_mut()
        .for_each(|point| point.value /= factor);
    Figure {
        title: "Virtual time".into(),
        caption: "When each round closed, as the simulated devices and networks have it.".into(),
        drawing: Drawing::Plot(Plot {
            unit: unit.into(),
            lines: vec![elapsed],
            from_zero: true,
            ..Plot::default()
        }),
    }
}

fn wall_time(rounds: &[RoundMetrics]) -> Figure<'static> {
    let totals = running(rounds, |round| (round.seconds, round.train_seconds));
    let (all, training) = totals.last().copied().unwrap_or_default();
    let (factor, unit) = time_unit(all);
    let mut plot = cumulative(
        rounds,
        &totals,
        factor,
        ["rounds", "training steps in them"],
    );
    plot.unit = unit.into();
    Figure {
        title: "Wall-clock time".into(),
        caption: format!(
            "Since the run began. Training steps are {} of the rounds’ time; what lies between the \
             lines is aggregation, evaluation and bookkeeping.",
            percent_of(training, all)
        ),
        drawing: Drawing::Plot(plot),
    }
}

/// Two sums that grow from round to round.
fn running(rounds: &[RoundMetrics], of: impl Fn(&RoundMetrics) -> (f64, f64)) -> Vec<(f64, f64)> {
    let add = |sum: &mut (f64, f64), round: &RoundMetrics| {
        let (first, second) = of(round);
        *sum = (sum.0 + first, sum.1 + second);
        Some(*sum)
    };
    rounds.iter().scan((0.0, 0.0), add).collect()
}

fn cumulative(
    rounds: &[RoundMetrics],
    totals: &[(f64, f64)],
    factor: f64,
    names: [&str; 2],
) -> Plot {
    let line = |name: &str, part: fn(&(f64, f64)) -> f64| Line {
        name: name.into(),
        points: rounds
            .iter()
            .zip(totals)
            .map(|(round, total)| point(round, part(total) / factor))
            .collect(),
    };
    Plot {
        lines: vec![line(names[0], |t| t.0), line(names[1], |t| t.1)],
        from_zero: true,
        ..Plot::default()
    }
}

/// A figure of quantities that rounds have, its axis from 0. Those that no round has are left out.
pub(super) fn simple(
    title: &str,
    unit: &str,
    caption: &str,
    rounds: &[RoundMetrics],
    quantities: &[Quantity],
) -> Figure<'static> {
    let lines = quantities.iter().map(|(name, of)| line(name, rounds, of));
    let lines: Vec<Line> = lines.filter(|line| !line.points.is_empty()).collect();
    Figure {
        title: title.into(),
        caption: caption.into(),
        drawing: Drawing::Plot(Plot {
            unit: unit.into(),
            lines,
            from_zero: true,
            ..Plot::default()
        }),
    }
}

pub(super) fn line(
    name: &str,
    rounds: &[RoundMetrics],
    of: impl Fn(&RoundMetrics) -> Option<f64>,
) -> Line {
    let points = rounds
        .iter()
        .filter_map(|round| Some(point(round, of(round)?)));
    Line {
        name: name.into(),
        points: points.collect(),
    }
}

pub(super) fn point(round: &RoundMetrics, value: f64) -> Point {
    Point {
        round: round.round as f64 + 1.0,
        value,
        error: 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::metrics::tests::round;

    fn plot<'a>(figure: &'a Figure<'_>) -> &'a Plot {
        match &figure.drawing {
            Drawing::Plot(plot) => plot,
            _ => panic!("{} is no plot", figure.title),
        }
    }

    fn values(plot: &Plot, line: usize) -> Vec<f64> {
        plot.lines[line]
            .points
            .iter()
            .map(|point| point.value)
            .collect()
    }

    #[test]
    fn costs_add_up_in_units_that_suit_them() {
        let figures = costs(&[round(0), round(1), round(2)]);
        let traffic = plot(&figures[0]);
        assert_eq!(traffic.unit, "kB");
        assert_eq!(values(traffic, 0), [2.0, 4.0, 6.0]);
        assert_eq!(values(traffic, 1), [3.0, 6.0, 9.0]);
        let wall = plot(&figures[2]);
        assert_eq!(wall.unit, "seconds");
        assert_eq!(
            (values(wall, 0), values(wall, 1)),
            (vec![2.0, 4.0, 6.0], vec![1.5, 3.0, 4.5])
        );
        assert!(figures[2].caption.contains("75%"), "{}", figures[2].caption);
    }

    #[test]
    fn what_no_round_measured_has_no_line() {
        let names = |figure: &Figure<'_>| -> Vec<String> {
            plot(figure)
                .lines
                .iter()
                .map(|line| line.name.clone())
                .collect()
        };
        let mut one = round(0);
        assert_eq!(names(&updates(&[one.clone()])[0]), ["drift", "gap"]);
        (one.gap, one.discarded) = (None, Some(0.5));
        assert_eq!(names(&updates(&[one])[0]), ["drift", "discarded"]);
    }
}
