//! `config.json` as transformers 4 and 5 write it.

use serde::Deserialize;
use serde_json::Value;

use super::{Activation, Architecture, ConfigError, ModelConfig, RopeScaling};

/// The fields that we read. Unknown ones are ignored: every release adds some.
#[derive(Deserialize)]
struct Raw {
    model_type: String,
    hidden_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    intermediate_size: Option<usize>,
    vocab_size: Option<usize>,
    max_position_embeddings: Option<usize>,
    rms_norm_eps: Option<f32>,
    rope_theta: Option<f32>,
    rope_scaling: Option<Value>,
    rope_parameters: Option<Value>,
    rope_local_base_freq: Option<f32>,
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<usize>,
    sliding_window_pattern: Option<usize>,
    layer_types: Option<Vec<String>>,
    // Absent and null differ: Gemma 2 has caps unless they are null.
    #[serde(default, deserialize_with = "present")]
    attn_logit_softcapping: Option<Option<f32>>,
    #[serde(default, deserialize_with = "present")]
    final_logit_softcapping: Option<Option<f32>>,
    query_pre_attn_scalar: Option<f32>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    hidden_act: Option<String>,
    hidden_activation: Option<String>,
    quantization_config: Option<Value>,
    use_bidirectional_attention: Option<bool>,
}

fn present<'de, D, T>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    Option::<T>::deserialize(deserializer).map(Some)
}

impl ModelConfig {
    /// Reads the text of a Hugging Face `config.json`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with the field at fault.
    pub fn from_hugging_face(json: &str) -> Result<Self, ConfigError> {
        let raw: Raw = serde_json::from_str(json)?;
        let architecture = architecture(&raw.model_type)?;
        refuse_what_we_lack(&raw, architecture)?;
        let hidden = raw.hidden_size.ok_or(ConfigError::Missing("hidden_size"))?;
        let heads = raw
            .num_attention_heads
            .ok_or(ConfigError::Missing("num_attention_heads"))?;
        let layers = raw
            .num_hidden_layers
            .ok_or(ConfigError::Missing("num_hidden_layers"))?;
        let head_dim = raw.head_dim.unwrap_or(match architecture {
            Architecture::Gemma2 | Architecture::Gemma3 => 256,
            Architecture::Qwen3 => 128,
            _ => hidden / heads.max(1),
        });
        let gemma = architecture.is_gemma();
        let sliding_window = sliding_window(&raw, architecture);
        let rope = Rope::read(&raw, architecture)?;
        Self {
            architecture,
            hidden,
            layers,
            heads,
            kv_heads: raw.num_key_value_heads.unwrap_or(heads),
            head_dim,
            ffn: raw
                .intermediate_size
                .ok_or(ConfigError::Missing("intermediate_size"))?,
            vocab: raw.vocab_size.ok_or(ConfigError::Missing("vocab_size"))?,
            max_positions: raw.max_position_embeddings.unwrap_or(2048),
            rms_eps: raw.rms_norm_eps.unwrap_or(1e-6),
            rope_theta: rope.theta,
            rope_scaling: rope.scaling,
            rope_local_theta: rope.local_theta,
            sliding_window,
            layer_slides: layer_slides(&raw, architecture, layers, sliding_window)?,
            attention_soft_cap: soft_cap(raw.attn_logit_softcapping, architecture, 50.0),
            final_soft_cap: soft_cap(raw.final_logit_softcapping, architecture, 30.0),
            query_pre_attn_scalar: match (gemma, raw.query_pre_attn_scalar) {
                (true, Some(scalar)) => scalar,
                (true, None) => 256.0,
                (false, _) => head_dim as f32,
            },
            tied: raw.tie_word_embeddings.unwrap_or(gemma),
            attention_bias: architecture == Architecture::Qwen2,
            qk_norm: matches!(architecture, Architecture::Qwen3 | Architecture::Gemma3),
            post_norms: gemma,
            activation: activation(&raw, architecture)?,
            embedding_scale: if gemma { (hidden as f32).sqrt() } else { 1.0 },
        }
        .check()
    }
}

fn architecture(model_type: &str) -> Result<Architecture, ConfigError> {
    Ok(match model_type {
        "llama" => Architecture::Llama,
        "mistral" => Architecture::Mistral,
        "qwen2" => Architecture::Qwen2,
        "qwen3" => Architecture::Qwen3,
        "gemma2" => Architecture::Gemma2,
        "gemma3_text" => Architecture::Gemma3,
        other => return Err(ConfigError::UnknownArchitecture(other.to_owned())),
    })
}

fn refuse_what_we_lack(raw: &Raw, architecture: Architecture) -> Result<(), ConfigError> {
    let flags = [
        ("attention_bias", raw.attention_bias),
        ("mlp_bias", raw.mlp_bias),
        (
            "use_bidirectional_attention",
            raw.use_bidirectional_attention,
        ),
    ];
    for (what, value) in flags {
        if value == Some(true) {
            let what = format!("{what} for {architecture}");
            return Err(ConfigError::unsupported(&what, true, ""));
        }
    }
    if let Some(quantization) = &raw.quantization_config {
        let method = &quantization["quant_method"];
        let method = method.as_str().unwrap_or("of unknown method");
        return Err(ConfigError::unsupported(
            "quantization_config",
            method,
            "use the unquantized files, or a GGUF",
        ));
    }
    Ok(())
}

fn activation(raw: &Raw, architecture: Architecture) -> Result<Activation, ConfigError> {
    let name = if architecture.is_gemma() {
        raw.hidden_activation
            .as_deref()
            .or(Some("gelu_pytorch_tanh"))
    } else {
        raw.hidden_act.as_deref()
    };
    match name {
        Some("silu" | "swish") | None => Ok(Activation::Silu),
        Some("gelu_pytorch_tanh" | "gelu_new") => Ok(Activation::GeluTanh),
        Some(other) => Err(ConfigError::unsupported(
            "activation",
            other,
            "silu and gelu_pytorch_tanh are",
        )),
    }
}

fn soft_cap(given: Option<Option<f32>>, architecture: Architecture, default: f32) -> Option<f32> {
    match (architecture, given) {
        (Architecture::Gemma2 | Architecture::Gemma3, Some(cap)) => cap,
        (Architecture::Gemma2, None) => Some(default),
        _ => None,
    }
}

fn sliding_window(raw: &Raw, architecture: Architecture) -> Option<usize> {
    match architecture {
        Architecture::Llama => None,
        Architecture::Mistral => raw.sliding_window,
        Architecture::Qwen2 | Architecture::Qwen3 => raw
            .sliding_window
            .filter(|_| raw.use_sliding_window == Some(true)),
        Architecture::Gemma2 | Architecture::Gemma3 => raw.sliding_window.or(Some(4096)),
    }
}

fn layer_slides(
    raw: &Raw,
    architecture: Architecture,
    layers: usize,
    window: Option<usize>,
) -> Result<Vec<bool>, ConfigError> {
    if window.is_none() {
        return Ok(vec![false; layers.min(1 << 16)]);
    }
    if let Some(types) = &raw.layer_types {
        return types.iter().map(|t| slides(t)).collect();
    }
    let first_window = raw.max_window_layers.unwrap_or(28);
    let pattern = raw.sliding_window_pattern.unwrap_or(6).max(1);
    Ok((0..layers.min(1 << 16))
        .map(|layer| match architecture {
            Architecture::Llama => false,
            Architecture::Mistral => true,
            Architecture::Qwen2 | Architecture::Qwen3 => layer >= first_window,
            Architecture::Gemma2 => layer % 2 == 0,
            Architecture::Gemma3 => !(layer + 1).is_multiple_of(pattern),
        })
        .collect())
}

fn slides(layer_type: &str) -> Result<bool, ConfigError> {
    match layer_type {
        "sliding_attention" => Ok(true),
        "full_attention" => Ok(false),
        other => Err(ConfigError::unsupported(
            "layer type",
            other,
            "sliding_attention and full_attention are",
        )),
    }
}

struct Rope {
    theta: f32,
    local_theta: Option<f32>,
    scaling: RopeScaling,
}

/// One set of rope settings, as `rope_scaling` and `rope_parameters` spell it.
#[derive(Deserialize)]
struct RawRope {
    rope_theta: Option<f32>,
    #[serde(alias = "type")]
    rope_type: Option<String>,
    factor: Option<f32>,
    low_freq_factor: Option<f32>,
    high_freq_factor: Option<f32>,
    original_max_position_embeddings: Option<usize>,
    partial_rotary_factor: Option<f32>,
}

impl Rope {
    /// Transformers 5 writes `rope_parameters`, one set or one for each layer type;
    /// version 4 wrote `rope_theta`, `rope_scaling` and `rope_local_base_freq`.
    fn read(raw: &Raw, architecture: Architecture) -> Result<Self, ConfigError> {
        let gemma3 = architecture == Architecture::Gemma3;
        let default_theta = if gemma3 { 1e6 } else { 1e4 };
        let by_type = raw
            .rope_parameters
            .as_ref()
            .filter(|p| p.get("full_attention").is_some());
        let (full, sliding) = match by_type {
            Some(parameters) => (
                parameters.get("full_attention"),
                parameters.get("sliding_attention"),
            ),
            None => (
                raw.rope_parameters.as_ref().or(raw.rope_scaling.as_ref()),
                None,
            ),
        };
        let full = parse(full)?;
        let sliding = parse(sliding)?;
        let local = sliding.as_ref().and_then(|s| s.rope_theta);
        Ok(Self {
            theta: full
                .as_ref()
                .and_then(|f| f.rope_theta)
                .or(raw.rope_theta)
                .unwrap_or(default_theta),
            local_theta: gemma3.then(|| local.or(raw.rope_local_base_freq).unwrap_or(1e4)),
            scaling: full.map_or(Ok(RopeScaling::None), scaling)?,
        })
    }
}

fn parse(value: Option<&Value>) -> Result<Option<RawRope>, ConfigError> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(value) => Ok(Some(RawRope::deserialize(value)?)),
    }
}

fn scaling(raw: RawRope) -> Result<RopeScaling, ConfigError> {
    if let Some(partial) = raw.partial_rotary_factor.filter(|p| *p != 1.0) {
        return Err(ConfigError::unsupported(
            "partial_rotary_factor",
            partial,
            "only 1 is",
        ));
    }
    let factor = || raw.factor.ok_or(ConfigError::Missing("rope factor"));
    match raw.rope_type.as_deref() {
        None | Some("default") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear { factor: factor()? }),
        Some("llama3") => Ok(RopeScaling::Llama3 {
            factor: factor()?,
            low_freq_factor: raw
                .low_freq_factor
                .ok_or(ConfigError::Missing("rope low_freq_factor"))?,
            high_freq_factor: raw
                .high_freq_factor
                .ok_or(ConfigError::Missing("rope high_freq_factor"))?,
            original_max_positions: raw.original_max_position_embeddings.ok_or(
                ConfigError::Missing("rope original_max_position_embeddings"),
            )?,
        }),
        Some(other) => Err(ConfigError::unsupported(
            "rope type",
            other,
            "default, linear and llama3 are",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(model_type: &str, more: &str) -> String {
        format!(
            r#"{{"model_type":"{model_type}","hidden_size":64,"intermediate_size":96,
            "num_hidden_layers":12,"num_attention_heads":4,"num_key_value_heads":2,
            "vocab_size":384,"head_dim":16 {more}}}"#
        )
    }

    fn read(model_type: &str, more: &str) -> Result<ModelConfig, ConfigError> {
        ModelConfig::from_hugging_face(&with(model_type, more))
    }

    #[test]
    fn both_spellings_of_rope_agree() {
        let four = r#","rope_theta":5e5,"rope_scaling":{"type":"llama3","factor":8.0,
            "low_freq_factor":1.0,"high_freq_factor":4.0,"original_max_position_embeddings":8192}"#;
        let five = r#","rope_parameters":{"rope_theta":5e5,"rope_type":"llama3","factor":8.0,
            "low_freq_factor":1.0,"high_freq_factor":4.0,"original_max_position_embeddings":8192}"#;
        assert_eq!(read("llama", four).unwrap(), read("llama", five).unwrap());
        let four = r#","rope_theta":1e6,"rope_local_base_freq":2e4"#;
        let five = r#","rope_parameters":{"full_attention":{"rope_theta":1e6,"rope_type":"default"},
            "sliding_attention":{"rope_theta":2e4,"rope_type":"default"}}"#;
        let (four, five) = (
            read("gemma3_text", four).unwrap(),
            read("gemma3_text", five).unwrap(),
        );
        assert_eq!(four, five);
        assert_eq!(four.rope_local_theta, Some(2e4));
    }

    #[test]
    fn layers_slide_as_their_family_does() {
        let slides = |config: ModelConfig| config.layer_slides;
        let window = r#","sliding_window":8"#;
        assert_eq!(slides(read("llama", window).unwrap()), [false; 12]);
        assert_eq!(slides(read("mistral", window).unwrap()), [true; 12]);
        let gemma2 = slides(read("gemma2", window).unwrap());
        assert_eq!(gemma2[..4], [true, false, true, false]);
        let gemma3 = slides(read("gemma3_text", window).unwrap());
        let full: Vec<usize> = (0..12).filter(|&i| !gemma3[i]).collect();
        assert_eq!(full, [5, 11]);
        let qwen = r#","sliding_window":8,"use_sliding_window":true,"max_window_layers":10"#;
        let qwen = slides(read("qwen2", qwen).unwrap());
        assert!(!qwen[9] && qwen[10]);
        assert_eq!(read("qwen2", window).unwrap().sliding_window, None);
    }

    #[test]
    fn soft_caps_default_unless_they_are_null() {
        let none = r#","attn_logit_softcapping":null,"final_logit_softcapping":null"#;
        assert_eq!(read("gemma2", none).unwrap().attention_soft_cap, None);
        let gemma = read("gemma2", "").unwrap();
        assert_eq!(
            (gemma.attention_soft_cap, gemma.final_soft_cap),
            (Some(50.0), Some(30.0))
        );
        assert!(gemma.tied && gemma.embedding_scale == 8.0);
    }

    #[test]
    fn what_we_lack_is_named() {
        let says = |result: Result<ModelConfig, ConfigError>, word: &str| {
            let text = result.unwrap_err().to_string();
            assert!(text.contains(word), "{text:?} does not name {word:?}");
        };
        says(read("mamba", ""), "mamba");
        says(read("llama", r#","mlp_bias":true"#), "mlp_bias");
        says(read("llama", r#","hidden_act":"relu""#), "relu");
        says(
            read("llama", r#","rope_scaling":{"rope_type":"yarn"}"#),
            "yarn",
        );
        says(
            read("llama", r#","quantization_config":{"quant_method":"awq"}"#),
            "awq",
        );
        says(
            ModelConfig::from_hugging_face(r#"{"model_type":"llama"}"#),
            "hidden_size",
        );
        says(ModelConfig::from_hugging_face("[1]"), "config.json");
        says(
            ModelConfig::from_hugging_face(
                r#"{"model_type":"llama","hidden_size":64,"intermediate_size":96,
                "num_hidden_layers":1,"num_attention_heads":4,"num_key_value_heads":3,
                "vocab_size":384}"#,
            ),
            "multiple",
        );
    }
}
