//! Reads a PEFT directory.

use std::fs;
use std::path::Path;

use ::safetensors::{Dtype, SafeTensors};

use super::config::Targets;
use super::{PeftAdapter, PeftConfig, PeftError, PeftKey, PeftTensor, Projection};
use crate::{BlockFormat, MappedBytes, dequantize_row};

impl PeftAdapter {
    /// Reads `adapter_config.json` and `adapter_model.safetensors` in `directory`.
    ///
    /// Tensors may be F32, F16 or BF16. Targets may be a list of names, `all-linear` or a
    /// regular expression; for the last two, the tensors say which projections they are.
    ///
    /// # Errors
    ///
    /// [`PeftError`] with the file, and what is wrong with it or not supported.
    pub fn read(directory: &Path) -> Result<Self, PeftError> {
        let path = directory.join("adapter_config.json");
        let text = fs::read_to_string(&path).map_err(|error| PeftError::Io {
            path: path.clone(),
            error,
        })?;
        let (config, targets) = PeftConfig::parse(&text, &path)?;
        let tensors = tensors(&directory.join("adapter_model.safetensors"))?;
        let mut adapter = Self::new(config, tensors)?;
        adapter.config.targets = projections(&adapter.tensors);
        if let Targets::Named(names) = targets {
            agree(&adapter.config.targets, &names, &path)?;
        }
        Ok(adapter)
    }
}

fn tensors(path: &Path) -> Result<Vec<PeftTensor>, PeftError> {
    let bytes = MappedBytes::open(path).map_err(|error| PeftError::Io {
        path: path.to_owned(),
        error,
    })?;
    let wrong = |reason: String| PeftError::SafeTensors {
        path: path.to_owned(),
        reason,
    };
    let file = SafeTensors::deserialize(&bytes).map_err(|e| wrong(e.to_string()))?;
    file.tensors()
        .into_iter()
        .map(|(name, view)| {
            let &[rows, cols] = view.shape() else {
                let reason = format!("has the shape {:?}, not two sizes", view.shape());
                return Err(PeftError::tensor(&name, reason));
            };
            let format = match view.dtype() {
                Dtype::F32 => BlockFormat::F32,
                Dtype::F16 => BlockFormat::F16,
                Dtype::BF16 => BlockFormat::BF16,
                other => {
                    let reason = format!("is {other:?}; F32, F16 and BF16 are supported");
                    return Err(PeftError::tensor(&name, reason));
                }
            };
            let mut values = vec![0.0; view.data().len() / format.block_bytes()];
            dequantize_row(format, view.data(), &mut values).map_err(|e| wrong(e.to_string()))?;
            Ok(PeftTensor {
                name,
                rows,
                cols,
                values,
            })
        })
        .collect()
}

fn projections(tensors: &[PeftTensor]) -> Vec<Projection> {
    let mut projections: Vec<Projection> = tensors
        .iter()
        .filter_map(|tensor| Some(PeftKey::parse(&tensor.name)?.projection))
        .collect();
    projections.sort_unstable();
    projections.dedup();
    projections
}

/// The names of the configuration must be those of the tensors.
fn agree(found: &[Projection], names: &[String], path: &Path) -> Result<(), PeftError> {
    let wrong = |reason: String| PeftError::Config {
        path: path.to_owned(),
        reason,
    };
    let matches = |name: &str, projection: &Projection| {
        let module = projection.module();
        let module_ends = module.strip_suffix(name);
        let name_ends = name.strip_suffix(module);
        [module_ends, name_ends]
            .into_iter()
            .flatten()
            .any(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    if let Some(name) = names
        .iter()
        .find(|name| !found.iter().any(|p| matches(name, p)))
    {
        return Err(wrong(format!(
            "no tensor is for its target module {name:?}"
        )));
    }
    match found
        .iter()
        .find(|p| !names.iter().any(|name| matches(name, p)))
    {
        Some(projection) => Err(wrong(format!(
            "there are tensors for {projection}, which is not among its target modules"
        ))),
        None => Ok(()),
    }
}
