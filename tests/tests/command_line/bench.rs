//! `fedllm-client bench`: what its JSON holds, and what it refuses.

use fedllm_models::BlockFormat;
use fedllm_tests::federation::text;
use fedllm_tests::tiny;
use serde_json::Value;

use super::programs;

/// FLOPs of a step of the shape `tiny` over 4 rows of 16 tokens with rank 4: the formulas of each
/// operation, written out.
fn tiny_flops() -> u64 {
    let (layers, hidden, ffn, vocabulary) = (2, 64, 160, 384);
    let (tokens, labels, rank) = (4 * 16, 4 * 15, 4);
    // q, k, v side by side are 64 + 32 + 32 wide.
    let (qkv, out, gate_up, down) = (
        hidden * 128,
        hidden * hidden,
        hidden * 2 * ffn,
        ffn * hidden,
    );
    let weights = qkv + out + gate_up + down;
    let a = rank * (3 * hidden + hidden + 2 * hidden + ffn);
    let b = rank * (128 + hidden + 2 * ffn + hidden);
    // Forward x·W, x·A, u·B; backward g·W, dU, dB, dA, dU·A, but nothing below the first layer.
    let products = layers * (2 * weights + 3 * a + 3 * b) - (qkv + rank * 3 * hidden);
    // Rows of 16 tokens have 16 · 17 / 2 visible pairs; two products forward, five backward.
    let attention = layers * 7 * 2 * (4 * 136) * hidden;
    let head = labels * vocabulary * (4 * hidden + 4);
    let norms = tokens * hidden * (2 * layers * (4 + 2) + (2 * layers - 1) * 7);
    let last_norm = labels * hidden * (4 + 6);
    let rope = layers * 2 * tokens * 96 * 3;
    let glu = layers * tokens * ffn * (2 * 6 + 12);
    let residual = tokens * hidden * 2 * layers;
    let optimizer = 17 * layers * (a + b);
    2 * tokens * products + attention + head + norms + last_norm + rope + glu + residual + optimizer
}

fn number(value: &Value, key: &str) -> f64 {
    let number = value[key].as_f64();
    number.unwrap_or_else(|| panic!("{key} is no number in {value}"))
}

#[test]
fn a_step_is_measured_with_all_its_operations() {
    let programs = programs();
    let mut args = vec![
        "bench",
        "--random-weights",
        "tiny",
        "--device",
        "cpu",
        "--json",
    ];
    args.extend([
        "--seq",
        "16",
        "--rank",
        "4",
        "--steps",
        "3",
        "--threads",
        "2",
    ]);
    let result = programs.client(&args).ok().json();
    assert_eq!(result["model"], "tiny");
    assert_eq!(result["base_precision"], "as-stored");
    assert_eq!((&result["batch"], &result["seq"]), (&4.into(), &16.into()));
    assert_eq!(
        (&result["rank"], &result["threads"]),
        (&4.into(), &2.into())
    );
    assert_eq!(
        (&result["steps"], &result["low_memory"]),
        (&3.into(), &false.into())
    );
    assert_eq!(
        (&result["dispatches"], &result["roofline"]),
        (&Value::Null, &Value::Null)
    );
    assert!(result["version"].is_string() && result["device"].is_string());

    let seconds = number(&result, "step_seconds");
    assert!(0.0 < seconds && number(&result, "step_seconds_min") <= seconds);
    assert!(seconds <= number(&result, "step_seconds_max"));
    let tokens = number(&result, "tokens_per_second") * seconds;
    assert!((tokens - 64.0).abs() < 1e-6, "{tokens}");
    assert_eq!(result["flops_per_step"], tiny_flops());
    // The base: four bytes a weight, the embedding once.
    let base = number(&result, "base_mib") * f64::from(1 << 20);
    assert_eq!(base, f64::from(4 * (384 * 64 + 2 * 43_008)));

    let operations = result["operations"].as_array().unwrap();
    assert_eq!(operations.len(), 20);
    let sum = |key: &str| operations.iter().map(|o| number(o, key)).sum::<f64>();
    assert_eq!(sum("flops"), tiny_flops() as f64);
    let share = sum("share") + number(&result, "other_share");
    assert!((share - 1.0).abs() < 1e-6, "{share}");
    for operation in operations {
        assert!(number(operation, "seconds") > 0.0, "{operation}");
        assert!(number(operation, "bytes_per_second") > 0.0, "{operation}");
    }
    if cfg!(target_os = "linux") {
        assert!(number(&result, "peak_rss_mib") > 1.0);
    }
}

#[test]
fn a_model_file_a_preference_step_and_generation_are_measured() {
    let programs = programs();
    let model = programs.path("model.gguf");
    tiny::write_gguf(&model, "gemma3", BlockFormat::Q8_0);
    let mut args = vec![
        "bench",
        "--model",
        text(&model),
        "--device",
        "cpu",
        "--seq",
        "12",
    ];
    args.extend(["--steps", "1"]);
    let with = |more: &[&'static str]| [&args[..], more].concat();
    let step = [
        "--objective",
        "dpo",
        "--batch",
        "1",
        "--low-memory",
        "--json",
    ];
    let step = programs.client(&with(&step)).ok().json();
    assert_eq!(
        (&step["objective"], &step["tokens_per_step"]),
        (&"dpo".into(), &24.into())
    );
    assert_eq!(step["operations"][0]["name"], "reference");
    assert!(number(&step, "tokens_per_second") > 0.0);

    let generated = programs
        .client(&with(&["--generate", "--json"]))
        .ok()
        .json();
    assert_eq!(generated["prompt_tokens"], 12);
    assert!(number(&generated, "prefill_tokens_per_second") > 0.0);
    assert!(number(&generated, "decode_tokens_per_second") > 0.0);

    let table = programs.client(&args).ok().stdout;
    for part in ["tokens/s", "GFLOP/s", "attention_backward", "other"] {
        assert!(table.contains(part), "{part} is not in\n{table}");
    }
}

#[test]
fn what_cannot_be_measured_is_refused_with_a_way_out() {
    let programs = programs();
    let unknown = programs.client(&["bench", "--random-weights", "gpt-5"]);
    unknown
        .failed_with(2)
        .says(&["gpt-5", "tiny", "llama-3.2-1b"]);
    let both = ["bench", "--random-weights", "tiny", "--model", "some.gguf"];
    programs.client(&both).failed_with(2).says(&["--model"]);
    let mut large = vec!["bench", "--random-weights", "llama-2-7b", "--device", "cpu"];
    large.extend(["--batch", "65536", "--seq", "1000000"]);
    let large = programs.client(&large).failed_with(4);
    large.says(&[
        "this needs about",
        "hint:",
        "--batch",
        "--low-memory",
        "--base-precision",
    ]);
}
