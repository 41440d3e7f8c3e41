//! Dot products with rows of blocks, without unpacking them to memory: with `q` the codes of a block,
//! `Σ (s·q + m)·x = s·Σ q·x + m·Σ x`, so scale and minimum are used once a block. `Σ q·x` is one of
//! whole numbers: those of `x` are 16 bits long, so that what rounding them to their block's scale
//! changes is about what the order of a sum in single precision does.
//!
//! For the formats whose blocks are 32 values with one scale, on processors with AVX2 and FMA.

#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::Dots;

/// Other processors have no such way.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) enum Dots {}

#[cfg(not(target_arch = "x86_64"))]
impl Dots {
    pub(crate) fn new(_: &super::QuantMatrix, _: &[&[f32]]) -> Option<Self> {
        None
    }

    pub(crate) fn write(&self, _: std::ops::Range<usize>, _: &mut [f32]) {
        match *self {}
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
                let slices: Vec<&[f32]> = x.iter().map(Vec::as_slice).collect();
                let Some(dots) = Dots::new(&matrix, &slices) else {
                    continue;
                };
                dots.write(1..5, &mut out);
                for (i, out) in out.chunks_exact(vectors).enumerate() {
                    let row = &values[(i + 1) * cols..][..cols];
                    for (x, out) in x.iter().zip(out) {
                        let terms = || row.iter().zip(x).map(|(a, b)| f64::from(a * b));
                        let size: f64 = terms().map(f64::abs).sum();
                        let error = (f64::from(*out) - terms().sum::<f64>()).abs();
                        assert!(
                            error <= 1e-5 * size,
                            "{format}, {vectors}: {error} of {size}"
                        );
                    }
                }
            }
        }
    }
}
