//! Matrices in `f64` with just what decompositions of adapters need.

use burn::tensor::{DType, Device, Tensor, TensorData};

use super::AggregateError;

/// A matrix whose columns lie one after the other.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Mat {
    rows: usize,
    values: Vec<f64>,
}

impl Mat {
    /// All values zero.
    pub(super) fn zeros(rows: usize, columns: usize) -> Self {
        Self {
            rows,
            values: vec![0.0; rows * columns],
        }
    }

    /// The columns given, each of `rows` values.
    pub(super) fn of(rows: usize, columns: impl IntoIterator<Item = Vec<f64>>) -> Self {
        let values = columns.into_iter().flatten().collect();
        Self { rows, values }
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn columns(&self) -> usize {
        match self.rows {
            0 => 0,
            rows => self.values.len() / rows,
        }
    }

    pub(super) fn column(&self, at: usize) -> &[f64] {
        &self.values[at * self.rows..(at + 1) * self.rows]
    }

    pub(super) fn column_mut(&mut self, at: usize) -> &mut [f64] {
        &mut self.values[at * self.rows..(at + 1) * self.rows]
    }

    /// Puts a column behind the others.
    pub(super) fn push(&mut self, column: &[f64]) {
        self.values.extend_from_slice(column);
    }

    /// Keeps the first `columns` columns.
    pub(super) fn truncate(&mut self, columns: usize) {
        self.values.truncate(self.rows * columns);
    }

    /// The squared length of a column.
    pub(super) fn square(&self, at: usize) -> f64 {
        dot(self.column(at), self.column(at))
    }

    /// Two columns, the first one before the second.
    pub(super) fn pair_mut(&mut self, first: usize, second: usize) -> (&mut [f64], &mut [f64]) {
        let rows = self.rows;
        let (left, right) = self.values.split_at_mut(second * rows);
        (&mut left[first * rows..][..rows], &mut right[..rows])
    }
}

pub(super) fn dot(left: &[f64], right: &[f64]) -> f64 {
    // Four sums, so that the compiler may add in vectors.
    let mut sums = [0.0; 4];
    let (lefts, rest) = left.as_chunks::<4>();
    let (rights, others) = right.as_chunks::<4>();
    for (left, right) in lefts.iter().zip(rights) {
        for (sum, (left, right)) in sums.iter_mut().zip(left.iter().zip(right)) {
            *sum += left * right;
        }
    }
    let tail: f64 = rest
        .iter()
        .zip(others)
        .map(|(left, right)| left * right)
        .sum();
    sums.iter().sum::<f64>() + tail
}

/// A matrix that is multiplied with others, on burn's CPU.
pub(super) struct Operand(Tensor<2>);

impl Operand {
    pub(super) fn new(matrix: Mat) -> Self {
        Self(tensor(matrix))
    }

    /// Itself times another matrix.
    pub(super) fn times(&self, other: Mat) -> Result<Mat, AggregateError> {
        // A tensor's rows are a matrix's columns, so every product is written the other way round.
        read(tensor(other).matmul(self.0.clone()))
    }

    /// Its transpose times another matrix.
    pub(super) fn transposed_times(&self, other: Mat) -> Result<Mat, AggregateError> {
        read(tensor(other).matmul(self.0.clone().transpose()))
    }

    /// Its transpose times itself.
    pub(super) fn gram(&self) -> Result<Mat, AggregateError> {
        read(self.0.clone().matmul(self.0.clone().transpose()))
    }
}

fn tensor(matrix: Mat) -> Tensor<2> {
    let shape = [matrix.columns(), matrix.rows];
    let data = TensorData::new(matrix.values, shape);
    Tensor::from_data(data, (&Device::flex(), DType::F64))
}

fn read(tensor: Tensor<2>) -> Result<Mat, AggregateError> {
    let [_, rows] = tensor.dims();
    let values = tensor.try_into_vec_as::<f64>();
    let values = values.map_err(|error| AggregateError::device(&error))?;
    Ok(Mat { rows, values })
}
