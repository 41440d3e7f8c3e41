//! From a checkpoint to a [`CausalLm`]: which tensors a block has, by Hugging Face's
//! names, and in which form each is held.

use super::CausalLm;
use super::block::{Block, QkNorm};
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::config::ModelConfig;
use crate::ops::{
    AttentionSpec, FrozenMatrix, Head, HostMatrix, LinearGroup, MixedPrecision, PackedMatrix,
    holds_halves, is_cpu, tensor_on,
};
use crate::quant::{BlockFormat, Int8Rows, Nf4Matrix, QuantError, QuantMatrix, quantize_row};
use burn::tensor::{DType, Device, Tensor, TensorData};
use half::f16;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// How the frozen base is held while training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BasePrecision {
    /// As the file stores it: read in place on the CPU.
    #[default]
    AsStored,
    /// Single precision.
    F32,
    /// Half precision.
    F16,
    /// Eight bits, one scale a row; embedding and head as stored.
    Int8,
    /// Four-bit NormalFloat in blocks of 64; embedding and head as stored.
    Nf4,
}

impl BasePrecision {
    /// All of them, with the names that the command line uses.
    pub const ALL: [(Self, &'static str); 5] = [
        (Self::AsStored, "as-stored"),
        (Self::F32, "f32"),
        (Self::F16, "f16"),
        (Self::Int8, "int8"),
        (Self::Nf4, "nf4"),
    ];
}

impl FromStr for BasePrecision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|(_, name)| *name == text);
        found
            .map(|(precision, _)| precision)
            .ok_or_else(|| format!("expected as-stored, f32, f16, int8 or nf4, got {text:?}"))
    }
}

impl fmt::Display for BasePrecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL
            .iter()
            .find(|(precision, _)| precision == self)
            .map_or("", |(_, name)| name);
        f.write_str(name)
    }
}

/// A checkpoint that does not make a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The files are at fault.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A tensor cannot be held in the precision asked for.
    #[error("{tensor} cannot be held as {precision}")]
    Precision {
        /// The tensor's Hugging Face name.
        tensor: String,
        /// What was asked for.
        precision: BasePrecision,
        /// Why not.
        source: QuantError,
    },
    /// A tensor has another shape than the configuration says.
    #[error("{tensor} is [{}, {}], expected [{}, {}] from the configuration", got.0, got.1, expected.0, expected.1)]
    Shape {
        /// The tensor's Hugging Face name.
        tensor: String,
        /// Rows and columns by the configuration.
        expected: (usize, usize),
        /// Rows and columns in the file.
        got: (usize, usize),
    },
}

impl CausalLm {
    /// Loads a model to a device. On the CPU, `as-stored` reads the mapped file in place
    /// and copies only the norms.
    ///
    /// # Errors
    ///
    /// [`LoadError`] names the tensor that is missing or of another shape.
    pub fn load(
        checkpoint: &Checkpoint,
        precision: BasePrecision,
        device: &Device,
    ) -> Result<Self, LoadError> {
        Self::from_source(checkpoint, precision, device)
    }

    pub(super) fn from_source(
        source: &dyn WeightSource,
        precision: BasePrecision,
        device: &Device,
    ) -> Result<Self, LoadError> {
        let config = source.config().clone();
        let loader = Loader {
            source,
            config: &config,
            precision,
            device,
            mixed: MixedPrecision::default(),
            halves: !is_cpu(device) && holds_halves(device),
        };
        let outer = loader.outer_precision();
        let embedding = loader.held(
            "model.embed_tokens.weight",
            (config.vocab, config.hidden),
            outer,
        )?;
        let head = if config.tied {
            loader.place(embedding.clone())
        } else {
            loader.place(loader.held("lm_head.weight", (config.vocab, config.hidden), outer)?)
        };
        let mut frequencies: Vec<Vec<f32>> = Vec::new();
        let mut blocks = Vec::with_capacity(config.layers);
        for layer in 0..config.layers {
            let of_layer = config.rope_frequencies(layer);
            let rotation = frequencies
                .iter()
                .position(|known| *known == of_layer)
                .unwrap_or(frequencies.len());
            if rotation == frequencies.len() {
                frequencies.push(of_layer);
            }
            blocks.push(loader.block(layer, rotation)?);
        }
        Ok(Self {
            device: device.clone(),
            embedding,
            blocks,
            norm: loader.norm("model.norm.weight", config.hidden)?,
            head: Head {
                weight: head,
                soft_cap: config.final_soft_cap,
                mixed: loader.mixed.clone(),
            },
            mixed: loader.mixed,
            frequencies,
            config,
        })
    }
}

/// Where weights come from, by their Hugging Face names.
pub(super) trait WeightSource {
    fn config(&self) -> &ModelConfig;
    /// A matrix that should have this shape.
    fn matrix(&self, name: &str, shape: (usize, usize)) -> Result<QuantMatrix, LoadError>;
    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, LoadError>;
    /// What a normalised input is multiplied by.
    fn norm(&self, name: &str, len: usize) -> Result<Vec<f32>, LoadError>;
}

impl WeightSource for Checkpoint {
    fn config(&self) -> &ModelConfig {
        Self::config(self)
    }

    fn matrix(&self, name: &str, expected: (usize, usize)) -> Result<QuantMatrix, LoadError> {
        let matrix = self.tensor(name)?;
        let got = (matrix.rows(), matrix.cols());
        if got == expected {
            return Ok(matrix);
        }
        Err(LoadError::Shape {
            tensor: name.to_owned(),
            expected,
            got,
        })
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        of_length(name, Self::vector(self, name)?, len)
    }

    fn norm(&self, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        of_length(name, Self::norm(self, name)?, len)
    }
}

struct Loader<'a> {
    source: &'a dyn WeightSource,
    config: &'a ModelConfig,
    precision: BasePrecision,
    device: &'a Device,
    mixed: MixedPrecision,
    /// Whether the device, a GPU, holds half precision.
    halves: bool,
}

impl Loader<'_> {
    fn block(&self, layer: usize, rotation: usize) -> Result<Block, LoadError> {
        let c = self.config;
        let name = |tensor: &str| format!("model.layers.{layer}.{tensor}.weight");
        let norm = |tensor: &str| self.norm(&name(tensor), c.hidden);
        let (query, key) = (c.query_dim(), c.kv_dim());
        let qk_norm = if c.qk_norm {
            let query = self.norm(&name("self_attn.q_norm"), c.head_dim)?;
            Some(QkNorm {
                query,
                key: self.norm(&name("self_attn.k_norm"), c.head_dim)?,
            })
        } else {
            None
        };
        // Gemma calls the norm before the feed-forward by another name, because its
        // `post_attention_layernorm` is one more norm.
        let (ffn_norm, attention_post_norm, ffn_post_norm) = if c.post_norms {
            let after = norm("post_attention_layernorm")?;
            (
                norm("pre_feedforward_layernorm")?,
                Some(after),
                Some(norm("post_feedforward_layernorm")?),
            )
        } else {
            (norm("post_attention_layernorm")?, None, None)
        };
        Ok(Block {
            attention: AttentionSpec {
                heads: c.heads,
                kv_heads: c.kv_heads,
                head_dim: c.head_dim,
                scale: 1.0 / c.query_pre_attn_scalar.sqrt(),
                window: c.window(layer),
                soft_cap: c.attention_soft_cap,
            },
            activation: c.activation,
            eps: c.rms_eps,
            rotation,
            attention_norm: norm("input_layernorm")?,
            qkv: self.group(
                layer,
                &[
                    ("self_attn.q_proj", query),
                    ("self_attn.k_proj", key),
                    ("self_attn.v_proj", key),
                ],
                c.hidden,
                c.attention_bias,
            )?,
            qk_norm,
            out: self.group(layer, &[("self_attn.o_proj", c.hidden)], query, false)?,
            attention_post_norm,
            ffn_norm,
            gate_up: self.group(
                layer,
                &[("mlp.gate_proj", c.ffn), ("mlp.up_proj", c.ffn)],
                c.hidden,
                false,
            )?,
            down: self.group(layer, &[("mlp.down_proj", c.hidden)], c.ffn, false)?,
            ffn_post_norm,
        })
    }

    fn group(
        &self,
        layer: usize,
        parts: &[(&str, usize)],
        input: usize,
        with_bias: bool,
    ) -> Result<LinearGroup, LoadError> {
        let mut matrices = Vec::new();
        let mut bias = Vec::new();
        for (part, out) in parts {
            let name = format!("model.layers.{layer}.{part}");
            let held = self.held(&format!("{name}.weight"), (*out, input), self.precision)?;
            matrices.push(self.place(held));
            if with_bias {
                let name = format!("{name}.bias");
                bias.extend(self.source.vector(&name, *out)?);
            }
        }
        let len = bias.len();
        let bias = with_bias.then(|| tensor_on(bias, [len], self.device));
        Ok(LinearGroup::new(matrices, bias).with_mixed_precision(&self.mixed))
    }

    fn norm(&self, name: &str, len: usize) -> Result<Tensor<1>, LoadError> {
        Ok(tensor_on(self.source.norm(name, len)?, [len], self.device))
    }

    /// A matrix in host memory, in the given precision.
    fn held(
        &self,
        name: &str,
        expected: (usize, usize),
        precision: BasePrecision,
    ) -> Result<HostMatrix, LoadError> {
        let stored = self.source.matrix(name, expected)?;
        let wrong = |source| LoadError::Precision {
            tensor: name.to_owned(),
            precision,
            source,
        };
        Ok(match precision {
            BasePrecision::AsStored => HostMatrix::Stored(stored),
            BasePrecision::F32 if is_plain(&stored, BlockFormat::F32) => HostMatrix::Stored(stored),
            BasePrecision::F32 => HostMatrix::Stored(
                QuantMatrix::from_f32(expected.0, expected.1, &stored.to_f32()).map_err(wrong)?,
            ),
            BasePrecision::F16 if is_plain(&stored, BlockFormat::F16) => HostMatrix::Stored(stored),
            BasePrecision::F16 => {
                let mut bytes = Vec::new();
                quantize_row(BlockFormat::F16, &stored.to_f32(), &mut bytes).map_err(wrong)?;
                HostMatrix::Stored(
                    QuantMatrix::new(expected.0, expected.1, BlockFormat::F16, bytes)
                        .map_err(wrong)?,
                )
            }
            BasePrecision::Int8 => HostMatrix::Int8(Arc::new(Int8Rows::from_matrix(&stored))),
            BasePrecision::Nf4 => HostMatrix::Nf4(Arc::new(Nf4Matrix::from_matrix(&stored))),
        })
    }

    /// The precision of embedding and head: quantizing them to fewer bits than they are
    /// stored in costs more than it saves.
    fn outer_precision(&self) -> BasePrecision {
        match self.precision {
            BasePrecision::Int8 | BasePrecision::Nf4 => BasePrecision::AsStored,
            other => other,
        }
    }

    /// The matrix where the model computes.
    fn place(&self, held: HostMatrix) -> FrozenMatrix {
        if is_cpu(self.device) {
            return FrozenMatrix::Host(held);
        }
        match &held {
            HostMatrix::Stored(matrix) if matrix.format().block_size() == 1 => {
                FrozenMatrix::Dense(self.dense(matrix))
            }
            quantized => FrozenMatrix::Packed(PackedMatrix::upload(quantized, self.device)),
        }
    }

    /// Plain values on a GPU: in half precision if the file has no more and the device holds it.
    fn dense(&self, matrix: &QuantMatrix) -> Tensor<2> {
        let (values, shape) = (matrix.to_f32(), [matrix.rows(), matrix.cols()]);
        // What half precision cannot hold of bf16 is magnitudes that no trained weight has.
        let fits = || values.iter().all(|value| value.abs() <= f16::MAX.to_f32());
        if self.halves && matrix.format() != BlockFormat::F32 && fits() {
            let halves: Vec<f16> = values.into_iter().map(f16::from_f32).collect();
            return Tensor::from_data(TensorData::new(halves, shape), (self.device, DType::F16));
        }
        tensor_on(values, shape, self.device)
    }
}

fn of_length(name: &str, vector: Vec<f32>, len: usize) -> Result<Vec<f32>, LoadError> {
    if vector.len() == len {
        return Ok(vector);
    }
    Err(LoadError::Shape {
        tensor: name.to_owned(),
        expected: (1, len),
        got: (1, vector.len()),
    })
}

fn is_plain(matrix: &QuantMatrix, format: BlockFormat) -> bool {
    matrix.format() == format && matrix.order().is_none()
}
