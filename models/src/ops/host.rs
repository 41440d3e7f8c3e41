//! Reading and making CPU tensors without copies: the bridge between burn's
//! [`Tensor`] and plain `f32` slices that the fused CPU operations work on.

use burn::tensor::{Device, Int, Tensor, TensorData};
use burn_flex::{Flex, FlexTensor};

/// A contiguous CPU tensor that can be read as a slice.
pub(crate) struct Host(FlexTensor);

impl Host {
    /// Takes a tensor that lives on the CPU; copies only if it is strided.
    ///
    /// # Panics
    ///
    /// If the tensor lives elsewhere: callers ask [`is_cpu`] first.
    pub(crate) fn of<const D: usize>(tensor: Tensor<D>) -> Self {
        match tensor.try_into_primitive::<Flex>() {
            Ok(primitive) => Self(primitive.to_contiguous()),
            Err(error) => panic!("a CPU operation was given a tensor of another device: {error:?}"),
        }
    }

    /// The values, row-major.
    pub(crate) fn values(&self) -> &[f32] {
        let layout = self.0.layout();
        let start = layout.start_offset();
        &self.0.storage::<f32>()[start..start + layout.num_elements()]
    }

    /// The values as a vector: without a copy if this was the tensor's only owner.
    pub(crate) fn into_values(self) -> Vec<f32> {
        let data = self.0.into_data();
        match data.try_into_vec::<f32>() {
            Ok(values) => values,
            Err(error) => panic!("a float operation was given a tensor of another type: {error:?}"),
        }
    }
}

/// Whether a device is the CPU backend, where the fused operations run.
pub fn is_cpu(device: &Device) -> bool {
    *device == Device::flex()
}

/// A CPU tensor of the given shape that owns `values`.
pub(crate) fn host_tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
    Tensor::from_primitive::<Flex>(FlexTensor::from_data(TensorData::new(values, shape)))
}

/// A tensor of the given shape on any device.
pub(crate) fn tensor_on<const D: usize>(
    values: Vec<f32>,
    shape: [usize; D],
    device: &Device,
) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// An index tensor on any device.
pub(crate) fn indices_on(values: Vec<i32>, device: &Device) -> Tensor<1, Int> {
    let len = values.len();
    Tensor::from_data(TensorData::new(values, [len]), device)
}
