//! The innermost loop: a tile of `c` in registers, one row of a panel at a time.

use super::super::gemm::{Mat, Write};
use pulp::{Simd, WithSimd};

/// Vectors side by side in a tile.
const VECTORS: usize = 2;
/// Columns of a panel with the widest vectors of this processor.
pub(super) fn panel_width() -> usize {
    struct Width;
    impl WithSimd for Width {
        type Output = usize;
        fn with_simd<S: Simd>(self, _: S) -> usize {
            VECTORS * S::F32_LANES
        }
    }
    pulp::Arch::new().dispatch(Width)
}

/// Some rows of `c (+)= a · b`.
pub(super) struct Strip<'a> {
    /// `[rows, inner]`.
    pub(super) a: Mat<'a>,
    /// Panels of [`panel_width`] columns, each `[inner, panel_width]`.
    pub(super) panels: &'a [f32],
    /// From the first value of the first row on.
    pub(super) c: &'a mut [f32],
    pub(super) stride: usize,
    pub(super) width: usize,
    pub(super) write: Write,
}

impl WithSimd for Strip<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let mut row = 0;
        while row < self.a.rows() {
            // Accumulators must leave registers for a row of the panel and a value of `a`.
            row += match (S::REGISTER_COUNT, self.a.rows() - row) {
                (32.., 12..) => self.tiles::<S, 12>(simd, row),
                (_, 6..) => self.tiles::<S, 6>(simd, row),
                (_, 4..) => self.tiles::<S, 4>(simd, row),
                (_, 2..) => self.tiles::<S, 2>(simd, row),
                _ => self.tiles::<S, 1>(simd, row),
            };
        }
    }
}

impl Strip<'_> {
    /// `ROWS` rows from `row` on, tile by tile; returns how many rows that were.
    #[inline(always)]
    fn tiles<S: Simd, const ROWS: usize>(&mut self, simd: S, row: usize) -> usize {
        let (depth, panel) = (self.a.cols(), VECTORS * S::F32_LANES);
        let mut a = [&[][..]; ROWS];
        for (i, a) in a.iter_mut().enumerate() {
            *a = self.a.row(row + i);
        }
        for start in (0..self.width).step_by(panel) {
            let tile = multiply::<S, ROWS>(simd, a, &self.panels[start * depth..][..panel * depth]);
            let width = panel.min(self.width - start);
            for (i, tile) in tile.iter().enumerate() {
                let c = &mut self.c[(row + i) * self.stride + start..][..width];
                put(simd, c, tile, self.write);
            }
        }
        ROWS
    }
}

/// The product of `ROWS` rows of `a` with one panel.
#[inline(always)]
fn multiply<S: Simd, const ROWS: usize>(
    simd: S,
    a: [&[f32]; ROWS],
    panel: &[f32],
) -> [[S::f32s; VECTORS]; ROWS] {
    let (b, _) = S::as_simd_f32s(panel);
    let (b, _) = b.as_chunks::<VECTORS>();
    let mut sums = [[simd.splat_f32s(0.0); VECTORS]; ROWS];
    for (k, b) in b.iter().enumerate() {
        for (sums, a) in sums.iter_mut().zip(a) {
            let a = simd.splat_f32s(a[k]);
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum = simd.mul_add_e_f32s(a, *b, *sum);
            }
        }
    }
    sums
}

/// Writes or adds one row of a tile; a tile at the right edge is wider than `c`.
#[inline(always)]
fn put<S: Simd>(simd: S, c: &mut [f32], sums: &[S::f32s; VECTORS], write: Write) {
    if c.len() == VECTORS * S::F32_LANES {
        let (c, _) = S::as_mut_simd_f32s(c);
        for (c, sum) in c.iter_mut().zip(sums) {
            *c = match write {
                Write::Set => *sum,
                Write::Add => simd.add_f32s(*c, *sum),
            };
        }
    } else {
        for (c, sum) in c.iter_mut().zip(bytemuck::cast_slice::<_, f32>(sums)) {
            *c = match write {
                Write::Set => *sum,
                Write::Add => *c + sum,
            };
        }
    }
}
