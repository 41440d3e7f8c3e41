//! Gated linear units (Shazeer 2020, arXiv 2002.05202): SwiGLU and GeGLU.

use super::host::{Host, host_tensor, is_cpu};
use super::kernels;
use super::simd::{sigmoid, tanh, vectorized};
use crate::config::Activation;
use burn::tensor::Tensor;
use rayon::prelude::*;

pub(super) const SQRT_2_OVER_PI: f32 = 0.797_884_6;
pub(super) const GELU_CUBIC: f32 = 0.044_715;

/// Value and derivative of an activation at `x`. A function of its own for each, chosen outside
/// the loops: a choice inside them makes the compiler compute all and select.
trait At {
    fn at(x: f32) -> (f32, f32);
}

struct Silu;
struct GeluTanh;

impl At for Silu {
    #[inline(always)]
    fn at(x: f32) -> (f32, f32) {
        let s = sigmoid(x);
        (x * s, s * (1.0 + x * (1.0 - s)))
    }
}

impl At for GeluTanh {
    #[inline(always)]
    fn at(x: f32) -> (f32, f32) {
        let t = tanh(SQRT_2_OVER_PI * (x + GELU_CUBIC * x * x * x));
        let slope = SQRT_2_OVER_PI * (1.0 + 3.0 * GELU_CUBIC * x * x);
        (
            0.5 * x * (1.0 + t),
            0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope,
        )
    }
}

/// `activation(gate) · up` of `gate_up` `[rows, 2·ffn]`, whose left half is the gate;
/// the result is `[rows, ffn]`.
pub fn glu(gate_up: &Tensor<2>, activation: Activation) -> Tensor<2> {
    if !is_cpu(&gate_up.device()) {
        return kernels::glu(gate_up, activation)
            .unwrap_or_else(|| composed::glu(gate_up, activation));
    }
    match activation {
        Activation::Silu => forward::<Silu>(gate_up),
        Activation::GeluTanh => forward::<GeluTanh>(gate_up),
    }
}

fn forward<A: At>(gate_up: &Tensor<2>) -> Tensor<2> {
    let [rows, width] = gate_up.dims();
    let ffn = width / 2;
    let input = Host::of(gate_up.clone());
    let mut out = vec![0.0; rows * ffn];
    out.par_chunks_mut(ffn)
        .zip(input.values().par_chunks(width))
        .for_each(|(out, row)| {
            vectorized(
                #[inline(always)]
                || {
                    let (gate, up) = row.split_at(ffn);
                    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
                        *out = A::at(*gate).0 * up;
                    }
                },
            );
        });
    host_tensor(out, [rows, ffn])
}

/// The gradient of [`glu`] with respect to `gate_up`, given that of its result; takes the place of
/// `gate_up` if nobody else holds it.
pub fn glu_backward(dy: &Tensor<2>, gate_up: Tensor<2>, activation: Activation) -> Tensor<2> {
    if !is_cpu(&gate_up.device()) {
        return kernels::glu_backward(dy, gate_up, activation)
            .unwrap_or_else(|gate_up| composed::glu_backward(dy, gate_up, activation));
    }
    match activation {
        Activation::Silu => backward::<Silu>(dy, gate_up),
        Activation::GeluTanh => backward::<GeluTanh>(dy, gate_up),
    }
}

fn backward<A: At>(dy: &Tensor<2>, gate_up: Tensor<2>) -> Tensor<2> {
    let [rows, width] = gate_up.dims();
    let ffn = width / 2;
    let dy = Host::of(dy.clone());
    let mut values = Host::of(gate_up).into_values();
    values
        .par_chunks_mut(width)
        .zip(dy.values().par_chunks(ffn))
        .for_each(|(row, dy)| {
            vectorized(
                #[inline(always)]
                || {
                    let (gate, up) = row.split_at_mut(ffn);
                    for ((gate, up), dy) in gate.iter_mut().zip(up).zip(dy) {
                        let (value, slope) = A::at(*gate);
                        *gate = dy * *up * slope;
                        *up = dy * value;
                    }
                },
            );
        });
    host_tensor(values, [rows, width])
}

/// The same out of burn's operations; see [`super::norm`].
pub(super) mod composed {
    use super::{Activation, GELU_CUBIC, SQRT_2_OVER_PI};
    use burn::tensor::{Tensor, activation::sigmoid};

    pub(in crate::ops) fn glu(gate_up: &Tensor<2>, activation: Activation) -> Tensor<2> {
        let (gate, up) = halves(gate_up);
        at(gate, activation).0 * up
    }

    pub(in crate::ops) fn glu_backward(
        dy: &Tensor<2>,
        gate_up: Tensor<2>,
        activation: Activation,
    ) -> Tensor<2> {
        let (gate, up) = halves(&gate_up);
        let (value, slope) = at(gate, activation);
        Tensor::cat(vec![dy.clone() * up * slope, dy.clone() * value], 1)
    }

    fn halves(gate_up: &Tensor<2>) -> (Tensor<2>, Tensor<2>) {
        let [rows, width] = gate_up.dims();
        let ffn = width / 2;
        (
            gate_up.clone().slice([0..rows, 0..ffn]),
            gate_up.clone().slice([0..rows, ffn..width]),
        )
    }

    fn at(x: Tensor<2>, activation: Activation) -> (Tensor<2>, Tensor<2>) {
        match activation {
            Activation::Silu => {
                let s = sigmoid(x.clone());
                let slope =
                    s.clone() * (x.clone() * (s.clone().neg().add_scalar(1.0))).add_scalar(1.0);
                (x * s, slope)
            }
            Activation::GeluTanh => {
                let square = x.clone() * x.clone();
                let inner = (x.clone() * square.clone()).mul_scalar(GELU_CUBIC) + x.clone();
                let t = inner.mul_scalar(SQRT_2_OVER_PI).tanh();
                let inner_slope = square
                    .mul_scalar(3.0 * GELU_CUBIC)
                    .add_scalar(1.0)
                    .mul_scalar(SQRT_2_OVER_PI);
                let half = t.clone().add_scalar(1.0).mul_scalar(0.5);
                let tail = x.clone() * ((t.clone() * t).neg().add_scalar(1.0)) * inner_slope;
                (x * half.clone(), half + tail.mul_scalar(0.5))
            }
        }
    }
}
