//! Errors that a GPU reports beside the call that caused them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::tensor::wgpu::WgpuSetup;
use burn::tensor::{Device, ExecutionError};

use super::{DeviceError, DeviceInfo};

/// Waits until the device has done all work, and reports what went wrong since the last check.
///
/// After [`DeviceError::OutOfMemory`] and [`DeviceError::Failed`] the device can be used further,
/// but every value computed since the last check is worthless. After [`DeviceError::Lost`] it
/// cannot be used again by this process. On the CPU nothing can go wrong here.
///
/// A kernel that could not be compiled is not reported here but by the read of its output, which is
/// why results are read with burn's `try_into_data`.
///
/// # Errors
///
/// The first error since the last check.
pub fn sync_checked(device: &Device) -> Result<(), DeviceError> {
    let synced = device.sync();
    let Some((name, health)) = find(device) else {
        return synced.map_err(|error| failed(&device_name(device), &error));
    };
    if let Some(fault) = health.take() {
        return Err(fault.into_error(name));
    }
    synced.map_err(|error| failed(&name, &error))
}

/// Runs `work` and then [`sync_checked`]; a panic in a tensor operation becomes an error too.
///
/// # Errors
///
/// The error of the device, or [`DeviceError::Failed`] with the panic's message.
pub fn run_checked<T>(device: &Device, work: impl FnOnce() -> T) -> Result<T, DeviceError> {
    // Safe to assert: after a panic only the error leaves this function, and a caller that goes on
    // with tensors it had before reads buffers that are whole or marked as failed by the device.
    let outcome = catch_unwind(AssertUnwindSafe(work));
    match (outcome, sync_checked(device)) {
        (Ok(value), Ok(())) => Ok(value),
        (_, Err(error)) => Err(error),
        (Err(panic), Ok(())) => Err(DeviceError::Failed {
            name: find(device).map_or_else(|| device_name(device), |(name, _)| name),
            reason: panic_message(panic.as_ref()),
        }),
    }
}

/// The message of a caught panic.
pub(super) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_owned(),
        (_, Some(text)) => text.clone(),
        _ => "an operation panicked".to_owned(),
    }
}

/// What one open device has reported, shared with the handler that wgpu calls.
#[derive(Clone, Debug, Default)]
pub(super) struct Health(Arc<Mutex<Option<Fault>>>);

#[derive(Clone, Debug)]
enum Fault {
    OutOfMemory,
    Other(String),
}

impl Health {
    /// Keeps uncaptured errors of the device instead of letting them panic in the device thread.
    pub(super) fn watch(setup: &WgpuSetup) -> Self {
        let health = Self::default();
        let reported = health.clone();
        setup
            .device
            .on_uncaptured_error(Arc::new(move |error| reported.report(&error)));
        health
    }

    fn report(&self, error: &wgpu::Error) {
        tracing::error!(%error, "the GPU reported an error");
        let fault = match error {
            wgpu::Error::OutOfMemory { .. } => Fault::OutOfMemory,
            other => Fault::Other(other.to_string()),
        };
        // The first error is the cause; later ones follow from it.
        self.lock().get_or_insert(fault);
    }

    fn take(&self) -> Option<Fault> {
        self.lock().take()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Fault>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fault {
    fn into_error(self, name: String) -> DeviceError {
        match self {
            Self::OutOfMemory => DeviceError::OutOfMemory { name },
            Self::Other(reason) => DeviceError::Failed { name, reason },
        }
    }
}

/// The GPUs that this process has opened. burn opens each only once.
static OPENED: Mutex<Vec<Opened>> = Mutex::new(Vec::new());

struct Opened {
    key: String,
    nth: Option<usize>,
    name: String,
    device: Device,
    health: Health,
}

fn all_opened() -> MutexGuard<'static, Vec<Opened>> {
    OPENED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The device that was opened for `info` before.
pub(super) fn opened(info: &DeviceInfo) -> Option<Device> {
    let nth = info.adapter.as_ref().map(|id| id.nth);
    all_opened()
        .iter()
        .find(|known| known.key == info.key() && known.nth == nth)
        .map(|known| known.device.clone())
}

/// Remembers an opened device, and returns it.
pub(super) fn register(info: &DeviceInfo, device: Device, health: Health) -> Device {
    all_opened().push(Opened {
        key: info.key(),
        nth: info.adapter.as_ref().map(|id| id.nth),
        name: info.to_string(),
        device: device.clone(),
        health,
    });
    device
}

fn find(device: &Device) -> Option<(String, Health)> {
    all_opened()
        .iter()
        .find(|known| known.device == *device)
        .map(|known| (known.name.clone(), known.health.clone()))
}

fn device_name(device: &Device) -> String {
    format!("{device:?}")
}

fn failed(name: &str, error: &ExecutionError) -> DeviceError {
    let name = name.to_owned();
    match error {
        ExecutionError::DevicePoisoned { reason } => DeviceError::Lost {
            name,
            reason: first_line(reason),
        },
        ExecutionError::WithContext { reason } | ExecutionError::Generic { reason, .. } => {
            DeviceError::Failed {
                name,
                reason: first_line(reason),
            }
        }
    }
}

/// Without the backtrace that follows.
fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_on_the_cpu_passes_through() {
        let device = Device::flex();
        assert_eq!(run_checked(&device, || 7), Ok(7));
        assert_eq!(sync_checked(&device), Ok(()));
    }

    #[test]
    fn a_panic_becomes_an_error_with_its_message() {
        let error = run_checked(&Device::flex(), || -> u8 { panic!("shapes differ") }).unwrap_err();
        assert!(matches!(error, DeviceError::Failed { reason, .. } if reason == "shapes differ"));
    }

    #[test]
    fn the_first_fault_is_kept_and_reported_once() {
        let health = Health::default();
        health.report(&wgpu::Error::OutOfMemory {
            source: Box::new(std::io::Error::other("heap")),
        });
        health.report(&wgpu::Error::Validation {
            source: Box::new(std::io::Error::other("buffer")),
            description: "invalid buffer".into(),
        });
        assert!(matches!(health.take(), Some(Fault::OutOfMemory)));
        assert!(health.take().is_none());
    }

    #[test]
    fn a_poisoned_device_is_lost() {
        let error = failed(
            "card",
            &ExecutionError::DevicePoisoned {
                reason: "reset\nBacktrace:\n0".into(),
            },
        );
        assert_eq!(
            error,
            DeviceError::Lost {
                name: "card".into(),
                reason: "reset".into()
            }
        );
    }
}
