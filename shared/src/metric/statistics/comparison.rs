//! Two systems on the same rows.

use serde::{Deserialize, Serialize};

use super::Estimate;

/// From this number of rows that only one system has right, the normal distribution is near enough.
const MANY: usize = 25;

/// By how much one system is ahead of another on the same rows, and whether that may be chance.
///
/// Rows that are hard are hard for both, so the mean of differences is known better than the
/// difference of means.
///
/// Source: Miller 2024, arXiv 2411.00640, section 4.2; McNemar 1947 for right and wrong.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The mean of first minus second, and its standard error.
    pub difference: Estimate,
    /// How likely a difference of this size or more is, in either direction, between systems that
    /// are equally good; None if the rows cannot say.
    pub p_value: Option<f64>,
    /// Where the p-value comes from.
    pub test: PairedTest,
}

/// Where the p-value of a comparison comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PairedTest {
    /// The exact McNemar test: of the rows that only one system has right, each may have had either.
    #[serde(rename = "mcnemar")]
    McNemar,
    /// The difference over its standard error is normally distributed.
    Normal,
}

impl Comparison {
    /// Compares pairs of scores of rows that have nothing to do with each other: exactly if all
    /// scores are 0 or 1 and fewer than 25 rows differ, and else by the normal distribution.
    ///
    /// ```
    /// use fedllm_shared::{Comparison, PairedTest};
    ///
    /// let pairs = [(1.0, 0.0), (1.0, 1.0), (1.0, 0.0), (0.0, 0.0), (1.0, 0.0)];
    /// let comparison = Comparison::of(&pairs);
    /// assert_eq!(comparison.difference.mean, Some(0.6));
    /// assert_eq!(comparison.test, PairedTest::McNemar);
    /// assert_eq!(comparison.p_value, Some(0.25));
    /// ```
    pub fn of(pairs: &[(f64, f64)]) -> Self {
        let difference = Estimate::of(pairs.iter().map(|(first, second)| first - second));
        let is_graded = |score: f64| score == 0.0 || score == 1.0;
        let graded = pairs.iter().all(|(a, b)| is_graded(*a) && is_graded(*b));
        let only = |first: f64| pairs.iter().filter(|(a, b)| a != b && *a == first).count();
        let (first, second) = (only(1.0), only(0.0));
        if graded && first + second < MANY && !pairs.is_empty() {
            return Self {
                difference,
                p_value: Some(mcnemar(first, second)),
                test: PairedTest::McNemar,
            };
        }
        Self::normal(difference)
    }

    /// Compares pairs of scores with the group of each row, as [`Estimate::clustered`] has it, by
    /// the normal distribution.
    pub fn clustered<G: Ord>(rows: impl IntoIterator<Item = (f64, f64, G)>) -> Self {
        let differences = rows
            .into_iter()
            .map(|(first, second, group)| (first - second, group));
        Self::normal(Estimate::clustered(differences))
    }

    fn normal(difference: Estimate) -> Self {
        let p_value = match (difference.mean, difference.standard_error) {
            (Some(mean), Some(error)) if error > 0.0 => {
                Some(erfc((mean / error).abs() / std::f64::consts::SQRT_2))
            }
            // Never a difference: as even as can be. Always the same one: nothing to measure it by.
            (Some(0.0), Some(_)) => Some(1.0),
            _ => None,
        };
        Self {
            difference,
            p_value,
            test: PairedTest::Normal,
        }
    }
}

/// The exact two-sided p-value of tossing `first` heads and `second` tails with a fair coin.
fn mcnemar(first: usize, second: usize) -> f64 {
    let (fewer, tosses) = (first.min(second), first + second);
    let mut ways = 1.0;
    let mut at_most = 0.0;
    for heads in 0..=fewer {
        at_most += ways;
        ways *= (tosses - heads) as f64 / (heads + 1) as f64;
    }
    (2.0 * at_most / 2f64.powi(tosses as i32)).min(1.0)
}

/// The complementary error function of a number that is not negative: `erfc(z / √2)` is the
/// two-sided p-value of `z`.
///
/// Source: Abramowitz and Stegun 1964, 7.1.6 near zero and 7.1.14 far from it.
fn erfc(x: f64) -> f64 {
    let scale = (-x * x).exp() / std::f64::consts::PI.sqrt();
    if x < 2.0 {
        let (mut term, mut sum, mut n) = (x, x, 1.0);
        while term > sum * f64::EPSILON {
            term *= 2.0 * x * x / (2.0 * n + 1.0);
            sum += term;
            n += 1.0;
        }
        return 1.0 - 2.0 * scale * sum;
    }
    // A hundred terms are more than enough from 2 on.
    let fraction = (1..=100)
        .rev()
        .fold(x, |below, n| x + f64::from(n) / 2.0 / below);
    scale / fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: [f64; 10] = [1.0, 0.0, 1.0, 1.0, 0.5, 0.0, 0.0, 1.0, 1.0, 0.25];
    const SECOND: [f64; 10] = [1.0, 0.0, 0.0, 1.0, 0.25, 0.0, 1.0, 0.0, 1.0, 0.5];
    const GROUPS: [u8; 10] = [0, 0, 1, 1, 1, 2, 2, 3, 3, 3];

    fn assert_near(got: Option<f64>, expected: f64) {
        assert!(
            (got.unwrap() / expected - 1.0).abs() < 1e-10,
            "{got:?} {expected}"
        );
    }

    /// Rows that only the first has right, and that only the second has, among others.
    fn graded(first: usize, second: usize) -> Comparison {
        let ones = std::iter::repeat_n((1.0, 0.0), first);
        let others = std::iter::repeat_n((0.0, 1.0), second);
        let same = [(1.0, 1.0), (0.0, 0.0)];
        Comparison::of(&ones.chain(others).chain(same).collect::<Vec<_>>())
    }

    // `scipy.stats.binomtest(first, first + second, 0.5).pvalue`.
    #[test]
    fn few_rows_are_judged_exactly() {
        let cases = [
            (3, 9, 0.145_996_093_75),
            (9, 3, 0.145_996_093_75),
            (0, 5, 0.0625),
            (6, 6, 1.0),
            (8, 16, 0.151_589_632_034_301_76),
            (0, 0, 1.0),
        ];
        for (first, second, p_value) in cases {
            let comparison = graded(first, second);
            assert_eq!(comparison.test, PairedTest::McNemar);
            assert_near(comparison.p_value, p_value);
        }
        assert_eq!(graded(9, 16).test, PairedTest::Normal);
        assert_eq!(graded(30, 0).test, PairedTest::Normal);
    }

    // With d = first - second: `2 * scipy.stats.norm.sf(abs(d.mean()) / error)`, the error as in the
    // test of `Estimate`.
    #[test]
    fn differences_are_paired_and_may_be_grouped() {
        let pairs: Vec<_> = FIRST.into_iter().zip(SECOND).collect();
        let alone = Comparison::of(&pairs);
        assert_near(alone.difference.mean, 0.1);
        assert_near(alone.difference.standard_error, 0.183_333_333_333_333_35);
        assert_near(alone.p_value, 0.585_440_934_568_927_2);
        assert_eq!(alone.test, PairedTest::Normal);

        let rows = pairs
            .into_iter()
            .zip(GROUPS)
            .map(|((a, b), group)| (a, b, group));
        let grouped = Comparison::clustered(rows);
        assert_near(grouped.difference.standard_error, 0.170_912_583_243_923_6);
        assert_near(grouped.p_value, 0.558_484_225_771_699_9);
    }

    // `2 * scipy.stats.norm.sf(z)`.
    #[test]
    fn tails_are_those_of_the_normal_distribution() {
        let cases = [
            (0.5, 0.617_075_077_451_973_8),
            (1.96, 0.049_995_790_296_440_87),
            (2.8, 0.005_110_260_660_855_864),
            (2.9, 0.003_731_626_600_768_075),
            (5.0, 5.733_031_437_583_866e-7),
            (20.0, 5.507_248_237_212_311e-89),
        ];
        for (z, tails) in cases {
            assert_near(Some(erfc(z / std::f64::consts::SQRT_2)), tails);
        }
        assert_eq!(erfc(0.0), 1.0);
        assert_eq!(erfc(1e9), 0.0);
    }

    #[test]
    fn rows_that_cannot_say_do_not() {
        assert_eq!(Comparison::of(&[]).p_value, None);
        assert_eq!(Comparison::of(&[(0.5, 0.25)]).p_value, None);
        assert_eq!(Comparison::of(&[(0.5, 0.25), (0.5, 0.25)]).p_value, None);
        assert_eq!(Comparison::of(&[(0.5, 0.5), (0.5, 0.5)]).p_value, Some(1.0));
        assert_eq!(
            Comparison::clustered([(1.0, 0.0, 'a'), (0.0, 1.0, 'a')]).p_value,
            None
        );
    }
}
