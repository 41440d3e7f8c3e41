//! Figures over several tasks.

use fedllm_models::eval::Scale;
use fedllm_shared::{Estimate, average_ranks};

use super::report::{MeanReport, TaskReport};

/// Tasks that means are reported of: the finance sets as FinGPT reports them. The paper's 0.757 of
/// GPT-4 is the mean of the first three.
const MEANS: [(&str, &[&str]); 3] = [
    ("finance (3 sets)", &["fpb", "fiqa-sa", "tfns"]),
    ("finance (4 sets)", &["fpb", "fiqa-sa", "tfns", "nwgi"]),
    (
        "finance, held out (3 sets)",
        &["fpb-held-out", "fiqa-sa-held-out", "tfns"],
    ),
];

/// The means of those tasks that were all done, in every metric that they share.
pub(crate) fn means(tasks: &[TaskReport]) -> Vec<MeanReport> {
    let means = MEANS.iter().flat_map(|(name, of)| {
        let first = tasks.iter().find(|task| task.name == of[0]);
        let metrics = first.into_iter().flat_map(|task| &task.metrics);
        metrics.filter_map(|metric| mean(tasks, name, of, &metric.name))
    });
    means.collect()
}

fn mean(tasks: &[TaskReport], name: &str, of: &[&str], metric: &str) -> Option<MeanReport> {
    let values = |task: &&str| {
        let task = tasks.iter().find(|done| done.name == **task)?;
        let metric = task.metrics.iter().find(|known| known.name == metric)?;
        Some(metric.values.as_slice())
    };
    let values: Vec<&[Estimate]> = of.iter().map(values).collect::<Option<_>>()?;
    let systems = values.first()?.len();
    let of_system = |system: usize| {
        let estimates = values.iter().map(|task| task[system]);
        let count = values.len() as f64;
        let squares = estimates.clone().map(|e| Some(e.standard_error?.powi(2)));
        Estimate {
            mean: sum(estimates.clone().map(|e| e.mean)).map(|sum| sum / count),
            standard_error: sum(squares).map(|sum| sum.sqrt() / count),
            count: estimates.map(|estimate| estimate.count).sum(),
        }
    };
    Some(MeanReport {
        name: name.to_owned(),
        tasks: of.iter().map(|task| (*task).to_owned()).collect(),
        metric: metric.to_owned(),
        values: (0..systems).map(of_system).collect(),
    })
}

fn sum(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    values.sum()
}

/// Each system's mean rank in the main metrics of the tasks that were done; nothing to rank with
/// one system.
pub(crate) fn ranks(tasks: &[TaskReport], systems: usize) -> Vec<f64> {
    if systems < 2 {
        return Vec::new();
    }
    let scores: Vec<Vec<Option<f64>>> = (0..systems)
        .map(|system| {
            let main = tasks.iter().filter_map(TaskReport::main);
            main.map(|metric| {
                let value = metric.values[system].mean?;
                Some(match metric.scale {
                    Scale::Loss => -value,
                    Scale::Share | Scale::Rating => value,
                })
            })
            .collect()
        })
        .collect();
    average_ranks(&scores).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::table::tests::done;
    use super::*;

    #[test]
    fn a_mean_needs_all_its_tasks() {
        let mut tasks = vec![
            done("fpb", "acc", &[0.5, 0.6]),
            done("tfns", "acc", &[0.7, 0.9]),
        ];
        assert!(means(&tasks).is_empty());
        tasks.push(done("fiqa-sa", "acc", &[0.9, 0.9]));
        let [three] = &means(&tasks)[..] else {
            panic!("one mean");
        };
        assert!((three.values[0].mean.unwrap() - 0.7).abs() < 1e-12);
        // Three errors of 0.02: their root of squares, over three.
        let error = three.values[0].standard_error.unwrap();
        assert!((error - 0.02 / 3f64.sqrt()).abs() < 1e-12, "{error}");
        assert_eq!(three.values[0].count, 300);
        tasks.push(done("nwgi", "acc", &[0.3, 0.4]));
        assert_eq!(means(&tasks).len(), 2);
    }

    #[test]
    fn less_of_a_loss_ranks_higher() {
        let mut loss = done("any", "perplexity", &[3.0, 2.0]);
        loss.metrics[0].scale = Scale::Loss;
        let tasks = [done("fpb", "acc", &[0.5, 0.5]), loss];
        assert_eq!(ranks(&tasks, 2), [1.75, 1.25]);
        assert!(ranks(&tasks, 1).is_empty());
    }
}
