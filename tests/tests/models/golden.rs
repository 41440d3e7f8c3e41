//! The decoder against PyTorch and PEFT: logits, losses, every adapter gradient, and
//! three optimizer steps, for each architecture, from weights that a formula makes.
//!
//! The numbers are those of `golden/tiny`; their README says how they were made and what
//! two correct implementations differ by.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::Device;
use fedllm_models::generate::{Generator, Sampling};
use fedllm_models::lora::{self, Lora, read_back};
use fedllm_models::measure::SETTINGS;
use fedllm_models::train::{Memory, StepSettings, Trainer};
use fedllm_models::{BasePrecision, Batch, CausalLm, Checkpoint, Gradients};
use fedllm_shared::{Adapter, Factors, LoraSpec, Targets};
use fedllm_tests::{synthetic, tiny};
use safetensors::SafeTensors;
use serde_json::Value;

/// Every architecture that the goldens have.
pub(crate) const ARCHITECTURES: [&str; 7] = [
    "llama", "llama3", "mistral", "qwen2", "qwen3", "gemma2", "gemma3",
];

/// A tiny model on a device, its adapter, and the reference numbers.
pub(crate) struct Golden {
    pub(crate) model: CausalLm,
    pub(crate) spec: LoraSpec,
    pub(crate) adapter: Adapter,
    folder: PathBuf,
    tensors: Vec<u8>,
    result: Value,
}

impl Golden {
    pub(crate) fn load(name: &str, device: &Device) -> Self {
        Self::load_as(name, BasePrecision::AsStored, device)
    }

    /// With weights in another form than that of the reference.
    pub(crate) fn load_as(name: &str, precision: BasePrecision, device: &Device) -> Self {
        let directory = tempfile::tempdir().unwrap();
        tiny::write_directory(directory.path(), name);
        let checkpoint = Checkpoint::open(directory.path()).unwrap();
        let model = CausalLm::load(&checkpoint, precision, device).unwrap();
        let spec = LoraSpec {
            rank: 4,
            alpha: 8.0,
            dropout: 0.0,
            rslora: false,
            targets: Targets::ALL,
            seed: 0,
            train: Factors::Both,
        };
        let layout = Arc::new(lora::layout(model.config(), &spec).unwrap());
        let mut values = Vec::new();
        for tensor in layout.tensors() {
            let (rows, cols) = (tensor.rows as usize, tensor.cols as usize);
            values.extend(if tensor.name.contains("lora_A") {
                synthetic::lora_a(&tensor.name, rows, cols)
            } else {
                synthetic::lora_b(&tensor.name, rows, cols)
            });
        }
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("golden/tiny")
            .join(name);
        Self {
            model,
            spec,
            adapter: Adapter::new(layout, values).unwrap(),
            tensors: std::fs::read(folder.join("tensors.safetensors")).unwrap(),
            result: json(&folder.join("result.json")),
            folder,
        }
    }

    pub(crate) fn lora(&self) -> Lora {
        self.lora_of(&self.adapter)
    }

    pub(crate) fn lora_of(&self, adapter: &Adapter) -> Lora {
        let (config, device) = (self.model.config(), self.model.device());
        Lora::new(config, &self.spec, adapter, device).unwrap()
    }

    /// The same adapter, of which only `B` is trained.
    pub(crate) fn only_b(&self) -> Lora {
        let spec = LoraSpec {
            train: Factors::B,
            ..self.spec.clone()
        };
        let (config, device) = (self.model.config(), self.model.device());
        Lora::new(config, &spec, &self.adapter, device).unwrap()
    }

    /// The two rows of the golden batch, packed.
    pub(crate) fn batch(&self) -> Batch {
        let mut batch = Batch::default();
        for row in 0..2 {
            let ids = synthetic::ids(&format!("ids:{row}"), [24, 13][row], 384);
            let prompt = self.result["prompt_lengths"][row].as_u64().unwrap() as usize;
            batch.push(&ids, |i| i >= prompt);
        }
        batch
    }

    pub(crate) fn f32(&self, name: &str) -> Vec<f32> {
        tensor(&SafeTensors::deserialize(&self.tensors).unwrap(), name)
    }

    pub(crate) fn number(&self, path: &str) -> f64 {
        number(&self.result, path)
    }

    /// A number of `extra.json`.
    pub(crate) fn extra(&self, path: &str) -> f64 {
        number(&json(&self.folder.join("extra.json")), path)
    }

    /// The golden values of all adapter tensors under a prefix, in the layout's order.
    pub(crate) fn flat(&self, prefix: &str) -> Vec<f32> {
        self.flat_of(&self.tensors, prefix)
    }

    /// [`Self::flat`] from `extra.safetensors`.
    pub(crate) fn extra_flat(&self, prefix: &str) -> Vec<f32> {
        let bytes = std::fs::read(self.folder.join("extra.safetensors")).unwrap();
        self.flat_of(&bytes, prefix)
    }

    fn flat_of(&self, bytes: &[u8], prefix: &str) -> Vec<f32> {
        let file = SafeTensors::deserialize(bytes).unwrap();
        let tensors = self.adapter.layout().tensors();
        tensors
            .iter()
            .flat_map(|of_adapter| tensor(&file, &format!("{prefix}{}", of_adapter.name)))
            .collect()
    }
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn number(json: &Value, path: &str) -> f64 {
    let number = json.pointer(path).and_then(Value::as_f64);
    number.unwrap_or_else(|| panic!("no {path}"))
}

fn tensor(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    bytemuck::pod_collect_to_vec(file.tensor(name).unwrap().data())
}

/// Asserts a relative difference.
pub(crate) fn assert_close(what: &str, got: f32, expected: f64, tolerance: f64) {
    let error = (f64::from(got) / expected - 1.0).abs();
    assert!(error < tolerance, "{what}: {got} against {expected}");
}

pub(crate) fn minus(a: &[f32], b: &[f32]) -> Vec<f32> {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

pub(crate) fn relative_l2(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |x: f64| x * x;
    let difference: f64 = a
        .iter()
        .zip(b)
        .map(|(a, b)| square(f64::from(*a) - f64::from(*b)))
        .sum();
    let norm: f64 = b.iter().map(|b| square(f64::from(*b))).sum();
    (difference / norm).sqrt()
}

/// The reference's: those of a measured step at another learning rate.
pub(crate) fn settings() -> StepSettings {
    StepSettings {
        lr: 1e-3,
        ..SETTINGS
    }
}

/// Logits of both rows against the golden ones; the largest difference.
fn logits_error(golden: &Golden, lora: Option<&Lora>, name: &str) -> f32 {
    let batch = golden.batch();
    let places: Vec<usize> = (0..batch.tokens()).collect();
    let logits = read_back(golden.model.logits(&batch, &places, lora));
    let expected = golden.f32(name);
    let mut worst = 0.0f32;
    for (row, segment) in batch.segments.iter().enumerate() {
        let expected = &expected[row * 24 * 384..][..segment.len() * 384];
        for (a, b) in logits[segment.start * 384..].iter().zip(expected) {
            worst = worst.max((a - b).abs());
        }
    }
    worst
}

/// Does `work` on a pool of so many threads.
pub(crate) fn with_threads<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> R {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.unwrap().install(work)
}

fn gradients(golden: &Golden, memory: Memory) -> (f64, Vec<f32>) {
    let trainer = Trainer::new(&golden.model, golden.lora(), memory);
    let batch = golden.batch();
    let Gradients { loss_sum, flat } = trainer.gradients(&batch, &settings()).unwrap();
    (
        f64::from(read_back(loss_sum)[0]) / batch.loss_tokens() as f64,
        read_back(flat),
    )
}

#[test]
fn logits_are_those_of_transformers_and_peft() {
    for name in ARCHITECTURES {
        let golden = Golden::load(name, &Device::flex());
        let lora = golden.lora();
        let base = logits_error(&golden, None, "base.logits");
        let adapted = logits_error(&golden, Some(&lora), "lora.logits");
        assert!(
            base < 5e-5 && adapted < 5e-5,
            "{name}: {base:e} {adapted:e}"
        );
    }
}

#[test]
fn gradients_are_those_of_autograd() {
    let modes = [
        Memory {
            micro_batch_tokens: 2048,
            recompute: false,
            ..Memory::default()
        },
        Memory {
            micro_batch_tokens: 2048,
            recompute: true,
            ..Memory::default()
        },
        Memory {
            micro_batch_tokens: 24,
            recompute: false,
            ..Memory::default()
        },
    ];
    for name in ARCHITECTURES {
        let golden = Golden::load(name, &Device::flex());
        for memory in modes {
            let (loss, flat) = gradients(&golden, memory);
            let expected = golden.number("/lora/loss_completion");
            assert!(
                (loss / expected - 1.0).abs() < 2e-6,
                "{name} {memory:?}: loss {loss} against {expected}"
            );
            let layout = golden.adapter.layout();
            for (index, tensor) in layout.tensors().iter().enumerate() {
                let expected = golden.f32(&format!("sft.grad.{}", tensor.name));
                let error = relative_l2(&flat[layout.range(index)], &expected);
                assert!(
                    error < 1e-4,
                    "{name} {memory:?}: {} is {error:e} off",
                    tensor.name
                );
            }
            let error = relative_l2(&flat, &golden.flat("sft.grad."));
            assert!(
                error < 1e-5,
                "{name} {memory:?}: gradients are {error:e} off"
            );
        }
    }
}

/// Rows are trained side by side by as many threads as there are, each with its own part of the
/// dropout mask.
#[test]
fn any_number_of_threads_gives_the_same_gradient() {
    let golden = Golden::load("llama", &Device::flex());
    let mut batch = golden.batch();
    for (name, len, prompt) in [("ids:2", 18, 7), ("ids:3", 20, 4), ("ids:4", 33, 1)] {
        batch.push(&synthetic::ids(name, len, 384), |i| i >= prompt);
    }
    let settings = StepSettings {
        dropout: 0.2,
        seed: 3,
        ..settings()
    };
    for memory in [
        Memory::default(),
        Memory {
            micro_batch_tokens: 60,
            recompute: true,
            ..Memory::default()
        },
    ] {
        let of = |threads: usize| {
            with_threads(threads, || {
                let trainer = Trainer::new(&golden.model, golden.lora(), memory);
                let Gradients { loss_sum, flat } = trainer.gradients(&batch, &settings).unwrap();
                (read_back(loss_sum)[0], read_back(flat))
            })
        };
        let (loss, flat) = of(1);
        for threads in [2, 3, 16] {
            let (other_loss, other) = of(threads);
            assert!((other_loss / loss - 1.0).abs() < 1e-6, "{threads} threads");
            let error = relative_l2(&other, &flat);
            assert!(error < 1e-6, "{threads} threads, {memory:?}: {error:e}");
            assert_eq!(of(threads), (other_loss, other), "{threads} threads, again");
        }
    }
}

#[test]
fn three_steps_end_where_torch_ends() {
    for name in ARCHITECTURES {
        let golden = Golden::load(name, &Device::flex());
        let mut trainer = Trainer::new(&golden.model, golden.lora(), Memory::default());
        for step in 0..3 {
            let stats = trainer.step(&golden.batch(), &settings()).unwrap();
            let loss = golden.number(&format!("/sft/steps/{step}/loss"));
            let norm = golden.number(&format!("/sft/steps/{step}/grad_norm"));
            assert!(
                (f64::from(stats.loss) / loss - 1.0).abs() < 1e-5,
                "{name} step {step}: {}",
                stats.loss
            );
            assert!(
                (f64::from(stats.grad_norm) / norm - 1.0).abs() < 1e-5,
                "{name} step {step}: {}",
                stats.grad_norm
            );
        }
        let after = trainer.lora().to_adapter().unwrap();
        let start = golden.adapter.values();
        let error = relative_l2(
            &minus(after.values(), start),
            &minus(&golden.flat("sft.after3."), start),
        );
        assert!(error < 2e-4, "{name}: the update is {error:e} off");
    }
}

#[test]
fn greedy_text_is_that_of_transformers() {
    for name in ARCHITECTURES {
        let golden = Golden::load(name, &Device::flex());
        let lora = golden.lora();
        for (kind, lora) in [("base", None), ("lora", Some(&lora))] {
            let rows = golden.result[kind]["greedy16"].as_array().unwrap();
            assert!(!rows.is_empty());
            for row in rows {
                let list = |key: &str| -> Vec<u32> {
                    row[key]
                        .as_array()
                        .unwrap()
                        .iter()
                        .map(|id| id.as_u64().unwrap() as u32)
                        .collect()
                };
                let generated: Vec<u32> =
                    Generator::new(&golden.model, lora, &list("prompt"), Sampling::Greedy)
                        .take(16)
                        .collect();
                assert_eq!(generated, list("ids"), "{name} {kind}");
            }
        }
    }
}

#[test]
fn weighted_micro_batches_are_one_batch() {
    let golden = Golden::load("llama", &Device::flex());
    let mut batch = golden.batch();
    for (name, len, prompt) in [("ids:2", 18, 7), ("ids:3", 20, 4)] {
        batch.push(&synthetic::ids(name, len, 384), |i| i >= prompt);
    }
    assert_eq!(batch.loss_tokens(), 50);
    let whole = Trainer::new(&golden.model, golden.lora(), Memory::default());
    let parts = Trainer::new(
        &golden.model,
        golden.lora(),
        Memory {
            micro_batch_tokens: 40,
            recompute: true,
            ..Memory::default()
        },
    );
    let whole = whole.gradients(&batch, &settings()).unwrap();
    let parts = parts.gradients(&batch, &settings()).unwrap();
    let expected = golden.extra("/accumulation/loss_batch_of_4");
    let expected_flat = golden.extra_flat("accum.batch4.grad.");
    for (Gradients { loss_sum, flat }, tolerance) in [(whole, 2e-6), (parts, 1e-5)] {
        let loss = f64::from(read_back(loss_sum)[0]) / 50.0;
        assert!((loss / expected - 1.0).abs() < tolerance);
        let error = relative_l2(&read_back(flat), &expected_flat);
        assert!(error < 1e-5, "gradients are {error:e} off");
    }
}
