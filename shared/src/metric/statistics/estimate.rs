//! Means with their standard errors.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A mean and how sure it is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The mean; None of nothing.
    pub mean: Option<f64>,
    /// Its standard error; None of a single value, or of values that are all in one group.
    pub standard_error: Option<f64>,
    /// Values that it is the mean of.
    pub count: usize,
}

impl Estimate {
    /// The mean of values that have nothing to do with each other. Its standard error is the sample
    /// standard deviation over the root of the number.
    ///
    /// Source: Miller 2024, arXiv 2411.00640, equation 1.
    ///
    /// ```
    /// let estimate = fedllm_shared::Estimate::of([2.0, 3.0, 4.0]);
    /// assert_eq!(estimate.mean, Some(3.0));
    /// assert!((estimate.standard_error.unwrap() - 1.0 / 3f64.sqrt()).abs() < 1e-12);
    /// ```
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        Self::clustered(
            values
                .into_iter()
                .enumerate()
                .map(|(row, value)| (value, row)),
        )
    }

    /// The mean of values with their groups, such as questions on one text or of one subject: values
    /// of a group may go together, groups have nothing to do with each other.
    ///
    /// With a group for each value this is [`Estimate::of`]; with few groups the error itself is
    /// unsure.
    ///
    /// Source: Miller 2024, arXiv 2411.00640, equation 4.
    pub fn clustered<G: Ord>(values: impl IntoIterator<Item = (f64, G)>) -> Self {
        let mut groups: BTreeMap<G, Vec<f64>> = BTreeMap::new();
        for (value, group) in values {
            groups.entry(group).or_default().push(value);
        }
        let count: usize = groups.values().map(Vec::len).sum();
        let n = count as f64;
        let mean = groups.values().flatten().sum::<f64>() / n;

        let (mut squares, mut products) = (0.0, 0.0);
        for group in groups.values() {
            let sum: f64 = group.iter().map(|value| value - mean).sum();
            let of_group: f64 = group.iter().map(|value| (value - mean).powi(2)).sum();
            squares += of_group;
            // Over pairs of different values of the group.
            products += sum.powi(2) - of_group;
        }
        // Rounding may leave a little less than nothing.
        let variance = (squares / (n - 1.0) / n + products / n.powi(2)).max(0.0);
        Self {
            mean: (count > 0).then_some(mean),
            standard_error: (groups.len() > 1).then(|| variance.sqrt()),
            count,
        }
    }

    /// The share of `right` among `count` with its binomial standard error, which is a little less
    /// than that of [`Estimate::of`] ones and zeros: by the root of `(count - 1) / count`. `right`
    /// counts at most as `count`.
    ///
    /// Source: Miller 2024, arXiv 2411.00640, equation 2.
    pub fn proportion(right: usize, count: usize) -> Self {
        let share = right.min(count) as f64 / count as f64;
        let error = (share * (1.0 - share) / count as f64).sqrt();
        Self {
            mean: (count > 0).then_some(share),
            standard_error: (count > 0).then_some(error),
            count,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALUES: [f64; 10] = [1.0, 0.0, 1.0, 1.0, 0.5, 0.0, 0.0, 1.0, 1.0, 0.25];
    const GROUPS: [u8; 10] = [0, 0, 1, 1, 1, 2, 2, 3, 3, 3];

    fn assert_near(got: Option<f64>, expected: f64) {
        assert!(
            (got.unwrap() - expected).abs() < 1e-12,
            "{got:?} {expected}"
        );
    }

    // `scipy.stats.sem(x)`, and with d = x - x.mean(), n = len(x):
    // sqrt(x.var(ddof=1) / n + sum(d[i] * d[j] for i in range(n) for j in range(n)
    //                              if i != j and g[i] == g[j]) / n**2)
    #[test]
    fn errors_are_those_of_the_sample_and_of_its_groups() {
        let alone = Estimate::of(VALUES);
        assert_eq!((alone.mean, alone.count), (Some(0.575), 10));
        assert_near(alone.standard_error, 0.149_303_940_559_740_97);
        let grouped = Estimate::clustered(VALUES.into_iter().zip(GROUPS));
        assert_near(grouped.mean, 0.575);
        assert_near(grouped.standard_error, 0.156_338_308_378_550_23);
    }

    #[test]
    fn copies_of_a_row_do_not_make_it_surer() {
        let copied = |times: usize| {
            let rows = VALUES.into_iter().enumerate();
            rows.flat_map(move |(row, value)| std::iter::repeat_n((value, row), times))
        };
        let many = Estimate::clustered(copied(1000)).standard_error.unwrap();
        let population = Estimate::of(VALUES).standard_error.unwrap() * 0.9f64.sqrt();
        assert!(
            (many / population - 1.0).abs() < 1e-3,
            "{many} {population}"
        );
        assert!(
            Estimate::of(copied(1000).map(|(value, _)| value))
                .standard_error
                .unwrap()
                < many / 30.0
        );
    }

    #[test]
    fn the_binomial_error_is_that_of_zeros_and_ones() {
        let share = Estimate::proportion(3, 4);
        let sample = Estimate::of([1.0, 1.0, 1.0, 0.0]);
        assert_eq!(share.mean, sample.mean);
        assert_near(share.standard_error, (0.75 * 0.25 / 4f64).sqrt());
        assert_near(sample.standard_error, (0.75 * 0.25 / 3f64).sqrt());
    }

    #[test]
    fn little_is_sure_of_little() {
        let nothing = Estimate {
            mean: None,
            standard_error: None,
            count: 0,
        };
        assert_eq!(Estimate::of([]), nothing);
        assert_eq!(Estimate::proportion(1, 0), nothing);
        let one = Estimate {
            mean: Some(5.0),
            standard_error: None,
            count: 1,
        };
        assert_eq!(Estimate::of([5.0]), one);
        let one_group = Estimate::clustered([(1.0, 'a'), (0.0, 'a')]);
        assert_eq!(
            (one_group.mean, one_group.standard_error),
            (Some(0.5), None)
        );
    }
}
