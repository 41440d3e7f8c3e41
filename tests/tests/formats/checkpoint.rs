//! The same tiny models from directories and from GGUF files.

use std::fs;
use std::path::Path;

use fedllm_models::{BlockFormat, Checkpoint, Message, MetaValue, QuantMatrix, quantize_row};
use fedllm_tests::tiny::{self, MODELS};
use tempfile::TempDir;

/// Model `name` as a directory and as a GGUF file.
fn both(name: &str, format: BlockFormat) -> (TempDir, Checkpoint, Checkpoint) {
    let dir = tempfile::tempdir().unwrap();
    tiny::write_directory(&dir.path().join(name), name);
    tiny::write_gguf(&dir.path().join("model.gguf"), name, format);
    let directory = Checkpoint::open(dir.path().join(name)).unwrap();
    let gguf = Checkpoint::open(dir.path().join("model.gguf")).unwrap();
    (dir, directory, gguf)
}

#[test]
fn every_tensor_is_found_under_its_hugging_face_name() {
    for name in MODELS {
        let (_dir, directory, gguf) = both(name, BlockFormat::F32);
        let gemma = directory.config().architecture.is_gemma();
        for tensor in tiny::tensors(directory.config()) {
            let stored = directory.tensor(&tensor.name).unwrap();
            assert_eq!(stored.to_f32(), tensor.values, "{name} {}", tensor.name);
            let is_norm = tensor.name.ends_with("norm.weight");
            let is_vector = tensor.shape.len() == 1;
            if is_norm {
                let factors = directory.norm(&tensor.name).unwrap();
                assert_eq!(gguf.norm(&tensor.name).unwrap(), factors);
                let offset = if gemma { 1.0 } else { 0.0 };
                assert_eq!(factors[3], tensor.values[3] + offset);
            } else if is_vector {
                assert_eq!(gguf.vector(&tensor.name).unwrap(), tensor.values);
            } else {
                let other = gguf.tensor(&tensor.name).unwrap();
                assert_eq!(other.to_f32(), tensor.values, "{name} {}", tensor.name);
            }
        }
        assert!(!directory.has("model.layers.2.mlp.up_proj.weight"));
        assert!(!gguf.has("model.layers.0.mlp.side_proj.weight"));
    }
}

#[test]
fn quantized_rows_are_those_of_the_model() {
    let (_dir, directory, gguf) = both("llama", BlockFormat::Q4_1);
    for part in ["self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj"] {
        let name = format!("model.layers.1.{part}.weight");
        let exact = directory.tensor(&name).unwrap();
        let mut bytes = Vec::new();
        quantize_row(BlockFormat::Q4_1, &exact.to_f32(), &mut bytes).unwrap();
        let expected =
            QuantMatrix::new(exact.rows(), exact.cols(), BlockFormat::Q4_1, bytes).unwrap();
        let stored = gguf.tensor(&name).unwrap();
        assert_eq!(stored.format(), BlockFormat::Q4_1);
        assert_eq!(stored.to_f32(), expected.to_f32(), "{name}");
        assert_eq!(stored.row_bytes(5), expected.row_bytes(5), "{name}");
    }
}

#[test]
fn both_files_describe_one_network() {
    for name in MODELS {
        let (_dir, directory, gguf) = both(name, BlockFormat::Q8_0);
        let (mut expected, got) = (directory.config().clone(), gguf.config().clone());
        // What GGUF files do not say, or say in another way.
        if name == "mistral" {
            expected.architecture = got.architecture;
            expected.sliding_window = None;
            expected.layer_slides = vec![false; 2];
        }
        if name.starts_with("gemma") {
            expected.query_pre_attn_scalar = got.query_pre_attn_scalar;
            expected.layer_slides = got.layer_slides.clone();
        }
        expected.rope_scaling = got.rope_scaling.clone();
        assert_eq!(got, expected, "{name}");
    }
}

#[test]
fn fingerprints_name_the_content() {
    let (dir, directory, gguf) = both("llama", BlockFormat::Q8_0);
    let copy = dir.path().join("copy");
    tiny::write_directory(&copy, "llama");
    // Formatting and files that change nothing.
    let config = fs::read_to_string(copy.join("config.json")).unwrap();
    fs::write(copy.join("config.json"), config.replace('\n', " ")).unwrap();
    fs::write(copy.join("README.md"), "hello").unwrap();
    let copied = Checkpoint::open(&copy).unwrap();
    assert_eq!(copied.fingerprint(), directory.fingerprint());
    assert_ne!(gguf.fingerprint(), directory.fingerprint());
    // One bit of one weight, and one number of the configuration.
    let weights = copy.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&weights, bytes).unwrap();
    let changed = Checkpoint::open(&copy).unwrap();
    assert_ne!(changed.fingerprint(), directory.fingerprint());
    let other = both("mistral", BlockFormat::Q8_0).1;
    assert_ne!(other.fingerprint(), directory.fingerprint());
}

#[test]
fn sharded_weights_are_one_model() {
    let dir = tempfile::tempdir().unwrap();
    tiny::write_directory(dir.path(), "llama");
    let single = Checkpoint::open(dir.path()).unwrap();
    let fingerprint = single.fingerprint();
    split_in_two(dir.path(), "model.safetensors");
    let sharded = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(sharded.fingerprint(), fingerprint);
    // A file name that leaves the directory is refused.
    let index = dir.path().join("model.safetensors.index.json");
    let text = fs::read_to_string(&index).unwrap();
    fs::write(
        &index,
        text.replace("one.safetensors", "../one.safetensors"),
    )
    .unwrap();
    let error = Checkpoint::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("no plain file name"), "{error}");
}

#[test]
fn a_snapshot_in_the_hub_cache_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("models--fedllm--tiny");
    tiny::write_directory(&model.join("snapshots").join("abc123"), "qwen2");
    fs::create_dir_all(model.join("refs")).unwrap();
    fs::write(model.join("refs").join("main"), "abc123\n").unwrap();
    let checkpoint = Checkpoint::open(&model).unwrap();
    assert_eq!(checkpoint.name(), "fedllm/tiny");
    assert!(checkpoint.config().attention_bias);
}

#[test]
fn templates_and_tokenizers_come_along() {
    let (_dir, directory, gguf) = both("llama", BlockFormat::Q4_0);
    let text = "the rain <s>in</s> Spain\n";
    let mut seen = Vec::new();
    for checkpoint in [&directory, &gguf] {
        let tokenizer = checkpoint.tokenizer().unwrap();
        let ids = tokenizer.encode(text, false).unwrap();
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
        assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), Some(2)));
        let template = checkpoint.chat_template(&tokenizer).unwrap().unwrap();
        let chat = template
            .render(&[Message::new("user", "hi")], true)
            .unwrap();
        assert_eq!(chat, "<s>user\nhi</s>\n<s>assistant\n");
        seen.push((ids, tokenizer.fingerprint(), template.fingerprint()));
    }
    assert_eq!(seen[0], seen[1]);
    assert!(seen[0].0.contains(&1));
}

#[test]
fn broken_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let says = |path: &Path, words: &[&str]| {
        let error = Checkpoint::open(path).unwrap_err().to_string();
        for word in words {
            assert!(error.contains(word), "{error:?} does not say {word:?}");
        }
    };
    says(&dir.path().join("nothing"), &["nothing", "no such file"]);
    says(dir.path(), &["config.json"]);

    let directory = dir.path().join("hf");
    tiny::write_directory(&directory, "llama");
    let weights = directory.join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() - 100]).unwrap();
    says(&directory, &["model.safetensors"]);
    fs::write(&weights, b"short").unwrap();
    says(&directory, &["model.safetensors"]);
    fs::remove_file(&weights).unwrap();
    says(&directory, &["no model.safetensors"]);
    fs::write(directory.join("pytorch_model.bin"), "x").unwrap();
    says(&directory, &["pickled"]);
    fs::write(&weights, &bytes).unwrap();
    let config = tiny::config_json("llama");
    let wider = config.replace("\"intermediate_size\": 96", "\"intermediate_size\": 97");
    fs::write(directory.join("config.json"), wider).unwrap();
    says(&directory, &["gate_proj", "96 x 64", "97 x 64"]);
    let deeper = config.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");
    fs::write(directory.join("config.json"), deeper).unwrap();
    says(&directory, &["model.layers.2.", "no tensor"]);

    let path = dir.path().join("model.gguf");
    let bytes = tiny::gguf("llama", BlockFormat::Q8_0).to_bytes();
    fs::write(&path, &bytes[..bytes.len() - 64]).unwrap();
    says(&path, &["model.gguf", "truncated", "tensor"]);
    fs::write(&path, &bytes[..2000]).unwrap();
    says(&path, &["model.gguf", "truncated"]);
    fs::write(&path, "not a model at all, just text").unwrap();
    says(&path, &["no GGUF file"]);
    let mut writer = tiny::gguf("llama", BlockFormat::Q8_0);
    writer.set("general.architecture", MetaValue::from("rwkv7"));
    writer.write(&path).unwrap();
    says(&path, &["rwkv7"]);
}

/// Puts half of the tensors of `file` into `one.safetensors`, half into
/// `two.safetensors`, and writes their index.
fn split_in_two(directory: &Path, file: &str) {
    use safetensors::SafeTensors;

    let bytes = fs::read(directory.join(file)).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut names = tensors.names();
    names.sort_unstable();
    let (one, two) = names.split_at(names.len() / 2);
    let mut map = serde_json::Map::new();
    for (file, names) in [("one.safetensors", one), ("two.safetensors", two)] {
        let views = names
            .iter()
            .map(|name| (*name, tensors.tensor(name).unwrap()));
        fs::write(
            directory.join(file),
            safetensors::serialize(views, None).unwrap(),
        )
        .unwrap();
        map.extend(names.iter().map(|name| ((*name).to_owned(), file.into())));
    }
    let index = serde_json::json!({"metadata": {}, "weight_map": map});
    let path = directory.join("model.safetensors.index.json");
    fs::write(path, index.to_string()).unwrap();
    fs::remove_file(directory.join(file)).unwrap();
}
