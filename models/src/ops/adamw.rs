//! AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101, Algorithm 2) as
//! `torch.optim.AdamW` computes it, over the whole flattened adapter at once.

use super::flat::CHUNK;
use super::host::{Host, host_tensor, is_cpu};
use super::kernels;
use super::simd::vectorized;
use burn::tensor::Tensor;
use rayon::prelude::*;

/// The optimizer's constants for one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWStep {
    /// Learning rate.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// Factor on the gradient: below 1 where the global norm was clipped.
    pub grad_scale: f32,
}

/// The optimizer's state for one flat parameter vector.
#[derive(Clone, Debug)]
pub struct AdamW {
    first: Tensor<1>,
    second: Tensor<1>,
    steps: i32,
}

impl AdamW {
    /// Zero moments for parameters like these.
    pub fn new(params: &Tensor<1>) -> Self {
        Self {
            first: params.zeros_like(),
            second: params.zeros_like(),
            steps: 0,
        }
    }

    /// Length of the parameter vector.
    pub fn params(&self) -> usize {
        self.first.dims()[0]
    }

    /// Moves `params` one step against `grads`; all vectors that nobody else holds are written over.
    ///
    /// `m ← β₁m + (1-β₁)g`, `v ← β₂v + (1-β₂)g²`,
    /// `θ ← (1 - ηλ)θ - η/(1-β₁ᵗ) · m / (√v/√(1-β₂ᵗ) + ε)`.
    pub fn step(&mut self, params: Tensor<1>, grads: Tensor<1>, step: &AdamWStep) -> Tensor<1> {
        self.steps += 1;
        let factors = Factors::new(step, self.steps);
        let placeholder = Tensor::zeros([0], &params.device());
        let first = std::mem::replace(&mut self.first, placeholder.clone());
        let second = std::mem::replace(&mut self.second, placeholder);
        let state = State {
            params,
            first,
            second,
        };
        let state = match is_cpu(&state.params.device()) {
            true => advance(state, grads, &factors),
            false => kernels::adamw(state, &grads, &factors)
                .unwrap_or_else(|state| composed::advance(state, grads, &factors)),
        };
        self.first = state.first;
        self.second = state.second;
        state.params
    }
}

/// What a step changes.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) params: Tensor<1>,
    pub(super) first: Tensor<1>,
    pub(super) second: Tensor<1>,
}

/// The numbers that a step is made of.
pub(super) struct Factors {
    grad_scale: f32,
    beta1: f32,
    beta2: f32,
    /// `1 - ηλ`.
    keep: f32,
    /// `η/(1-β₁ᵗ)`.
    size: f32,
    /// `√(1-β₂ᵗ)`.
    root: f32,
    eps: f32,
}

impl Factors {
    pub(super) fn new(step: &AdamWStep, steps: i32) -> Self {
        let correction1 = 1.0 - f64::from(step.beta1).powi(steps);
        let correction2 = 1.0 - f64::from(step.beta2).powi(steps);
        Self {
            grad_scale: step.grad_scale,
            beta1: step.beta1,
            beta2: step.beta2,
            keep: 1.0 - step.lr * step.weight_decay,
            size: (f64::from(step.lr) / correction1) as f32,
            root: correction2.sqrt() as f32,
            eps: step.eps,
        }
    }

    /// In the order of [`kernels`].
    pub(super) fn to_vec(&self) -> Vec<f32> {
        vec![
            self.grad_scale,
            self.beta1,
            self.beta2,
            self.keep,
            self.size,
            self.root,
            self.eps,
        ]
    }
}

pub(super) fn advance(state: State, grads: Tensor<1>, factors: &Factors) -> State {
    let len = state.params.dims()[0];
    let grads = Host::of(grads);
    let [mut params, mut first, mut second] =
        [state.params, state.first, state.second].map(|values| Host::of(values).into_values());
    params
        .par_chunks_mut(CHUNK)
        .zip(first.par_chunks_mut(CHUNK))
        .zip(second.par_chunks_mut(CHUNK))
        .zip(grads.values().par_chunks(CHUNK))
        .for_each(|(((params, first), second), grads)| {
            vectorized(
                #[inline(always)]
                || {
                    for (((p, m), v), g) in params.iter_mut().zip(first).zip(second).zip(grads) {
                        let g = g * factors.grad_scale;
                        *m = factors.beta1 * *m + (1.0 - factors.beta1) * g;
                        *v = factors.beta2 * *v + (1.0 - factors.beta2) * g * g;
                        *p = factors.keep * *p
                            - factors.size * *m / (v.sqrt() / factors.root + factors.eps);
                    }
                },
            );
        });
    let [params, first, second] = [params, first, second].map(|values| host_tensor(values, [len]));
    State {
        params,
        first,
        second,
    }
}

/// The same out of burn's operations; see [`super::norm`].
pub(super) mod composed {
    use super::{Factors, State};
    use burn::tensor::Tensor;

    pub(in crate::ops) fn advance(state: State, grads: Tensor<1>, factors: &Factors) -> State {
        let grads = grads.mul_scalar(factors.grad_scale);
        let first =
            state.first.mul_scalar(factors.beta1) + grads.clone().mul_scalar(1.0 - factors.beta1);
        let second = state.second.mul_scalar(factors.beta2)
            + (grads.clone() * grads).mul_scalar(1.0 - factors.beta2);
        let denominator = second
            .clone()
            .sqrt()
            .div_scalar(factors.root)
            .add_scalar(factors.eps);
        let params = state.params.mul_scalar(factors.keep)
            - (first.clone() / denominator).mul_scalar(factors.size);
        State {
            params,
            first,
            second,
        }
    }
}
