//! Which variant of a product is fastest for a shape, found once by timing them.
//!
//! A variant is taken only if its result is that of the first one but for rounding: a kernel that a
//! driver's compiler gets wrong is passed over, however fast it is.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use burn::tensor::{DType, Device, Tensor};
use burn_cubecl::CubeDevice;
use burn_cubecl::tensor::CubeTensor;
use cubecl::future::block_on;

use super::super::cube::{empty, tensor};
use super::super::flat::{combine, sum_of_squares};
use super::variant::Variant;
use super::{Launch, of_device};
use crate::files::{read_cache, write_cache};

/// A variant is run for so long, at most.
const TIMED: Duration = Duration::from_millis(3);
/// And so often, at most.
const RUNS: u32 = 16;
/// The largest difference that is rounding, relative (L2): every variant multiplies the same values
/// and adds in single precision, in an order of its own.
const ROUNDING: f32 = 1e-4;

/// What decides which variant is best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Shape {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    a: Operand,
    b: Operand,
}

/// How a matrix lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Operand {
    half: bool,
    transposed: bool,
}

impl Operand {
    fn of(buffer: &CubeTensor) -> Self {
        let strides = buffer.meta.strides();
        Self {
            half: buffer.dtype == DType::F16,
            transposed: strides[0] < strides[1],
        }
    }

    fn letters(self) -> &'static str {
        match (self.half, self.transposed) {
            (false, false) => "s",
            (false, true) => "st",
            (true, false) => "h",
            (true, true) => "ht",
        }
    }
}

impl Shape {
    pub(super) fn of(a: &CubeTensor, b: &CubeTensor) -> Self {
        Self {
            m: a.meta.shape()[0],
            n: b.meta.shape()[1],
            k: a.meta.shape()[1],
            a: Operand::of(a),
            b: Operand::of(b),
        }
    }

    /// Whether both operands are in half precision.
    pub(super) fn is_half(&self) -> bool {
        self.a.half && self.b.half
    }

    /// The shape that stands for those that take the same variant. Rows of different lengths make tokens
    /// of any number, so what depends on them goes by the next power of two.
    fn class(&self) -> Self {
        let class = |size: usize| match size {
            0..=8 => size,
            _ => size.next_power_of_two(),
        };
        // Tokens are the rows of activations, or in the gradient of a factor what is summed over.
        let (m, k) = match self.a.transposed {
            false => (class(self.m), self.k),
            true => (self.m, class(self.k)),
        };
        Self { m, k, ..*self }
    }

    /// Its name in a file.
    fn name(&self) -> String {
        let (a, b) = (self.a.letters(), self.b.letters());
        format!("{}x{}x{} {a}{b}", self.m, self.k, self.n)
    }
}

/// What has been found for one device.
#[derive(Default)]
struct Table {
    /// By class.
    variants: HashMap<Shape, Variant>,
    /// By the name of a class: those and what earlier runs found.
    kept: BTreeMap<String, Variant>,
    /// Where it is kept.
    file: Option<PathBuf>,
    /// Whether the device is a program on the processor, where compiling a kernel takes longer than
    /// any product.
    software: bool,
}

impl Table {
    /// What is known of a class, if anything is.
    fn find(&mut self, class: &Shape) -> Option<Variant> {
        if let Some(variant) = self.variants.get(class) {
            return Some(*variant);
        }
        let variant = *self.kept.get(&class.name())?;
        self.variants.insert(*class, variant);
        Some(variant)
    }

    fn insert(&mut self, class: Shape, variant: Variant) {
        tracing::debug!(product = class.name(), variant = variant.name(), "chosen");
        self.variants.insert(class, variant);
        self.kept.insert(class.name(), variant);
        if let Some(file) = &self.file
            && let Err(error) = write(file, &self.kept)
        {
            tracing::warn!(file = %file.display(), %error, "the fastest kernels are not kept");
        }
    }
}

static TABLES: LazyLock<Mutex<HashMap<CubeDevice, Table>>> = LazyLock::new(Mutex::default);

fn tables() -> MutexGuard<'static, HashMap<CubeDevice, Table>> {
    // A panic while timing leaves a table that lacks an entry.
    TABLES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says that a device is a program on the processor: nothing is timed there.
pub(crate) fn mark_software(device: &Device) {
    if let Some(buffer) = of_device(device) {
        tables().entry(buffer.device).or_default().software = true;
    }
}

/// Reads what was found for a device before, and keeps what will be found, in this file.
pub(crate) fn keep_in(file: PathBuf, device: &Device) {
    let Some(buffer) = of_device(device) else {
        return;
    };
    let mut tables = tables();
    let table = tables.entry(buffer.device).or_default();
    table.kept.extend(read(&file));
    table.file = Some(file);
}

/// Computes a product by the best variant for its shape, into `out`.
///
/// # Panics
///
/// If no variant can compute it, which the device's self-test would have found.
pub(super) fn run(shape: &Shape, out: &CubeTensor, launch: &Launch<'_>) {
    let (first, _) = Variant::ALL[0];
    let chosen = choose(shape, out, launch).unwrap_or(first);
    // It may be refused: a class has more shapes than the one that was timed.
    if let Err(error) = launch(chosen, out).or_else(|_| launch(first, out)) {
        panic!("a product of {shape:?} cannot be computed: {error:?}");
    }
}

/// The best variant, from memory or by timing all now; `None` if these values cannot tell. Software
/// imitates matrix units or refuses them.
fn choose(shape: &Shape, out: &CubeTensor, launch: &Launch<'_>) -> Option<Variant> {
    let class = shape.class();
    // Held while timing, too, so that two threads do not disturb each other's clock.
    let mut tables = tables();
    let table = tables.entry(out.device.clone()).or_default();
    if table.software {
        return shape.is_half().then_some(Variant::Matrix);
    }
    if let Some(variant) = table.find(&class) {
        return Some(variant);
    }
    if table.variants.is_empty() {
        tracing::info!("finding the fastest kernels for this GPU, once for each shape");
    }
    let best = fastest(shape, out, launch)?;
    table.insert(class, best);
    Some(best)
}

fn fastest(shape: &Shape, out: &CubeTensor, launch: &Launch<'_>) -> Option<Variant> {
    let variants = Variant::ALL.iter().map(|(variant, _)| *variant);
    let mut variants = variants.filter(|variant| variant.suits(shape));
    let expected = empty(out, [shape.m, shape.n]);
    let (mut best, mut shortest) = variants
        .by_ref()
        .find_map(|variant| Some((variant, timed(variant, &expected, launch)?)))?;
    // Nothing can be compared with what is not finite.
    let size = squares(flat(&expected)).filter(|size| size.is_finite())?;
    for variant in variants {
        let Some(time) = timed(variant, out, launch) else {
            continue;
        };
        let difference = squares(combine(flat(out), 1.0, &flat(&expected), -1.0));
        if !difference.is_some_and(|difference| difference <= ROUNDING * ROUNDING * size) {
            let name = variant.name();
            tracing::warn!(?shape, variant = name, "a kernel gives another product");
        } else if time < shortest {
            (best, shortest) = (variant, time);
        }
    }
    Some(best)
}

/// The duration of one run, when the kernel is compiled; `None` if it cannot run.
fn timed(variant: Variant, out: &CubeTensor, launch: &Launch<'_>) -> Option<Duration> {
    let run = |count: u32| {
        let started = Instant::now();
        for _ in 0..count {
            launch(variant, out).ok()?;
        }
        block_on(out.client.sync()).ok()?;
        Some(started.elapsed() / count)
    };
    run(1)?;
    let once = run(1)?.max(Duration::from_nanos(1));
    let more = (TIMED.as_nanos() / once.as_nanos()).min(u128::from(RUNS)) as u32;
    match more {
        0 | 1 => Some(once),
        more => run(more),
    }
}

fn flat(buffer: &CubeTensor) -> Tensor<1> {
    let values = buffer.meta.shape().num_elements();
    tensor::<2>(buffer.clone()).reshape([values])
}

fn squares(values: Tensor<1>) -> Option<f32> {
    let sum: Vec<f32> = sum_of_squares(&values).try_into_vec_as().ok()?;
    sum.first().copied()
}

fn read(file: &Path) -> BTreeMap<String, Variant> {
    let names: BTreeMap<String, String> = read_cache(file);
    // What another version of the program knew may be unknown to this one.
    let variants = names
        .into_iter()
        .filter_map(|(class, name)| Some((class, Variant::by_name(&name)?)));
    variants.collect()
}

fn write(file: &Path, variants: &BTreeMap<String, Variant>) -> std::io::Result<()> {
    let names: BTreeMap<_, _> = variants
        .iter()
        .map(|(class, variant)| (class, variant.name()))
        .collect();
    write_cache(file, &names)
}

#[cfg(test)]
mod tests {
    use super::super::super::cube::cube;
    use super::super::super::host::tensor_on;
    use super::*;

    const SINGLE: Operand = Operand {
        half: false,
        transposed: false,
    };

    #[test]
    fn rows_of_about_as_many_tokens_are_one_class() {
        let shape = |m, k, a| Shape {
            m,
            k,
            n: 576,
            a,
            b: Operand {
                half: true,
                transposed: true,
            },
        };
        let class = |m| shape(m, 64, SINGLE).class();
        assert_eq!(class(500).name(), "512x64x576 sht");
        assert_eq!(class(500), class(512));
        assert_ne!(class(512), class(513));
        assert_ne!(class(7), class(8));
        let gradient = Operand {
            transposed: true,
            ..SINGLE
        };
        assert_eq!(shape(8, 500, gradient).class().name(), "8x512x576 stht");
    }

    #[test]
    fn choices_are_kept_and_what_cannot_be_read_is_chosen_again() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("cache").join("products-1.json");
        assert!(read(&file).is_empty());
        let known: BTreeMap<_, _> = [
            ("512x64x576 ss".to_owned(), Variant::DoubleUnit),
            ("512x64x576 hh".to_owned(), Variant::OrderedMatrix8),
        ]
        .into();
        write(&file, &known).unwrap();
        assert_eq!(read(&file), known);
        let of_another_version = r#"{"1x2x3 ss": "unit", "4x5x6 ss": "no-such-variant"}"#;
        std::fs::write(&file, of_another_version).unwrap();
        assert_eq!(
            read(&file).into_values().collect::<Vec<_>>(),
            [Variant::Unit]
        );
        std::fs::write(&file, "{").unwrap();
        assert!(read(&file).is_empty());
    }

    #[test]
    fn gpu_takes_no_variant_that_is_fast_and_wrong() {
        let Some((_, gpu)) = crate::device::gpu_for_tests() else {
            return;
        };
        let matrix = |value: f32| {
            let values = tensor_on(vec![value; 64 * 64], [64, 64], &gpu);
            cube(&values).unwrap()
        };
        let (a, other, nan) = (matrix(0.5), matrix(0.501), matrix(f32::NAN));
        let (shape, out) = (Shape::of(&a, &a), empty(&a, [64, 64]));
        let right = fastest(&shape, &out, &|variant, out| {
            super::super::launch(&a, &a, variant, out)
        });
        assert!(right.is_some());
        let only_first_is_right = fastest(&shape, &out, &|variant, out| {
            let a = if variant == Variant::Unit { &a } else { &other };
            super::super::launch(a, a, variant, out)
        });
        assert_eq!(only_first_is_right, Some(Variant::Unit));
        let nothing_to_compare = fastest(&shape, &out, &|variant, out| {
            super::super::launch(&nan, &a, variant, out)
        });
        assert_eq!(nothing_to_compare, None);
    }

    #[test]
    fn every_variant_has_a_name_of_its_own() {
        for (variant, name) in Variant::ALL {
            assert_eq!(Variant::by_name(name), Some(variant));
            assert_eq!(variant.name(), name);
        }
    }
}
