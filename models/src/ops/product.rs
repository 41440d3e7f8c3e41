//! Products with frozen weights on the CPU: `c = Σ a·b` over pairs of a dense `a` and a `b` that is
//! unpacked from its stored form straight into the panels that the innermost loop reads. No dense
//! copy of a weight ever exists, and a quantized base costs less to read than a dense one.
//!
//! The blocking follows Goto and van de Geijn 2008 (ACM TOMS 34(3), 12): a few rows of `a` stay in the
//! first-level cache while panel after panel of `b` passes by from the second, and a tile of `c` stays
//! in registers.

mod few;
mod panels;
mod tile;
mod transpose;

pub(super) use few::few_rows;
pub(super) use panels::{Panels, Scaled, Straight, Transposed};

use super::gemm::{Mat, Write};
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;
use tile::{Strip, panel_width};

/// Columns of `b` that one task unpacks: a whole number of the blocks of every format.
const GROUP: usize = 256;
/// The longest inner range of one pass: a few rows of `a` and a panel of `b` then fit into a
/// first-level cache of 32 KiB.
const DEPTH: usize = 320;
/// Rows of `c` that one task makes: enough to be worth a task, few enough to share a product out.
const STRIP_ROWS: (usize, usize) = (48, 144);
/// A multiple of the rows of every tile.
const TILE_ROWS: usize = 12;
/// Values of a cache line.
const LINE: usize = 16;

/// `a · b`, one of the products that are summed.
#[derive(Clone, Copy)]
pub(super) struct Term<'a> {
    /// Dense, `[rows, inner]`.
    pub(super) a: Mat<'a>,
    /// `[inner, width]`, in whatever form.
    pub(super) b: &'a dyn Panels,
}

/// Writes or adds `Σ a·b` to the first `width` columns of `c`, whose rows are `stride` long.
///
/// # Panics
///
/// If the terms have not the same number of rows, or are not inside `c`.
pub(super) fn product(c: &mut [f32], stride: usize, width: usize, write: Write, terms: &[Term]) {
    let rows = terms.first().map_or(0, |term| term.a.rows());
    if rows == 0 || width == 0 {
        return;
    }
    assert!(terms.iter().all(|term| term.a.rows() == rows));
    assert!(width <= stride && (rows - 1) * stride + width <= c.len());
    let threads = rayon::current_num_threads();
    let strip_rows = rows.div_ceil(2 * threads).clamp(STRIP_ROWS.0, STRIP_ROWS.1);
    let strip_rows = strip_rows.next_multiple_of(TILE_ROWS);
    let block = GROUP * threads.min(8);
    with_buffer(|packed| {
        for start in (0..width).step_by(block) {
            let columns = start..(start + block).min(width);
            let mut write = write;
            for (term, inner) in passes(terms) {
                let panels = pack(packed, term.b, inner.clone(), columns.clone());
                let strips = c.par_chunks_mut(strip_rows * stride).enumerate();
                strips.for_each(|(i, c)| {
                    let first = i * strip_rows;
                    let last = (first + strip_rows).min(rows);
                    pulp::Arch::new().dispatch(Strip {
                        a: term.a.part(first..last, inner.clone()),
                        panels,
                        c: &mut c[start..],
                        stride,
                        width: columns.len(),
                        write,
                    });
                });
                write = Write::Add;
            }
        }
    });
}

/// Each term with the parts of its inner range, about equally long.
fn passes<'a>(terms: &'a [Term<'a>]) -> impl Iterator<Item = (&'a Term<'a>, Range<usize>)> {
    terms.iter().flat_map(|term| {
        let inner = term.a.cols();
        let parts = inner.div_ceil(DEPTH).max(1);
        let step = inner.div_ceil(parts).max(1);
        // No longer than `DEPTH` where a block of values may not be cut.
        let unit = term.b.unit();
        let step = match step.next_multiple_of(unit) {
            longer if longer > DEPTH => (DEPTH / unit).max(1) * unit,
            step => step,
        };
        let part = move |start: usize| (term, start..(start + step).min(inner));
        (0..inner).step_by(step).map(part)
    })
}

/// Unpacks a block of `b`: panels of [`panel_width`] columns, each `[inner, panel_width]`.
fn pack<'a>(
    buffer: &'a mut Vec<f32>,
    b: &dyn Panels,
    inner: Range<usize>,
    columns: Range<usize>,
) -> &'a [f32] {
    let width = panel_width();
    let (depth, padded) = (inner.len(), columns.len().next_multiple_of(width));
    let len = depth * padded;
    if buffer.len() < len + LINE {
        buffer.resize(len + LINE, 0.0);
    }
    // A vector that lies across two cache lines takes two loads.
    let aligned = buffer.as_ptr().align_offset(LINE * size_of::<f32>());
    let packed = &mut buffer[aligned.min(LINE)..][..len];
    let groups = packed.par_chunks_mut(GROUP * depth).enumerate();
    groups.for_each(|(i, panels)| {
        let start = columns.start + i * GROUP;
        let columns = start..(start + GROUP).min(columns.end);
        b.pack(inner.clone(), columns, width, panels);
    });
    packed
}

/// Lends a buffer of this thread's for work that does not wait for other threads.
fn with_scratch(len: usize, work: impl FnOnce(&mut [f32])) {
    thread_local! {
        static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    }
    SCRATCH.with_borrow_mut(|scratch| {
        if scratch.len() < len {
            scratch.resize(len, 0.0);
        }
        work(&mut scratch[..len]);
    });
}

/// Lends this thread's buffer for a packed block.
fn with_buffer(work: impl FnOnce(&mut Vec<f32>)) {
    thread_local! {
        static PACKED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    }
    // Taken out: while this thread waits for a part of a product, it may begin another one.
    let mut buffer = PACKED.take();
    work(&mut buffer);
    PACKED.set(buffer);
}

#[cfg(test)]
mod tests;
