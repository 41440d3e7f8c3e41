//! The learning rate from round to round.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use crate::id::RoundId;

/// How the clients' learning rate moves over the rounds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LrSchedule {
    /// The shape.
    pub kind: ScheduleKind,
    /// The highest learning rate.
    pub lr: f32,
    /// The learning rate that the cosine ends at.
    pub lr_min: f32,
    /// Rounds in which it rises evenly to its schedule.
    pub warmup_rounds: u64,
    /// Rounds of the run.
    pub rounds: u64,
}

/// The shape of a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// The same in every round.
    Constant,
    /// Half a cosine from `lr` in round 0 to `lr_min` after the last round.
    Cosine,
}

impl LrSchedule {
    /// The learning rate of `round`.
    pub fn at(&self, round: RoundId) -> f32 {
        let full = match self.kind {
            ScheduleKind::Constant => f64::from(self.lr),
            ScheduleKind::Cosine => self.cosine(round),
        };
        (full * self.warmup(round)) as f32
    }

    fn cosine(&self, round: RoundId) -> f64 {
        let (high, low) = (f64::from(self.lr), f64::from(self.lr_min));
        let done = (round.0 as f64 / self.rounds.max(1) as f64).min(1.0);
        low + 0.5 * (high - low) * (1.0 + (PI * done).cos())
    }

    fn warmup(&self, round: RoundId) -> f64 {
        let warm = (round.0 + 1) as f64 / (self.warmup_rounds + 1) as f64;
        warm.min(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(kind: ScheduleKind, warmup_rounds: u64) -> LrSchedule {
        LrSchedule {
            kind,
            lr: 5e-5,
            lr_min: 1e-6,
            warmup_rounds,
            rounds: 200,
        }
    }

    #[test]
    fn cosine_follows_the_reference() {
        // lr_min + 0.5 (lr - lr_min) (1 + cos(pi round / 200)), in Python.
        let cosine = schedule(ScheduleKind::Cosine, 0);
        for (round, expected) in [
            (0, 5e-5),
            (1, 4.999_698e-5),
            (50, 4.282_411_6e-5),
            (100, 2.55e-5),
            (199, 1.003_022_2e-6),
            (200, 1e-6),
            (999, 1e-6),
        ] {
            let got = cosine.at(RoundId(round));
            assert!((got - expected).abs() < 1e-11, "{round}: {got}");
        }
    }

    #[test]
    fn warmup_rises_evenly() {
        let warm = schedule(ScheduleKind::Constant, 3);
        let got: Vec<_> = (0..5).map(|round| warm.at(RoundId(round)) / 5e-5).collect();
        assert_eq!(got, [0.25, 0.5, 0.75, 1.0, 1.0]);
    }
}
