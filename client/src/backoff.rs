//! When to try again: soon at first, ever later, and never all clients at once.

use std::time::Duration;

/// Waiting times that grow exponentially, with full jitter.
///
/// The jitter spreads the clients of a server that comes back; a fixed part would bunch them.
#[derive(Clone, Debug, Default)]
pub struct Backoff {
    attempts: u32,
}

impl Backoff {
    /// The longest wait after the first failure.
    pub const FIRST: Duration = Duration::from_secs(1);
    /// The longest wait after any failure.
    pub const LONGEST: Duration = Duration::from_secs(300);
    /// The shortest wait, so that nobody dials in a loop.
    pub const SHORTEST: Duration = Duration::from_millis(200);

    /// No failure yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// How long to wait after one more failure; `random` is uniform in 0 to 1.
    pub fn next(&mut self, random: f64) -> Duration {
        let doublings = self.attempts.min(16);
        self.attempts = self.attempts.saturating_add(1);
        let longest = (Self::FIRST * 2_u32.pow(doublings)).min(Self::LONGEST);
        longest.mul_f64(random.clamp(0.0, 1.0)).max(Self::SHORTEST)
    }

    /// Begins anew, after a success.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_a_bound_and_begins_anew() {
        let mut backoff = Backoff::new();
        let waits: Vec<u64> = (0..12).map(|_| backoff.next(1.0).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        assert_eq!(backoff.next(0.0), Backoff::SHORTEST);
        for _ in 0..100 {
            assert_eq!(backoff.next(0.5), Duration::from_secs(150));
        }
        backoff.reset();
        assert_eq!(backoff.next(0.5), Duration::from_millis(500));
    }
}
