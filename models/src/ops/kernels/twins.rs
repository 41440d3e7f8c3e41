//! Each kernel against the CPU's fused code and against its composition out of burn's operations.
//! Runs where `FEDLLM_TEST_GPU` is set.

use burn::tensor::{Device, Int, Tensor};

use super::super::adamw::{self, AdamWStep, Factors, State};
use super::super::host::{Host, host_tensor, indices_on};
use super::super::twins::{close, random};
use super::super::*;
use crate::config::Activation;
use crate::device::gpu_for_tests;
use crate::quant::QuantMatrix;

/// One row and many, rows shorter than a cube, as long as a small model's, and of no round length.
const SHAPES: [[usize; 2]; 6] = [
    [1, 24],
    [1, 576],
    [1, 2050],
    [37, 24],
    [37, 576],
    [37, 2050],
];

/// Lengths of flat vectors: less than one cube, and more than one cube with a tail.
const LENGTHS: [usize; 3] = [7, 1 << 13, (1 << 20) + 3];

fn gpu() -> Option<Device> {
    gpu_for_tests().map(|(_, device)| device)
}

/// `got` from the GPU against two values from the CPU.
fn agrees<const D: usize>(
    what: &str,
    got: Tensor<D>,
    fused: &Tensor<D>,
    twin: &Tensor<D>,
    tolerance: f32,
) {
    let got = got.to_device(&Device::flex());
    close(&format!("{what} and the CPU"), &got, fused, tolerance);
    close(&format!("{what} and its twin"), &got, twin, tolerance);
}

#[test]
fn gpu_norms_agree() {
    let Some(gpu) = gpu() else { return };
    // More rows than cubes fit into one dimension.
    for [rows, features] in SHAPES.into_iter().chain([[66_000, 24]]) {
        let what = |name: &str| format!("{name} [{rows}, {features}]");
        let (x, dy) = (
            random("x", [rows, features]),
            random("dy", [rows, features]),
        );
        let weight = random("w", [features]);
        let [gpu_x, gpu_dy] = [&x, &dy].map(|t: &Tensor<2>| t.clone().to_device(&gpu));
        let gpu_weight: Tensor<1> = weight.clone().to_device(&gpu);

        let got = rms_norm(&gpu_x, &gpu_weight, 1e-5);
        let fused = rms_norm(&x, &weight, 1e-5);
        let twin = norm::composed::rms_norm(&x, &weight, 1e-5);
        agrees(&what("y"), got.y, &fused.y, &twin.y, 1e-5);
        agrees(&what("inv"), got.inv.clone(), &fused.inv, &twin.inv, 1e-5);
        let again = rms_norm_again(&gpu_x, &gpu_weight, &got.inv);
        agrees(&what("y again"), again, &fused.y, &twin.y, 1e-5);
        agrees(
            &what("dx"),
            rms_norm_backward(&gpu_dy, &gpu_x, &gpu_weight, &got.inv),
            &rms_norm_backward(&dy, &x, &weight, &fused.inv),
            &norm::composed::rms_norm_backward(&dy, &x, &weight, &twin.inv),
            1e-5,
        );
        agrees(
            &what("dx added"),
            rms_norm_backward_onto(gpu_dy.clone(), &gpu_dy, &gpu_x, &gpu_weight, &got.inv),
            &rms_norm_backward_onto(dy.clone(), &dy, &x, &weight, &fused.inv),
            &(dy.clone() + norm::composed::rms_norm_backward(&dy, &x, &weight, &twin.inv)),
            1e-5,
        );
    }
}

#[test]
fn gpu_rotations_agree_and_turn_back() {
    let Some(gpu) = gpu() else { return };
    // Halves of a head that are and are not read four at a time; with values beside the heads.
    for (tokens, half, heads, width) in [(1, 12, 2, 72), (37, 32, 9, 960), (37, 5, 3, 41)] {
        let frequencies: Vec<f32> = (0..half).map(|i| 0.7f32.powi(i)).collect();
        let positions: Vec<u32> = (0..tokens).map(|i| i * 31).collect();
        let [here, there] =
            [&Device::flex(), &gpu].map(|device| Rotation::new(&positions, &frequencies, device));
        let x = random("x", [tokens as usize, width]);
        let gpu_x: Tensor<2> = x.clone().to_device(&gpu);
        let forward = rotate(gpu_x.clone(), &there, heads, Turn::Forward);
        agrees(
            "rotated",
            forward.clone(),
            &rotate(x.clone(), &here, heads, Turn::Forward),
            &rope::composed::rotate(x.clone(), &here, heads, Turn::Forward),
            1e-6,
        );
        let back = rotate(forward, &there, heads, Turn::Backward);
        agrees("turned back", back, &x, &x, 1e-5);
        agrees("a tensor held elsewhere", gpu_x, &x, &x, 0.0);
    }
}

#[test]
fn gpu_gated_units_agree() {
    let Some(gpu) = gpu() else { return };
    for activation in [Activation::Silu, Activation::GeluTanh] {
        for [rows, ffn] in SHAPES {
            let x = random("x", [rows, 2 * ffn]).mul_scalar(60.0);
            let dy = random("dy", [rows, ffn]);
            let [gpu_x, gpu_dy] = [&x, &dy].map(|t: &Tensor<2>| t.clone().to_device(&gpu));
            agrees(
                &format!("{activation:?} [{rows}, {ffn}]"),
                glu(&gpu_x, activation),
                &glu(&x, activation),
                &glu::composed::glu(&x, activation),
                1e-5,
            );
            agrees(
                &format!("gradient of {activation:?} [{rows}, {ffn}]"),
                glu_backward(&gpu_dy, gpu_x, activation),
                &glu_backward(&dy, x.clone(), activation),
                &glu::composed::glu_backward(&dy, x, activation),
                1e-5,
            );
        }
    }
}

/// Parts of a group, which of them are adapted, the rank, whether there is a bias, and the dropout.
type Group = (&'static [usize], &'static [usize], usize, bool, f32);

#[test]
fn gpu_adapters_agree() {
    let Some(gpu) = gpu() else { return };
    let groups: [Group; 6] = [
        (&[24], &[0], 3, false, 0.0),
        (&[64, 24, 24], &[0, 2], 8, true, 0.0),
        (&[576, 192, 192], &[0, 1, 2], 16, false, 0.1),
        (&[50, 50], &[0, 1], 4, false, 0.0),
        (&[40, 72], &[], 1, true, 0.0),
        // A rank that is left to products.
        (&[96, 40], &[1], 80, false, 0.0),
    ];
    let (tokens, features) = (37, 68);
    for (outs, adapted, rank, has_bias, rate) in groups {
        let what = |name: &str| format!("{name} of {outs:?} at {adapted:?}, rank {rank}");
        let weights: Vec<Tensor<2>> = outs
            .iter()
            .map(|out| random(&format!("w{out}"), [*out, features]))
            .collect();
        let width = outs.iter().sum::<usize>();
        let bias: Option<Tensor<1>> = has_bias.then(|| random("bias", [width]));
        let on_host = |weight: &Tensor<2>| {
            let [rows, cols] = weight.dims();
            let values = Host::of(weight.clone()).into_values();
            let matrix = QuantMatrix::from_f32(rows, cols, &values).unwrap();
            FrozenMatrix::Host(HostMatrix::Stored(matrix))
        };
        let on_gpu = |weight: &Tensor<2>| FrozenMatrix::Dense(weight.clone().to_device(&gpu));
        let there = bias.clone().map(|bias| bias.to_device(&gpu));
        let groups = [
            LinearGroup::new(weights.iter().map(on_host).collect(), bias),
            LinearGroup::new(weights.iter().map(on_gpu).collect(), there),
        ];
        let adapters = [Device::flex(), gpu.clone()].map(|device| {
            let pieces = adapted.iter().enumerate().map(|(i, &part)| PartB {
                part,
                ranks: i * rank..(i + 1) * rank,
                b: random(&format!("b{part}"), [outs[part], rank]).to_device(&device),
            });
            (!adapted.is_empty()).then(|| GroupLora {
                a: random("a", [rank * adapted.len(), features]).to_device(&device),
                b: pieces.collect(),
                scale: 0.7,
                dropout: (rate > 0.0).then_some(Dropout {
                    rate,
                    seed: 5,
                    first_row: 3,
                }),
                trains_a: true,
            })
        });
        let x: Tensor<2> = random("x", [tokens, features]);
        let dy: Tensor<2> = random("dy", [tokens, width]);
        let [(y, dx, grads), (gpu_y, gpu_dx, gpu_grads)] = [0, 1].map(|i| {
            let device = [Device::flex(), gpu.clone()][i].clone();
            let (x, dy) = (x.clone().to_device(&device), dy.clone().to_device(&device));
            let adapters = adapters[i].as_ref();
            let out = groups[i].forward(&x, adapters);
            let (dx, grads) = groups[i].backward(&dy, &x, out.u.as_ref(), adapters, true);
            let dx = dx.unwrap().to_device(&Device::flex());
            let grads = grads
                .into_iter()
                .flat_map(|grads| grads.a.into_iter().chain(grads.b));
            let grads: Vec<_> = grads.map(|g| g.to_device(&Device::flex())).collect();
            (out.y.to_device(&Device::flex()), dx, grads)
        });
        close(&what("y"), &gpu_y, &y, 1e-5);
        close(&what("dx"), &gpu_dx, &dx, 1e-5);
        assert_eq!(gpu_grads.len(), grads.len());
        for (i, (got, expected)) in gpu_grads.iter().zip(&grads).enumerate() {
            close(&what(&format!("gradient {i}")), got, expected, 1e-5);
        }
    }
}

#[test]
fn gpu_dropout_is_the_same_to_the_last_bit() {
    let Some(gpu) = gpu() else { return };
    // The last one counts beyond 32 bits.
    for (seed, rate, first_row) in [(7, 0.05, 0), (u64::MAX / 3, 0.5, 11), (1, 0.9, 3 << 30)] {
        for [rows, features] in SHAPES {
            let mask = Dropout {
                rate,
                seed,
                first_row,
            };
            let x = random("x", [rows, features]);
            let got = dropout(&x.clone().to_device(&gpu), &mask).to_device(&Device::flex());
            let (got, expected) = (Host::of(got), Host::of(dropout(&x, &mask)));
            assert_eq!(got.values(), expected.values(), "{mask:?}");
        }
    }
}

#[test]
fn gpu_losses_agree() {
    let Some(gpu) = gpu() else { return };
    for soft_cap in [None, Some(3.0)] {
        for [rows, vocabulary] in SHAPES {
            let logits = random("logits", [rows, vocabulary]).mul_scalar(9.0);
            let targets: Vec<u32> = (0..rows).map(|i| (i * 61 % vocabulary) as u32).collect();
            let [here, there]: [Tensor<1, Int>; 2] = [&Device::flex(), &gpu]
                .map(|device| indices_on(targets.iter().map(|&t| t as i32).collect(), device));
            let gpu_logits: Tensor<2> = logits.clone().to_device(&gpu);
            let what = |name| format!("{name} [{rows}, {vocabulary}] {soft_cap:?}");

            let log_probs = super::log_probs(&gpu_logits, &there, soft_cap).unwrap();
            let twin = loss::composed::log_probs(logits.clone(), here.clone(), soft_cap);
            let mut fused = Host::of(logits.clone()).into_values();
            let losses = loss::loss_rows(&mut fused, &targets, 0.7, soft_cap);
            let fused = host_tensor(fused, [rows, vocabulary]);
            agrees(
                &what("log-probabilities"),
                log_probs.clone(),
                &host_tensor(losses, [rows]).neg(),
                &twin,
                1e-5,
            );
            let (losses, gradient) = super::losses(gpu_logits, &there, 0.7, soft_cap).unwrap();
            assert_eq!(
                Host::of(losses.neg().to_device(&Device::flex())).values(),
                Host::of(log_probs.to_device(&Device::flex())).values()
            );
            let (_, twin) = loss::composed::losses(logits, here, 0.7, soft_cap);
            agrees(&what("gradient"), gradient, &fused, &twin, 1e-5);
        }
    }
}

#[test]
fn gpu_flat_passes_agree() {
    let Some(gpu) = gpu() else { return };
    for len in LENGTHS {
        let [g, w, anchor] = ["g", "w", "anchor"].map(|name| random(name, [len]));
        let [gpu_g, gpu_w, gpu_anchor] =
            [&g, &w, &anchor].map(|t: &Tensor<1>| t.clone().to_device(&gpu));
        agrees(
            "combination",
            combine(gpu_g.clone(), 0.5, &gpu_w, -2.0),
            &combine(g.clone(), 0.5, &w, -2.0),
            &flat::composed::combine(g.clone(), 0.5, &w, -2.0),
            1e-6,
        );
        agrees("a vector held elsewhere", gpu_g.clone(), &g, &g, 0.0);
        agrees(
            "squares",
            sum_of_squares(&gpu_g),
            &sum_of_squares(&g),
            &flat::composed::sum_of_squares(&g),
            1e-5,
        );
        let sum = super::sum(&gpu_g).unwrap();
        let ones = g.clone().abs().add_scalar(1.0).to_device(&gpu);
        let of_ones = super::sum(&ones).unwrap();
        let exact = |t: &Tensor<1>| {
            let sum: f64 = Host::of(t.clone())
                .values()
                .iter()
                .copied()
                .map(f64::from)
                .sum();
            host_tensor(vec![sum as f32], [1])
        };
        close("sum", &sum.to_device(&Device::flex()), &exact(&g), 1e-2);
        let exact = exact(&ones.to_device(&Device::flex()));
        close("sum", &of_ones.to_device(&Device::flex()), &exact, 1e-5);
        let (got, sums) = pull(gpu_g, &gpu_w, &gpu_anchor, 0.25);
        let (fused, fused_sums) = pull(g.clone(), &w, &anchor, 0.25);
        let (twin, twin_sums) = flat::composed::pull(g, &w, &anchor, 0.25);
        agrees("pulled", got, &fused, &twin, 1e-6);
        agrees("sums", sums, &fused_sums, &twin_sums, 1e-5);
    }
}

#[test]
fn gpu_vectors_are_put_together() {
    let Some(gpu) = gpu() else { return };
    for lengths in [vec![300], vec![1, 700, 64, 5, 2, 9], vec![513; 15]] {
        let part = |(i, &len): (usize, &usize)| random(&format!("part {i}"), [len]);
        let parts: Vec<Tensor<1>> = lengths.iter().enumerate().map(part).collect();
        let there = parts.iter().map(|part| part.clone().to_device(&gpu));
        let got = concatenate(there.collect());
        let expected = Tensor::cat(parts.clone(), 0);
        agrees("vectors", got, &concatenate(parts), &expected, 0.0);
    }
}

#[test]
fn gpu_adamw_agrees() {
    let Some(gpu) = gpu() else { return };
    let step = AdamWStep {
        lr: 1e-2,
        beta1: 0.9,
        beta2: 0.99,
        eps: 1e-8,
        weight_decay: 0.1,
        grad_scale: 0.5,
    };
    for len in LENGTHS {
        let [params, first, second, grads] = ["p", "m", "v", "g"].map(|name| random(name, [len]));
        let second = second.abs();
        let factors = Factors::new(&step, 3);
        let state = |device: &Device| {
            let [params, first, second] =
                [&params, &first, &second].map(|t: &Tensor<1>| t.clone().to_device(device));
            State {
                params,
                first,
                second,
            }
        };
        let gpu_grads = grads.clone().to_device(&gpu);
        let got = super::adamw(state(&gpu), &gpu_grads, &factors).unwrap();
        let fused = adamw::advance(state(&Device::flex()), grads.clone(), &factors);
        let twin = adamw::composed::advance(state(&Device::flex()), grads, &factors);
        agrees("parameters", got.params, &fused.params, &twin.params, 1e-5);
        agrees("first moment", got.first, &fused.first, &twin.first, 1e-6);
        agrees(
            "second moment",
            got.second,
            &fused.second,
            &twin.second,
            1e-6,
        );
    }
}
