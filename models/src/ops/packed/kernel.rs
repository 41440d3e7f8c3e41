//! The unpacking kernel. One thread makes a few values from one word, and writes them together, so
//! that neighbours write side by side.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use half::f16;

use super::{Code, Layout};

/// Threads of a cube, along the columns and along the rows.
const CUBE: (u32, u32) = (64, 4);

/// Unpacks rows from `first_row` on to `dense`, `[rows, cols]` in single or half precision.
pub(super) fn unpack(
    words: CubeTensor,
    scales: CubeTensor,
    extra: CubeTensor,
    layout: Layout,
    first_row: usize,
    dense: &CubeTensor,
) {
    let client = words.client.clone();
    let [rows, cols] = [dense.meta.shape()[0], dense.meta.shape()[1]];
    // Values side by side share a word and a scale.
    let lanes = if cols.is_multiple_of(4) && layout.block.is_multiple_of(4) {
        4
    } else {
        1
    };
    let cubes = CubeCount::Static(
        ((cols / lanes) as u32).div_ceil(CUBE.0),
        (rows as u32).div_ceil(CUBE.1),
        1,
    );
    let launch = match dense.dtype {
        DType::F16 => unpack_kernel::launch::<f16>,
        _ => unpack_kernel::launch::<f32>,
    };
    launch(
        &client,
        cubes,
        CubeDim::new_2d(CUBE.0, CUBE.1),
        lanes,
        words.into_buffer_arg(),
        scales.into_buffer_arg(),
        extra.into_buffer_arg(),
        dense.clone().into_buffer_arg(),
        first_row,
        rows,
        cols / lanes,
        lanes,
        layout,
    );
}

#[cube(launch)]
fn unpack_kernel<F: Float, N: Size>(
    words: &[u32],
    scales: &[f32],
    extra: &[f32],
    dense: &mut [Vector<F, N>],
    first_row: usize,
    rows: usize,
    width: usize,
    #[comptime] lanes: usize,
    #[comptime] layout: Layout,
) {
    let col = ABSOLUTE_POS_X as usize;
    let row = ABSOLUTE_POS_Y as usize;
    if col >= width || row >= rows {
        terminate!();
    }
    let place = ((first_row + row) * width + col) * lanes;
    let per_word = comptime!(layout.code.per_word());
    let bits = comptime!(layout.code.bits());
    let block = place / layout.block;
    let codes = words[place / per_word] >> ((place % per_word) as u32 * bits);
    let mut values = Vector::<F, N>::empty();
    #[unroll]
    for lane in 0..lanes {
        let code = codes >> (lane as u32 * bits);
        let value = value(code, scales[block], extra, block, layout);
        values.insert(lane, F::cast_from(value));
    }
    dense[row * width + col] = values;
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
