//! Between burn's tensors and the buffers that CubeCL kernels read and write.

use burn::tensor::kind::Basic;
use burn::tensor::{BackendPrimitive, DType, Shape, Tensor};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

/// The buffer of a tensor, row-major, if it lives on a device that runs CubeCL's kernels.
pub(super) fn cube<const D: usize, K>(tensor: &Tensor<D, K>) -> Option<CubeTensor>
where
    K: Basic + BackendPrimitive<CubeBackend, Primitive = CubeTensor>,
{
    let tensor = tensor.clone().try_into_primitive::<CubeBackend>();
    tensor.ok().map(into_contiguous)
}

/// A buffer of 32-bit floats, not yet written, on the device of another.
pub(super) fn empty<const D: usize>(beside: &CubeTensor, shape: [usize; D]) -> CubeTensor {
    empty_of(beside, shape, DType::F32)
}

/// A buffer, not yet written, on the device of another.
pub(super) fn empty_of<const D: usize>(
    beside: &CubeTensor,
    shape: [usize; D],
    dtype: DType,
) -> CubeTensor {
    let shape = Shape::new(shape);
    let bytes = shape.num_elements() * dtype.size();
    CubeTensor::new_contiguous(
        beside.client.clone(),
        beside.device.clone(),
        shape,
        beside.client.empty(bytes),
        dtype,
    )
}

/// The tensor of a buffer of floats.
pub(super) fn tensor<const D: usize>(buffer: CubeTensor) -> Tensor<D> {
    Tensor::from_primitive::<CubeBackend>(buffer)
}
