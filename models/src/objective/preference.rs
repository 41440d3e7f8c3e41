//! Objectives over pairs of completions, one preferred to the other.
//!
//! A pair is two rows of a [`Batch`], `2k` chosen and `2k + 1` rejected, with the labels on the
//! completions. With π the log-probability of a completion under the adapter and ρ under the
//! reference, `h = (π - ρ) of the chosen - (π - ρ) of the rejected` is the only thing that a loss
//! looks at.

use crate::arch::CausalLm;
use crate::batch::Batch;
use crate::lora::Lora;
use fedllm_shared::PreferenceLoss;
use std::borrow::Cow;

/// Which function of `h` is minimized.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PreferenceSettings {
    /// How much the reference holds the adapter back: β.
    pub beta: f32,
    /// The probability that a pair is labelled the wrong way round; only
    /// [`PreferenceLoss::Sigmoid`] looks at it.
    pub label_smoothing: f32,
    /// The form of the loss.
    pub loss: PreferenceLoss,
}

/// The model that an adapter is measured against: always the same base, never a second one.
#[derive(Clone, Copy, Debug)]
pub enum PairReference<'a> {
    /// The base without an adapter.
    Base,
    /// The base with another adapter.
    Adapter(&'a Lora),
    /// The log-probability of each row, from [`CausalLm::row_log_probs`].
    Known(&'a [f32]),
}

/// How much more probable an adapter makes the completions of one pair than the reference does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairScore {
    /// Difference of the log-probabilities of the chosen completion, in nats.
    pub chosen: f32,
    /// The same of the rejected one.
    pub rejected: f32,
}

impl PairScore {
    /// `h`: by how much the chosen completion gained on the rejected one.
    pub fn margin(&self) -> f32 {
        self.chosen - self.rejected
    }

    /// Whether the chosen completion gained more.
    pub fn is_correct(&self) -> bool {
        self.margin() > 0.0
    }
}

/// What the pairs of one step said, before the step. A reward is β times the difference of
/// log-probabilities, summed over the completion.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PreferenceStats {
    /// Mean reward of the chosen completions.
    pub chosen: f32,
    /// Mean reward of the rejected completions.
    pub rejected: f32,
    /// Their difference.
    pub margin: f32,
    /// Share of the pairs whose chosen completion has the higher reward.
    pub accuracy: f32,
}

/// Rows that are no pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PairError {
    /// The last row has no partner.
    #[error("{rows} rows are not pairs of a chosen and a rejected one")]
    Unpaired {
        /// Number of rows.
        rows: usize,
    },
    /// A row has no labels, so its completion has no probability.
    #[error("row {row} has no completion")]
    NoCompletion {
        /// The row, counted from 0.
        row: usize,
    },
    /// The given log-probabilities are those of other rows.
    #[error("{got} log-probabilities of the reference for {rows} rows")]
    OtherReference {
        /// How many were given.
        got: usize,
        /// Number of rows.
        rows: usize,
    },
}

/// The scores of each pair, for evaluation.
///
/// # Errors
///
/// [`PairError`] if the rows are not pairs.
pub fn pair_scores(
    model: &CausalLm,
    pairs: &Batch,
    lora: Option<&Lora>,
    reference: PairReference<'_>,
) -> Result<Vec<PairScore>, PairError> {
    check_pairs(pairs, &reference)?;
    let policy = model.row_log_probs(pairs, lora);
    let reference = reference.log_probs(model, pairs, 0);
    let scores = policy.chunks_exact(2).zip(reference.chunks_exact(2));
    Ok(scores.map(|(p, r)| score(p, r)).collect())
}

/// Confirms that rows are pairs, each with two completions.
pub(crate) fn check_pairs(pairs: &Batch, reference: &PairReference<'_>) -> Result<(), PairError> {
    let rows = pairs.segments.len();
    if rows % 2 == 1 {
        return Err(PairError::Unpaired { rows });
    }
    if let Some(row) = pairs.row_labels().iter().position(|row| row.is_empty()) {
        return Err(PairError::NoCompletion { row });
    }
    match reference {
        PairReference::Known(known) if known.len() != rows => {
            let got = known.len();
            Err(PairError::OtherReference { got, rows })
        }
        _ => Ok(()),
    }
}

impl<'a> PairReference<'a> {
    /// The log-probabilities of the rows of `part`, which begins at row `first` of the whole.
    /// No dropout, no gradient.
    fn log_probs(self, model: &CausalLm, part: &Batch, first: usize) -> Cow<'a, [f32]> {
        match self {
            Self::Base => model.row_log_probs(part, None).into(),
            Self::Adapter(lora) => model.row_log_probs(part, Some(lora)).into(),
            Self::Known(known) => known[first..first + part.segments.len()].into(),
        }
    }
}

/// Adds up what the pairs of a step say, part by part.
pub(crate) struct PairTally<'a> {
    settings: PreferenceSettings,
    reference: PairReference<'a>,
    /// Where its rows begin in the step.
    first_row: usize,
    rows: usize,
    loss: f64,
    chosen: f64,
    rejected: f64,
    correct: usize,
}

impl<'a> PairTally<'a> {
    /// Begins at `first_row` of the step.
    pub(crate) fn new(
        settings: PreferenceSettings,
        reference: PairReference<'a>,
        first_row: usize,
    ) -> Self {
        Self {
            settings,
            reference,
            first_row,
            rows: 0,
            loss: 0.0,
            chosen: 0.0,
            rejected: 0.0,
            correct: 0,
        }
    }

    /// The reference's log-probabilities of the next part.
    pub(crate) fn reference(&self, model: &CausalLm, part: &Batch) -> Cow<'a, [f32]> {
        self.reference
            .log_probs(model, part, self.first_row + self.rows)
    }

    /// Adds the pairs of a part, and returns the derivative of their summed loss by the
    /// log-probability of each row.
    pub(crate) fn add(&mut self, part: &Batch, policy: &[f32], reference: &[f32]) -> Vec<f32> {
        let tokens: Vec<f64> = part.row_labels().iter().map(|r| r.len() as f64).collect();
        let mut slopes = Vec::with_capacity(policy.len());
        let pairs = policy.chunks_exact(2).zip(reference.chunks_exact(2));
        for ((policy, reference), tokens) in pairs.zip(tokens.chunks_exact(2)) {
            let score = score(policy, reference);
            self.chosen += f64::from(score.chosen);
            self.rejected += f64::from(score.rejected);
            self.correct += usize::from(score.is_correct());
            let parts = match self.settings.loss {
                PreferenceLoss::IpoMean => [tokens[0], tokens[1]],
                _ => [1.0, 1.0],
            };
            let h = f64::from(score.chosen) / parts[0] - f64::from(score.rejected) / parts[1];
            let (loss, slope) = self.settings.loss_of(h);
            self.loss += loss;
            slopes.extend([(slope / parts[0]) as f32, (-slope / parts[1]) as f32]);
        }
        self.rows += part.segments.len();
        slopes
    }

    /// Adds what the pairs of other parts said.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.rows += other.rows;
        self.loss += other.loss;
        self.chosen += other.chosen;
        self.rejected += other.rejected;
        self.correct += other.correct;
    }

    /// The summed loss and the means.
    pub(crate) fn finish(self) -> (f32, PreferenceStats) {
        let pairs = (self.rows / 2).max(1) as f64;
        let reward = |sum: f64| (f64::from(self.settings.beta) * sum / pairs) as f32;
        let stats = PreferenceStats {
            chosen: reward(self.chosen),
            rejected: reward(self.rejected),
            margin: reward(self.chosen - self.rejected),
            accuracy: (self.correct as f64 / pairs) as f32,
        };
        (self.loss as f32, stats)
    }
}

impl PreferenceSettings {
    /// The loss of a pair and its derivative by `h`.
    ///
    /// - `Sigmoid`: `-(1-ε)·log σ(βh) - ε·log σ(-βh)`: Rafailov et al. 2023, arXiv 2305.18290,
    ///   eq. 7, with ε = 0; with ε its conservative form.
    /// - `Hinge`: `max(0, 1 - βh)`: Zhao et al. 2023, arXiv 2305.10425.
    /// - `Ipo`, and `IpoMean` with log-probabilities averaged over each completion's tokens:
    ///   `(h - 1/(2β))²`: Azar et al. 2023, arXiv 2310.12036, eq. 17, where β is τ.
    fn loss_of(&self, h: f64) -> (f64, f64) {
        let beta = f64::from(self.beta);
        let x = beta * h;
        match self.loss {
            PreferenceLoss::Sigmoid => {
                let flipped = f64::from(self.label_smoothing);
                let loss = (1.0 - flipped) * softplus(-x) + flipped * softplus(x);
                let slope = flipped * sigmoid(x) - (1.0 - flipped) * sigmoid(-x);
                (loss, beta * slope)
            }
            PreferenceLoss::Hinge if x < 1.0 => (1.0 - x, -beta),
            PreferenceLoss::Hinge => (0.0, 0.0),
            PreferenceLoss::Ipo | PreferenceLoss::IpoMean => {
                let off = h - 0.5 / beta;
                (off * off, 2.0 * off)
            }
        }
    }
}

fn score(policy: &[f32], reference: &[f32]) -> PairScore {
    PairScore {
        chosen: policy[0] - reference[0],
        rejected: policy[1] - reference[1],
    }
}

/// `log(1 + e^x)`.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(loss: PreferenceLoss) -> PreferenceSettings {
        PreferenceSettings {
            beta: 0.3,
            label_smoothing: 0.2,
            loss,
        }
    }

    #[test]
    fn slopes_are_derivatives() {
        for loss in [
            PreferenceLoss::Sigmoid,
            PreferenceLoss::Hinge,
            PreferenceLoss::Ipo,
            PreferenceLoss::IpoMean,
        ] {
            let settings = settings(loss);
            for h in [-40.0, -3.0, -0.1, 0.0, 2.0, 3.2, 3.5, 60.0] {
                let at = |h: f64| settings.loss_of(h).0;
                let measured = (at(h + 1e-5) - at(h - 1e-5)) / 2e-5;
                let claimed = settings.loss_of(h).1;
                assert!(
                    (measured - claimed).abs() < 1e-5 * claimed.abs().max(1.0),
                    "{loss:?} at {h}: {claimed} against {measured}"
                );
            }
        }
    }

    #[test]
    fn losses_stay_finite_far_out() {
        let settings = settings(PreferenceLoss::Sigmoid);
        for h in [-1e6, 1e6] {
            let (loss, slope) = settings.loss_of(h);
            assert!(loss.is_finite() && slope.abs() <= 0.3, "{loss} {slope}");
        }
        assert!((settings.loss_of(0.0).0 - std::f64::consts::LN_2).abs() < 1e-12);
    }

    #[test]
    fn a_part_is_told_the_reference_of_its_own_rows() {
        let mut pairs = Batch::default();
        for len in [4, 3, 5, 3] {
            pairs.push(&vec![1; len], |i| i >= 2);
        }
        let settings = settings(PreferenceLoss::Ipo);
        let known = [-2.0, -3.0, -5.0, -1.0];
        let mut tally = PairTally::new(settings, PairReference::Known(&known), 0);
        for part in pairs.split_groups(7, 2) {
            assert_eq!(part.segments.len(), 2);
            let first = tally.rows;
            let policy = &[-1.0, -4.0, -5.5, -1.0][first..first + 2];
            let reference = known[first..first + 2].to_vec();
            let slopes = tally.add(&part, policy, &reference);
            assert_eq!(slopes[0], -slopes[1]);
        }
        let (loss, stats) = tally.finish();
        let off = 0.5 / f64::from(0.3f32);
        let expected = (2.0 - off).powi(2) + (-0.5 - off).powi(2);
        assert!((f64::from(loss) - expected).abs() < 1e-5);
        assert_eq!(stats.accuracy, 0.5);
        assert!((stats.margin - 0.3 * 0.75).abs() < 1e-6);
        assert!((stats.chosen - stats.rejected - stats.margin).abs() < 1e-6);
    }

    #[test]
    fn rows_that_are_no_pairs_are_refused() {
        let mut rows = Batch::default();
        rows.push(&[1, 2, 3], |i| i == 2);
        let check = |rows: &Batch, reference| check_pairs(rows, &reference);
        assert_eq!(
            check(&rows, PairReference::Base),
            Err(PairError::Unpaired { rows: 1 })
        );
        rows.push(&[1, 2], |_| false);
        assert_eq!(
            check(&rows, PairReference::Base),
            Err(PairError::NoCompletion { row: 1 })
        );
        let mut rows = Batch::default();
        rows.push(&[1, 2], |_| true);
        rows.push(&[1, 3], |_| true);
        assert_eq!(check(&rows, PairReference::Known(&[0.0, 0.0])), Ok(()));
        assert_eq!(
            check(&rows, PairReference::Known(&[0.0])),
            Err(PairError::OtherReference { got: 1, rows: 2 })
        );
    }
}
