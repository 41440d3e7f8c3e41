//! What the user wants, and in which order to try the devices there are.

use std::cmp::Reverse;
use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

use super::{Backend, DeviceError, DeviceInfo, DeviceKind};

/// A wish for a device: `auto`, `cpu`, `gpu`, an index of [`list`](super::list), or part of a name.
///
/// # Examples
///
/// ```
/// use fedllm_models::device::DeviceChoice;
/// let choice: DeviceChoice = "radeon".parse().unwrap();
/// assert_eq!(choice, DeviceChoice::Name("radeon".into()));
/// assert_eq!(DeviceChoice::default().to_string(), "auto");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The best that works: discrete GPU, integrated GPU, CPU.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// The best GPU that works, and an error if none does.
    Gpu,
    /// The device at this position of the list, a software adapter too.
    Index(usize),
    /// The device whose name, backend or kind contains this text, in any case.
    Name(String),
}

impl FromStr for DeviceChoice {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let text = text.trim();
        Ok(match text.to_ascii_lowercase().as_str() {
            "" | "auto" => Self::Auto,
            "cpu" => Self::Cpu,
            "gpu" => Self::Gpu,
            lower => match lower.parse() {
                Ok(index) => Self::Index(index),
                Err(_) => Self::Name(text.to_owned()),
            },
        })
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Gpu => f.write_str("gpu"),
            Self::Index(index) => write!(f, "{index}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl DeviceChoice {
    /// The devices to try, best first. `Auto` always ends with the CPU.
    ///
    /// # Errors
    ///
    /// [`DeviceError::NoMatch`] if no device answers to the wish, [`DeviceError::Ambiguous`] if an
    /// adapter's name does not single one card out (one card behind two interfaces is no doubt: the
    /// preferred interface is taken).
    pub fn order<'a>(&self, devices: &'a [DeviceInfo]) -> Result<Vec<&'a DeviceInfo>, DeviceError> {
        let mut candidates: Vec<&DeviceInfo> = match self {
            Self::Auto => devices
                .iter()
                .filter(|device| device.is_gpu() || device.backend == Backend::Cpu)
                .collect(),
            Self::Cpu => devices
                .iter()
                .filter(|device| device.backend == Backend::Cpu)
                .collect(),
            Self::Gpu => devices.iter().filter(|device| device.is_gpu()).collect(),
            Self::Index(index) => devices
                .iter()
                .filter(|device| device.index == *index)
                .collect(),
            Self::Name(name) => devices
                .iter()
                .filter(|device| answers_to(device, name))
                .collect(),
        };
        candidates.sort_by_key(|device| (Reverse(rank(device)), device.index));
        if let Self::Name(_) = self {
            self.single_card(&mut candidates)?;
        }
        if candidates.is_empty() {
            return Err(DeviceError::NoMatch {
                choice: self.clone(),
                available: named(devices.iter()),
            });
        }
        Ok(candidates)
    }

    fn single_card(&self, candidates: &mut Vec<&DeviceInfo>) -> Result<(), DeviceError> {
        let Some(first) = candidates.first() else {
            return Ok(());
        };
        if candidates.iter().any(|other| !same_card(first, other)) {
            return Err(DeviceError::Ambiguous {
                choice: self.clone(),
                matches: named(candidates.iter().copied()),
            });
        }
        candidates.truncate(1);
        Ok(())
    }
}

/// `index: name` of each, for messages.
fn named<'a>(devices: impl Iterator<Item = &'a DeviceInfo>) -> String {
    let names: Vec<_> = devices
        .map(|device| format!("{}: {device}", device.index))
        .collect();
    names.join(", ")
}

fn answers_to(device: &DeviceInfo, name: &str) -> bool {
    let name = name.to_lowercase();
    device.name.to_lowercase().contains(&name)
        || device.backend.to_string() == name
        || device.kind.to_string() == name
}

fn same_card(one: &DeviceInfo, other: &DeviceInfo) -> bool {
    match (&one.adapter, &other.adapter) {
        (Some(a), Some(b)) => {
            let same_model = (a.vendor, a.device) == (b.vendor, b.device) && one.kind == other.kind;
            let bus_differs = !a.bus.is_empty() && !b.bus.is_empty() && a.bus != b.bus;
            let counted_apart = one.backend == other.backend && a.nth != b.nth;
            same_model && !bus_differs && !counted_apart
        }
        (None, None) => true,
        _ => false,
    }
}

/// Greater is tried earlier: the kind of hardware first, then the interface.
fn rank(device: &DeviceInfo) -> (u8, u8) {
    let kind = match device.kind {
        DeviceKind::Discrete => 5,
        DeviceKind::Integrated => 4,
        DeviceKind::Virtual => 3,
        DeviceKind::Other => 2,
        DeviceKind::Processor => 1,
        DeviceKind::Software => 0,
    };
    let backend = match device.backend {
        Backend::Metal => 3,
        Backend::Vulkan => 2,
        Backend::Dx12 => 1,
        Backend::Cpu => 0,
    };
    (kind, backend)
}

#[cfg(test)]
mod tests {
    use super::super::{AdapterId, Features, Memory};
    use super::*;

    fn device(index: usize, name: &str, backend: Backend, kind: DeviceKind) -> DeviceInfo {
        DeviceInfo {
            index,
            name: name.into(),
            vendor: "Maker".into(),
            backend,
            kind,
            driver: String::new(),
            memory: Memory::default(),
            features: Features::default(),
            adapter: (backend != Backend::Cpu).then(|| AdapterId {
                nth: 0,
                vendor: 1,
                device: name.len() as u32,
                bus: String::new(),
            }),
        }
    }

    fn machine() -> Vec<DeviceInfo> {
        vec![
            device(0, "Processor X", Backend::Cpu, DeviceKind::Processor),
            device(1, "llvmpipe", Backend::Vulkan, DeviceKind::Software),
            device(2, "Small Graphics", Backend::Vulkan, DeviceKind::Integrated),
            device(3, "Big Radeon", Backend::Dx12, DeviceKind::Discrete),
            device(4, "Big Radeon", Backend::Vulkan, DeviceKind::Discrete),
        ]
    }

    fn order(choice: &str) -> Vec<usize> {
        let choice: DeviceChoice = choice.parse().unwrap();
        let machine = machine();
        let order = choice.order(&machine).unwrap();
        order.iter().map(|device| device.index).collect()
    }

    #[test]
    fn automatic_order_is_discrete_integrated_cpu_without_software() {
        assert_eq!(order("auto"), [4, 3, 2, 0]);
        assert_eq!(order("gpu"), [4, 3, 2]);
        assert_eq!(order("CPU"), [0]);
    }

    #[test]
    fn software_is_used_when_named() {
        assert_eq!(order("1"), [1]);
        assert_eq!(order("LLVM"), [1]);
        assert_eq!(order("software"), [1]);
    }

    #[test]
    fn one_card_behind_two_interfaces_is_not_ambiguous() {
        assert_eq!(order("radeon"), [4]);
        assert_eq!(order("3"), [3]);
    }

    #[test]
    fn a_wish_that_nothing_or_too_much_answers_to_is_an_error() {
        let machine = machine();
        let none = DeviceChoice::Index(9).order(&machine);
        assert!(matches!(none, Err(DeviceError::NoMatch { .. })));
        let several = DeviceChoice::Name("vulkan".into()).order(&machine);
        assert!(matches!(several, Err(DeviceError::Ambiguous { .. })));
        let gpu = DeviceChoice::Gpu.order(&machine[..2]);
        assert!(matches!(gpu, Err(DeviceError::NoMatch { .. })));
    }

    #[test]
    fn wishes_round_trip_through_text() {
        for text in ["auto", "cpu", "gpu", "3", "GeForce RTX"] {
            let choice: DeviceChoice = text.parse().unwrap();
            assert_eq!(choice.to_string(), text);
        }
    }
}
