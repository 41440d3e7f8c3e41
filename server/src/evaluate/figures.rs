//! Grades become figures with their errors, and systems are compared on the same rows.

use std::cell::RefCell;

use fedllm_models::eval::{Gold, Grade, Item, Measure, Metric, Reply, Task};
use fedllm_shared::{
    BleuCounts, Bootstrap, Classification, Comparison, Estimate, PairedTest, perplexity,
};

use super::report::{MetricReport, Paired, Part, Test};

/// Times that rows are drawn again for an error that has no formula.
const RESAMPLES: usize = 1000;

/// What the systems made of a task.
pub(crate) struct Graded<'a> {
    /// The task.
    pub(crate) task: &'static Task,
    /// Its questions.
    pub(crate) questions: &'a [Item],
    /// By system: the reply to each question.
    pub(crate) replies: &'a [Vec<Reply>],
    /// By system: the grade of each reply.
    pub(crate) grades: &'a [Vec<Grade>],
    /// Draws rows again.
    pub(crate) seed: u64,
}

impl Graded<'_> {
    /// Every metric of the task.
    pub(crate) fn metrics(&self) -> Vec<MetricReport> {
        let metrics = self.task.metrics.iter();
        metrics.map(|metric| self.metric(metric)).collect()
    }

    fn metric(&self, metric: &Metric) -> MetricReport {
        let columns: Vec<Column<'_>> = (0..self.grades.len())
            .map(|system| self.column(metric, system))
            .collect();
        let all: Vec<usize> = (0..self.questions.len()).collect();
        let values = |rows: &[usize]| -> Vec<Estimate> {
            let columns = columns.iter();
            columns.map(|column| self.estimate(column, rows)).collect()
        };
        MetricReport {
            name: metric.name.to_owned(),
            scale: metric.scale,
            values: values(&all),
            groups: self.parts(
                |cluster| self.task.group.map(|group| group(cluster)),
                &values,
            ),
            clusters: self.parts(|cluster| self.task.has_parts().then_some(cluster), &values),
            comparisons: self.compared(&columns, &all),
        }
    }

    /// The figures of parts of the rows, in the order in which they first come.
    fn parts<'a>(
        &'a self,
        name: impl Fn(&'a str) -> Option<&'a str>,
        values: &dyn Fn(&[usize]) -> Vec<Estimate>,
    ) -> Vec<Part> {
        let mut parts: Vec<(&str, &str, Vec<usize>)> = Vec::new();
        for (row, item) in self.questions.iter().enumerate() {
            let Some(cluster) = item.cluster.as_deref() else {
                continue;
            };
            let Some(name) = name(cluster) else {
                continue;
            };
            match parts.iter_mut().find(|(known, ..)| *known == name) {
                Some((_, _, rows)) => rows.push(row),
                None => parts.push((name, cluster, vec![row])),
            }
        }
        parts
            .into_iter()
            .map(|(name, cluster, rows)| Part {
                name: name.to_owned(),
                group: match (name == cluster, self.task.group) {
                    (true, Some(group)) => Some(group(cluster).to_owned()),
                    _ => None,
                },
                values: values(&rows),
            })
            .collect()
    }

    fn column(&self, metric: &Metric, system: usize) -> Column<'_> {
        let (grades, replies) = (&self.grades[system], &self.replies[system]);
        match metric.measure {
            Measure::Mean => {
                let values = grades.iter().map(|grade| grade.value(metric.name));
                Column::Values(values.collect())
            }
            Measure::MeanOf(names) => {
                let of_row = |grade: &Grade| {
                    let values = names.iter().filter_map(|name| grade.value(name));
                    Estimate::of(values).mean
                };
                Column::Values(grades.iter().map(of_row).collect())
            }
            Measure::F1(average, classes) => Column::Statistic(Box::new(move |rows| {
                let pairs = rows.iter().filter_map(|row| grades[*row].class);
                let classes = Classification::new(pairs, Some(classes));
                classes.map_or(f64::NAN, |all| all.average(average).f1)
            })),
            Measure::Bleu(bleu) => {
                let counts: Vec<BleuCounts> = (0..grades.len())
                    .map(|row| {
                        let answer = answer(&grades[row], &replies[row]);
                        bleu.counts(answer, &references(&self.questions[row].gold))
                    })
                    .collect();
                Column::Statistic(Box::new(move |rows| {
                    let mut sum = BleuCounts::default();
                    rows.iter().for_each(|row| sum.merge(&counts[*row]));
                    bleu.score(&sum) / 100.0
                }))
            }
            Measure::Perplexity => Column::Statistic(Box::new(move |rows| {
                let (mut log_prob, mut tokens) = (0.0, 0);
                for row in rows {
                    if let Reply::Scores(scores) = &replies[*row] {
                        log_prob += scores.iter().map(|score| score.log_prob).sum::<f64>();
                        tokens += scores.iter().map(|score| score.tokens).sum::<usize>();
                    }
                }
                perplexity(-log_prob / tokens as f64)
            })),
        }
    }

    fn estimate(&self, column: &Column<'_>, rows: &[usize]) -> Estimate {
        match column {
            Column::Values(values) => {
                let values = rows.iter().filter_map(|row| Some((*row, values[*row]?)));
                match self.is_clustered(rows) {
                    true => {
                        Estimate::clustered(values.map(|(row, value)| (value, self.cluster(row))))
                    }
                    false => Estimate::of(values.map(|(_, value)| value)),
                }
            }
            Column::Statistic(statistic) => {
                let drawn = |drawn: &[usize]| {
                    let rows: Vec<usize> = drawn.iter().map(|index| rows[*index]).collect();
                    statistic(&rows)
                };
                let error = Bootstrap::of(rows.len(), RESAMPLES, self.seed, drawn);
                Estimate {
                    mean: Some(statistic(rows)).filter(|value| value.is_finite()),
                    standard_error: error.map(|error| error.standard_error),
                    count: rows.len(),
                }
            }
        }
    }

    /// Each adapter against the base, and against the first adapter.
    fn compared(&self, columns: &[Column<'_>], rows: &[usize]) -> Vec<Paired> {
        let against = |system: usize| (0..system.min(2)).map(move |against| (system, against));
        (1..columns.len())
            .flat_map(against)
            .map(|(system, against)| {
                let (first, second) = (&columns[system], &columns[against]);
                let (difference, p_value, test) = match (first, second) {
                    (Column::Values(first), Column::Values(second)) => {
                        self.compared_rows(first, second, rows)
                    }
                    _ => self.compared_draws(first, second, rows),
                };
                Paired {
                    system,
                    against,
                    difference,
                    p_value,
                    test,
                }
            })
            .collect()
    }

    fn compared_rows(
        &self,
        first: &[Option<f64>],
        second: &[Option<f64>],
        rows: &[usize],
    ) -> (Estimate, Option<f64>, Test) {
        let pairs = rows
            .iter()
            .filter_map(|row| Some((first[*row]?, second[*row]?, self.cluster(*row))));
        let comparison = match self.is_clustered(rows) {
            true => Comparison::clustered(pairs),
            false => Comparison::of(&pairs.map(|(a, b, _)| (a, b)).collect::<Vec<_>>()),
        };
        let test = match comparison.test {
            PairedTest::McNemar => Test::McNemar,
            PairedTest::Normal => Test::Normal,
        };
        (comparison.difference, comparison.p_value, test)
    }

    /// Draws the same rows for both, and sees how often the one that is behind is ahead.
    fn compared_draws(
        &self,
        first: &Column<'_>,
        second: &Column<'_>,
        rows: &[usize],
    ) -> (Estimate, Option<f64>, Test) {
        let difference = |rows: &[usize]| first.figure(rows) - second.figure(rows);
        let drawn = RefCell::new(Vec::with_capacity(RESAMPLES));
        let error = Bootstrap::of(rows.len(), RESAMPLES, self.seed, |indices| {
            let rows: Vec<usize> = indices.iter().map(|index| rows[*index]).collect();
            let difference = difference(&rows);
            drawn.borrow_mut().push(difference);
            difference
        });
        let drawn = drawn.into_inner();
        let share = |is: fn(&&f64) -> bool| {
            (1 + drawn.iter().filter(is).count()) as f64 / (1 + drawn.len()) as f64
        };
        let less = share(|difference| **difference <= 0.0);
        let more = share(|difference| **difference >= 0.0);
        let estimate = Estimate {
            mean: Some(difference(rows)).filter(|value| value.is_finite()),
            standard_error: error.map(|error| error.standard_error),
            count: rows.len(),
        };
        let p_value = estimate.mean.map(|_| (2.0 * less.min(more)).min(1.0));
        (estimate, p_value, Test::Bootstrap)
    }

    fn cluster(&self, row: usize) -> Option<&str> {
        self.questions[row].cluster.as_deref()
    }

    /// Whether rows hang together: there are several clusters, and one has several rows.
    fn is_clustered(&self, rows: &[usize]) -> bool {
        let mut clusters: Vec<_> = rows.iter().filter_map(|row| self.cluster(*row)).collect();
        if clusters.len() < rows.len() {
            return false;
        }
        clusters.sort_unstable();
        clusters.dedup();
        clusters.len() > 1 && clusters.len() < rows.len()
    }
}

/// A figure of any number of rows.
type Statistic<'a> = dyn Fn(&[usize]) -> f64 + 'a;

/// The figures of one metric of one system.
enum Column<'a> {
    /// One for each row, and the metric is their mean.
    Values(Vec<Option<f64>>),
    /// One for any number of rows.
    Statistic(Box<Statistic<'a>>),
}

impl Column<'_> {
    fn figure(&self, rows: &[usize]) -> f64 {
        match self {
            Self::Values(values) => {
                let values: Vec<f64> = rows.iter().filter_map(|row| values[*row]).collect();
                values.iter().sum::<f64>() / values.len() as f64
            }
            Self::Statistic(statistic) => statistic(rows),
        }
    }
}

/// What counts as the answer: what the grader took out of the reply, or else all of it.
fn answer<'a>(grade: &'a Grade, reply: &'a Reply) -> &'a str {
    match (&grade.answer, reply) {
        (Some(answer), _) => answer,
        (None, Reply::Texts(texts)) => texts.first().map_or("", String::as_str),
        (None, Reply::Scores(_)) => "",
    }
}

fn references(gold: &Gold) -> Vec<&str> {
    match gold {
        Gold::Text(text) => vec![text],
        Gold::AnyOf(texts) => texts.iter().map(String::as_str).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{MEASURES, question, said};
    use super::*;

    /// Two systems on these rows: whether each has a row right.
    fn metrics(
        task: &'static Task,
        clusters: &[Option<&str>],
        right: &[[u8; 2]],
    ) -> Vec<MetricReport> {
        let ids = (0..).zip(clusters);
        let questions: Vec<Item> = ids
            .map(|(i, cluster)| question(&format!("{i}"), *cluster, Gold::Text("a b c d e".into())))
            .collect();
        let grades = [0, 1].map(|system: usize| -> Vec<Grade> {
            let grade = |(i, row): (usize, &[u8; 2])| {
                let (gold, is_right) = (i % 2, usize::from(row[system]));
                Grade {
                    class: Some((gold, if is_right == 1 { gold } else { 1 - gold })),
                    ..Grade::of("acc", is_right as f64)
                }
            };
            right.iter().enumerate().map(grade).collect()
        });
        let replies = [0, 1].map(|system: usize| -> Vec<Reply> {
            let text = |row: &[u8; 2]| ["a b c", "a b c d e"][usize::from(row[system])];
            right.iter().map(|row| said(text(row))).collect()
        });
        let graded = Graded {
            task,
            questions: &questions,
            replies: &replies,
            grades: &grades,
            seed: 1,
        };
        graded.metrics()
    }

    #[test]
    fn each_measure_has_its_value_and_error() {
        let right = [[1, 1], [0, 1], [1, 1], [0, 1], [0, 1], [1, 0]];
        let [acc, f1, bleu] = &metrics(&MEASURES, &[None; 6], &right)[..] else {
            panic!("three metrics");
        };
        assert_eq!(acc.values[0], Estimate::of([1.0, 0.0, 1.0, 0.0, 0.0, 1.0]));
        assert!(acc.clusters.is_empty() && acc.groups.is_empty());
        // Class 0 is right in 2 of 3 rows and said in 4, class 1 in 1 of 3 and said in 2.
        let f1_value = f1.values[0].mean.unwrap();
        assert!(
            (f1_value - (4.0 / 7.0 + 2.0 / 5.0) / 2.0).abs() < 1e-12,
            "{f1_value}"
        );
        assert!(f1.values[0].standard_error.unwrap() > 0.05);
        let [base, better] = [0, 1].map(|system| bleu.values[system].mean.unwrap());
        assert!(base < better && better < 1.0, "{base} {better}");
        assert_eq!(acc, &metrics(&MEASURES, &[None; 6], &right)[0]);
        assert_eq!(bleu, &metrics(&MEASURES, &[None; 6], &right)[2], "seeded");
    }

    #[test]
    fn systems_are_compared_on_the_same_rows() {
        let right = [[0, 1]; 8];
        let metrics = metrics(&MEASURES, &[None; 8], &right);
        let acc = metrics[0].comparisons[0];
        assert_eq!((acc.system, acc.against, acc.test), (1, 0, Test::McNemar));
        assert_eq!(acc.difference.mean, Some(1.0));
        assert_eq!(acc.p_value, Some(2.0 / 256.0));
        let bleu = metrics[2].comparisons[0];
        assert_eq!(bleu.test, Test::Bootstrap);
        assert!(bleu.p_value.unwrap() < 0.01, "{bleu:?}");
    }

    #[test]
    fn rows_of_a_cluster_count_as_what_they_are() {
        let clusters = [Some("a"), Some("a"), Some("b"), Some("b")];
        let right = [[1, 1], [1, 1], [0, 0], [0, 1]];
        let acc = &metrics(&MEASURES, &clusters, &right)[0];
        let rows = [(1.0, 'a'), (1.0, 'a'), (0.0, 'b'), (0.0, 'b')];
        assert_eq!(acc.values[0], Estimate::clustered(rows));
        assert!(acc.clusters.is_empty(), "passages are no parts");
        assert_eq!(acc.comparisons[0].test, Test::Normal);
        let one_cluster = &metrics(&MEASURES, &[Some("a"); 4], &right)[0];
        assert_eq!(one_cluster.values[0], Estimate::of([1.0, 1.0, 0.0, 0.0]));

        static PARTS: Task = Task {
            group: Some(|cluster| if cluster == "a" { "first" } else { "other" }),
            ..MEASURES
        };
        let acc = &metrics(&PARTS, &clusters, &right)[0];
        let names = |parts: &[Part]| -> Vec<_> {
            let named = parts
                .iter()
                .map(|part| (part.name.clone(), part.group.clone()));
            named.collect()
        };
        assert_eq!(
            names(&acc.groups),
            [("first".into(), None), ("other".into(), None)]
        );
        assert_eq!(acc.clusters[1].values[1].mean, Some(0.5));
        assert_eq!(names(&acc.clusters)[1].1.as_deref(), Some("other"));
    }
}
