//! The unpacking kernel. One thread makes one value, so that neighbours write side by side.

use std::ops::Range;

use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::super::cube::empty;
use super::{Code, Layout};

/// Threads of a cube, along the columns and along the rows.
const CUBE: (u32, u32) = (64, 4);

/// Unpacks rows `range` to `[range.len(), cols]`.
pub(super) fn unpack(
    words: CubeTensor,
    scales: CubeTensor,
    extra: CubeTensor,
    layout: Layout,
    range: Range<usize>,
    cols: usize,
) -> CubeTensor {
    let client = words.client.clone();
    let dense = empty(&words, [range.len(), cols]);
    let cubes = CubeCount::Static(
        (cols as u32).div_ceil(CUBE.0),
        (range.len() as u32).div_ceil(CUBE.1),
        1,
    );
    unpack_kernel::launch(
        &client,
        cubes,
        CubeDim::new_2d(CUBE.0, CUBE.1),
        words.into_tensor_arg(),
        scales.into_tensor_arg(),
        extra.into_tensor_arg(),
        dense.clone().into_tensor_arg(),
        range.start as u32,
        layout.block as u32,
        layout.code.bits(),
        match layout.code {
            Code::Byte => BYTE,
            Code::Centred => CENTRED,
            Code::Affine => AFFINE,
            Code::Table => TABLE,
        },
    );
    dense
}

const BYTE: u32 = 0;
const CENTRED: u32 = 1;
const AFFINE: u32 = 2;
const TABLE: u32 = 3;

#[cube(launch)]
fn unpack_kernel(
    words: &Tensor<u32>,
    scales: &Tensor<f32>,
    extra: &Tensor<f32>,
    dense: &mut Tensor<f32>,
    first_row: u32,
    #[comptime] block: u32,
    #[comptime] bits: u32,
    #[comptime] code: u32,
) {
    let col = ABSOLUTE_POS_X as usize;
    let row = ABSOLUTE_POS_Y as usize;
    let cols = dense.shape(1);
    if col >= cols || row >= dense.shape(0) {
        terminate!();
    }
    let place = (first_row as usize + row) * cols + col;
    let per_word = comptime!((32 / bits) as usize);
    let shift = (place % per_word) as u32 * bits;
    let word = words[place / per_word] >> shift;
    let scale = scales[place / comptime!(block as usize)];
    let value = if comptime!(code == BYTE) {
        // A signed byte with its sign bit flipped counts from -128.
        (f32::cast_from((word & 255u32) ^ 128u32) - 128.0f32) * scale
    } else if comptime!(code == CENTRED) {
        (f32::cast_from(word & 15u32) - 8.0f32) * scale
    } else if comptime!(code == AFFINE) {
        f32::cast_from(word & 15u32) * scale + extra[place / comptime!(block as usize)]
    } else {
        extra[(word & 15u32) as usize] * scale
    };
    dense[row * cols + col] = value;
}
