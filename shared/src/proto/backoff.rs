//! How long to wait before trying again.

use std::time::Duration;

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::seed::derive;

/// Waits of random length whose upper end doubles from 2 s to 5 minutes.
///
/// The whole range from 1 s is used, so that clients that lost their server
/// at one moment do not come back at one moment.
#[derive(Clone, Debug)]
pub struct Backoff {
    rng: ChaCha8Rng,
    attempt: u32,
}

impl Backoff {
    /// The shortest wait.
    pub const MIN: Duration = Duration::from_secs(1);
    /// The longest wait.
    pub const MAX: Duration = Duration::from_secs(300);

    /// Waits that follow from `seed`; each client should have its own.
    pub fn new(seed: u64) -> Self {
        let rng = ChaCha8Rng::from_seed(derive(seed, "backoff", &[]));
        Self { rng, attempt: 0 }
    }

    /// The next wait.
    pub fn next_wait(&mut self) -> Duration {
        self.attempt = (self.attempt + 1).min(16);
        let high = Self::MIN.saturating_mul(1 << self.attempt).min(Self::MAX);
        let share = self.rng.next_u32() as f64 / f64::from(u32::MAX);
        Self::MIN + (high - Self::MIN).mul_f64(share)
    }

    /// Begins again with short waits: the last try succeeded.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_stay_in_bounds_and_differ_between_clients() {
        let (mut one, mut other) = (Backoff::new(1), Backoff::new(2));
        let mut longest = Duration::ZERO;
        let mut same = 0;
        for attempt in 1..100u32 {
            let wait = one.next_wait();
            let high = Backoff::MAX.min(Duration::from_secs(1 << attempt.min(20)));
            assert!((Backoff::MIN..=high).contains(&wait), "{attempt} {wait:?}");
            longest = longest.max(wait);
            same += u32::from(wait == other.next_wait());
        }
        assert!(longest > Duration::from_secs(240));
        assert!(same < 2);
        one.reset();
        assert!(one.next_wait() <= Duration::from_secs(2));
    }

    #[test]
    fn waits_follow_from_the_seed() {
        let waits = |seed| {
            let mut backoff = Backoff::new(seed);
            std::array::from_fn::<_, 8, _>(|_| backoff.next_wait())
        };
        assert_eq!(waits(7), waits(7));
    }
}
