//! AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101, Algorithm 2) as
//! `torch.optim.AdamW` computes it, over the whole flattened adapter at once.

use super::flat::CHUNK;
use super::host::{Host, host_tensor, is_cpu};
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

    /// Moves `params` one step against `grads`.
    ///
    /// `m ← β₁m + (1-β₁)g`, `v ← β₂v + (1-β₂)g²`,
    /// `θ ← (1 - ηλ)θ - η/(1-β₁ᵗ) · m / (√v/√(1-β₂ᵗ) + ε)`.
    pub fn step(&mut self, params: Tensor<1>, grads: Tensor<1>, step: &AdamWStep) -> Tensor<1> {
        self.steps += 1;
        let correction1 = 1.0 - f64::from(step.beta1).powi(self.steps);
        let correction2 = 1.0 - f64::from(step.beta2).powi(self.steps);
        let size = (f64::from(step.lr) / correction1) as f32;
        let root = correction2.sqrt() as f32;
        let keep = 1.0 - step.lr * step.weight_decay;
        let placeholder = Tensor::zeros([0], &params.device());
        let first = std::mem::replace(&mut self.first, placeholder.clone());
        let second = std::mem::replace(&mut self.second, placeholder);
        if !is_cpu(&params.device()) {
            let grads = grads.mul_scalar(step.grad_scale);
            self.first = first.mul_scalar(step.beta1) + grads.clone().mul_scalar(1.0 - step.beta1);
            self.second = second.mul_scalar(step.beta2)
                + (grads.clone() * grads).mul_scalar(1.0 - step.beta2);
            let denominator = self
                .second
                .clone()
                .sqrt()
                .div_scalar(root)
                .add_scalar(step.eps);
            return params.mul_scalar(keep) - (self.first.clone() / denominator).mul_scalar(size);
        }
        let len = params.dims()[0];
        let grads = Host::of(grads);
        let mut params = Host::of(params).into_values();
        let (mut first, mut second) = (
            Host::of(first).into_values(),
            Host::of(second).into_values(),
        );
        params
            .par_chunks_mut(CHUNK)
            .zip(first.par_chunks_mut(CHUNK))
            .zip(second.par_chunks_mut(CHUNK))
            .zip(grads.values().par_chunks(CHUNK))
            .for_each(|(((params, first), second), grads)| {
                vectorized(
                    #[inline(always)]
                    || {
                        for (((p, m), v), g) in params.iter_mut().zip(first).zip(second).zip(grads)
                        {
                            let g = g * step.grad_scale;
                            *m = step.beta1 * *m + (1.0 - step.beta1) * g;
                            *v = step.beta2 * *v + (1.0 - step.beta2) * g * g;
                            *p = keep * *p - size * *m / (v.sqrt() / root + step.eps);
                        }
                    },
                );
            });
        self.first = host_tensor(first, [len]);
        self.second = host_tensor(second, [len]);
        host_tensor(params, [len])
    }
}
