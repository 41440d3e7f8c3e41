//! Right-hand sides of products, unpacked part by part.

use super::super::frozen::HostMatrix;
use super::super::gemm::Mat;
use super::transpose::Transpose;
use super::with_scratch;
use std::ops::Range;

/// A matrix `[inner, width]` that can be laid out in panels.
pub(in super::super) trait Panels: Sync {
    /// Ranges of the inner dimension begin and end at multiples of this.
    fn unit(&self) -> usize;

    /// Writes rows `inner` of `columns` as panels of `panel` columns, each `[inner, panel]`; the last
    /// panel is filled up with zeros.
    fn pack(&self, inner: Range<usize>, columns: Range<usize>, panel: usize, out: &mut [f32]);
}

/// `Wᵀ` of a frozen `W`: the forward pass of a linear layer.
pub(in super::super) struct Transposed<'a>(pub(in super::super) &'a HostMatrix);

/// A frozen `W` as it is: the backward pass.
pub(in super::super) struct Straight<'a>(pub(in super::super) &'a HostMatrix);

/// A small dense matrix times a factor.
pub(in super::super) struct Scaled<'a>(pub(in super::super) Mat<'a>, pub(in super::super) f32);

impl Panels for Transposed<'_> {
    fn unit(&self) -> usize {
        self.0.block()
    }

    fn pack(&self, inner: Range<usize>, columns: Range<usize>, panel: usize, out: &mut [f32]) {
        let (depth, transpose) = (inner.len(), Transpose::new(panel));
        with_scratch(panel * depth, |rows| {
            let panels = out.chunks_exact_mut(panel * depth);
            for (start, out) in columns.clone().step_by(panel).zip(panels) {
                let range = start..(start + panel).min(columns.end);
                let (values, rest) = rows.split_at_mut(range.len() * depth);
                self.0.dequantize(range, inner.clone(), values);
                rest.fill(0.0);
                transpose.write(rows, depth, out);
            }
        });
    }
}

impl Panels for Straight<'_> {
    fn unit(&self) -> usize {
        1
    }

    fn pack(&self, inner: Range<usize>, columns: Range<usize>, panel: usize, out: &mut [f32]) {
        /// Rows that are unpacked at once.
        const ROWS: usize = 8;
        let (first, depth, width) = (inner.start, inner.len(), columns.len());
        if !width.is_multiple_of(panel) {
            let last = out.len() - panel * depth;
            out[last..].fill(0.0);
        }
        with_scratch(ROWS * width, |rows| {
            for start in inner.clone().step_by(ROWS) {
                let range = start..(start + ROWS).min(inner.end);
                let values = &mut rows[..range.len() * width];
                self.0.dequantize(range.clone(), columns.clone(), values);
                for (k, row) in range.zip(values.chunks_exact(width)) {
                    let panels = out.chunks_exact_mut(panel * depth);
                    for (values, out) in row.chunks(panel).zip(panels) {
                        copy(values, &mut out[(k - first) * panel..]);
                    }
                }
            }
        });
    }
}

/// Copies a few values to the beginning of `out`, without calling a function for it.
#[inline(always)]
fn copy(values: &[f32], out: &mut [f32]) {
    let ((eights, rest), (out_eights, _)) = (values.as_chunks::<8>(), out.as_chunks_mut::<8>());
    for (out, values) in out_eights.iter_mut().zip(eights) {
        *out = *values;
    }
    out[values.len() - rest.len()..values.len()].copy_from_slice(rest);
}

impl Panels for Scaled<'_> {
    fn unit(&self) -> usize {
        1
    }

    fn pack(&self, inner: Range<usize>, columns: Range<usize>, panel: usize, out: &mut [f32]) {
        let depth = inner.len();
        let panels = out.chunks_exact_mut(panel * depth);
        for (start, out) in columns.clone().step_by(panel).zip(panels) {
            for (k, out) in inner.clone().zip(out.chunks_exact_mut(panel)) {
                for (column, out) in (start..).zip(out) {
                    *out = match column < columns.end {
                        true => self.1 * self.0.at(k, column),
                        false => 0.0,
                    };
                }
            }
        }
    }
}
