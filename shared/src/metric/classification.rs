//! Accuracy, precision, recall and F1 of labels, as scikit-learn has them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How well labels were predicted.
///
/// Follows scikit-learn's `precision_recall_fscore_support` with `zero_division=0`: a label that is
/// never predicted has precision 0, one that is never expected has recall 0.
///
/// ```
/// use fedllm_shared::{Average, Classification};
///
/// // Expected and predicted.
/// let scores = Classification::new([(0, 0), (1, 1), (1, 0)], None).unwrap();
/// assert_eq!(scores.accuracy(), 2.0 / 3.0);
/// assert_eq!(scores.average(Average::Macro).recall, 0.75);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classification {
    labels: BTreeMap<usize, Counts>,
    right: u64,
    rows: u64,
}

/// Precision, recall and their harmonic mean, from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct LabelScores {
    /// Of the rows that were given the label, the share that have it.
    pub precision: f64,
    /// Of the rows that have the label, the share that were given it.
    pub recall: f64,
    /// The harmonic mean of both.
    pub f1: f64,
}

/// How the scores of labels become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Average {
    /// Every label counts the same.
    Macro,
    /// Every row counts the same: the scores of all labels' counts together.
    Micro,
    /// A label counts by the rows that have it.
    Weighted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
struct Counts {
    right: u64,
    expected: u64,
    predicted: u64,
}

impl Classification {
    /// Counts pairs of an expected and a predicted label; None of no pairs.
    ///
    /// The labels averaged over are `0..classes`, or else those that are expected or predicted
    /// somewhere. A prediction outside `0..classes`, such as an answer that is no label, is a miss
    /// of the expected label and a hit of none.
    pub fn new(
        pairs: impl IntoIterator<Item = (usize, usize)>,
        classes: Option<usize>,
    ) -> Option<Self> {
        let mut labels: BTreeMap<usize, Counts> = BTreeMap::new();
        let (mut right, mut rows) = (0, 0);
        for (expected, predicted) in pairs {
            let hit = u64::from(expected == predicted);
            labels.entry(predicted).or_default().predicted += 1;
            let label = labels.entry(expected).or_default();
            label.expected += 1;
            label.right += hit;
            right += hit;
            rows += 1;
        }
        if let Some(classes) = classes {
            labels.retain(|label, _| *label < classes);
            for label in 0..classes {
                labels.entry(label).or_default();
            }
        }
        (rows > 0).then_some(Self {
            labels,
            right,
            rows,
        })
    }

    /// The share of rows with the expected label.
    pub fn accuracy(&self) -> f64 {
        ratio(self.right, self.rows)
    }

    /// Each label with its scores, in order.
    pub fn labels(&self) -> impl Iterator<Item = (usize, LabelScores)> {
        self.labels.iter().map(|(label, of)| (*label, of.scores()))
    }

    /// The scores of all labels; 0 if `classes` was 0.
    pub fn average(&self, average: Average) -> LabelScores {
        let expected: u64 = self.labels.values().map(|of| of.expected).sum();
        match average {
            Average::Micro => {
                let mut all = Counts::default();
                self.labels.values().for_each(|of| all += *of);
                all.scores()
            }
            // None of the labels is expected: nothing to weigh them by.
            Average::Weighted if expected > 0 => self.weighted(|of| of.expected),
            Average::Macro | Average::Weighted => self.weighted(|_| 1),
        }
    }

    fn weighted(&self, weight: impl Fn(&Counts) -> u64) -> LabelScores {
        let total: u64 = self.labels.values().map(&weight).sum();
        let mut mean = LabelScores::default();
        for of in self.labels.values() {
            let (scores, share) = (of.scores(), ratio(weight(of), total));
            mean.precision += scores.precision * share;
            mean.recall += scores.recall * share;
            mean.f1 += scores.f1 * share;
        }
        mean
    }
}

impl Counts {
    fn scores(&self) -> LabelScores {
        LabelScores {
            precision: ratio(self.right, self.predicted),
            recall: ratio(self.right, self.expected),
            f1: ratio(2 * self.right, self.predicted + self.expected),
        }
    }
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.right += other.right;
        self.expected += other.expected;
        self.predicted += other.predicted;
    }
}

/// The part of a whole; 0 of nothing.
fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPECTED: [usize; 10] = [0, 0, 0, 1, 1, 2, 2, 2, 2, 3];
    const PREDICTED: [usize; 10] = [0, 0, 1, 1, 2, 2, 2, 0, 5, 2];

    fn scores(classes: Option<usize>) -> Classification {
        Classification::new(EXPECTED.into_iter().zip(PREDICTED), classes).unwrap()
    }

    fn assert_near(got: LabelScores, [precision, recall, f1]: [f64; 3]) {
        let far = [got.precision - precision, got.recall - recall, got.f1 - f1];
        assert!(far.iter().all(|far| far.abs() < 1e-15), "{got:?}");
    }

    // scikit-learn 1.9.1: `precision_recall_fscore_support(EXPECTED, PREDICTED, labels=labels,
    // average=average, zero_division=0)` with labels None, [0..4] and [0..5].
    #[test]
    fn averages_are_those_of_scikit_learn() {
        let third = [1.0 / 3.0; 3];
        let present = scores(None);
        assert_eq!(present.accuracy(), 0.5);
        assert_near(present.average(Average::Macro), third);
        assert_near(present.average(Average::Micro), [0.5; 3]);
        assert_near(present.average(Average::Weighted), [0.5; 3]);

        // The prediction 5 is outside: nobody's hit, yet a miss of 2.
        let given = scores(Some(4));
        assert_eq!(given.accuracy(), 0.5);
        let micro = [0.555_555_555_555_555_6, 0.5, 0.526_315_789_473_684_2];
        assert_near(given.average(Average::Macro), [0.416_666_666_666_666_63; 3]);
        assert_near(given.average(Average::Micro), micro);
        assert_near(given.average(Average::Weighted), [0.5; 3]);

        // The label 4 comes nowhere and counts all the same.
        assert_near(scores(Some(5)).average(Average::Macro), third);
    }

    // The same without `average`.
    #[test]
    fn labels_have_their_own_scores() {
        let labels: Vec<_> = scores(None).labels().collect();
        let of = |label: usize| labels.iter().find(|(l, _)| *l == label).unwrap().1;
        assert_eq!(labels.len(), 5);
        assert_near(of(0), [2.0 / 3.0; 3]);
        assert_near(of(2), [0.5; 3]);
        assert_near(of(5), [0.0; 3]);

        let one_sided = Classification::new([(0, 0), (0, 1), (1, 1), (1, 1)], None).unwrap();
        let labels: Vec<_> = one_sided.labels().map(|(_, scores)| scores).collect();
        assert_near(labels[0], [1.0, 0.5, 2.0 / 3.0]);
        assert_near(labels[1], [2.0 / 3.0, 1.0, 0.8]);
    }

    #[test]
    fn nothing_to_divide_by_is_zero_and_no_rows_are_none() {
        assert_eq!(Classification::new([], Some(3)), None);
        for average in [Average::Macro, Average::Micro, Average::Weighted] {
            let unexpected = Classification::new([(5, 0), (5, 1)], Some(2)).unwrap();
            assert_near(unexpected.average(average), [0.0; 3]);
            let unlabelled = Classification::new([(0, 0)], Some(0)).unwrap();
            assert_near(unlabelled.average(average), [0.0; 3]);
        }
    }
}
