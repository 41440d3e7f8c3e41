//! RMSNorm: one cube for each row.

use burn::tensor::Tensor;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::super::cube::{cube, empty, tensor};
use super::super::norm::Normed;
use super::{Team, Walk, cube_sum, writable};

/// `y` and `inv` in one pass.
pub(in crate::ops) fn rms_norm(x: &Tensor<2>, weight: &Tensor<1>, eps: f32) -> Option<Normed> {
    let [rows, features] = x.dims();
    let (x, weight) = (cube(x)?, cube(weight)?);
    let (y, inv) = (empty(&x, [rows, features]), empty(&x, [rows, 1]));
    let walk = Walk::along([rows, features]);
    let team = walk.team(&x);
    norm_kernel::launch(
        &x.client.clone(),
        walk.cubes(),
        walk.units(),
        walk.lanes,
        x.into_buffer_arg(),
        weight.into_buffer_arg(),
        y.clone().into_buffer_arg(),
        inv.clone().into_buffer_arg(),
        walk.rows,
        walk.width,
        eps,
        team,
    );
    Some(Normed {
        y: tensor(y),
        inv: tensor(inv),
    })
}

/// `y` from the `inv` that there is.
pub(in crate::ops) fn rms_norm_again(
    x: &Tensor<2>,
    weight: &Tensor<1>,
    inv: &Tensor<2>,
) -> Option<Tensor<2>> {
    let [rows, features] = x.dims();
    let (x, weight, inv) = (cube(x)?, cube(weight)?, cube(inv)?);
    let y = empty(&x, [rows, features]);
    let walk = Walk::along([rows, features]);
    again_kernel::launch(
        &x.client.clone(),
        walk.cubes(),
        walk.units(),
        walk.lanes,
        x.into_buffer_arg(),
        weight.into_buffer_arg(),
        inv.into_buffer_arg(),
        y.clone().into_buffer_arg(),
        walk.rows,
        walk.width,
        walk.count,
    );
    Some(tensor(y))
}

/// The gradient with respect to `x`.
pub(in crate::ops) fn rms_norm_backward(
    dy: &Tensor<2>,
    x: &Tensor<2>,
    weight: &Tensor<1>,
    inv: &Tensor<2>,
) -> Option<Tensor<2>> {
    let gradient = Gradient::of(dy, x, weight, inv)?;
    let dx = empty(&gradient.x, x.dims());
    Some(gradient.launch(dx, false))
}

/// `onto` and that gradient, written over `onto`.
pub(in crate::ops) fn rms_norm_backward_onto(
    onto: Tensor<2>,
    dy: &Tensor<2>,
    x: &Tensor<2>,
    weight: &Tensor<1>,
    inv: &Tensor<2>,
) -> Result<Tensor<2>, Tensor<2>> {
    match Gradient::of(dy, x, weight, inv) {
        Some(gradient) => Ok(gradient.launch(writable(onto)?, true)),
        None => Err(onto),
    }
}

/// What the gradient is made of.
struct Gradient {
    dy: CubeTensor,
    x: CubeTensor,
    weight: CubeTensor,
    inv: CubeTensor,
    dims: [usize; 2],
}

impl Gradient {
    fn of(dy: &Tensor<2>, x: &Tensor<2>, weight: &Tensor<1>, inv: &Tensor<2>) -> Option<Self> {
        Some(Self {
            dims: x.dims(),
            dy: cube(dy)?,
            x: cube(x)?,
            weight: cube(weight)?,
            inv: cube(inv)?,
        })
    }

    fn launch(self, dx: CubeTensor, add: bool) -> Tensor<2> {
        let walk = Walk::along(self.dims);
        let team = walk.team(&dx);
        backward_kernel::launch(
            &dx.client.clone(),
            walk.cubes(),
            walk.units(),
            walk.lanes,
            self.dy.into_buffer_arg(),
            self.x.into_buffer_arg(),
            self.weight.into_buffer_arg(),
            self.inv.into_buffer_arg(),
            dx.clone().into_buffer_arg(),
            walk.rows,
            walk.width,
            team,
            add,
        );
        tensor(dx)
    }
}

#[cube(launch)]
fn norm_kernel<N: Size>(
    x: &[Vector<f32, N>],
    weight: &[Vector<f32, N>],
    y: &mut [Vector<f32, N>],
    inv: &mut [f32],
    rows: usize,
    width: usize,
    eps: f32,
    #[comptime] team: Team,
) {
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let start = row * width;
    let mut squares = Vector::<f32, N>::new(0.0);
    let mut i = UNIT_POS as usize;
    while i < width {
        let value = x[start + i];
        squares += value * value;
        i += team.units;
    }
    let sum = cube_sum(squares.vector_sum(), team);
    let mean = sum / f32::cast_from(width * N::value());
    let scale = 1.0f32 / (mean + eps).sqrt();
    if UNIT_POS == 0 {
        inv[row] = scale;
    }
    scale_row(x, weight, y, start, scale, width, team.units);
}

#[cube(launch)]
fn again_kernel<N: Size>(
    x: &[Vector<f32, N>],
    weight: &[Vector<f32, N>],
    inv: &[f32],
    y: &mut [Vector<f32, N>],
    rows: usize,
    width: usize,
    #[comptime] count: usize,
) {
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    scale_row(x, weight, y, row * width, inv[row], width, count);
}

/// Writes the values of the row at `start`, times `scale` and the weights.
#[cube]
fn scale_row<N: Size>(
    x: &[Vector<f32, N>],
    weight: &[Vector<f32, N>],
    y: &mut [Vector<f32, N>],
    start: usize,
    scale: f32,
    width: usize,
    #[comptime] count: usize,
) {
    let scale = Vector::<f32, N>::new(scale);
    let mut i = UNIT_POS as usize;
    while i < width {
        y[start + i] = x[start + i] * scale * weight[i];
        i += count;
    }
}

#[cube(launch)]
fn backward_kernel<N: Size>(
    dy: &[Vector<f32, N>],
    x: &[Vector<f32, N>],
    weight: &[Vector<f32, N>],
    inv: &[f32],
    dx: &mut [Vector<f32, N>],
    rows: usize,
    width: usize,
    #[comptime] team: Team,
    #[comptime] add: bool,
) {
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let start = row * width;
    let mut dots = Vector::<f32, N>::new(0.0);
    let mut i = UNIT_POS as usize;
    while i < width {
        dots += dy[start + i] * weight[i] * x[start + i];
        i += team.units;
    }
    let dot = cube_sum(dots.vector_sum(), team);
    let scale = inv[row];
    let pull = dot * scale * scale * scale / f32::cast_from(width * N::value());
    let (scale, pull) = (Vector::<f32, N>::new(scale), Vector::<f32, N>::new(pull));
    let mut i = UNIT_POS as usize;
    while i < width {
        let gradient = dy[start + i] * weight[i] * scale - x[start + i] * pull;
        if comptime!(add) {
            dx[start + i] += gradient;
        } else {
            dx[start + i] = gradient;
        }
        i += team.units;
    }
}
