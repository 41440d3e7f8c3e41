//! Eight bits a value with one scale a row.

use std::ops::Range;

use rayon::prelude::*;

use super::{QuantError, QuantMatrix};

/// A matrix `[rows, cols]` of signed bytes; row `r` holds `value = byte * scale[r]`.
///
/// The scale is the row's largest magnitude over 127. Values round half to even. A row of
/// zeros has scale 0.
#[derive(Clone, Debug, PartialEq)]
pub struct Int8Rows {
    rows: usize,
    cols: usize,
    values: Vec<i8>,
    scales: Vec<f32>,
}

impl Int8Rows {
    /// Quantizes `values`, row-major.
    ///
    /// # Errors
    ///
    /// [`QuantError::WrongOutput`] if there are not `rows * cols` of them.
    pub fn quantize(rows: usize, cols: usize, values: &[f32]) -> Result<Self, QuantError> {
        if rows.checked_mul(cols) != Some(values.len()) {
            return Err(QuantError::WrongOutput {
                expected: rows.saturating_mul(cols),
                got: values.len(),
            });
        }
        Ok(Self::by_row(rows, cols, |row, bytes, _| {
            quantize_row(&values[row * cols..][..cols], bytes)
        }))
    }

    /// Quantizes `matrix` row by row, so that no second copy of it is ever whole.
    pub fn from_matrix(matrix: &QuantMatrix) -> Self {
        Self::by_row(matrix.rows(), matrix.cols(), |row, bytes, buffer| {
            buffer.resize(matrix.cols(), 0.0);
            let done = matrix.dequantize_rows(row..row + 1, buffer);
            debug_assert!(done.is_ok(), "one of the matrix's own rows");
            quantize_row(buffer, bytes)
        })
    }

    /// Rows of the matrix.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values in a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The bytes, row-major.
    pub fn values(&self) -> &[i8] {
        &self.values
    }

    /// One scale a row.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// Gives up the bytes and the scales.
    pub fn into_parts(self) -> (Vec<i8>, Vec<f32>) {
        (self.values, self.scales)
    }

    /// All values, row-major.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.values.len()];
        self.dequantize(0..self.rows, 0..self.cols, &mut out);
        out
    }

    /// Writes some columns of some rows to `out`, row-major.
    ///
    /// # Panics
    ///
    /// If there are no such rows or columns.
    pub fn dequantize(&self, rows: Range<usize>, columns: Range<usize>, out: &mut [f32]) {
        let width = columns.len().max(1);
        let values = rows
            .clone()
            .map(|row| &self.values[row * self.cols..][columns.clone()]);
        let rows = values.zip(&self.scales[rows.clone()]);
        pulp::Arch::new().dispatch(
            #[inline(always)]
            || {
                for ((values, scale), out) in rows.zip(out.chunks_exact_mut(width)) {
                    for (out, value) in out.iter_mut().zip(values) {
                        *out = f32::from(*value) * scale;
                    }
                }
            },
        );
    }

    fn by_row(
        rows: usize,
        cols: usize,
        row: impl Fn(usize, &mut [i8], &mut Vec<f32>) -> f32 + Sync,
    ) -> Self {
        let mut values = vec![0i8; rows * cols];
        let mut scales = vec![0.0f32; rows];
        values
            .par_chunks_mut(cols.max(1))
            .zip(&mut scales)
            .enumerate()
            .for_each_init(Vec::new, |buffer, (index, (bytes, scale))| {
                *scale = row(index, bytes, buffer);
            });
        Self {
            rows,
            cols,
            values,
            scales,
        }
    }
}

fn quantize_row(row: &[f32], out: &mut [i8]) -> f32 {
    pulp::Arch::new().dispatch(
        #[inline(always)]
        || {
            let scale = row.iter().fold(0.0f32, |max, v| max.max(v.abs())) / 127.0;
            if scale > 0.0 {
                for (out, v) in out.iter_mut().zip(row) {
                    *out = (v / scale).round_ties_even().clamp(-127.0, 127.0) as i8;
                }
            }
            scale
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_per_row_and_zero_rows_stay_zero() {
        let q = Int8Rows::quantize(3, 2, &[127.0, -1.0, 0.0, 0.0, 0.5, -0.25]).unwrap();
        assert_eq!(q.scales(), [1.0, 0.0, 0.5 / 127.0]);
        // -63.5 rounds to even.
        assert_eq!(q.values(), [127, -1, 0, 0, 127, -64]);
        assert_eq!(q.to_f32()[..4], [127.0, -1.0, 0.0, 0.0]);
        assert!(Int8Rows::quantize(2, 2, &[0.0; 3]).is_err());
    }

    #[test]
    fn row_by_row_equals_all_at_once() {
        let values: Vec<f32> = (0..96).map(|i| (i as f32 * 0.7).sin()).collect();
        let matrix = QuantMatrix::from_f32(4, 24, &values).unwrap();
        assert_eq!(
            Int8Rows::from_matrix(&matrix),
            Int8Rows::quantize(4, 24, &values).unwrap()
        );
    }
}
