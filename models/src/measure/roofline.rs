//! What a device reaches at best: products of large matrices, and passes over more memory than its
//! caches hold (Williams et al. 2009, "Roofline").

use std::time::{Duration, Instant};

use burn::tensor::{DType, Device, Tensor};
use rayon::prelude::*;

use super::Cost;
use crate::arch::uniform;
use crate::device::{DeviceError, run_checked};
use crate::ops::{FrozenMatrix, HostMatrix, holds_halves, is_cpu, tensor_on};
use crate::quant::QuantMatrix;

/// What is measured grows until a run of it takes this long.
const LONG_RUN: Duration = Duration::from_millis(100);
/// The largest matrices have this many rows and columns.
const LARGEST: usize = 8192;
/// How often a measurement is repeated; the fastest counts.
const REPEATS: usize = 3;
/// What a GPU is given before it is waited for, so that waiting does not count.
const QUEUED: usize = 8;
/// Values of each vector that the CPU passes over: 128 MiB.
const HOST_VALUES: usize = 32 << 20;
/// Bytes of the largest tensor that a GPU copies.
const LARGEST_COPY: u64 = 256 << 20;

/// The best that a device was seen to do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peaks {
    /// Floating-point operations a second in a large product of single precision.
    pub f32_flops_per_second: f64,
    /// The same with factors in half precision, where the device holds it.
    pub f16_flops_per_second: Option<f64>,
    /// Bytes read and written a second.
    pub bytes_per_second: f64,
}

impl Peaks {
    /// The shortest time in which the device could do this, in seconds: at the peak of single
    /// precision or of its memory, whichever is slower.
    pub fn shortest(&self, cost: &Cost) -> f64 {
        let compute = cost.flops as f64 / self.f32_flops_per_second;
        compute.max(cost.bytes as f64 / self.bytes_per_second)
    }

    /// Whether arithmetic, not memory, bounds this.
    pub fn is_compute_bound(&self, cost: &Cost) -> bool {
        let per_byte = self.f32_flops_per_second / self.bytes_per_second;
        cost.flops as f64 >= per_byte * cost.bytes as f64
    }
}

/// Measures a device whose buffers hold up to `largest_buffer_bytes`.
///
/// # Errors
///
/// [`DeviceError`] if the device fails.
pub fn measure_peaks(device: &Device, largest_buffer_bytes: u64) -> Result<Peaks, DeviceError> {
    if is_cpu(device) {
        return Ok(Peaks {
            f32_flops_per_second: fastest_product(device, u64::MAX, host_product)?,
            f16_flops_per_second: None,
            bytes_per_second: host_bytes_per_second(),
        });
    }
    let half = holds_halves(device);
    let product = |dtype| fastest_product(device, largest_buffer_bytes, gpu_product(dtype));
    Ok(Peaks {
        f32_flops_per_second: product(DType::F32)?,
        f16_flops_per_second: half.then(|| product(DType::F16)).transpose()?,
        bytes_per_second: gpu_bytes_per_second(device, largest_buffer_bytes)?,
    })
}

/// How many products of two square matrices a run makes, and the run.
type Product<'a> = (usize, Box<dyn FnMut() + 'a>);

/// The best rate of products that grow until they are long.
fn fastest_product(
    device: &Device,
    largest_buffer_bytes: u64,
    product: impl Fn(&Device, usize) -> Product<'_>,
) -> Result<f64, DeviceError> {
    let mut best = 0.0f64;
    let mut size = 512;
    while size <= LARGEST && (size * size * size_of::<f32>()) as u64 <= largest_buffer_bytes {
        let (products, mut run) = product(device, size);
        let shortest = shortest_run(device, &mut run)?;
        best = best.max((products * 2 * size.pow(3)) as f64 / shortest.as_secs_f64());
        if shortest > LONG_RUN {
            break;
        }
        size *= 2;
    }
    Ok(best)
}

/// The shortest of several runs, after one that chooses kernels and touches memory.
fn shortest_run(device: &Device, run: &mut dyn FnMut()) -> Result<Duration, DeviceError> {
    let mut shortest = Duration::MAX;
    for repeat in 0..=REPEATS {
        let started = Instant::now();
        run_checked(device, &mut *run)?;
        if repeat > 0 {
            shortest = shortest.min(started.elapsed());
        }
    }
    Ok(shortest.max(Duration::from_nanos(1)))
}

/// A product with a frozen matrix in single precision: the kernel that a step spends its time in.
fn host_product(device: &Device, size: usize) -> Product<'_> {
    let values = uniform("weights", size * size, 1.0);
    let x = tensor_on(
        uniform("activations", size * size, 1.0),
        [size, size],
        device,
    );
    let weights = match QuantMatrix::from_f32(size, size, &values) {
        Ok(matrix) => FrozenMatrix::Host(HostMatrix::Stored(matrix)),
        Err(error) => unreachable!("a square of plain values was refused: {error}"),
    };
    (1, Box::new(move || drop(weights.forward(&x))))
}

fn gpu_product(dtype: DType) -> impl Fn(&Device, usize) -> Product<'_> {
    move |device, size| {
        let matrix = |name| {
            let values = tensor_on(uniform(name, size * size, 1.0), [size, size], device);
            values.cast(dtype)
        };
        let (x, weights) = (matrix("left"), FrozenMatrix::Dense(matrix("right")));
        let run = move || (0..QUEUED).for_each(|_| drop(weights.backward(&x)));
        (QUEUED, Box::new(run))
    }
}

/// The rate of `a = b + s·c` over vectors that no cache holds (McCalpin's STREAM triad): two values
/// read and one written, by all threads.
fn host_bytes_per_second() -> f64 {
    const CHUNK: usize = 1 << 16;
    let (mut a, b, c) = (
        vec![0.0f32; HOST_VALUES],
        vec![1.0f32; HOST_VALUES],
        vec![2.0f32; HOST_VALUES],
    );
    let mut shortest = f64::INFINITY;
    // The first pass touches the memory and is never the shortest.
    for _ in 0..=REPEATS {
        let started = Instant::now();
        a.par_chunks_mut(CHUNK)
            .zip(b.par_chunks(CHUNK))
            .zip(c.par_chunks(CHUNK))
            .for_each(|((a, b), c)| {
                for ((a, b), c) in a.iter_mut().zip(b).zip(c) {
                    *a = b + 3.0 * c;
                }
            });
        shortest = shortest.min(started.elapsed().as_secs_f64());
        std::hint::black_box(&a);
    }
    (3 * HOST_VALUES * size_of::<f32>()) as f64 / shortest
}

/// The rate of `y = s·x` over the largest tensor of [`LARGEST_COPY`] bytes that the device holds: one
/// value read and one written.
fn gpu_bytes_per_second(device: &Device, largest_buffer_bytes: u64) -> Result<f64, DeviceError> {
    let mut best = 0.0f64;
    let mut bytes = 1u64 << 20;
    while bytes <= LARGEST_COPY.min(largest_buffer_bytes) {
        let x = Tensor::<1>::ones([bytes as usize / size_of::<f32>()], device);
        let mut run = || (0..QUEUED).for_each(|_| drop(x.clone().mul_scalar(1.5)));
        let shortest = shortest_run(device, &mut run)?;
        best = best.max((QUEUED as u64 * 2 * bytes) as f64 / shortest.as_secs_f64());
        if shortest > LONG_RUN {
            break;
        }
        bytes *= 2;
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEAKS: Peaks = Peaks {
        f32_flops_per_second: 100.0,
        f16_flops_per_second: None,
        bytes_per_second: 10.0,
    };

    #[test]
    fn the_slower_of_arithmetic_and_memory_bounds_an_operation() {
        let product = Cost {
            flops: 400,
            bytes: 20,
        };
        assert_eq!(PEAKS.shortest(&product), 4.0);
        assert!(PEAKS.is_compute_bound(&product));
        let pass = Cost {
            flops: 10,
            bytes: 20,
        };
        assert_eq!(PEAKS.shortest(&pass), 2.0);
        assert!(!PEAKS.is_compute_bound(&pass));
    }
}
