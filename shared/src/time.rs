//! Time as this crate knows it: told, never read.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Milliseconds since the run began.
///
/// The host reads the clock and passes the time in, so that tests and
/// simulations decide what time it is.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The beginning of the run.
    pub const ZERO: Self = Self(0);

    /// The time from `earlier` until now, zero if that lies ahead.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(millis(duration)))
    }
}

impl Sub for Timestamp {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        self.since(earlier)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03} s", self.0 / 1000, self.0 % 1000)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates() {
        let later = Timestamp(1500) + Duration::from_secs(2);
        assert_eq!(later, Timestamp(3500));
        assert_eq!(later - Timestamp(500), Duration::from_secs(3));
        assert_eq!(Timestamp(1) - Timestamp(2), Duration::ZERO);
        assert_eq!(Timestamp(1) + Duration::MAX, Timestamp(u64::MAX));
        assert_eq!(later.to_string(), "3.500 s");
    }
}
