//! Time since the run began, across restarts.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use fedllm_shared::Timestamp;

/// Tells the time since the run began. While the process lives it is monotonic; between processes
/// the system's clock is believed, but never backwards beyond the run's beginning.
pub(super) struct Clock {
    started: Instant,
    offset_ms: u64,
}

impl Clock {
    pub(super) fn new(run_started_unix_ms: u64) -> Self {
        Self {
            started: Instant::now(),
            offset_ms: unix_ms().saturating_sub(run_started_unix_ms),
        }
    }

    pub(super) fn now(&self) -> Timestamp {
        Timestamp(self.offset_ms + self.started.elapsed().as_millis() as u64)
    }
}

/// Milliseconds since 1970.
pub(super) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}
