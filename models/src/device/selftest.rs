//! Proof that a device trains correctly: one step of a tiny model there and on the CPU, compared.
//!
//! Drivers and shader compilers have been seen to return a plausible loss with wrong gradients, or
//! to go wrong only for long sequences. A wrong delta would spoil the round of everybody else, so
//! loss and every adapter gradient are compared before a device may train, for a short and for a
//! long sequence.

use std::time::Instant;

use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use super::{Backend, DeviceError, DeviceInfo, DeviceKind, run_checked};
use crate::ops::has_matrix_units;

/// What one training step of the tiny model gave.
#[derive(Clone, Debug, PartialEq)]
pub struct TinyStep {
    /// Mean loss over the loss tokens.
    pub loss: f32,
    /// Gradients of all adapter tensors, one after the other in the layout's order.
    pub gradients: Vec<f32>,
    /// Tokens of a step by its duration.
    pub tokens_per_second: f64,
}

/// Runs one training step of the tiny model with rows of so many tokens on a device, in mixed precision
/// or not. The same model, adapter (with B not zero, so that no gradient vanishes) and rows every time.
pub type StepFn = dyn Fn(&Device, usize, bool) -> Result<TinyStep, String>;

/// A passed self-test: how far the device was from the CPU, and how fast.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SelfTest {
    /// Largest difference of the loss, relative to the CPU's where that is above 1.
    pub loss_error: f32,
    /// Largest difference of the gradients in one block of 64 values, relative (L2).
    pub gradient_error: f32,
    /// Speed of the second step with the longest rows, when all kernels were ready.
    pub tokens_per_second: f64,
    /// Duration of the whole test in seconds, most of it compiling kernels.
    pub seconds: f64,
    /// The same in mixed precision, on a device with matrix units for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mixed: Option<Mixed>,
}

impl SelfTest {
    /// Whether the device may train in mixed precision.
    pub fn takes_mixed_precision(&self) -> bool {
        matches!(self.mixed, Some(Mixed::Passed { .. }))
    }
}

/// What became of the self-test's part in mixed precision. A device that fails it trains in single.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mixed {
    /// It was as near to the CPU as half-precision factors can be.
    Passed {
        /// Largest difference of the loss, as [`SelfTest::loss_error`].
        loss_error: f32,
        /// Largest difference of the gradients, as [`SelfTest::gradient_error`].
        gradient_error: f32,
        /// Speed of the second step with the longest rows.
        tokens_per_second: f64,
    },
    /// It was not.
    Refused {
        /// What happened.
        reason: String,
    },
}

/// Why a self-test was not passed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SelfTestError {
    /// The device computes something else than the CPU.
    #[error(
        "{what} differs from the CPU's by {error:.1e} with {seq_len} tokens; at most {limit:.0e} is rounding"
    )]
    Wrong {
        /// Loss or gradients.
        what: &'static str,
        /// Relative difference.
        error: f32,
        /// The largest difference allowed.
        limit: f32,
        /// Length of the rows.
        seq_len: usize,
    },
    /// The device returned NaN or infinity.
    #[error("{what} is not finite with {seq_len} tokens")]
    NotFinite {
        /// Loss or gradients.
        what: &'static str,
        /// Length of the rows.
        seq_len: usize,
    },
    /// The step could not be run.
    #[error("{0}")]
    Step(String),
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// The differences that are rounding, not error.
///
/// All paths compute in 32-bit floating point. The CPU is compared with itself. WGSL on software
/// Vulkan differed by 1e-4 in the logits of a whole model; SPIR-V and MSL may contract and reorder
/// more freely. A wrong kernel is off by much more than any of these.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// For the loss, relative where the loss is above 1.
    pub loss: f32,
    /// For the gradients, relative L2 within a block.
    pub gradient: f32,
}

impl Tolerance {
    /// What is allowed to products of half-precision factors, whose rounding is 2⁻¹¹ each.
    pub const MIXED: Self = Self {
        loss: 2e-3,
        gradient: 2e-2,
    };

    /// What is allowed to a backend in this build.
    pub fn of(backend: Backend) -> Self {
        match backend.compiler() {
            "native" => Self {
                loss: 1e-6,
                gradient: 1e-5,
            },
            "wgsl" => Self {
                loss: 1e-4,
                gradient: 1e-3,
            },
            _ => Self {
                loss: 2e-4,
                gradient: 2e-3,
            },
        }
    }
}

/// Row lengths to test with: long rows take other kernels. A software adapter would need minutes for
/// them, and is not used for real work.
pub fn seq_lens(kind: DeviceKind) -> &'static [usize] {
    match kind {
        DeviceKind::Software => &[16],
        _ => &[64, 1024, 2048],
    }
}

/// Compares one step of the tiny model on `device`, which was opened for `info`, with the CPU's.
///
/// # Errors
///
/// [`SelfTestError`] if the device failed or computes something else.
pub fn run(info: &DeviceInfo, device: &Device, step: &StepFn) -> Result<SelfTest, SelfTestError> {
    let started = Instant::now();
    let lens = seq_lens(info.kind);
    let expected = lens
        .iter()
        .map(|&seq_len| Ok((seq_len, step(&Device::flex(), seq_len, false)?)))
        .collect::<Result<Vec<_>, _>>()
        .map_err(SelfTestError::Step)?;
    let pass = |mixed: bool, tolerance: Tolerance| {
        let (mut loss_error, mut gradient_error, mut tokens_per_second) = (0.0f32, 0.0f32, 0.0);
        for (seq_len, expected) in &expected {
            let step = || measure(device, *seq_len, mixed, step);
            let (loss, gradient) = compare(expected, &step()?, *seq_len, tolerance)?;
            loss_error = loss_error.max(loss);
            gradient_error = gradient_error.max(gradient);
            tokens_per_second = step()?.tokens_per_second;
        }
        Ok((loss_error, gradient_error, tokens_per_second))
    };
    let (loss_error, gradient_error, tokens_per_second) = pass(false, Tolerance::of(info.backend))?;
    let mixed = has_matrix_units(device).then(|| match pass(true, Tolerance::MIXED) {
        Ok((loss_error, gradient_error, tokens_per_second)) => Mixed::Passed {
            loss_error,
            gradient_error,
            tokens_per_second,
        },
        Err::<_, SelfTestError>(error) => Mixed::Refused {
            reason: error.to_string(),
        },
    });
    Ok(SelfTest {
        loss_error,
        gradient_error,
        tokens_per_second,
        seconds: started.elapsed().as_secs_f64(),
        mixed,
    })
}

fn measure(
    device: &Device,
    seq_len: usize,
    mixed: bool,
    step: &StepFn,
) -> Result<TinyStep, SelfTestError> {
    run_checked(device, || step(device, seq_len, mixed))?.map_err(SelfTestError::Step)
}

/// Differences of loss and gradients, if both are within the tolerance.
fn compare(
    expected: &TinyStep,
    measured: &TinyStep,
    seq_len: usize,
    tolerance: Tolerance,
) -> Result<(f32, f32), SelfTestError> {
    if expected.gradients.len() != measured.gradients.len() {
        return Err(SelfTestError::Step(format!(
            "the step gave {} gradient values, {} were expected",
            measured.gradients.len(),
            expected.gradients.len()
        )));
    }
    let loss = (measured.loss - expected.loss).abs() / expected.loss.abs().max(1.0);
    let gradient = block_error(&expected.gradients, &measured.gradients);
    check("the loss", loss, tolerance.loss, seq_len)?;
    check("a gradient", gradient, tolerance.gradient, seq_len)?;
    Ok((loss, gradient))
}

fn check(what: &'static str, error: f32, limit: f32, seq_len: usize) -> Result<(), SelfTestError> {
    if !error.is_finite() {
        Err(SelfTestError::NotFinite { what, seq_len })
    } else if error > limit {
        Err(SelfTestError::Wrong {
            what,
            error,
            limit,
            seq_len,
        })
    } else {
        Ok(())
    }
}

/// Largest relative L2 difference of a block of 64 values, so that one wrong tensor among many large
/// ones shows. A block much smaller than the average is measured against a tenth of the average.
fn block_error(expected: &[f32], measured: &[f32]) -> f32 {
    const BLOCK: usize = 64;
    let mean_square = sum_of_squares(expected.iter().copied()) / expected.len().max(1) as f64;
    let mut worst = 0.0_f64;
    for (expected, measured) in expected.chunks(BLOCK).zip(measured.chunks(BLOCK)) {
        let difference = sum_of_squares(expected.iter().zip(measured).map(|(a, b)| a - b));
        let size = sum_of_squares(expected.iter().copied())
            .max(0.01 * mean_square * expected.len() as f64);
        let error = if difference == 0.0 {
            0.0
        } else {
            (difference / size).sqrt()
        };
        // `max` would drop a NaN.
        if error.is_nan() || error > worst {
            worst = error;
        }
        if worst.is_nan() {
            break;
        }
    }
    worst as f32
}

fn sum_of_squares(values: impl Iterator<Item = f32>) -> f64 {
    values
        .map(|value| f64::from(value) * f64::from(value))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::super::{Features, Memory};
    use super::*;

    fn info(backend: Backend, kind: DeviceKind) -> DeviceInfo {
        DeviceInfo {
            index: 0,
            name: "device".into(),
            vendor: String::new(),
            backend,
            kind,
            driver: String::new(),
            memory: Memory::default(),
            features: Features::default(),
            adapter: None,
        }
    }

    fn step(loss: f32) -> TinyStep {
        TinyStep {
            loss,
            gradients: (0..200).map(|i| (i as f32 * 0.1).sin()).collect(),
            tokens_per_second: 100.0,
        }
    }

    fn compared(change: impl FnOnce(&mut TinyStep)) -> Result<(f32, f32), SelfTestError> {
        let mut measured = step(3.0);
        change(&mut measured);
        compare(&step(3.0), &measured, 16, Tolerance::of(Backend::Vulkan))
    }

    #[test]
    fn rounding_passes_and_is_reported() {
        let (loss, gradient) = compared(|step| {
            step.loss += 3e-5;
            step.gradients.iter_mut().for_each(|g| *g *= 1.0001);
        })
        .unwrap();
        assert!((loss - 1e-5).abs() < 1e-6, "{loss}");
        assert!((gradient - 1e-4).abs() < 1e-6, "{gradient}");
    }

    #[test]
    fn one_wrong_block_is_found() {
        let error = compared(|step| step.gradients[130..140].fill(0.0)).unwrap_err();
        assert!(matches!(
            error,
            SelfTestError::Wrong {
                what: "a gradient",
                ..
            }
        ));
        let error = compared(|step| step.loss = 2.9).unwrap_err();
        assert!(matches!(
            error,
            SelfTestError::Wrong {
                what: "the loss",
                ..
            }
        ));
    }

    #[test]
    fn zeros_and_infinities_are_refused() {
        let zeros = compared(|step| step.gradients.fill(0.0));
        assert!(matches!(zeros, Err(SelfTestError::Wrong { .. })));
        for bad in [f32::NAN, f32::INFINITY] {
            let error = compared(|step| step.gradients[7] = bad).unwrap_err();
            assert!(matches!(error, SelfTestError::NotFinite { .. }), "{error}");
            let error = compared(|step| step.loss = bad).unwrap_err();
            assert!(matches!(error, SelfTestError::NotFinite { .. }), "{error}");
        }
        let short = compared(|step| step.gradients.truncate(5));
        assert!(matches!(short, Err(SelfTestError::Step(_))));
    }

    #[test]
    fn every_length_is_tested_and_failures_come_through() {
        let cpu = info(Backend::Cpu, DeviceKind::Processor);
        let test = run(&cpu, &Device::flex(), &|_, _, _| Ok(step(3.0))).unwrap();
        assert_eq!(
            (test.loss_error, test.gradient_error, test.tokens_per_second),
            (0.0, 0.0, 100.0)
        );
        let long_only = |_: &Device, seq_len: usize, _| {
            if seq_len < 1000 {
                Ok(step(3.0))
            } else {
                Err("too long".to_owned())
            }
        };
        let error = run(&cpu, &Device::flex(), &long_only).unwrap_err();
        assert_eq!(error, SelfTestError::Step("too long".into()));
    }

    #[test]
    fn gpu_passes_its_self_test() {
        let Some((info, gpu)) = super::super::gpu_for_tests() else {
            return;
        };
        let test = run(&info, &gpu, &super::super::tiny_step).unwrap();
        println!("{info}: {test:?}");
        assert!(test.tokens_per_second > 0.0);
    }

    #[test]
    fn the_processor_passes_its_self_test() {
        let cpu = info(Backend::Cpu, DeviceKind::Processor);
        let test = run(&cpu, &Device::flex(), &super::super::tiny_step).unwrap();
        println!("{test:?}");
    }
}
