//! Writes a PEFT directory.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use ::safetensors::Dtype;
use ::safetensors::tensor::{TensorView, serialize};

use super::{PeftAdapter, PeftError};
use crate::files::replace;

impl PeftAdapter {
    /// Writes `adapter_config.json` and `adapter_model.safetensors` to `directory`, which
    /// is made if it is not there.
    ///
    /// Each file is written under another name first, the configuration last: a directory
    /// with a configuration is whole.
    ///
    /// # Errors
    ///
    /// [`PeftError::Io`] with the file.
    pub fn write(&self, directory: &Path) -> Result<(), PeftError> {
        fs::create_dir_all(directory).map_err(|error| PeftError::Io {
            path: directory.to_owned(),
            error,
        })?;
        let path = directory.join("adapter_model.safetensors");
        write_whole(&path, &self.safetensors(&path)?)?;
        let config = self.config.to_json();
        write_whole(&directory.join("adapter_config.json"), config.as_bytes())
    }

    fn safetensors(&self, path: &Path) -> Result<Vec<u8>, PeftError> {
        let wrong = |error: ::safetensors::SafeTensorError| PeftError::SafeTensors {
            path: path.to_owned(),
            reason: error.to_string(),
        };
        let views = self
            .tensors
            .iter()
            .map(|tensor| {
                let shape = vec![tensor.rows, tensor.cols];
                let bytes = bytemuck::cast_slice(&tensor.values);
                let view = TensorView::new(Dtype::F32, shape, bytes).map_err(wrong)?;
                Ok((tensor.name.as_str(), view))
            })
            .collect::<Result<Vec<_>, PeftError>>()?;
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        serialize(views, Some(metadata)).map_err(wrong)
    }
}

fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), PeftError> {
    replace(path, bytes).map_err(|error| PeftError::Io {
        path: path.to_owned(),
        error,
    })
}
