//! Local steps of every kind on a GPU against the CPU. Runs where `FEDLLM_TEST_GPU` is set.

use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::tensor::Device;
use fedllm_models::lora::{Lora, read_back};
use fedllm_models::objective::{PairReference, PreferenceSettings};
use fedllm_models::train::{Correction, Memory, Outcome, StepSettings, Trainer};
use fedllm_models::{BasePrecision, Gradients, device};
use fedllm_shared::{Adapter, LocalOptimizer, PreferenceLoss, VariateForm};
use fedllm_tests::gpu::adapter;

use super::correction::variate;
use super::golden::{Golden, minus, relative_l2, settings};
use super::preference::pairs;

/// The GPU that is tested, if one is, and the turn to use it: what a step costs is counted for the
/// whole process.
pub(crate) fn gpu() -> Option<(MutexGuard<'static, ()>, Device)> {
    static TURN: Mutex<()> = Mutex::new(());
    let info = adapter()?;
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    Some((turn, device::open(&info).unwrap()))
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
    let Some((_turn, gpu)) = gpu() else {
        return;
    };
    let gpu = Golden::load("llama", &gpu);
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

/// The loss and the gradient of the golden batch, with a base in these bits.
fn gradient(precision: BasePrecision, device: &Device, mixed: bool) -> (f32, Vec<f32>) {
    let golden = Golden::load_as("llama", precision, device);
    golden.model.mixed_precision().set(mixed);
    let trainer = Trainer::new(&golden.model, golden.lora(), Memory::default());
    let Gradients { loss_sum, flat } = trainer.gradients(&golden.batch(), &settings()).unwrap();
    assert_eq!(golden.model.mixed_precision().is_on(), mixed);
    (read_back(loss_sum)[0], read_back(flat))
}

#[test]
fn gpu_mixed_precision_rounds_products_with_the_base_and_nothing_else() {
    let Some((_turn, gpu)) = gpu() else {
        return;
    };
    for precision in [BasePrecision::F16, BasePrecision::Nf4] {
        let (loss, expected) = gradient(precision, &Device::flex(), false);
        let single = gradient(precision, &gpu, false);
        let mixed = gradient(precision, &gpu, true);
        let off = |(of, values): &(f32, Vec<f32>)| {
            ((of - loss).abs() / loss, relative_l2(values, &expected))
        };
        println!("{precision}: {:?}, mixed {:?}", off(&single), off(&mixed));
        assert!(off(&single).0 < 1e-5 && off(&single).1 < 1e-4);
        // Half a unit in the last place of eleven bits is 2.4e-4; of several products, more.
        assert!(off(&mixed).0 < 1e-3 && off(&mixed).1 < 5e-3);
        assert!(off(&mixed).1 > 1e-5, "nothing was rounded");
    }
    // A base in single precision asks for products in single precision.
    let single = gradient(BasePrecision::F32, &gpu, false);
    let (loss, values) = gradient(BasePrecision::F32, &gpu, true);
    assert!((loss - single.0).abs() < 1e-4 && relative_l2(&values, &single.1) < 1e-5);
}

/// A step in mixed precision and in single, from a larger adapter: whether the first is still in mixed
/// precision after it, and how far its update is off.
fn step_of(
    gpu: &Device,
    larger: f32,
    step: impl Fn(&mut Trainer<'_>, &Golden, &StepSettings),
) -> (bool, f64) {
    let sgd = StepSettings {
        optimizer: LocalOptimizer::Sgd,
        lr: 1e-2,
        ..settings()
    };
    let update = |mixed: bool| {
        let golden = Golden::load_as("llama", BasePrecision::F16, gpu);
        golden.model.mixed_precision().set(mixed);
        let layout = golden.adapter.layout().clone();
        let values: Vec<f32> = golden.adapter.values().iter().map(|v| v * larger).collect();
        let start = Adapter::new(layout, values).unwrap();
        let lora = golden.lora_of(&start);
        let mut trainer = Trainer::new(&golden.model, lora, Memory::default());
        step(&mut trainer, &golden, &sgd);
        let after = trainer.into_outcome().lora.to_adapter().unwrap();
        let update = minus(after.values(), start.values());
        (golden.model.mixed_precision().is_on(), update)
    };
    let (_, expected) = update(false);
    let (is_mixed, got) = update(true);
    (is_mixed, relative_l2(&got, &expected))
}

#[test]
fn gpu_mixed_precision_gives_way_to_large_values() {
    let Some((_turn, gpu)) = gpu() else {
        return;
    };
    // Gradients that a smaller loss scale saves.
    let (is_mixed, error) = step_of(&gpu, 1.0, |trainer, _, settings| {
        let steep = PreferenceSettings {
            beta: 1e4,
            label_smoothing: 0.1,
            loss: PreferenceLoss::Sigmoid,
        };
        trainer
            .preference_step(&pairs(), PairReference::Base, settings, &steep)
            .unwrap();
    });
    println!("large gradients: {error:e}");
    assert!(is_mixed && error < 2e-2, "{is_mixed} {error:e}");
    // Activations that half precision cannot hold.
    let (is_mixed, error) = step_of(&gpu, 1e3, |trainer, golden, settings| {
        trainer.step(&golden.batch(), settings).unwrap();
    });
    assert!(!is_mixed && error == 0.0, "{is_mixed} {error:e}");
}
