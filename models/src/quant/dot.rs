//! Dot products with rows of blocks, without unpacking them to memory: with `q` the codes of a block,
//! `Σ (s·q + m)·x = s·Σ q·x + m·Σ x`, so scale and minimum are used once a block.
//!
//! For the formats whose blocks are 32 values with one scale, on processors with AVX2 and FMA.

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::Dots;

/// Other processors have no such way.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) enum Dots {}

#[cfg(not(target_arch = "x86_64"))]
impl Dots {
    pub(crate) fn new(_: &super::QuantMatrix, _: Vec<&[f32]>) -> Option<Self> {
        None
    }

    pub(crate) fn write(&self, _: std::ops::Range<usize>, _: &mut [f32]) {
        match *self {}
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{__m128i, __m256};
    use std::ops::Range;

    use pulp::NullaryFnOnce;
    use pulp::x86::V3;

    use super::super::dequantize::f16_of_bits;
    use super::super::{BlockFormat, QuantMatrix};

    /// Values of a block.
    const BLOCK: usize = 32;
    /// Vectors of eight that a block's codes fill.
    const PARTS: usize = BLOCK / 8;
    /// Blocks whose scales are converted at once.
    const HEADS: usize = 16;

    /// The dot products of a matrix's rows with vectors.
    pub(crate) struct Dots<'a> {
        simd: V3,
        matrix: &'a QuantMatrix,
        vectors: Vec<&'a [f32]>,
        /// `[vectors, blocks]`: the sum of each block's values.
        sums: Vec<f32>,
        write: fn(&Dots<'_>, Range<usize>, &mut [f32]),
    }

    impl<'a> Dots<'a> {
        /// Those with vectors as long as a row, if there is such a way for this format on this
        /// processor.
        pub(crate) fn new(matrix: &'a QuantMatrix, vectors: Vec<&'a [f32]>) -> Option<Self> {
            let simd = V3::try_new()?;
            let write = match matrix.format() {
                BlockFormat::Q4_0 => q4_0,
                BlockFormat::Q4_1 => q4_1,
                BlockFormat::Q8_0 => q8_0,
                _ => return None,
            };
            let blocks = vectors.iter().flat_map(|x| x.as_chunks::<BLOCK>().0);
            let sums = blocks.map(|block| block.iter().sum()).collect();
            Some(Self {
                simd,
                matrix,
                vectors,
                sums,
                write,
            })
        }

        /// Writes those of some rows to `out`, `[rows.len(), vectors]`.
        ///
        /// # Panics
        ///
        /// If there are no such rows, or the vectors are shorter than they.
        pub(crate) fn write(&self, rows: Range<usize>, out: &mut [f32]) {
            (self.write)(self, rows, out);
        }

        fn write_blocks<const B: usize>(
            &self,
            rows: Range<usize>,
            out: &mut [f32],
            codes: impl Fn(&[u8; B]) -> [__m256; PARTS],
            minimum: impl Fn(f32, f32) -> f32,
        ) {
            let blocks = Blocks::<B, _, _> {
                dots: self,
                rows,
                out,
                codes,
                minimum,
            };
            self.simd.vectorize(blocks);
        }
    }

    fn q4_0(dots: &Dots<'_>, rows: Range<usize>, out: &mut [f32]) {
        let simd = dots.simd;
        dots.write_blocks(
            rows,
            out,
            #[inline(always)]
            |block: &[u8; 18]| nibbles(simd, block.last_chunk()),
            #[inline(always)]
            |scale, _| -8.0 * scale,
        );
    }

    fn q4_1(dots: &Dots<'_>, rows: Range<usize>, out: &mut [f32]) {
        let simd = dots.simd;
        dots.write_blocks(
            rows,
            out,
            #[inline(always)]
            |block: &[u8; 20]| nibbles(simd, block.last_chunk()),
            #[inline(always)]
            |_, minimum| minimum,
        );
    }

    fn q8_0(dots: &Dots<'_>, rows: Range<usize>, out: &mut [f32]) {
        let simd = dots.simd;
        dots.write_blocks(
            rows,
            out,
            #[inline(always)]
            |block: &[u8; 34]| bytes(simd, block.last_chunk()),
            #[inline(always)]
            |_, _| 0.0,
        );
    }

    /// What is to be written from blocks of `B` bytes.
    struct Blocks<'a, const B: usize, C, M> {
        dots: &'a Dots<'a>,
        rows: Range<usize>,
        out: &'a mut [f32],
        /// The codes of a block as numbers.
        codes: C,
        /// A block's minimum, from the two half-precision numbers that it begins with, of which the
        /// second may be codes.
        minimum: M,
    }

    impl<const B: usize, C, M> NullaryFnOnce for Blocks<'_, B, C, M>
    where
        C: Fn(&[u8; B]) -> [__m256; PARTS],
        M: Fn(f32, f32) -> f32,
    {
        type Output = ();

        /// Four, two or one vector at a time: their sums stay in registers.
        #[inline(always)]
        fn call(self) {
            let (simd, matrix, codes, minimum) =
                (self.dots.simd, self.dots.matrix, &self.codes, &self.minimum);
            let (vectors, blocks) = (self.dots.vectors.len(), matrix.cols() / BLOCK);
            for (row, out) in self.rows.zip(self.out.chunks_exact_mut(vectors)) {
                let (stored, _) = matrix.row_bytes(row).as_chunks::<B>();
                let mut first = 0;
                while first < vectors {
                    let x = &self.dots.vectors[first..];
                    let sums = &self.dots.sums[first * blocks..];
                    let out = &mut out[first..];
                    first += match vectors - first {
                        4.. => dots::<4, B>(simd, stored, x, sums, out, codes, minimum),
                        2.. => dots::<2, B>(simd, stored, x, sums, out, codes, minimum),
                        _ => dots::<1, B>(simd, stored, x, sums, out, codes, minimum),
                    };
                }
            }
        }
    }

    /// The dot products of one stored row with `N` vectors; returns `N`.
    #[inline(always)]
    fn dots<const N: usize, const B: usize>(
        simd: V3,
        stored: &[[u8; B]],
        x: &[&[f32]],
        sums: &[f32],
        out: &mut [f32],
        codes: &impl Fn(&[u8; B]) -> [__m256; PARTS],
        minimum: &impl Fn(f32, f32) -> f32,
    ) -> usize {
        let blocks = stored.len();
        let mut vectors = [&[][..]; N];
        let mut block_sums = [&[][..]; N];
        for i in 0..N {
            vectors[i] = &x[i].as_chunks::<BLOCK>().0[..blocks];
            block_sums[i] = &sums[i * blocks..][..blocks];
        }
        let zero: __m256 = pulp::cast([0.0f32; 8]);
        let (mut scaled, mut offsets) = ([zero; N], [[0.0f32; HEADS]; N]);
        for (start, part) in (0..).step_by(HEADS).zip(stored.chunks(HEADS)) {
            // Ahead of the codes, so that the compiler converts many at once.
            let mut heads = [0u32; HEADS];
            for (head, block) in heads.iter_mut().zip(part) {
                *head = u32::from_le_bytes([block[0], block[1], block[2], block[3]]);
            }
            let (mut scales, mut minimums) = ([0.0; HEADS], [0.0; HEADS]);
            for i in 0..HEADS {
                scales[i] = f16_of_bits(heads[i] & 0xffff);
                minimums[i] = minimum(scales[i], f16_of_bits(heads[i] >> 16));
            }
            for n in 0..N {
                let sums = &block_sums[n][start..start + part.len()];
                for ((offset, minimum), sum) in offsets[n].iter_mut().zip(minimums).zip(sums) {
                    *offset += minimum * sum;
                }
            }
            for ((i, block), scale) in (start..).zip(part).zip(scales) {
                let codes = codes(block);
                let scale = simd.avx._mm256_set1_ps(scale);
                for n in 0..N {
                    let (x, _) = vectors[n][i].as_chunks::<8>();
                    let mut sum = simd.avx._mm256_mul_ps(codes[0], pulp::cast(x[0]));
                    for k in 1..PARTS {
                        sum = simd.fma._mm256_fmadd_ps(codes[k], pulp::cast(x[k]), sum);
                    }
                    scaled[n] = simd.fma._mm256_fmadd_ps(scale, sum, scaled[n]);
                }
            }
        }
        for n in 0..N {
            let lanes: [f32; 8] = pulp::cast(scaled[n]);
            out[n] = lanes.iter().sum::<f32>() + offsets[n].iter().sum::<f32>();
        }
        N
    }

    /// Sixteen pairs of four bits, the low ones first, as numbers.
    #[inline(always)]
    fn nibbles(simd: V3, pairs: Option<&[u8; 16]>) -> [__m256; PARTS] {
        // A block is longer than its codes.
        let pairs: __m128i = pulp::cast(*pairs.unwrap_or(&[0; 16]));
        let mask = simd.sse2._mm_set1_epi8(15);
        let low = simd.sse2._mm_and_si128(pairs, mask);
        let high = simd
            .sse2
            ._mm_and_si128(simd.sse2._mm_srli_epi16::<4>(pairs), mask);
        let number = |bytes| {
            let whole = simd.avx2._mm256_cvtepu8_epi32(bytes);
            simd.avx._mm256_cvtepi32_ps(whole)
        };
        let upper = |bytes| simd.sse2._mm_srli_si128::<8>(bytes);
        [
            number(low),
            number(upper(low)),
            number(high),
            number(upper(high)),
        ]
    }

    /// Thirty-two signed bytes as numbers.
    #[inline(always)]
    fn bytes(simd: V3, bytes: Option<&[u8; 32]>) -> [__m256; PARTS] {
        // A block is longer than its codes.
        let (eights, _) = bytes.unwrap_or(&[0; 32]).as_chunks::<8>();
        let number = |i: usize| {
            let mut padded = [0u8; 16];
            padded[..8].copy_from_slice(&eights[i]);
            let whole = simd.avx2._mm256_cvtepi8_epi32(pulp::cast(padded));
            simd.avx._mm256_cvtepi32_ps(whole)
        };
        [number(0), number(1), number(2), number(3)]
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BlockFormat, QuantMatrix};
    use super::*;

    #[test]
    fn dots_are_those_of_the_unpacked_rows() {
        let (rows, cols) = (5, 32 * 21);
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        for format in [BlockFormat::Q4_0, BlockFormat::Q4_1, BlockFormat::Q8_0] {
            // No byte above 0x3b: no scale is infinite or NaN.
            let len = rows * format.row_bytes(cols).unwrap();
            let bytes: Vec<u8> = (0..len).map(|_| next() % 0x3c).collect();
            let matrix = QuantMatrix::new(rows, cols, format, bytes).unwrap();
            let values = matrix.to_f32();
            for vectors in 1..=8 {
                let x: Vec<Vec<f32>> = (0..vectors)
                    .map(|_| (0..cols).map(|_| f32::from(next()) - 127.0).collect())
                    .collect();
                let mut out = vec![f32::NAN; 4 * vectors];
                let Some(dots) = Dots::new(&matrix, x.iter().map(Vec::as_slice).collect()) else {
                    continue;
                };
                dots.write(1..5, &mut out);
                for (i, out) in out.chunks_exact(vectors).enumerate() {
                    let row = &values[(i + 1) * cols..][..cols];
                    for (x, out) in x.iter().zip(out) {
                        let terms = || row.iter().zip(x).map(|(a, b)| f64::from(a * b));
                        let size: f64 = terms().map(f64::abs).sum();
                        let error = (f64::from(*out) - terms().sum::<f64>()).abs();
                        assert!(error <= 1e-6 * size, "{format}, {vectors}: {error}");
                    }
                }
            }
        }
    }
}
