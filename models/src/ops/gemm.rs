//! Matrix products over `f32` slices, on the `gemm` crate.
//!
//! This is the only place of the CPU operations with `unsafe`: the crate takes raw
//! pointers, so every call first checks that all elements that it will touch lie
//! inside the slices.
#![allow(unsafe_code)]

use std::ops::Range;

/// A strided view of a matrix in a slice.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Mat<'a> {
    /// A dense row-major `[rows, cols]` matrix.
    pub(crate) fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// `rows` rows of `cols` values that start `stride` values apart.
    pub(crate) fn strided(data: &'a [f32], rows: usize, cols: usize, stride: usize) -> Self {
        Self {
            data,
            rows,
            cols,
            row_stride: stride,
            col_stride: 1,
        }
    }

    /// The transpose, without moving anything.
    pub(crate) fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// Some of the columns.
    pub(crate) fn columns(self, columns: Range<usize>) -> Self {
        assert!(
            columns.end <= self.cols,
            "columns {columns:?} of a matrix with {}",
            self.cols
        );
        let start = (columns.start * self.col_stride).min(self.data.len());
        Self {
            data: &self.data[start..],
            cols: columns.len(),
            ..self
        }
    }

    /// Rows of the matrix.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Columns of the matrix.
    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// Some rows of some columns.
    pub(crate) fn part(self, rows: Range<usize>, columns: Range<usize>) -> Self {
        assert!(rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        let start = (rows.start * self.row_stride).min(self.data.len());
        Self {
            data: &self.data[start..],
            rows: rows.len(),
            ..self
        }
        .columns(columns)
    }

    /// One row, whose values lie side by side.
    pub(crate) fn row(&self, row: usize) -> &'a [f32] {
        debug_assert!(self.col_stride == 1 && row < self.rows);
        &self.data[row * self.row_stride..][..self.cols]
    }

    /// One value.
    pub(crate) fn at(&self, row: usize, column: usize) -> f32 {
        self.data[row * self.row_stride + column * self.col_stride]
    }

    fn assert_inside(&self) {
        assert!(
            fits(
                self.data.len(),
                self.rows,
                self.cols,
                self.row_stride,
                self.col_stride
            ),
            "matrix [{}, {}] with strides ({}, {}) exceeds its slice of {}",
            self.rows,
            self.cols,
            self.row_stride,
            self.col_stride,
            self.data.len()
        );
    }
}

/// What happens to the values already in the destination.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Write {
    /// They are replaced.
    Set,
    /// The product is added to them.
    Add,
}

/// Which threads a product may use.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Threads {
    /// The calling thread: inside a rayon task.
    One,
    /// Rayon's pool.
    All,
}

/// `dst (+)= alpha · lhs · rhs`, where `dst` has `stride` values a row.
pub(crate) fn gemm(
    dst: &mut [f32],
    stride: usize,
    write: Write,
    alpha: f32,
    lhs: Mat,
    rhs: Mat,
    threads: Threads,
) {
    let (m, n, k) = (lhs.rows, rhs.cols, lhs.cols);
    assert_eq!(k, rhs.rows, "inner dimensions differ");
    lhs.assert_inside();
    rhs.assert_inside();
    assert!(
        stride >= n && fits(dst.len(), m, n, stride, 1),
        "destination [{m}, {n}] exceeds its slice"
    );
    if m == 0 || n == 0 {
        return;
    }
    let parallelism = match threads {
        Threads::One => gemm::Parallelism::None,
        Threads::All => gemm::Parallelism::Rayon(0),
    };
    // SAFETY: the three assertions above hold every address that `gemm` computes from
    // these sizes and strides inside its slice; `dst` is exclusively borrowed, so it
    // overlaps neither operand. With `read_dst == false` the destination is not read.
    unsafe {
        raw(
            dst.as_mut_ptr(),
            stride,
            write == Write::Add,
            alpha,
            lhs,
            rhs,
            (m, n, k),
            parallelism,
        )
    }
}

/// `alpha · lhs · rhs` in a new dense row-major vector.
pub(crate) fn matmul(alpha: f32, lhs: Mat, rhs: Mat, threads: Threads) -> Vec<f32> {
    let mut out = zeros(lhs.rows * rhs.cols);
    gemm(&mut out, rhs.cols, Write::Set, alpha, lhs, rhs, threads);
    out
}

/// A vector of zeros; the allocator hands out fresh pages already zeroed.
pub(crate) fn zeros(len: usize) -> Vec<f32> {
    vec![0.0; len]
}

fn fits(len: usize, rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> bool {
    rows == 0 || cols == 0 || (rows - 1) * row_stride + (cols - 1) * col_stride < len
}

/// # Safety
///
/// Every element addressed by the sizes and strides must be inside its allocation, and
/// `dst` must not overlap the operands.
#[allow(clippy::too_many_arguments)] // mirrors the BLAS call that it wraps
unsafe fn raw(
    dst: *mut f32,
    stride: usize,
    add: bool,
    alpha: f32,
    lhs: Mat,
    rhs: Mat,
    (m, n, k): (usize, usize, usize),
    parallelism: gemm::Parallelism,
) {
    // SAFETY: passed on from the caller.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst,
            1,
            stride as isize,
            add,
            lhs.data.as_ptr(),
            lhs.col_stride as isize,
            lhs.row_stride as isize,
            rhs.data.as_ptr(),
            rhs.col_stride as isize,
            rhs.row_stride as isize,
            1.0,
            alpha,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strided_and_transposed_views_multiply_as_written_out() {
        // [2, 3] inside rows of 4, times the transpose of [2, 3].
        let a = [1.0, 2.0, 3.0, 9.0, 4.0, 5.0, 6.0, 9.0];
        let b = [1.0, 0.0, -1.0, 2.0, 1.0, 0.0];
        let lhs = Mat::strided(&a, 2, 3, 4);
        let product = matmul(2.0, lhs, Mat::new(&b, 2, 3).t(), Threads::One);
        assert_eq!(product, [-4.0, 8.0, -4.0, 26.0]);
        let mut sum = vec![1.0; 6];
        gemm(
            &mut sum,
            3,
            Write::Add,
            1.0,
            lhs,
            Mat::new(&b, 2, 3).t(),
            Threads::One,
        );
        assert_eq!(sum, [-1.0, 5.0, 1.0, -1.0, 14.0, 1.0]);
    }

    #[test]
    #[should_panic(expected = "exceeds its slice")]
    fn a_view_past_the_end_is_refused() {
        let a = [0.0; 5];
        matmul(1.0, Mat::new(&a, 2, 3), Mat::new(&a, 3, 1), Threads::One);
    }
}
