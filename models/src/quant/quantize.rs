//! `f32` to ggml's simple blocks, byte for byte as llama.cpp's reference does.

use half::f16;

use super::{BlockFormat, QuantError};

/// Appends `values`, stored as `format`, to `out`.
///
/// Writes F32, F16, BF16, Q8_0, Q4_0 and Q4_1.
///
/// # Errors
///
/// [`QuantError::PartialBlock`] if `values` is no whole number of blocks,
/// [`QuantError::NoQuantizer`] for the other formats.
pub fn quantize_row(
    format: BlockFormat,
    values: &[f32],
    out: &mut Vec<u8>,
) -> Result<(), QuantError> {
    let bytes = format
        .row_bytes(values.len())
        .ok_or(QuantError::PartialBlock {
            format,
            cols: values.len(),
            block: format.block_size(),
        })?;
    out.reserve(bytes);
    match format {
        BlockFormat::F32 => out.extend(values.iter().flat_map(|v| v.to_le_bytes())),
        BlockFormat::F16 => out.extend(values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes())),
        BlockFormat::BF16 => {
            out.extend(
                values
                    .iter()
                    .flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()),
            );
        }
        BlockFormat::Q8_0 => each_block(values, |block| q8_0(block, out)),
        BlockFormat::Q4_0 => each_block(values, |block| q4_0(block, out)),
        BlockFormat::Q4_1 => each_block(values, |block| q4_1(block, out)),
        _ => return Err(QuantError::NoQuantizer { format }),
    }
    Ok(())
}

fn each_block(values: &[f32], mut block: impl FnMut(&[f32; 32])) {
    values.as_chunks::<32>().0.iter().for_each(&mut block);
}

fn q8_0(block: &[f32; 32], out: &mut Vec<u8>) {
    let scale = block.iter().fold(0.0f32, |max, v| max.max(v.abs())) / 127.0;
    let inverse = inverse_or_zero(scale);
    out.extend(f16::from_f32(scale).to_le_bytes());
    out.extend(
        block
            .iter()
            .map(|v| ((v * inverse).round() as i8).cast_unsigned()),
    );
}

fn q4_0(block: &[f32; 32], out: &mut Vec<u8>) {
    // The value of largest magnitude, sign and all, becomes -8: the first one on a tie.
    let extreme = block
        .iter()
        .fold(0.0f32, |max, &v| if v.abs() > max.abs() { v } else { max });
    let scale = extreme / -8.0;
    let inverse = inverse_or_zero(scale);
    out.extend(f16::from_f32(scale).to_le_bytes());
    // Product and sum in f64: the reference rounds once, as a fused multiply-add.
    pack(block, out, |v| {
        f64::from(v) * f64::from(inverse) + f64::from(8.5f32)
    });
}

fn q4_1(block: &[f32; 32], out: &mut Vec<u8>) {
    let min = block.iter().copied().fold(f32::INFINITY, f32::min);
    let max = block.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let scale = (max - min) / 15.0;
    let inverse = inverse_or_zero(scale);
    out.extend(f16::from_f32(scale).to_le_bytes());
    out.extend(f16::from_f32(min).to_le_bytes());
    pack(block, out, |v| f64::from((v - min) * inverse + 0.5));
}

/// Packs four bits of each value: the first half of the block in the low nibbles.
fn pack(block: &[f32; 32], out: &mut Vec<u8>, code: impl Fn(f32) -> f64) {
    let code = |v: f32| (code(v) as u8).min(15);
    let (low, high) = block.split_at(16);
    out.extend(
        low.iter()
            .zip(high)
            .map(|(&low, &high)| code(low) | (code(high) << 4)),
    );
}

fn inverse_or_zero(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

#[cfg(test)]
mod tests {
    use super::super::dequantize_row;
    use super::*;

    #[test]
    fn what_is_written_is_read_back_within_half_a_step() {
        let values: Vec<f32> = (0..64)
            .map(|i| ((i * 37) % 64) as f32 / 32.0 - 1.0)
            .collect();
        for (format, tolerance) in [
            (BlockFormat::F32, 0.0),
            (BlockFormat::F16, 0.0),
            (BlockFormat::BF16, 0.004),
            (BlockFormat::Q8_0, 0.005),
            (BlockFormat::Q4_0, 0.13),
            (BlockFormat::Q4_1, 0.07),
        ] {
            let mut bytes = Vec::new();
            quantize_row(format, &values, &mut bytes).unwrap();
            let mut back = vec![0.0; values.len()];
            dequantize_row(format, &bytes, &mut back).unwrap();
            for (a, b) in values.iter().zip(&back) {
                assert!((a - b).abs() <= tolerance, "{format}: {a} became {b}");
            }
        }
    }

    #[test]
    fn k_blocks_are_read_only() {
        assert_eq!(
            quantize_row(BlockFormat::Q4K, &[0.0; 256], &mut Vec::new()),
            Err(QuantError::NoQuantizer {
                format: BlockFormat::Q4K
            })
        );
    }
}
