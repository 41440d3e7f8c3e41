//! How many bytes frozen weights take as they are held: what a product has to read of them.

use super::frozen::{FrozenMatrix, HostMatrix};
use super::linear::LinearGroup;

impl FrozenMatrix {
    /// Bytes of the weights, scales included.
    pub fn stored_bytes(&self) -> usize {
        match self {
            Self::Host(matrix) => matrix.stored_bytes(),
            Self::Dense(tensor) => self.rows() * self.cols() * tensor.dtype().size(),
            Self::Packed(matrix) => matrix.stored_bytes(),
        }
    }
}

impl HostMatrix {
    /// Bytes of the weights, scales included.
    pub fn stored_bytes(&self) -> usize {
        match self {
            Self::Stored(matrix) => matrix.bytes().len(),
            Self::Int8(matrix) => matrix.values().len() + size_of_val(matrix.scales()),
            Self::Nf4(matrix) => matrix.packed().len() + size_of_val(matrix.absmax()),
        }
    }
}

impl LinearGroup {
    /// Bytes of the weights of all parts.
    pub fn stored_bytes(&self) -> usize {
        self.parts.iter().map(FrozenMatrix::stored_bytes).sum()
    }
}
