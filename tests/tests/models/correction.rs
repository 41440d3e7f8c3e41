//! What federated algorithms change in local training, against OpenFedLLM's own functions on
//! PyTorch and against the papers' formulas.

use burn::tensor::Device;
use fedllm_models::Batch;
use fedllm_models::lora::{Lora, read_back};
use fedllm_models::ops::AdamW;
use fedllm_models::train::{Correction, Memory, Outcome, StepSettings, StepStats, Trainer};
use fedllm_shared::{LocalOptimizer, VariateForm};
use fedllm_tests::synthetic;

use super::golden::{Golden, assert_close, minus, relative_l2, settings};

const PLAIN_SGD: StepSettings = StepSettings {
    optimizer: LocalOptimizer::Sgd,
    lr: 0.05,
    beta1: 0.0,
    beta2: 0.0,
    eps: 0.0,
    weight_decay: 0.0,
    max_grad_norm: 1.0,
    dropout: 0.0,
    seed: 0,
};

/// Golden control variates of what an adapter trains: `c:` or `c_i:` before each tensor's name.
pub(crate) fn variate(lora: &Lora, prefix: &str) -> Vec<f32> {
    let layout = lora.trained();
    let tensors = layout.tensors().iter().enumerate();
    tensors
        .flat_map(|(index, tensor)| {
            let name = format!("{prefix}{}", tensor.name);
            synthetic::uniform(&name, layout.range(index).len(), 0.5)
        })
        .collect()
}

fn fit(
    golden: &Golden,
    correction: Correction<'_>,
    settings: &StepSettings,
    steps: usize,
) -> (Vec<StepStats>, Outcome) {
    let trainer = Trainer::new(&golden.model, golden.lora(), Memory::default());
    let mut trainer = trainer.with_correction(correction).unwrap();
    let batch = golden.batch();
    let stats = (0..steps).map(|_| trainer.step(&batch, settings).unwrap());
    (stats.collect(), trainer.into_outcome())
}

/// The golden federation's control variates, the server's and the client's, and a [`fit`] with them.
fn controlled(
    golden: &Golden,
    form: VariateForm,
    settings: &StepSettings,
    steps: usize,
) -> ([Vec<f32>; 2], Vec<StepStats>, Outcome) {
    let lora = golden.lora();
    let [server, client] = ["c:", "c_i:"].map(|prefix| variate(&lora, prefix));
    let correction = Correction::ControlVariate {
        server: &server,
        client: &client,
        form,
    };
    let (stats, outcome) = fit(golden, correction, settings, steps);
    ([server, client], stats, outcome)
}

fn values(lora: &Lora) -> Vec<f32> {
    lora.to_adapter().unwrap().values().to_vec()
}

/// The clipped gradient of the first step, over the whole adapter.
fn first_gradient(golden: &Golden, batch: &Batch, settings: &StepSettings) -> Vec<f32> {
    let trainer = Trainer::new(&golden.model, golden.lora(), Memory::default());
    let gradient = read_back(trainer.gradients(batch, settings).unwrap().flat);
    let square: f64 = gradient.iter().map(|g| f64::from(*g).powi(2)).sum();
    let scale = (1.0 / square.sqrt()).min(1.0) as f32;
    assert!(scale < 1.0, "the test wants a gradient that is clipped");
    gradient.iter().map(|g| g * scale).collect()
}

#[test]
fn fedprox_is_that_of_openfedllm() {
    let golden = Golden::load("llama", &Device::flex());
    let mu = golden.extra("/fedprox/mu") as f32;
    let (stats, outcome) = fit(&golden, Correction::Proximal { mu }, &settings(), 3);
    for (step, stats) in stats.iter().enumerate() {
        let number = |key| golden.extra(&format!("/fedprox/steps/{step}/{key}"));
        assert_close("task loss", stats.loss, number("task_loss"), 2e-6);
        assert_close("loss", stats.objective, number("loss"), 2e-6);
        assert_close("norm", stats.grad_norm, number("grad_norm"), 1e-5);
    }
    assert_eq!(stats[0].objective, stats[0].loss);
    let start = golden.adapter.values();
    let update = minus(&values(&outcome.lora), start);
    let expected = minus(&golden.extra_flat("fedprox.after3."), start);
    let error = relative_l2(&update, &expected);
    assert!(error < 2e-4, "the update is {error:e} off");
    assert_eq!(outcome.variate, None);
}

#[test]
fn scaffold_after_steps_is_that_of_openfedllm() {
    let golden = Golden::load("llama", &Device::flex());
    let ([_, client], stats, outcome) = controlled(&golden, VariateForm::AfterStep, &settings(), 3);
    for (step, stats) in stats.iter().enumerate() {
        let number = |key| golden.extra(&format!("/scaffold/steps/{step}/{key}"));
        assert_close("loss", stats.loss, number("loss"), 2e-6);
        assert_close("norm", stats.grad_norm, number("grad_norm"), 1e-5);
    }
    let start = golden.adapter.values();
    let update = minus(&values(&outcome.lora), start);
    let expected = minus(&golden.extra_flat("scaffold.adapter."), start);
    let error = relative_l2(&update, &expected);
    assert!(error < 2e-4, "the update is {error:e} off");
    let next = outcome.variate.unwrap();
    let error = relative_l2(&next, &golden.extra_flat("scaffold.new_c_i."));
    assert!(error < 4e-5, "the variate is {error:e} off");
    let delta = minus(&next, &client);
    let error = relative_l2(&delta, &golden.extra_flat("scaffold.delta."));
    assert!(error < 4e-5, "the variate's change is {error:e} off");
}

#[test]
fn with_sgd_the_mean_gradient_is_option_two() {
    let golden = Golden::load("llama", &Device::flex());
    let ([server, client], _, outcome) = controlled(&golden, VariateForm::Gradient, &PLAIN_SGD, 3);
    let moved = minus(golden.adapter.values(), &values(&outcome.lora));
    let option_two: Vec<f32> = moved
        .iter()
        .zip(client.iter().zip(&server))
        .map(|(moved, (c_i, c))| {
            let gradient = f64::from(*moved) / (3.0 * f64::from(PLAIN_SGD.lr));
            (f64::from(*c_i) - f64::from(*c) + gradient) as f32
        })
        .collect();
    let error = relative_l2(&outcome.variate.unwrap(), &option_two);
    assert!(error < 1e-4, "{error:e}");
}

#[test]
fn adamw_sees_the_corrected_gradient_and_the_variate_does_not() {
    let golden = Golden::load("llama", &Device::flex());
    let ([server, client], _, outcome) = controlled(&golden, VariateForm::Gradient, &settings(), 1);
    let gradient = first_gradient(&golden, &golden.batch(), &settings());
    let error = relative_l2(&outcome.variate.unwrap(), &gradient);
    assert!(error < 1e-6, "the variate is {error:e} off");
    let after = values(&outcome.lora);
    for (i, before) in golden.adapter.values().iter().enumerate() {
        // AdamW's first step is as long as the rate, against the sign.
        let corrected = gradient[i] + server[i] - client[i];
        if corrected.abs() > 1e-4 {
            let expected = before - 1e-3 * corrected.signum();
            assert!(
                (after[i] - expected).abs() < 2e-6,
                "value {i}: {}",
                after[i]
            );
        }
    }
}

#[test]
fn sgd_is_its_formula() {
    let golden = Golden::load("llama", &Device::flex());
    let settings = StepSettings {
        weight_decay: 0.1,
        ..PLAIN_SGD
    };
    let (_, outcome) = fit(&golden, Correction::Plain, &settings, 1);
    assert!(outcome.optimizer.is_none() && outcome.variate.is_none());
    let gradient = first_gradient(&golden, &golden.batch(), &settings);
    let before = golden.adapter.values();
    let after = values(&outcome.lora);
    for (i, (w, g)) in before.iter().zip(&gradient).enumerate() {
        let expected = w - 0.05 * (g + 0.1 * w);
        assert!((after[i] - expected).abs() < 1e-7, "value {i}");
    }
}

#[test]
fn a_variate_needs_a_step_and_an_adapter_that_it_fits() {
    let golden = Golden::load("llama", &Device::flex());
    let zeros = vec![0.0; golden.adapter.values().len()];
    let correction = |client, form| Correction::ControlVariate {
        server: &zeros,
        client,
        form,
    };
    for form in [VariateForm::Gradient, VariateForm::AfterStep] {
        let (_, outcome) = fit(&golden, correction(&zeros, form), &settings(), 0);
        assert_eq!(outcome.variate, None);
        let trainer = Trainer::new(&golden.model, golden.lora(), Memory::default());
        let error = trainer.with_correction(correction(&zeros[1..], form)).err();
        let error = error.unwrap();
        assert_eq!(error.got + 1, error.expected);
    }
    // A rate of 0 moves nothing, and option II would divide by it.
    let still = StepSettings {
        lr: 0.0,
        ..settings()
    };
    let (_, outcome) = fit(
        &golden,
        correction(&zeros, VariateForm::AfterStep),
        &still,
        1,
    );
    assert_eq!(outcome.variate, None);
    assert_eq!(values(&outcome.lora), golden.adapter.values());
}

#[test]
fn moments_go_on_or_are_dropped_if_they_are_of_another_adapter() {
    let golden = Golden::load("llama", &Device::flex());
    let (_, whole) = fit(&golden, Correction::Plain, &settings(), 2);
    let (_, half) = fit(&golden, Correction::Plain, &settings(), 1);
    let resumed = Trainer::new(&golden.model, half.lora, Memory::default());
    let mut resumed = resumed.with_optimizer(half.optimizer.unwrap());
    resumed.step(&golden.batch(), &settings()).unwrap();
    let resumed = resumed.into_outcome();
    assert_eq!(values(&resumed.lora), values(&whole.lora));
    let other = AdamW::new(golden.only_b().values());
    let trainer = Trainer::new(&golden.model, golden.lora(), Memory::default());
    let trainer = trainer.with_optimizer(other);
    assert!(trainer.into_outcome().optimizer.is_none());
}

/// For each value of the adapter, whether it belongs to an `A`.
fn in_a(golden: &Golden) -> Vec<bool> {
    let layout = golden.adapter.layout();
    let tensors = layout.tensors().iter().enumerate();
    tensors
        .flat_map(|(index, tensor)| vec![tensor.name.contains("lora_A"); layout.range(index).len()])
        .collect()
}

#[test]
fn without_a_its_gradient_is_not_there_and_those_of_b_are_the_same() {
    let golden = Golden::load("llama", &Device::flex());
    let in_a = in_a(&golden);
    let dropped = StepSettings {
        dropout: 0.2,
        seed: 5,
        ..settings()
    };
    for (recompute, settings) in [(false, settings()), (true, settings()), (false, dropped)] {
        let memory = Memory {
            micro_batch_tokens: 24,
            recompute,
            ..Memory::default()
        };
        let of = |lora| {
            let trainer = Trainer::new(&golden.model, lora, memory);
            read_back(trainer.gradients(&golden.batch(), &settings).unwrap().flat)
        };
        let (both, b) = (of(golden.lora()), of(golden.only_b()));
        let expected = both.iter().zip(&in_a).filter(|(_, in_a)| !**in_a);
        let expected: Vec<f32> = expected.map(|(g, _)| *g).collect();
        assert_eq!(b, expected);
    }
}

#[test]
fn without_a_no_step_moves_it() {
    let golden = Golden::load("llama", &Device::flex());
    assert_eq!(golden.only_b().to_adapter().unwrap(), golden.adapter);
    let in_a = in_a(&golden);
    let lora = golden.only_b();
    let (server, client) = (variate(&lora, "c:"), variate(&lora, "c_i:"));
    let variate = |form| Correction::ControlVariate {
        server: &server,
        client: &client,
        form,
    };
    let decaying = StepSettings {
        weight_decay: 0.1,
        ..settings()
    };
    for correction in [
        Correction::Plain,
        Correction::Proximal { mu: 0.5 },
        variate(VariateForm::Gradient),
        variate(VariateForm::AfterStep),
    ] {
        let trainer = Trainer::new(&golden.model, golden.only_b(), Memory::default());
        let mut trainer = trainer.with_correction(correction).unwrap();
        let mut norms = Vec::new();
        for _ in 0..2 {
            let stats = trainer.step(&golden.batch(), &decaying).unwrap();
            norms.push(f64::from(stats.grad_norm));
        }
        let outcome = trainer.into_outcome();
        let after = values(&outcome.lora);
        for (i, (before, after)) in golden.adapter.values().iter().zip(&after).enumerate() {
            if in_a[i] {
                assert_eq!(before.to_bits(), after.to_bits(), "value {i}");
            } else {
                assert_ne!(before, after, "value {i}");
            }
        }
        if let Some(variate) = outcome.variate {
            assert_eq!(variate.len(), outcome.lora.trained().len());
        }
        assert!(norms[0] < golden.number("/sft/steps/0/grad_norm"));
    }
}
