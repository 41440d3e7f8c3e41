//! Passes over flat parameter vectors. What is summed over the whole vector takes a second, tiny
//! dispatch, which sums what each cube of the first has left.

use burn::tensor::Tensor;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::super::adamw::{Factors, State};
use super::super::cube::{cube, empty, tensor};
use super::super::host::tensor_on;
use super::{Team, UNITS, cube_sum, lanes, row_cubes, sole, units, writable};

/// Vectors that one dispatch puts together: with the result and the kernel's numbers they are the
/// eight buffers that WebGPU guarantees.
const JOINED: usize = 6;
/// Vectors that a unit of a summing pass reads, at least.
const PER_UNIT: usize = 8;
/// Cubes of a summing pass, at most.
const PARTS: usize = 256;

/// `a·y + b·x`.
pub(in crate::ops) fn combine(
    y: Tensor<1>,
    a: f32,
    x: &Tensor<1>,
    b: f32,
) -> Result<Tensor<1>, Tensor<1>> {
    let [len] = y.dims();
    let Some(x) = cube(x) else { return Err(y) };
    let y = writable(y)?;
    let lanes = lanes(len);
    let vectors = len / lanes;
    combine_kernel::launch(
        &y.client.clone(),
        row_cubes(vectors.div_ceil(UNITS)),
        units(UNITS),
        lanes,
        y.clone().into_buffer_arg(),
        x.into_buffer_arg(),
        vectors,
        a,
        b,
    );
    Ok(tensor(y))
}

/// One vector after the other, [`JOINED`] of them by one dispatch.
pub(in crate::ops) fn concatenate(parts: &[Tensor<1>]) -> Option<Tensor<1>> {
    let buffers: Vec<CubeTensor> = parts.iter().map(cube).collect::<Option<_>>()?;
    let lengths: Vec<usize> = parts.iter().map(|part| part.dims()[0]).collect();
    let out = empty(buffers.first()?, [lengths.iter().sum()]);
    let mut first = 0;
    for (buffers, lengths) in buffers.chunks(JOINED).zip(lengths.chunks(JOINED)) {
        // The last one stands in, with no values, for those that are not there.
        let part = |i: usize| buffers[i.min(buffers.len() - 1)].clone().into_buffer_arg();
        let end = |i: usize| lengths.iter().take(i + 1).sum::<usize>();
        let count = end(JOINED);
        concatenate_kernel::launch(
            &out.client.clone(),
            row_cubes(count.div_ceil(UNITS)),
            units(UNITS),
            part(0),
            part(1),
            part(2),
            part(3),
            part(4),
            part(5),
            out.clone().into_buffer_arg(),
            first,
            end(0),
            end(1),
            end(2),
            end(3),
            end(4),
            count,
        );
        first += count;
    }
    Some(tensor(out))
}

/// `Σ x`, a tensor of one element.
pub(in crate::ops) fn sum(x: &Tensor<1>) -> Option<Tensor<1>> {
    let [len] = x.dims();
    Some(tensor(finish(cube(x)?, len, 1)))
}

/// `Σ x²`, a tensor of one element.
pub(in crate::ops) fn sum_of_squares(x: &Tensor<1>) -> Option<Tensor<1>> {
    let [len] = x.dims();
    let x = cube(x)?;
    let lanes = lanes(len);
    let parts = parts(len / lanes);
    let sums = empty(&x, [parts]);
    let team = Team::of(UNITS, &x);
    squares_kernel::launch(
        &x.client.clone(),
        row_cubes(parts),
        units(UNITS),
        lanes,
        x.into_buffer_arg(),
        sums.clone().into_buffer_arg(),
        len / lanes,
        parts * UNITS,
        team,
    );
    Some(tensor(finish(sums, parts, 1)))
}

/// `g + mu·(w - anchor)` and the two sums of squares.
pub(in crate::ops) fn pull(
    g: Tensor<1>,
    w: &Tensor<1>,
    anchor: &Tensor<1>,
    mu: f32,
) -> Result<(Tensor<1>, Tensor<1>), Tensor<1>> {
    let [len] = g.dims();
    let (Some(w), Some(anchor)) = (cube(w), cube(anchor)) else {
        return Err(g);
    };
    let g = writable(g)?;
    let lanes = lanes(len);
    let parts = parts(len / lanes);
    let sums = empty(&g, [2, parts]);
    let team = Team::of(UNITS, &g);
    pull_kernel::launch(
        &g.client.clone(),
        row_cubes(parts),
        units(UNITS),
        lanes,
        g.clone().into_buffer_arg(),
        w.into_buffer_arg(),
        anchor.into_buffer_arg(),
        sums.clone().into_buffer_arg(),
        len / lanes,
        parts * UNITS,
        parts,
        mu,
        team,
    );
    Ok((tensor(g), tensor(finish(sums, parts, 2))))
}

/// One AdamW step, written over what it changes.
pub(in crate::ops) fn adamw(
    state: State,
    grads: &Tensor<1>,
    factors: &Factors,
) -> Result<State, State> {
    let [len] = grads.dims();
    // A tensor, not arguments: those are cached, and these are others in every step.
    let factors = tensor_on(factors.to_vec(), [7], &grads.device());
    let (Some(grads), Some(factors)) = (cube(grads), cube(&factors)) else {
        return Err(state);
    };
    let written = [&state.params, &state.first, &state.second].map(cube);
    let [Some(params), Some(first), Some(second)] = written else {
        return Err(state);
    };
    drop(state);
    let [params, first, second] = [params, first, second].map(sole);
    let lanes = lanes(len);
    let vectors = len / lanes;
    adamw_kernel::launch(
        &params.client.clone(),
        row_cubes(vectors.div_ceil(UNITS)),
        units(UNITS),
        lanes,
        params.clone().into_buffer_arg(),
        first.clone().into_buffer_arg(),
        second.clone().into_buffer_arg(),
        grads.into_buffer_arg(),
        factors.into_buffer_arg(),
        vectors,
    );
    Ok(State {
        params: tensor(params),
        first: tensor(first),
        second: tensor(second),
    })
}

/// Cubes that sum up so many vectors.
fn parts(vectors: usize) -> usize {
    vectors.div_ceil(UNITS * PER_UNIT).clamp(1, PARTS)
}

/// The sums of `rows` rows of `parts` values.
fn finish(values: CubeTensor, parts: usize, rows: usize) -> CubeTensor {
    let out = empty(&values, [rows]);
    let team = Team::of(UNITS, &values);
    sum_kernel::launch(
        &values.client.clone(),
        row_cubes(rows),
        units(UNITS),
        values.into_buffer_arg(),
        out.clone().into_buffer_arg(),
        parts,
        team,
    );
    out
}

#[cube(launch)]
fn combine_kernel<N: Size>(
    y: &mut [Vector<f32, N>],
    x: &[Vector<f32, N>],
    vectors: usize,
    a: f32,
    b: f32,
) {
    let i = ABSOLUTE_POS;
    if i < vectors {
        y[i] = y[i] * Vector::new(a) + x[i] * Vector::new(b);
    }
}

#[cube(launch)]
fn concatenate_kernel(
    a: &[f32],
    b: &[f32],
    c: &[f32],
    d: &[f32],
    e: &[f32],
    f: &[f32],
    out: &mut [f32],
    first: usize,
    end_a: usize,
    end_b: usize,
    end_c: usize,
    end_d: usize,
    end_e: usize,
    count: usize,
) {
    let i = ABSOLUTE_POS;
    if i >= count {
        terminate!();
    }
    let value = if i < end_a {
        a[i]
    } else if i < end_b {
        b[i - end_a]
    } else if i < end_c {
        c[i - end_b]
    } else if i < end_d {
        d[i - end_c]
    } else if i < end_e {
        e[i - end_d]
    } else {
        f[i - end_e]
    };
    out[first + i] = value;
}

#[cube(launch)]
fn squares_kernel<N: Size>(
    x: &[Vector<f32, N>],
    sums: &mut [f32],
    vectors: usize,
    stride: usize,
    #[comptime] team: Team,
) {
    let mut squares = Vector::<f32, N>::new(0.0);
    let mut i = ABSOLUTE_POS;
    while i < vectors {
        squares += x[i] * x[i];
        i += stride;
    }
    let sum = cube_sum(squares.vector_sum(), team);
    if UNIT_POS == 0 {
        sums[CUBE_POS] = sum;
    }
}

#[cube(launch)]
fn pull_kernel<N: Size>(
    g: &mut [Vector<f32, N>],
    w: &[Vector<f32, N>],
    anchor: &[Vector<f32, N>],
    sums: &mut [f32],
    vectors: usize,
    stride: usize,
    parts: usize,
    mu: f32,
    #[comptime] team: Team,
) {
    let mut norm = Vector::<f32, N>::new(0.0);
    let mut distance = Vector::<f32, N>::new(0.0);
    let mut i = ABSOLUTE_POS;
    while i < vectors {
        let moved = w[i] - anchor[i];
        let pulled = g[i] + Vector::new(mu) * moved;
        g[i] = pulled;
        norm += pulled * pulled;
        distance += moved * moved;
        i += stride;
    }
    let norm = cube_sum(norm.vector_sum(), team);
    let distance = cube_sum(distance.vector_sum(), team);
    if UNIT_POS == 0 {
        sums[CUBE_POS] = norm;
        sums[parts + CUBE_POS] = distance;
    }
}

#[cube(launch)]
fn sum_kernel(values: &[f32], out: &mut [f32], parts: usize, #[comptime] team: Team) {
    let start = CUBE_POS * parts;
    let mut of_unit = 0.0f32;
    let mut i = UNIT_POS as usize;
    while i < parts {
        of_unit += values[start + i];
        i += UNITS;
    }
    let sum = cube_sum(of_unit, team);
    if UNIT_POS == 0 {
        out[CUBE_POS] = sum;
    }
}

#[cube(launch)]
fn adamw_kernel<N: Size>(
    params: &mut [Vector<f32, N>],
    first: &mut [Vector<f32, N>],
    second: &mut [Vector<f32, N>],
    grads: &[Vector<f32, N>],
    factors: &[f32],
    vectors: usize,
) {
    let i = ABSOLUTE_POS;
    if i < vectors {
        let (beta1, beta2) = (factors[1], factors[2]);
        let keep = Vector::<f32, N>::new(factors[3]);
        let size = Vector::<f32, N>::new(factors[4]);
        let root = Vector::<f32, N>::new(factors[5]);
        let eps = Vector::<f32, N>::new(factors[6]);
        let g = grads[i] * Vector::new(factors[0]);
        let m = Vector::new(beta1) * first[i] + Vector::new(1.0f32 - beta1) * g;
        let v = Vector::new(beta2) * second[i] + Vector::new(1.0f32 - beta2) * g * g;
        first[i] = m;
        second[i] = v;
        params[i] = keep * params[i] - size * m / (v.sqrt() / root + eps);
    }
}
