//! Blocks to `f32`, a row at a time.
//!
//! Each format is one straight loop over blocks with fixed-size arrays inside, so that
//! the compiler turns it into vector code; `pulp` compiles the loop once more for the
//! wider vectors that the processor turns out to have. Products and sums are rounded one by
//! one, in the order of ggml's reference, so the values equal its bit for bit.

use half::slice::HalfFloatSliceExt;

use super::{BlockFormat, QuantError};

/// Writes the values of `bytes`, stored as `format`, to `out`.
///
/// # Errors
///
/// [`QuantError::PartialBlock`] if `out` is no whole number of blocks,
/// [`QuantError::WrongLength`] if `bytes` holds more or fewer.
pub fn dequantize_row(
    format: BlockFormat,
    bytes: &[u8],
    out: &mut [f32],
) -> Result<(), QuantError> {
    let expected = format
        .row_bytes(out.len())
        .ok_or(QuantError::PartialBlock {
            format,
            cols: out.len(),
            block: format.block_size(),
        })?;
    if bytes.len() != expected {
        return Err(QuantError::WrongLength {
            format,
            rows: 1,
            cols: out.len(),
            expected,
            got: bytes.len(),
        });
    }
    pulp::Arch::new().dispatch(
        #[inline(always)]
        || unpack(format, bytes, out),
    );
    Ok(())
}

/// The values of whole blocks that fit `out`, for callers that have checked that and are compiled
/// for the processor's vectors.
#[expect(
    clippy::redundant_closure,
    reason = "a closure is compiled for its caller's vectors, a function's name is called"
)]
#[inline(always)]
pub(super) fn unpack(format: BlockFormat, bytes: &[u8], out: &mut [f32]) {
    match format {
        BlockFormat::F32 => plain(bytes, out, |b: [u8; 4]| f32::from_le_bytes(b)),
        BlockFormat::F16 => halves(bytes, out),
        BlockFormat::BF16 => plain(bytes, out, bf16),
        BlockFormat::Q8_0 => scaled_blocks(bytes, out, |b, h, o| q8_0(b, h, o)),
        BlockFormat::Q4_0 => scaled_blocks(bytes, out, |b, h, o| q4_0(b, h, o)),
        BlockFormat::Q4_1 => scaled_blocks(bytes, out, |b, h, o| q4_1(b, h, o)),
        BlockFormat::Q5_0 => scaled_blocks(bytes, out, |b, h, o| q5_0(b, h, o)),
        BlockFormat::Q5_1 => scaled_blocks(bytes, out, |b, h, o| q5_1(b, h, o)),
        BlockFormat::Q4K => blocks(bytes, out, |b, o| q4_k(b, o)),
        BlockFormat::Q5K => blocks(bytes, out, |b, o| q5_k(b, o)),
        BlockFormat::Q6K => blocks(bytes, out, |b, o| q6_k(b, o)),
    }
}

/// Half precision to single, for every bit pattern, without a branch.
///
/// A product moves the exponent by 112, which is right for subnormal numbers too; that of infinity
/// and NaN becomes the largest.
#[inline(always)]
pub(super) fn f16(bytes: [u8; 2]) -> f32 {
    f16_of_bits(u32::from(u16::from_le_bytes(bytes)))
}

/// As [`f16`], of the lower 16 bits where the others are zero.
#[inline(always)]
pub(super) fn f16_of_bits(half: u32) -> f32 {
    const REBIAS: f32 = f32::from_bits((127 + 112) << 23);
    let magnitude = half & 0x7fff;
    let special = if magnitude > 0x7bff { 0xff << 23 } else { 0 };
    let finite = f32::from_bits(magnitude << 13) * REBIAS;
    f32::from_bits(finite.to_bits() | special | ((half & 0x8000) << 16))
}

/// The processor's own conversion where it has one; 64 values at a time, since the bytes
/// are not aligned.
fn halves(bytes: &[u8], out: &mut [f32]) {
    let mut aligned = [half::f16::ZERO; 64];
    for (bytes, out) in bytes.chunks(128).zip(out.chunks_mut(64)) {
        let aligned = &mut aligned[..out.len()];
        for (half, bytes) in aligned.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *half = half::f16::from_le_bytes(*bytes);
        }
        aligned.convert_to_f32_slice(out);
    }
}

#[inline(always)]
fn bf16(bytes: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
}

#[inline(always)]
fn plain<const N: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn([u8; N]) -> f32) {
    let (values, _) = bytes.as_chunks::<N>();
    for (out, bytes) in out.iter_mut().zip(values) {
        *out = value(*bytes);
    }
}

#[inline(always)]
fn blocks<const B: usize, const N: usize>(
    bytes: &[u8],
    out: &mut [f32],
    block: impl Fn(&[u8; B], &mut [f32; N]),
) {
    let (sources, _) = bytes.as_chunks::<B>();
    let (targets, _) = out.as_chunks_mut::<N>();
    for (source, target) in sources.iter().zip(targets) {
        block(source, target);
    }
}

/// Blocks that begin with `H` half-precision numbers: scale, or scale and minimum.
///
/// These are converted for eight blocks at once, ahead of their codes; one by one, between
/// the codes, they keep the compiler from vectorising, and the loop is half as fast.
#[inline(always)]
fn scaled_blocks<const B: usize, const N: usize, const H: usize>(
    bytes: &[u8],
    out: &mut [f32],
    block: impl Fn(&[u8; B], [f32; H], &mut [f32; N]),
) {
    let (sources, _) = bytes.as_chunks::<B>();
    let (targets, _) = out.as_chunks_mut::<N>();
    for (sources, targets) in sources.chunks(8).zip(targets.chunks_mut(8)) {
        let mut heads = [[0.0; H]; 8];
        for (head, source) in heads.iter_mut().zip(sources) {
            *head = std::array::from_fn(|i| half_at(source, 2 * i));
        }
        for ((source, target), head) in sources.iter().zip(targets).zip(heads) {
            block(source, head, target);
        }
    }
}

#[inline(always)]
fn half_at(block: &[u8], at: usize) -> f32 {
    f16([block[at], block[at + 1]])
}

#[inline(always)]
fn q8_0(block: &[u8; 34], [scale]: [f32; 1], out: &mut [f32; 32]) {
    for (i, out) in out.iter_mut().enumerate() {
        *out = f32::from(block[2 + i].cast_signed()) * scale;
    }
}

#[inline(always)]
fn q4_0(block: &[u8; 18], [scale]: [f32; 1], out: &mut [f32; 32]) {
    let (low, high) = out.split_at_mut(16);
    for i in 0..16 {
        low[i] = (f32::from(block[2 + i] & 15) - 8.0) * scale;
        high[i] = (f32::from(block[2 + i] >> 4) - 8.0) * scale;
    }
}

#[inline(always)]
fn q4_1(block: &[u8; 20], [scale, min]: [f32; 2], out: &mut [f32; 32]) {
    let (low, high) = out.split_at_mut(16);
    for i in 0..16 {
        low[i] = f32::from(block[4 + i] & 15) * scale + min;
        high[i] = f32::from(block[4 + i] >> 4) * scale + min;
    }
}

/// The fifth bits of 32 values, moved to where they count 16.
#[inline(always)]
fn fifth(high: u32, i: usize) -> i32 {
    (((high >> i) & 1) << 4).cast_signed()
}

#[inline(always)]
fn q5_0(block: &[u8; 22], [scale]: [f32; 1], out: &mut [f32; 32]) {
    let high = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    let (first, second) = out.split_at_mut(16);
    for i in 0..16 {
        let pair = i32::from(block[6 + i]);
        first[i] = ((pair & 15 | fifth(high, i)) - 16) as f32 * scale;
        second[i] = ((pair >> 4 | fifth(high, i + 16)) - 16) as f32 * scale;
    }
}

#[inline(always)]
fn q5_1(block: &[u8; 24], [scale, min]: [f32; 2], out: &mut [f32; 32]) {
    let high = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
    let (first, second) = out.split_at_mut(16);
    for i in 0..16 {
        let pair = i32::from(block[8 + i]);
        first[i] = (pair & 15 | fifth(high, i)) as f32 * scale + min;
        second[i] = (pair >> 4 | fifth(high, i + 16)) as f32 * scale + min;
    }
}

/// Scale and minimum of group `group` of 8, six bits each, packed in 12 bytes.
#[inline(always)]
fn scale_and_min(packed: &[u8], group: usize) -> (f32, f32) {
    let (scale, min) = if group < 4 {
        (packed[group] & 63, packed[group + 4] & 63)
    } else {
        let low = packed[group + 4];
        (
            (low & 15) | ((packed[group - 4] >> 6) << 4),
            (low >> 4) | ((packed[group] >> 6) << 4),
        )
    };
    (f32::from(scale), f32::from(min))
}

#[inline(always)]
fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let scales = &block[4..16];
    for pair in 0..4 {
        let (scale0, min0) = scale_and_min(scales, 2 * pair);
        let (scale1, min1) = scale_and_min(scales, 2 * pair + 1);
        let (scale0, min0, scale1, min1) = (d * scale0, dmin * min0, d * scale1, dmin * min1);
        let quants = &block[16 + 32 * pair..][..32];
        let (low, high) = out[64 * pair..][..64].split_at_mut(32);
        for i in 0..32 {
            low[i] = scale0 * f32::from(quants[i] & 15) - min0;
            high[i] = scale1 * f32::from(quants[i] >> 4) - min1;
        }
    }
}

#[inline(always)]
fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let (scales, fifths) = (&block[4..16], &block[16..48]);
    for pair in 0..4 {
        let (scale0, min0) = scale_and_min(scales, 2 * pair);
        let (scale1, min1) = scale_and_min(scales, 2 * pair + 1);
        let (scale0, min0, scale1, min1) = (d * scale0, dmin * min0, d * scale1, dmin * min1);
        let quants = &block[48 + 32 * pair..][..32];
        let (low, high) = out[64 * pair..][..64].split_at_mut(32);
        for i in 0..32 {
            let fifth = fifths[i] >> (2 * pair);
            low[i] = scale0 * f32::from(quants[i] & 15 | (fifth & 1) << 4) - min0;
            high[i] = scale1 * f32::from(quants[i] >> 4 | (fifth >> 1 & 1) << 4) - min1;
        }
    }
}

#[inline(always)]
fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let d = half_at(block, 208);
    for half in 0..2 {
        let low = &block[64 * half..][..64];
        let high = &block[128 + 32 * half..][..32];
        let scales = &block[192 + 8 * half..][..8];
        let out = &mut out[128 * half..][..128];
        for group in 0..2 {
            let scale = |quarter: usize| d * f32::from(scales[group + 2 * quarter].cast_signed());
            let scale = [scale(0), scale(1), scale(2), scale(3)];
            for i in 16 * group..16 * group + 16 {
                let (a, b, top) = (low[i], low[i + 32], high[i]);
                let six = |nibble: u8, bits: u8| (i32::from(nibble | (bits & 3) << 4) - 32) as f32;
                out[i] = scale[0] * six(a & 15, top);
                out[i + 32] = scale[1] * six(b & 15, top >> 2);
                out[i + 64] = scale[2] * six(a >> 4, top >> 4);
                out[i + 96] = scale[3] * six(b >> 4, top >> 6);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_precision_number_is_exact() {
        for bits in 0..=u16::MAX {
            let ours = f16(bits.to_le_bytes());
            let expected = half::f16::from_bits(bits).to_f32();
            assert!(
                ours.to_bits() == expected.to_bits() || (ours.is_nan() && expected.is_nan()),
                "{bits:#06x}: {ours} instead of {expected}"
            );
        }
    }

    #[test]
    fn five_bit_blocks_read_their_high_bits() {
        let mut block = [0u8; 22];
        block[..2].copy_from_slice(&half::f16::from_f32(0.5).to_le_bytes());
        block[2..6].copy_from_slice(&0x8000_0001u32.to_le_bytes());
        block[6] = 0x03;
        block[21] = 0xf0;
        let mut out = [0.0; 32];
        dequantize_row(BlockFormat::Q5_0, &block, &mut out).unwrap();
        assert_eq!(out[0], (16.0 + 3.0 - 16.0) * 0.5);
        assert_eq!(out[1], -8.0);
        assert_eq!(out[31], (16.0 + 15.0 - 16.0) * 0.5);
    }

    #[test]
    fn wrong_sizes_are_refused() {
        let mut out = [0.0; 33];
        assert!(matches!(
            dequantize_row(BlockFormat::Q4_0, &[0; 18], &mut out),
            Err(QuantError::PartialBlock { cols: 33, .. })
        ));
        assert!(matches!(
            dequantize_row(BlockFormat::Q4_0, &[0; 17], &mut out[..32]),
            Err(QuantError::WrongLength {
                expected: 18,
                got: 17,
                ..
            })
        ));
    }
}
