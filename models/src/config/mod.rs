//! What a network is, whatever file described it.

mod gguf;
mod hugging_face;

use std::fmt;

use serde::Serialize;

/// The shape and the constants of a decoder, checked, independent of its file format.
///
/// Made from a Hugging Face `config.json` or from GGUF metadata. Every field is set:
/// defaults that the files leave out are the ones of the architecture.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelConfig {
    /// The family.
    pub architecture: Architecture,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Decoder blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head; not always `hidden / heads`.
    pub head_dim: usize,
    /// Inner width of the feed-forward network.
    pub ffn: usize,
    /// Rows of the embedding.
    pub vocab: usize,
    /// The longest sequence that the model was made for, in tokens.
    pub max_positions: usize,
    /// Added to the mean square in every RMS norm.
    pub rms_eps: f32,
    /// Base of the rotary frequencies; in Gemma 3 that of the layers that see everything.
    pub rope_theta: f32,
    /// How the rotary frequencies are stretched; in Gemma 3 not on sliding layers.
    pub rope_scaling: RopeScaling,
    /// Base of the rotary frequencies of sliding layers, where it differs (Gemma 3).
    pub rope_local_theta: Option<f32>,
    /// Position `i` of a sliding layer sees position `j` when `0 <= i - j < window`.
    pub sliding_window: Option<usize>,
    /// For each layer, whether it slides. All false without a window.
    pub layer_slides: Vec<bool>,
    /// `cap * tanh(score / cap)` on attention scores (Gemma 2).
    pub attention_soft_cap: Option<f32>,
    /// `cap * tanh(logit / cap)` on logits (Gemma 2).
    pub final_soft_cap: Option<f32>,
    /// Attention scores are divided by the square root of this; mostly `head_dim`.
    pub query_pre_attn_scalar: f32,
    /// Whether the head is the embedding, transposed.
    pub tied: bool,
    /// Whether the query, key and value projections have a bias (Qwen 2).
    pub attention_bias: bool,
    /// Whether each query and key head has an RMS norm (Qwen 3, Gemma 3).
    pub qk_norm: bool,
    /// Whether attention and feed-forward outputs have a norm before they are added to
    /// the residual stream (Gemma).
    pub post_norms: bool,
    /// Between the gate and the up projection.
    pub activation: Activation,
    /// Embeddings are multiplied by this: the square root of `hidden` in Gemma, else 1.
    pub embedding_scale: f32,
}

/// A family of decoders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[non_exhaustive]
pub enum Architecture {
    /// Llama 2 and 3, SmolLM2 and others of the same build.
    Llama,
    /// Llama with a sliding window.
    Mistral,
    /// Llama with biases on queries, keys and values.
    Qwen2,
    /// Llama with norms on queries and keys, and its own head width.
    Qwen3,
    /// Alternating sliding and full layers, soft caps, norms on both sides.
    Gemma2,
    /// Five sliding layers to a full one, norms on queries and keys.
    Gemma3,
}

impl Architecture {
    /// Whether a norm multiplies by one plus its stored weight in Hugging Face files.
    pub fn is_gemma(self) -> bool {
        matches!(self, Self::Gemma2 | Self::Gemma3)
    }

    /// The name that GGUF files give this architecture.
    pub fn gguf_name(self) -> &'static str {
        match self {
            // Mistral's files are converted as Llama's.
            Self::Llama | Self::Mistral => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Gemma2 => "gemma2",
            Self::Gemma3 => "gemma3",
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The function between the gate and the up projection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[non_exhaustive]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// GELU with the tanh approximation.
    GeluTanh,
}

/// How rotary frequencies are stretched for longer contexts.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Every frequency divided by the factor.
    Linear {
        /// The factor.
        factor: f32,
    },
    /// Low frequencies divided by the factor, high ones kept, a smooth band between.
    Llama3 {
        /// The factor of low frequencies.
        factor: f32,
        /// The band's lower end, in turns within the original context.
        low_freq_factor: f32,
        /// The band's upper end, in turns within the original context.
        high_freq_factor: f32,
        /// The original context, in tokens.
        original_max_positions: usize,
    },
    /// Every frequency divided by its own factor: what GGUF files store for Llama 3.
    Factors(
        /// `head_dim / 2` factors.
        Vec<f32>,
    ),
}

impl ModelConfig {
    /// Inner width of the query projection: `heads * head_dim`.
    pub fn query_dim(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Inner width of the key and value projections: `kv_heads * head_dim`.
    pub fn kv_dim(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// The window of layer `layer`, if it slides.
    pub fn window(&self, layer: usize) -> Option<usize> {
        let slides = self.layer_slides.get(layer).copied().unwrap_or(false);
        self.sliding_window.filter(|_| slides)
    }

    /// The `head_dim / 2` rotary frequencies of layer `layer`, in radians a position.
    ///
    /// Dimension `i` of a head turns together with dimension `i + head_dim / 2`.
    pub fn rope_frequencies(&self, layer: usize) -> Vec<f32> {
        let slides = self.layer_slides.get(layer).copied().unwrap_or(false);
        match self.rope_local_theta.filter(|_| slides) {
            Some(theta) => frequencies(theta, self.head_dim),
            None => self
                .rope_scaling
                .apply(frequencies(self.rope_theta, self.head_dim)),
        }
    }

    /// Checks what no single field can show.
    pub(crate) fn check(self) -> Result<Self, ConfigError> {
        const LIMIT: usize = 1 << 24;
        let sizes = [
            ("hidden size", self.hidden),
            ("number of layers", self.layers),
            ("number of heads", self.heads),
            ("number of key and value heads", self.kv_heads),
            ("head width", self.head_dim),
            ("feed-forward width", self.ffn),
            ("vocabulary size", self.vocab),
            ("number of positions", self.max_positions),
        ];
        for (what, got) in sizes {
            if got == 0 || got > LIMIT {
                return Err(ConfigError::wrong(what, got, "is not from 1 to 16777216"));
            }
        }
        if self.layers > 4096 {
            let what = "number of layers";
            return Err(ConfigError::wrong(what, self.layers, "is over 4096"));
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(ConfigError::wrong(
                "number of heads",
                self.heads,
                format!(
                    "is no multiple of the {} key and value heads",
                    self.kv_heads
                ),
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            let what = "head width";
            return Err(ConfigError::wrong(what, self.head_dim, "is odd"));
        }
        if self.layer_slides.len() != self.layers {
            return Err(ConfigError::wrong(
                "number of layer types",
                self.layer_slides.len(),
                format!("is not the number of layers, {}", self.layers),
            ));
        }
        let positive = [
            ("rms norm epsilon", Some(self.rms_eps)),
            ("rope theta", Some(self.rope_theta)),
            ("local rope theta", self.rope_local_theta),
            ("attention soft cap", self.attention_soft_cap),
            ("final soft cap", self.final_soft_cap),
            ("query scale", Some(self.query_pre_attn_scalar)),
        ];
        for (what, value) in positive {
            if let Some(value) = value.filter(|v| !(v.is_finite() && *v > 0.0)) {
                return Err(ConfigError::wrong(what, value, "is no positive number"));
            }
        }
        if self.sliding_window == Some(0) {
            return Err(ConfigError::wrong("sliding window", 0, "is zero"));
        }
        self.rope_scaling.check(self.head_dim)?;
        Ok(self)
    }
}

impl RopeScaling {
    fn apply(&self, frequencies: Vec<f32>) -> Vec<f32> {
        match self {
            Self::None => frequencies,
            Self::Linear { factor } => frequencies.into_iter().map(|f| f / factor).collect(),
            Self::Factors(factors) => {
                let pairs = frequencies.into_iter().zip(factors);
                pairs.map(|(f, factor)| f / factor).collect()
            }
            &Self::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_positions,
            } => {
                let context = original_max_positions as f32;
                let stretched = |f: f32| {
                    let wavelength = std::f32::consts::TAU / f;
                    if wavelength < context / high {
                        f
                    } else if wavelength > context / low {
                        f / factor
                    } else {
                        let smooth = (context / wavelength - low) / (high - low);
                        (1.0 - smooth) * f / factor + smooth * f
                    }
                };
                frequencies.into_iter().map(stretched).collect()
            }
        }
    }

    fn check(&self, head_dim: usize) -> Result<(), ConfigError> {
        let positive = |v: f32| v.is_finite() && v > 0.0;
        let fits = match self {
            Self::None => true,
            Self::Linear { factor } => positive(*factor),
            Self::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_positions,
            } => {
                positive(*factor)
                    && positive(*low_freq_factor)
                    && high_freq_factor.is_finite()
                    && high_freq_factor > low_freq_factor
                    && *original_max_positions > 0
            }
            Self::Factors(factors) => {
                factors.len() == head_dim / 2 && factors.iter().copied().all(positive)
            }
        };
        if fits {
            return Ok(());
        }
        let got = format!("{self:?}");
        let reason = "makes no sense for this head width";
        Err(ConfigError::wrong("rope scaling", got, reason))
    }
}

/// The power in f64, then rounded: as near as f32 gets to what every library computes.
fn frequencies(theta: f32, head_dim: usize) -> Vec<f32> {
    (0..head_dim / 2)
        .map(|i| {
            let exponent = (2 * i) as f32 / head_dim as f32;
            1.0 / f64::from(theta).powf(f64::from(exponent)) as f32
        })
        .collect()
}

/// A model description that we cannot use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The description is no JSON object of the shape that Hugging Face writes.
    #[error("config.json cannot be understood: {0}")]
    Json(#[from] serde_json::Error),
    /// The description is a GGUF file's, and lacks something.
    #[error(transparent)]
    Gguf(#[from] crate::GgufError),
    /// An architecture that we do not have.
    #[error(
        "architecture {0:?} is not supported; llama, mistral, qwen2, qwen3, gemma2 and gemma3 (text) are"
    )]
    UnknownArchitecture(String),
    /// A setting that we do not have.
    #[error("{what} {got} is not supported{}", hint(reason))]
    Unsupported {
        /// The setting.
        what: String,
        /// Its value.
        got: String,
        /// What is supported; may be empty.
        reason: String,
    },
    /// A required field is absent.
    #[error("the model's configuration has no {0}")]
    Missing(&'static str),
    /// A value that makes no sense.
    #[error("the model's {what} {got} {reason}")]
    Wrong {
        /// The field.
        what: String,
        /// Its value.
        got: String,
        /// What is wrong with it.
        reason: String,
    },
}

fn hint(reason: &str) -> String {
    if reason.is_empty() {
        String::new()
    } else {
        format!("; {reason}")
    }
}

impl ConfigError {
    fn wrong(what: &str, got: impl ToString, reason: impl Into<String>) -> Self {
        Self::Wrong {
            what: what.to_owned(),
            got: got.to_string(),
            reason: reason.into(),
        }
    }

    fn unsupported(what: &str, got: impl ToString, reason: &str) -> Self {
        Self::Unsupported {
            what: what.to_owned(),
            got: got.to_string(),
            reason: reason.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_scaling_keeps_high_and_divides_low_frequencies() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_positions: 32,
        };
        let plain = frequencies(10_000.0, 16);
        let scaled = scaling.apply(plain.clone());
        assert_eq!(scaled[0], plain[0]);
        assert_eq!(scaled[7], plain[7] / 8.0);
        let middle = (0..8).filter(|&i| scaled[i] < plain[i] && scaled[i] > plain[i] / 8.0);
        assert_eq!(middle.count(), 1, "one frequency lies in the smooth band");
    }

    #[test]
    fn frequencies_begin_at_one() {
        let f = frequencies(100_000.0, 64);
        assert_eq!((f.len(), f[0]), (32, 1.0));
        assert!((f[31] - 100_000f32.powf(-62.0 / 64.0)).abs() < 1e-11);
    }
}
