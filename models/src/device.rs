//! Choosing where tensors live: the CPU, or a GPU that has proved that it computes correctly.
//!
//! The order is: [`list`] what the machine has, [`DeviceChoice::order`] it by the user's wish, probe
//! each candidate in a child process ([`Prober`]), [`open`] the first that passes. [`Prober::select`]
//! does all four. A driver crash cannot be caught, so neither the listing nor the first kernel of an
//! unproven driver happens in the process that holds the user's work.
//!
//! # Which adapter is used
//!
//! burn names a GPU by graphics API, kind and index among the adapters of that kind, in the order in
//! which wgpu enumerates them for that API. [`list`] counts in the same way, [`open`] pins the API,
//! and then compares the adapter behind the opened device (name, ids, bus address, driver) with the
//! one that was listed. So the adapter that was probed is the adapter that trains, and anything else
//! is an error. Sharing a device that we had created ourselves would be as exact, but would have to
//! repeat, with unsafe code, the feature negotiation of the SPIR-V and MSL compilers.
//!
//! # Caches and autotuning
//!
//! cubecl compiles a kernel when it first meets it; drivers keep what they make of it in caches of their
//! own. Of matrix products we time several variants for each class of shapes and keep the best, by
//! adapter, driver and program version, in the directory that the [`Prober`] was given. What burn tunes
//! itself, reductions that training does not use, dies with the process: cubecl's `persistence` would
//! bring an embedded database. cubecl would also read a `cubecl.toml` from the working directory or any
//! of its parents; [`open`] installs the configuration before cubecl looks, so a file that happens to
//! lie there changes nothing. Tuning may pick another variant on another machine, so results on a GPU
//! agree between runs to rounding only; on the CPU they agree exactly.
//!
//! # How a GPU fails
//!
//! - A kernel that does not compile leaves its outputs marked: reading them is an error.
//! - A lost device (reset, time-out, unplugged) fails every later read and [`burn::tensor::Device::sync`].
//! - Memory that could not be allocated is reported by wgpu beside the call, and cubecl's own handler
//!   panics in its device thread, where the panic is caught and logged, and the caller reads zeros.
//!   [`open`] replaces that handler by one that keeps the error for [`sync_checked`].
//!
//! So a training step calls [`sync_checked`] before it believes what it read, or runs inside
//! [`run_checked`], which also turns a panic of a tensor operation into an error.

mod adapters;
mod choice;
mod health;
pub mod probe;
pub mod selftest;
mod tiny;
mod tuning;
mod usage;

use serde::{Deserialize, Serialize};

pub use adapters::{list, open};
pub use choice::DeviceChoice;
pub use health::{run_checked, sync_checked};
pub use probe::{ProbeReport, Prober, Selection, Verdict};
pub use selftest::{Mixed, SelfTest, TinyStep};
pub use tiny::tiny_step;
pub use usage::{DeviceMemory, Usage, free_memory, memory, usage};

/// A device that could hold the model: the CPU or one adapter of a graphics API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// Position in [`list`]; 0 is the CPU.
    pub index: usize,
    /// Name of the card or processor, as its driver gives it.
    pub name: String,
    /// Name of the maker, or its PCI number in hexadecimal.
    pub vendor: String,
    /// The interface through which it is used.
    pub backend: Backend,
    /// What sort of hardware it is.
    pub kind: DeviceKind,
    /// Driver name and version; empty for the CPU.
    pub driver: String,
    /// Memory that it can use.
    pub memory: Memory,
    /// Capabilities that matter to our kernels.
    pub features: Features,
    /// Where the graphics API finds it; `None` for the CPU.
    pub adapter: Option<AdapterId>,
}

impl DeviceInfo {
    /// Whether this is a graphics card, not the CPU and not a program that imitates a card.
    pub fn is_gpu(&self) -> bool {
        self.backend != Backend::Cpu && self.kind != DeviceKind::Software
    }

    /// Text that changes whenever a self-test has to be repeated: adapter, driver, program version
    /// and shader compiler.
    pub fn key(&self) -> String {
        let adapter = match &self.adapter {
            Some(id) => format!("{:04x}:{:04x} {}", id.vendor, id.device, id.bus),
            None => String::new(),
        };
        format!(
            "{}|{}|{adapter}|{}|{}|{}",
            self.backend,
            self.name,
            self.driver,
            env!("CARGO_PKG_VERSION"),
            self.backend.compiler()
        )
    }
}

impl std::fmt::Display for DeviceInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.backend {
            Backend::Cpu => write!(f, "CPU ({})", self.name),
            backend => write!(f, "{} ({backend}, {})", self.name, self.kind),
        }
    }
}

/// The interface through which a device is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Backend {
    /// Our own kernels on the processor.
    Cpu,
    /// Vulkan.
    Vulkan,
    /// Metal, on Apple systems.
    Metal,
    /// Direct3D 12, on Windows.
    Dx12,
}

impl Backend {
    /// The language in which kernels are handed to the driver in this build.
    pub fn compiler(self) -> &'static str {
        match self {
            Self::Cpu => "native",
            Self::Vulkan if cfg!(feature = "vulkan") => "spirv",
            Self::Metal if cfg!(feature = "metal") => "msl",
            Self::Vulkan | Self::Metal | Self::Dx12 => "wgsl",
        }
    }
}

impl std::fmt::Display for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Cpu => "cpu",
            Self::Vulkan => "vulkan",
            Self::Metal => "metal",
            Self::Dx12 => "dx12",
        })
    }
}

/// What sort of hardware a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum DeviceKind {
    /// The processor, used directly.
    Processor,
    /// A card with memory of its own.
    Discrete,
    /// A GPU that shares the processor's memory.
    Integrated,
    /// A GPU passed through or emulated by a virtual machine.
    Virtual,
    /// A program on the processor that imitates a GPU; for tests, never chosen automatically.
    Software,
    /// The driver does not say.
    Other,
}

impl std::fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Processor => "processor",
            Self::Discrete => "discrete",
            Self::Integrated => "integrated",
            Self::Virtual => "virtual",
            Self::Software => "software",
            Self::Other => "other",
        })
    }
}

/// Memory that a device can use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// All of it, in bytes, where the system tells: the graphics interface itself does not.
    pub total_bytes: Option<u64>,
    /// Whether that is the computer's main memory, which other programs use too.
    pub shared: bool,
    /// Size of the largest single buffer, in bytes.
    pub largest_buffer_bytes: u64,
}

/// Capabilities that matter to our kernels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features {
    /// Values can be exchanged within a subgroup of threads.
    pub subgroups: bool,
    /// Kernels can compute with 16-bit floating-point numbers.
    pub f16: bool,
    /// The driver offers matrix units to the graphics interface.
    pub cooperative_matrix: bool,
}

/// Where a graphics API finds an adapter, and how to recognise it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdapterId {
    /// Position among the adapters of the same backend and kind.
    pub nth: usize,
    /// PCI number of the maker.
    pub vendor: u32,
    /// PCI number of the model.
    pub device: u32,
    /// PCI address, or empty where the system does not tell.
    pub bus: String,
}

/// Why a device cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// Nothing on this machine answers to the wish.
    #[error("no device matches `{choice}`; this machine has: {available}")]
    NoMatch {
        /// What was asked for.
        choice: DeviceChoice,
        /// The devices there are.
        available: String,
    },
    /// Several devices answer to the name.
    #[error("`{choice}` matches several devices: {matches}")]
    Ambiguous {
        /// What was asked for.
        choice: DeviceChoice,
        /// The devices that match.
        matches: String,
    },
    /// Every candidate failed its self-test, or was not even tried to the end.
    #[error("no usable device for `{choice}`: {reasons}")]
    NoneUsable {
        /// What was asked for.
        choice: DeviceChoice,
        /// Each candidate with its verdict.
        reasons: String,
    },
    /// The graphics API found the adapter, but gave no device.
    #[error("{name} could not be opened: {reason}")]
    Open {
        /// The device.
        name: String,
        /// The graphics API's own words.
        reason: String,
    },
    /// The opened device is not the one that was listed and tested.
    #[error("asked for {expected}, but the system opened {found}")]
    WrongAdapter {
        /// The device that was asked for.
        expected: String,
        /// The one behind the opened device.
        found: String,
    },
    /// The child process that looks at the devices did not do its work.
    #[error("the device probe failed: {reason}")]
    Probe {
        /// What happened.
        reason: String,
    },
    /// The device has no memory left for what was asked of it.
    #[error("{name} is out of memory")]
    OutOfMemory {
        /// The device.
        name: String,
    },
    /// The device is gone until the program starts again.
    #[error("{name} was lost: {reason}")]
    Lost {
        /// The device.
        name: String,
        /// The driver's own words.
        reason: String,
    },
    /// The device refused some work; what was computed since the last check is worthless.
    #[error("{name} failed: {reason}")]
    Failed {
        /// The device.
        name: String,
        /// What it reported.
        reason: String,
    },
}

/// The GPU to test on: `FEDLLM_TEST_GPU=1` for the first adapter, or what `--device` takes. Without
/// the variable there is none, and the test says that it was skipped.
#[cfg(test)]
pub(crate) fn gpu_for_tests() -> Option<(DeviceInfo, burn::tensor::Device)> {
    let Ok(wish) = std::env::var("FEDLLM_TEST_GPU") else {
        eprintln!("skipped: set FEDLLM_TEST_GPU=1 to test the GPU");
        return None;
    };
    let devices = list();
    let Ok(choice) = wish.parse::<DeviceChoice>();
    let info = choice.order(&devices).unwrap()[0].clone();
    let device = open(&info).unwrap();
    Some((info, device))
}
