//! Gated linear units: one unit for each group of gates.

use burn::tensor::Tensor;
use cubecl::prelude::*;

use super::super::cube::{cube, empty, tensor};
use super::super::glu::{GELU_CUBIC, SQRT_2_OVER_PI};
use super::{UNITS, column_cubes, lanes, tanh, units, writable};
use crate::config::Activation;

/// `activation(gate) · up`.
pub(in crate::ops) fn glu(gate_up: &Tensor<2>, activation: Activation) -> Option<Tensor<2>> {
    let [rows, width] = gate_up.dims();
    let gates = Gates::of([rows, width]);
    let gate_up = cube(gate_up)?;
    let out = empty(&gate_up, [rows, width / 2]);
    glu_kernel::launch(
        &gate_up.client.clone(),
        gates.cubes(),
        units(UNITS),
        gates.lanes,
        gate_up.into_buffer_arg(),
        out.clone().into_buffer_arg(),
        gates.rows,
        gates.ffn,
        activation == Activation::GeluTanh,
    );
    Some(tensor(out))
}

/// The gradient with respect to gate and up, written over them.
pub(in crate::ops) fn glu_backward(
    dy: &Tensor<2>,
    gate_up: Tensor<2>,
    activation: Activation,
) -> Result<Tensor<2>, Tensor<2>> {
    let gates = Gates::of(gate_up.dims());
    let Some(dy) = cube(dy) else {
        return Err(gate_up);
    };
    let gate_up = writable(gate_up)?;
    backward_kernel::launch(
        &gate_up.client.clone(),
        gates.cubes(),
        units(UNITS),
        gates.lanes,
        dy.into_buffer_arg(),
        gate_up.clone().into_buffer_arg(),
        gates.rows,
        gates.ffn,
        activation == Activation::GeluTanh,
    );
    Ok(tensor(gate_up))
}

/// How the gates of rows of gate and up are dealt out to units.
struct Gates {
    rows: usize,
    /// Gates of a unit.
    lanes: usize,
    /// Vectors of so many gates in a row.
    ffn: usize,
}

impl Gates {
    fn of([rows, width]: [usize; 2]) -> Self {
        let lanes = lanes(width / 2);
        Self {
            rows,
            lanes,
            ffn: width / 2 / lanes,
        }
    }

    fn cubes(&self) -> CubeCount {
        column_cubes(self.ffn, self.rows)
    }
}

#[cube(launch)]
fn glu_kernel<N: Size>(
    gate_up: &[Vector<f32, N>],
    out: &mut [Vector<f32, N>],
    rows: usize,
    ffn: usize,
    #[comptime] gelu: bool,
) {
    let i = ABSOLUTE_POS_X as usize;
    if i >= ffn {
        terminate!();
    }
    let mut row = CUBE_POS_Y as usize;
    while row < rows {
        let gate = row * 2 * ffn + i;
        out[row * ffn + i] = value(gate_up[gate], gelu) * gate_up[gate + ffn];
        row += CUBE_COUNT_Y as usize;
    }
}

#[cube(launch)]
fn backward_kernel<N: Size>(
    dy: &[Vector<f32, N>],
    gate_up: &mut [Vector<f32, N>],
    rows: usize,
    ffn: usize,
    #[comptime] gelu: bool,
) {
    let i = ABSOLUTE_POS_X as usize;
    if i >= ffn {
        terminate!();
    }
    let mut row = CUBE_POS_Y as usize;
    while row < rows {
        let gate = row * 2 * ffn + i;
        let (x, up, dy) = (gate_up[gate], gate_up[gate + ffn], dy[row * ffn + i]);
        gate_up[gate] = dy * up * slope(x, gelu);
        gate_up[gate + ffn] = dy * value(x, gelu);
        row += CUBE_COUNT_Y as usize;
    }
}

/// The activation at `x`.
#[cube]
fn value<N: Size>(x: Vector<f32, N>, #[comptime] gelu: bool) -> Vector<f32, N> {
    let one = Vector::<f32, N>::new(1.0);
    if comptime!(gelu) {
        Vector::new(0.5) * x * (one + gelu_tanh(x))
    } else {
        x * sigmoid(x)
    }
}

/// The activation's derivative at `x`.
#[cube]
fn slope<N: Size>(x: Vector<f32, N>, #[comptime] gelu: bool) -> Vector<f32, N> {
    let one = Vector::<f32, N>::new(1.0);
    if comptime!(gelu) {
        let t = gelu_tanh(x);
        let inner = one + Vector::new(comptime!(3.0 * GELU_CUBIC)) * x * x;
        let tail = x * (one - t * t) * Vector::new(SQRT_2_OVER_PI) * inner;
        Vector::new(0.5) * (one + t + tail)
    } else {
        let s = sigmoid(x);
        s * (one + x * (one - s))
    }
}

#[cube]
fn sigmoid<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let one = Vector::<f32, N>::new(1.0);
    one / (one + (-x).exp())
}

#[cube]
fn gelu_tanh<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    tanh(Vector::new(SQRT_2_OVER_PI) * (x + Vector::new(GELU_CUBIC) * x * x * x))
}
