//! Files of tensors: safetensors in and out, by name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fedllm_shared::{Layout, LayoutError, TensorSpec};
use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use thiserror::Error;

/// Why a file of tensors cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TensorError {
    /// It cannot be read or written.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// Its tensors are no adapter.
    #[error("{path}: {source}")]
    Layout {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: LayoutError,
    },
    /// A tensor of a type that is not averaged.
    #[error("{path}: {tensor} has type {dtype}; F32, F16, BF16 and F64 are read")]
    Type {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: String,
    },
    /// A tensor that the present adapter has is not there, or has another shape.
    #[error("{path} has no tensor {tensor} of shape [{rows}, {cols}], which the adapter has")]
    Missing {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its rows.
        rows: u32,
        /// Its columns.
        cols: u32,
    },
    /// A tensor that the present adapter does not have.
    #[error("{path} has a tensor {tensor}, which the adapter does not have")]
    Unexpected {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
}

/// The tensors of one file, in the order of their names.
#[derive(Clone, Debug)]
pub struct Tensors {
    path: PathBuf,
    layout: Arc<Layout>,
    shapes: Vec<Vec<usize>>,
    values: Vec<f32>,
}

impl Tensors {
    /// Reads a file; every tensor becomes `f32`.
    ///
    /// # Errors
    ///
    /// [`TensorError`] names the file and the tensor.
    pub fn read(path: &Path) -> Result<Self, TensorError> {
        let failed = |reason: String| TensorError::File {
            path: path.to_owned(),
            reason,
        };
        let bytes = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|error| failed(error.to_string()))?;
        let tensors: BTreeMap<_, _> = file.iter().collect();
        let (mut specs, mut shapes, mut values) = (Vec::new(), Vec::new(), Vec::new());
        for (name, tensor) in tensors {
            specs.push(
                spec(name, tensor.shape())
                    .ok_or_else(|| failed(format!("{name} has the shape {:?}", tensor.shape())))?,
            );
            shapes.push(tensor.shape().to_vec());
            let read = read(&tensor, &mut values);
            read.ok_or_else(|| TensorError::Type {
                path: path.to_owned(),
                tensor: name.to_owned(),
                dtype: format!("{:?}", tensor.dtype()),
            })?;
        }
        let layout = Layout::new(specs).map_err(|source| TensorError::Layout {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
            layout: Arc::new(layout),
            shapes,
            values,
        })
    }

    /// Tensors of this layout, with these values.
    pub(super) fn of(layout: Arc<Layout>, values: Vec<f32>) -> Self {
        let tensors = layout.tensors().iter();
        Self {
            path: PathBuf::new(),
            shapes: tensors
                .map(|tensor| vec![tensor.rows as usize, tensor.cols as usize])
                .collect(),
            layout,
            values,
        }
    }

    /// Names and shapes; a vector is one row, and more than two dimensions are rows and the rest.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// All values in layout order.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The same tensors with other values.
    pub(super) fn with_values(&self, values: Vec<f32>) -> Self {
        Self {
            values,
            ..self.clone()
        }
    }

    /// The values in the order of `layout`, which must have the same tensors.
    pub(super) fn matching(&self, layout: &Arc<Layout>) -> Result<Vec<f32>, TensorError> {
        let mut values = Vec::with_capacity(layout.len());
        for tensor in layout.tensors() {
            let found = self.layout.find(&tensor.name);
            let found = found.filter(|index| self.layout.tensors()[*index] == *tensor);
            let index = found.ok_or_else(|| TensorError::Missing {
                path: self.path.clone(),
                tensor: tensor.name.clone(),
                rows: tensor.rows,
                cols: tensor.cols,
            })?;
            values.extend_from_slice(&self.values[self.layout.range(index)]);
        }
        let mut extra = self.layout.tensors().iter();
        match extra.find(|tensor| layout.find(&tensor.name).is_none()) {
            None => Ok(values),
            Some(tensor) => Err(TensorError::Unexpected {
                path: self.path.clone(),
                tensor: tensor.name.clone(),
            }),
        }
    }

    /// Writes the tensors as `f32`; the file is replaced as a whole.
    ///
    /// # Errors
    ///
    /// [`TensorError::File`].
    pub fn write(&self, path: &Path) -> Result<(), TensorError> {
        let failed = |reason: String| TensorError::File {
            path: path.to_owned(),
            reason,
        };
        let bytes: Vec<u8> = self.values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let tensors = self.layout.tensors().iter().enumerate();
        let views = tensors.map(|(index, tensor)| {
            let range = self.layout.range(index);
            let data = &bytes[range.start * 4..range.end * 4];
            let view = TensorView::new(Dtype::F32, self.shapes[index].clone(), data);
            Ok((tensor.name.as_str(), view?))
        });
        let views: Result<Vec<_>, safetensors::SafeTensorError> = views.collect();
        let views = views.map_err(|error| failed(error.to_string()))?;
        let file = safetensors::serialize(views, None).map_err(|e| failed(e.to_string()))?;
        fedllm_client::files::write_durable(path, &file).map_err(|error| failed(error.to_string()))
    }
}

fn spec(name: &str, shape: &[usize]) -> Option<TensorSpec> {
    let (rows, cols) = match shape {
        [] => (1, 1),
        [cols] => (1, *cols),
        [rows, rest @ ..] => (*rows, rest.iter().product()),
    };
    Some(TensorSpec {
        name: name.to_owned(),
        rows: u32::try_from(rows).ok()?,
        cols: u32::try_from(cols).ok()?,
    })
}

/// Adds the tensor's values, unless they are of another type.
fn read(tensor: &TensorView<'_>, values: &mut Vec<f32>) -> Option<()> {
    let data = tensor.data();
    match tensor.dtype() {
        Dtype::F32 => values.extend(data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b))),
        Dtype::F64 => {
            values.extend(
                data.as_chunks()
                    .0
                    .iter()
                    .map(|b| f64::from_le_bytes(*b) as f32),
            );
        }
        Dtype::F16 => {
            let halves = data.as_chunks().0.iter();
            values.extend(halves.map(|b| f16::from_le_bytes(*b).to_f32()));
        }
        Dtype::BF16 => {
            let halves = data.as_chunks().0.iter();
            values.extend(halves.map(|b| bf16::from_le_bytes(*b).to_f32()));
        }
        _ => return None,
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_are_written_and_read_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let spec = |name: &str, rows, cols| TensorSpec {
            name: name.into(),
            rows,
            cols,
        };
        let layout = Arc::new(Layout::new(vec![spec("b", 2, 2), spec("a", 1, 3)]).unwrap());
        let values: Vec<f32> = (0..7).map(|v| v as f32).collect();
        Tensors::of(layout.clone(), values.clone())
            .write(&path)
            .unwrap();
        let read = Tensors::read(&path).unwrap();
        assert_eq!(read.layout().tensors()[0].name, "a");
        assert_eq!(read.matching(&layout).unwrap(), values);
        let wider = Arc::new(Layout::new(vec![spec("a", 1, 4)]).unwrap());
        let error = read.matching(&wider).unwrap_err().to_string();
        assert!(error.contains("no tensor a of shape [1, 4]"), "{error}");
        let fewer = Arc::new(Layout::new(vec![spec("a", 1, 3)]).unwrap());
        let error = read.matching(&fewer).unwrap_err().to_string();
        assert!(error.contains("a tensor b, which"), "{error}");
        std::fs::write(&path, b"no tensors").unwrap();
        assert!(matches!(
            Tensors::read(&path),
            Err(TensorError::File { .. })
        ));
    }
}
