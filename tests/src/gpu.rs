//! The adapter that GPU tests run on.

use fedllm_models::device::{self, DeviceChoice, DeviceInfo};

/// The adapter that `FEDLLM_TEST_GPU` names: `1` for the first one, a software one included, or what
/// `--device` takes. Without the variable there is none, and a line says that the test is skipped.
///
/// # Panics
///
/// If the variable is set and there is no such adapter.
pub fn adapter() -> Option<DeviceInfo> {
    let Ok(wish) = std::env::var("FEDLLM_TEST_GPU") else {
        eprintln!("skipped: set FEDLLM_TEST_GPU=1 to test the GPU");
        return None;
    };
    let devices = device::list();
    let Ok(choice) = wish.parse::<DeviceChoice>();
    match choice.order(&devices) {
        Ok(order) => order.first().map(|info| (*info).clone()),
        Err(error) => panic!("FEDLLM_TEST_GPU is {wish}: {error}"),
    }
}
