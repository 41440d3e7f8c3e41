//! The tiny model of the self-test: every operation of a training step, in a few milliseconds.
//!
//! It is made here from a seed, so that no file is needed, and goes through the same code as a real
//! one: a GGUF file in memory, quantized weights of several kinds, grouped heads, packed rows of
//! different lengths, adapters on all seven projections with B not zero.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use burn::tensor::Device;
use fedllm_shared::{Adapter, Factors, LoraSpec, Targets};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::TinyStep;
use crate::arch::{BasePrecision, CausalLm, StepMode};
use crate::batch::Batch;
use crate::checkpoint::Checkpoint;
use crate::gguf::{Gguf, GgufWriter, MetaValue};
use crate::lora::{self, Lora};
use crate::quant::{BlockFormat, quantize_row};

const HIDDEN: usize = 64;
const FFN: usize = 160;
const LAYERS: usize = 2;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const VOCAB: usize = 320;

/// Loss and adapter gradients of one training step on a device, with two packed rows: one of
/// `seq_len` tokens and a short one; in mixed precision, if that is asked for.
///
/// # Errors
///
/// What went wrong, in words: the device's refusal, for the model itself is always the same.
pub fn tiny_step(device: &Device, seq_len: usize, mixed: bool) -> Result<TinyStep, String> {
    let model = model(device)?;
    model.mixed_precision().set(mixed);
    let lora = adapter(&model, device)?;
    let batch = batch(seq_len);
    // Half precision holds small gradients only so.
    let scale = if mixed { 1024.0 } else { 1.0 };
    let mode = StepMode {
        recompute: true,
        weight: scale / batch.loss_tokens() as f32,
        dropout: None,
        share: 1.0,
    };
    let started = Instant::now();
    let step = model.gradients(&batch, &lora, &mode);
    let loss: Vec<f32> = step.loss_sum.try_into_vec_as().map_err(text)?;
    let mut gradients: Vec<f32> = step.flat.try_into_vec_as().map_err(text)?;
    let seconds = started.elapsed().as_secs_f64();
    gradients.iter_mut().for_each(|value| *value /= scale);
    let loss = loss.first().ok_or("the step gave no loss")? / batch.loss_tokens() as f32;
    Ok(TinyStep {
        loss,
        gradients,
        tokens_per_second: batch.tokens() as f64 / seconds,
    })
}

fn model(device: &Device) -> Result<CausalLm, String> {
    let bytes = file().map_err(text)?.to_bytes();
    let gguf = Gguf::from_bytes(Path::new("self-test"), bytes).map_err(text)?;
    let checkpoint = Checkpoint::open_gguf(gguf).map_err(text)?;
    CausalLm::load(&checkpoint, BasePrecision::AsStored, device).map_err(text)
}

fn adapter(model: &CausalLm, device: &Device) -> Result<Lora, String> {
    let spec = LoraSpec {
        rank: 4,
        alpha: 8.0,
        dropout: 0.0,
        rslora: false,
        targets: Targets::ALL,
        seed: 1,
        train: Factors::Both,
    };
    let layout = Arc::new(lora::layout(model.config(), &spec).map_err(text)?);
    let values = uniform(&mut ChaCha8Rng::seed_from_u64(2), layout.len(), 0.2);
    let adapter = Adapter::new(layout, values).map_err(text)?;
    Lora::new(model.config(), &spec, &adapter, device).map_err(text)
}

fn batch(seq_len: usize) -> Batch {
    let mut random = ChaCha8Rng::seed_from_u64(3);
    let mut batch = Batch::default();
    for len in [seq_len, 7] {
        let ids: Vec<u32> = (0..len).map(|_| random.next_u32() % VOCAB as u32).collect();
        batch.push(&ids, |place| place >= len / 2);
    }
    batch
}

fn file() -> Result<GgufWriter, crate::quant::QuantError> {
    let mut file = GgufWriter::new();
    file.set("general.architecture", MetaValue::Text("llama".to_owned()));
    for (key, value) in [
        ("embedding_length", HIDDEN),
        ("block_count", LAYERS),
        ("attention.head_count", HEADS),
        ("attention.head_count_kv", KV_HEADS),
        ("feed_forward_length", FFN),
        ("context_length", 4096),
    ] {
        file.set(&format!("llama.{key}"), MetaValue::U32(value as u32));
    }
    for (key, value) in [
        ("attention.layer_norm_rms_epsilon", 1e-5),
        ("rope.freq_base", 1e4),
    ] {
        file.set(&format!("llama.{key}"), MetaValue::F32(value));
    }
    let mut random = ChaCha8Rng::seed_from_u64(4);
    let mut tensor = |name: &str, rows: usize, cols: usize, format: BlockFormat| {
        let values = match rows {
            1 => vec![1.0; cols],
            _ => uniform(&mut random, rows * cols, (3.0 / cols as f32).sqrt()),
        };
        let mut bytes = Vec::new();
        quantize_row(format, &values, &mut bytes)?;
        let dims = if rows == 1 {
            vec![cols]
        } else {
            vec![cols, rows]
        };
        file.tensor(name, &dims, format, bytes)
    };
    let kv = HIDDEN / HEADS * KV_HEADS;
    tensor("token_embd.weight", VOCAB, HIDDEN, BlockFormat::Q8_0)?;
    tensor("output_norm.weight", 1, HIDDEN, BlockFormat::F32)?;
    for layer in 0..LAYERS {
        for (name, rows, cols, format) in [
            ("attn_norm", 1, HIDDEN, BlockFormat::F32),
            ("attn_q", HIDDEN, HIDDEN, BlockFormat::Q8_0),
            ("attn_k", kv, HIDDEN, BlockFormat::Q4_0),
            ("attn_v", kv, HIDDEN, BlockFormat::F16),
            ("attn_output", HIDDEN, HIDDEN, BlockFormat::F32),
            ("ffn_norm", 1, HIDDEN, BlockFormat::F32),
            ("ffn_gate", FFN, HIDDEN, BlockFormat::Q4_1),
            ("ffn_up", FFN, HIDDEN, BlockFormat::Q4_1),
            ("ffn_down", HIDDEN, FFN, BlockFormat::Q4_0),
        ] {
            tensor(&format!("blk.{layer}.{name}.weight"), rows, cols, format)?;
        }
    }
    Ok(file)
}

/// Values between plus and minus `bound`.
fn uniform(random: &mut ChaCha8Rng, len: usize, bound: f32) -> Vec<f32> {
    (0..len)
        .map(|_| {
            let unit = (random.next_u32() >> 8) as f32 / (1u32 << 24) as f32;
            bound * (2.0 * unit - 1.0)
        })
        .collect()
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_adapter_tensor_has_a_gradient_and_two_steps_agree() {
        let cpu = Device::flex();
        let step = tiny_step(&cpu, 16, false).unwrap();
        let again = tiny_step(&cpu, 16, false).unwrap();
        assert_eq!((step.loss, &step.gradients), (again.loss, &again.gradients));
        assert!((4.0..9.0).contains(&step.loss), "{}", step.loss);
        let model = model(&cpu).unwrap();
        let lora = adapter(&model, &cpu).unwrap();
        let layout = lora.to_adapter().unwrap().layout().clone();
        assert_eq!(step.gradients.len(), layout.len());
        for (index, tensor) in layout.tensors().iter().enumerate() {
            let gradient = &step.gradients[layout.range(index)];
            assert!(gradient.iter().any(|v| v.abs() > 1e-6), "{}", tensor.name);
        }
    }
}
