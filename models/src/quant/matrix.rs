//! A matrix of weights, read in place.

use std::ops::Range;

use super::dequantize::unpack;
use super::{BlockFormat, QuantError};
use crate::MappedBytes;

/// A frozen matrix, row-major `[rows, cols]`, stored in blocks and read in place.
///
/// Cloning copies no weights. A vector is a matrix of one row.
#[derive(Clone, Debug)]
pub struct QuantMatrix {
    rows: usize,
    cols: usize,
    row_bytes: usize,
    format: BlockFormat,
    bytes: MappedBytes,
    order: Option<RowOrder>,
}

/// How the stored order of the rows differs from the model's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RowOrder {
    /// The rows of each head, stored for rotary embeddings over neighbouring pairs.
    ///
    /// GGUF files of architecture `llama` hold the query and key projections so. Row
    /// `j * head_dim / 2 + i` of a head, with `j` 0 or 1, is stored as its row `2 * i + j`.
    LlamaRope {
        /// Heads in the matrix.
        heads: usize,
        /// Rows of a head.
        head_dim: usize,
    },
}

impl RowOrder {
    /// Where the model's row `row` is stored.
    pub fn stored(self, row: usize) -> usize {
        match self {
            Self::LlamaRope { head_dim, .. } => {
                let (head, within) = (row / head_dim, row % head_dim);
                let (j, i) = (within / (head_dim / 2), within % (head_dim / 2));
                head * head_dim + 2 * i + j
            }
        }
    }

    fn check(self, rows: usize) -> Result<(), QuantError> {
        match self {
            Self::LlamaRope { heads, head_dim } => {
                let fits = head_dim >= 2
                    && head_dim.is_multiple_of(2)
                    && heads.checked_mul(head_dim) == Some(rows);
                fits.then_some(()).ok_or(QuantError::WrongRowOrder {
                    heads,
                    head_dim,
                    rows,
                })
            }
        }
    }
}

impl QuantMatrix {
    /// A matrix over `bytes`, which hold exactly `rows` rows of `cols` values.
    ///
    /// # Errors
    ///
    /// [`QuantError::PartialBlock`], [`QuantError::TooLarge`] or
    /// [`QuantError::WrongLength`] if the shape, the format and the bytes do not agree.
    pub fn new(
        rows: usize,
        cols: usize,
        format: BlockFormat,
        bytes: impl Into<MappedBytes>,
    ) -> Result<Self, QuantError> {
        let bytes = bytes.into();
        let row_bytes = format.row_bytes(cols).ok_or(QuantError::PartialBlock {
            format,
            cols,
            block: format.block_size(),
        })?;
        let expected = rows
            .checked_mul(row_bytes)
            .filter(|_| rows.checked_mul(cols).is_some())
            .ok_or(QuantError::TooLarge { rows, cols })?;
        if bytes.len() != expected {
            return Err(QuantError::WrongLength {
                format,
                rows,
                cols,
                expected,
                got: bytes.len(),
            });
        }
        Ok(Self {
            rows,
            cols,
            row_bytes,
            format,
            bytes,
            order: None,
        })
    }

    /// A matrix of plain `f32` values.
    ///
    /// # Errors
    ///
    /// As [`QuantMatrix::new`].
    pub fn from_f32(rows: usize, cols: usize, values: &[f32]) -> Result<Self, QuantError> {
        Self::new(
            rows,
            cols,
            BlockFormat::F32,
            bytemuck::cast_slice(values).to_vec(),
        )
    }

    /// The same bytes with their rows in another order.
    ///
    /// # Errors
    ///
    /// [`QuantError::WrongRowOrder`] if the order is not one of this many rows.
    pub fn with_order(mut self, order: RowOrder) -> Result<Self, QuantError> {
        order.check(self.rows)?;
        self.order = Some(order);
        Ok(self)
    }

    /// Rows: outputs of a projection, or tokens of an embedding.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values in a row: inputs of a projection.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// How the rows are stored.
    pub fn format(&self) -> BlockFormat {
        self.format
    }

    /// The stored bytes of all rows, in stored order.
    pub fn bytes(&self) -> &MappedBytes {
        &self.bytes
    }

    /// How the stored order differs from the model's, if it does.
    pub fn order(&self) -> Option<RowOrder> {
        self.order
    }

    /// Bytes of each row.
    pub fn bytes_per_row(&self) -> usize {
        self.row_bytes
    }

    /// The stored bytes of the model's row `row`, its order undone.
    ///
    /// # Panics
    ///
    /// If there is no such row.
    #[inline]
    pub fn row_bytes(&self, row: usize) -> &[u8] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        let stored = self.order.map_or(row, |order| order.stored(row));
        &self.bytes[stored * self.row_bytes..][..self.row_bytes]
    }

    /// Writes the model's rows `range` to `out`, row-major.
    ///
    /// # Errors
    ///
    /// [`QuantError::NoSuchRows`] or [`QuantError::WrongOutput`]; `out` is then unchanged.
    pub fn dequantize_rows(&self, range: Range<usize>, out: &mut [f32]) -> Result<(), QuantError> {
        self.dequantize(range, 0..self.cols, out)
    }

    /// Writes some columns of the model's rows `rows` to `out`, row-major. Columns are cut between
    /// blocks only.
    ///
    /// # Errors
    ///
    /// [`QuantError::NoSuchRows`], [`QuantError::NoSuchColumns`] or [`QuantError::WrongOutput`];
    /// `out` is then unchanged.
    pub fn dequantize(
        &self,
        rows: Range<usize>,
        columns: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), QuantError> {
        if rows.start > rows.end || rows.end > self.rows {
            return Err(QuantError::NoSuchRows {
                start: rows.start,
                end: rows.end,
                rows: self.rows,
            });
        }
        let block = self.format.block_size();
        let whole = columns.start.is_multiple_of(block) && columns.end.is_multiple_of(block);
        if columns.start > columns.end || columns.end > self.cols || !whole {
            return Err(QuantError::NoSuchColumns {
                start: columns.start,
                end: columns.end,
                cols: self.cols,
                block,
            });
        }
        let (expected, width) = (rows.len() * columns.len(), columns.len());
        if out.len() != expected {
            return Err(QuantError::WrongOutput {
                expected,
                got: out.len(),
            });
        }
        if expected == 0 {
            return Ok(());
        }
        let bytes = |column: usize| column / block * self.format.block_bytes();
        let bytes = bytes(columns.start)..bytes(columns.end);
        pulp::Arch::new().dispatch(
            #[inline(always)]
            || {
                for (row, out) in rows.zip(out.chunks_exact_mut(width)) {
                    unpack(self.format, &self.row_bytes(row)[bytes.clone()], out);
                }
            },
        );
        Ok(())
    }

    /// All values, row-major.
    pub fn to_f32(&self) -> Vec<f32> {
        use rayon::prelude::*;

        let mut out = vec![0.0; self.rows * self.cols];
        // About a quarter of a megabyte of output for each task.
        if let Some(rows) = 65_536usize.checked_div(self.cols) {
            let rows = rows.max(1);
            out.par_chunks_mut(rows * self.cols)
                .enumerate()
                .for_each(|(chunk, out)| {
                    let start = chunk * rows;
                    let done = self.dequantize_rows(start..start + out.len() / self.cols, out);
                    debug_assert!(done.is_ok(), "the ranges cover exactly our rows");
                });
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama_rows_are_found_where_the_converter_put_them() {
        // The converter stores row 2*i+j of a head of 6 from row j*3+i of the model.
        let stored_from = [0, 3, 1, 4, 2, 5];
        let values: Vec<f32> = (0..2)
            .flat_map(|head| stored_from.map(|row| (head * 6 + row) as f32))
            .collect();
        let matrix = QuantMatrix::from_f32(12, 1, &values)
            .unwrap()
            .with_order(RowOrder::LlamaRope {
                heads: 2,
                head_dim: 6,
            })
            .unwrap();
        let expected: Vec<f32> = (0..12).map(|row| row as f32).collect();
        assert_eq!(matrix.to_f32(), expected);
        let mut two = [0.0; 2];
        matrix.dequantize_rows(7..9, &mut two).unwrap();
        assert_eq!(two, [7.0, 8.0]);
        assert_eq!(matrix.row_bytes(3), 3.0f32.to_le_bytes());
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let bytes = vec![0u8; 36];
        assert!(QuantMatrix::new(2, 32, BlockFormat::Q4_0, bytes.clone()).is_ok());
        assert!(matches!(
            QuantMatrix::new(3, 32, BlockFormat::Q4_0, bytes.clone()),
            Err(QuantError::WrongLength { expected: 54, .. })
        ));
        assert!(matches!(
            QuantMatrix::new(usize::MAX, 32, BlockFormat::Q4_0, bytes.clone()),
            Err(QuantError::TooLarge { .. })
        ));
        let matrix = QuantMatrix::new(2, 32, BlockFormat::Q4_0, bytes).unwrap();
        assert!(matrix.dequantize_rows(1..3, &mut [0.0; 64]).is_err());
        assert!(matrix.dequantize_rows(0..1, &mut [0.0; 31]).is_err());
        let order = RowOrder::LlamaRope {
            heads: 1,
            head_dim: 3,
        };
        assert!(matrix.with_order(order).is_err());
    }
}
