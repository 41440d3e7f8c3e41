//! What held-out rows say of a model, in figures.

use fedllm_client::UnitScores;
use fedllm_shared::{CentralScore, Estimate};

/// The means over rows. Errors that one row does not have are 0.
pub(crate) fn central_score(scores: &UnitScores) -> CentralScore {
    let loss = Estimate::of(scores.losses.iter().copied());
    let right = Estimate::of(scores.right.iter().map(|right| f64::from(*right)));
    CentralScore {
        loss: loss.mean.unwrap_or(0.0),
        loss_se: loss.standard_error.unwrap_or(0.0),
        accuracy: right.mean.unwrap_or(0.0),
        accuracy_se: right.standard_error.unwrap_or(0.0),
        rows: scores.losses.len() as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_over_rows_and_errors_those_of_the_sample() {
        let scores = UnitScores {
            losses: vec![1.0, 3.0, 2.0, 2.0],
            right: vec![true, false, false, false],
            margins: Vec::new(),
        };
        let score = central_score(&scores);
        assert_eq!((score.loss, score.accuracy, score.rows), (2.0, 0.25, 4));
        // Variance 2/3, four figures.
        assert!((score.loss_se - (2.0f64 / 3.0 / 4.0).sqrt()).abs() < 1e-12);
        assert!((score.accuracy_se - 0.25).abs() < 1e-12);
        let one = central_score(&UnitScores {
            losses: vec![5.0],
            right: vec![true],
            margins: Vec::new(),
        });
        assert_eq!((one.loss, one.loss_se), (5.0, 0.0));
    }
}
