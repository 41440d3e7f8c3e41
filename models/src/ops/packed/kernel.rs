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
        words.into_buffer_arg(),
        scales.into_buffer_arg(),
        extra.into_buffer_arg(),
        dense.clone().into_tensor_arg(),
        range.start as u32,
        layout,
    );
    dense
}

#[cube(launch)]
fn unpack_kernel(
    words: &[u32],
    scales: &[f32],
    extra: &[f32],
    dense: &mut Tensor<f32>,
    first_row: u32,
    #[comptime] layout: Layout,
) {
    let col = ABSOLUTE_POS_X as usize;
    let row = ABSOLUTE_POS_Y as usize;
    let cols = dense.shape(1);
    if col >= cols || row >= dense.shape(0) {
        terminate!();
    }
    let place = (first_row as usize + row) * cols + col;
    let per_word = comptime!(layout.code.per_word());
    let block = place / layout.block;
    let code =
        words[place / per_word] >> ((place % per_word) as u32 * comptime!(layout.code.bits()));
    dense[row * cols + col] = value(code, scales[block], extra, block, layout);
}

/// What a code in the lowest bits stands for.
#[cube]
pub(super) fn value(
    code: u32,
    scale: f32,
    extra: &[f32],
    block: usize,
    #[comptime] layout: Layout,
) -> f32 {
    if comptime!(layout.code == Code::Byte) {
        // A signed byte with its sign bit flipped counts from -128.
        (f32::cast_from((code & 255u32) ^ 128u32) - 128.0f32) * scale
    } else if comptime!(layout.code == Code::Centred) {
        (f32::cast_from(code & 15u32) - 8.0f32) * scale
    } else if comptime!(layout.code == Code::Affine) {
        f32::cast_from(code & 15u32) * scale + extra[block]
    } else {
        extra[(code & 15u32) as usize] * scale
    }
}
