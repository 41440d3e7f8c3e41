//! LoRA adapters as PEFT directories.

mod config;
mod read;
mod write;

pub use config::PeftConfig;

use std::fmt;
use std::path::PathBuf;

/// A LoRA adapter as files hold it: its settings, and `f32` tensors by PEFT key.
///
/// Tensors are ordered by layer, then projection, A before B.
#[derive(Clone, Debug, PartialEq)]
pub struct PeftAdapter {
    /// The settings.
    pub config: PeftConfig,
    /// The tensors. [`PeftAdapter::read`] and [`PeftAdapter::new`] give each projection
    /// of each layer an A `[rank, in]` and a B `[out, rank]`.
    pub tensors: Vec<PeftTensor>,
}

/// A tensor of an adapter, row-major `[rows, cols]`.
#[derive(Clone, Debug, PartialEq)]
pub struct PeftTensor {
    /// The PEFT key, such as
    /// `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`.
    pub name: String,
    /// Rows: the rank in A, outputs in B.
    pub rows: usize,
    /// Columns: inputs in A, the rank in B.
    pub cols: usize,
    /// The values.
    pub values: Vec<f32>,
}

/// A projection that can carry an adapter, in the order of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names say it all")]
pub enum Projection {
    Query,
    Key,
    Value,
    Output,
    Gate,
    Up,
    Down,
}

impl Projection {
    /// All seven, in the order of a block.
    pub const ALL: [Self; 7] = [
        Self::Query,
        Self::Key,
        Self::Value,
        Self::Output,
        Self::Gate,
        Self::Up,
        Self::Down,
    ];

    /// The module inside a layer, such as `self_attn.q_proj`.
    pub fn module(self) -> &'static str {
        match self {
            Self::Query => "self_attn.q_proj",
            Self::Key => "self_attn.k_proj",
            Self::Value => "self_attn.v_proj",
            Self::Output => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }

    /// The last part of [`Projection::module`], such as `q_proj`: PEFT's name for it.
    pub fn target(self) -> &'static str {
        let module = self.module();
        module.rsplit_once('.').map_or(module, |(_, last)| last)
    }
}

impl fmt::Display for Projection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.target())
    }
}

/// One of the two factors of an adapted projection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Factor {
    /// Inputs to the rank, `[rank, in]`.
    A,
    /// The rank to outputs, `[out, rank]`.
    B,
}

/// A PEFT key, taken apart. Ordered by layer, projection and factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeftKey {
    /// The decoder block.
    pub layer: usize,
    /// The projection in it.
    pub projection: Projection,
    /// Which factor.
    pub factor: Factor,
}

impl PeftKey {
    /// Reads a key such as
    /// `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`.
    pub fn parse(key: &str) -> Option<Self> {
        let rest = key.strip_prefix("base_model.model.model.layers.")?;
        let (layer, rest) = rest.split_once('.')?;
        let (module, factor) = match rest.strip_suffix(".lora_A.weight") {
            Some(module) => (module, Factor::A),
            None => (rest.strip_suffix(".lora_B.weight")?, Factor::B),
        };
        let projection = Projection::ALL.into_iter().find(|p| p.module() == module)?;
        // Written one way only: no sign, no leading zero.
        let number: usize = layer.parse().ok()?;
        (number.to_string() == layer).then_some(Self {
            layer: number,
            projection,
            factor,
        })
    }
}

impl fmt::Display for PeftKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (layer, module) = (self.layer, self.projection.module());
        let factor = match self.factor {
            Factor::A => 'A',
            Factor::B => 'B',
        };
        write!(
            f,
            "base_model.model.model.layers.{layer}.{module}.lora_{factor}.weight"
        )
    }
}

impl PeftAdapter {
    /// An adapter of these settings and tensors, put in order.
    ///
    /// # Errors
    ///
    /// [`PeftError::Tensor`] if a key is none of ours, a factor is missing, or a shape or
    /// a value is wrong.
    pub fn new(config: PeftConfig, tensors: Vec<PeftTensor>) -> Result<Self, PeftError> {
        let tensors = ordered(tensors, config.rank)?;
        Ok(Self { config, tensors })
    }
}

/// Sorts the tensors, and checks that every A has its B and that all shapes fit.
fn ordered(tensors: Vec<PeftTensor>, rank: usize) -> Result<Vec<PeftTensor>, PeftError> {
    let mut keyed = tensors
        .into_iter()
        .map(|tensor| match PeftKey::parse(&tensor.name) {
            Some(key) => Ok((key, tensor)),
            None => Err(PeftError::tensor(
                &tensor.name,
                "adapts something else than the seven projections of a decoder block",
            )),
        })
        .collect::<Result<Vec<_>, _>>()?;
    keyed.sort_by_key(|(key, _)| *key);
    for pair in keyed.chunks(2) {
        let [(a_key, a), (b_key, b)] = pair else {
            return Err(PeftError::tensor(&pair[0].1.name, "has no other factor"));
        };
        let same = (a_key.layer, a_key.projection) == (b_key.layer, b_key.projection);
        if !same || (a_key.factor, b_key.factor) != (Factor::A, Factor::B) {
            return Err(PeftError::tensor(
                &a.name,
                "has no other factor, or is there twice",
            ));
        }
        check(a, a.rows, rank)?;
        check(b, b.cols, rank)?;
    }
    Ok(keyed.into_iter().map(|(_, tensor)| tensor).collect())
}

fn check(tensor: &PeftTensor, got_rank: usize, rank: usize) -> Result<(), PeftError> {
    if got_rank != rank {
        let reason = format!(
            "is {} x {}, which does not fit rank {rank}",
            tensor.rows, tensor.cols
        );
        return Err(PeftError::tensor(&tensor.name, reason));
    }
    if tensor.rows.checked_mul(tensor.cols) != Some(tensor.values.len()) {
        let reason = format!(
            "has {} values for {} x {}",
            tensor.values.len(),
            tensor.rows,
            tensor.cols
        );
        return Err(PeftError::tensor(&tensor.name, reason));
    }
    match tensor.values.iter().position(|v| !v.is_finite()) {
        Some(index) => Err(PeftError::tensor(
            &tensor.name,
            format!("has the value {} at {index}", tensor.values[index]),
        )),
        None => Ok(()),
    }
}

/// An adapter directory that cannot be read or written, and why.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PeftError {
    /// A file cannot be read or written.
    #[error("cannot read or write {}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system reported.
        error: std::io::Error,
    },
    /// `adapter_config.json` cannot be understood.
    #[error("{} is no PEFT configuration that we understand: {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The adapter uses something of PEFT that we do not have.
    #[error(
        "{} is an adapter with {setting} = {got}, which is not supported: {supported}",
        path.display()
    )]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The setting.
        setting: &'static str,
        /// Its value.
        got: String,
        /// What is supported.
        supported: &'static str,
    },
    /// The tensors' file cannot be used.
    #[error("{} is no safetensors file that we can use: {reason}", path.display())]
    SafeTensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor makes no sense in an adapter.
    #[error("adapter tensor {name} {reason}")]
    Tensor {
        /// The tensor's key.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl PeftError {
    fn tensor(name: &str, reason: impl Into<String>) -> Self {
        Self::Tensor {
            name: name.to_owned(),
            reason: reason.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(rank: usize) -> Vec<PeftTensor> {
        let tensor = |factor, rows: usize, cols: usize| PeftTensor {
            name: PeftKey {
                layer: 0,
                projection: Projection::Up,
                factor,
            }
            .to_string(),
            rows,
            cols,
            values: vec![0.5; rows * cols],
        };
        // In the wrong order.
        vec![tensor(Factor::B, 6, rank), tensor(Factor::A, rank, 4)]
    }

    #[test]
    fn keys_round_trip() {
        let text = "base_model.model.model.layers.29.mlp.down_proj.lora_B.weight";
        let key = PeftKey::parse(text).unwrap();
        assert_eq!((key.layer, key.projection), (29, Projection::Down));
        assert_eq!(key.to_string(), text);
        for wrong in [
            "base_model.model.lm_head.lora_A.weight",
            "base_model.model.model.layers.01.mlp.up_proj.lora_A.weight",
            "base_model.model.model.layers.1.mlp.q_proj.lora_A.weight",
            "base_model.model.model.layers.1.mlp.up_proj.lora_A.default.weight",
        ] {
            assert_eq!(PeftKey::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn tensors_are_ordered_and_checked() {
        let config = PeftConfig {
            rank: 2,
            ..PeftConfig::default()
        };
        let adapter = PeftAdapter::new(config.clone(), pair(2)).unwrap();
        assert!(adapter.tensors[0].name.contains("lora_A"));
        let fails = |tensors| {
            let error: PeftError = PeftAdapter::new(config.clone(), tensors).unwrap_err();
            error.to_string()
        };
        assert!(fails(pair(3)).contains("rank 2"));
        assert!(fails(pair(2)[..1].to_vec()).contains("other factor"));
        let twice = [pair(2), pair(2)].concat();
        assert!(fails(twice).contains("twice"));
        let mut broken = pair(2);
        broken[1].values[3] = f32::NAN;
        assert!(fails(broken).contains("NaN at 3"));
    }
}
