//! How an adapter does on rows that nobody trains on.

use serde::{Deserialize, Serialize};

/// What a client found on rows that it holds out: means, and of how many rows.
///
/// ```
/// use fedllm_shared::HeldOutScore;
///
/// let score = HeldOutScore { loss: 2.5, accuracy: 0.25, rows: 8 };
/// assert!(score.is_sound());
/// assert!(!HeldOutScore { rows: 1, ..score }.is_sound());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldOutScore {
    /// The mean loss of a row, in nats.
    pub loss: f32,
    /// The share of rows that are right: whose answer greedy decoding writes, or whose chosen answer
    /// has the larger reward.
    pub accuracy: f32,
    /// How many rows there are.
    pub rows: u32,
}

impl HeldOutScore {
    /// Fewer rows are not reported: the mean of one row is that row.
    pub const MIN_ROWS: u32 = 5;
    /// More rows are not believed, so that no client can claim the whole mean.
    pub const MAX_ROWS: u32 = 1_000_000;

    /// Whether these can be the figures of so many rows.
    pub fn is_sound(&self) -> bool {
        // What is no number is in no range.
        self.loss.is_finite()
            && self.loss >= 0.0
            && (0.0..=1.0).contains(&self.accuracy)
            && (Self::MIN_ROWS..=Self::MAX_ROWS).contains(&self.rows)
    }
}

/// The scores of several clients, each weighed by its rows.
#[derive(Clone, Copy, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct ClientsScore {
    /// How many clients there are.
    pub clients: u64,
    /// Their rows together.
    pub rows: u64,
    /// The mean loss of a row, in nats.
    pub loss: f64,
    /// The share of rows that are right.
    pub accuracy: f64,
}

impl ClientsScore {
    /// Takes in the score of another client.
    pub fn add(&mut self, score: &HeldOutScore) {
        self.clients += 1;
        self.rows += u64::from(score.rows);
        let share = f64::from(score.rows) / self.rows.max(1) as f64;
        self.loss += share * (f64::from(score.loss) - self.loss);
        self.accuracy += share * (f64::from(score.accuracy) - self.accuracy);
    }

    /// The mean of some scores, if there are any.
    pub fn of<'a>(scores: impl IntoIterator<Item = &'a HeldOutScore>) -> Option<Self> {
        let mut mean = Self::default();
        for score in scores {
            mean.add(score);
        }
        (mean.clients > 0).then_some(mean)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCORE: HeldOutScore = HeldOutScore {
        loss: 2.0,
        accuracy: 0.5,
        rows: 10,
    };

    #[test]
    fn figures_that_cannot_be_are_not_sound() {
        let spoiled: [fn(&mut HeldOutScore); 8] = [
            |score| score.loss = f32::NAN,
            |score| score.loss = f32::INFINITY,
            |score| score.loss = -1.0,
            |score| score.accuracy = f32::NAN,
            |score| score.accuracy = 1.5,
            |score| score.accuracy = -0.5,
            |score| score.rows = HeldOutScore::MIN_ROWS - 1,
            |score| score.rows = HeldOutScore::MAX_ROWS + 1,
        ];
        assert!(SCORE.is_sound());
        for spoil in spoiled {
            let mut score = SCORE;
            spoil(&mut score);
            assert!(!score.is_sound(), "{score:?}");
        }
    }

    #[test]
    fn rows_weigh_the_same_whoever_has_them() {
        let other = HeldOutScore {
            loss: 5.0,
            accuracy: 1.0,
            rows: 30,
        };
        let mean = ClientsScore::of([&SCORE, &other]).unwrap();
        assert_eq!((mean.clients, mean.rows), (2, 40));
        assert_eq!((mean.loss, mean.accuracy), (4.25, 0.875));
        assert_eq!(ClientsScore::of([]), None);
    }
}
