//! Groups on a GPU: products, and kernels for what goes between them.

use super::super::dropout::dropout;
use super::super::frozen::FrozenMatrix;
use super::super::kernels;
use super::super::matmul::matmul;
use super::{GroupGrads, GroupLora, GroupOutput, LinearGroup, PartB};
use burn::tensor::Tensor;
use std::ops::Range;

/// What adapters add to a group's outputs: `scale·u·Bᵀ`, in kernels.
#[derive(Clone, Copy)]
pub(in crate::ops) struct LowRank<'a> {
    /// `[tokens, ranks]`.
    pub(in crate::ops) u: &'a Tensor<2>,
    pieces: &'a [PartB],
    pub(in crate::ops) scale: f32,
}

impl<'a> LowRank<'a> {
    /// That of a part, if it is adapted.
    pub(in crate::ops) fn of(&self, part: usize) -> Option<&'a PartB> {
        self.pieces.iter().find(|piece| piece.part == part)
    }

    /// The largest rank of a part.
    pub(in crate::ops) fn rank(&self) -> usize {
        let ranks = self.pieces.iter().map(|piece| piece.ranks.len());
        ranks.max().unwrap_or(0)
    }
}

impl LinearGroup {
    pub(super) fn forward_composed(&self, x: &Tensor<2>, lora: Option<&GroupLora>) -> GroupOutput {
        let factor = self.mixed.factor(x, &self.parts);
        let through = |part: &FrozenMatrix| part.forward(factor.with(part));
        let outputs: Vec<_> = self.parts.iter().map(through).collect();
        let u = lora.map(|lora| super::low_rank(x, lora));
        let adapters = lora.zip(u.as_ref()).map(|(lora, u)| LowRank {
            u,
            pieces: &lora.b,
            scale: lora.scale,
        });
        let y = join(outputs, self.bias.as_ref(), adapters);
        GroupOutput { y, u }
    }

    pub(super) fn backward_composed(
        &self,
        g: &Tensor<2>,
        x: &Tensor<2>,
        u: Option<&Tensor<2>>,
        lora: Option<&GroupLora>,
        want_dx: bool,
    ) -> (Option<Tensor<2>>, Option<GroupGrads>) {
        let g: Vec<_> = self.columns().map(|part| columns_of(g, part)).collect();
        let through_parts = want_dx.then(|| {
            let parts = self.parts.iter().zip(&g);
            parts
                .map(|(part, g)| self.mixed.backward(g, part))
                .collect::<Vec<_>>()
        });
        let Some((lora, u)) = lora.zip(u) else {
            return (through_parts.map(|parts| add_up(parts, None)), None);
        };
        let u = u.clone().mul_scalar(lora.scale);
        let of_piece = |piece: &PartB| {
            let g = g[piece.part].clone();
            matmul(g.transpose(), columns_of(&u, piece.ranks.clone()))
        };
        let b = lora.b.iter().map(of_piece).collect();
        if !want_dx && !lora.trains_a {
            return (None, Some(GroupGrads { a: None, b }));
        }
        let of_piece = |piece: &PartB| matmul(g[piece.part].clone(), piece.b.clone());
        let du = concatenated(lora.b.iter().map(of_piece).collect()).mul_scalar(lora.scale);
        let dx = through_parts.map(|mut parts| match &lora.dropout {
            None => add_up(parts, Some((&du, &lora.a))),
            Some(mask) => {
                parts.push(dropout(&matmul(du.clone(), lora.a.clone()), mask));
                add_up(parts, None)
            }
        });
        let a = lora
            .trains_a
            .then(|| matmul(du.transpose(), lora.dropped(x)));
        (dx, Some(GroupGrads { a, b }))
    }
}

/// `x·Aᵀ`.
pub(super) fn low_rank(x: Tensor<2>, a: &Tensor<2>) -> Tensor<2> {
    matmul(x, a.clone().transpose())
}

/// The parts side by side, each with what its adapter adds, and the bias.
fn join(
    mut parts: Vec<Tensor<2>>,
    bias: Option<&Tensor<1>>,
    adapters: Option<LowRank<'_>>,
) -> Tensor<2> {
    if let (1, None, None) = (parts.len(), bias, adapters) {
        return parts.remove(0);
    }
    kernels::join(&parts, bias, adapters).unwrap_or_else(|| {
        for (i, part) in parts.iter_mut().enumerate() {
            if let Some((adapters, piece)) = adapters.and_then(|a| Some((a, a.of(i)?))) {
                let u = columns_of(adapters.u, piece.ranks.clone());
                let added = matmul(u, piece.b.clone().transpose());
                *part = part.clone() + added.mul_scalar(adapters.scale);
            }
        }
        let y = concatenated(parts);
        match bias {
            Some(bias) => y + bias.clone().unsqueeze::<2>(),
            None => y,
        }
    })
}

/// The sum of parts, of which there is one at least, and of the product of two factors.
fn add_up(parts: Vec<Tensor<2>>, factors: Option<(&Tensor<2>, &Tensor<2>)>) -> Tensor<2> {
    kernels::add_up(parts, factors).unwrap_or_else(|parts| {
        let product = factors.map(|(du, a)| matmul(du.clone(), a.clone()));
        let sum = parts.into_iter().chain(product).reduce(|a, b| a + b);
        sum.expect("a group has a part")
    })
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
