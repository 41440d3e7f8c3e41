//! The learning rate from round to round.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use crate::id::RoundId;
use crate::strategy::Compat;

/// How the clients' learning rate moves over the rounds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LrSchedule {
    /// The shape.
    pub kind: ScheduleKind,
    /// The highest learning rate.
    pub lr: f32,
    /// The learning rate of the last round, unless it is constant; `lr` if that is lower.
    pub lr_min: f32,
    /// Rounds in which it rises evenly to its schedule.
    pub warmup_rounds: u64,
    /// Rounds of the run.
    pub rounds: u64,
    /// Whose cosine: OpenFedLLM's rises where `lr` is below `lr_min`, and
    /// ends a round after the last.
    pub compat: Compat,
}

/// The shape of a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// The same in every round.
    Constant,
    /// Half a cosine from `lr` in the first round to `lr_min` in the last.
    Cosine,
    /// A line from `lr` in the first round to `lr_min` in the last.
    Linear,
}

impl LrSchedule {
    /// The learning rate of `round`.
    pub fn at(&self, round: RoundId) -> f32 {
        let high = f64::from(self.lr);
        let low = match self.compat {
            Compat::Paper => f64::from(self.lr_min).min(high),
            Compat::OpenFedLlm => f64::from(self.lr_min),
        };
        let left = match self.kind {
            ScheduleKind::Constant => 1.0,
            ScheduleKind::Cosine => 0.5 * (1.0 + (PI * self.done(round)).cos()),
            ScheduleKind::Linear => 1.0 - self.done(round),
        };
        ((low + (high - low) * left) * self.warmup(round)) as f32
    }

    /// How much of the run is behind `round`: 0 in the first, 1 in the last.
    fn done(&self, round: RoundId) -> f64 {
        let last = match self.compat {
            Compat::Paper => self.rounds.saturating_sub(1),
            Compat::OpenFedLlm => self.rounds,
        };
        (round.0 as f64 / last.max(1) as f64).min(1.0)
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
            compat: Compat::Paper,
        }
    }

    #[test]
    fn a_cosine_with_compat_is_the_reference() {
        // lr_min + 0.5 (lr - lr_min) (1 + cos(pi round / 200)), in Python.
        let cosine = LrSchedule {
            compat: Compat::OpenFedLlm,
            ..schedule(ScheduleKind::Cosine, 0)
        };
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
    fn the_last_round_has_the_lowest_rate_and_none_a_lower_one() {
        for kind in [ScheduleKind::Cosine, ScheduleKind::Linear] {
            let falling = schedule(kind, 0);
            assert_eq!(falling.at(RoundId(0)), 5e-5);
            assert!((falling.at(RoundId(199)) - 1e-6).abs() < 1e-12);
            let middle = 0.5 * (falling.at(RoundId(99)) + falling.at(RoundId(100)));
            assert!((middle - 2.55e-5).abs() < 1e-10);
            let below = LrSchedule {
                lr: 5e-7,
                ..falling
            };
            assert_eq!(below.at(RoundId(150)), 5e-7);
            let risen = LrSchedule {
                compat: Compat::OpenFedLlm,
                ..below
            };
            assert!(risen.at(RoundId(150)) > 5e-7);
        }
        let single = LrSchedule {
            rounds: 1,
            ..schedule(ScheduleKind::Linear, 0)
        };
        assert_eq!(single.at(RoundId(0)), 5e-5);
    }

    #[test]
    fn warmup_rises_evenly() {
        let warm = schedule(ScheduleKind::Constant, 3);
        let got: Vec<_> = (0..5).map(|round| warm.at(RoundId(round)) / 5e-5).collect();
        assert_eq!(got, [0.25, 0.5, 0.75, 1.0, 1.0]);
    }
}
