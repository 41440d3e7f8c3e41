//! Local steps of every kind on a GPU against the CPU. Runs where `FEDLLM_TEST_GPU` is set.

use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::tensor::Device;
use fedllm_models::device;
use fedllm_models::lora::Lora;
use fedllm_models::objective::{PairReference, PreferenceSettings};
use fedllm_models::train::{Correction, Memory, Outcome, StepSettings, Trainer};
use fedllm_shared::{LocalOptimizer, PreferenceLoss, VariateForm};
use fedllm_tests::gpu::adapter;

use super::correction::variate;
use super::golden::{Golden, minus, relative_l2, settings};
use super::preference::pairs;

/// Lets one test at a time use the GPU: what a step costs is counted for the whole process.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static GPU: Mutex<()> = Mutex::new(());
    GPU.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What two steps left: losses and norms, the update, the control variate.
struct Steps {
    numbers: Vec<f32>,
    update: Vec<f32>,
    variate: Vec<f32>,
}

/// Three steps on the same pairs: every new shape would cost a compilation.
fn steps(golden: &Golden, lora: Lora, correction: Correction<'_>, sgd: bool) -> Steps {
    let settings = match sgd {
        true => StepSettings {
            optimizer: LocalOptimizer::Sgd,
            lr: 0.05,
            weight_decay: 0.1,
            ..settings()
        },
        false => settings(),
    };
    let form = PreferenceSettings {
        beta: 0.1,
        label_smoothing: 0.1,
        loss: PreferenceLoss::Sigmoid,
    };
    let memory = Memory {
        recompute: sgd,
        ..Memory::default()
    };
    let trainer = Trainer::new(&golden.model, lora, memory);
    let mut trainer = trainer.with_correction(correction).unwrap();
    let mut numbers = Vec::new();
    for _ in 0..3 {
        let (stats, said) = trainer
            .preference_step(&pairs(), PairReference::Base, &settings, &form)
            .unwrap();
        numbers.extend([stats.loss, stats.objective, stats.grad_norm]);
        numbers.extend([said.chosen, said.rejected, said.margin]);
    }
    let Outcome { lora, variate, .. } = trainer.into_outcome();
    let after = lora.to_adapter().unwrap();
    Steps {
        numbers,
        update: minus(after.values(), golden.adapter.values()),
        variate: variate.unwrap_or_default(),
    }
}

#[test]
fn gpu_steps_agree_with_the_cpu() {
    let Some(info) = adapter() else {
        return;
    };
    let _alone = alone();
    let gpu = Golden::load("llama", &device::open(&info).unwrap());
    let cpu = Golden::load("llama", &Device::flex());
    let lora = cpu.only_b();
    let (server, client) = (variate(&lora, "c:"), variate(&lora, "c_i:"));
    let variate = |form| Correction::ControlVariate {
        server: &server,
        client: &client,
        form,
    };
    for (name, correction, sgd, only_b) in [
        ("proximal", Correction::Proximal { mu: 0.5 }, false, false),
        (
            "of the gradient",
            variate(VariateForm::Gradient),
            true,
            true,
        ),
        (
            "after the step",
            variate(VariateForm::AfterStep),
            false,
            true,
        ),
    ] {
        let run = |golden: &Golden| {
            let lora = if only_b {
                golden.only_b()
            } else {
                golden.lora()
            };
            steps(golden, lora, correction, sgd)
        };
        let (expected, got) = (run(&cpu), run(&gpu));
        for (expected, got) in expected.numbers.iter().zip(&got.numbers) {
            let error = (expected - got).abs() / expected.abs().max(1.0);
            assert!(error < 1e-4, "{name}: {got} against {expected}");
        }
        let error = relative_l2(&got.update, &expected.update);
        assert!(error < 2e-3, "{name}: the update is {error:e} off");
        if !expected.variate.is_empty() {
            let error = relative_l2(&got.variate, &expected.variate);
            assert!(error < 2e-3, "{name}: the variate is {error:e} off");
        }
    }
}
