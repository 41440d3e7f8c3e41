//! What work costs a GPU: the kernels it launches, and the memory it needs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{Device, Tensor};
use burn_cubecl::CubeBackend;
use cubecl::MemoryScope;
use cubecl::client::Client;
use cubecl::logging::{LaunchObservation, LaunchObserver};

use super::DeviceInfo;
use super::adapters::main_memory;

/// Memory of a GPU that this process holds, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceMemory {
    /// In tensors that are alive.
    pub in_use: u64,
    /// Taken from the driver; what is not in use serves the next tensors.
    pub reserved: u64,
}

/// The memory held now; `None` for the CPU.
pub fn memory(device: &Device) -> Option<DeviceMemory> {
    client(device).map(|client| held(&client))
}

/// Memory, in bytes, that work on a device can still have, where the system tells: of a card with
/// memory of its own what this process has not taken, else what the computer has left.
pub fn free_memory(info: &DeviceInfo, device: &Device) -> Option<u64> {
    if info.memory.shared {
        return main_memory("MemAvailable:");
    }
    let taken = memory(device).unwrap_or_default().reserved;
    Some(info.memory.total_bytes?.saturating_sub(taken))
}

/// What some work did to a GPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// How often each kernel was launched, by its full name.
    pub launches: BTreeMap<&'static str, u64>,
    /// The most memory that was held at any launch; zero for the CPU.
    pub peak: DeviceMemory,
}

impl Usage {
    /// Launches of all kernels.
    pub fn dispatches(&self) -> u64 {
        self.launches.values().sum()
    }
}

/// Runs `work` and says what it did to the device. To look at the memory it waits at each launch
/// until the launches before have been recorded, so time is not measured with it. The first run of
/// a shape also launches and feeds the candidates of autotuning.
///
/// Launches are counted in the whole process, memory on this device.
pub fn usage<R>(device: &Device, work: impl FnOnce() -> R) -> (R, Usage) {
    let watch = Arc::new(Watch {
        client: client(device),
        seen: Mutex::default(),
    });
    let observation = LaunchObservation::new(watch.clone());
    let result = work();
    drop(observation);
    let mut seen = watch.seen.lock().unwrap_or_else(PoisonError::into_inner);
    (result, std::mem::take(&mut seen))
}

struct Watch {
    client: Option<Client>,
    seen: Mutex<Usage>,
}

impl LaunchObserver for Watch {
    fn launched(&self, kernel: &'static str) {
        let now = self.client.as_ref().map(held).unwrap_or_default();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        *seen.launches.entry(kernel).or_default() += 1;
        seen.peak.in_use = seen.peak.in_use.max(now.in_use);
        seen.peak.reserved = seen.peak.reserved.max(now.reserved);
    }
}

/// The way to a device's allocator.
fn client(device: &Device) -> Option<Client> {
    let tensor = Tensor::<1>::empty([1], device);
    let buffer = tensor.try_into_primitive::<CubeBackend>().ok()?;
    Some(buffer.client)
}

fn held(client: &Client) -> DeviceMemory {
    let usage = client.memory_report(MemoryScope::Device).usage();
    DeviceMemory {
        in_use: usage.bytes_in_use,
        reserved: usage.bytes_reserved,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_launches_nothing_and_has_no_memory_of_its_own() {
        let cpu = Device::flex();
        let (sum, usage) = usage(&cpu, || Tensor::<1>::ones([3], &cpu).sum().into_scalar());
        assert_eq!((3.0f32, Usage::default()), (sum, usage));
        assert_eq!(memory(&cpu), None);
    }
}
