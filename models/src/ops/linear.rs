//! Linear layers with low-rank adapters (Hu et al. 2021, arXiv 2106.09685):
//! `y = x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ`, never forming `B·A`.
//!
//! Layers that read the same input (query, key and value; gate and up) form one
//! [`LinearGroup`]: their outputs lie side by side in one tensor and their `A` factors,
//! stacked, are one product.

mod composed;

use super::dropout::{Dropout, dropout};
use super::frozen::{FEW_ROWS, FrozenMatrix, HostMatrix};
use super::gemm::{Mat, Threads, Write, gemm, matmul};
use super::host::{Host, host_tensor, is_cpu};
use super::precision::MixedPrecision;
use super::product::{Panels, Scaled, Straight, Term, Transposed, few_rows, product};
use burn::tensor::Tensor;
pub(super) use composed::LowRank;
use std::ops::Range;

/// Frozen layers that read the same input.
#[derive(Clone, Debug)]
pub struct LinearGroup {
    pub(super) parts: Vec<FrozenMatrix>,
    bias: Option<Tensor<1>>,
    mixed: MixedPrecision,
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
    /// Whether `A` is trained too; otherwise it has no gradient.
    pub trains_a: bool,
}

impl GroupLora {
    /// `x` with the adapter's dropout, which is its own gradient.
    fn dropped(&self, x: &Tensor<2>) -> Tensor<2> {
        match &self.dropout {
            Some(mask) => dropout(x, mask),
            None => x.clone(),
        }
    }
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
    /// Of the stacked `A`, if that is trained.
    pub a: Option<Tensor<2>>,
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
    let input = lora.dropped(x);
    if !is_cpu(&x.device()) {
        return composed::low_rank(input, &lora.a);
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
        Self {
            parts,
            bias,
            mixed: MixedPrecision::default(),
        }
    }

    /// Takes its model's setting.
    #[must_use]
    pub fn with_mixed_precision(mut self, mixed: &MixedPrecision) -> Self {
        self.mixed = mixed.clone();
        self
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
        let u = lora.map(|lora| low_rank(x, lora));
        let (input, of_host) = (Host::of(x.clone()), u.clone().map(Host::of));
        let input = Mat::new(input.values(), tokens, self.input());
        let mut y = vec![0.0; tokens * width];
        let is_few = tokens <= FEW_ROWS;
        if is_few {
            let parts: Vec<_> = self.parts.iter().map(host).collect();
            few_rows(&parts, input, &mut y, width);
        }
        let write = if is_few { Write::Add } else { Write::Set };
        for (i, (part, columns)) in self.parts.iter().zip(self.columns()).enumerate() {
            let adapted = lora.zip(of_host.as_ref()).and_then(|(lora, u)| {
                let piece = lora.b.iter().find(|piece| piece.part == i)?;
                let u = Mat::new(u.values(), tokens, lora.a.dims()[0]);
                Some((lora.scale, u.columns(piece.ranks.clone()), piece))
            });
            let b = adapted.map(|(.., piece)| Host::of(piece.b.clone()));
            let b = adapted.zip(b.as_ref()).map(|((scale, _, piece), b)| {
                Scaled(
                    Mat::new(b.values(), columns.len(), piece.ranks.len()).t(),
                    scale,
                )
            });
            let frozen = Transposed(host(part));
            let frozen = (!is_few).then_some(Term {
                a: input,
                b: &frozen,
            });
            let through = adapted
                .zip(b.as_ref())
                .map(|((_, u, _), b)| Term { a: u, b });
            let terms: Vec<Term> = frozen.into_iter().chain(through).collect();
            product(&mut y[columns.start..], width, columns.len(), write, &terms);
        }
        if let Some(bias) = &self.bias {
            let bias = Host::of(bias.clone());
            for row in y.chunks_exact_mut(width) {
                row.iter_mut().zip(bias.values()).for_each(|(y, b)| *y += b);
            }
        }
        GroupOutput {
            y: host_tensor(y, [tokens, width]),
            u,
        }
    }

    /// Gradients given that of the output; `dx` only if asked for.
    ///
    /// `dU = s·g·B`, `dB = s·gᵀ·u`, `dA = dUᵀ·x`, `dx = g·W + dU·A`. What nobody asks for is not
    /// computed: `dA` where `A` is frozen, and `dU` where neither `dA` nor `dx` needs it.
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
        let wants_du = want_dx || lora.is_some_and(|lora| lora.trains_a);
        let adapted = lora.zip(u);
        let du = adapted
            .filter(|_| wants_du)
            .map(|(lora, _)| self.backward_u(grad, lora));
        let du = du.as_deref().zip(lora).map(|(du, lora)| {
            let ranks = lora.a.dims()[0];
            Mat::new(du, tokens, ranks)
        });
        let grads = adapted.map(|(lora, u)| GroupGrads {
            b: self.backward_b(grad, u, lora),
            a: du
                .filter(|_| lora.trains_a)
                .map(|du| self.backward_a(du, x, lora)),
        });
        let dx = want_dx.then(|| self.backward_x(grad, du.zip(lora)));
        (dx, grads)
    }

    /// The gradient of the input: what comes through the frozen parts, and through the adapters.
    fn backward_x(&self, grad: Mat, through: Option<(Mat, &GroupLora)>) -> Tensor<2> {
        let (tokens, features) = (grad.rows(), self.input());
        let parts: Vec<_> = self.parts.iter().map(|part| Straight(host(part))).collect();
        let terms = parts
            .iter()
            .zip(self.columns())
            .map(|(part, columns)| Term {
                a: grad.columns(columns),
                b: part as &dyn Panels,
            });
        let mut terms: Vec<Term> = terms.collect();
        let mut dx = vec![0.0; tokens * features];
        let Some((du, lora)) = through else {
            product(&mut dx, features, features, Write::Set, &terms);
            return host_tensor(dx, [tokens, features]);
        };
        let a = Host::of(lora.a.clone());
        let a = Scaled(Mat::new(a.values(), du.cols(), features), 1.0);
        let through = Term { a: du, b: &a };
        let Some(mask) = &lora.dropout else {
            terms.push(through);
            product(&mut dx, features, features, Write::Set, &terms);
            return host_tensor(dx, [tokens, features]);
        };
        product(&mut dx, features, features, Write::Set, &[through]);
        let mut dx = Host::of(dropout(&host_tensor(dx, [tokens, features]), mask)).into_values();
        product(&mut dx, features, features, Write::Add, &terms);
        host_tensor(dx, [tokens, features])
    }

    /// The gradient of each `B`.
    fn backward_b(&self, grad: Mat, u: &Tensor<2>, lora: &GroupLora) -> Vec<Tensor<2>> {
        let [tokens, ranks] = u.dims();
        let u = Host::of(u.clone());
        let u = Mat::new(u.values(), tokens, ranks);
        let of_piece = |(piece, columns): (&PartB, Range<usize>)| {
            let shape = [columns.len(), piece.ranks.len()];
            let (g, u) = (grad.columns(columns), u.columns(piece.ranks.clone()));
            host_tensor(matmul(lora.scale, g.t(), u, Threads::All), shape)
        };
        self.pieces(lora).map(of_piece).collect()
    }

    /// The gradient of `u`, `[tokens, ranks]`.
    fn backward_u(&self, grad: Mat, lora: &GroupLora) -> Vec<f32> {
        let ranks = lora.a.dims()[0];
        let mut du = vec![0.0; grad.rows() * ranks];
        for (piece, columns) in self.pieces(lora) {
            let b = Host::of(piece.b.clone());
            gemm(
                &mut du[piece.ranks.start..],
                ranks,
                Write::Set,
                lora.scale,
                grad.columns(columns.clone()),
                Mat::new(b.values(), columns.len(), piece.ranks.len()),
                Threads::All,
            );
        }
        du
    }

    /// The gradient of the stacked `A`.
    fn backward_a(&self, du: Mat, x: &Tensor<2>, lora: &GroupLora) -> Tensor<2> {
        let input = Host::of(lora.dropped(x));
        let input = Mat::new(input.values(), du.rows(), self.input());
        host_tensor(
            matmul(1.0, du.t(), input, Threads::All),
            [du.cols(), self.input()],
        )
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
}

fn host(part: &FrozenMatrix) -> &HostMatrix {
    match part {
        FrozenMatrix::Host(matrix) => matrix,
        other => panic!("a CPU model holds a weight of another device: {other:?}"),
    }
}
