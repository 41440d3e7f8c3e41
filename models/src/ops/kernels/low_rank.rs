//! What adapters add to the products of a group's frozen matrices, in the pass that puts those
//! products together. A rank is far too small for a product of tiles to pay.

use burn::tensor::Tensor;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::super::cube::{cube, empty, tensor};
use super::{UNITS, column_cubes, lanes, units, writable};
use crate::ops::linear::LowRank;

/// The largest inner range for which this is quicker than a product.
const RANKS: usize = 64;
/// Parts that one dispatch adds: with the factors and the kernel's numbers they are fewer than the
/// eight buffers that WebGPU guarantees.
const PARTS: usize = 4;

/// The parts side by side, each with what its adapter adds, and the bias.
pub(in crate::ops) fn join(
    parts: &[Tensor<2>],
    bias: Option<&Tensor<1>>,
    adapters: Option<LowRank<'_>>,
) -> Option<Tensor<2>> {
    let rank = adapters.map_or(0, |adapters| adapters.rank());
    if rank > RANKS {
        return None;
    }
    let rows = parts.first()?.dims()[0];
    let width = parts.iter().map(|part| part.dims()[1]).sum();
    let bias = match bias {
        Some(bias) => Some(cube(bias)?),
        None => None,
    };
    let u = match adapters {
        Some(adapters) => Some(cube(adapters.u)?),
        None => None,
    };
    let parts: Vec<(CubeTensor, usize)> = parts
        .iter()
        .map(|part| Some((cube(part)?, part.dims()[1])))
        .collect::<Option<_>>()?;
    let y = empty(&parts.first()?.0, [rows, width]);
    let mut first = 0;
    for (i, (part, columns)) in parts.into_iter().enumerate() {
        let piece = adapters.and_then(|adapters| adapters.of(i));
        let b = match piece {
            Some(piece) => Some(cube(&piece.b)?),
            None => None,
        };
        let lanes = if b.is_some() { lanes(rank) } else { 1 };
        let stride = adapters.map_or(0, |adapters| adapters.u.dims()[1]);
        let start = piece.map_or(0, |piece| piece.ranks.start);
        // A part stands in for what is not there.
        let or_part = |buffer: &Option<CubeTensor>| {
            let buffer = buffer.as_ref().unwrap_or(&part);
            buffer.clone().into_buffer_arg()
        };
        join_kernel::launch(
            &y.client.clone(),
            column_cubes(columns, rows),
            units(UNITS),
            lanes,
            part.clone().into_buffer_arg(),
            or_part(&u),
            or_part(&b),
            or_part(&bias),
            y.clone().into_buffer_arg(),
            rows,
            columns,
            width,
            first,
            stride / lanes,
            start / lanes,
            rank / lanes,
            adapters.map_or(0.0, |adapters| adapters.scale),
            b.is_some(),
            bias.is_some(),
        );
        first += columns;
    }
    Some(tensor(y))
}

/// The sum of parts and of `through`'s product, `[rows, ranks]` times `[ranks, features]`, written
/// over the first part.
pub(in crate::ops) fn add_up(
    parts: Vec<Tensor<2>>,
    through: Option<(&Tensor<2>, &Tensor<2>)>,
) -> Result<Tensor<2>, Vec<Tensor<2>>> {
    let ranks = through.map_or(0, |(du, _)| du.dims()[1]);
    let factors = match through {
        Some((du, a)) => cube(du).zip(cube(a)).map(Some),
        None => Some(None),
    };
    let others: Option<Vec<CubeTensor>> = parts.iter().skip(1).map(cube).collect();
    let (Some(factors), Some(others)) = (factors, others) else {
        return Err(parts);
    };
    if parts.is_empty() || parts.len() > PARTS || ranks > RANKS * PARTS {
        return Err(parts);
    }
    let [rows, features] = parts[0].dims();
    let lanes = lanes(features);
    let count = parts.len();
    let mut parts = parts;
    let first = match writable(parts.swap_remove(0)) {
        Ok(first) => first,
        Err(first) => {
            parts.push(first);
            return Err(parts);
        }
    };
    drop(parts);
    let other = |i: usize| {
        let buffer = others.get(i).or(others.first());
        buffer.or(factors.as_ref().map(|(_, a)| a)).cloned()
    };
    let (Some(b), Some(c), Some(d)) = (other(0), other(1), other(2)) else {
        // One part, and nothing to add to it.
        return Ok(tensor(first));
    };
    let (du, a) = factors.unwrap_or_else(|| (b.clone(), b.clone()));
    add_up_kernel::launch(
        &first.client.clone(),
        column_cubes(features / lanes, rows),
        units(UNITS),
        lanes,
        first.clone().into_buffer_arg(),
        b.into_buffer_arg(),
        c.into_buffer_arg(),
        d.into_buffer_arg(),
        du.into_buffer_arg(),
        a.into_buffer_arg(),
        rows,
        features / lanes,
        ranks,
        count,
    );
    Ok(tensor(first))
}

#[cube(launch)]
fn join_kernel<N: Size>(
    part: &[f32],
    u: &[Vector<f32, N>],
    b: &[Vector<f32, N>],
    bias: &[f32],
    y: &mut [f32],
    rows: usize,
    columns: usize,
    width: usize,
    first: usize,
    stride: usize,
    start: usize,
    rank: usize,
    scale: f32,
    #[comptime] adapted: bool,
    #[comptime] biased: bool,
) {
    let column = ABSOLUTE_POS_X as usize;
    if column >= columns {
        terminate!();
    }
    let mut row = CUBE_POS_Y as usize;
    while row < rows {
        let mut value = part[row * columns + column];
        if comptime!(adapted) {
            let mut sum = Vector::<f32, N>::new(0.0);
            for k in 0..rank {
                sum += u[row * stride + start + k] * b[column * rank + k];
            }
            value += scale * sum.vector_sum();
        }
        if comptime!(biased) {
            value += bias[first + column];
        }
        y[row * width + first + column] = value;
        row += CUBE_COUNT_Y as usize;
    }
}

#[cube(launch)]
fn add_up_kernel<N: Size>(
    sum: &mut [Vector<f32, N>],
    b: &[Vector<f32, N>],
    c: &[Vector<f32, N>],
    d: &[Vector<f32, N>],
    du: &[f32],
    a: &[Vector<f32, N>],
    rows: usize,
    features: usize,
    ranks: usize,
    #[comptime] parts: usize,
) {
    let column = ABSOLUTE_POS_X as usize;
    if column >= features {
        terminate!();
    }
    let mut row = CUBE_POS_Y as usize;
    while row < rows {
        let place = row * features + column;
        let mut value = sum[place];
        if comptime!(parts > 1) {
            value += b[place];
        }
        if comptime!(parts > 2) {
            value += c[place];
        }
        if comptime!(parts > 3) {
            value += d[place];
        }
        for k in 0..ranks {
            value += Vector::new(du[row * ranks + k]) * a[k * features + column];
        }
        sum[place] = value;
        row += CUBE_COUNT_Y as usize;
    }
}
