//! Turning rows of weights into panels.

/// Side of the squares that are turned in registers.
const SIDE: usize = 8;

/// How rows become panels of so many columns.
pub(super) struct Transpose {
    panel: usize,
    /// Turns squares, where this processor can and panels are made of them.
    #[cfg(target_arch = "x86_64")]
    simd: Option<pulp::x86::V3>,
}

impl Transpose {
    pub(super) fn new(panel: usize) -> Self {
        Self {
            panel,
            #[cfg(target_arch = "x86_64")]
            simd: pulp::x86::V3::try_new().filter(|_| panel.is_multiple_of(SIDE)),
        }
    }

    /// Writes the transpose of `rows` `[panel, depth]` to `out` `[depth, panel]`.
    pub(super) fn write(&self, rows: &[f32], depth: usize, out: &mut [f32]) {
        let done = self.in_squares(rows, depth, out);
        for (k, out) in out.chunks_exact_mut(self.panel).enumerate().skip(done) {
            for (i, out) in out.iter_mut().enumerate() {
                *out = rows[i * depth + k];
            }
        }
    }

    /// Turns as many rows of `out` as are whole squares; returns how many. Left to itself, the
    /// compiler moves value by value, which takes eight times as long.
    #[cfg(target_arch = "x86_64")]
    fn in_squares(&self, rows: &[f32], depth: usize, out: &mut [f32]) -> usize {
        let Some(simd) = self.simd else { return 0 };
        simd.vectorize(Squares {
            simd,
            rows,
            depth,
            out,
            panel: self.panel,
        })
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn in_squares(&self, _: &[f32], _: usize, _: &mut [f32]) -> usize {
        0
    }
}

#[cfg(target_arch = "x86_64")]
struct Squares<'a> {
    simd: pulp::x86::V3,
    rows: &'a [f32],
    depth: usize,
    out: &'a mut [f32],
    panel: usize,
}

#[cfg(target_arch = "x86_64")]
impl pulp::NullaryFnOnce for Squares<'_> {
    type Output = usize;

    #[inline(always)]
    fn call(self) -> usize {
        let (depth, panel) = (self.depth, self.panel);
        let whole = depth - depth % SIDE;
        for (eight, rows) in self.rows.chunks_exact(SIDE * depth).enumerate() {
            for k in (0..whole).step_by(SIDE) {
                let out = &mut self.out[k * panel + eight * SIDE..];
                turn(self.simd, &rows[k..], depth, out, panel);
            }
        }
        whole
    }
}

/// Turns one square: pairs of values, pairs of pairs, then halves change places. Rows begin `depth`
/// and `panel` values apart.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn turn(simd: pulp::x86::V3, rows: &[f32], depth: usize, out: &mut [f32], panel: usize) {
    let avx = simd.avx;
    let mut square = [pulp::cast([0.0f32; SIDE]); SIDE];
    for (i, row) in square.iter_mut().enumerate() {
        let mut values = [0.0f32; SIDE];
        values.copy_from_slice(&rows[i * depth..][..SIDE]);
        *row = pulp::cast(values);
    }
    let mut pairs = square;
    for i in (0..SIDE).step_by(2) {
        let (a, b) = (square[i], square[i + 1]);
        pairs[i] = avx._mm256_unpacklo_ps(a, b);
        pairs[i + 1] = avx._mm256_unpackhi_ps(a, b);
    }
    let mut fours = pairs;
    for half in [0, 4] {
        for i in [0, 1] {
            let (a, b) = (pairs[half + i], pairs[half + i + 2]);
            fours[half + 2 * i] = avx._mm256_shuffle_ps::<0b0100_0100>(a, b);
            fours[half + 2 * i + 1] = avx._mm256_shuffle_ps::<0b1110_1110>(a, b);
        }
    }
    for i in 0..SIDE / 2 {
        let (a, b) = (fours[i], fours[i + SIDE / 2]);
        let upper: [f32; SIDE] = pulp::cast(avx._mm256_permute2f128_ps::<0x20>(a, b));
        let lower: [f32; SIDE] = pulp::cast(avx._mm256_permute2f128_ps::<0x31>(a, b));
        out[i * panel..][..SIDE].copy_from_slice(&upper);
        out[(i + SIDE / 2) * panel..][..SIDE].copy_from_slice(&lower);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_changes_its_place() {
        for (panel, depth) in [(16, 288), (16, 21), (8, 8), (2, 5), (24, 3)] {
            let rows: Vec<f32> = (0..panel * depth).map(|i| i as f32).collect();
            let mut out = vec![0.0; rows.len()];
            Transpose::new(panel).write(&rows, depth, &mut out);
            for k in 0..depth {
                for i in 0..panel {
                    assert_eq!(out[k * panel + i], rows[i * depth + k], "{panel}, {depth}");
                }
            }
        }
    }
}
