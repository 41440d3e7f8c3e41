//! Products of few rows with packed weights, without a dense copy.
//!
//! A dense part costs a write and a read of 4 bytes a weight where its code has half a byte or one,
//! and for a row at a time that traffic is all there is to a product. With more rows the tuned
//! kernels earn it back, on the matrix units where there are any.

use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::super::cube::empty;
use super::Layout;
use super::kernel::value;

/// The most rows: each costs a sum in every thread, and reads all of its values from the cache.
const ROWS: usize = 8;

/// Threads that share an output feature, and output features of a cube.
const SHARERS: usize = 16;
const FEATURES: usize = 8;

/// Cubes that every device takes along one axis.
const MOST_CUBES: usize = 65_535;

/// Four values side by side.
type Four = Vector<f32, Const<4>>;

/// Shapes that are known when the kernel is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Few {
    rows: usize,
    outs: usize,
    cols: usize,
    layout: Layout,
}

impl Few {
    /// For `rows` rows with a matrix `[outs, cols]`, if they are few and each of the matrix's rows
    /// is whole words.
    pub(super) fn new(rows: usize, outs: usize, cols: usize, layout: Layout) -> Option<Self> {
        let whole = cols.is_multiple_of(layout.code.per_word());
        let shape = Self {
            rows,
            outs,
            cols,
            layout,
        };
        let features = 1..=FEATURES * MOST_CUBES;
        (whole && (1..=ROWS).contains(&rows) && features.contains(&outs) && cols > 0)
            .then_some(shape)
    }

    const fn words(&self) -> usize {
        self.cols / self.layout.code.per_word()
    }
}

/// `x · Wᵀ`, `[rows, outs]`.
pub(super) fn matmul_t(
    x: CubeTensor,
    words: CubeTensor,
    scales: CubeTensor,
    extra: CubeTensor,
    shape: Few,
) -> CubeTensor {
    let y = empty(&x, [shape.rows, shape.outs]);
    let client = x.client.clone();
    matmul_t_kernel::launch(
        &client,
        CubeCount::Static(shape.outs.div_ceil(FEATURES) as u32, 1, 1),
        CubeDim::new_2d(SHARERS as u32, FEATURES as u32),
        x.into_buffer_arg(),
        words.into_buffer_arg(),
        scales.into_buffer_arg(),
        extra.into_buffer_arg(),
        y.clone().into_buffer_arg(),
        shape,
    );
    y
}

/// Threads side by side read words side by side; then one of them for each row adds up what they
/// have.
#[cube(launch)]
fn matmul_t_kernel(
    x: &[Four],
    words: &[u32],
    scales: &[f32],
    extra: &[f32],
    y: &mut [f32],
    #[comptime] shape: Few,
) {
    let rows = comptime!(shape.rows);
    let bits = comptime!(shape.layout.code.bits());
    let quads = comptime!(shape.layout.code.per_word() / 4);
    let sharer = UNIT_POS_X as usize;
    let out = CUBE_POS_X as usize * FEATURES + UNIT_POS_Y as usize;
    let mut sums = Array::<f32>::new(rows);
    #[unroll]
    for r in 0..rows {
        sums[r] = 0.0f32;
    }
    if out < shape.outs {
        let first = out * comptime!(shape.words());
        for step in 0..comptime!(shape.words().div_ceil(SHARERS)) {
            let at = step * SHARERS + sharer;
            if at < comptime!(shape.words()) {
                let word = words[first + at];
                let block =
                    (first + at) * comptime!(shape.layout.code.per_word()) / shape.layout.block;
                let scale = scales[block];
                #[unroll]
                for q in 0..quads {
                    let mut weights = Four::new(0.0f32);
                    #[unroll]
                    for lane in 0..4usize {
                        let code = word >> comptime!((q * 4 + lane) as u32 * bits);
                        weights.insert(lane, value(code, scale, extra, block, shape.layout));
                    }
                    #[unroll]
                    for r in 0..rows {
                        let values = x[at * quads + comptime!(r * shape.cols / 4 + q)];
                        let mut sum = sums[r];
                        #[unroll]
                        for lane in 0..4usize {
                            sum = fma(values.extract(lane), weights.extract(lane), sum);
                        }
                        sums[r] = sum;
                    }
                }
            }
        }
    }
    let mut shared = Shared::<[f32]>::new_slice(comptime!(rows * FEATURES * SHARERS));
    #[unroll]
    for r in 0..rows {
        shared[(r * FEATURES + UNIT_POS_Y as usize) * SHARERS + sharer] = sums[r];
    }
    sync_cube();
    if sharer < rows && out < shape.outs {
        let mut sum = 0.0f32;
        #[unroll]
        for s in 0..SHARERS {
            sum += shared[(sharer * FEATURES + UNIT_POS_Y as usize) * SHARERS + s];
        }
        y[sharer * shape.outs + out] = sum;
    }
}
