//! Frozen weights as files store them, and quantizers for the ones that we make.
//!
//! [`QuantMatrix`] reads any [`BlockFormat`] of GGUF or safetensors in place.
//! [`Int8Rows`] and [`Nf4Matrix`] are the two formats that we quantize to ourselves.

mod dequantize;
mod dot;
mod int8;
mod matrix;
mod nf4;
mod quantize;

pub use dequantize::dequantize_row;
pub(crate) use dot::Dots;
pub use int8::Int8Rows;
pub use matrix::{QuantMatrix, RowOrder};
pub use nf4::{NF4_BLOCK, NF4_CODEBOOK, Nf4Matrix};
pub use quantize::quantize_row;

use std::fmt;

/// How a row of weights is stored: plain numbers, or ggml's blocks.
///
/// Names are ggml's. A row is a whole number of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BlockFormat {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// The upper half of an `f32`.
    BF16,
    /// 32 values of 8 bits and a half-precision scale.
    Q8_0,
    /// 32 values of 4 bits, centred on 8, and a half-precision scale.
    Q4_0,
    /// 32 values of 4 bits, a half-precision scale and minimum.
    Q4_1,
    /// 32 values of 5 bits, centred on 16, and a half-precision scale.
    Q5_0,
    /// 32 values of 5 bits, a half-precision scale and minimum.
    Q5_1,
    /// 256 values of 4 bits in 8 groups with 6-bit scales and minimums.
    Q4K,
    /// 256 values of 5 bits in 8 groups with 6-bit scales and minimums.
    Q5K,
    /// 256 values of 6 bits in 16 groups with 8-bit scales.
    Q6K,
}

impl BlockFormat {
    /// Every format, in the order of the enum.
    pub const ALL: [Self; 11] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    /// Values in one block.
    pub const fn block_size(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Bytes of a row of `cols` values, or `None` where `cols` is no whole number of
    /// blocks or the size overflows.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        if !cols.is_multiple_of(self.block_size()) {
            return None;
        }
        (cols / self.block_size()).checked_mul(self.block_bytes())
    }

    /// The number that GGUF files give this format.
    pub const fn ggml_id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q4K => 12,
            Self::Q5K => 13,
            Self::Q6K => 14,
            Self::BF16 => 30,
        }
    }

    /// The format that GGUF files give the number `id`, if we read it.
    pub fn from_ggml_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.ggml_id() == id)
    }
}

impl fmt::Display for BlockFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        })
    }
}

/// Why weights could not be read or quantized as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QuantError {
    /// A row is not a whole number of blocks.
    #[error("a row of {cols} values is no whole number of {format} blocks of {block}")]
    PartialBlock {
        /// The format asked for.
        format: BlockFormat,
        /// Values in the row.
        cols: usize,
        /// Values in a block.
        block: usize,
    },
    /// The bytes are not as many as the shape needs.
    #[error("{rows} x {cols} in {format} needs {expected} bytes, got {got}")]
    WrongLength {
        /// The format of the bytes.
        format: BlockFormat,
        /// Rows of the matrix.
        rows: usize,
        /// Values in a row.
        cols: usize,
        /// Bytes that the shape needs.
        expected: usize,
        /// Bytes given.
        got: usize,
    },
    /// The output is not as long as the values asked for.
    #[error("the output holds {got} values, {expected} were asked for")]
    WrongOutput {
        /// Values asked for.
        expected: usize,
        /// Values that the output holds.
        got: usize,
    },
    /// Rows past the end were asked for.
    #[error("rows {start}..{end} were asked for, the matrix has {rows}")]
    NoSuchRows {
        /// First row asked for.
        start: usize,
        /// One past the last row asked for.
        end: usize,
        /// Rows of the matrix.
        rows: usize,
    },
    /// Columns past the end, or parts of blocks, were asked for.
    #[error("columns {start}..{end} were asked for, the matrix has {cols} in blocks of {block}")]
    NoSuchColumns {
        /// First column asked for.
        start: usize,
        /// One past the last column asked for.
        end: usize,
        /// Columns of the matrix.
        cols: usize,
        /// Values of a block.
        block: usize,
    },
    /// The row permutation does not fit the number of rows.
    #[error("{heads} heads of {head_dim} do not make {rows} rows")]
    WrongRowOrder {
        /// Heads of the permutation.
        heads: usize,
        /// Rows of a head.
        head_dim: usize,
        /// Rows of the matrix.
        rows: usize,
    },
    /// We read this format but do not write it.
    #[error("{format} can be read but not written")]
    NoQuantizer {
        /// The format asked for.
        format: BlockFormat,
    },
    /// A matrix of this shape does not fit in memory.
    #[error("{rows} x {cols} is too large")]
    TooLarge {
        /// Rows of the matrix.
        rows: usize,
        /// Values in a row.
        cols: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_distinct_and_round_trip() {
        for format in BlockFormat::ALL {
            assert_eq!(BlockFormat::from_ggml_id(format.ggml_id()), Some(format));
        }
        assert_eq!(BlockFormat::from_ggml_id(4), None);
        assert_eq!(BlockFormat::from_ggml_id(u32::MAX), None);
    }

    #[test]
    fn row_bytes_needs_whole_blocks() {
        assert_eq!(BlockFormat::Q4_1.row_bytes(576), Some(360));
        assert_eq!(BlockFormat::Q6K.row_bytes(512), Some(420));
        assert_eq!(BlockFormat::Q4_1.row_bytes(33), None);
        assert_eq!(BlockFormat::F32.row_bytes(usize::MAX), None);
    }
}
