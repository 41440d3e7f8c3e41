//! Elementary operations on a GPU against the CPU.
//!
//! When the step goes wrong on a driver, this says which operation does. It needs an adapter, so it
//! runs where `FEDLLM_TEST_GPU` is set: `1` for the first adapter, a software one included, or what
//! `--device` takes. `.ci/run` sets it, with software Vulkan.

use std::time::Instant;

use burn::tensor::activation::{sigmoid, silu, softmax};
use burn::tensor::{Bool, Device, IndexingUpdateOp, Int, Tensor, TensorData};
use fedllm_models::device;
use fedllm_tests::gpu::adapter;

type Case = (&'static str, f32, fn(&Device) -> Vec<f32>);

/// Exact results, and results after at most a few thousand roundings.
const EXACT: f32 = 0.0;
const ROUNDED: f32 = 2e-5;

#[test]
fn gpu_operations_agree_with_the_cpu() {
    let Some(info) = adapter() else {
        return;
    };
    let gpu = device::open(&info).unwrap();
    let cpu = Device::flex();
    let mut wrong = Vec::new();
    for (name, tolerance, case) in CASES {
        let started = Instant::now();
        let expected = case(&cpu);
        let outcome = device::run_checked(&gpu, || case(&gpu))
            .map_err(|error| error.to_string())
            .and_then(|actual| compare(&expected, &actual, *tolerance));
        let seconds = started.elapsed().as_secs_f32();
        println!("{name:24} {seconds:6.2} s  {outcome:?}");
        if let Err(error) = outcome {
            wrong.push(format!("{name}: {error}"));
        }
    }
    assert!(wrong.is_empty(), "on {info}:\n{}", wrong.join("\n"));
}

#[test]
fn gpu_memory_that_is_not_there_is_an_error() {
    let Some(info) = adapter() else {
        return;
    };
    let gpu = device::open(&info).unwrap();
    let len = (info.memory.largest_buffer_bytes / 4) as usize + 1024;
    let outcome = device::run_checked(&gpu, || {
        let large = Tensor::<1>::ones([len], &gpu) * 2.0;
        large.narrow(0, 0, 1).try_into_vec_as::<f32>()
    });
    assert!(!matches!(outcome, Ok(Ok(_))), "{outcome:?}");
    println!("{len} values: {outcome:?}");
    let after = device::run_checked(&gpu, || out(floats([3, 4], 1, &gpu) + 1.0)).unwrap();
    assert_eq!(after, out(floats([3, 4], 1, &Device::flex()) + 1.0));
}

/// Largest error, relative to the largest value.
fn compare(expected: &[f32], actual: &[f32], tolerance: f32) -> Result<f32, String> {
    if expected.len() != actual.len() {
        return Err(format!(
            "{} values, expected {}",
            actual.len(),
            expected.len()
        ));
    }
    let size = expected.iter().fold(1e-30_f32, |max, v| max.max(v.abs()));
    let mut worst = 0.0_f32;
    for (place, (a, b)) in expected.iter().zip(actual).enumerate() {
        let error = (a - b).abs() / size;
        if error.is_nan() || error > tolerance {
            return Err(format!("value {place} is {b}, expected {a}"));
        }
        worst = worst.max(error);
    }
    Ok(worst)
}

const CASES: &[Case] = &[
    ("add, mul, scalar", ROUNDED, |d| {
        out(floats([33, 17], 1, d) * floats([33, 17], 2, d) + floats([1, 17], 3, d) * 0.5)
    }),
    ("exp, log, sqrt", ROUNDED, |d| {
        let x = floats([400, 3], 1, d);
        let log = (x.clone().abs() + 0.1).log();
        out(Tensor::cat(vec![x.clone().exp(), log, x.abs().sqrt()], 1))
    }),
    ("sigmoid, silu, tanh", ROUNDED, |d| {
        let x = floats([64, 9], 4, d);
        out(Tensor::cat(
            vec![sigmoid(x.clone()), silu(x.clone()), x.tanh()],
            0,
        ))
    }),
    ("sin, cos", ROUNDED, |d| {
        let x = floats([64, 9], 4, d) * 20.0;
        out(x.clone().sin() + x.cos() * 2.0)
    }),
    ("sum, mean, max", ROUNDED, |d| {
        let x = floats([30, 100], 5, d);
        let norm = x.clone().square().mean_dim(1).sqrt().recip();
        let (sum, mean) = (x.clone().sum_dim(1), x.clone().mean_dim(1));
        out(Tensor::cat(vec![sum, mean, x.max_dim(1), norm], 1))
    }),
    ("sum of all", ROUNDED, |d| {
        out(floats([77, 130], 6, d).square().sum().reshape([1, 1]))
    }),
    ("matmul", ROUNDED, |d| {
        out(floats([17, 64], 1, d).matmul(floats([64, 48], 2, d)))
    }),
    ("matmul, large", ROUNDED, |d| {
        out(floats([128, 192], 1, d).matmul(floats([192, 256], 2, d)))
    }),
    ("matmul, transposed right", ROUNDED, |d| {
        out(floats([65, 96], 1, d).matmul(floats([70, 96], 2, d).transpose()))
    }),
    ("matmul, transposed left", ROUNDED, |d| {
        out(floats([96, 8], 1, d)
            .transpose()
            .matmul(floats([96, 40], 2, d)))
    }),
    ("matmul, one row", ROUNDED, |d| {
        out(floats([1, 96], 1, d).matmul(floats([96, 131], 2, d)))
    }),
    ("matmul, rank 8", ROUNDED, |d| {
        let low = floats([50, 72], 1, d).matmul(floats([72, 8], 2, d));
        out(low.matmul(floats([8, 33], 3, d)))
    }),
    ("matmul, batches of heads", ROUNDED, |d| {
        let heads = |seed| {
            floats([2 * 20, 3 * 16], seed, d)
                .reshape([2, 20, 3, 16])
                .swap_dims(1, 2)
        };
        let scores: Tensor<4> = heads(1).matmul(heads(2).transpose());
        out(scores.reshape([2 * 3 * 20, 20]))
    }),
    ("softmax", ROUNDED, |d| {
        out(softmax(floats([40, 257], 7, d) * 10.0, 1))
    }),
    ("softmax, masked", ROUNDED, |d| {
        let mask = Tensor::<2, Bool>::tril_mask([32, 32], 0, d);
        out(softmax(floats([32, 32], 8, d).mask_fill(mask, -1e9), 1))
    }),
    ("mask from integers", EXACT, |d| {
        let places = Tensor::<1, Int>::arange(0..24, d).reshape([24, 1]);
        let places: Tensor<2, Int> = places.repeat_dim(1, 24);
        out(places.clone().greater(places.transpose()).float())
    }),
    ("mask_where", EXACT, |d| {
        let (a, b) = (floats([9, 11], 1, d), floats([9, 11], 2, d));
        out(a.clone().mask_where(a.greater(b.clone()), b))
    }),
    ("select", EXACT, |d| {
        out(floats([50, 13], 9, d).select(0, ids(&[49, 0, 7, 7, 31], d)))
    }),
    ("select_assign", ROUNDED, |d| {
        out(floats([9, 5], 1, d).select_assign(
            0,
            ids(&[2, 2, 8], d),
            floats([3, 5], 2, d),
            IndexingUpdateOp::Add,
        ))
    }),
    ("gather", EXACT, |d| {
        out(floats([4, 60], 9, d).gather(1, ids(&[59, 0, 30, 2], d).reshape([4, 1])))
    }),
    ("scatter", ROUNDED, |d| {
        out(Tensor::zeros([4, 60], d).scatter(
            1,
            ids(&[59, 0, 30, 2], d).reshape([4, 1]),
            floats([4, 1], 3, d),
            IndexingUpdateOp::Add,
        ))
    }),
    ("argmax", EXACT, |d| {
        out(floats([20, 300], 3, d).argmax(1).float())
    }),
    ("cat", EXACT, |d| {
        let parts = [(5, 1), (9, 2), (1, 3)].map(|(cols, seed)| floats([7, cols], seed, d));
        out(Tensor::cat(parts.to_vec(), 1))
    }),
    ("slice", EXACT, |d| {
        out(floats([20, 30], 1, d).slice([3..19, 7..8]))
    }),
    ("slice_assign", EXACT, |d| {
        out(floats([20, 30], 1, d).slice_assign([3..7, 5..25], floats([4, 20], 2, d)))
    }),
    ("slice of a transpose", EXACT, |d| {
        out(floats([20, 30], 1, d).transpose().slice([2..9, 1..20]) + 0.0)
    }),
    ("rotation of halves", ROUNDED, |d| {
        let x: Tensor<3> = floats([6 * 4, 16], 1, d).reshape([6, 4, 16]);
        let cos: Tensor<3> = floats([6, 8], 2, d).reshape([6, 1, 8]);
        let sin: Tensor<3> = floats([6, 8], 3, d).reshape([6, 1, 8]);
        let (a, b) = (
            x.clone().slice([0..6, 0..4, 0..8]),
            x.slice([0..6, 0..4, 8..16]),
        );
        let low = a.clone() * cos.clone() - b.clone() * sin.clone();
        let high = b * cos + a * sin;
        out(Tensor::cat(vec![low, high], 2).reshape([24, 16]))
    }),
    ("repeat of heads", EXACT, |d| {
        let x: Tensor<4> = floats([6, 2 * 5], 1, d).reshape([6, 2, 1, 5]);
        out(x.repeat_dim(2, 3).reshape([6, 30]))
    }),
    ("four bits of a word", EXACT, |d| {
        let words: Tensor<2, Int> =
            ids(&[0x7654_3210, -1, 0x0f0f_0f0f, i32::MIN], d).reshape([4, 1]);
        let shifts: Tensor<2, Int> = ids(&[0, 4, 8, 12, 16, 20, 24, 28], d).reshape([1, 8]);
        let shifted = words
            .repeat_dim(1, 8)
            .bitwise_right_shift(shifts.repeat_dim(0, 4));
        out(shifted.bitwise_and_scalar(15).float())
    }),
    ("clamp, sign, division", ROUNDED, |d| {
        let x = floats([31, 7], 1, d);
        out(x.clone().clamp(-0.5, 0.5) / (x.clone().sign() + 2.0) - x.powi_scalar(2))
    }),
];

fn out(tensor: Tensor<2>) -> Vec<f32> {
    tensor
        .try_into_vec_as()
        .unwrap_or_else(|error| panic!("the result cannot be read: {error}"))
}

/// Values between -1 and 1, the same on every device.
fn floats(shape: [usize; 2], seed: u32, device: &Device) -> Tensor<2> {
    let mut state = seed.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
    let values: Vec<f32> = (0..shape[0] * shape[1])
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1u32 << 23) as f32 - 1.0
        })
        .collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

fn ids(values: &[i32], device: &Device) -> Tensor<1, Int> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), device)
}
