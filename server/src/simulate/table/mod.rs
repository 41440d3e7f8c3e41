//! Runs side by side: means over seeds with their standard errors, and one run's final figures.

mod render;

use fedllm_shared::Estimate;
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use render::summary_table;
pub(crate) use render::{markdown, quoted};

use super::metrics::RunSummary;

/// The setting over whose values means are taken.
const SEED: &str = "seed";

/// One run of a sweep.
#[derive(Clone, Debug, PartialEq)]
pub struct SweepRun {
    /// What was swept, and the value that this run has of it; `seed` among them if it was.
    pub settings: Vec<(String, String)>,
    /// What was measured.
    pub metrics: Vec<(String, f64)>,
}

/// The runs of a sweep, those that differ in nothing but their seed together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SweepTable {
    /// What was swept, without the seed.
    pub keys: Vec<String>,
    /// What was measured.
    pub metrics: Vec<String>,
    /// The combinations of settings, in the order in which runs first had them.
    pub arms: Vec<SweepArm>,
    /// Differences from one of the arms.
    pub differences: Vec<Differences>,
}

/// Runs that differ in nothing but their seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SweepArm {
    /// The value of each key.
    pub settings: Vec<String>,
    /// What is estimated of each metric.
    pub estimates: Vec<Estimate>,
    /// The runs.
    pub runs: Vec<SeedRun>,
}

/// One run of an arm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SeedRun {
    /// Its seed.
    pub seed: String,
    /// Each metric; None if it was not measured, or is not finite.
    pub values: Vec<Option<f64>>,
}

/// How far arms are from one of them in a metric, seed by seed.
///
/// Runs with the same seed share their split, their cohorts and their batches, so the mean of their
/// differences is known better than the difference of their means.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Differences {
    /// The index of the metric.
    pub metric: usize,
    /// The index of the arm that is compared with.
    pub baseline: usize,
    /// The mean difference of each arm over the seeds that both have.
    pub estimates: Vec<Estimate>,
}

/// Why arms cannot be compared.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SweepError {
    /// No such arm.
    #[error("the sweep has no {got:?}, expected one of {}", known.join("; "))]
    Arm {
        /// What was asked for.
        got: String,
        /// Arms there are.
        known: Vec<String>,
    },
    /// No such metric.
    #[error("the sweep measured no {got:?}, expected one of {}", known.join(", "))]
    Metric {
        /// What was asked for.
        got: String,
        /// Metrics there are.
        known: Vec<String>,
    },
}

impl SweepRun {
    /// A run by its summary: how the global model did at the end, and what the run took.
    pub fn new(settings: Vec<(String, String)>, summary: &RunSummary) -> Self {
        // Where nothing is averaged, the owners' mean stands for the global model.
        let arm = |name: &str| summary.evaluations.iter().find(|e| e.arm == name);
        let global = arm("global").or_else(|| arm("local mean"));
        let tasks = |name: &'static str| summary.tasks.iter().filter(move |e| e.arm == name);
        let tasks = tasks("global").chain(tasks("local mean")).map(|one| {
            let name = format!("{} {}", one.score.task, one.score.metric);
            (name, one.score.value.unwrap_or(f64::NAN))
        });
        let evaluated = global.into_iter().flat_map(|global| {
            let accuracy = global.accuracy.map(|accuracy| accuracy * 100.0);
            let margin = global.margin;
            let optional = [("accuracy (%)", accuracy), ("margin (nats)", margin)];
            let optional = optional
                .into_iter()
                .filter_map(|(name, v)| Some((name, v?)));
            [("loss (nats)", global.loss)].into_iter().chain(optional)
        });
        let cost = [
            ("sent (MB)", summary.bytes_up as f64 / 1e6),
            ("received (MB)", summary.bytes_down as f64 / 1e6),
            ("virtual time (s)", summary.virtual_seconds),
        ];
        let named = |(name, value): (&str, f64)| (name.to_owned(), value);
        let evaluated = evaluated.map(named).chain(tasks);
        Self {
            settings,
            metrics: evaluated.chain(cost.map(named)).collect(),
        }
    }

    fn setting(&self, key: &str) -> &str {
        let setting = self.settings.iter().find(|(name, _)| name == key);
        setting.map_or("", |(_, value)| value)
    }

    fn metric(&self, name: &str) -> Option<f64> {
        let metric = self.metrics.iter().find(|(metric, _)| metric == name)?;
        Some(metric.1).filter(|value| value.is_finite())
    }
}

impl SweepTable {
    /// Groups runs by all their settings but the seed. Of two runs that have the seed in common
    /// too, the later one counts.
    pub fn new(runs: &[SweepRun]) -> Self {
        let mut keys = names(runs.iter().flat_map(|run| &run.settings));
        keys.retain(|key| key != SEED);
        let metrics = names(runs.iter().flat_map(|run| &run.metrics));
        let mut arms: Vec<SweepArm> = Vec::new();
        for run in runs {
            let settings: Vec<String> = keys.iter().map(|key| run.setting(key).into()).collect();
            let seed_run = SeedRun {
                seed: run.setting(SEED).to_owned(),
                values: metrics.iter().map(|name| run.metric(name)).collect(),
            };
            match arms.iter_mut().find(|arm| arm.settings == settings) {
                Some(arm) => arm.add(seed_run),
                None => arms.push(SweepArm {
                    settings,
                    estimates: Vec::new(),
                    runs: vec![seed_run],
                }),
            }
        }
        for arm in &mut arms {
            let column =
                |metric| Estimate::of(arm.runs.iter().filter_map(move |run| run.values[metric]));
            arm.estimates = (0..metrics.len()).map(column).collect();
        }
        Self {
            keys,
            metrics,
            arms,
            differences: Vec::new(),
        }
    }

    /// What an arm is called: its value if one key was swept, or each key with its value.
    pub fn label(&self, arm: &SweepArm) -> String {
        match (self.keys.as_slice(), arm.settings.as_slice()) {
            ([], _) => "all runs".into(),
            ([_], [value]) => value.clone(),
            (keys, values) => {
                let pairs = keys.iter().zip(values);
                let pairs: Vec<String> = pairs.map(|(k, v)| format!("{k}={v}")).collect();
                pairs.join(" ")
            }
        }
    }

    /// Adds how far each arm is from the one labelled `baseline` in `metric`, seed by seed. The
    /// metric's unit may be left out.
    ///
    /// # Errors
    ///
    /// [`SweepError`] if there is no such arm or metric; the table is then as it was.
    pub fn compare(&mut self, metric: &str, baseline: &str) -> Result<(), SweepError> {
        let labels: Vec<String> = self.arms.iter().map(|arm| self.label(arm)).collect();
        let baseline = labels
            .iter()
            .position(|label| label == baseline)
            .ok_or_else(|| SweepError::Arm {
                got: baseline.into(),
                known: labels,
            })?;
        let is = |name: &String| name == metric || name.split(" (").next() == Some(metric);
        let metric = self
            .metrics
            .iter()
            .position(is)
            .ok_or_else(|| SweepError::Metric {
                got: metric.into(),
                known: self.metrics.clone(),
            })?;
        let differ = |arm: &SweepArm| arm.difference(&self.arms[baseline], metric);
        self.differences.push(Differences {
            metric,
            baseline,
            estimates: self.arms.iter().map(differ).collect(),
        });
        Ok(())
    }
}

impl SweepArm {
    fn add(&mut self, run: SeedRun) {
        match self.runs.iter_mut().find(|known| known.seed == run.seed) {
            Some(known) => *known = run,
            None => self.runs.push(run),
        }
    }

    fn difference(&self, other: &Self, metric: usize) -> Estimate {
        let pairs = self.runs.iter().filter_map(|run| {
            let same = other.runs.iter().find(|other| other.seed == run.seed)?;
            Some(run.values[metric]? - same.values[metric]?)
        });
        Estimate::of(pairs)
    }
}

/// The different names of pairs, in the order in which they first come.
fn names<'a, T: 'a>(pairs: impl Iterator<Item = &'a (String, T)>) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for (name, _) in pairs {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    names
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::simulate::metrics::tests::task;

    pub(in crate::simulate) fn run(settings: &[(&str, &str)], metrics: &[(&str, f64)]) -> SweepRun {
        SweepRun {
            settings: settings
                .iter()
                .map(|(k, v)| ((*k).into(), (*v).into()))
                .collect(),
            metrics: metrics.iter().map(|(k, v)| ((*k).into(), *v)).collect(),
        }
    }

    /// Two strategies by three seeds; the seed moves the loss more than the strategy does.
    pub(in crate::simulate) fn strategies() -> SweepTable {
        let losses = [
            ("fedavg", "1", 2.0),
            ("fedavg", "2", 3.0),
            ("fedavg", "3", 4.0),
            ("fedprox", "3", 3.75),
            ("fedprox", "1", 1.75),
            ("fedprox", "2", 2.5),
        ];
        let runs = losses.map(|(strategy, seed, loss)| {
            run(
                &[("strategy", strategy), ("seed", seed)],
                &[("loss (nats)", loss), ("accuracy (%)", 50.0)],
            )
        });
        SweepTable::new(&runs)
    }

    #[test]
    fn a_run_has_the_figures_of_what_it_made() {
        let summary = RunSummary {
            tasks: vec![task("base", "mmlu", 0.25), task("global", "mmlu", 0.375)],
            bytes_up: 2_000_000,
            ..RunSummary::default()
        };
        let run = SweepRun::new(Vec::new(), &summary);
        assert_eq!(run.metrics[0], ("mmlu acc".to_owned(), 0.375));
        assert_eq!(run.metrics[1], ("sent (MB)".to_owned(), 2.0));
    }

    #[test]
    fn means_and_errors_are_over_seeds() {
        let table = strategies();
        assert_eq!(table.keys, ["strategy"]);
        let fedavg = &table.arms[0];
        assert_eq!(fedavg.settings, ["fedavg"]);
        // The sample standard deviation of 2, 3, 4 is 1.
        let loss = fedavg.estimates[0];
        assert_eq!((loss.mean, loss.count), (Some(3.0), 3));
        assert!((loss.standard_error.unwrap() - 1.0 / 3f64.sqrt()).abs() < 1e-12);
        assert_eq!(fedavg.estimates[1].standard_error, Some(0.0));
    }

    #[test]
    fn differences_are_paired_by_seed() {
        let mut table = strategies();
        table.compare("loss", "fedavg").unwrap();
        let fedprox = table.differences[0].estimates[1];
        // -0.25, -0.25 and -0.5: their standard deviation is 0.1443, over √3 0.0833.
        assert!((fedprox.mean.unwrap() + 1.0 / 3.0).abs() < 1e-12);
        assert!((fedprox.standard_error.unwrap() - 1.0 / 12.0).abs() < 1e-12);
        assert!(fedprox.standard_error < table.arms[1].estimates[0].standard_error);
        let itself = table.differences[0].estimates[0];
        assert_eq!((itself.mean, itself.standard_error), (Some(0.0), Some(0.0)));
    }

    #[test]
    fn seeds_that_one_arm_lacks_are_not_compared() {
        let mut table = SweepTable::new(&[
            run(&[("lr", "1"), ("seed", "1")], &[("loss", 1.0)]),
            run(&[("lr", "1"), ("seed", "2")], &[("loss", 9.0)]),
            run(&[("lr", "2"), ("seed", "2")], &[("loss", 8.0)]),
            run(&[("lr", "2"), ("seed", "3")], &[("loss", 5.0)]),
            run(&[("lr", "3"), ("seed", "4")], &[("loss", 5.0)]),
        ]);
        table.compare("loss", "1").unwrap();
        let [_, second, third] = table.differences[0].estimates[..] else {
            panic!("three arms");
        };
        assert_eq!(
            (second.mean, second.standard_error, second.count),
            (Some(-1.0), None, 1)
        );
        assert_eq!((third.mean, third.count), (None, 0));
    }

    #[test]
    fn a_run_that_diverged_is_not_in_the_mean_and_shows() {
        let table = SweepTable::new(&[
            run(&[("seed", "1")], &[("loss", 1.0)]),
            run(&[("seed", "2")], &[("loss", f64::NAN)]),
            run(&[("seed", "3")], &[]),
        ]);
        let loss = table.arms[0].estimates[0];
        assert_eq!(
            (loss.mean, loss.standard_error, loss.count),
            (Some(1.0), None, 1)
        );
        assert_eq!(table.arms[0].runs.len(), 3);
        assert_eq!(table.label(&table.arms[0]), "all runs");
    }

    #[test]
    fn a_repeated_run_counts_once() {
        let table = SweepTable::new(&[
            run(&[("a", "x"), ("b", "y"), ("seed", "1")], &[("loss", 1.0)]),
            run(&[("a", "x"), ("b", "y"), ("seed", "1")], &[("loss", 3.0)]),
        ]);
        assert_eq!(table.arms[0].estimates[0].mean, Some(3.0));
        assert_eq!(table.arms[0].runs.len(), 1);
        assert_eq!(table.label(&table.arms[0]), "a=x b=y");
    }

    #[test]
    fn what_cannot_be_compared_is_named() {
        let mut table = strategies();
        let error = table.compare("loss (nats)", "fedadam").unwrap_err();
        let text = "the sweep has no \"fedadam\", expected one of fedavg; fedprox";
        assert_eq!(error.to_string(), text);
        let error = table.compare("los", "fedavg").unwrap_err();
        let text = "the sweep measured no \"los\", expected one of loss (nats), accuracy (%)";
        assert_eq!(error.to_string(), text);
        assert!(table.differences.is_empty());
    }
}
