//! What cubecl may do on its own: nothing but compute.

use cubecl::config::autotune::AutotuneLevel;
use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};

use super::DeviceKind;

/// Installs the configuration of cubecl before it would look for one in the working directory.
/// The environment variables of cubecl still apply; the first call of a process decides.
pub(super) fn configure(kind: DeviceKind) {
    let mut config = CubeClRuntimeConfig::default();
    if kind == DeviceKind::Software {
        // Every other level first measures the peak of the adapter, which takes a minute here, in
        // order to stop timing early; this one only times each variant, and once is enough.
        config.autotune.level = AutotuneLevel::Full;
        config.autotune.bench.min_samples = 1;
        config.autotune.bench.max_samples = 1;
    }
    config.autotune.disable_cache = true;
    config.throughput.disable_cache = true;
    // False if something has configured it before: then that stands.
    let _ = CubeClRuntimeConfig::try_set(config.override_from_env());
}
