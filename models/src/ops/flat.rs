//! Passes over flat parameter vectors: what surrounds an optimizer's step. A pass reads each value
//! once and writes in place.

use super::host::{Host, host_tensor, is_cpu};
use super::kernels;
use super::simd::{dot, vectorized};
use burn::tensor::Tensor;
use rayon::prelude::*;

/// Values of one parallel task.
pub(super) const CHUNK: usize = 1 << 14;

/// `a·y + b·x`; takes the place of `y` if nobody else holds it.
pub fn combine(y: Tensor<1>, a: f32, x: &Tensor<1>, b: f32) -> Tensor<1> {
    debug_assert_eq!(y.dims(), x.dims());
    if !is_cpu(&y.device()) {
        return kernels::combine(y, a, x, b).unwrap_or_else(|y| composed::combine(y, a, x, b));
    }
    let shape = y.dims();
    let x = Host::of(x.clone());
    let mut y = Host::of(y).into_values();
    y.par_chunks_mut(CHUNK)
        .zip(x.values().par_chunks(CHUNK))
        .for_each(|(y, x)| {
            vectorized(
                #[inline(always)]
                || y.iter_mut().zip(x).for_each(|(y, x)| *y = a * *y + b * x),
            );
        });
    host_tensor(y, shape)
}

/// One vector after the other.
pub fn concatenate(parts: Vec<Tensor<1>>) -> Tensor<1> {
    kernels::concatenate(&parts).unwrap_or_else(|| Tensor::cat(parts, 0))
}

/// `Σ x²`, a tensor of one element.
pub fn sum_of_squares(x: &Tensor<1>) -> Tensor<1> {
    if !is_cpu(&x.device()) {
        return kernels::sum_of_squares(x).unwrap_or_else(|| composed::sum_of_squares(x));
    }
    let x = Host::of(x.clone());
    let sums = x.values().par_chunks(CHUNK).map(|x| {
        vectorized(
            #[inline(always)]
            || f64::from(dot(x, x)),
        )
    });
    // Summed in order, so that threads change nothing.
    let sum: f64 = sums.collect::<Vec<_>>().into_iter().sum();
    host_tensor(vec![sum as f32], [1])
}

/// A gradient with the pull towards an anchor: `g + mu·(w - anchor)`, and a tensor of two elements,
/// `Σ (g + mu·(w - anchor))²` and `Σ (w - anchor)²`.
pub fn pull(g: Tensor<1>, w: &Tensor<1>, anchor: &Tensor<1>, mu: f32) -> (Tensor<1>, Tensor<1>) {
    debug_assert_eq!(g.dims(), w.dims());
    debug_assert_eq!(g.dims(), anchor.dims());
    if !is_cpu(&g.device()) {
        return kernels::pull(g, w, anchor, mu)
            .unwrap_or_else(|g| composed::pull(g, w, anchor, mu));
    }
    let shape = g.dims();
    let (w, anchor) = (Host::of(w.clone()), Host::of(anchor.clone()));
    let mut g = Host::of(g).into_values();
    let sums = g
        .par_chunks_mut(CHUNK)
        .zip(w.values().par_chunks(CHUNK))
        .zip(anchor.values().par_chunks(CHUNK))
        .map(|((g, w), anchor)| {
            vectorized(
                #[inline(always)]
                || pull_chunk(g, w, anchor, mu),
            )
        });
    let (mut norm, mut distance) = (0.0, 0.0);
    for sum in sums.collect::<Vec<_>>() {
        norm += sum.0;
        distance += sum.1;
    }
    let sums = host_tensor(vec![norm as f32, distance as f32], [2]);
    (host_tensor(g, shape), sums)
}

#[inline(always)]
fn pull_chunk(g: &mut [f32], w: &[f32], anchor: &[f32], mu: f32) -> (f64, f64) {
    const BLOCK: usize = 1024;
    let (mut norm, mut distance) = (0.0, 0.0);
    let mut moved = [0.0f32; BLOCK];
    let blocks = g.chunks_mut(BLOCK).zip(w.chunks(BLOCK));
    for ((g, w), anchor) in blocks.zip(anchor.chunks(BLOCK)) {
        let moved = &mut moved[..g.len()];
        for (((g, w), anchor), moved) in g.iter_mut().zip(w).zip(anchor).zip(moved.iter_mut()) {
            *moved = w - anchor;
            *g += mu * *moved;
        }
        norm += f64::from(dot(g, g));
        distance += f64::from(dot(moved, moved));
    }
    (norm, distance)
}

/// The same out of burn's operations; see [`super::norm`].
pub(super) mod composed {
    use burn::tensor::Tensor;

    pub(in crate::ops) fn combine(y: Tensor<1>, a: f32, x: &Tensor<1>, b: f32) -> Tensor<1> {
        y.mul_scalar(a) + x.clone().mul_scalar(b)
    }

    pub(in crate::ops) fn sum_of_squares(x: &Tensor<1>) -> Tensor<1> {
        (x.clone() * x.clone()).sum()
    }

    pub(in crate::ops) fn pull(
        g: Tensor<1>,
        w: &Tensor<1>,
        anchor: &Tensor<1>,
        mu: f32,
    ) -> (Tensor<1>, Tensor<1>) {
        let moved = w.clone() - anchor.clone();
        let g = g + moved.clone().mul_scalar(mu);
        let sums = vec![sum_of_squares(&g), sum_of_squares(&moved)];
        (g, Tensor::cat(sums, 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// More than two parallel tasks, and a tail.
    const LEN: usize = 2 * CHUNK + 77;

    fn wave(step: f32) -> Vec<f32> {
        (0..LEN).map(|i| (i as f32 * step).sin()).collect()
    }

    #[test]
    fn passes_are_what_they_say() {
        let (g, w, anchor) = (wave(0.1), wave(0.37), wave(0.011));
        let tensor = |values: &[f32]| host_tensor(values.to_vec(), [LEN]);
        let sum = Host::of(combine(tensor(&g), 0.5, &tensor(&w), -2.0));
        let (pulled, sums) = pull(tensor(&g), &tensor(&w), &tensor(&anchor), 0.25);
        let (pulled, sums) = (Host::of(pulled), Host::of(sums));
        let squares = Host::of(sum_of_squares(&tensor(&g)));
        let (mut of_g, mut norm, mut distance) = (0.0, 0.0, 0.0);
        for i in 0..LEN {
            assert!((sum.values()[i] - (0.5 * g[i] - 2.0 * w[i])).abs() < 1e-6);
            let moved = f64::from(w[i] - anchor[i]);
            let expected = f64::from(g[i]) + 0.25 * moved;
            assert!((f64::from(pulled.values()[i]) - expected).abs() < 1e-6);
            of_g += f64::from(g[i]).powi(2);
            norm += expected * expected;
            distance += moved * moved;
        }
        for (sum, exact) in [
            (squares.values()[0], of_g),
            (sums.values()[0], norm),
            (sums.values()[1], distance),
        ] {
            assert!((f64::from(sum) / exact - 1.0).abs() < 1e-6, "{sum} {exact}");
        }
    }

    #[test]
    fn a_shared_vector_is_not_written_to() {
        let y = host_tensor(vec![1.0, 2.0], [2]);
        let kept = y.clone();
        let sum = Host::of(combine(y, 1.0, &host_tensor(vec![3.0, 4.0], [2]), 1.0));
        assert_eq!(sum.values(), [4.0, 6.0]);
        assert_eq!(Host::of(kept).values(), [1.0, 2.0]);
    }
}
