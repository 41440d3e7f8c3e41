//! What is drawn of a report.

use fedllm_models::eval::Scale;
use fedllm_shared::Estimate;

use super::super::report::{MetricReport, Report, System, TaskReport};
use super::mean;
use crate::report::bars::{Bars, Group};
use crate::report::dots::{self, Dot};
use crate::report::figure::{self, Draw};
use crate::report::radar::Radar;

/// Bars that a figure has at most, so that it fits a sheet of paper.
pub(super) const BARS: usize = 36;

/// What figures of evaluations draw.
pub(super) enum Drawing {
    Radar(Radar),
    Bars(Bars),
    Dots(&'static str, Vec<Dot>),
}

pub(super) type Figure = figure::Figure<Drawing>;

impl Draw for Drawing {
    fn svg(&self, id: usize, title: &str) -> Option<String> {
        match self {
            Self::Radar(radar) => radar.svg(id, title),
            Self::Bars(bars) => bars.svg(id, title),
            Self::Dots(unit, dots) => dots::svg(id, title, unit, dots),
        }
    }
}

impl Report {
    /// Main metrics on a radar, and average ranks.
    pub(super) fn overview(&self) -> Vec<Figure> {
        let bounded: Vec<(&TaskReport, &MetricReport)> = self
            .done()
            .filter(|(_, metric)| metric.scale != Scale::Loss)
            .collect();
        let system = |index: usize| {
            let share = |(_, metric): &(_, &MetricReport)| {
                let (from, to) = range(metric.scale).unwrap_or((0.0, 1.0));
                (mean(metric.values.get(index)) - from) / (to - from)
            };
            bounded.iter().map(share).collect()
        };
        let systems = self.systems.iter().enumerate();
        let radar = Radar {
            axes: bounded.iter().map(|(task, _)| task.name.clone()).collect(),
            systems: systems
                .map(|(index, s)| (s.name.clone(), system(index)))
                .collect(),
        };
        let ranks = self.systems.iter().zip(&self.ranks);
        let dot = |(system, rank): (&System, &f64)| Dot {
            name: system.name.clone(),
            value: *rank,
            error: None,
        };
        vec![
            Figure {
                title: "Main metric of each task".into(),
                caption: "From 0 in the middle to 1 at the rim, which is the best there can be. \
                          Ratings from 1 to 10 are put on the same range; losses, which have no \
                          worst, are left out."
                    .into(),
                drawing: Drawing::Radar(radar),
            },
            Figure {
                title: "Average rank".into(),
                caption: "The mean over tasks of each system’s place in the main metric; 1 is the \
                          best."
                    .into(),
                drawing: Drawing::Dots("rank", ranks.map(dot).collect()),
            },
        ]
    }

    /// Main metrics as bars: those of a unit together, in figures that fit a page.
    pub(super) fn bars(&self) -> Vec<Figure> {
        let kinds = [
            (Scale::Share, "Shares", "from 0 to 1; more is better"),
            (Scale::Rating, "Ratings", "from 1 to 10; more is better"),
            (Scale::Loss, "Losses", "less is better"),
        ];
        let mut figures = Vec::new();
        for (scale, title, unit) in kinds {
            let group = |(task, metric): (&TaskReport, &MetricReport)| Group {
                name: task.name.clone(),
                values: metric.values.iter().map(pair).collect(),
            };
            let of_scale = self.done().filter(|(_, metric)| metric.scale == scale);
            let mut groups: Vec<Group> = of_scale.map(group).collect();
            let each = (BARS / self.systems.len().max(1)).max(1);
            let parts = groups.len().div_ceil(each);
            for part in 0..parts {
                let rest = groups.split_off(groups.len().div_ceil(parts - part));
                figures.push(Figure {
                    title: match parts {
                        1 => title.into(),
                        _ => format!("{title}, {} of {parts}", part + 1),
                    },
                    caption: "The main metric of each task, with its standard error.".into(),
                    drawing: Drawing::Bars(Bars {
                        unit: unit.into(),
                        from: range(scale).map_or(0.0, |(from, _)| from),
                        to: range(scale).map(|(_, to)| to),
                        systems: self.systems.iter().map(|s| s.name.clone()).collect(),
                        groups: std::mem::replace(&mut groups, rest),
                    }),
                });
            }
        }
        figures
    }
}

/// What values of a scale can be.
fn range(scale: Scale) -> Option<(f64, f64)> {
    match scale {
        Scale::Share => Some((0.0, 1.0)),
        Scale::Rating => Some((1.0, 10.0)),
        Scale::Loss => None,
    }
}

fn pair(value: &Estimate) -> (f64, Option<f64>) {
    (mean(Some(value)), value.standard_error)
}

#[cfg(test)]
mod tests {
    use super::super::tests::hostile;
    use super::*;

    #[test]
    fn each_unit_has_figures_of_its_own_that_fit_a_page() {
        let mut report = hostile(3, 30);
        report.tasks[0].metrics[0].scale = Scale::Rating;
        report.tasks[1].metrics[0].scale = Scale::Loss;
        let titles: Vec<String> = report.bars().into_iter().map(|f| f.title).collect();
        let expected = [
            "Shares, 1 of 3",
            "Shares, 2 of 3",
            "Shares, 3 of 3",
            "Ratings",
            "Losses",
        ];
        assert_eq!(titles, expected);
        let counts = report
            .bars()
            .into_iter()
            .map(|figure| match figure.drawing {
                Drawing::Bars(bars) => bars.groups.len(),
                _ => 0,
            });
        assert_eq!(counts.collect::<Vec<_>>(), [10, 9, 9, 1, 1]);
    }
}
