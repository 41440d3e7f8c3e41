//! Frozen weights that stay quantized in a GPU's memory.
//!
//! A product unpacks at most [`DENSE_VALUES`] of them into a buffer, multiplies it
//! in single or half precision, and lets the buffer go before the next part is unpacked. So a step needs the packed
//! weights and one dense part, whatever the size of the model. Generation multiplies one row at a
//! time; then writing and reading a dense part would be most of the work, and a kernel of our own
//! takes the codes as they are.
//!
//! Unpacking is one multiplication and at most one addition of exact products, as in the
//! quantizers of [`crate::quant`], so the values equal theirs bit for bit. Formats with blocks
//! inside blocks (Q4_K, Q5_K, Q6_K) and 5-bit ones are stored with 8 bits and one scale a row
//! instead, which adds a rounding error of at most 1/254 of the row's largest weight.

mod code;
mod few;
mod kernel;

use std::ops::Range;

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use self::code::Codes;
use super::cube::{cube, empty_of, tensor};
use super::frozen::HostMatrix;
use super::matmul::{matmul, matmul_side_by_side};
use crate::quant::{BlockFormat, Int8Rows, Nf4Matrix, QuantMatrix};

/// Dense values at a time: 64 MiB.
const DENSE_VALUES: usize = 16 << 20;

/// Rows whose results begin where every device can bind a buffer, and which fill the tiles of a product.
const ALIGNED_ROWS: usize = 64;

/// A frozen `[out, in]` matrix, quantized, in the memory of a GPU. Cloning copies no weights.
#[derive(Clone, Debug)]
pub struct PackedMatrix {
    rows: usize,
    cols: usize,
    layout: Layout,
    /// Codes of all values, row-major, the first in the lowest bits of the first word.
    words: Tensor<1, Int>,
    /// One scale for each block of [`Layout::block`] values, row-major.
    scales: Tensor<1>,
    /// Minimums beside the scales, or a codebook, or a single zero.
    extra: Tensor<1>,
}

/// What the codes mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Layout {
    code: Code,
    /// Values that share a scale.
    block: usize,
}

/// How a code and its scale make a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Code {
    /// Signed byte times scale.
    Byte,
    /// Four bits, less 8, times scale.
    Centred,
    /// Four bits times scale, plus minimum.
    Affine,
    /// Entry of a table of 16, times scale.
    Table,
}

impl Code {
    /// Bits of one value.
    const fn bits(self) -> u32 {
        match self {
            Self::Byte => 8,
            Self::Centred | Self::Affine | Self::Table => 4,
        }
    }

    /// Codes of a word.
    const fn per_word(self) -> usize {
        32 / self.bits() as usize
    }
}

impl PackedMatrix {
    /// Whether weights of this format are packed as they are, so that no value changes.
    pub fn keeps(format: BlockFormat) -> bool {
        matches!(
            format,
            BlockFormat::Q8_0 | BlockFormat::Q4_0 | BlockFormat::Q4_1
        )
    }

    /// Copies a matrix to the device: as it is if [`PackedMatrix::keeps`] its format or if it was
    /// quantized by us, else with 8 bits and one scale a row.
    pub fn upload(matrix: &HostMatrix, device: &Device) -> Self {
        match matrix {
            HostMatrix::Stored(matrix) => Self::from_stored(matrix, device),
            HostMatrix::Int8(matrix) => Self::from_int8(matrix, device),
            HostMatrix::Nf4(matrix) => Self::from_nf4(matrix, device),
        }
    }

    fn from_stored(matrix: &QuantMatrix, device: &Device) -> Self {
        match Codes::from_blocks(matrix) {
            Some(codes) => Self::new(matrix.rows(), matrix.cols(), codes, device),
            None => Self::from_int8(&Int8Rows::from_matrix(matrix), device),
        }
    }

    fn from_int8(matrix: &Int8Rows, device: &Device) -> Self {
        Self::new(
            matrix.rows(),
            matrix.cols(),
            Codes::from_int8(matrix),
            device,
        )
    }

    fn from_nf4(matrix: &Nf4Matrix, device: &Device) -> Self {
        Self::new(
            matrix.rows(),
            matrix.cols(),
            Codes::from_nf4(matrix),
            device,
        )
    }

    fn new(rows: usize, cols: usize, codes: Codes, device: &Device) -> Self {
        let len = codes.words.len();
        let words = TensorData::new(bytemuck::cast_vec::<u32, i32>(codes.words), [len]);
        Self {
            rows,
            cols,
            layout: codes.layout,
            words: Tensor::from_data(words, (device, DType::I32)),
            scales: on_device(codes.scales, device),
            extra: on_device(codes.extra, device),
        }
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Device memory that it takes.
    pub fn stored_bytes(&self) -> usize {
        4 * (self.words.dims()[0] + self.scales.dims()[0] + self.extra.dims()[0])
    }

    /// All values, `[out, in]`. Large matrices should not be dense at once: the products do not.
    pub fn dequantize(&self) -> Tensor<2> {
        self.dequantize_rows(0..self.rows, DType::F32)
    }

    /// The values of some rows, `[range.len(), in]`, in single or half precision.
    ///
    /// # Panics
    ///
    /// If there are no such rows.
    pub fn dequantize_rows(&self, range: Range<usize>, dtype: DType) -> Tensor<2> {
        assert!(
            range.start <= range.end && range.end <= self.rows,
            "rows {range:?} of {}",
            self.rows
        );
        match (cube(&self.words), cube(&self.scales), cube(&self.extra)) {
            (Some(words), Some(scales), Some(extra)) if !range.is_empty() && self.cols > 0 => {
                let shape = [range.len(), self.cols];
                let dense = empty_of(&words, shape, dtype);
                kernel::unpack(words, scales, extra, self.layout, range.start, &dense);
                tensor(dense)
            }
            _ => self.dequantize_on_host(range).cast(dtype),
        }
    }

    /// `x · Wᵀ`: `[n, in]` to `[n, out]`, the weights in the precision of `x`.
    pub fn matmul_t(&self, x: Tensor<2>) -> Tensor<2> {
        self.few_matmul_t(&x)
            .unwrap_or_else(|| self.matmul_t_in(&x, DENSE_VALUES))
    }

    /// As [`PackedMatrix::matmul_t`], with about so many values dense at once.
    fn matmul_t_in(&self, x: &Tensor<2>, dense_values: usize) -> Tensor<2> {
        let dense = |part| self.dequantize_rows(part, x.dtype()).transpose();
        matmul_side_by_side(x, self.rows, self.row_parts(dense_values).map(dense))
    }

    /// As [`PackedMatrix::matmul_t`], straight from the codes: for few rows, on a GPU.
    fn few_matmul_t(&self, x: &Tensor<2>) -> Option<Tensor<2>> {
        let shape = few::Few::new(x.dims()[0], self.rows, self.cols, self.layout)?;
        let (words, scales, extra) = (cube(&self.words)?, cube(&self.scales)?, cube(&self.extra)?);
        Some(tensor(few::matmul_t(cube(x)?, words, scales, extra, shape)))
    }

    /// `g · W`: `[n, out]` to `[n, in]`, the weights in the precision of `g`.
    pub fn matmul(&self, g: Tensor<2>) -> Tensor<2> {
        self.matmul_in(&g, DENSE_VALUES)
    }

    /// As [`PackedMatrix::matmul`], with about so many values dense at once.
    fn matmul_in(&self, g: &Tensor<2>, dense_values: usize) -> Tensor<2> {
        let n = g.dims()[0];
        self.row_parts(dense_values)
            .map(|part| {
                let columns = if part.len() == self.rows {
                    g.clone()
                } else {
                    g.clone().slice([0..n, part.clone()])
                };
                matmul(columns, self.dequantize_rows(part, g.dtype()))
            })
            .reduce(|sum, product| sum + product)
            .unwrap_or_else(|| Tensor::zeros([n, self.cols], &g.device()))
    }

    /// Ranges of rows that may be dense at once: about as many in each, and a multiple of
    /// [`ALIGNED_ROWS`] but in the last.
    fn row_parts(&self, dense_values: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let (rows, most) = (self.rows, (dense_values / self.cols.max(1)).max(1));
        let parts = rows.div_ceil(most).max(1);
        let step = rows.div_ceil(parts).next_multiple_of(ALIGNED_ROWS);
        (0..rows)
            .step_by(step.max(1))
            .map(move |start| start..(start + step).min(rows))
    }

    /// Without a GPU: slow, for tests.
    fn dequantize_on_host(&self, range: Range<usize>) -> Tensor<2> {
        let words: Vec<i32> = on_host(self.words.clone().try_into_vec_as());
        let scales: Vec<f32> = on_host(self.scales.clone().try_into_vec_as());
        let extra: Vec<f32> = on_host(self.extra.clone().try_into_vec_as());
        let values: Vec<f32> = (range.start * self.cols..range.end * self.cols)
            .map(|i| code::value(self.layout, &words, &scales, &extra, i))
            .collect();
        let shape = [range.len(), self.cols];
        Tensor::from_data(TensorData::new(values, shape), &self.words.device())
    }
}

fn on_device(values: Vec<f32>, device: &Device) -> Tensor<1> {
    let len = values.len();
    Tensor::from_data(TensorData::new(values, [len]), (device, DType::F32))
}

fn on_host<T, E: std::fmt::Display>(values: Result<Vec<T>, E>) -> Vec<T> {
    match values {
        Ok(values) => values,
        Err(error) => panic!("packed weights could not be read back: {error}"),
    }
}
