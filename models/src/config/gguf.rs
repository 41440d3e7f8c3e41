//! The same description from GGUF metadata.

use super::{Activation, Architecture, ConfigError, ModelConfig, RopeScaling};
use crate::Gguf;

impl ModelConfig {
    /// Reads the metadata of a GGUF model.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with the key at fault.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, ConfigError> {
        let name = gguf.text("general.architecture")?;
        let architecture = architecture(name)?;
        let keys = Keys { gguf, prefix: name };
        let hidden = keys.size("embedding_length")?;
        let layers = keys.size("block_count")?;
        let heads = keys.size("attention.head_count")?;
        let head_dim = keys.head_dim(hidden, heads)?;
        let gemma = architecture.is_gemma();
        let sliding_window = keys.sliding_window(architecture)?;
        Self {
            architecture,
            hidden,
            layers,
            heads,
            kv_heads: keys
                .optional_size("attention.head_count_kv")?
                .unwrap_or(heads),
            head_dim,
            ffn: keys.size("feed_forward_length")?,
            vocab: vocab(gguf)?,
            max_positions: keys.optional_size("context_length")?.unwrap_or(2048),
            rms_eps: keys.number("attention.layer_norm_rms_epsilon")?,
            rope_theta: keys.optional_number("rope.freq_base")?.unwrap_or(
                if architecture == Architecture::Gemma3 {
                    1e6
                } else {
                    1e4
                },
            ),
            rope_scaling: keys.rope_scaling()?,
            rope_local_theta: match architecture {
                Architecture::Gemma3 => {
                    Some(keys.optional_number("rope.freq_base_swa")?.unwrap_or(1e4))
                }
                _ => None,
            },
            sliding_window,
            layer_slides: layer_slides(architecture, layers, sliding_window),
            attention_soft_cap: keys.optional_number("attn_logit_softcapping")?,
            final_soft_cap: keys.optional_number("final_logit_softcapping")?,
            query_pre_attn_scalar: query_scale(architecture, layers, hidden, heads, head_dim),
            tied: gguf.info("output.weight").is_none(),
            attention_bias: gguf.info("blk.0.attn_q.bias").is_some(),
            qk_norm: matches!(architecture, Architecture::Qwen3 | Architecture::Gemma3),
            post_norms: gemma,
            activation: if gemma {
                Activation::GeluTanh
            } else {
                Activation::Silu
            },
            embedding_scale: if gemma { (hidden as f32).sqrt() } else { 1.0 },
        }
        .check()
    }
}

fn architecture(name: &str) -> Result<Architecture, ConfigError> {
    Ok(match name {
        "llama" => Architecture::Llama,
        "qwen2" => Architecture::Qwen2,
        "qwen3" => Architecture::Qwen3,
        "gemma2" => Architecture::Gemma2,
        "gemma3" => Architecture::Gemma3,
        other => return Err(ConfigError::UnknownArchitecture(other.to_owned())),
    })
}

/// The embedding has one row a token, whatever the metadata says.
fn vocab(gguf: &Gguf) -> Result<usize, ConfigError> {
    let embedding = gguf.info("token_embd.weight");
    let embedding = embedding.ok_or(ConfigError::Missing("tensor token_embd.weight"))?;
    Ok(embedding.rows())
}

fn layer_slides(architecture: Architecture, layers: usize, window: Option<usize>) -> Vec<bool> {
    let slides = |layer: usize| match architecture {
        Architecture::Gemma2 => layer.is_multiple_of(2),
        Architecture::Gemma3 => !(layer + 1).is_multiple_of(6),
        _ => false,
    };
    (0..layers.min(1 << 16))
        .map(|layer| window.is_some() && slides(layer))
        .collect()
}

/// GGUF does not store the scale of queries. It is `head_dim`, but for the 27B models,
/// known by their depth, it is `hidden / heads`.
fn query_scale(
    architecture: Architecture,
    layers: usize,
    hidden: usize,
    heads: usize,
    head_dim: usize,
) -> f32 {
    match (architecture, layers) {
        (Architecture::Gemma2, 46) | (Architecture::Gemma3, 62) => (hidden / heads.max(1)) as f32,
        _ => head_dim as f32,
    }
}

/// Metadata keys under the architecture's name.
struct Keys<'a> {
    gguf: &'a Gguf,
    prefix: &'a str,
}

impl Keys<'_> {
    fn size(&self, key: &str) -> Result<usize, ConfigError> {
        let key = format!("{}.{key}", self.prefix);
        let value = self.gguf.whole(&key)?;
        usize::try_from(value).map_err(|_| ConfigError::wrong(&key, value, "is too large"))
    }

    fn optional_size(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        self.has(key).then(|| self.size(key)).transpose()
    }

    fn number(&self, key: &str) -> Result<f32, ConfigError> {
        Ok(self.gguf.number(&format!("{}.{key}", self.prefix))? as f32)
    }

    fn optional_number(&self, key: &str) -> Result<Option<f32>, ConfigError> {
        self.has(key).then(|| self.number(key)).transpose()
    }

    fn has(&self, key: &str) -> bool {
        self.gguf.get(&format!("{}.{key}", self.prefix)).is_some()
    }

    fn head_dim(&self, hidden: usize, heads: usize) -> Result<usize, ConfigError> {
        let head_dim = match self.optional_size("attention.key_length")? {
            Some(length) => length,
            None => hidden / heads.max(1),
        };
        let others = [
            (
                "value length",
                self.optional_size("attention.value_length")?,
            ),
            (
                "rope dimensions",
                self.optional_size("rope.dimension_count")?,
            ),
        ];
        for (what, size) in others {
            if let Some(size) = size.filter(|size| *size != head_dim) {
                let reason = format!("only the head width, {head_dim}, is");
                return Err(ConfigError::unsupported(what, size, &reason));
            }
        }
        Ok(head_dim)
    }

    fn sliding_window(&self, architecture: Architecture) -> Result<Option<usize>, ConfigError> {
        let window = self.optional_size("attention.sliding_window")?;
        Ok(match architecture {
            Architecture::Gemma2 | Architecture::Gemma3 => window.or(Some(4096)),
            _ => None,
        })
    }

    fn rope_scaling(&self) -> Result<RopeScaling, ConfigError> {
        if let Some(factors) = self.gguf.tensor("rope_freqs.weight") {
            return Ok(RopeScaling::Factors(factors.to_f32()));
        }
        let key = format!("{}.rope.scaling.type", self.prefix);
        let kind = match self.gguf.get(&key) {
            Some(_) => self.gguf.text(&key)?,
            None if self.has("rope.scale_linear") => {
                let factor = self.number("rope.scale_linear")?;
                return Ok(RopeScaling::Linear { factor });
            }
            None => "none",
        };
        match kind {
            "none" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear {
                factor: self.number("rope.scaling.factor")?,
            }),
            other => Err(ConfigError::unsupported(
                "rope scaling",
                other,
                "none and linear are",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{BlockFormat, GgufWriter, MetaValue};

    fn file(edit: impl Fn(&mut GgufWriter)) -> Gguf {
        let mut writer = GgufWriter::new();
        writer.set("general.architecture", MetaValue::from("llama"));
        for (key, value) in [
            ("embedding_length", 64),
            ("block_count", 2),
            ("attention.head_count", 4),
            ("attention.head_count_kv", 2),
            ("feed_forward_length", 96),
            ("context_length", 256),
        ] {
            writer.set(&format!("llama.{key}"), MetaValue::U32(value));
        }
        let eps = "llama.attention.layer_norm_rms_epsilon";
        writer.set(eps, MetaValue::F32(1e-5));
        let zeros = vec![0; 64 * 384 * 4];
        writer
            .tensor("token_embd.weight", &[64, 384], BlockFormat::F32, zeros)
            .unwrap();
        edit(&mut writer);
        Gguf::from_bytes(Path::new("test.gguf"), writer.to_bytes()).unwrap()
    }

    #[test]
    fn llama_metadata_is_read() {
        let config = ModelConfig::from_gguf(&file(|_| {})).unwrap();
        assert_eq!((config.vocab, config.head_dim), (384, 16));
        assert!(config.tied && !config.attention_bias);
        assert_eq!(config.rope_scaling, RopeScaling::None);
        assert_eq!(config.rms_eps, 1e-5);
    }

    #[test]
    fn stored_rope_factors_are_used() {
        let factors: Vec<u8> = [1f32; 7]
            .iter()
            .chain(&[8.0])
            .flat_map(|f| f.to_le_bytes())
            .collect();
        let gguf = file(|writer| {
            let factors = factors.clone();
            writer
                .tensor("rope_freqs.weight", &[8], BlockFormat::F32, factors)
                .unwrap();
        });
        let config = ModelConfig::from_gguf(&gguf).unwrap();
        let plain = ModelConfig::from_gguf(&file(|_| {})).unwrap();
        let (scaled, plain) = (config.rope_frequencies(0), plain.rope_frequencies(0));
        assert_eq!(scaled[6], plain[6]);
        assert_eq!(scaled[7], plain[7] / 8.0);
    }

    #[test]
    fn missing_and_foreign_metadata_is_named() {
        let gguf = file(|w| w.set("general.architecture", MetaValue::from("rwkv7")));
        let err = ModelConfig::from_gguf(&gguf).unwrap_err().to_string();
        assert!(err.contains("rwkv7"), "{err}");
        let gguf = file(|w| w.set("llama.block_count", MetaValue::from("two")));
        let err = ModelConfig::from_gguf(&gguf).unwrap_err().to_string();
        assert!(err.contains("llama.block_count"), "{err}");
        let gguf = file(|w| w.set("llama.rope.scaling.type", MetaValue::from("yarn")));
        let err = ModelConfig::from_gguf(&gguf).unwrap_err().to_string();
        assert!(err.contains("yarn"), "{err}");
    }
}
