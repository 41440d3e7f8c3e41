//! Frozen weight matrices and the two products that training needs of them:
//! `x · Wᵀ` forward and `g · W` backward, from the stored form.
//!
//! On the CPU a quantized matrix stays as it is in its file; a product unpacks one tile
//! of rows at a time, in parallel, into a buffer that is used again for the next tile.

use super::gemm::{Mat, Threads, Write, gemm};
use super::host::{Host, host_tensor, is_cpu, tensor_on};
use super::packed::PackedMatrix;
use super::simd::{dot, vectorized};
use crate::quant::{BlockFormat, Int8Rows, Nf4Matrix, QuantMatrix};
use burn::tensor::{Device, Tensor};
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

/// Values of one unpacked tile: 4 MiB, which stays in the caches.
const TILE_VALUES: usize = 1 << 20;
/// Up to this many input rows a product reads each weight row once and multiplies it at
/// once, instead of unpacking tiles for a matrix product.
const FEW_ROWS: usize = 8;

/// A frozen `[out, in]` matrix on some device.
#[derive(Clone, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "a model has a few hundred of them, read at every step"
)]
pub enum FrozenMatrix {
    /// In host memory or in the mapped file.
    Host(HostMatrix),
    /// Dense on a GPU.
    Dense(Tensor<2>),
    /// Quantized on a GPU.
    Packed(PackedMatrix),
}

impl FrozenMatrix {
    /// Output features.
    pub fn rows(&self) -> usize {
        match self {
            Self::Host(matrix) => matrix.rows(),
            Self::Dense(tensor) => tensor.dims()[0],
            Self::Packed(matrix) => matrix.rows(),
        }
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        match self {
            Self::Host(matrix) => matrix.cols(),
            Self::Dense(tensor) => tensor.dims()[1],
            Self::Packed(matrix) => matrix.cols(),
        }
    }

    /// `x · Wᵀ`: `[rows, in]` to `[rows, out]`.
    pub fn forward(&self, x: &Tensor<2>) -> Tensor<2> {
        match self {
            Self::Host(matrix) => {
                let [rows, _] = x.dims();
                let input = Host::of(x.clone());
                let mut out = vec![0.0; rows * matrix.rows()];
                forward_into(matrix, input.values(), rows, &mut out, matrix.rows());
                host_tensor(out, [rows, matrix.rows()])
            }
            Self::Dense(weight) => x.clone().matmul(weight.clone().transpose()),
            Self::Packed(matrix) => matrix.matmul_t(x.clone()),
        }
    }

    /// `g · W`: `[rows, out]` to `[rows, in]`.
    pub fn backward(&self, g: &Tensor<2>) -> Tensor<2> {
        match self {
            Self::Host(matrix) => {
                let [rows, _] = g.dims();
                let grad = Host::of(g.clone());
                let mut out = vec![0.0; rows * matrix.cols()];
                backward_into(
                    matrix,
                    Mat::new(grad.values(), rows, matrix.rows()),
                    &mut out,
                    Write::Set,
                );
                host_tensor(out, [rows, matrix.cols()])
            }
            Self::Dense(weight) => g.clone().matmul(weight.clone()),
            Self::Packed(matrix) => matrix.matmul(g.clone()),
        }
    }
}

/// A frozen matrix that the CPU reads, in any storage form. Cloning copies no weights.
#[derive(Clone, Debug)]
pub enum HostMatrix {
    /// As a file stores it.
    Stored(QuantMatrix),
    /// Eight bits a value, one scale a row.
    Int8(Arc<Int8Rows>),
    /// Four-bit NormalFloat.
    Nf4(Arc<Nf4Matrix>),
}

impl HostMatrix {
    /// Rows: outputs of a projection, tokens of an embedding.
    pub fn rows(&self) -> usize {
        match self {
            Self::Stored(matrix) => matrix.rows(),
            Self::Int8(matrix) => matrix.rows(),
            Self::Nf4(matrix) => matrix.rows(),
        }
    }

    /// Values in a row.
    pub fn cols(&self) -> usize {
        match self {
            Self::Stored(matrix) => matrix.cols(),
            Self::Int8(matrix) => matrix.cols(),
            Self::Nf4(matrix) => matrix.cols(),
        }
    }

    /// Writes rows `range` to `out`, row-major.
    ///
    /// # Panics
    ///
    /// If `out` is not `range.len()` rows long or there are no such rows.
    pub fn dequantize_rows(&self, range: Range<usize>, out: &mut [f32]) {
        match self {
            Self::Stored(matrix) => {
                if let Err(error) = matrix.dequantize_rows(range, out) {
                    panic!("a caller asked for rows that are not there: {error}");
                }
            }
            Self::Int8(matrix) => matrix.dequantize_rows(range, out),
            Self::Nf4(matrix) => matrix.dequantize_rows(range, out),
        }
    }

    /// The values themselves where they are stored as `f32` in the model's order.
    fn as_f32(&self) -> Option<&[f32]> {
        match self {
            Self::Stored(matrix)
                if matrix.format() == BlockFormat::F32 && matrix.order().is_none() =>
            {
                bytemuck::try_cast_slice(matrix.bytes()).ok()
            }
            _ => None,
        }
    }
}

/// Looks up embedding rows: `[ids, features]` on `device`.
pub fn embed(table: &HostMatrix, ids: &[u32], device: &Device) -> Tensor<2> {
    let features = table.cols();
    let mut out = vec![0.0; ids.len() * features];
    out.par_chunks_mut(features)
        .zip(ids)
        .with_min_len(8)
        .for_each(|(row, &id)| {
            let id = id as usize;
            table.dequantize_rows(id..id + 1, row);
        });
    let shape = [ids.len(), features];
    if is_cpu(device) {
        host_tensor(out, shape)
    } else {
        tensor_on(out, shape, device)
    }
}

/// Writes `x · Wᵀ` into the first `W.rows` columns of `out`, whose rows are `stride` long.
pub(super) fn forward_into(
    matrix: &HostMatrix,
    x: &[f32],
    rows: usize,
    out: &mut [f32],
    stride: usize,
) {
    let (out_features, features) = (matrix.rows(), matrix.cols());
    if rows <= FEW_ROWS {
        return forward_few(matrix, x, rows, out, stride);
    }
    let x = Mat::new(x, rows, features);
    for_tiles(matrix, |tile, weights| {
        let weights = Mat::new(weights, tile.len(), features);
        gemm(
            &mut out[tile.start..],
            stride,
            Write::Set,
            1.0,
            x,
            weights.t(),
            Threads::All,
        );
    });
    debug_assert!(stride >= out_features);
}

/// Writes or adds `g · W` to `out` `[g.rows, W.cols]`.
pub(super) fn backward_into(matrix: &HostMatrix, g: Mat, out: &mut [f32], write: Write) {
    let features = matrix.cols();
    for_tiles(matrix, |tile, weights| {
        let write = if tile.start == 0 { write } else { Write::Add };
        let weights = Mat::new(weights, tile.len(), features);
        gemm(
            out,
            features,
            write,
            1.0,
            g.columns(tile),
            weights,
            Threads::All,
        );
    });
}

/// Calls `product` with tile after tile of rows as dense values.
fn for_tiles(matrix: &HostMatrix, mut product: impl FnMut(Range<usize>, &[f32])) {
    if let Some(dense) = matrix.as_f32() {
        return product(0..matrix.rows(), dense);
    }
    thread_local! {
        static TILE: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    }
    let (rows, features) = (matrix.rows(), matrix.cols());
    let tile_rows = (TILE_VALUES / features).clamp(1, rows.max(1));
    // Taken out: while this thread waits for a part of a product, it may begin another one.
    let mut buffer = TILE.take();
    if buffer.len() < tile_rows * features {
        buffer.resize(tile_rows * features, 0.0);
    }
    for start in (0..rows).step_by(tile_rows) {
        let tile = start..(start + tile_rows).min(rows);
        let values = &mut buffer[..tile.len() * features];
        unpack(matrix, tile.start, values);
        product(tile, values);
    }
    TILE.set(buffer);
}

fn unpack(matrix: &HostMatrix, first: usize, values: &mut [f32]) {
    const ROWS: usize = 32;
    let features = matrix.cols();
    values
        .par_chunks_mut(ROWS * features)
        .enumerate()
        .for_each(|(i, chunk)| {
            let start = first + i * ROWS;
            let rows = chunk.len() / features;
            matrix.dequantize_rows(start..start + rows, chunk);
        });
}

fn forward_few(matrix: &HostMatrix, x: &[f32], rows: usize, out: &mut [f32], stride: usize) {
    const CHUNK: usize = 64;
    let (out_features, features) = (matrix.rows(), matrix.cols());
    let chunks = out_features.div_ceil(CHUNK);
    let products: Vec<Vec<f32>> = (0..chunks)
        .into_par_iter()
        .with_min_len(2)
        .map_init(
            || vec![0.0; features],
            |weights, chunk| {
                let range = chunk * CHUNK..((chunk + 1) * CHUNK).min(out_features);
                let mut products = Vec::with_capacity(range.len() * rows);
                for r in range {
                    matrix.dequantize_rows(r..r + 1, weights);
                    vectorized(
                        #[inline(always)]
                        || products.extend(x.chunks_exact(features).map(|x| dot(x, weights))),
                    );
                }
                products
            },
        )
        .collect();
    for (chunk, products) in products.iter().enumerate() {
        for (r, of_row) in products.chunks_exact(rows).enumerate() {
            for (row, product) in of_row.iter().enumerate() {
                out[row * stride + chunk * CHUNK + r] = *product;
            }
        }
    }
}
