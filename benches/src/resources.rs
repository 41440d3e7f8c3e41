//! What a measurement reads of the machine.

/// The largest resident size of this process so far, in MiB; 0 where the system does not say.
pub fn peak_rss_mib() -> u64 {
    peak_rss_kib() / 1024
}

/// The largest resident size of this process so far, or since [`forget_peak`], in KiB; 0 where the
/// system does not say.
pub fn peak_rss_kib() -> u64 {
    status_kib("VmHWM:")
}

/// The resident size of this process now, in KiB; 0 where the system does not say.
pub fn rss_kib() -> u64 {
    status_kib("VmRSS:")
}

/// Lets the largest resident size begin again from what it is now, where the system can do that.
pub fn forget_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

fn status_kib(key: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0)
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

/// The middle value, or the mean of the two middle ones; 0 of none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len() / 2, sorted.len() % 2) {
        (0, 0) => 0.0,
        (half, 0) => (sorted[half - 1] + sorted[half]) / 2.0,
        (half, _) => sorted[half],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[]), 0.0);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
