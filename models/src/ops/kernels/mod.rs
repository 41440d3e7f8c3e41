//! CubeCL kernels of the operations that work row by row or value by value: one dispatch, one
//! pass over memory. The products between them are cubek's.
//!
//! Every kernel keeps to what WebGPU guarantees: cubes of at most 256 units, 65,535 cubes along a
//! dimension, few kilobytes of shared memory. Rows are reduced within subgroups where a device has
//! them and then, or at once, in shared memory, always in the same order, so a kernel repeats itself to
//! the last bit.
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
use cubecl::features::Plane;
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

    /// Those units, on the device of a buffer.
    fn team(&self, buffer: &CubeTensor) -> Team {
        Team::of(self.count, buffer)
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

/// The units of a cube, which reduce values together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Team {
    /// How many: a power of two.
    units: usize,
    /// Whether the device exchanges values within a subgroup.
    subgroups: bool,
}

impl Team {
    /// So many on the device of a buffer.
    fn of(units: usize, buffer: &CubeTensor) -> Self {
        let planes = &buffer.client.properties().features.plane;
        Self {
            units,
            subgroups: planes.contains(Plane::Ops),
        }
    }
}

/// The sum of every unit's value, for all of them.
#[cube]
fn cube_sum(value: f32, #[comptime] team: Team) -> f32 {
    cube_joined(value, team, comptime!(Join::Sum))
}

/// The largest of every unit's value, for all of them.
#[cube]
fn cube_max(value: f32, #[comptime] team: Team) -> f32 {
    cube_joined(value, team, comptime!(Join::Max))
}

/// How two values become one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Join {
    Sum,
    Max,
}

#[cube]
fn cube_joined(value: f32, #[comptime] team: Team, #[comptime] join: Join) -> f32 {
    let mut values = Shared::<[f32]>::new_slice(team.units);
    if comptime!(team.subgroups) {
        let of_plane = match comptime!(join) {
            Join::Sum => plane_sum(value),
            Join::Max => plane_max(value),
        };
        if UNIT_POS_PLANE == 0 {
            values[PLANE_POS as usize] = of_plane;
        }
        sync_cube();
        // Every unit by itself, as there are few: for a tree they would wait for each other again.
        let planes = (comptime!(team.units as u32 - 1) / PLANE_DIM + 1) as usize;
        let mut joined = values[0];
        for plane in 1..planes {
            joined = join_two(joined, values[plane], join);
        }
        joined
    } else {
        let unit = UNIT_POS as usize;
        values[unit] = value;
        sync_cube();
        #[unroll]
        for level in 1..comptime!(team.units.ilog2() + 1) {
            let half = comptime!(team.units >> level);
            if unit < half {
                values[unit] = join_two(values[unit], values[unit + half], join);
            }
            sync_cube();
        }
        values[0]
    }
}

#[cube]
fn join_two(one: f32, other: f32, #[comptime] join: Join) -> f32 {
    match comptime!(join) {
        Join::Sum => one + other,
        Join::Max => max(one, other),
    }
}

#[cfg(test)]
mod tests {
    use super::super::cube::{empty, tensor};
    use super::super::host::tensor_on;
    use super::*;
    use crate::arch::uniform;
    use crate::device::gpu_for_tests;

    #[cube(launch)]
    fn reduce_kernel(values: &[f32], out: &mut [f32], #[comptime] team: Team) {
        let value = values[UNIT_POS as usize];
        let (sum, largest) = (cube_sum(value, team), cube_max(value, team));
        out[2 * UNIT_POS as usize] = sum;
        out[2 * UNIT_POS as usize + 1] = largest;
    }

    /// cubecl does not say that software adapters have subgroups, so kernels do not ask there.
    #[test]
    fn gpu_subgroups_reduce_to_what_shared_memory_does() {
        let Some((info, gpu)) = gpu_for_tests() else {
            return;
        };
        for count in [32, 128, 256] {
            let values = uniform("values", count, 1.0);
            let x = cube(&tensor_on(values.clone(), [count], &gpu)).unwrap();
            for subgroups in [false, info.features.subgroups] {
                let team = Team {
                    units: count,
                    subgroups,
                };
                let out = empty(&x, [2 * count]);
                let buffer = |buffer: &CubeTensor| buffer.clone().into_buffer_arg();
                reduce_kernel::launch(
                    &x.client,
                    CubeCount::Static(1, 1, 1),
                    units(count),
                    buffer(&x),
                    buffer(&out),
                    team,
                );
                let got: Vec<f32> = tensor::<1>(out).try_into_vec_as().unwrap();
                let sum: f32 = values.iter().sum();
                let largest = values.iter().copied().fold(f32::MIN, f32::max);
                for (unit, got) in got.chunks_exact(2).enumerate() {
                    let what = format!("{count} {subgroups} {unit}");
                    assert!((got[0] - sum).abs() < 1e-4, "{what}: {} not {sum}", got[0]);
                    assert_eq!(got[1], largest, "{what}");
                }
            }
        }
    }
}
