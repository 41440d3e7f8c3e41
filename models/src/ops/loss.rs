//! The language-model head and cross-entropy in one pass over chunks of tokens, so that
//! no `[tokens, vocabulary]` matrix exists, and only for tokens that carry a loss.

use super::frozen::{FrozenMatrix, backward_into, forward_into};
use super::gemm::{Mat, Write};
use super::host::{Host, host_tensor, indices_on, is_cpu};
use super::simd::{exp_shifted, max, tanh, vectorized};
use burn::tensor::{Int, Tensor, activation::log_softmax};
use rayon::prelude::*;

/// Logits that exist at once: 48 MiB.
const CHUNK_LOGITS: usize = 12 << 20;

/// The output projection and what follows it.
#[derive(Clone, Debug)]
pub struct Head {
    /// `[vocabulary, features]`.
    pub weight: FrozenMatrix,
    /// Logits become `cap · tanh(logit / cap)` (Gemma 2).
    pub soft_cap: Option<f32>,
}

/// What the model says of one target token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenScore {
    /// Natural logarithm of the target's probability.
    pub log_prob: f32,
    /// The most probable token.
    pub top: u32,
}

impl Head {
    /// Summed cross-entropy of `targets` under the hidden states `h` `[n, features]`, a
    /// tensor of one element on the device, and the gradient of `weight · sum` with
    /// respect to `h`.
    pub fn cross_entropy(
        &self,
        h: &Tensor<2>,
        targets: &[u32],
        weight: f32,
    ) -> (Tensor<1>, Tensor<2>) {
        if is_cpu(&h.device()) {
            self.cross_entropy_host(h, targets, weight)
        } else {
            self.cross_entropy_composed(h, targets, weight)
        }
    }

    /// The log-probability of each target and the most probable token in its place.
    pub fn score(&self, h: &Tensor<2>, targets: &[u32]) -> Vec<TokenScore> {
        let vocabulary = self.weight.rows();
        let mut scores = Vec::with_capacity(targets.len());
        for (h, targets) in self.chunks(h, targets) {
            let logits =
                Host::of(self.logits(&h).to_device(&burn::tensor::Device::flex())).into_values();
            let rows = logits.par_chunks(vocabulary).zip(targets);
            scores.par_extend(rows.map(|(row, &target)| score_row(row, target)));
        }
        scores
    }

    /// Logits `[n, vocabulary]` of hidden states.
    pub fn logits(&self, h: &Tensor<2>) -> Tensor<2> {
        let logits = self.weight.forward(h);
        match self.soft_cap {
            None => logits,
            Some(cap) => logits.div_scalar(cap).tanh().mul_scalar(cap),
        }
    }

    fn chunks<'a>(
        &self,
        h: &'a Tensor<2>,
        targets: &'a [u32],
    ) -> impl Iterator<Item = (Tensor<2>, &'a [u32])> + 'a {
        let [rows, features] = h.dims();
        debug_assert_eq!(rows, targets.len());
        let size = (CHUNK_LOGITS / self.weight.rows()).max(1);
        (0..rows).step_by(size).map(move |start| {
            let end = (start + size).min(rows);
            (
                h.clone().slice([start..end, 0..features]),
                &targets[start..end],
            )
        })
    }

    fn cross_entropy_host(
        &self,
        h: &Tensor<2>,
        targets: &[u32],
        weight: f32,
    ) -> (Tensor<1>, Tensor<2>) {
        let FrozenMatrix::Host(matrix) = &self.weight else {
            panic!("a CPU model holds its head on another device");
        };
        let (features, vocabulary) = (matrix.cols(), matrix.rows());
        let mut dh = vec![0.0; targets.len() * features];
        let mut total = 0.0f64;
        let mut done = 0;
        let mut logits = Vec::new();
        for (h, targets) in self.chunks(h, targets) {
            let rows = targets.len();
            let input = Host::of(h);
            logits.resize(rows * vocabulary, 0.0);
            forward_into(matrix, input.values(), rows, &mut logits, vocabulary);
            total += logits
                .par_chunks_mut(vocabulary)
                .zip(targets)
                .map(|(row, &target)| {
                    vectorized(
                        #[inline(always)]
                        || loss_row(row, target as usize, weight, self.soft_cap),
                    )
                })
                .map(f64::from)
                .collect::<Vec<_>>()
                .into_iter()
                .sum::<f64>();
            let dlogits = Mat::new(&logits, rows, vocabulary);
            backward_into(
                matrix,
                dlogits,
                &mut dh[done * features..(done + rows) * features],
                Write::Set,
            );
            done += rows;
        }
        (
            host_tensor(vec![total as f32], [1]),
            host_tensor(dh, [targets.len(), features]),
        )
    }

    fn cross_entropy_composed(
        &self,
        h: &Tensor<2>,
        targets: &[u32],
        weight: f32,
    ) -> (Tensor<1>, Tensor<2>) {
        let device = h.device();
        let (mut total, mut dh) = (Tensor::<1>::zeros([1], &device), Vec::new());
        for (h, targets) in self.chunks(h, targets) {
            let rows = targets.len();
            let index: Tensor<2, Int> =
                indices_on(targets.iter().map(|&t| t as i32).collect(), &device).reshape([rows, 1]);
            let logits = self.logits(&h);
            let log_probs = log_softmax(logits.clone(), 1);
            total = total - log_probs.clone().gather(1, index.clone()).sum();
            let one_hot = Tensor::<2>::zeros(logits.dims(), &device).scatter(
                1,
                index,
                Tensor::<2>::ones([rows, 1], &device),
                burn::tensor::IndexingUpdateOp::Add,
            );
            let mut dlogits = (log_probs.exp() - one_hot).mul_scalar(weight);
            if let Some(cap) = self.soft_cap {
                let t = logits.div_scalar(cap);
                dlogits = dlogits * (t.clone() * t).neg().add_scalar(1.0);
            }
            dh.push(self.weight.backward(&dlogits));
        }
        (total, Tensor::cat(dh, 0))
    }
}

/// Turns one row of logits into the gradient of `weight ·` its loss, and returns the
/// loss.
#[inline(always)]
fn loss_row(row: &mut [f32], target: usize, weight: f32, soft_cap: Option<f32>) -> f32 {
    if let Some(cap) = soft_cap {
        for logit in row.iter_mut() {
            *logit = cap * tanh(*logit / cap);
        }
    }
    let largest = max(row);
    let at_target = row[target];
    let capped = soft_cap.map(|_| row.to_vec());
    let sum = exp_shifted(row, largest);
    let factor = weight / sum;
    for value in row.iter_mut() {
        *value *= factor;
    }
    row[target] -= weight;
    if let Some((capped, cap)) = capped.zip(soft_cap) {
        for (value, logit) in row.iter_mut().zip(capped) {
            let t = logit / cap;
            *value *= 1.0 - t * t;
        }
    }
    largest + sum.ln() - at_target
}

fn score_row(row: &[f32], target: u32) -> TokenScore {
    let mut top = 0;
    for (i, value) in row.iter().enumerate() {
        if *value > row[top] {
            top = i;
        }
    }
    let largest = f64::from(row[top]);
    let sum: f64 = row
        .iter()
        .map(|value| (f64::from(*value) - largest).exp())
        .sum();
    let log_prob = f64::from(row[target as usize]) - largest - sum.ln();
    TokenScore {
        log_prob: log_prob as f32,
        top: top as u32,
    }
}
