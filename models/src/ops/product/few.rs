//! Products with a few rows, as in generation: each weight is used so few times that reading it is
//! what takes time, and laying out panels would take longer than the product.

use super::super::frozen::HostMatrix;
use super::super::gemm::Mat;
use super::with_scratch;
use crate::quant;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// Rows of `W` that one task multiplies.
const TASK: usize = 32;
/// Tasks that are worth another thread.
const TASKS: usize = 4;
/// Rows of `W` that share a load of `x`.
const ABREAST: usize = 4;

/// Writes `x · Wᵀ` of some `W`, side by side, into the first columns of `out`, whose rows are `stride`
/// long. All are one piece of work: waking a thread for each would take as long as the work.
pub(in super::super) fn few_rows(matrices: &[&HostMatrix], x: Mat, out: &mut [f32], stride: usize) {
    let (rows, width) = (x.rows(), matrices.iter().map(|matrix| matrix.rows()).sum());
    let vectors: Vec<&[f32]> = (0..rows).map(|row| x.row(row)).collect();
    let stored = matrices.iter().map(|matrix| match matrix {
        HostMatrix::Stored(matrix) => quant::Dots::new(matrix, &vectors),
        _ => None,
    });
    let stored: Vec<Option<quant::Dots>> = stored.collect();
    if rows == 1 {
        return multiply(matrices, &stored, x, &mut out[..width]);
    }
    // By rows of `W`, so that tasks write to different places.
    let mut products = vec![0.0; width * rows];
    multiply(matrices, &stored, x, &mut products);
    for (column, products) in products.chunks_exact(rows).enumerate() {
        for (row, product) in products.iter().enumerate() {
            out[row * stride + column] = *product;
        }
    }
}

/// Writes the products to `products`, `[Σ W.rows, x.rows]`.
fn multiply(
    matrices: &[&HostMatrix],
    stored: &[Option<quant::Dots>],
    x: Mat,
    products: &mut [f32],
) {
    let mut left = products;
    let mut tasks = Vec::new();
    for (matrix, stored) in matrices.iter().zip(stored) {
        for first in (0..matrix.rows()).step_by(TASK) {
            let range = first..(first + TASK).min(matrix.rows());
            let products = left.split_off_mut(..range.len() * x.rows());
            tasks.extend(products.map(|products| (matrix, stored, range, products)));
        }
    }
    let tasks = tasks.into_par_iter().with_min_len(TASKS);
    tasks.for_each(|(matrix, stored, range, products)| {
        if let Some(dots) = stored {
            dots.write(range, products);
            return;
        }
        with_scratch(ABREAST * matrix.cols(), |values| {
            pulp::Arch::new().dispatch(Dots {
                matrix,
                x,
                range,
                values,
                products,
            });
        });
    });
}

/// The products of some rows of `W`.
struct Dots<'a> {
    matrix: &'a HostMatrix,
    x: Mat<'a>,
    range: Range<usize>,
    /// Room for [`ABREAST`] rows.
    values: &'a mut [f32],
    /// `[range.len(), x.rows]`.
    products: &'a mut [f32],
}

impl WithSimd for Dots<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (features, rows) = (self.matrix.cols(), self.x.rows());
        let starts = self.range.clone().step_by(ABREAST);
        for (start, products) in starts.zip(self.products.chunks_mut(ABREAST * rows)) {
            let range = start..(start + ABREAST).min(self.range.end);
            let (values, rest) = self.values.split_at_mut(range.len() * features);
            self.matrix.dequantize(range, 0..features, values);
            rest.fill(0.0);
            for row in 0..rows {
                let dots = dots(simd, self.x.row(row), self.values);
                for (products, dot) in products.chunks_exact_mut(rows).zip(dots) {
                    products[row] = dot;
                }
            }
        }
    }
}

/// The dot products of `x` with [`ABREAST`] rows of its length.
#[inline(always)]
fn dots<S: Simd>(simd: S, x: &[f32], rows: &[f32]) -> [f32; ABREAST] {
    let (x, x_tail) = S::as_simd_f32s(x);
    let mut sums = [simd.splat_f32s(0.0); ABREAST];
    let mut dots = [0.0; ABREAST];
    let mut of_rows = [&[][..]; ABREAST];
    let features = rows.len() / ABREAST;
    for (i, of_row) in of_rows.iter_mut().enumerate() {
        let (row, tail) = S::as_simd_f32s(&rows[i * features..][..features]);
        *of_row = &row[..x.len()];
        dots[i] = tail.iter().zip(x_tail).map(|(a, b)| a * b).sum();
    }
    for (k, x) in x.iter().enumerate() {
        for (sum, row) in sums.iter_mut().zip(of_rows) {
            *sum = simd.mul_add_e_f32s(*x, row[k], *sum);
        }
    }
    for (dot, sum) in dots.iter_mut().zip(sums) {
        *dot += simd.reduce_sum_f32s(sum);
    }
    dots
}
