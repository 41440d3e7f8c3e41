//! CubeCL kernels of the operations that work row by row or value by value: one dispatch, one
//! pass over memory. The products between them are burn's.
//!
//! Every kernel keeps to what WebGPU guarantees: cubes of at most 256 units, 65,535 cubes along a
//! dimension, few kilobytes of shared memory, and no subgroups. Rows are reduced by a tree in
//! shared memory, always in the same order, so a kernel repeats itself to the last bit.
//!
//! On a device that runs no kernels a function returns nothing, and one that would write over its
//! argument gives that back.

#![expect(
    clippy::result_large_err,
    reason = "the tensor given back is no larger than the one returned"
)]

mod dropout;
mod flat;
mod glu;
mod loss;
mod low_rank;
mod norm;
mod rope;
#[cfg(test)]
mod twins;

use burn::tensor::Tensor;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::cube::cube;

pub(super) use dropout::dropout;
pub(super) use flat::{adamw, combine, concatenate, pull, sum, sum_of_squares};
pub(super) use glu::{glu, glu_backward};
pub(super) use loss::{log_probs, losses};
pub(super) use low_rank::{add_up, join};
pub(super) use norm::{rms_norm, rms_norm_again, rms_norm_backward, rms_norm_backward_onto};
pub(super) use rope::rotate;

/// Most units of a cube.
const UNITS: usize = 256;
/// Most cubes along one dimension.
const CUBES: usize = 65_535;

/// Values that a unit reads at once: the most that divide a row, so that none is left over.
fn lanes(width: usize) -> usize {
    if width.is_multiple_of(4) { 4 } else { 1 }
}

/// A cube for each row, and sometimes a few more: kernels ask which row they have.
fn row_cubes(rows: usize) -> CubeCount {
    let wide = rows.clamp(1, CUBES);
    CubeCount::Static(wide as u32, rows.div_ceil(wide) as u32, 1)
}

/// Cubes for rows of so many vectors, a vector a unit: each walks down its columns, from a row of its
/// own on, if there are more rows than cubes.
fn column_cubes(width: usize, rows: usize) -> CubeCount {
    let (wide, high) = (width.div_ceil(UNITS), rows.clamp(1, CUBES));
    CubeCount::Static(wide as u32, high as u32, 1)
}

/// How a cube for each row walks along it.
struct Walk {
    rows: usize,
    /// Values that a unit reads at once.
    lanes: usize,
    /// Vectors of so many values in a row.
    width: usize,
    /// Units side by side: a power of two.
    count: usize,
}

impl Walk {
    fn along([rows, values]: [usize; 2]) -> Self {
        let lanes = lanes(values);
        let width = values / lanes;
        Self {
            rows,
            lanes,
            width,
            count: width.next_power_of_two().clamp(32, UNITS),
        }
    }

    fn cubes(&self) -> CubeCount {
        row_cubes(self.rows)
    }

    fn units(&self) -> CubeDim {
        units(self.count)
    }
}

/// Units of a cube, side by side.
fn units(count: usize) -> CubeDim {
    CubeDim::new_1d(count as u32)
}

/// The buffer of a tensor that is to be written over, or the tensor back.
fn writable<const D: usize>(tensor: Tensor<D>) -> Result<CubeTensor, Tensor<D>> {
    match cube(&tensor) {
        Some(buffer) => {
            drop(tensor);
            Ok(sole(buffer))
        }
        None => Err(tensor),
    }
}

/// The buffer itself if nobody else holds it, a copy otherwise.
fn sole(buffer: CubeTensor) -> CubeTensor {
    match buffer.can_mut() {
        true => buffer,
        false => buffer.copy(),
    }
}

/// The hyperbolic tangent: exactly one from 10 on, where exponentials in a driver's own overflow
/// sooner or later.
#[cube]
fn tanh<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let (one, ten) = (Vector::<f32, N>::new(1.0), Vector::<f32, N>::new(10.0));
    // Not a clamp, which may hide a NaN.
    select(x > ten, one, select(x < -ten, -one, x.tanh()))
}

/// The sum of every unit's value, for all of them.
#[cube]
fn cube_sum(value: f32, #[comptime] units: usize) -> f32 {
    cube_joined(value, units, comptime!(Join::Sum))
}

/// The largest of every unit's value, for all of them.
#[cube]
fn cube_max(value: f32, #[comptime] units: usize) -> f32 {
    cube_joined(value, units, comptime!(Join::Max))
}

/// How two values become one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Join {
    Sum,
    Max,
}

#[cube]
fn cube_joined(value: f32, #[comptime] units: usize, #[comptime] join: Join) -> f32 {
    let mut values = Shared::<[f32]>::new_slice(units);
    let unit = UNIT_POS as usize;
    values[unit] = value;
    sync_cube();
    #[unroll]
    for level in 1..comptime!(units.ilog2() + 1) {
        let half = comptime!(units >> level);
        if unit < half {
            let (one, other) = (values[unit], values[unit + half]);
            values[unit] = match comptime!(join) {
                Join::Sum => one + other,
                Join::Max => max(one, other),
            };
        }
        sync_cube();
    }
    values[0]
}
