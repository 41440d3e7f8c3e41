//! Linear layers with low-rank adapters (Hu et al. 2021, arXiv 2106.09685):
//! `y = x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ`, never forming `B·A`.
//!
//! Layers that read the same input (query, key and value; gate and up) form one
//! [`LinearGroup`]: their outputs lie side by side in one tensor and their `A` factors,
//! stacked, are one product.

use super::dropout::{Dropout, dropout};
use super::frozen::{FrozenMatrix, backward_into, forward_into};
use super::gemm::{Mat, Threads, Write, gemm, matmul};
use super::host::{Host, host_tensor, is_cpu};
use burn::tensor::Tensor;
use std::ops::Range;

/// Frozen layers that read the same input.
#[derive(Clone, Debug)]
pub struct LinearGroup {
    parts: Vec<FrozenMatrix>,
    bias: Option<Tensor<1>>,
}

/// The adapters of one [`LinearGroup`], as views of the flat adapter vector.
pub struct GroupLora {
    /// The stacked `A` factors, `[ranks, in]`.
    pub a: Tensor<2>,
    /// The `B` factor of each adapted part.
    pub b: Vec<PartB>,
    /// Factor on the low-rank product.
    pub scale: f32,
    /// Dropout on the adapter's input, while training.
    pub dropout: Option<Dropout>,
}

/// The `B` factor of one part of a group.
pub struct PartB {
    /// Which part.
    pub part: usize,
    /// Its rows of the stacked `A`, so its columns of `x·Aᵀ`.
    pub ranks: Range<usize>,
    /// `[out, rank]`.
    pub b: Tensor<2>,
}

/// Gradients of a [`GroupLora`], in its shapes.
pub struct GroupGrads {
    /// Of the stacked `A`.
    pub a: Tensor<2>,
    /// Of each `B`, in the order of [`GroupLora::b`].
    pub b: Vec<Tensor<2>>,
}

/// The outputs of a group's forward pass.
pub struct GroupOutput {
    /// `[tokens, Σ out]`.
    pub y: Tensor<2>,
    /// `x·Aᵀ` `[tokens, ranks]`, kept for the backward pass.
    pub u: Option<Tensor<2>>,
}

/// `x·Aᵀ`, with the adapter's dropout: what the backward pass keeps of a group's adapters.
pub fn low_rank(x: &Tensor<2>, lora: &GroupLora) -> Tensor<2> {
    let input = lora
        .dropout
        .as_ref()
        .map_or_else(|| x.clone(), |d| dropout(x, d));
    if !is_cpu(&x.device()) {
        return input.matmul(lora.a.clone().transpose());
    }
    let ([tokens, features], [ranks, _]) = (x.dims(), lora.a.dims());
    let (input, a) = (Host::of(input), Host::of(lora.a.clone()));
    let input = Mat::new(input.values(), tokens, features);
    let a = Mat::new(a.values(), ranks, features);
    host_tensor(matmul(1.0, input, a.t(), Threads::All), [tokens, ranks])
}

impl LinearGroup {
    /// Groups matrices with equal input width; `bias`, if any, covers all outputs.
    pub fn new(parts: Vec<FrozenMatrix>, bias: Option<Tensor<1>>) -> Self {
        debug_assert!(
            parts
                .windows(2)
                .all(|pair| pair[0].cols() == pair[1].cols())
        );
        Self { parts, bias }
    }

    /// Input features.
    pub fn input(&self) -> usize {
        self.parts[0].cols()
    }

    /// Output features of each part.
    pub fn outputs(&self) -> impl Iterator<Item = usize> + '_ {
        self.parts.iter().map(FrozenMatrix::rows)
    }

    /// `x` `[tokens, in]` through all parts.
    pub fn forward(&self, x: &Tensor<2>, lora: Option<&GroupLora>) -> GroupOutput {
        if !is_cpu(&x.device()) {
            return self.forward_composed(x, lora);
        }
        let tokens = x.dims()[0];
        let width = self.outputs().sum::<usize>();
        let input = Host::of(x.clone());
        let mut y = vec![0.0; tokens * width];
        for (part, columns) in self.parts.iter().zip(self.columns()) {
            forward_into(
                host(part),
                input.values(),
                tokens,
                &mut y[columns.start..],
                width,
            );
        }
        if let Some(bias) = &self.bias {
            let bias = Host::of(bias.clone());
            for row in y.chunks_exact_mut(width) {
                row.iter_mut().zip(bias.values()).for_each(|(y, b)| *y += b);
            }
        }
        let u = lora.map(|lora| {
            let ranks = lora.a.dims()[0];
            let u = low_rank(x, lora);
            let of_host = Host::of(u.clone());
            for (piece, columns) in self.pieces(lora) {
                let b = Host::of(piece.b.clone());
                let b = Mat::new(b.values(), columns.len(), piece.ranks.len());
                let u = Mat::new(of_host.values(), tokens, ranks).columns(piece.ranks.clone());
                gemm(
                    &mut y[columns.start..],
                    width,
                    Write::Add,
                    lora.scale,
                    u,
                    b.t(),
                    Threads::All,
                );
            }
            u
        });
        GroupOutput {
            y: host_tensor(y, [tokens, width]),
            u,
        }
    }

    /// Gradients given that of the output; `dx` only if asked for.
    ///
    /// `dU = s·g·B`, `dB = s·gᵀ·u`, `dA = dUᵀ·x`, `dx = g·W + dU·A`.
    pub fn backward(
        &self,
        g: &Tensor<2>,
        x: &Tensor<2>,
        u: Option<&Tensor<2>>,
        lora: Option<&GroupLora>,
        want_dx: bool,
    ) -> (Option<Tensor<2>>, Option<GroupGrads>) {
        if !is_cpu(&x.device()) {
            return self.backward_composed(g, x, u, lora, want_dx);
        }
        let tokens = x.dims()[0];
        let width = self.outputs().sum::<usize>();
        let grad = Host::of(g.clone());
        let grad = Mat::new(grad.values(), tokens, width);
        let mut dx = want_dx.then(|| {
            let mut dx = vec![0.0; tokens * self.input()];
            for (i, (part, columns)) in self.parts.iter().zip(self.columns()).enumerate() {
                let write = if i == 0 { Write::Set } else { Write::Add };
                backward_into(host(part), grad.columns(columns), &mut dx, write);
            }
            dx
        });
        let grads = lora.zip(u).map(|(lora, u)| {
            let dropped = lora
                .dropout
                .as_ref()
                .map_or_else(|| x.clone(), |d| dropout(x, d));
            let (input, u) = (Host::of(dropped), Host::of(u.clone()));
            let ranks = lora.a.dims()[0];
            let u = Mat::new(u.values(), tokens, ranks);
            let mut du = vec![0.0; tokens * ranks];
            let mut db = Vec::with_capacity(lora.b.len());
            for (piece, columns) in self.pieces(lora) {
                let b = Host::of(piece.b.clone());
                let (out, rank) = (columns.len(), piece.ranks.len());
                let g = grad.columns(columns);
                gemm(
                    &mut du[piece.ranks.start..],
                    ranks,
                    Write::Set,
                    lora.scale,
                    g,
                    Mat::new(b.values(), out, rank),
                    Threads::All,
                );
                let values = matmul(
                    lora.scale,
                    g.t(),
                    u.columns(piece.ranks.clone()),
                    Threads::All,
                );
                db.push(host_tensor(values, [out, rank]));
            }
            let du = Mat::new(&du, tokens, ranks);
            let da = matmul(
                1.0,
                du.t(),
                Mat::new(input.values(), tokens, self.input()),
                Threads::All,
            );
            if let Some(dx) = &mut dx {
                let a = Host::of(lora.a.clone());
                let a = Mat::new(a.values(), ranks, self.input());
                match &lora.dropout {
                    None => gemm(dx, self.input(), Write::Add, 1.0, du, a, Threads::All),
                    Some(drop) => {
                        let through =
                            host_tensor(matmul(1.0, du, a, Threads::All), [tokens, self.input()]);
                        let through = Host::of(dropout(&through, drop));
                        dx.iter_mut()
                            .zip(through.values())
                            .for_each(|(dx, t)| *dx += t);
                    }
                }
            }
            GroupGrads {
                a: host_tensor(da, [ranks, self.input()]),
                b: db,
            }
        });
        (dx.map(|dx| host_tensor(dx, [tokens, self.input()])), grads)
    }

    /// Output columns of each part.
    fn columns(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.outputs().scan(0, |start, out| {
            let range = *start..*start + out;
            *start = range.end;
            Some(range)
        })
    }

    /// Each adapted part with its output columns.
    fn pieces<'a>(
        &'a self,
        lora: &'a GroupLora,
    ) -> impl Iterator<Item = (&'a PartB, Range<usize>)> + 'a {
        let columns: Vec<_> = self.columns().collect();
        lora.b
            .iter()
            .map(move |piece| (piece, columns[piece.part].clone()))
    }

    fn forward_composed(&self, x: &Tensor<2>, lora: Option<&GroupLora>) -> GroupOutput {
        let mut outputs: Vec<_> = self.parts.iter().map(|part| part.forward(x)).collect();
        let u = lora.map(|lora| {
            let u = low_rank(x, lora);
            for piece in &lora.b {
                let low_rank =
                    columns_of(&u, piece.ranks.clone()).matmul(piece.b.clone().transpose());
                let output = &mut outputs[piece.part];
                *output = output.clone() + low_rank.mul_scalar(lora.scale);
            }
            u
        });
        let y = concatenated(outputs);
        let y = match &self.bias {
            Some(bias) => y + bias.clone().unsqueeze::<2>(),
            None => y,
        };
        GroupOutput { y, u }
    }

    fn backward_composed(
        &self,
        g: &Tensor<2>,
        x: &Tensor<2>,
        u: Option<&Tensor<2>>,
        lora: Option<&GroupLora>,
        want_dx: bool,
    ) -> (Option<Tensor<2>>, Option<GroupGrads>) {
        let mut dx = want_dx.then(|| {
            let parts = self.parts.iter().zip(self.columns());
            let sum = parts
                .map(|(part, columns)| part.backward(&columns_of(g, columns)))
                .reduce(|a, b| a + b);
            sum.unwrap_or_else(|| x.zeros_like())
        });
        let grads = lora.zip(u).map(|(lora, u)| {
            let (mut du, mut db) = (Vec::new(), Vec::new());
            for (piece, columns) in self.pieces(lora) {
                let g = columns_of(g, columns);
                du.push(g.clone().matmul(piece.b.clone()).mul_scalar(lora.scale));
                db.push(
                    g.transpose()
                        .matmul(columns_of(u, piece.ranks.clone()))
                        .mul_scalar(lora.scale),
                );
            }
            let du = concatenated(du);
            let input = lora
                .dropout
                .as_ref()
                .map_or_else(|| x.clone(), |d| dropout(x, d));
            if let Some(dx) = &mut dx {
                let through = du.clone().matmul(lora.a.clone());
                let through = lora
                    .dropout
                    .as_ref()
                    .map_or_else(|| through.clone(), |d| dropout(&through, d));
                *dx = dx.clone() + through;
            }
            GroupGrads {
                a: du.transpose().matmul(input),
                b: db,
            }
        });
        (dx, grads)
    }
}

fn host(part: &FrozenMatrix) -> &super::frozen::HostMatrix {
    match part {
        FrozenMatrix::Host(matrix) => matrix,
        other => panic!("a CPU model holds a weight of another device: {other:?}"),
    }
}

fn columns_of(x: &Tensor<2>, columns: Range<usize>) -> Tensor<2> {
    let [rows, width] = x.dims();
    if columns == (0..width) {
        x.clone()
    } else {
        x.clone().slice([0..rows, columns])
    }
}

fn concatenated(mut parts: Vec<Tensor<2>>) -> Tensor<2> {
    if parts.len() == 1 {
        parts.remove(0)
    } else {
        Tensor::cat(parts, 1)
    }
}
