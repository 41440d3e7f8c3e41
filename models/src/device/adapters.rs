//! The devices of this machine, and opening one of them.

use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::tensor::wgpu::{WgpuBackend, WgpuSetup};
use burn::tensor::{Device, DeviceKind as Selector};
use cubecl::future::block_on;

use super::health::{self, Health};
use super::tuning;
use super::{AdapterId, Backend, DeviceError, DeviceInfo, DeviceKind, Features, Memory};
use crate::ops::mark_software;

/// The graphics APIs we use, best first. OpenGL is left out: it has no compute worth the name.
const APIS: [(Backend, wgpu::Backend, WgpuBackend); 3] = [
    (Backend::Metal, wgpu::Backend::Metal, WgpuBackend::Metal),
    (Backend::Vulkan, wgpu::Backend::Vulkan, WgpuBackend::Vulkan),
    (Backend::Dx12, wgpu::Backend::Dx12, WgpuBackend::Dx12),
];

/// The CPU and every adapter of every graphics API in this build. One card appears once for each
/// API that reaches it.
///
/// Drivers run inside this call and may crash the process; [`Prober::list`](super::Prober::list)
/// calls it in a child process.
pub fn list() -> Vec<DeviceInfo> {
    let _lock = graphics_lock();
    let mut devices = vec![cpu()];
    for (backend, api, _) in APIS {
        for adapter in adapters(api) {
            let nth = devices
                .iter()
                .filter(|device| device.backend == backend && device.kind == kind(&adapter.0))
                .count();
            devices.push(describe(devices.len(), backend, nth, &adapter));
        }
    }
    devices
}

/// Opens a device that [`list`] returned; a second call returns the same device.
///
/// The GPU is used without any further proof: call it after a self-test in a child process.
///
/// # Errors
///
/// [`DeviceError::Open`] if the driver refuses, [`DeviceError::WrongAdapter`] if the adapters have
/// changed since they were listed.
pub fn open(info: &DeviceInfo) -> Result<Device, DeviceError> {
    let Some(id) = &info.adapter else {
        return Ok(Device::flex());
    };
    let _lock = graphics_lock();
    if let Some(device) = health::opened(info) {
        return Ok(device);
    }
    tuning::configure(info.kind);
    let (device, setup) = Device::wgpu_options()
        .graphics_api(burn_api(info.backend))
        .device_kind(selector(info, id)?)
        .init_with_setup()
        .map_err(|error| refused(info, &error))?;
    verify(info, id, &setup)?;
    if info.kind == DeviceKind::Software {
        mark_software(&device);
    }
    Ok(health::register(info, device, Health::watch(&setup)))
}

/// The Vulkan loader crashes when instances come and go on several threads at once.
static GRAPHICS: Mutex<()> = Mutex::new(());

fn graphics_lock() -> MutexGuard<'static, ()> {
    GRAPHICS.lock().unwrap_or_else(PoisonError::into_inner)
}

type Adapter = (wgpu::AdapterInfo, wgpu::Features, wgpu::Limits);

fn adapters(api: wgpu::Backend) -> Vec<Adapter> {
    if !wgpu::Instance::enabled_backend_features().contains(api.into()) {
        return Vec::new();
    }
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: api.into(),
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    block_on(instance.enumerate_adapters(api.into()))
        .iter()
        .map(|adapter| (adapter.get_info(), adapter.features(), adapter.limits()))
        .collect()
}

fn describe(
    index: usize,
    backend: Backend,
    nth: usize,
    (info, features, limits): &Adapter,
) -> DeviceInfo {
    let kind = kind(info);
    DeviceInfo {
        index,
        name: info.name.clone(),
        vendor: vendor(info.vendor),
        backend,
        kind,
        driver: format!("{} {}", info.driver, info.driver_info)
            .trim()
            .to_owned(),
        memory: memory(kind, &info.device_pci_bus_id, limits),
        features: Features {
            subgroups: features.contains(wgpu::Features::SUBGROUP),
            f16: features.contains(wgpu::Features::SHADER_F16),
            cooperative_matrix: features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX),
        },
        adapter: Some(AdapterId {
            nth,
            vendor: info.vendor,
            device: info.device,
            bus: info.device_pci_bus_id.clone(),
        }),
    }
}

fn kind(info: &wgpu::AdapterInfo) -> DeviceKind {
    match info.device_type {
        wgpu::DeviceType::DiscreteGpu => DeviceKind::Discrete,
        wgpu::DeviceType::IntegratedGpu => DeviceKind::Integrated,
        wgpu::DeviceType::VirtualGpu => DeviceKind::Virtual,
        wgpu::DeviceType::Cpu => DeviceKind::Software,
        wgpu::DeviceType::Other => DeviceKind::Other,
    }
}

fn burn_api(backend: Backend) -> WgpuBackend {
    APIS.iter()
        .find(|(ours, ..)| *ours == backend)
        .map_or(WgpuBackend::Auto, |(_, _, api)| *api)
}

/// burn's name of the adapter: `nth` of its kind.
fn selector(info: &DeviceInfo, id: &AdapterId) -> Result<Selector, DeviceError> {
    match info.kind {
        DeviceKind::Discrete => Ok(Selector::DiscreteGpu(id.nth)),
        DeviceKind::Integrated => Ok(Selector::IntegratedGpu(id.nth)),
        DeviceKind::Virtual => Ok(Selector::VirtualGpu(id.nth)),
        // burn counts only one of these.
        DeviceKind::Software if id.nth == 0 => Ok(Selector::Cpu),
        kind => Err(DeviceError::Open {
            name: info.name.clone(),
            reason: format!("{kind} adapter number {} cannot be addressed", id.nth + 1),
        }),
    }
}

fn refused(info: &DeviceInfo, error: &dyn std::error::Error) -> DeviceError {
    DeviceError::Open {
        name: info.to_string(),
        reason: error.to_string(),
    }
}

fn verify(info: &DeviceInfo, id: &AdapterId, setup: &WgpuSetup) -> Result<(), DeviceError> {
    let found = setup.adapter.get_info();
    let same = found.name == info.name
        && kind(&found) == info.kind
        && (found.vendor, found.device) == (id.vendor, id.device)
        && found.device_pci_bus_id == id.bus
        && APIS.contains(&(info.backend, found.backend, burn_api(info.backend)));
    if same {
        return Ok(());
    }
    Err(DeviceError::WrongAdapter {
        expected: info.to_string(),
        found: format!("{} ({})", found.name, found.backend),
    })
}

fn vendor(id: u32) -> String {
    let name = match id {
        0x1002 | 0x1022 => "AMD",
        0x106b => "Apple",
        0x10de => "NVIDIA",
        0x13b5 => "Arm",
        0x1414 => "Microsoft",
        0x1ae0 => "Google",
        0x1010 => "Imagination",
        0x5143 => "Qualcomm",
        0x8086 => "Intel",
        0x10005 => "Mesa",
        0 => "",
        other => return format!("{other:#06x}"),
    };
    name.to_owned()
}

fn memory(kind: DeviceKind, bus: &str, limits: &wgpu::Limits) -> Memory {
    let shared = matches!(kind, DeviceKind::Integrated | DeviceKind::Software);
    let total_bytes = if shared {
        main_memory("MemTotal:")
    } else {
        card_memory(bus)
    };
    Memory {
        total_bytes,
        shared,
        largest_buffer_bytes: limits
            .max_buffer_size
            .min(limits.max_storage_buffer_binding_size),
    }
}

/// What the Linux kernel says of a card at this PCI address; not every driver tells it.
fn card_memory(bus: &str) -> Option<u64> {
    if bus.is_empty()
        || !bus
            .chars()
            .all(|c| c.is_ascii_hexdigit() || ":.".contains(c))
    {
        return None;
    }
    std::fs::read_to_string(format!("/sys/bus/pci/devices/{bus}/mem_info_vram_total"))
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// What the Linux kernel says of main memory under a name with its colon, in bytes.
pub(super) fn main_memory(name: &str) -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find(|line| line.starts_with(name))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

pub(super) fn cpu() -> DeviceInfo {
    DeviceInfo {
        index: 0,
        name: processor_name(),
        vendor: String::new(),
        backend: Backend::Cpu,
        kind: DeviceKind::Processor,
        driver: String::new(),
        memory: Memory {
            total_bytes: main_memory("MemTotal:"),
            shared: true,
            largest_buffer_bytes: isize::MAX as u64,
        },
        features: Features::default(),
        adapter: None,
    }
}

fn processor_name() -> String {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let model = std::fs::read_to_string("/proc/cpuinfo")
        .ok()
        .and_then(|info| {
            let line = info.lines().find(|line| line.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        })
        .unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    format!("{model}, {threads} threads")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_first_and_opens() {
        let cpu = cpu();
        assert_eq!((cpu.index, cpu.is_gpu()), (0, false));
        assert_eq!(open(&cpu).unwrap(), Device::flex());
    }

    #[test]
    fn a_bus_address_that_is_no_address_is_not_looked_up() {
        assert_eq!(card_memory("../../../etc"), None);
        assert_eq!(card_memory(""), None);
    }

    #[test]
    fn unknown_makers_keep_their_number() {
        assert_eq!(vendor(0x10de), "NVIDIA");
        assert_eq!(vendor(0x1234), "0x1234");
    }
}
