//! Models, shards and adapters that are damaged or of another kind.

use std::fs;
use std::path::{Path, PathBuf};

use fedllm_models::{BlockFormat, PeftAdapter};
use fedllm_tests::federation::{Programs, rows, text};
use fedllm_tests::process::Ended;
use fedllm_tests::tiny;

use super::programs;

fn model(programs: &Programs) -> PathBuf {
    let model = programs.path("model.gguf");
    tiny::write_gguf(&model, "llama", BlockFormat::F32);
    model
}

fn data(programs: &Programs) -> PathBuf {
    let lines: String = rows("alice", 4)
        .iter()
        .map(|row| format!("{row}\n"))
        .collect();
    programs.write("rows.jsonl", lines)
}

fn train(programs: &Programs, model: &Path, data: &Path) -> Ended {
    let out = programs.path("adapter");
    let mut args = vec!["train", "--model", text(model), "--data", text(data)];
    args.extend([
        "--out",
        text(&out),
        "--device",
        "cpu",
        "--steps",
        "1",
        "--batch",
        "1",
    ]);
    args.extend(["--rank", "2", "--threads", "1"]);
    programs.client(&args)
}

fn prepare(programs: &Programs, model: &Path) -> PathBuf {
    let (data, out) = (data(programs), programs.path("rows.shard"));
    let mut args = vec!["prepare", "--model", text(model), "--data", text(&data)];
    args.extend(["--out", text(&out)]);
    programs.client(&args).ok();
    out
}

#[test]
fn a_damaged_model_is_refused() {
    let programs = programs();
    let data = data(&programs);
    let whole = fs::read(model(&programs)).unwrap();
    let cases: [(&str, &[u8], &str); 4] = [
        ("short.gguf", &whole[..whole.len() - 1000], "is truncated"),
        ("header.gguf", &whole[..200], "is truncated"),
        ("wrong.gguf", b"GGML, but not that", "is no GGUF file"),
        ("empty.gguf", b"", "empty.gguf"),
    ];
    for (name, bytes, problem) in cases {
        let path = programs.write(name, bytes);
        let ended = train(&programs, &path, &data);
        ended.failed_with(7).says(&[name, problem]);
    }

    let directory = programs.path("llama");
    tiny::write_directory(&directory, "llama");
    let weights = directory.join("model.safetensors");
    let whole = fs::read(&weights).unwrap();
    for length in [4, 1000, whole.len() - 1000] {
        fs::write(&weights, &whole[..length]).unwrap();
        let ended = train(&programs, &directory, &data).failed_with(7);
        ended.says(&["model.safetensors", "safetensors"]);
    }
    fs::remove_file(&weights).unwrap();
    train(&programs, &directory, &data)
        .failed_with(7)
        .says(&["no model.safetensors"]);
    let absent = train(&programs, &programs.path("absent.gguf"), &data);
    absent.failed_with(7).says(&["absent.gguf"]);
}

#[test]
fn a_damaged_shard_is_refused() {
    let programs = programs();
    let model = model(&programs);
    let shard = prepare(&programs, &model);
    let whole = fs::read(&shard).unwrap();
    train(&programs, &model, &shard).ok();
    fs::remove_dir_all(programs.path("adapter")).unwrap();

    let cut = programs.write("cut.shard", &whole[..whole.len() - 10]);
    let cut = train(&programs, &model, &cut).failed_with(7);
    cut.says(&["cut.shard", "should have", "bytes"]);
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let flipped = programs.write("flipped.shard", flipped);
    train(&programs, &model, &flipped)
        .failed_with(7)
        .says(&["flipped.shard", "damaged"]);
    assert!(!programs.path("adapter").exists());
}

#[test]
fn a_shard_of_another_tokenizer_is_refused() {
    let programs = programs();
    let shard = prepare(&programs, &model(&programs));
    let other = programs.path("other");
    tiny::write_directory(&other, "llama");
    let tokenizer = other.join("tokenizer.json");
    let mut changed: serde_json::Value =
        serde_json::from_slice(&fs::read(&tokenizer).unwrap()).unwrap();
    changed["model"]["merges"].as_array_mut().unwrap().pop();
    fs::write(&tokenizer, changed.to_string()).unwrap();
    let ended = train(&programs, &other, &shard).failed_with(7);
    ended.says(&["made with tokenizer", "hint:"]);
}

#[test]
fn an_adapter_with_nan_is_refused() {
    let programs = programs();
    let (model, data) = (model(&programs), data(&programs));
    train(&programs, &model, &data).ok();
    let out = programs.path("adapter");
    let generate = |adapter: &Path| {
        let mut args = vec![
            "generate",
            "--model",
            text(&model),
            "--adapter",
            text(adapter),
        ];
        args.extend([
            "--prompt",
            "Where",
            "--max-tokens",
            "2",
            "--greedy",
            "--device",
            "cpu",
        ]);
        programs.client(&args)
    };
    generate(&out).ok();
    let mut adapter = PeftAdapter::read(&out).unwrap();
    let tensor = &mut adapter.tensors[3];
    tensor.values[5] = f32::NAN;
    let name = tensor.name.clone();
    let poisoned = programs.path("poisoned");
    adapter.write(&poisoned).unwrap();
    generate(&poisoned)
        .failed_with(7)
        .says(&["poisoned", &name, "NaN"]);

    let weights = out.join("adapter_model.safetensors");
    let whole = fs::read(&weights).unwrap();
    fs::write(&weights, &whole[..whole.len() / 2]).unwrap();
    generate(&out)
        .failed_with(7)
        .says(&["adapter_model.safetensors"]);
}
