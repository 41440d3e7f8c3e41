//! The error of any figure, from drawing its rows again.

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};

/// The share of resamples inside the interval.
const LEVEL: f64 = 0.95;

/// How far a figure spreads when its rows are drawn again, with replacement.
///
/// Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapters 6 and 13.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bootstrap {
    /// The sample standard deviation of the figure over resamples.
    pub standard_error: f64,
    /// The lower end of the 95 % percentile interval.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

impl Bootstrap {
    /// Draws `rows` of `rows` rows, `resamples` times, and looks how the statistic of what was drawn
    /// varies. The same for the same seed. Resamples whose statistic is not finite do not count;
    /// None if fewer than two are left.
    ///
    /// ```
    /// use fedllm_shared::Bootstrap;
    ///
    /// let scores = [0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0];
    /// let mean = |rows: &[usize]| rows.iter().map(|row| scores[*row]).sum::<f64>() / 8.0;
    /// let error = Bootstrap::of(scores.len(), 1000, 7, mean).unwrap();
    /// assert!(error.low < 0.625 && 0.625 < error.high);
    /// ```
    pub fn of(
        rows: usize,
        resamples: usize,
        seed: u64,
        statistic: impl Fn(&[usize]) -> f64,
    ) -> Option<Self> {
        if rows == 0 {
            return None;
        }
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut drawn = vec![0; rows];
        let mut figures: Vec<f64> = (0..resamples)
            .map(|_| {
                drawn.fill_with(|| below(rows, &mut rng));
                statistic(&drawn)
            })
            .filter(|figure| figure.is_finite())
            .collect();
        figures.sort_by(f64::total_cmp);
        let standard_error = deviation(&figures)?;
        Some(Self {
            standard_error,
            low: quantile(&figures, (1.0 - LEVEL) / 2.0),
            high: quantile(&figures, (1.0 + LEVEL) / 2.0),
        })
    }
}

/// A number below `limit`, each as likely up to one part in 2⁶⁴ over `limit`.
fn below(limit: usize, rng: &mut ChaCha8Rng) -> usize {
    ((u128::from(rng.next_u64()) * limit as u128) >> 64) as usize
}

/// The sample standard deviation, unless there are fewer than two figures.
fn deviation(figures: &[f64]) -> Option<f64> {
    let n = figures.len() as f64;
    let mean = figures.iter().sum::<f64>() / n;
    let squares: f64 = figures.iter().map(|figure| (figure - mean).powi(2)).sum();
    (figures.len() > 1).then(|| (squares / (n - 1.0)).sqrt())
}

/// The value below which a share of sorted figures lies, between neighbours in proportion: numpy's
/// default.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let (low, high) = (
        sorted[place.floor() as usize],
        sorted[place.ceil() as usize],
    );
    low + (high - low) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metric::{Average, Classification};

    const SCORES: [f64; 10] = [1.0, 0.0, 1.0, 1.0, 0.5, 0.0, 0.0, 1.0, 1.0, 0.25];

    fn mean(rows: &[usize]) -> f64 {
        rows.iter().map(|row| SCORES[*row]).sum::<f64>() / rows.len() as f64
    }

    fn assert_about(got: f64, expected: f64, tolerance: f64) {
        assert!((got - expected).abs() < tolerance, "{got} {expected}");
    }

    // scipy 1.17.1: `bootstrap((scores,), np.mean, n_resamples=200000, method="percentile")`.
    // The exact error is that of the mean: the standard deviation with n over √n, 0.14164.
    #[test]
    fn a_mean_spreads_as_in_scipy() {
        let error = Bootstrap::of(10, 20_000, 1, mean).unwrap();
        assert_about(error.standard_error, 0.141_64, 0.003);
        assert_about(error.low, 0.3, 0.026);
        assert_about(error.high, 0.85, 0.026);
    }

    // The same with scikit-learn's macro F1 of these labels: 0.07620 and [0.53564, 0.82998].
    #[test]
    fn an_f1_spreads_as_in_scipy() {
        let expected = [0, 0, 0, 1, 1, 2, 2, 2, 2, 1].repeat(4);
        let predicted = [0, 0, 1, 1, 2, 2, 2, 0, 2, 1].repeat(4);
        let f1 = |rows: &[usize]| {
            let pairs = rows.iter().map(|row| (expected[*row], predicted[*row]));
            Classification::new(pairs, None)
                .unwrap()
                .average(Average::Macro)
                .f1
        };
        let error = Bootstrap::of(40, 4_000, 1, f1).unwrap();
        assert_about(error.standard_error, 0.0762, 0.004);
        assert_about(error.low, 0.5356, 0.015);
        assert_about(error.high, 0.83, 0.015);
    }

    #[test]
    fn a_seed_gives_the_same_and_another_something_else() {
        let of = |seed| Bootstrap::of(10, 100, seed, mean);
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
    }

    #[test]
    fn what_cannot_be_drawn_has_no_error() {
        assert_eq!(Bootstrap::of(0, 100, 1, |_| 0.0), None);
        assert_eq!(Bootstrap::of(10, 1, 1, mean), None);
        assert_eq!(Bootstrap::of(10, 100, 1, |_| f64::NAN), None);
        let some = |rows: &[usize]| if rows[0] < 5 { 1.0 } else { f64::INFINITY };
        assert_eq!(Bootstrap::of(10, 100, 1, some).unwrap().standard_error, 0.0);
    }

    // `np.quantile([1, 2, 4, 8], [0, 0.025, 0.5, 1])`.
    #[test]
    fn quantiles_lie_between_neighbours() {
        let of = |share| quantile(&[1.0, 2.0, 4.0, 8.0], share);
        assert_eq!([0.0, 0.025, 0.5, 1.0].map(of), [1.0, 1.075, 3.0, 8.0]);
    }
}
