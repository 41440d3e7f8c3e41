//! What is learned and what travels: flat `f32` vectors over a named layout.

use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::id::Digest;

/// The most tensors a layout may have.
pub const MAX_TENSORS: usize = 4096;
/// The most values a layout may have.
pub const MAX_VALUES: usize = 1 << 31;
const MAX_NAME_BYTES: usize = 512;

/// One matrix of an adapter: its PEFT key and its shape.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TensorSpec {
    /// The PEFT key, for example
    /// `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`.
    pub name: String,
    /// The number of rows, at least 1.
    pub rows: u32,
    /// The number of columns, at least 1.
    pub cols: u32,
}

/// The tensors of an adapter in their order, with their places in one flat vector.
///
/// Both sides of a run derive the layout from the base model and the task,
/// and compare digests. A layout never comes from a peer's message.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "Vec<TensorSpec>", into = "Vec<TensorSpec>")]
pub struct Layout {
    tensors: Vec<TensorSpec>,
    /// Where each tensor begins, and at last the total.
    offsets: Vec<usize>,
    digest: Digest,
}

/// A list of tensors that is no layout.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// No tensors, or too many.
    #[error("a layout has 1 to {MAX_TENSORS} tensors, got {0}")]
    TensorCount(usize),
    /// A name that is empty or too long.
    #[error("tensor {index} has a name of {bytes} bytes, expected 1 to {MAX_NAME_BYTES}")]
    Name {
        /// The tensor's place in the list.
        index: usize,
        /// The length of its name.
        bytes: usize,
    },
    /// Two tensors of one name.
    #[error("two tensors are named {0}")]
    Duplicate(String),
    /// A tensor without values.
    #[error("{0} has no values")]
    Empty(String),
    /// More values than a layout may have.
    #[error("a layout has at most {MAX_VALUES} values; {0} goes beyond")]
    TooLarge(String),
}

impl Layout {
    /// Lays the tensors out in the order given.
    ///
    /// # Errors
    ///
    /// [`LayoutError`] if a name or a size is out of bounds or a name is used twice.
    pub fn new(tensors: Vec<TensorSpec>) -> Result<Self, LayoutError> {
        if tensors.is_empty() || tensors.len() > MAX_TENSORS {
            return Err(LayoutError::TensorCount(tensors.len()));
        }
        let mut names = std::collections::HashSet::new();
        let mut offsets = vec![0];
        let mut total = 0usize;
        for (index, spec) in tensors.iter().enumerate() {
            let bytes = spec.name.len();
            if bytes == 0 || bytes > MAX_NAME_BYTES {
                return Err(LayoutError::Name { index, bytes });
            }
            if !names.insert(spec.name.as_str()) {
                return Err(LayoutError::Duplicate(spec.name.clone()));
            }
            if spec.rows == 0 || spec.cols == 0 {
                return Err(LayoutError::Empty(spec.name.clone()));
            }
            total = (spec.rows as usize)
                .checked_mul(spec.cols as usize)
                .and_then(|size| total.checked_add(size))
                .filter(|total| *total <= MAX_VALUES)
                .ok_or_else(|| LayoutError::TooLarge(spec.name.clone()))?;
            offsets.push(total);
        }
        let digest = digest(&tensors);
        Ok(Self {
            tensors,
            offsets,
            digest,
        })
    }

    /// The tensors in order.
    pub fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    /// The number of values of all tensors together.
    #[expect(clippy::len_without_is_empty, reason = "a layout is never empty")]
    pub fn len(&self) -> usize {
        self.offsets[self.tensors.len()]
    }

    /// Where the values of tensor `index` are.
    ///
    /// # Panics
    ///
    /// If there is no such tensor.
    pub fn range(&self, index: usize) -> Range<usize> {
        self.offsets[index]..self.offsets[index + 1]
    }

    /// The tensor that holds the value at `offset`, if any does.
    pub fn tensor_at(&self, offset: usize) -> Option<usize> {
        (offset < self.len()).then(|| self.offsets.partition_point(|begin| *begin <= offset) - 1)
    }

    /// The BLAKE3 hash of names and shapes in order.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The place of the tensor with this name.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.tensors.iter().position(|spec| spec.name == name)
    }
}

impl PartialEq for Layout {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl Eq for Layout {}

impl TryFrom<Vec<TensorSpec>> for Layout {
    type Error = LayoutError;

    fn try_from(tensors: Vec<TensorSpec>) -> Result<Self, LayoutError> {
        Self::new(tensors)
    }
}

impl From<Layout> for Vec<TensorSpec> {
    fn from(layout: Layout) -> Self {
        layout.tensors
    }
}

/// Values that do not make an adapter or a delta.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterError {
    /// Too few or too many values.
    #[error("expected {expected} values, got {got}")]
    Length {
        /// What the layout says.
        expected: usize,
        /// What there was.
        got: usize,
    },
    /// A value that is infinite or no number.
    #[error("{tensor} is not finite at {index}")]
    NonFinite {
        /// The tensor's name.
        tensor: String,
        /// The value's place in the tensor, row by row.
        index: usize,
    },
    /// A tensor that is not there, or has another shape.
    #[error("there is no tensor {name} [{rows}, {cols}]")]
    NoTensor {
        /// The tensor's name.
        name: String,
        /// Its rows.
        rows: u32,
        /// Its columns.
        cols: u32,
    },
    /// Two layouts where one was needed.
    #[error("layouts differ: expected {expected}, got {got}")]
    LayoutMismatch {
        /// The layout of the left side.
        expected: Digest,
        /// The layout of the right side.
        got: Digest,
    },
}

/// Names the first value that is infinite or no number.
///
/// `values` are those of `layout` from `offset` on.
///
/// # Errors
///
/// [`AdapterError::NonFinite`] if there is one.
pub fn check_finite(layout: &Layout, offset: usize, values: &[f32]) -> Result<(), AdapterError> {
    let Some(found) = values.iter().position(|value| !value.is_finite()) else {
        return Ok(());
    };
    let place = offset + found;
    let (tensor, index) = match layout.tensor_at(place) {
        Some(tensor) => (
            layout.tensors[tensor].name.clone(),
            place - layout.offsets[tensor],
        ),
        None => ("beyond the layout".to_owned(), place),
    };
    Err(AdapterError::NonFinite { tensor, index })
}

/// A vector over a layout, all of it finite.
macro_rules! flat_vector {
    ($name:ident) => {
        impl $name {
            /// Takes values in layout order, each tensor row by row.
            ///
            /// # Errors
            ///
            /// [`AdapterError`] if their number is wrong or one is not finite.
            pub fn new(layout: Arc<Layout>, values: Vec<f32>) -> Result<Self, AdapterError> {
                if values.len() != layout.len() {
                    return Err(AdapterError::Length {
                        expected: layout.len(),
                        got: values.len(),
                    });
                }
                check_finite(&layout, 0, &values)?;
                Ok(Self { layout, values })
            }

            /// All values zero.
            pub fn zeros(layout: Arc<Layout>) -> Self {
                let values = vec![0.0; layout.len()];
                Self { layout, values }
            }

            /// What the values mean.
            pub fn layout(&self) -> &Arc<Layout> {
                &self.layout
            }

            /// All values in layout order.
            pub fn values(&self) -> &[f32] {
                &self.values
            }

            /// Gives the values away.
            pub fn into_values(self) -> Vec<f32> {
                self.values
            }

            /// The values of tensor `index`, `[rows, cols]` row by row.
            ///
            /// # Panics
            ///
            /// If there is no such tensor.
            pub fn tensor(&self, index: usize) -> &[f32] {
                &self.values[self.layout.range(index)]
            }

            /// The Euclidean length of the whole vector.
            pub fn l2_norm(&self) -> f64 {
                let sum: f64 = self.values.iter().map(|v| f64::from(*v).powi(2)).sum();
                sum.sqrt()
            }
        }
    };
}

/// The trained factors A and B of every adapted layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    layout: Arc<Layout>,
    values: Vec<f32>,
}

/// The difference of two adapters: what a client learned, or a mean of such.
#[derive(Clone, Debug, PartialEq)]
pub struct Delta {
    layout: Arc<Layout>,
    values: Vec<f32>,
}

flat_vector!(Adapter);
flat_vector!(Delta);

impl Adapter {
    /// Adds `scale` times `delta`.
    ///
    /// # Errors
    ///
    /// [`AdapterError`] if the layouts differ or the sum is not finite; the
    /// adapter is then unchanged.
    pub fn apply(&mut self, delta: &Delta, scale: f32) -> Result<(), AdapterError> {
        same_layout(&self.layout, &delta.layout)?;
        let moved = self.values.iter().zip(&delta.values);
        let moved: Vec<f32> = moved.map(|(value, step)| value + scale * step).collect();
        *self = Self::new(self.layout.clone(), moved)?;
        Ok(())
    }

    /// The values of the tensors of `layout`, for example those that are trained.
    ///
    /// # Errors
    ///
    /// [`AdapterError::NoTensor`] if one of them is not here.
    pub fn select(&self, layout: &Arc<Layout>) -> Result<Self, AdapterError> {
        if *layout == self.layout {
            return Ok(self.clone());
        }
        let mut values = Vec::with_capacity(layout.len());
        for tensor in layout.tensors() {
            values.extend_from_slice(&self.values[self.place(tensor)?]);
        }
        let layout = layout.clone();
        Ok(Self { layout, values })
    }

    /// Replaces the values of the tensors that `part` has.
    ///
    /// # Errors
    ///
    /// [`AdapterError::NoTensor`] if one of them is not here; nothing is then
    /// replaced.
    pub fn insert(&mut self, part: &Self) -> Result<(), AdapterError> {
        let tensors = part.layout.tensors().iter();
        let places: Vec<_> = tensors
            .map(|tensor| self.place(tensor))
            .collect::<Result<_, _>>()?;
        for (index, place) in places.into_iter().enumerate() {
            self.values[place].copy_from_slice(part.tensor(index));
        }
        Ok(())
    }

    fn place(&self, tensor: &TensorSpec) -> Result<Range<usize>, AdapterError> {
        let found = self.layout.find(&tensor.name);
        let found = found.filter(|index| self.layout.tensors()[*index] == *tensor);
        let index = found.ok_or_else(|| AdapterError::NoTensor {
            name: tensor.name.clone(),
            rows: tensor.rows,
            cols: tensor.cols,
        })?;
        Ok(self.layout.range(index))
    }
}

impl Delta {
    /// What must be added to `global` to reach `local`.
    ///
    /// # Errors
    ///
    /// [`AdapterError`] if the layouts differ or the difference is not finite.
    pub fn between(local: &Adapter, global: &Adapter) -> Result<Self, AdapterError> {
        same_layout(&global.layout, &local.layout)?;
        let pairs = local.values.iter().zip(&global.values);
        Self::new(
            global.layout.clone(),
            pairs.map(|(local, global)| local - global).collect(),
        )
    }

    /// Multiplies every value by `factor`.
    ///
    /// # Errors
    ///
    /// [`AdapterError::NonFinite`] if that overflows; the delta is then unchanged.
    pub fn scale(&mut self, factor: f32) -> Result<(), AdapterError> {
        let scaled = self.values.iter().map(|value| value * factor).collect();
        *self = Self::new(self.layout.clone(), scaled)?;
        Ok(())
    }
}

/// Fails unless both layouts are one.
///
/// # Errors
///
/// [`AdapterError::LayoutMismatch`].
pub(crate) fn same_layout(expected: &Layout, got: &Layout) -> Result<(), AdapterError> {
    if expected == got {
        return Ok(());
    }
    Err(AdapterError::LayoutMismatch {
        expected: expected.digest,
        got: got.digest,
    })
}

fn digest(tensors: &[TensorSpec]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"fedllm layout 1\0");
    for spec in tensors {
        // The length of a name fits: `Layout::new` bounds it.
        hasher.update(&(spec.name.len() as u32).to_le_bytes());
        hasher.update(spec.name.as_bytes());
        hasher.update(&spec.rows.to_le_bytes());
        hasher.update(&spec.cols.to_le_bytes());
    }
    Digest(hasher.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, rows: u32, cols: u32) -> TensorSpec {
        TensorSpec {
            name: name.to_owned(),
            rows,
            cols,
        }
    }

    fn layout() -> Arc<Layout> {
        Arc::new(Layout::new(vec![spec("a", 2, 3), spec("b", 1, 2)]).unwrap())
    }

    #[test]
    fn tensors_follow_each_other() {
        let layout = layout();
        assert_eq!(layout.len(), 8);
        assert_eq!(layout.range(1), 6..8);
        assert_eq!(layout.find("b"), Some(1));
        assert_eq!(layout.find("c"), None);
        let owners: Vec<_> = (0..9).map(|offset| layout.tensor_at(offset)).collect();
        let (a, b) = (Some(0), Some(1));
        assert_eq!(owners, [a, a, a, a, a, a, b, b, None]);
    }

    #[test]
    fn what_is_no_layout_is_refused() {
        use LayoutError::*;
        let cases = [
            (vec![], TensorCount(0)),
            (vec![spec("a", 1, 1); MAX_TENSORS + 1], TensorCount(4097)),
            (vec![spec("", 1, 1)], Name { index: 0, bytes: 0 }),
            (
                vec![spec("a", 1, 1), spec("a", 2, 1)],
                Duplicate("a".into()),
            ),
            (vec![spec("a", 0, 1)], Empty("a".into())),
            (vec![spec("a", u32::MAX, u32::MAX)], TooLarge("a".into())),
            (
                vec![spec("a", 1 << 16, 1 << 15), spec("b", 1, 1)],
                TooLarge("b".into()),
            ),
        ];
        for (tensors, error) in cases {
            assert_eq!(Layout::new(tensors), Err(error));
        }
    }

    #[test]
    fn the_digest_covers_order_names_and_shapes() {
        let base = vec![spec("a", 2, 3), spec("b", 1, 2)];
        let variants = [
            vec![spec("b", 1, 2), spec("a", 2, 3)],
            vec![spec("a", 3, 2), spec("b", 1, 2)],
            vec![spec("c", 2, 3), spec("b", 1, 2)],
            vec![spec("a", 2, 3)],
        ];
        let digest = Layout::new(base.clone()).unwrap().digest();
        assert_eq!(digest, layout().digest());
        for variant in variants {
            assert_ne!(Layout::new(variant).unwrap().digest(), digest);
        }
        let text = serde_json::to_string(&*layout()).unwrap();
        assert_eq!(serde_json::from_str::<Layout>(&text).unwrap(), *layout());
        assert!(serde_json::from_str::<Layout>("[]").is_err());
    }

    #[test]
    fn values_must_be_finite_and_complete() {
        assert_eq!(
            Delta::new(layout(), vec![0.0; 7]),
            Err(AdapterError::Length {
                expected: 8,
                got: 7
            })
        );
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for place in 0..8 {
                let mut values = vec![0.0; 8];
                values[place] = bad;
                let (tensor, index) = if place < 6 {
                    ("a", place)
                } else {
                    ("b", place - 6)
                };
                let tensor = tensor.to_owned();
                assert_eq!(
                    Adapter::new(layout(), values),
                    Err(AdapterError::NonFinite { tensor, index })
                );
            }
        }
    }

    #[test]
    fn a_delta_leads_from_one_adapter_to_the_other() {
        let global = Adapter::new(layout(), (0..8).map(|v| v as f32).collect()).unwrap();
        let local = Adapter::new(layout(), vec![2.0; 8]).unwrap();
        let delta = Delta::between(&local, &global).unwrap();
        let mut moved = global.clone();
        moved.apply(&delta, 1.0).unwrap();
        assert_eq!(moved, local);
        assert_eq!(local.l2_norm(), 32f64.sqrt());
        assert_eq!(local.tensor(1), [2.0, 2.0]);
    }

    #[test]
    fn a_part_is_taken_out_and_put_back() {
        let mut whole = Adapter::new(layout(), (0..8).map(|v| v as f32).collect()).unwrap();
        let b = Arc::new(Layout::new(vec![spec("b", 1, 2)]).unwrap());
        let mut part = whole.select(&b).unwrap();
        assert_eq!(part.values(), [6.0, 7.0]);
        part.apply(&Delta::new(b, vec![1.0, -1.0]).unwrap(), 1.0)
            .unwrap();
        whole.insert(&part).unwrap();
        assert_eq!(whole.values(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 7.0, 6.0]);
        let other = Arc::new(Layout::new(vec![spec("b", 2, 1)]).unwrap());
        assert!(whole.select(&other).is_err());
        assert!(whole.insert(&Adapter::zeros(other)).is_err());
    }

    #[test]
    fn a_step_to_infinity_changes_nothing() {
        let mut adapter = Adapter::new(layout(), vec![f32::MAX; 8]).unwrap();
        let before = adapter.clone();
        let delta = Delta::new(layout(), vec![f32::MAX; 8]).unwrap();
        assert!(adapter.apply(&delta, 1.0).is_err());
        let other = Arc::new(Layout::new(vec![spec("c", 8, 1)]).unwrap());
        let error = adapter.apply(&Delta::zeros(other), 1.0).unwrap_err();
        assert!(matches!(error, AdapterError::LayoutMismatch { .. }));
        assert_eq!(adapter, before);
    }
}
