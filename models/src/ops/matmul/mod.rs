//! Products of matrices on a GPU, by cubek's kernels.
//!
//! Operands are single or half precision, sums and results are single. Two halves go through matrix
//! units where the device has them; any other pair is widened to single precision in registers.
//!
//! There are many ways to tile a product, and which is best depends on the device and the shape.
//! [`choice`] times them once and keeps what it finds, also from one run of the program to the next.

mod backlog;
mod choice;
mod variant;

use burn::tensor::{DType, Device, Tensor};
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubek::matmul::definition::{MatmulElems, MatmulGlobalElems, MatmulSetupError};
use cubek::matmul::launch::launch_ref;
use cubek::std::InputBinding;
use half::f16;

use self::choice::Shape;
use self::variant::Variant;
use super::cube::{cube, empty, tensor};
use super::host::tensor_on;

pub(crate) use choice::{keep_in, mark_software};

/// `a · b`: `[m, k]` times `[k, n]`, each in single or half precision, the result in single.
pub(super) fn matmul(a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    let ([m, k], [_, n]) = (a.dims(), b.dims());
    if m == 0 || n == 0 || k == 0 {
        return Tensor::zeros([m, n], (&a.device(), DType::F32));
    }
    match (buffer(&a), buffer(&b)) {
        (Some(a), Some(b)) => tensor(multiply(a, b)),
        _ => a.matmul(b),
    }
}

/// `a · [b₀ b₁ …]`: the products with matrices side by side, of `n` columns in all. Each is made when its
/// turn comes, so that no two of them are needed at once.
///
/// # Panics
///
/// If a matrix is on another device than `a`.
pub(super) fn matmul_side_by_side(
    a: &Tensor<2>,
    n: usize,
    parts: impl Iterator<Item = Tensor<2>>,
) -> Tensor<2> {
    let [m, _] = a.dims();
    let Some(a) = buffer(a).filter(|_| m > 0 && n > 0) else {
        let products: Vec<_> = parts.map(|b| matmul(a.clone(), b)).collect();
        return match products.is_empty() {
            true => Tensor::zeros([m, n], (&a.device(), DType::F32)),
            false => Tensor::cat(products, 1),
        };
    };
    let out = empty(&a, [m, n]);
    let mut first = 0;
    for b in parts {
        let columns = b.dims()[1];
        let b = buffer(&b).expect("both factors are on one device");
        multiply_into(&a, &b, &columns_of(&out, first, columns));
        first += columns;
    }
    tensor(out)
}

/// Some columns of a buffer, in place.
///
/// # Panics
///
/// If they begin where the device cannot bind a buffer.
fn columns_of(buffer: &CubeTensor, first: usize, columns: usize) -> CubeTensor {
    let (width, size) = (buffer.meta.shape()[1], buffer.dtype.size());
    let (before, after) = (first * size, (width - first - columns) * size);
    let alignment = buffer.client.properties().memory.alignment;
    assert!(
        (before as u64).is_multiple_of(alignment),
        "columns from {first} on cannot be written in place"
    );
    let mut view = buffer.clone();
    view.handle = view
        .handle
        .offset_start(before as u64)
        .offset_end(after as u64);
    view.meta.shape[1] = columns;
    view
}

/// Whether a device multiplies half precision with sums in single precision by matrix units.
pub fn has_matrix_units(device: &Device) -> bool {
    of_device(device).is_some_and(|buffer| {
        let configurations = &buffer.client.properties().features.matmul.cmma;
        configurations
            .iter()
            .any(|units| (units.a_type, units.b_type, units.cd_type) == (half(), half(), single()))
    })
}

/// Whether kernels of a device read and write half precision.
pub fn holds_halves(device: &Device) -> bool {
    of_device(device).is_some_and(|buffer| {
        let usage = buffer.client.properties().features.type_usage(half());
        usage.contains(cubecl::features::TypeUsage::Buffer)
    })
}

/// A small buffer, through which one learns of a device what burn's own type does not tell.
fn of_device(device: &Device) -> Option<CubeTensor> {
    cube(&tensor_on(vec![0.0], [1], device))
}

/// The buffer of a matrix as it is: its strides may be those of a transpose.
fn buffer(matrix: &Tensor<2>) -> Option<CubeTensor> {
    matrix.clone().try_into_primitive::<CubeBackend>().ok()
}

fn multiply(a: CubeTensor, b: CubeTensor) -> CubeTensor {
    let out = empty(&a, [a.meta.shape()[0], b.meta.shape()[1]]);
    multiply_into(&a, &b, &out);
    out
}

fn multiply_into(a: &CubeTensor, b: &CubeTensor, out: &CubeTensor) {
    let shape = Shape::of(a, b);
    choice::run(&shape, out, &|variant, out| launch(a, b, variant, out));
    if backlog::add(2 * (shape.m * shape.n * shape.k) as u64)
        && let Err(error) = a.client.flush()
    {
        // Whoever reads a result is told too.
        tracing::warn!(?error, "work could not be submitted");
    }
}

fn launch(
    a: &CubeTensor,
    b: &CubeTensor,
    variant: Variant,
    out: &CubeTensor,
) -> Result<(), MatmulSetupError> {
    let mut elements = MatmulElems::from_globals(&MatmulGlobalElems {
        lhs: element(a),
        rhs: element(b),
        out: single(),
    });
    let input = |x: &CubeTensor| InputBinding::new(x.clone().binding(), element(x));
    launch_ref(
        &variant.strategy(),
        &a.client,
        input(a),
        input(b),
        out.clone().binding(),
        &mut elements,
    )
}

/// Starts a product by one variant, into a buffer.
type Launch<'a> = dyn Fn(Variant, &CubeTensor) -> Result<(), MatmulSetupError> + 'a;

fn element(buffer: &CubeTensor) -> ElemType {
    match buffer.dtype {
        DType::F16 => half(),
        _ => single(),
    }
}

fn half() -> ElemType {
    f16::elem_type_native()
}

fn single() -> ElemType {
    f32::elem_type_native()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::uniform;
    use crate::device::gpu_for_tests;
    use burn::tensor::TensorData;

    /// A matrix on a device, of values that `dtype` holds, and the same values by rows.
    fn matrix(
        [rows, cols]: [usize; 2],
        transposed: bool,
        dtype: DType,
        device: &Device,
    ) -> (Tensor<2>, Vec<f32>) {
        let mut values = uniform(&format!("{rows}x{cols}"), rows * cols, 1.0);
        if dtype == DType::F16 {
            let round = |value: &mut f32| *value = f16::from_f32(*value).to_f32();
            values.iter_mut().for_each(round);
        }
        let made = |values: Vec<f32>, shape| {
            Tensor::<2>::from_data(TensorData::new(values, shape), device).cast(dtype)
        };
        let tensor = match transposed {
            false => made(values.clone(), [rows, cols]),
            true => {
                let by_columns = (0..rows * cols).map(|i| values[i % rows * cols + i / rows]);
                made(by_columns.collect(), [cols, rows]).transpose()
            }
        };
        (tensor, values)
    }

    #[test]
    fn gpu_products_agree_with_plain_sums() {
        let Some((_, gpu)) = gpu_for_tests() else {
            return;
        };
        let mut types = vec![(DType::F32, DType::F32)];
        if holds_halves(&gpu) {
            types.extend([(DType::F32, DType::F16), (DType::F16, DType::F16)]);
        }
        println!("matrix units: {}", has_matrix_units(&gpu));
        for [m, k, n] in [[1, 64, 48], [9, 33, 20], [128, 96, 72]] {
            for (left, right) in [(false, false), (false, true), (true, false)] {
                for &(a, b) in &types {
                    let (a, of_a) = matrix([m, k], left, a, &gpu);
                    let (b, of_b) = matrix([k, n], right, b, &gpu);
                    let what = format!("{:?}{:?}", a.dtype(), b.dtype());
                    let got: Vec<f32> = matmul(a, b).try_into_vec_as().unwrap();
                    let (mut error, mut size) = (0.0, 0.0);
                    for (i, got) in got.iter().enumerate() {
                        let terms = (0..k).map(|j| of_a[i / n * k + j] * of_b[j * n + i % n]);
                        let sum: f64 = terms.map(f64::from).sum();
                        error += (f64::from(*got) - sum).powi(2);
                        size += sum * sum;
                    }
                    let error = (error / size).sqrt();
                    assert!(error < 1e-6, "{m}x{k}x{n} {left} {right} {what}: {error:e}");
                }
            }
        }
    }
    /// What is compared while variants are timed, of every variant on its own: each is refused by the
    /// device or right.
    #[test]
    fn gpu_variants_of_a_product_agree() {
        let Some((_, gpu)) = gpu_for_tests() else {
            return;
        };
        let mut types = vec![DType::F32];
        types.extend(holds_halves(&gpu).then_some(DType::F16));
        for dtype in types {
            for m in [1, 96] {
                let (a, b) = (
                    matrix([m, 128], false, dtype, &gpu).0,
                    matrix([128, 64], true, dtype, &gpu).0,
                );
                let (a, b) = (buffer(&a).unwrap(), buffer(&b).unwrap());
                let shape = Shape::of(&a, &b);
                let product = |variant| {
                    let out = empty(&a, [m, 64]);
                    launch(&a, &b, variant, &out).ok()?;
                    tensor::<2>(out).try_into_vec_as::<f32>().ok()
                };
                let expected = product(Variant::Unit).unwrap();
                for (variant, name) in Variant::ALL {
                    let got = match variant.suits(&shape) {
                        true => product(variant),
                        false => continue,
                    };
                    println!("{dtype:?} {m}: {name} {}", got.is_some());
                    let Some(got) = got else { continue };
                    for (got, expected) in got.iter().zip(&expected) {
                        let error = (got - expected).abs();
                        assert!(error < 1e-4, "{dtype:?} {m} {name}: {got} not {expected}");
                    }
                }
            }
        }
    }
}
