//! Adapters as PEFT directories and as GGUF files.

use std::fs;
use std::path::Path;

use fedllm_models::{
    Factor, Gguf, ModelConfig, PeftAdapter, PeftConfig, PeftKey, PeftTensor, Projection,
    write_gguf_lora,
};
use fedllm_shared::Digest;
use fedllm_tests::synthetic::uniform_seeded;
use fedllm_tests::tiny;

use crate::golden;

/// The seed of the golden adapters of SmolLM2.
const SEED: u64 = 20_240_601;

fn smollm2() -> ModelConfig {
    let text = fs::read_to_string(golden("smollm2/config.json")).unwrap();
    ModelConfig::from_hugging_face(&text).unwrap()
}

/// The adapter that PEFT saved: A and B from the formula, for every layer.
fn synthetic(model: &ModelConfig, config: PeftConfig) -> PeftAdapter {
    let mut tensors = Vec::new();
    for layer in 0..model.layers {
        for &projection in &config.targets {
            let (out, input) = match projection {
                Projection::Query => (model.query_dim(), model.hidden),
                Projection::Key | Projection::Value => (model.kv_dim(), model.hidden),
                Projection::Output => (model.hidden, model.query_dim()),
                Projection::Gate | Projection::Up => (model.ffn, model.hidden),
                Projection::Down => (model.hidden, model.ffn),
            };
            for factor in [Factor::A, Factor::B] {
                let name = PeftKey {
                    layer,
                    projection,
                    factor,
                }
                .to_string();
                let (rows, cols, bound, formula) = match factor {
                    Factor::A => {
                        let bound = 1.0 / (input as f64).sqrt();
                        (config.rank, input, bound, name.clone())
                    }
                    Factor::B => (out, config.rank, 0.05, format!("B:{name}")),
                };
                let values = uniform_seeded(&formula, rows * cols, bound, SEED);
                tensors.push(PeftTensor {
                    name,
                    rows,
                    cols,
                    values,
                });
            }
        }
    }
    PeftAdapter::new(config, tensors).unwrap()
}

fn all7() -> PeftConfig {
    PeftConfig {
        base_model: Some("smollm2-135m-instruct".to_owned()),
        rank: 8,
        alpha: 16.0,
        targets: Projection::ALL.to_vec(),
        ..PeftConfig::default()
    }
}

fn query_value() -> PeftConfig {
    PeftConfig {
        base_model: Some("smollm2-135m-instruct".to_owned()),
        rank: 4,
        alpha: 32.0,
        rslora: true,
        ..PeftConfig::default()
    }
}

/// Keys and little-endian values, in order.
fn digest(adapter: &PeftAdapter) -> String {
    let mut bytes = Vec::new();
    for tensor in &adapter.tensors {
        bytes.extend(tensor.name.as_bytes());
        bytes.extend(tensor.values.iter().flat_map(|v| v.to_le_bytes()));
    }
    Digest::of(&bytes).to_string()
}

/// Digests of the tensors that PEFT 0.21.2 saved, made by Python's safetensors and blake3.
#[test]
fn adapters_are_what_peft_saved() {
    let model = smollm2();
    for (config, name, expected) in [
        (
            all7(),
            "all7_r8_a16",
            "38c30516b1e5a237f91061f0a9c8ecf41feaec887c72d69703d51546a7ff941b",
        ),
        (
            query_value(),
            "qv_r4_a32_rslora",
            "639bbdecae2c70ea346065fa7a8d408385bace53a9c5646c65923c9b1241cae4",
        ),
    ] {
        let adapter = synthetic(&model, config);
        assert_eq!(digest(&adapter), expected, "{name}");
        let dir = tempfile::tempdir().unwrap();
        adapter.write(dir.path()).unwrap();
        assert_eq!(PeftAdapter::read(dir.path()).unwrap(), adapter);
        // PEFT's own configuration beside our tensors: targets in another order.
        let peft = golden(&format!("peft/{name}.json"));
        fs::copy(peft, dir.path().join("adapter_config.json")).unwrap();
        assert_eq!(PeftAdapter::read(dir.path()).unwrap(), adapter);
    }
}

#[test]
fn our_configuration_has_every_field_of_pefts() {
    let dir = tempfile::tempdir().unwrap();
    let adapter = synthetic(&tiny::config("llama"), all7());
    adapter.write(dir.path()).unwrap();
    let read = |path: &Path| -> serde_json::Map<String, serde_json::Value> {
        serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
    };
    let ours = read(&dir.path().join("adapter_config.json"));
    let theirs = read(&golden("peft/all7_r8_a16.json"));
    for (field, value) in theirs {
        // Methods of later releases, absent where they are off.
        let method = field.ends_with("_config") || field == "use_bdlora";
        match ours.get(&field) {
            None => assert!(method && value.is_null(), "{field} is absent"),
            Some(ours) if field == "target_modules" => {
                assert_eq!(ours.as_array().unwrap().len(), 7);
            }
            Some(ours) => assert_eq!(*ours, value, "{field}"),
        }
    }
}

#[test]
fn targets_may_be_a_pattern_and_must_agree() {
    let dir = tempfile::tempdir().unwrap();
    let adapter = synthetic(&tiny::config("llama"), query_value());
    adapter.write(dir.path()).unwrap();
    let path = dir.path().join("adapter_config.json");
    let mut config: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let mut read_with = |targets: serde_json::Value| {
        config["target_modules"] = targets;
        fs::write(&path, config.to_string()).unwrap();
        PeftAdapter::read(dir.path()).map_err(|e| e.to_string())
    };
    for targets in [
        serde_json::json!("all-linear"),
        serde_json::json!(".*\\.(q_proj|v_proj)"),
        serde_json::json!(["self_attn.v_proj", "q_proj"]),
    ] {
        assert_eq!(read_with(targets).unwrap(), adapter);
    }
    let missing = read_with(serde_json::json!(["q_proj", "v_proj", "o_proj"]));
    assert!(missing.unwrap_err().contains("o_proj"));
    let extra = read_with(serde_json::json!(["q_proj"]));
    assert!(extra.unwrap_err().contains("v_proj"));
}

#[test]
fn broken_directories_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let says = |word: &str| {
        let error = PeftAdapter::read(dir.path()).unwrap_err().to_string();
        assert!(error.contains(word), "{error:?} does not say {word:?}");
    };
    says("adapter_config.json");
    let adapter = synthetic(&tiny::config("llama"), query_value());
    adapter.write(dir.path()).unwrap();
    let weights = dir.path().join("adapter_model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() - 4]).unwrap();
    says("safetensors");
    let text = String::from_utf8_lossy(&bytes[..4000]).into_owned();
    let at = text.find("lora_A").unwrap();
    let mut renamed = bytes.clone();
    renamed[at..at + 6].copy_from_slice(b"lora_X");
    fs::write(&weights, &renamed).unwrap();
    says("lora_X");
    fs::remove_file(&weights).unwrap();
    says("adapter_model.safetensors");
}

#[test]
fn gguf_adapters_follow_llama_cpps_rules() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("adapter.gguf");
    for (name, permuted) in [("llama", true), ("mistral", true), ("qwen2", false)] {
        let model = tiny::config(name);
        let adapter = synthetic(&model, all7());
        write_gguf_lora(&adapter, &model, "tiny adapter", &path).unwrap();
        let gguf = Gguf::open(&path).unwrap();
        let architecture = model.architecture.gguf_name();
        assert_eq!(gguf.text("general.type").unwrap(), "adapter");
        assert_eq!(gguf.text("general.architecture").unwrap(), architecture);
        assert_eq!(gguf.text("adapter.type").unwrap(), "lora");
        assert_eq!(gguf.number("adapter.lora.alpha").unwrap(), 16.0);
        assert_eq!(gguf.tensors().len(), adapter.tensors.len());
        for tensor in &adapter.tensors {
            let key = PeftKey::parse(&tensor.name).unwrap();
            let module = match key.projection {
                Projection::Query => "attn_q",
                Projection::Key => "attn_k",
                Projection::Value => "attn_v",
                Projection::Output => "attn_output",
                Projection::Gate => "ffn_gate",
                Projection::Up => "ffn_up",
                Projection::Down => "ffn_down",
            };
            let is_b = key.factor == Factor::B;
            let factor = if is_b { 'b' } else { 'a' };
            let name = format!("blk.{}.{module}.weight.lora_{factor}", key.layer);
            let info = gguf.info(&name).unwrap();
            assert_eq!(info.dims, [tensor.cols, tensor.rows]);
            assert_eq!(info.offset % 32, 0);
            let heads = match key.projection {
                Projection::Query if is_b && permuted => model.heads,
                Projection::Key if is_b && permuted => model.kv_heads,
                _ => 0,
            };
            let stored = gguf.tensor(&name).unwrap().to_f32();
            let expected = match heads {
                0 => tensor.values.clone(),
                heads => permute(&tensor.values, tensor.rows, tensor.cols, heads),
            };
            assert_eq!(stored, expected, "{name}");
        }
    }
}

#[test]
fn rslora_keeps_its_scale_in_gguf() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("adapter.gguf");
    let model = tiny::config("llama");
    let adapter = synthetic(&model, query_value());
    write_gguf_lora(&adapter, &model, "x", &path).unwrap();
    let alpha = Gguf::open(&path).unwrap().number("adapter.lora.alpha");
    // The loader divides by the rank, 4; the scale is 32 / sqrt(4).
    assert_eq!(alpha.unwrap() / 4.0, 16.0);
    let other = tiny::config("qwen3");
    let error = write_gguf_lora(&adapter, &other, "x", &path).unwrap_err();
    assert!(error.to_string().contains("q_proj"), "{error}");
}

/// `reshape(heads, 2, rows / heads / 2, cols).swapaxes(1, 2)`, as the converter does.
fn permute(values: &[f32], rows: usize, cols: usize, heads: usize) -> Vec<f32> {
    let half = rows / heads / 2;
    let mut out = Vec::with_capacity(values.len());
    for head in 0..heads {
        for i in 0..half {
            for j in 0..2 {
                let row = (head * 2 + j) * half + i;
                out.extend_from_slice(&values[row * cols..][..cols]);
            }
        }
    }
    out
}
