//! What a measurement reads of the machine.

use fedllm_models::measure::resident;

/// The largest resident size of this process so far, in MiB; 0 where the system does not say.
pub fn peak_rss_mib() -> u64 {
    peak_rss_kib() / 1024
}

/// The largest resident size of this process so far, or since [`forget_peak`], in KiB; 0 where the
/// system does not say.
pub fn peak_rss_kib() -> u64 {
    resident().map_or(0, |resident| resident.peak_kib)
}

/// The resident size of this process now, in KiB; 0 where the system does not say.
pub fn rss_kib() -> u64 {
    resident().map_or(0, |resident| resident.now_kib)
}

/// Lets the largest resident size begin again from what it is now, where the system can do that.
pub fn forget_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// The CPU seconds that the threads of this process have used so far, to the nanosecond; 0 where
/// the system does not say. Threads that have ended do not count.
pub fn cpu_seconds() -> f64 {
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else {
        return 0.0;
    };
    let nanoseconds = |thread: std::fs::DirEntry| {
        let path = thread.path().join("schedstat");
        let text = std::fs::read_to_string(path).ok()?;
        text.split_whitespace().next()?.parse::<f64>().ok()
    };
    let used: f64 = threads.flatten().filter_map(nanoseconds).sum();
    used / 1e9
}
