//! Models with made-up weights: for the self-test of a device and for benchmarks of shapes whose
//! files are not at hand. They compute as real ones do and say nothing.

use super::load::{LoadError, WeightSource};
use super::{BasePrecision, CausalLm};
use crate::config::{Activation, Architecture, ModelConfig, RopeScaling};
use crate::quant::QuantMatrix;
use burn::tensor::Device;
use rayon::prelude::*;

/// Shapes of published models, by name, and one that takes no time.
pub const SHAPES: [&str; 4] = ["tiny", "smollm2-135m", "llama-3.2-1b", "llama-2-7b"];

/// The configuration of a shape of [`SHAPES`].
pub fn shape(name: &str) -> Option<ModelConfig> {
    // Hidden, layers, heads, key/value heads, feed-forward, vocabulary, tied.
    let (hidden, layers, heads, kv_heads, ffn, vocab, tied) = match name {
        "tiny" => (64, 2, 4, 2, 160, 384, true),
        "smollm2-135m" => (576, 30, 9, 3, 1536, 49_152, true),
        "llama-3.2-1b" => (2048, 16, 32, 8, 8192, 128_256, true),
        "llama-2-7b" => (4096, 32, 32, 32, 11_008, 32_000, false),
        _ => return None,
    };
    let head_dim = hidden / heads;
    Some(ModelConfig {
        architecture: Architecture::Llama,
        hidden,
        layers,
        heads,
        kv_heads,
        head_dim,
        ffn,
        vocab,
        max_positions: 8192,
        rms_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        rope_local_theta: None,
        sliding_window: None,
        layer_slides: vec![false; layers],
        attention_soft_cap: None,
        final_soft_cap: None,
        query_pre_attn_scalar: head_dim as f32,
        tied,
        attention_bias: false,
        qk_norm: false,
        post_norms: false,
        activation: Activation::Silu,
        embedding_scale: 1.0,
    })
}

impl CausalLm {
    /// A model of this shape with weights that depend on their names only.
    ///
    /// # Errors
    ///
    /// [`LoadError`] if a matrix cannot be held in the precision.
    pub fn random(
        config: &ModelConfig,
        precision: BasePrecision,
        device: &Device,
    ) -> Result<Self, LoadError> {
        Self::from_source(&RandomWeights(config), precision, device)
    }
}

struct RandomWeights<'a>(&'a ModelConfig);

impl WeightSource for RandomWeights<'_> {
    fn config(&self) -> &ModelConfig {
        self.0
    }

    fn matrix(&self, name: &str, (rows, cols): (usize, usize)) -> Result<QuantMatrix, LoadError> {
        // As large as keeps the size of activations through the layers.
        let values = uniform(name, rows * cols, 1.7 / (cols as f32).sqrt());
        QuantMatrix::from_f32(rows, cols, &values).map_err(|source| LoadError::Precision {
            tensor: name.to_owned(),
            precision: BasePrecision::F32,
            source,
        })
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        Ok(uniform(name, len, 0.1))
    }

    fn norm(&self, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        Ok(uniform(name, len, 0.1)
            .into_iter()
            .map(|w| 1.0 + w)
            .collect())
    }
}

/// Values in ±bound by a hash of the name and the place.
pub(crate) fn uniform(name: &str, len: usize, bound: f32) -> Vec<f32> {
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    (0..len)
        .into_par_iter()
        .with_min_len(1 << 14)
        .map(|i| {
            let mut z = seed.wrapping_add((i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            let unit = ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 23) as f32;
            bound * (unit - 1.0)
        })
        .collect()
}
