//! Preference objectives against PyTorch with PEFT, and against finite differences.

use burn::tensor::Device;
use fedllm_models::Batch;
use fedllm_models::lora::{Lora, read_back};
use fedllm_models::objective::{PairError, PairReference, PreferenceSettings, pair_scores};
use fedllm_models::train::{Correction, Memory, StepError, Trainer};
use fedllm_shared::{Adapter, PreferenceLoss};
use fedllm_tests::synthetic;

use super::golden::{
    ARCHITECTURES, Golden, assert_close, minus, relative_l2, settings, with_threads,
};

/// Each form under its name in the goldens, with its label smoothing and its tolerance: IPO squares
/// a difference of log-probabilities.
const FORMS: [(&str, PreferenceLoss, f32, f64); 5] = [
    ("sigmoid", PreferenceLoss::Sigmoid, 0.0, 2e-6),
    (
        "sigmoid_label_smoothing0.1",
        PreferenceLoss::Sigmoid,
        0.1,
        2e-6,
    ),
    ("hinge", PreferenceLoss::Hinge, 0.0, 2e-6),
    ("ipo_sum", PreferenceLoss::Ipo, 0.0, 4e-5),
    ("ipo_mean", PreferenceLoss::IpoMean, 0.0, 4e-5),
];

fn form(loss: PreferenceLoss, label_smoothing: f32) -> PreferenceSettings {
    PreferenceSettings {
        beta: 0.1,
        label_smoothing,
        loss,
    }
}

/// The two golden pairs.
pub(crate) fn pairs() -> Batch {
    let mut pairs = Batch::default();
    for (pair, (prompt, completions)) in [(6, [7, 4]), (9, [5, 10])].into_iter().enumerate() {
        for (kind, len) in ["chosen", "rejected"].into_iter().zip(completions) {
            let mut ids = synthetic::ids(&format!("ids:dpo:prompt{pair}"), prompt, 384);
            ids.extend(synthetic::ids(&format!("ids:dpo:{kind}{pair}"), len, 384));
            pairs.push(&ids, |i| i >= prompt);
        }
    }
    pairs
}

fn memories() -> [Memory; 3] {
    let whole = Memory::default();
    [
        whole,
        Memory {
            recompute: true,
            ..whole
        },
        Memory {
            micro_batch_tokens: 1,
            ..whole
        },
    ]
}

#[test]
fn every_form_goes_as_in_torch() {
    let golden = Golden::load("llama", &Device::flex());
    let pairs = pairs();
    for (name, loss, label_smoothing, tolerance) in FORMS {
        let mut trainer = Trainer::new(&golden.model, golden.lora(), Memory::default());
        for step in 0..3 {
            let path = |key: &str| format!("/dpo/{name}/steps/{step}/{key}");
            let number = |key: &str| golden.extra(&path(key));
            let policy = golden.model.row_log_probs(&pairs, Some(trainer.lora()));
            let reference = golden.model.row_log_probs(&pairs, None);
            for (kind, values) in [("", &policy), ("ref_", &reference)] {
                for pair in 0..2 {
                    for (row, side) in ["chosen", "rejected"].into_iter().enumerate() {
                        let expected = number(&format!("{kind}{side}_logps/{pair}"));
                        let error = (f64::from(values[2 * pair + row]) - expected).abs();
                        assert!(error < 2e-4, "{name} {step} {kind}{side}: {error:e}");
                    }
                }
            }
            let (stats, said) = trainer
                .preference_step(
                    &pairs,
                    PairReference::Base,
                    &settings(),
                    &form(loss, label_smoothing),
                )
                .unwrap();
            assert_close(name, stats.loss, number("loss"), tolerance);
            assert_close(name, stats.grad_norm, number("grad_norm"), 1e-5);
            let mean =
                |key: &str| (number(&format!("{key}/0")) + number(&format!("{key}/1"))) / 2.0;
            for (got, expected) in [
                (said.chosen, mean("chosen_rewards")),
                (said.rejected, mean("rejected_rewards")),
                (said.margin, number("reward_margin_mean")),
            ] {
                assert!((f64::from(got) - expected).abs() < 2e-5, "{name}: {got}");
            }
            assert_eq!(f64::from(said.accuracy), number("reward_accuracy"));
            assert_eq!((stats.tokens, stats.loss_tokens), (56, 26));
        }
        if name == "sigmoid" {
            let after = trainer.lora().to_adapter().unwrap();
            let start = golden.adapter.values();
            let expected = minus(&golden.extra_flat("dpo.sigmoid.after3."), start);
            let error = relative_l2(&minus(after.values(), start), &expected);
            assert!(error < 2e-4, "the update is {error:e} off");
        }
    }
}

#[test]
fn gradients_are_those_of_autograd() {
    let golden = Golden::load("llama", &Device::flex());
    for (name, loss) in [
        ("sigmoid", PreferenceLoss::Sigmoid),
        ("ipo_mean", PreferenceLoss::IpoMean),
    ] {
        for memory in memories() {
            let trainer = Trainer::new(&golden.model, golden.lora(), memory);
            let (gradients, _) = trainer
                .preference_gradients(&pairs(), PairReference::Base, &settings(), &form(loss, 0.0))
                .unwrap();
            let expected = golden.extra_flat(&format!("dpo.{name}.grad."));
            let error = relative_l2(&read_back(gradients.flat), &expected);
            assert!(error < 1e-5, "{name} {memory:?}: {error:e}");
        }
    }
}

#[test]
fn any_number_of_threads_says_the_same_of_pairs() {
    let golden = Golden::load("llama", &Device::flex());
    let known = [-20.0, -21.5, -30.0, -29.0];
    for reference in [PairReference::Base, PairReference::Known(&known)] {
        let of = |threads: usize| {
            with_threads(threads, || {
                let trainer = Trainer::new(&golden.model, golden.lora(), Memory::default());
                let form = form(PreferenceLoss::Sigmoid, 0.1);
                let (gradients, stats) = trainer
                    .preference_gradients(&pairs(), reference, &settings(), &form)
                    .unwrap();
                (read_back(gradients.flat), stats)
            })
        };
        let ((flat, stats), (other, other_stats)) = (of(1), of(3));
        let error = relative_l2(&other, &flat);
        assert!(error < 1e-6, "{error:e}");
        assert_eq!(stats.accuracy, other_stats.accuracy);
        assert!((stats.margin - other_stats.margin).abs() < 1e-5);
        assert!((stats.chosen - other_stats.chosen).abs() < 1e-5);
    }
}

#[test]
fn gradients_are_finite_differences() {
    let golden = Golden::load("llama", &Device::flex());
    let direction = synthetic::uniform("direction", golden.adapter.values().len(), 1.0);
    let at = |step: f32| -> Lora {
        let moved = golden.adapter.values().iter().zip(&direction);
        let moved = moved.map(|(w, d)| w + step * d).collect();
        let adapter = Adapter::new(golden.adapter.layout().clone(), moved).unwrap();
        golden.lora_of(&adapter)
    };
    for (name, loss, label_smoothing, _) in FORMS {
        let gradients = |lora| {
            let trainer = Trainer::new(&golden.model, lora, Memory::default());
            let form = form(loss, label_smoothing);
            let (gradients, _) = trainer
                .preference_gradients(&pairs(), PairReference::Base, &settings(), &form)
                .unwrap();
            let mean = f64::from(read_back(gradients.loss_sum)[0]) / 2.0;
            (mean, read_back(gradients.flat))
        };
        let step = 2e-4;
        let measured = (gradients(at(step)).0 - gradients(at(-step)).0) / f64::from(2.0 * step);
        let (_, gradient) = gradients(at(0.0));
        let claimed: f64 = gradient
            .iter()
            .zip(&direction)
            .map(|(g, d)| f64::from(*g) * f64::from(*d))
            .sum();
        assert!(
            (measured / claimed - 1.0).abs() < 1e-2,
            "{name}: {claimed} against {measured}"
        );
    }
}

#[test]
fn log_probabilities_of_rows_are_sums_of_their_tokens() {
    for name in ARCHITECTURES {
        let golden = Golden::load(name, &Device::flex());
        let (lora, mut rows) = (golden.lora(), pairs());
        rows.push(&[5, 6, 7], |_| false);
        let tokens = golden.model.score(&rows, Some(&lora));
        let sums = golden.model.row_log_probs(&rows, Some(&lora));
        assert_eq!(sums.len(), 5);
        for (labels, got) in rows.row_labels().into_iter().zip(sums) {
            let of_row = tokens[labels].iter();
            let expected: f64 = of_row.map(|score| f64::from(score.log_prob)).sum();
            let error = (f64::from(got) - expected).abs();
            assert!(error < 1e-4, "{name}: {got} for {expected}");
        }
    }
}

#[test]
fn a_reference_can_be_an_adapter_or_known() {
    let golden = Golden::load("llama", &Device::flex());
    let (start, pairs) = (golden.lora(), pairs());
    let form = form(PreferenceLoss::Sigmoid, 0.0);
    let step = |reference| {
        let mut trainer = Trainer::new(&golden.model, golden.lora(), memories()[2]);
        let (stats, said) = trainer
            .preference_step(&pairs, reference, &settings(), &form)
            .unwrap();
        (stats, said, read_back(trainer.lora().values().clone()))
    };
    let (stats, said, _) = step(PairReference::Adapter(&start));
    assert_eq!(stats.loss, std::f32::consts::LN_2);
    assert_eq!((said.margin, said.accuracy), (0.0, 0.0));
    let known = golden.model.row_log_probs(&pairs, None);
    let (by_base, by_known) = (
        step(PairReference::Base),
        step(PairReference::Known(&known)),
    );
    assert!((by_base.0.loss - by_known.0.loss).abs() < 1e-6);
    assert!(relative_l2(&by_known.2, &by_base.2) < 1e-6);

    let scores = pair_scores(&golden.model, &pairs, Some(&start), PairReference::Base).unwrap();
    let margin: f32 = scores.iter().map(|score| score.margin()).sum();
    assert!((0.05 * margin - by_base.1.margin).abs() < 1e-5);
    assert!(scores.iter().all(|score| !score.is_correct()));
    let scores = pair_scores(&golden.model, &pairs, None, PairReference::Known(&known)).unwrap();
    assert!(scores.iter().all(|score| score.margin() == 0.0));
}

#[test]
fn rows_that_are_no_pairs_move_nothing() {
    let golden = Golden::load("llama", &Device::flex());
    let mut trainer = Trainer::new(&golden.model, golden.lora(), Memory::default());
    let form = form(PreferenceLoss::Sigmoid, 0.0);
    let mut rows = pairs();
    rows.push(&[4, 5, 6], |i| i == 2);
    let error = trainer.preference_step(&rows, PairReference::Base, &settings(), &form);
    let unpaired = PairError::Unpaired { rows: 5 };
    assert_eq!(error.unwrap_err(), StepError::Pairs(unpaired));
    let error = trainer.preference_step(&Batch::default(), PairReference::Base, &settings(), &form);
    assert_eq!(error.unwrap_err(), StepError::NoLossTokens);
    let infinite = [f32::NEG_INFINITY; 4];
    let error = trainer.preference_step(
        &pairs(),
        PairReference::Known(&infinite),
        &settings(),
        &form,
    );
    assert!(
        matches!(error, Err(StepError::NotFinite { .. })),
        "{error:?}"
    );
    let after = trainer.into_outcome();
    assert_eq!(after.lora.to_adapter().unwrap(), golden.adapter);
    assert!(after.optimizer.is_none());
}

#[test]
fn corrections_hold_for_pairs_too() {
    let golden = Golden::load("llama", &Device::flex());
    let form = form(PreferenceLoss::Sigmoid, 0.0);
    let trainer = Trainer::new(&golden.model, golden.only_b(), Memory::default());
    let correction = Correction::Proximal { mu: 2.0 };
    let mut trainer = trainer.with_correction(correction).unwrap();
    let mut step = || {
        let step = trainer.preference_step(&pairs(), PairReference::Base, &settings(), &form);
        step.unwrap().0
    };
    let (first, second) = (step(), step());
    assert_eq!(first.objective, first.loss);
    // AdamW's first step moves almost every B by the rate.
    let moved = 1e-6 * golden.only_b().values().dims()[0] as f32;
    let penalty = second.objective - second.loss;
    assert!(
        (penalty / moved - 1.0).abs() < 0.05,
        "{penalty} for {moved}"
    );
}
