//! How the server steps along the aggregate.
//!
//! Each step is computed in `f64` and rounded once. The pseudo-gradient of
//! the papers is the negated aggregate Δ; adding a step along Δ is descending.

use serde::{Deserialize, Serialize};

use super::{Compat, ServerState};
use crate::adapter::{Adapter, AdapterError, Delta, same_layout};

/// The name of the first moment in a [`ServerState`].
pub const MOMENTUM: &str = "momentum";
/// The name of the second moment in a [`ServerState`].
pub const SECOND_MOMENT: &str = "second_moment";

/// The server's optimizer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerOptimizer {
    /// `x ← x + lr·Δ`. It keeps no state.
    Sgd {
        /// The learning rate; 1 replaces the adapter by the clients' mean.
        lr: f64,
    },
    /// `m ← β·m + Δ`, `x ← x + lr·m`.
    ///
    /// OpenFedLLM has `m ← β·m + (1-β)·Δ`, and `m ← Δ` in the first round.
    Momentum {
        /// The decay β of the momentum.
        beta: f64,
        /// The learning rate.
        lr: f64,
        /// Whose formula.
        compat: Compat,
    },
    /// `m ← β₁·m + (1-β₁)·Δ`, `v` by the rule, `x ← x + η·m/(√v + τ)`.
    ///
    /// `m` begins at zero and `v` at τ². OpenFedLLM begins with `m ← Δ`, and
    /// puts `m²` into `v` where the paper has `Δ²`.
    Adaptive {
        /// How the second moment moves.
        rule: SecondMoment,
        /// The learning rate η.
        eta: f64,
        /// The degree of adaptivity τ.
        tau: f64,
        /// The decay β₁ of the first moment.
        beta1: f64,
        /// The decay β₂ of the second moment; Adagrad has none.
        beta2: f64,
        /// Whose formula.
        compat: Compat,
    },
}

/// How the second moment `v` takes in a square `d²`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecondMoment {
    /// `v ← v + d²`.
    Adagrad,
    /// `v ← v - (1-β₂)·d²·sign(v - d²)`.
    Yogi,
    /// `v ← β₂·v + (1-β₂)·d²`.
    Adam,
}

impl ServerOptimizer {
    /// Moves `adapter` and says how far (L2).
    ///
    /// # Errors
    ///
    /// [`AdapterError`] if the layouts differ or a value would not be finite;
    /// the adapter and the state are then unchanged.
    pub fn step(
        &self,
        adapter: &mut Adapter,
        aggregate: &Delta,
        state: &mut ServerState,
    ) -> Result<f64, AdapterError> {
        same_layout(adapter.layout(), aggregate.layout())?;
        let mut moments = Moments::of(self, aggregate, state)?;
        let mut squares = 0.0;
        let mut moved = adapter.values().to_vec();
        for (index, (value, delta)) in moved.iter_mut().zip(aggregate.values()).enumerate() {
            let step = self.element(f64::from(*delta), &mut moments, index);
            squares += step * step;
            *value = (f64::from(*value) + step) as f32;
        }
        let moved = Adapter::new(adapter.layout().clone(), moved)?;
        moments.check(aggregate)?;
        moments.keep(state);
        *adapter = moved;
        Ok(squares.sqrt())
    }

    /// One value's step.
    fn element(&self, delta: f64, moments: &mut Moments, index: usize) -> f64 {
        match *self {
            Self::Sgd { lr } => lr * delta,
            Self::Momentum { beta, lr, compat } => {
                let m = f64::from(moments.first[index]);
                let m = match (compat, moments.began) {
                    (Compat::Paper, _) => beta * m + delta,
                    (Compat::OpenFedLlm, true) => beta * m + (1.0 - beta) * delta,
                    (Compat::OpenFedLlm, false) => delta,
                };
                lr * moments.set_first(index, m)
            }
            Self::Adaptive {
                rule,
                eta,
                tau,
                beta1,
                beta2,
                compat,
            } => {
                let m = f64::from(moments.first[index]);
                let m = match (compat, moments.began) {
                    (Compat::OpenFedLlm, false) => delta,
                    _ => beta1 * m + (1.0 - beta1) * delta,
                };
                let m = moments.set_first(index, m);
                let d = match compat {
                    Compat::Paper => delta,
                    Compat::OpenFedLlm => m,
                };
                let v = f64::from(moments.second[index]);
                let v = moments.set_second(index, rule.next(v, d * d, beta2));
                eta * m / (v.sqrt() + tau)
            }
        }
    }
}

impl SecondMoment {
    fn next(self, v: f64, square: f64, beta2: f64) -> f64 {
        match self {
            Self::Adagrad => v + square,
            Self::Yogi if v > square => v - (1.0 - beta2) * square,
            Self::Yogi if v < square => v + (1.0 - beta2) * square,
            Self::Yogi => v,
            Self::Adam => beta2 * v + (1.0 - beta2) * square,
        }
    }
}

/// The moments of one step: copies, so that a step that fails changes nothing.
struct Moments {
    first: Vec<f32>,
    second: Vec<f32>,
    /// Whether there was a round before.
    began: bool,
}

impl Moments {
    fn of(
        optimizer: &ServerOptimizer,
        aggregate: &Delta,
        state: &ServerState,
    ) -> Result<Self, AdapterError> {
        let (first, second) = match *optimizer {
            ServerOptimizer::Sgd { .. } => (None, None),
            ServerOptimizer::Momentum { .. } => (Some(0.0), None),
            ServerOptimizer::Adaptive { tau, .. } => (Some(0.0), Some((tau * tau) as f32)),
        };
        let vector = |name: &str, begin: Option<f32>| {
            let Some(begin) = begin else {
                return Ok(Vec::new());
            };
            let (expected, kept) = (aggregate.layout().len(), state.vectors.get(name));
            match kept {
                None => Ok(vec![begin; expected]),
                Some(kept) if kept.len() == expected => Ok(kept.clone()),
                Some(kept) => Err(AdapterError::Length {
                    expected,
                    got: kept.len(),
                }),
            }
        };
        Ok(Self {
            first: vector(MOMENTUM, first)?,
            second: vector(SECOND_MOMENT, second)?,
            began: state.vectors.contains_key(MOMENTUM),
        })
    }

    /// Keeps the rounded value and gives it back: state and step then agree.
    fn set_first(&mut self, index: usize, value: f64) -> f64 {
        self.first[index] = value as f32;
        f64::from(self.first[index])
    }

    fn set_second(&mut self, index: usize, value: f64) -> f64 {
        self.second[index] = value as f32;
        f64::from(self.second[index])
    }

    fn check(&self, aggregate: &Delta) -> Result<(), AdapterError> {
        for vector in [&self.first, &self.second] {
            crate::adapter::check_finite(aggregate.layout(), 0, vector)?;
        }
        Ok(())
    }

    fn keep(self, state: &mut ServerState) {
        for (name, vector) in [(MOMENTUM, self.first), (SECOND_MOMENT, self.second)] {
            if !vector.is_empty() {
                state.vectors.insert(name.to_owned(), vector);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::layout;
    use super::*;

    /// Two steps from `x = (1, -2, 0.5)` along the same two deltas.
    fn two_steps(optimizer: ServerOptimizer) -> ([f32; 3], ServerState) {
        let mut adapter = Adapter::new(layout(), vec![1.0, -2.0, 0.5]).unwrap();
        let mut state = ServerState::default();
        for delta in [[0.2, -0.1, 0.0], [0.1, 0.3, -0.2]] {
            let delta = Delta::new(layout(), delta.to_vec()).unwrap();
            optimizer.step(&mut adapter, &delta, &mut state).unwrap();
        }
        let values = adapter.values().try_into().unwrap();
        (values, state)
    }

    fn close(got: &[f32], expected: [f64; 3]) {
        for (got, expected) in got.iter().zip(expected) {
            assert!(
                (f64::from(*got) - expected).abs() < 1e-6,
                "{got} {expected}"
            );
        }
    }

    /// x + 0.5·Δ₁ + 0.5·Δ₂.
    #[test]
    fn sgd() {
        let (x, state) = two_steps(ServerOptimizer::Sgd { lr: 0.5 });
        close(
            &x,
            [
                1.0 + 0.5 * (0.2 + 0.1),
                -2.0 + 0.5 * (-0.1 + 0.3),
                0.5 + 0.5 * -0.2,
            ],
        );
        assert_eq!(state, ServerState::default());
    }

    /// m₁ = Δ₁, m₂ = 0.9·Δ₁ + Δ₂, x = x₀ + m₁ + m₂ (Hsu et al. 2019).
    #[test]
    fn momentum_of_the_paper() {
        let (x, state) = two_steps(ServerOptimizer::Momentum {
            beta: 0.9,
            lr: 1.0,
            compat: Compat::Paper,
        });
        let m = [0.9 * 0.2 + 0.1, 0.9 * -0.1 + 0.3, -0.2];
        close(&state.vectors[MOMENTUM], m);
        close(&x, [1.0 + 0.2 + m[0], -2.0 - 0.1 + m[1], 0.5 + m[2]]);
    }

    /// m₁ = Δ₁, m₂ = 0.9·Δ₁ + 0.1·Δ₂.
    #[test]
    fn momentum_of_the_reference() {
        let (x, state) = two_steps(ServerOptimizer::Momentum {
            beta: 0.9,
            lr: 1.0,
            compat: Compat::OpenFedLlm,
        });
        let m = [0.9 * 0.2 + 0.1 * 0.1, 0.9 * -0.1 + 0.1 * 0.3, 0.1 * -0.2];
        close(&state.vectors[MOMENTUM], m);
        close(&x, [1.0 + 0.2 + m[0], -2.0 - 0.1 + m[1], 0.5 + m[2]]);
    }

    fn adaptive(rule: SecondMoment, compat: Compat) -> ServerOptimizer {
        ServerOptimizer::Adaptive {
            rule,
            eta: 0.1,
            tau: 0.01,
            beta1: 0.5,
            beta2: 0.75,
            compat,
        }
    }

    /// With τ² = 1e-4: m₁ = Δ₁/2 = (0.1, -0.05, 0), m₂ = m₁/2 + Δ₂/2 = (0.1, 0.125, -0.1).
    const M1: [f64; 3] = [0.1, -0.05, 0.0];
    const M2: [f64; 3] = [0.1, 0.125, -0.1];

    fn moved(v1: [f64; 3], v2: [f64; 3]) -> [f64; 3] {
        let x = [1.0, -2.0, 0.5];
        let step = |i: usize, m: [f64; 3], v: [f64; 3]| 0.1 * m[i] / (v[i].sqrt() + 0.01);
        std::array::from_fn(|i| x[i] + step(i, M1, v1) + step(i, M2, v2))
    }

    /// v₁ = 1e-4 + Δ₁², v₂ = v₁ + Δ₂².
    #[test]
    fn adagrad_of_the_paper() {
        let (x, state) = two_steps(adaptive(SecondMoment::Adagrad, Compat::Paper));
        let v1 = [0.0401, 0.0101, 0.0001];
        let v2 = [0.0501, 0.1001, 0.0401];
        close(&state.vectors[MOMENTUM], M2);
        close(&state.vectors[SECOND_MOMENT], v2);
        close(&x, moved(v1, v2));
    }

    /// v₁ < Δ₁² except where Δ₁ = 0: v₁ = 1e-4 + Δ₁²/4, or 1e-4. Then
    /// v₂ = v₁ - Δ₂²/4 in the first place (0.0101 > 0.01) and v₁ + Δ₂²/4 in the others.
    #[test]
    fn yogi_of_the_paper() {
        let (x, state) = two_steps(adaptive(SecondMoment::Yogi, Compat::Paper));
        let v1 = [0.0101, 0.0026, 0.0001];
        let v2 = [0.0101 - 0.0025, 0.0026 + 0.0225, 0.0001 + 0.01];
        close(&state.vectors[SECOND_MOMENT], v2);
        close(&x, moved(v1, v2));
    }

    /// v₁ = 0.75e-4 + Δ₁²/4, v₂ = 0.75·v₁ + Δ₂²/4.
    #[test]
    fn adam_of_the_paper() {
        let (x, state) = two_steps(adaptive(SecondMoment::Adam, Compat::Paper));
        let v1 = [0.010_075, 0.002_575, 0.000_075];
        let v2 = [
            0.75 * 0.010_075 + 0.0025,
            0.75 * 0.002_575 + 0.0225,
            0.75 * 0.000_075 + 0.01,
        ];
        close(&state.vectors[SECOND_MOMENT], v2);
        close(&x, moved(v1, v2));
    }

    /// m₁ = Δ₁, m₂ = Δ₁/2 + Δ₂/2, and v takes in m² instead of Δ².
    #[test]
    fn adam_of_the_reference() {
        let (x, state) = two_steps(adaptive(SecondMoment::Adam, Compat::OpenFedLlm));
        let (m1, m2) = ([0.2, -0.1, 0.0], [0.15, 0.1, -0.1]);
        let v1: [f64; 3] = std::array::from_fn(|i| 0.75e-4 + 0.25 * m1[i] * m1[i]);
        let v2: [f64; 3] = std::array::from_fn(|i: usize| 0.75 * v1[i] + 0.25 * m2[i] * m2[i]);
        close(&state.vectors[MOMENTUM], m2);
        close(&state.vectors[SECOND_MOMENT], v2);
        let from = [1.0, -2.0, 0.5];
        let step = |m: f64, v: f64| 0.1 * m / (v.sqrt() + 0.01);
        close(
            &x,
            std::array::from_fn(|i| from[i] + step(m1[i], v1[i]) + step(m2[i], v2[i])),
        );
    }

    #[test]
    fn a_step_that_is_not_finite_changes_nothing() {
        let mut adapter = Adapter::new(layout(), vec![f32::MAX; 3]).unwrap();
        let (before, mut state) = (adapter.clone(), ServerState::default());
        let delta = Delta::new(layout(), vec![f32::MAX; 3]).unwrap();
        for optimizer in [
            ServerOptimizer::Sgd { lr: 1.0 },
            ServerOptimizer::Momentum {
                beta: 0.9,
                lr: 1.0,
                compat: Compat::Paper,
            },
            adaptive(SecondMoment::Adagrad, Compat::Paper),
        ] {
            let result = optimizer.step(&mut adapter, &delta, &mut state);
            assert!(matches!(result, Err(AdapterError::NonFinite { .. })));
            assert_eq!((&adapter, &state), (&before, &ServerState::default()));
        }
    }
}
