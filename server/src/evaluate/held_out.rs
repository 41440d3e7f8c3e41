//! What held-out rows say of a model, in figures.

use fedllm_client::UnitScores;
use fedllm_shared::{CentralScore, Estimate};

/// The mean and its standard error, 0 where they are not known.
pub(crate) fn mean_and_error(figures: &[f64]) -> (f64, f64) {
    let estimate = Estimate::of(figures.iter().copied());
    (
        estimate.mean.unwrap_or(0.0),
        estimate.standard_error.unwrap_or(0.0),
    )
}

/// The means over rows.
pub(crate) fn central_score(scores: &UnitScores) -> CentralScore {
    let right: Vec<f64> = scores.right.iter().map(|r| f64::from(*r)).collect();
    let (loss, loss_se) = mean_and_error(&scores.losses);
    let (accuracy, accuracy_se) = mean_and_error(&right);
    CentralScore {
        loss,
        loss_se,
        accuracy,
        accuracy_se,
        rows: scores.losses.len() as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_of_a_mean_is_that_of_the_sample() {
        // Variance 2/3, four figures.
        let (mean, error) = mean_and_error(&[1.0, 3.0, 2.0, 2.0]);
        assert_eq!(mean, 2.0);
        assert!((error - (2.0f64 / 3.0 / 4.0).sqrt()).abs() < 1e-12);
        assert_eq!(mean_and_error(&[5.0]), (5.0, 0.0));
    }

    #[test]
    fn rows_are_right_or_wrong() {
        let scores = UnitScores {
            losses: vec![1.0, 3.0, 2.0, 2.0],
            right: vec![true, false, false, false],
            margins: Vec::new(),
        };
        let score = central_score(&scores);
        assert_eq!((score.loss, score.accuracy, score.rows), (2.0, 0.25, 4));
        assert!((score.accuracy_se - 0.25).abs() < 1e-12);
    }
}
