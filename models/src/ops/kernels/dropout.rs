//! Dropout: the counter-based numbers of the CPU, of which a 32-bit device makes 64 bits out of
//! two words.

use burn::tensor::Tensor;
use cubecl::prelude::*;

use super::super::cube::{cube, empty, tensor};
use super::super::dropout::{Dropout, FIRST_MULTIPLIER, INCREMENT, SECOND_MULTIPLIER};
use super::{UNITS, lanes, row_cubes, units};

/// `x` under the mask.
pub(in crate::ops) fn dropout(x: &Tensor<2>, mask: &Dropout) -> Option<Tensor<2>> {
    let [rows, features] = x.dims();
    let x = cube(x)?;
    let out = empty(&x, [rows, features]);
    let lanes = lanes(features);
    let vectors = rows * features / lanes;
    // Positions count from 1.
    let first = (mask.first_row * features) as u64 + 1;
    dropout_kernel::launch(
        &x.client.clone(),
        row_cubes(vectors.div_ceil(UNITS)),
        units(UNITS),
        lanes,
        x.into_buffer_arg(),
        out.clone().into_buffer_arg(),
        vectors,
        first as u32,
        (first >> 32) as u32,
        mask.seed as u32,
        (mask.seed >> 32) as u32,
        mask.rate,
        mask.grown(),
    );
    Some(tensor(out))
}

#[cube(launch)]
fn dropout_kernel<N: Size>(
    x: &[Vector<f32, N>],
    out: &mut [Vector<f32, N>],
    vectors: usize,
    first_low: u32,
    first_high: u32,
    seed_low: u32,
    seed_high: u32,
    rate: f32,
    grown: f32,
) {
    let place = ABSOLUTE_POS;
    if place >= vectors {
        terminate!();
    }
    let mut value = x[place];
    #[unroll]
    for lane in 0..N::value() {
        let offset = (place * N::value() + lane) as u32;
        let position = add(first_low, first_high, offset, 0u32);
        let z = multiply(position, INCREMENT);
        let z = add(z.low, z.high, seed_low, seed_high);
        let z = multiply(fold(z, 30u32), FIRST_MULTIPLIER);
        let z = multiply(fold(z, 27u32), SECOND_MULTIPLIER);
        let z = fold(z, 31u32);
        let uniform = f32::cast_from(z.high >> 8) / 16_777_216.0f32;
        let factor = select(uniform < rate, 0.0f32, grown);
        value.insert(lane, value.extract(lane) * factor);
    }
    out[place] = value;
}

/// A 64-bit number.
#[derive(CubeType, Clone, Copy)]
struct Wide {
    low: u32,
    high: u32,
}

#[cube]
fn add(a_low: u32, a_high: u32, b_low: u32, b_high: u32) -> Wide {
    let low = a_low + b_low;
    let carry = select(low < a_low, 1u32, 0u32);
    Wide {
        low,
        high: a_high + b_high + carry,
    }
}

#[cube]
fn multiply(a: Wide, #[comptime] b: u64) -> Wide {
    let (low, high) = (comptime!(b as u32), comptime!((b >> 32) as u32));
    Wide {
        low: a.low * low,
        high: a.low.mul_hi(low) + a.low * high + a.high * low,
    }
}

/// `z ^ (z >> shift)`, by less than a word.
#[cube]
fn fold(z: Wide, #[comptime] shift: u32) -> Wide {
    Wide {
        low: z.low ^ ((z.low >> shift) | (z.high << comptime!(32 - shift))),
        high: z.high ^ (z.high >> shift),
    }
}
