//! With AVX2 and FMA.

use std::arch::x86_64::{__m256, __m256i};
use std::ops::Range;

use pulp::NullaryFnOnce;
use pulp::x86::V3;

use crate::quant::dequantize::f16_of_bits;
use crate::quant::{BlockFormat, QuantMatrix};

/// Values of a block.
const BLOCK: usize = 32;
/// Lanes of 16 bits in a vector.
const LANES: usize = 16;
/// Vectors that the values of two blocks fill.
const PARTS: usize = 2 * BLOCK / LANES;
/// Bytes of the rows whose half-precision numbers are converted together, ahead of their codes:
/// between the codes, one by one, they take as long as the rest. So few bytes that the processor
/// goes on fetching the next ones while these are multiplied.
const TOGETHER: usize = 4096;

/// Added to a small number, it leaves no place for a fraction and puts a two's complement last.
const WHOLE: f32 = 12_582_912.0;

/// The dot products of a matrix's rows with vectors.
pub(crate) struct Dots<'a> {
    simd: V3,
    matrix: &'a QuantMatrix,
    vectors: usize,
    /// `[vectors, pairs of blocks]`.
    x: Vec<Pair>,
    /// `[vectors, blocks, numbers that begin a block]`, each vector's a whole number of eights: how
    /// often each of those numbers counts besides the codes, so the sum of the block's values where
    /// it is the minimum.
    beside: Vec<f32>,
    write: fn(&Dots<'_>, Range<usize>, &mut [f32]),
}

/// Two blocks of a vector, each as whole numbers of its largest value's 32,767th part, in the
/// order in which a format unpacks its codes.
#[derive(Clone, Copy)]
struct Pair {
    values: [[i16; LANES]; PARTS],
    /// The first block's part, four times, and the second one's.
    scales: [f32; 8],
}

/// How a format stores 32 codes in `B` bytes after `H` half-precision numbers, of which the first
/// is the scale.
trait Format<const B: usize, const H: usize> {
    /// Which value of which of two blocks a lane of a part holds.
    fn place(part: usize, lane: usize) -> (usize, usize);

    /// The bits of each number that begins a block.
    fn head(block: &[u8; B]) -> [u32; H];

    /// The codes of two blocks.
    fn codes(simd: V3, pair: [&[u8; B]; 2]) -> [__m256i; PARTS];

    /// The sums of a part's products, so that four lanes are of the first block and four of the
    /// second.
    fn fold(simd: V3, sums: [__m256i; PARTS]) -> __m256i;

    /// How often each number that begins a block counts besides the codes.
    fn beside(sum: f32) -> [f32; H];
}

struct Q4_0;
struct Q4_1;
struct Q8_0;

impl Format<18, 1> for Q4_0 {
    fn place(part: usize, lane: usize) -> (usize, usize) {
        place_of_nibble(part, lane)
    }

    #[inline(always)]
    fn head(block: &[u8; 18]) -> [u32; 1] {
        [u32::from(u16::from_le_bytes([block[0], block[1]]))]
    }

    #[inline(always)]
    fn codes(simd: V3, pair: [&[u8; 18]; 2]) -> [__m256i; PARTS] {
        nibbles(simd, pair.map(|block| block.last_chunk()))
    }

    #[inline(always)]
    fn fold(simd: V3, sums: [__m256i; PARTS]) -> __m256i {
        sum_of_parts(simd, sums)
    }

    #[inline(always)]
    fn beside(sum: f32) -> [f32; 1] {
        [-8.0 * sum]
    }
}

impl Format<20, 2> for Q4_1 {
    fn place(part: usize, lane: usize) -> (usize, usize) {
        place_of_nibble(part, lane)
    }

    #[inline(always)]
    fn head(block: &[u8; 20]) -> [u32; 2] {
        let both = u32::from_le_bytes([block[0], block[1], block[2], block[3]]);
        [both & 0xffff, both >> 16]
    }

    #[inline(always)]
    fn codes(simd: V3, pair: [&[u8; 20]; 2]) -> [__m256i; PARTS] {
        nibbles(simd, pair.map(|block| block.last_chunk()))
    }

    #[inline(always)]
    fn fold(simd: V3, sums: [__m256i; PARTS]) -> __m256i {
        sum_of_parts(simd, sums)
    }

    #[inline(always)]
    fn beside(sum: f32) -> [f32; 2] {
        [0.0, sum]
    }
}

impl Format<34, 1> for Q8_0 {
    fn place(part: usize, lane: usize) -> (usize, usize) {
        (part / 2, part % 2 * LANES + lane)
    }

    #[inline(always)]
    fn head(block: &[u8; 34]) -> [u32; 1] {
        [u32::from(u16::from_le_bytes([block[0], block[1]]))]
    }

    #[inline(always)]
    fn codes(simd: V3, pair: [&[u8; 34]; 2]) -> [__m256i; PARTS] {
        let wide = |block: &[u8; 34], half: usize| {
            // A block is longer than its codes.
            let codes: &[u8; 32] = block.last_chunk().unwrap_or(&[0; 32]);
            let (halves, _) = codes.as_chunks::<LANES>();
            simd.avx2._mm256_cvtepi8_epi16(pulp::cast(halves[half]))
        };
        let [first, second] = pair;
        [
            wide(first, 0),
            wide(first, 1),
            wide(second, 0),
            wide(second, 1),
        ]
    }

    #[inline(always)]
    fn fold(simd: V3, sums: [__m256i; PARTS]) -> __m256i {
        let first = simd.avx2._mm256_add_epi32(sums[0], sums[1]);
        let second = simd.avx2._mm256_add_epi32(sums[2], sums[3]);
        simd.avx2._mm256_add_epi32(
            simd.avx2._mm256_permute2x128_si256::<0x20>(first, second),
            simd.avx2._mm256_permute2x128_si256::<0x31>(first, second),
        )
    }

    /// Nothing, unless a value is no number: then neither is the product.
    #[inline(always)]
    fn beside(sum: f32) -> [f32; 1] {
        [0.0 * sum]
    }
}

impl<'a> Dots<'a> {
    /// Those with vectors as long as a row, if there is such a way for this format on this
    /// processor.
    pub(crate) fn new(matrix: &'a QuantMatrix, vectors: &[&[f32]]) -> Option<Self> {
        let simd = V3::try_new()?;
        match matrix.format() {
            BlockFormat::Q4_0 => Some(Self::of::<Q4_0, 18, 1>(simd, matrix, vectors)),
            BlockFormat::Q4_1 => Some(Self::of::<Q4_1, 20, 2>(simd, matrix, vectors)),
            BlockFormat::Q8_0 => Some(Self::of::<Q8_0, 34, 1>(simd, matrix, vectors)),
            _ => None,
        }
    }

    fn of<F: Format<B, H>, const B: usize, const H: usize>(
        simd: V3,
        matrix: &'a QuantMatrix,
        vectors: &[&[f32]],
    ) -> Self {
        let mut beside = Vec::new();
        for x in vectors {
            let sums = x.as_chunks::<BLOCK>().0.iter().map(|x| x.iter().sum());
            beside.extend(sums.flat_map(F::beside));
            beside.resize(beside.len().next_multiple_of(8), 0.0);
        }
        let pairs = vectors.iter().flat_map(|x| x.chunks(2 * BLOCK));
        let x = pairs.map(|pair| Pair::of::<F, B, H>(simd, pair)).collect();
        Self {
            simd,
            matrix,
            vectors: vectors.len(),
            x,
            beside,
            write: |dots, rows, out| {
                let format = std::marker::PhantomData::<F>;
                dots.simd.vectorize(Rows::<F, B, H> {
                    format,
                    dots,
                    rows,
                    out,
                });
            },
        }
    }

    /// Writes those of some rows to `out`, `[rows.len(), vectors]`.
    ///
    /// # Panics
    ///
    /// If there are no such rows, or the vectors are shorter than they.
    pub(crate) fn write(&self, rows: Range<usize>, out: &mut [f32]) {
        (self.write)(self, rows, out);
    }
}

impl Pair {
    /// Of one or two blocks of values.
    fn of<F: Format<B, H>, const B: usize, const H: usize>(simd: V3, values: &[f32]) -> Self {
        let mut padded = [0.0; 2 * BLOCK];
        padded[..values.len()].copy_from_slice(values);
        let (mut whole, mut scales) = ([0; 2 * BLOCK], [0.0; 8]);
        simd.vectorize(
            #[inline(always)]
            || {
                let blocks = padded.as_chunks::<BLOCK>().0.iter();
                let whole = whole.as_chunks_mut::<BLOCK>().0.iter_mut();
                for ((block, whole), scales) in blocks.zip(whole).zip(scales.chunks_mut(4)) {
                    let largest = block.iter().fold(0.0, |a: f32, b| a.max(b.abs()));
                    let inverse = if largest > 0.0 {
                        32767.0 / largest
                    } else {
                        0.0
                    };
                    for (whole, value) in whole.iter_mut().zip(block) {
                        *whole = (value * inverse + WHOLE).to_bits() as i16;
                    }
                    scales.fill(largest / 32767.0);
                }
            },
        );
        let values = std::array::from_fn(|part| {
            std::array::from_fn(|lane| {
                let (block, value) = F::place(part, lane);
                whole[block * BLOCK + value]
            })
        });
        Self { values, scales }
    }
}

/// Rows to multiply.
struct Rows<'a, F, const B: usize, const H: usize> {
    format: std::marker::PhantomData<F>,
    dots: &'a Dots<'a>,
    rows: Range<usize>,
    out: &'a mut [f32],
}

impl<F: Format<B, H>, const B: usize, const H: usize> NullaryFnOnce for Rows<'_, F, B, H> {
    type Output = ();

    /// Four, two or one vector at a time: their sums stay in registers.
    #[inline(always)]
    fn call(self) {
        let dots = self.dots;
        let (blocks, vectors) = (dots.matrix.cols() / BLOCK, dots.vectors);
        let (in_row, pairs) = ((blocks * H).next_multiple_of(8), blocks.div_ceil(2));
        let together = (TOGETHER / (blocks * B).max(1)).max(1);
        let mut heads = vec![0.0; together.min(self.rows.len()) * in_row];
        let starts = self.rows.clone().step_by(together);
        for (start, out) in starts.zip(self.out.chunks_mut(together * vectors)) {
            let rows = start..(start + together).min(self.rows.end);
            let stored = rows.map(|row| dots.matrix.row_bytes(row).as_chunks::<B>().0);
            for (stored, heads) in stored.clone().zip(heads.chunks_exact_mut(in_row)) {
                gather_heads::<F, B, H>(stored, heads);
            }
            for head in &mut heads {
                *head = f16_of_bits(head.to_bits());
            }
            let rows = stored.zip(heads.chunks_exact(in_row));
            for ((stored, heads), out) in rows.zip(out.chunks_exact_mut(vectors)) {
                let mut first = 0;
                while first < vectors {
                    let x = &dots.x[first * pairs..];
                    let beside = &dots.beside[first * in_row..];
                    let (simd, out) = (dots.simd, &mut out[first..]);
                    first += match vectors - first {
                        4.. => row::<F, B, H, 4>(simd, stored, heads, x, beside, out),
                        2.. => row::<F, B, H, 2>(simd, stored, heads, x, beside, out),
                        _ => row::<F, B, H, 1>(simd, stored, heads, x, beside, out),
                    };
                }
            }
        }
    }
}

/// The bits of the numbers that blocks begin with.
#[inline(always)]
fn gather_heads<F: Format<B, H>, const B: usize, const H: usize>(
    stored: &[[u8; B]],
    heads: &mut [f32],
) {
    let (heads, _) = heads.as_chunks_mut::<H>();
    for (head, block) in heads.iter_mut().zip(stored) {
        *head = F::head(block).map(f32::from_bits);
    }
}

/// The dot products of a stored row, given the numbers that its blocks begin with, with `N`
/// vectors; returns `N`.
#[inline(always)]
fn row<F: Format<B, H>, const B: usize, const H: usize, const N: usize>(
    simd: V3,
    stored: &[[u8; B]],
    heads: &[f32],
    x: &[Pair],
    beside: &[f32],
    out: &mut [f32],
) -> usize {
    let zero: __m256 = pulp::cast([0.0f32; 8]);
    let mut sums = [zero; N];
    let (pairs, last) = stored.as_chunks::<2>();
    let mut x_of = [&[][..]; N];
    for (n, x_of) in x_of.iter_mut().enumerate() {
        *x_of = &x[n * stored.len().div_ceil(2)..][..stored.len().div_ceil(2)];
    }
    let heads_of_blocks = &heads.as_chunks::<H>().0[..stored.len()];
    let (heads_of_pairs, last_head) = heads_of_blocks.as_chunks::<2>();
    for (i, ([a, b], heads)) in pairs.iter().zip(heads_of_pairs).enumerate() {
        let x = std::array::from_fn(|n| &x_of[n][i]);
        add_pair::<F, B, H, N>(simd, [a, b], [heads[0][0], heads[1][0]], x, &mut sums);
    }
    if let ([block], [head]) = (last, last_head) {
        let x = std::array::from_fn(|n| &x_of[n][pairs.len()]);
        add_pair::<F, B, H, N>(simd, [block, &[0; B]], [head[0], 0.0], x, &mut sums);
    }
    let heads = heads.as_chunks::<8>().0;
    for (n, sum) in sums.iter_mut().enumerate() {
        let beside = beside.as_chunks::<8>().0;
        for (heads, beside) in heads.iter().zip(&beside[n * heads.len()..]) {
            *sum = simd
                .fma
                ._mm256_fmadd_ps(pulp::cast(*heads), pulp::cast(*beside), *sum);
        }
        out[n] = sum_of_lanes(*sum);
    }
    N
}

/// Adds the products of two blocks, whose scales are given, with two of each vector.
#[inline(always)]
fn add_pair<F: Format<B, H>, const B: usize, const H: usize, const N: usize>(
    simd: V3,
    pair: [&[u8; B]; 2],
    [a, b]: [f32; 2],
    x: [&Pair; N],
    sums: &mut [__m256; N],
) {
    let codes = F::codes(simd, pair);
    let scales: __m256 = pulp::cast([a, a, a, a, b, b, b, b]);
    for (x, sum) in x.into_iter().zip(sums) {
        let mut products = codes;
        for (product, values) in products.iter_mut().zip(x.values) {
            *product = simd.avx2._mm256_madd_epi16(*product, pulp::cast(values));
        }
        let product = simd.avx._mm256_cvtepi32_ps(F::fold(simd, products));
        let scales = simd.avx._mm256_mul_ps(scales, pulp::cast(x.scales));
        *sum = simd.fma._mm256_fmadd_ps(scales, product, *sum);
    }
}

#[inline(always)]
fn sum_of_lanes(lanes: __m256) -> f32 {
    let [a, b]: [[f32; 4]; 2] = pulp::cast(lanes);
    let fours: [f32; 4] = std::array::from_fn(|i| a[i] + b[i]);
    (fours[0] + fours[2]) + (fours[1] + fours[3])
}

/// Four bits of each 16 at a time, of two blocks side by side.
#[inline(always)]
fn nibbles(simd: V3, [a, b]: [Option<&[u8; 16]>; 2]) -> [__m256i; PARTS] {
    // A block is longer than its codes.
    let pairs = [*a.unwrap_or(&[0; 16]), *b.unwrap_or(&[0; 16])];
    let bits: __m256i = pulp::cast(pairs);
    let mask = simd.avx._mm256_set1_epi16(15);
    let low = |bits| simd.avx2._mm256_and_si256(bits, mask);
    [
        low(bits),
        low(simd.avx2._mm256_srli_epi16::<4>(bits)),
        low(simd.avx2._mm256_srli_epi16::<8>(bits)),
        simd.avx2._mm256_srli_epi16::<12>(bits),
    ]
}

/// Where [`nibbles`] puts what: a byte has value `i` below value `i + 16`.
fn place_of_nibble(part: usize, lane: usize) -> (usize, usize) {
    let byte = 2 * (lane % 8) + part / 2;
    (lane / 8, byte + 16 * (part % 2))
}

#[inline(always)]
fn sum_of_parts(simd: V3, parts: [__m256i; PARTS]) -> __m256i {
    simd.avx2._mm256_add_epi32(
        simd.avx2._mm256_add_epi32(parts[0], parts[1]),
        simd.avx2._mm256_add_epi32(parts[2], parts[3]),
    )
}
