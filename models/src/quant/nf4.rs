//! Four-bit NormalFloat.

use std::ops::Range;

use rayon::prelude::*;

use super::{QuantError, QuantMatrix};

/// Values that share one scale.
pub const NF4_BLOCK: usize = 64;

/// The sixteen values, before the block's scale.
///
/// Source: Dettmers et al. 2023, arXiv 2305.14314, appendix E.
#[expect(
    clippy::excessive_precision,
    reason = "the digits of the published table"
)]
pub const NF4_CODEBOOK: [f32; 16] = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
];

/// A matrix `[rows, cols]` of 4-bit codes with one scale for each 64 values, row-major.
///
/// Blocks run across the ends of rows. The value at an even place is in the high four
/// bits of its byte, as bitsandbytes packs it. A block of zeros has scale 0 and codes 7.
#[derive(Clone, Debug, PartialEq)]
pub struct Nf4Matrix {
    rows: usize,
    cols: usize,
    packed: Vec<u8>,
    absmax: Vec<f32>,
}

impl Nf4Matrix {
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
        let mut matrix = Self::empty(rows, cols);
        let midpoints = midpoints();
        matrix
            .packed
            .par_chunks_mut(NF4_BLOCK / 2)
            .zip(&mut matrix.absmax)
            .zip(values.par_chunks(NF4_BLOCK))
            .for_each(|((packed, absmax), values)| {
                *absmax = quantize_block(values, packed, &midpoints);
            });
        Ok(matrix)
    }

    /// Quantizes `matrix` 64 rows at a time, so that no second copy of it is ever whole.
    pub fn from_matrix(source: &QuantMatrix) -> Self {
        // 64 rows of any length are a whole number of blocks.
        const ROWS: usize = NF4_BLOCK;
        let (rows, cols) = (source.rows(), source.cols());
        let mut matrix = Self::empty(rows, cols);
        if cols == 0 {
            return matrix;
        }
        let midpoints = midpoints();
        matrix
            .packed
            .par_chunks_mut(ROWS * cols / 2)
            .zip(matrix.absmax.par_chunks_mut(ROWS * cols / NF4_BLOCK))
            .enumerate()
            .for_each_init(Vec::new, |buffer, (chunk, (packed, absmax))| {
                let start = chunk * ROWS;
                let end = (start + ROWS).min(rows);
                buffer.resize((end - start) * cols, 0.0);
                let done = source.dequantize_rows(start..end, buffer);
                debug_assert!(done.is_ok(), "the matrix's own rows");
                for ((packed, absmax), values) in packed
                    .chunks_mut(NF4_BLOCK / 2)
                    .zip(absmax)
                    .zip(buffer.chunks(NF4_BLOCK))
                {
                    *absmax = quantize_block(values, packed, &midpoints);
                }
            });
        matrix
    }

    /// Rows of the matrix.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values in a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Two codes a byte, row-major.
    pub fn packed(&self) -> &[u8] {
        &self.packed
    }

    /// One scale for each 64 values.
    pub fn absmax(&self) -> &[f32] {
        &self.absmax
    }

    /// Gives up the codes and the scales.
    pub fn into_parts(self) -> (Vec<u8>, Vec<f32>) {
        (self.packed, self.absmax)
    }

    /// All values, row-major.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        self.dequantize(0..self.rows, 0..self.cols, &mut out);
        out
    }

    /// Writes some columns of some rows to `out`, row-major.
    ///
    /// # Panics
    ///
    /// If there are no such rows or columns.
    pub fn dequantize(&self, rows: Range<usize>, columns: Range<usize>, out: &mut [f32]) {
        assert!(
            columns.end <= self.cols,
            "columns {columns:?} of {}",
            self.cols
        );
        let outs = out.chunks_exact_mut(columns.len().max(1));
        for (row, out) in rows.zip(outs) {
            let first = row * self.cols;
            self.dequantize_run(first + columns.start..first + columns.end, out);
        }
    }

    /// Values that follow one another, whatever their rows.
    fn dequantize_run(&self, values: Range<usize>, out: &mut [f32]) {
        let mut rest = out;
        let mut at = values.start;
        while at < values.end {
            let block = at / NF4_BLOCK;
            let end = ((block + 1) * NF4_BLOCK).min(values.end);
            let (out, further) = rest.split_at_mut(end - at);
            let table = NF4_CODEBOOK.map(|value| value * self.absmax[block]);
            if at.is_multiple_of(2) {
                for (pair, byte) in out.chunks_mut(2).zip(&self.packed[at / 2..]) {
                    pair[0] = table[usize::from(byte >> 4)];
                    if let Some(odd) = pair.get_mut(1) {
                        *odd = table[usize::from(byte & 15)];
                    }
                }
            } else {
                for (i, out) in (at..end).zip(out) {
                    let shift = if i.is_multiple_of(2) { 4 } else { 0 };
                    *out = table[usize::from(self.packed[i / 2] >> shift & 15)];
                }
            }
            (rest, at) = (further, end);
        }
    }

    fn empty(rows: usize, cols: usize) -> Self {
        let values = rows * cols;
        Self {
            rows,
            cols,
            packed: vec![0; values.div_ceil(2)],
            absmax: vec![0.0; values.div_ceil(NF4_BLOCK)],
        }
    }
}

/// Where one code ends and the next begins.
fn midpoints() -> [f32; 15] {
    std::array::from_fn(|i| {
        ((f64::from(NF4_CODEBOOK[i]) + f64::from(NF4_CODEBOOK[i + 1])) / 2.0) as f32
    })
}

/// Packs one block and returns its scale.
fn quantize_block(values: &[f32], packed: &mut [u8], midpoints: &[f32; 15]) -> f32 {
    let absmax = values.iter().fold(0.0f32, |max, v| max.max(v.abs()));
    let inverse = if absmax > 0.0 { 1.0 / absmax } else { 0.0 };
    let mut codes = [0u8; NF4_BLOCK];
    pulp::Arch::new().dispatch(
        #[inline(always)]
        || {
            for (code, v) in codes.iter_mut().zip(values) {
                let scaled = v * inverse;
                *code = midpoints.iter().map(|m| u8::from(scaled > *m)).sum();
            }
        },
    );
    for (byte, pair) in packed.iter_mut().zip(codes.as_chunks::<2>().0) {
        *byte = pair[0] << 4 | pair[1];
    }
    absmax
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codebook_values_survive() {
        let values: Vec<f32> = (0..64).map(|i| NF4_CODEBOOK[i % 16] * 3.0).collect();
        let q = Nf4Matrix::quantize(2, 32, &values).unwrap();
        assert_eq!(q.absmax(), [3.0]);
        assert_eq!(q.packed()[..3], [0x01, 0x23, 0x45]);
        assert_eq!(q.to_f32(), values);
    }

    #[test]
    fn zeros_and_odd_ends() {
        let q = Nf4Matrix::quantize(1, 3, &[0.0; 3]).unwrap();
        assert_eq!(q.to_f32(), [0.0; 3]);
        assert_eq!(q.packed().len(), 2);
        assert!(Nf4Matrix::quantize(1, 3, &[0.0; 4]).is_err());
    }

    #[test]
    fn chunks_of_rows_equal_all_at_once() {
        let values: Vec<f32> = (0..130 * 96).map(|i| (i as f32 * 0.37).sin()).collect();
        let matrix = QuantMatrix::from_f32(130, 96, &values).unwrap();
        assert_eq!(
            Nf4Matrix::from_matrix(&matrix),
            Nf4Matrix::quantize(130, 96, &values).unwrap()
        );
    }
}
