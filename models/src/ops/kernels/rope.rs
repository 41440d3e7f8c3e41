//! Rotary position embedding, in place: one unit for each group of pairs.

use burn::tensor::Tensor;
use cubecl::prelude::*;

use super::super::cube::{cube, tensor};
use super::super::rope::{Rotation, Turn};
use super::{UNITS, column_cubes, lanes, units, writable};

/// Rotates the first `heads` heads of each row.
pub(in crate::ops) fn rotate(
    x: Tensor<2>,
    rotation: &Rotation,
    heads: usize,
    turn: Turn,
) -> Result<Tensor<2>, Tensor<2>> {
    let [tokens, width] = x.dims();
    let (Some(cos), Some(sin)) = (cube(rotation.cos()), cube(rotation.sin())) else {
        return Err(x);
    };
    let x = writable(x)?;
    let half = rotation.cos().dims()[1];
    let lanes = lanes(half);
    let pairs = heads * half / lanes;
    rotate_kernel::launch(
        &x.client.clone(),
        column_cubes(pairs, tokens),
        units(UNITS),
        lanes,
        x.clone().into_buffer_arg(),
        cos.into_buffer_arg(),
        sin.into_buffer_arg(),
        match turn {
            Turn::Forward => 1.0,
            Turn::Backward => -1.0,
        },
        tokens,
        width / lanes,
        pairs,
        half / lanes,
    );
    Ok(tensor(x))
}

#[cube(launch)]
fn rotate_kernel<N: Size>(
    x: &mut [Vector<f32, N>],
    cos: &[Vector<f32, N>],
    sin: &[Vector<f32, N>],
    sign: f32,
    tokens: usize,
    width: usize,
    pairs: usize,
    #[comptime] half: usize,
) {
    let place = ABSOLUTE_POS_X as usize;
    if place >= pairs {
        terminate!();
    }
    let i = place % half;
    let first = (place / half) * (2 * half) + i;
    let mut token = CUBE_POS_Y as usize;
    while token < tokens {
        let (low, angle) = (token * width + first, token * half + i);
        let (a, b) = (x[low], x[low + half]);
        let (c, s) = (cos[angle], sin[angle] * Vector::new(sign));
        x[low] = a * c - b * s;
        x[low + half] = b * c + a * s;
        token += CUBE_COUNT_Y as usize;
    }
}
