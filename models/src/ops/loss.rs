//! The language-model head and cross-entropy in one pass over chunks of tokens, so that
//! no `[tokens, vocabulary]` matrix exists, and only for tokens that carry a loss.

use super::frozen::{FrozenMatrix, backward_into, forward_into};
use super::gemm::Mat;
use super::host::{Host, host_tensor, indices_on, is_cpu};
use super::kernels;
use super::precision::MixedPrecision;
use super::simd::{exp_shifted, max, tanh, vectorized};
use burn::tensor::{Device, Int, Tensor};
use rayon::prelude::*;

/// Logits that exist at once on the CPU: 48 MiB.
const CHUNK_LOGITS: usize = 12 << 20;
/// Logits that exist at once on a GPU: what every WebGPU device can bind, 128 MiB, because every
/// chunk reads the whole head twice.
const CHUNK_LOGITS_GPU: usize = 32 << 20;

/// The output projection and what follows it.
#[derive(Clone, Debug)]
pub struct Head {
    /// `[vocabulary, features]`.
    pub weight: FrozenMatrix,
    /// Logits become `cap · tanh(logit / cap)` (Gemma 2).
    pub soft_cap: Option<f32>,
    /// The model's setting.
    pub mixed: MixedPrecision,
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
        share: f32,
    ) -> (Tensor<1>, Tensor<2>) {
        let (losses, dh) = self.token_losses(h, targets, weight, share);
        if !is_cpu(&h.device()) {
            let sum = kernels::sum(&losses).unwrap_or_else(|| losses.sum());
            return (sum, dh);
        }
        let losses = Host::of(losses);
        let sum: f64 = losses.values().iter().copied().map(f64::from).sum();
        (host_tensor(vec![sum as f32], [1]), dh)
    }

    /// The cross-entropy of each target `[n]`, and the gradient of `weight` times each
    /// with respect to its own row of `h`.
    ///
    /// A token's loss depends on its row only, so the gradient of any weighted sum of
    /// losses is this one with its rows weighted: an objective that must see the losses
    /// before it knows the weights needs no second pass over the vocabulary.
    pub fn token_losses(
        &self,
        h: &Tensor<2>,
        targets: &[u32],
        weight: f32,
        share: f32,
    ) -> (Tensor<1>, Tensor<2>) {
        if is_cpu(&h.device()) {
            self.token_losses_host(h, targets, weight, share)
        } else {
            self.token_losses_device(h, targets, weight)
        }
    }

    /// The log-probability of each target `[n]`.
    pub fn log_probs(&self, h: &Tensor<2>, targets: &[u32]) -> Tensor<1> {
        let vocabulary = self.weight.rows();
        if !is_cpu(&h.device()) {
            return self.log_probs_device(h, targets);
        }
        let parts = self.chunks(h, targets, 1.0).map(|(h, targets)| {
            let mut logits = Host::of(self.weight.forward(&h)).into_values();
            let log_probs: Vec<f32> = logits
                .par_chunks_mut(vocabulary)
                .zip(targets)
                .map(|(row, &target)| {
                    vectorized(
                        #[inline(always)]
                        || log_prob_row(row, target as usize, self.soft_cap),
                    )
                })
                .collect();
            host_tensor(log_probs, [targets.len()])
        });
        Tensor::cat(parts.collect(), 0)
    }

    /// Logits `[n, vocabulary]` of hidden states.
    pub fn logits(&self, h: &Tensor<2>) -> Tensor<2> {
        composed::capped(self.forward(h), self.soft_cap)
    }

    pub(super) fn chunks<'a>(
        &self,
        h: &'a Tensor<2>,
        targets: &'a [u32],
        share: f32,
    ) -> impl Iterator<Item = (Tensor<2>, &'a [u32])> + 'a {
        let [rows, features] = h.dims();
        debug_assert_eq!(rows, targets.len());
        let logits = match is_cpu(&h.device()) {
            true => (CHUNK_LOGITS as f32 * share) as usize,
            false => CHUNK_LOGITS_GPU,
        };
        let size = (logits / self.weight.rows()).max(1);
        (0..rows).step_by(size).map(move |start| {
            let end = (start + size).min(rows);
            (
                h.clone().slice([start..end, 0..features]),
                &targets[start..end],
            )
        })
    }

    fn token_losses_host(
        &self,
        h: &Tensor<2>,
        targets: &[u32],
        weight: f32,
        share: f32,
    ) -> (Tensor<1>, Tensor<2>) {
        let FrozenMatrix::Host(matrix) = &self.weight else {
            panic!("a CPU model holds its head on another device");
        };
        let (features, vocabulary) = (matrix.cols(), matrix.rows());
        let mut dh = vec![0.0; targets.len() * features];
        let mut losses = Vec::with_capacity(targets.len());
        let mut logits = Vec::new();
        for (h, targets) in self.chunks(h, targets, share) {
            let (rows, done) = (targets.len(), losses.len());
            let input = Host::of(h);
            logits.resize(rows * vocabulary, 0.0);
            let input = Mat::new(input.values(), rows, features);
            forward_into(matrix, input, &[], &mut logits, vocabulary);
            losses.extend(loss_rows(&mut logits, targets, weight, self.soft_cap));
            let dlogits = Mat::new(&logits, rows, vocabulary);
            let dh = &mut dh[done * features..(done + rows) * features];
            backward_into(matrix, dlogits, dh);
        }
        (
            host_tensor(losses, [targets.len()]),
            host_tensor(dh, [targets.len(), features]),
        )
    }

    fn token_losses_device(
        &self,
        h: &Tensor<2>,
        targets: &[u32],
        weight: f32,
    ) -> (Tensor<1>, Tensor<2>) {
        let (mut losses, mut dh) = (Vec::new(), Vec::new());
        for (h, targets) in self.chunks(h, targets, 1.0) {
            let targets = indices(targets, &h.device());
            let logits = self.forward(&h);
            let (of_chunk, dlogits) = kernels::losses(logits, &targets, weight, self.soft_cap)
                .unwrap_or_else(|logits| composed::losses(logits, targets, weight, self.soft_cap));
            losses.push(of_chunk);
            dh.push(self.backward(&dlogits));
        }
        (joined(losses), joined(dh))
    }

    fn log_probs_device(&self, h: &Tensor<2>, targets: &[u32]) -> Tensor<1> {
        let parts = self.chunks(h, targets, 1.0).map(|(h, targets)| {
            let targets = indices(targets, &h.device());
            let logits = self.forward(&h);
            kernels::log_probs(&logits, &targets, self.soft_cap)
                .unwrap_or_else(|| composed::log_probs(logits, targets, self.soft_cap))
        });
        joined(parts.collect())
    }

    /// The logits, before the cap.
    fn forward(&self, h: &Tensor<2>) -> Tensor<2> {
        self.mixed.forward(h, &self.weight)
    }

    /// The gradient of `h`, given that of the logits.
    fn backward(&self, dlogits: &Tensor<2>) -> Tensor<2> {
        self.mixed.backward(dlogits, &self.weight)
    }
}

fn indices(targets: &[u32], device: &Device) -> Tensor<1, Int> {
    indices_on(targets.iter().map(|&t| t as i32).collect(), device)
}

/// Parts below one another; a single one is not copied.
fn joined<const D: usize>(mut parts: Vec<Tensor<D>>) -> Tensor<D> {
    match (parts.len(), parts.pop()) {
        (1, Some(only)) => only,
        (_, last) => {
            parts.extend(last);
            Tensor::cat(parts, 0)
        }
    }
}

/// The rows' part out of burn's operations; see [`super::norm`].
pub(super) mod composed {
    use burn::tensor::activation::log_softmax;
    use burn::tensor::{IndexingUpdateOp, Int, Tensor};

    pub(in crate::ops) fn losses(
        logits: Tensor<2>,
        targets: Tensor<1, Int>,
        weight: f32,
        soft_cap: Option<f32>,
    ) -> (Tensor<1>, Tensor<2>) {
        let index: Tensor<2, Int> = targets.unsqueeze_dim(1);
        let logits = capped(logits, soft_cap);
        let log_probs = log_softmax(logits.clone(), 1);
        let at_targets: Tensor<2> = log_probs.clone().gather(1, index.clone());
        let (shape, device) = (logits.dims(), logits.device());
        let one_hot = Tensor::<2>::zeros(shape, &device).scatter(
            1,
            index,
            Tensor::<2>::ones([shape[0], 1], &device),
            IndexingUpdateOp::Add,
        );
        let mut dlogits = (log_probs.exp() - one_hot).mul_scalar(weight);
        if let Some(cap) = soft_cap {
            let t = logits.div_scalar(cap);
            dlogits = dlogits * (t.clone() * t).neg().add_scalar(1.0);
        }
        (at_targets.neg().flatten(0, 1), dlogits)
    }

    pub(in crate::ops) fn log_probs(
        logits: Tensor<2>,
        targets: Tensor<1, Int>,
        soft_cap: Option<f32>,
    ) -> Tensor<1> {
        let log_probs = log_softmax(capped(logits, soft_cap), 1);
        let at_targets: Tensor<2> = log_probs.gather(1, targets.unsqueeze_dim(1));
        at_targets.flatten(0, 1)
    }

    pub(in crate::ops) fn capped(logits: Tensor<2>, soft_cap: Option<f32>) -> Tensor<2> {
        match soft_cap {
            None => logits,
            Some(cap) => logits.div_scalar(cap).tanh().mul_scalar(cap),
        }
    }
}

/// Turns rows of logits, one for each target, into the gradients of `weight ·` their losses, and
/// returns the losses.
pub(super) fn loss_rows(
    logits: &mut [f32],
    targets: &[u32],
    weight: f32,
    soft_cap: Option<f32>,
) -> Vec<f32> {
    let vocabulary = logits.len() / targets.len().max(1);
    let rows = logits.par_chunks_mut(vocabulary.max(1));
    rows.zip(targets)
        .map(|(row, &target)| {
            vectorized(
                #[inline(always)]
                || loss_row(row, target as usize, weight, soft_cap),
            )
        })
        .collect()
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

/// The log-probability of `target` under one row of logits, which it overwrites.
#[inline(always)]
fn log_prob_row(row: &mut [f32], target: usize, soft_cap: Option<f32>) -> f32 {
    if let Some(cap) = soft_cap {
        for logit in row.iter_mut() {
            *logit = cap * tanh(*logit / cap);
        }
    }
    let (largest, at_target) = (max(row), row[target]);
    // As in `loss_row`, so that equal models agree to the last bit.
    -(largest + exp_shifted(row, largest).ln() - at_target)
}
