//! Tiny models on disk: a Hugging Face directory or a GGUF file, with a tokenizer.
//!
//! Two layers, 64 wide, 384 tokens. They are written in milliseconds, so that end-to-end
//! tests need no download.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use fedllm_models::{BlockFormat, GgufWriter, MetaKind, MetaValue, ModelConfig, quantize_row};
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize};

use crate::synthetic::weight;

/// Names of the tiny models, one for each family and one with scaled rotary frequencies.
pub const MODELS: [&str; 7] = [
    "llama", "llama3", "qwen2", "qwen3", "mistral", "gemma2", "gemma3",
];

/// The chat template that every tiny model has.
pub const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ '<s>' + message['role'] + '\\n' \
     + message['content'] + '</s>\\n' }}{% endfor %}\
     {% if add_generation_prompt %}{{ '<s>assistant\\n' }}{% endif %}";

/// A tensor of a tiny model, by its Hugging Face name.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Hugging Face name.
    pub name: String,
    /// Rows and columns of a matrix, or the length of a vector.
    pub shape: Vec<usize>,
    /// Values, row-major.
    pub values: Vec<f32>,
}

/// The text of the `config.json` of model `name`.
///
/// # Panics
///
/// If there is no such model.
pub fn config_json(name: &str) -> &'static str {
    match name {
        "llama" => include_str!("../golden/tiny/llama/config.json"),
        "llama3" => include_str!("../golden/tiny/llama3/config.json"),
        "qwen2" => include_str!("../golden/tiny/qwen2/config.json"),
        "qwen3" => include_str!("../golden/tiny/qwen3/config.json"),
        "mistral" => include_str!("../golden/tiny/mistral/config.json"),
        "gemma2" => include_str!("../golden/tiny/gemma2/config.json"),
        "gemma3" => include_str!("../golden/tiny/gemma3/config.json"),
        other => panic!("no tiny model {other}"),
    }
}

/// The configuration of model `name`.
///
/// # Panics
///
/// If there is no such model.
pub fn config(name: &str) -> ModelConfig {
    match ModelConfig::from_hugging_face(config_json(name)) {
        Ok(config) => config,
        Err(error) => panic!("the tiny model {name}: {error}"),
    }
}

/// Every tensor of the model that `config` describes, with its synthetic values.
pub fn tensors(config: &ModelConfig) -> Vec<Tensor> {
    let gemma = config.architecture.is_gemma();
    shapes(config)
        .into_iter()
        .map(|(name, shape)| {
            let (rows, cols) = match shape[..] {
                [rows, cols] => (rows, cols),
                _ => (1, shape[0]),
            };
            let values = weight(&name, rows, cols, gemma);
            Tensor {
                name,
                shape,
                values,
            }
        })
        .collect()
}

/// Writes model `name` as a Hugging Face directory: `config.json`, `model.safetensors`,
/// `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja`.
///
/// # Panics
///
/// If there is no such model, or the disk refuses.
pub fn write_directory(directory: &Path, name: &str) {
    let put = |file: &str, bytes: &[u8]| {
        let path = directory.join(file);
        fs::write(&path, bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    };
    fs::create_dir_all(directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    put("config.json", config_json(name).as_bytes());
    put("model.safetensors", &safetensors(&tensors(&config(name))));
    put("tokenizer.json", tokenizer_json().as_bytes());
    put("tokenizer_config.json", TOKENIZER_CONFIG.as_bytes());
    put("chat_template.jinja", CHAT_TEMPLATE.as_bytes());
}

/// Writes model `name` as a GGUF file with its matrices in `format`, norms in F32, and
/// queries and keys in llama.cpp's row order where the architecture has it so.
///
/// # Panics
///
/// If there is no such model, `format` cannot be written, or the disk refuses.
pub fn write_gguf(path: &Path, name: &str, format: BlockFormat) {
    let written = gguf(name, format).write(path);
    written.unwrap_or_else(|e| panic!("{e}"));
}

/// The GGUF file of [`write_gguf`], still open for changes.
///
/// # Panics
///
/// If there is no such model, or `format` cannot be written.
pub fn gguf(name: &str, format: BlockFormat) -> GgufWriter {
    let config = config(name);
    let mut writer = GgufWriter::new();
    metadata(&mut writer, name, &config);
    tokenizer_metadata(&mut writer);
    for tensor in tensors(&config) {
        let (name, values) = gguf_tensor(&tensor, &config);
        let dims: Vec<usize> = tensor.shape.iter().rev().copied().collect();
        let format = if dims.len() == 1 {
            BlockFormat::F32
        } else {
            format
        };
        let mut bytes = Vec::new();
        quantize_row(format, &values, &mut bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
        writer
            .tensor(&name, &dims, format, bytes)
            .unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    writer
}

fn shapes(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let (hidden, ffn, vocab) = (config.hidden, config.ffn, config.vocab);
    let (query, kv, head) = (config.query_dim(), config.kv_dim(), config.head_dim);
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocab, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    if !config.tied {
        shapes.push(("lm_head.weight".to_owned(), vec![vocab, hidden]));
    }
    for layer in 0..config.layers {
        let mut add = |part: &str, shape: &[usize]| {
            shapes.push((format!("model.layers.{layer}.{part}"), shape.to_vec()))
        };
        add("input_layernorm.weight", &[hidden]);
        add("post_attention_layernorm.weight", &[hidden]);
        add("self_attn.q_proj.weight", &[query, hidden]);
        add("self_attn.k_proj.weight", &[kv, hidden]);
        add("self_attn.v_proj.weight", &[kv, hidden]);
        add("self_attn.o_proj.weight", &[hidden, query]);
        add("mlp.gate_proj.weight", &[ffn, hidden]);
        add("mlp.up_proj.weight", &[ffn, hidden]);
        add("mlp.down_proj.weight", &[hidden, ffn]);
        if config.attention_bias {
            add("self_attn.q_proj.bias", &[query]);
            add("self_attn.k_proj.bias", &[kv]);
            add("self_attn.v_proj.bias", &[kv]);
        }
        if config.qk_norm {
            add("self_attn.q_norm.weight", &[head]);
            add("self_attn.k_norm.weight", &[head]);
        }
        if config.post_norms {
            add("pre_feedforward_layernorm.weight", &[hidden]);
            add("post_feedforward_layernorm.weight", &[hidden]);
        }
    }
    shapes
}

fn safetensors(tensors: &[Tensor]) -> Vec<u8> {
    let views = tensors.iter().map(|tensor| {
        let bytes = bytemuck::cast_slice(&tensor.values);
        let view = TensorView::new(Dtype::F32, tensor.shape.clone(), bytes);
        let view = view.unwrap_or_else(|e| panic!("{}: {e}", tensor.name));
        (tensor.name.as_str(), view)
    });
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    serialize(views, Some(metadata)).unwrap_or_else(|e| panic!("safetensors: {e}"))
}

fn metadata(writer: &mut GgufWriter, name: &str, config: &ModelConfig) {
    let architecture = config.architecture.gguf_name();
    writer.set("general.architecture", MetaValue::from(architecture));
    writer.set(
        "general.name",
        MetaValue::from(format!("tiny {name}").as_str()),
    );
    writer.set("general.alignment", MetaValue::U32(32));
    let sizes = [
        ("block_count", config.layers),
        ("context_length", config.max_positions),
        ("embedding_length", config.hidden),
        ("feed_forward_length", config.ffn),
        ("attention.head_count", config.heads),
        ("attention.head_count_kv", config.kv_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
        ("rope.dimension_count", config.head_dim),
    ];
    let window = config
        .sliding_window
        .map(|w| ("attention.sliding_window", w));
    for (key, size) in sizes.into_iter().chain(window) {
        let key = format!("{architecture}.{key}");
        writer.set(&key, MetaValue::U32(size as u32));
    }
    let numbers = [
        ("attention.layer_norm_rms_epsilon", Some(config.rms_eps)),
        ("rope.freq_base", Some(config.rope_theta)),
        ("attn_logit_softcapping", config.attention_soft_cap),
        ("final_logit_softcapping", config.final_soft_cap),
    ];
    for (key, number) in numbers {
        if let Some(number) = number {
            let key = format!("{architecture}.{key}");
            writer.set(&key, MetaValue::F32(number));
        }
    }
}

/// Name and values as a GGUF file has them.
fn gguf_tensor(tensor: &Tensor, config: &ModelConfig) -> (String, Vec<f32>) {
    let gemma = config.architecture.is_gemma();
    let name = gguf_name(&tensor.name, gemma);
    let mut values = tensor.values.clone();
    if gemma && tensor.name.ends_with("norm.weight") {
        values.iter_mut().for_each(|v| *v += 1.0);
    }
    let heads = match &name {
        n if n.contains("attn_q.") => config.heads,
        n if n.contains("attn_k.") => config.kv_heads,
        _ => return (name, values),
    };
    if config.architecture.gguf_name() != "llama" {
        return (name, values);
    }
    (name, interleave(&values, heads, config.head_dim))
}

/// Rows of each head, first and second half taken in turn.
fn interleave(values: &[f32], heads: usize, head_dim: usize) -> Vec<f32> {
    let cols = values.len() / (heads * head_dim);
    let row = |index: usize| &values[index * cols..][..cols];
    (0..heads)
        .flat_map(|head| (0..head_dim / 2).map(move |i| head * head_dim + i))
        .flat_map(|first| [row(first), row(first + head_dim / 2)])
        .flatten()
        .copied()
        .collect()
}

fn gguf_name(name: &str, gemma: bool) -> String {
    let post_attention = if gemma {
        "post_attention_norm"
    } else {
        "ffn_norm"
    };
    let parts = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("model.layers.", "blk."),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", post_attention),
        ("pre_feedforward_layernorm", "ffn_norm"),
        ("post_feedforward_layernorm", "post_ffw_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    let replace = |name: String, (from, to): (&str, &str)| name.replace(from, to);
    parts.into_iter().fold(name.to_owned(), replace)
}

const TOKENIZER_CONFIG: &str = r#"{
  "bos_token": "<s>",
  "eos_token": "</s>",
  "pad_token": "<pad>",
  "tokenizer_class": "PreTrainedTokenizerFast"
}
"#;

const SPECIAL: [&str; 3] = ["<pad>", "<s>", "</s>"];

/// Pairs that merge, so that the tokenizer does more than spell bytes. `\u{120}` stands for
/// a space.
const MERGES: [(&str, &str); 12] = [
    ("\u{120}", "t"),
    ("h", "e"),
    ("\u{120}t", "he"),
    ("i", "n"),
    ("e", "r"),
    ("\u{120}", "a"),
    ("o", "n"),
    ("r", "e"),
    ("in", "g"),
    ("\u{120}", "s"),
    ("l", "l"),
    ("a", "n"),
];

/// The vocabulary by id: special tokens, bytes, merged pairs.
pub fn vocabulary() -> Vec<String> {
    let special = SPECIAL.into_iter().map(str::to_owned);
    let bytes = (0..=255u8).map(|byte| byte_char(byte).to_string());
    let merged = MERGES.into_iter().map(|(a, b)| format!("{a}{b}"));
    special.chain(bytes).chain(merged).collect()
}

/// The character that stands for a byte in byte-level vocabularies: itself where it can be
/// seen, else one of those from U+0100 on, in order.
fn byte_char(byte: u8) -> char {
    let visible = |b: u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if visible(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|b| !visible(*b)).count() as u32;
    char::from_u32(0x100 + before).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// The text of the `tokenizer.json` of every tiny model: byte-level BPE.
pub fn tokenizer_json() -> String {
    let vocab: serde_json::Map<String, serde_json::Value> = vocabulary()
        .into_iter()
        .zip(0u32..)
        .map(|(token, id)| (token, id.into()))
        .collect();
    let added: Vec<serde_json::Value> = SPECIAL
        .iter()
        .zip(0u32..)
        .map(|(token, id)| {
            serde_json::json!({
                "id": id, "content": token, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true
            })
        })
        .collect();
    let byte_level = serde_json::json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true
    });
    serde_json::json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null,
            "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab,
            "merges": MERGES.map(|(a, b)| [a, b]),
        },
    })
    .to_string()
}

fn tokenizer_metadata(writer: &mut GgufWriter) {
    let kinds = vocabulary()
        .iter()
        .map(|token| {
            MetaValue::I32(if SPECIAL.contains(&token.as_str()) {
                3
            } else {
                1
            })
        })
        .collect();
    let merges = MERGES.map(|(a, b)| format!("{a} {b}"));
    let mut set = |key: &str, value| writer.set(&format!("tokenizer.{key}"), value);
    set("ggml.model", MetaValue::from("gpt2"));
    set("ggml.pre", MetaValue::from("gpt-2"));
    set("ggml.tokens", MetaValue::strings(vocabulary()));
    set("ggml.token_type", MetaValue::Array(MetaKind::I32, kinds));
    set("ggml.merges", MetaValue::strings(merges));
    set("ggml.padding_token_id", MetaValue::U32(0));
    set("ggml.bos_token_id", MetaValue::U32(1));
    set("ggml.eos_token_id", MetaValue::U32(2));
    set("ggml.add_bos_token", MetaValue::Bool(false));
    set("chat_template", MetaValue::from(CHAT_TEMPLATE));
}
