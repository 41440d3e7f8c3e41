//! Codes in words, from every format that is packed.

use super::{Code, Layout};
use crate::quant::{BlockFormat, Int8Rows, NF4_BLOCK, NF4_CODEBOOK, Nf4Matrix, QuantMatrix};
use half::f16;

/// The parts of a packed matrix, still in host memory.
pub(super) struct Codes {
    pub(super) layout: Layout,
    pub(super) words: Vec<u32>,
    pub(super) scales: Vec<f32>,
    pub(super) extra: Vec<f32>,
}

impl Codes {
    /// From ggml's blocks of 32, if the format keeps its codes.
    pub(super) fn from_blocks(matrix: &QuantMatrix) -> Option<Self> {
        let code = match matrix.format() {
            BlockFormat::Q8_0 => Code::Byte,
            BlockFormat::Q4_0 => Code::Centred,
            BlockFormat::Q4_1 => Code::Affine,
            _ => return None,
        };
        let block = matrix.format().block_size();
        let blocks = matrix.rows() * matrix.cols() / block;
        let mut codes = Self {
            layout: Layout { code, block },
            words: Vec::with_capacity(blocks * block * code.bits() as usize / 32),
            scales: Vec::with_capacity(blocks),
            extra: Vec::with_capacity(if code == Code::Affine { blocks } else { 1 }),
        };
        for row in 0..matrix.rows() {
            let bytes = matrix.row_bytes(row);
            for block in bytes.chunks_exact(matrix.format().block_bytes()) {
                codes.push_block(code, block);
            }
        }
        if code != Code::Affine {
            codes.extra.push(0.0);
        }
        Some(codes)
    }

    /// From signed bytes with one scale a row.
    pub(super) fn from_int8(matrix: &Int8Rows) -> Self {
        let words = matrix
            .values()
            .chunks(4)
            .map(|values| {
                let mut bytes = [0; 4];
                for (byte, value) in bytes.iter_mut().zip(values) {
                    *byte = value.cast_unsigned();
                }
                u32::from_le_bytes(bytes)
            })
            .collect();
        Self {
            layout: Layout {
                code: Code::Byte,
                block: matrix.cols().max(1),
            },
            words,
            scales: matrix.scales().to_vec(),
            extra: vec![0.0],
        }
    }

    /// From codes of a table, two in a byte, the even one in the high bits.
    pub(super) fn from_nf4(matrix: &Nf4Matrix) -> Self {
        let words = matrix
            .packed()
            .chunks(4)
            .map(|pairs| {
                let mut bytes = [0; 4];
                for (byte, pair) in bytes.iter_mut().zip(pairs) {
                    *byte = pair.rotate_left(4);
                }
                u32::from_le_bytes(bytes)
            })
            .collect();
        Self {
            layout: Layout {
                code: Code::Table,
                block: NF4_BLOCK,
            },
            words,
            scales: matrix.absmax().to_vec(),
            extra: NF4_CODEBOOK.to_vec(),
        }
    }

    fn push_block(&mut self, code: Code, block: &[u8]) {
        let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
        self.scales.push(half(0));
        let quants = match code {
            Code::Affine => {
                self.extra.push(half(2));
                &block[4..]
            }
            _ => &block[2..],
        };
        match code {
            Code::Byte => {
                let (words, _) = quants.as_chunks::<4>();
                self.words
                    .extend(words.iter().map(|bytes| u32::from_le_bytes(*bytes)));
            }
            // Byte i holds values i (low bits) and i + 16 (high bits).
            _ => {
                for shift in [0, 4] {
                    for bytes in quants.chunks_exact(8) {
                        let word = bytes.iter().rev().fold(0, |word: u32, byte| {
                            word << 4 | u32::from(byte >> shift & 15)
                        });
                        self.words.push(word);
                    }
                }
            }
        }
    }
}

/// Value `i`, row-major, as the kernel computes it.
pub(super) fn value(layout: Layout, words: &[i32], scales: &[f32], extra: &[f32], i: usize) -> f32 {
    let bits = layout.code.bits();
    let per_word = (32 / bits) as usize;
    let word = words[i / per_word].cast_unsigned() >> (bits * (i % per_word) as u32);
    let block = i / layout.block;
    let scale = scales[block];
    match layout.code {
        Code::Byte => f32::from((word as u8).cast_signed()) * scale,
        Code::Centred => ((word & 15) as f32 - 8.0) * scale,
        Code::Affine => (word & 15) as f32 * scale + extra[block],
        Code::Table => extra[(word & 15) as usize] * scale,
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::frozen::HostMatrix;
    use super::super::PackedMatrix;
    use super::*;
    use burn::tensor::{DType, Device, Tensor, TensorData};
    use std::sync::Arc;

    const ROWS: usize = 6;
    const COLS: usize = 64;

    /// Blocks of pseudo-random bytes with small, finite scales.
    fn stored(format: BlockFormat) -> QuantMatrix {
        let mut state = 7u32;
        let mut bytes = Vec::new();
        for _ in 0..ROWS * COLS / format.block_size() {
            let start = bytes.len();
            bytes.extend((0..format.block_bytes()).map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            }));
            let scale = f16::from_f32(0.01 + (state >> 28) as f32 * 0.003);
            bytes[start..start + 2].copy_from_slice(&scale.to_le_bytes());
            if format == BlockFormat::Q4_1 {
                bytes[start + 2..start + 4].copy_from_slice(&(-scale).to_le_bytes());
            }
        }
        QuantMatrix::new(ROWS, COLS, format, bytes).unwrap()
    }

    fn unpacked(matrix: &HostMatrix) -> Vec<f32> {
        unpacked_on(matrix, &Device::flex())
    }

    fn unpacked_on(matrix: &HostMatrix, device: &Device) -> Vec<f32> {
        PackedMatrix::upload(matrix, device)
            .dequantize()
            .try_into_vec_as()
            .unwrap()
    }

    #[test]
    fn kept_formats_unpack_to_the_same_bits() {
        for format in [BlockFormat::Q8_0, BlockFormat::Q4_0, BlockFormat::Q4_1] {
            assert!(PackedMatrix::keeps(format));
            let matrix = stored(format);
            assert_eq!(
                unpacked(&HostMatrix::Stored(matrix.clone())),
                matrix.to_f32(),
                "{format}"
            );
        }
    }

    #[test]
    fn rows_in_another_order_are_packed_in_the_models() {
        let matrix = stored(BlockFormat::Q4_1)
            .with_order(crate::quant::RowOrder::LlamaRope {
                heads: 1,
                head_dim: ROWS,
            })
            .unwrap();
        assert_eq!(
            unpacked(&HostMatrix::Stored(matrix.clone())),
            matrix.to_f32()
        );
    }

    #[test]
    fn our_own_formats_unpack_to_the_same_bits_with_odd_lengths_too() {
        for cols in [COLS, 37] {
            let values: Vec<f32> = (0..ROWS * cols).map(|i| (i as f32 * 0.7).sin()).collect();
            let int8 = Int8Rows::quantize(ROWS, cols, &values).unwrap();
            let expected = int8.to_f32();
            assert_eq!(unpacked(&HostMatrix::Int8(Arc::new(int8))), expected);
            let nf4 = Nf4Matrix::quantize(ROWS, cols, &values).unwrap();
            let expected = nf4.to_f32();
            assert_eq!(unpacked(&HostMatrix::Nf4(Arc::new(nf4))), expected);
        }
    }

    #[test]
    fn other_formats_are_repacked_with_eight_bits() {
        let values: Vec<f32> = (0..ROWS * COLS).map(|i| (i as f32 * 0.3).cos()).collect();
        let matrix = QuantMatrix::from_f32(ROWS, COLS, &values).unwrap();
        let int8 = Int8Rows::from_matrix(&matrix);
        assert!(!PackedMatrix::keeps(matrix.format()));
        assert_eq!(unpacked(&HostMatrix::Stored(matrix)), int8.to_f32());
    }

    #[test]
    fn gpu_unpacks_the_same_bits() {
        let Some((_, gpu)) = crate::device::gpu_for_tests() else {
            return;
        };
        let values: Vec<f32> = (0..ROWS * 37).map(|i| (i as f32 * 0.7).sin()).collect();
        for matrix in [
            HostMatrix::Stored(stored(BlockFormat::Q8_0)),
            HostMatrix::Stored(stored(BlockFormat::Q4_0)),
            HostMatrix::Stored(stored(BlockFormat::Q4_1)),
            HostMatrix::Int8(Arc::new(Int8Rows::quantize(ROWS, 37, &values).unwrap())),
            HostMatrix::Nf4(Arc::new(Nf4Matrix::quantize(ROWS, 37, &values).unwrap())),
        ] {
            assert_eq!(unpacked_on(&matrix, &gpu), unpacked(&matrix), "{matrix:?}");
            let packed = PackedMatrix::upload(&matrix, &gpu);
            let last: Vec<f32> = packed
                .dequantize_rows(4..6, DType::F32)
                .try_into_vec_as()
                .unwrap();
            assert_eq!(last, unpacked(&matrix)[4 * matrix.cols()..]);
        }
    }

    #[test]
    fn gpu_multiplies_both_ways() {
        let Some((_, gpu)) = crate::device::gpu_for_tests() else {
            return;
        };
        let matrix = HostMatrix::Stored(stored(BlockFormat::Q4_1));
        // Too many for the kernel of few rows.
        let n = 9;
        let products = |device: &Device| -> Vec<f32> {
            let packed = PackedMatrix::upload(&matrix, device);
            let input = |cols: usize| {
                let values: Vec<f32> = (0..n * cols).map(|i| (i as f32 * 0.9).sin()).collect();
                Tensor::<2>::from_data(TensorData::new(values, [n, cols]), device)
            };
            let forward = packed.matmul_t(input(COLS)).reshape([n * ROWS, 1]);
            let backward = packed.matmul(input(ROWS)).reshape([n * COLS, 1]);
            Tensor::cat(vec![forward, backward], 0)
                .try_into_vec_as()
                .unwrap()
        };
        for (a, b) in products(&gpu).iter().zip(products(&Device::flex())) {
            assert!((a - b).abs() < 1e-5, "{a} {b}");
        }
    }

    #[test]
    fn gpu_multiplies_few_rows_without_a_dense_copy() {
        let Some((_, gpu)) = crate::device::gpu_for_tests() else {
            return;
        };
        // More words than threads share, and more features than a cube has.
        let (outs, wide) = (11, 320);
        let values: Vec<f32> = (0..outs * wide).map(|i| (i as f32 * 0.7).sin()).collect();
        for matrix in [
            HostMatrix::Stored(stored(BlockFormat::Q8_0)),
            HostMatrix::Stored(stored(BlockFormat::Q4_0)),
            HostMatrix::Stored(stored(BlockFormat::Q4_1)),
            HostMatrix::Int8(Arc::new(Int8Rows::quantize(outs, wide, &values).unwrap())),
            HostMatrix::Nf4(Arc::new(Nf4Matrix::quantize(outs, wide, &values).unwrap())),
        ] {
            let product = |device: &Device, rows: usize| -> Vec<f32> {
                let cols = matrix.cols();
                let x: Vec<f32> = (0..rows * cols).map(|i| (i as f32 * 0.9).sin()).collect();
                let x = Tensor::from_data(TensorData::new(x, [rows, cols]), device);
                let packed = PackedMatrix::upload(&matrix, device);
                assert_eq!(packed.few_matmul_t(&x).is_some(), *device == gpu);
                packed.matmul_t(x).try_into_vec_as().unwrap()
            };
            for rows in [1, 3] {
                let (got, expected) = (product(&gpu, rows), product(&Device::flex(), rows));
                assert_eq!(got.len(), expected.len());
                for (a, b) in got.iter().zip(expected) {
                    assert!((a - b).abs() < 1e-4, "{matrix:?}: {a} {b}");
                }
            }
        }
    }

    /// The products of a matrix of 300 rows, of which 130 may be dense at once, with nine rows.
    fn products_in_parts(device: &Device) -> Vec<f32> {
        let (rows, cols, n) = (300, 64, 9);
        let waves = |len: usize| (0..len).map(|i| (i as f32 * 0.7).sin()).collect::<Vec<_>>();
        let int8 = Int8Rows::quantize(rows, cols, &waves(rows * cols)).unwrap();
        let packed = PackedMatrix::upload(&HostMatrix::Int8(Arc::new(int8)), device);
        let parts: Vec<_> = packed.row_parts(130 * cols).collect();
        assert_eq!(parts, [0..128, 128..256, 256..300]);
        let input = |width: usize| {
            Tensor::<2>::from_data(TensorData::new(waves(n * width), [n, width]), device)
        };
        let of_parts = packed.matmul_t_in(&input(cols), 130 * cols);
        let whole = packed.matmul_t(input(cols));
        let back_of_parts = packed.matmul_in(&input(rows), 130 * cols);
        let back = packed.matmul(input(rows));
        let read = |values: Tensor<2>| values.try_into_vec_as::<f32>().unwrap();
        let (of_parts, back_of_parts) = (read(of_parts), read(back_of_parts));
        let pairs = of_parts.iter().chain(&back_of_parts);
        for (part, whole) in pairs.zip(read(whole).iter().chain(&read(back))) {
            assert!((part - whole).abs() < 1e-4, "{part} {whole}");
        }
        [of_parts, back_of_parts].concat()
    }

    #[test]
    fn parts_of_a_large_matrix_make_the_same_products() {
        products_in_parts(&Device::flex());
    }

    #[test]
    fn gpu_parts_of_a_large_matrix_make_the_same_products() {
        let Some((_, gpu)) = crate::device::gpu_for_tests() else {
            return;
        };
        let expected = products_in_parts(&Device::flex());
        for (got, expected) in products_in_parts(&gpu).iter().zip(expected) {
            assert!((got - expected).abs() < 1e-4, "{got} {expected}");
        }
    }
}
