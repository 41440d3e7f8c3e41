//! The machines and networks of simulated clients.

mod distribution;

use rand::RngExt;
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use distribution::{Distribution, DistributionError};

use super::seed::generator;

/// The slowest that anything may be, in tokens or bytes a second: a run must end.
const SLOWEST: f64 = 1e-3;

/// What clients' devices are like.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ParkSpec {
    /// Tokens that a device trains on in a second.
    pub tokens_per_second: Distribution,
    /// Bytes that it sends in a second.
    pub uplink: Distribution,
    /// Bytes that it receives in a second.
    pub downlink: Distribution,
    /// Seconds until the first byte of a transfer arrives.
    pub latency: Distribution,
    /// Probability that a client vanishes in a round, 0 to 1.
    pub drop_out: f64,
    /// Probability that a client is slow in a round, 0 to 1.
    pub straggler: f64,
    /// How many times longer a slow client takes to train; below 1 counts as 1.
    pub straggler_slowdown: Distribution,
}

/// Why devices cannot be like this.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum ParkError {
    /// A probability is none.
    #[error("{key} must be a probability from 0 to 1, got {got}")]
    Probability {
        /// Which.
        key: &'static str,
        /// What it is.
        got: f64,
    },
    /// A rate is always 0, so nothing would ever end.
    #[error("{key} must be above 0, got {got}")]
    Rate {
        /// Which.
        key: &'static str,
        /// What it is.
        got: Distribution,
    },
}

/// The devices of all clients.
///
/// Whatever it says follows from the seed, the client and the round alone, in whatever order it is
/// asked.
#[derive(Clone, Debug)]
pub struct DevicePark {
    spec: ParkSpec,
    seed: u64,
}

/// One client's device and network, which stay as they are for the whole run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SimulatedDevice {
    /// Tokens that it trains on in a second.
    pub tokens_per_second: f64,
    /// Bytes that it sends in a second.
    pub uplink: f64,
    /// Bytes that it receives in a second.
    pub downlink: f64,
    /// Seconds until the first byte of a transfer arrives.
    pub latency: f64,
}

impl Default for ParkSpec {
    /// Equal devices that never fail: 1000 tokens and 1.25 MB (10 Mbit) up, 6.25 MB (50 Mbit) down
    /// in a second, 50 ms away; a straggler would take 2 to 10 times as long.
    fn default() -> Self {
        Self {
            tokens_per_second: Distribution::Constant(1000.0),
            uplink: Distribution::Constant(1.25e6),
            downlink: Distribution::Constant(6.25e6),
            latency: Distribution::Constant(0.05),
            drop_out: 0.0,
            straggler: 0.0,
            straggler_slowdown: Distribution::Uniform {
                low: 2.0,
                high: 10.0,
            },
        }
    }
}

impl DevicePark {
    /// The devices that `spec` describes and `seed` picks.
    ///
    /// # Errors
    ///
    /// [`ParkError`] if a value cannot be.
    pub fn new(spec: ParkSpec, seed: u64) -> Result<Self, ParkError> {
        for (key, got) in [("drop_out", spec.drop_out), ("straggler", spec.straggler)] {
            if !(0.0..=1.0).contains(&got) {
                return Err(ParkError::Probability { key, got });
            }
        }
        for (key, got) in [
            ("tokens_per_second", spec.tokens_per_second),
            ("uplink", spec.uplink),
            ("downlink", spec.downlink),
        ] {
            if got.is_zero() {
                return Err(ParkError::Rate { key, got });
            }
        }
        Ok(Self { spec, seed })
    }

    /// The device of a client.
    pub fn device(&self, client: u32) -> SimulatedDevice {
        let sample = |purpose, distribution: Distribution| {
            distribution.sample(&mut generator(self.seed, purpose, &[client.into()]))
        };
        let rate = |purpose, distribution| f64::max(sample(purpose, distribution), SLOWEST);
        SimulatedDevice {
            tokens_per_second: rate("device speed", self.spec.tokens_per_second),
            uplink: rate("device uplink", self.spec.uplink),
            downlink: rate("device downlink", self.spec.downlink),
            latency: sample("device latency", self.spec.latency),
        }
    }

    /// Whether a client vanishes in a round: the share of its training after which it does, from 0
    /// to below 1.
    ///
    /// A round that is opened again, and should go otherwise then, needs another number.
    pub fn drops_out(&self, client: u32, round: u64) -> Option<f64> {
        let mut rng = generator(self.seed, "device drop-out", &[client.into(), round]);
        let chance: f64 = rng.random();
        (chance < self.spec.drop_out).then(|| rng.random())
    }

    /// How many times longer than usual a client takes to train in a round: at least 1.
    pub fn slowdown(&self, client: u32, round: u64) -> f64 {
        let mut rng = generator(self.seed, "device straggler", &[client.into(), round]);
        let chance: f64 = rng.random();
        if chance < self.spec.straggler {
            self.spec.straggler_slowdown.sample(&mut rng).max(1.0)
        } else {
            1.0
        }
    }
}

impl SimulatedDevice {
    /// Seconds to train on `tokens` tokens, at the slowdown of the round.
    pub fn train_seconds(&self, tokens: u64, slowdown: f64) -> f64 {
        tokens as f64 / self.tokens_per_second * slowdown
    }

    /// Seconds to send `bytes` bytes.
    pub fn send_seconds(&self, bytes: u64) -> f64 {
        self.latency + bytes as f64 / self.uplink
    }

    /// Seconds to receive `bytes` bytes.
    pub fn receive_seconds(&self, bytes: u64) -> f64 {
        self.latency + bytes as f64 / self.downlink
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> ParkSpec {
        ParkSpec {
            tokens_per_second: "lognormal(900, 0.5)".parse().unwrap(),
            uplink: "uniform(1e5, 1e6)".parse().unwrap(),
            latency: "exponential(0.1)".parse().unwrap(),
            drop_out: 0.2,
            straggler: 0.1,
            straggler_slowdown: "uniform(0.5, 4)".parse().unwrap(),
            ..ParkSpec::default()
        }
    }

    #[test]
    fn the_order_of_questions_does_not_matter() {
        let park = DevicePark::new(spec(), 3).unwrap();
        let again = DevicePark::new(spec(), 3).unwrap();
        let ask = |park: &DevicePark, client, round| {
            let (drop, slow) = (park.drops_out(client, round), park.slowdown(client, round));
            (drop, slow, park.device(client))
        };
        let forward: Vec<_> = (0..200)
            .map(|index| ask(&park, index / 10, u64::from(index % 10)))
            .collect();
        let mut backward: Vec<_> = (0..200)
            .rev()
            .map(|index| ask(&again, index / 10, u64::from(index % 10)))
            .collect();
        backward.reverse();
        assert_eq!(forward, backward);
    }

    #[test]
    fn seeds_clients_and_rounds_differ() {
        let park = DevicePark::new(spec(), 3).unwrap();
        let other = DevicePark::new(spec(), 4).unwrap();
        assert_ne!(park.device(0), park.device(1));
        assert_ne!(park.device(0), other.device(0));
        let drops = |park: &DevicePark, client| -> Vec<_> {
            (0..50).map(|round| park.drops_out(client, round)).collect()
        };
        assert_ne!(drops(&park, 0), drops(&park, 1));
        assert_ne!(drops(&park, 0), drops(&other, 0));
        assert!(drops(&park, 0).windows(2).any(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn clients_drop_and_straggle_as_often_as_asked() {
        let park = DevicePark::new(spec(), 9).unwrap();
        let rounds = || (0..10_000).map(|index| (index % 100, u64::from(index / 100)));
        let dropped: Vec<f64> = rounds().filter_map(|(c, r)| park.drops_out(c, r)).collect();
        assert!((1850..2150).contains(&dropped.len()), "{}", dropped.len());
        assert!(dropped.iter().all(|share| (0.0..1.0).contains(share)));
        let mean = dropped.iter().sum::<f64>() / dropped.len() as f64;
        assert!((mean - 0.5).abs() < 0.03, "{mean}");
        let slow = |(c, r)| park.slowdown(c, r);
        assert!(
            rounds()
                .map(slow)
                .all(|slowdown| (1.0..=4.0).contains(&slowdown))
        );
        // A tenth straggle, and 1/7 of those are drawn below 1.
        let slow = rounds()
            .map(slow)
            .filter(|slowdown| *slowdown > 1.0)
            .count();
        assert!((760..960).contains(&slow), "{slow}");
    }

    #[test]
    fn probabilities_of_nought_and_one_are_certain() {
        let certain = |drop_out, straggler| {
            let spec = ParkSpec {
                drop_out,
                straggler,
                ..ParkSpec::default()
            };
            DevicePark::new(spec, 0).unwrap()
        };
        let (never, always) = (certain(0.0, 0.0), certain(1.0, 1.0));
        for round in 0..1000 {
            assert_eq!(
                (never.drops_out(1, round), never.slowdown(1, round)),
                (None, 1.0)
            );
            assert!(always.drops_out(1, round).is_some() && always.slowdown(1, round) >= 2.0);
        }
    }

    #[test]
    fn times_are_latency_and_size_over_rate() {
        let device = DevicePark::new(ParkSpec::default(), 0).unwrap().device(7);
        assert_eq!(device.train_seconds(5000, 2.0), 10.0);
        assert_eq!(device.send_seconds(1_250_000), 1.05);
        assert_eq!(device.receive_seconds(0), 0.05);
    }

    #[test]
    fn a_park_that_cannot_be_is_refused() {
        let error = |spec| DevicePark::new(spec, 0).unwrap_err().to_string();
        let spec = ParkSpec {
            drop_out: 1.5,
            ..ParkSpec::default()
        };
        assert_eq!(
            error(spec),
            "drop_out must be a probability from 0 to 1, got 1.5"
        );
        let spec = ParkSpec {
            straggler: f64::NAN,
            ..ParkSpec::default()
        };
        assert_eq!(
            error(spec),
            "straggler must be a probability from 0 to 1, got NaN"
        );
        let uplink = "uniform(0, 0)".parse().unwrap();
        let spec = ParkSpec {
            uplink,
            ..ParkSpec::default()
        };
        assert_eq!(error(spec), "uplink must be above 0, got uniform(0, 0)");
    }

    #[test]
    fn a_spec_reads_numbers_and_texts() {
        let json = r#"{"tokens_per_second": 500, "uplink": "exponential(1e6)", "drop_out": 0.1}"#;
        let spec: ParkSpec = serde_json::from_str(json).unwrap();
        assert_eq!(spec.tokens_per_second, Distribution::Constant(500.0));
        assert_eq!(spec.downlink, ParkSpec::default().downlink);
        let error = serde_json::from_str::<ParkSpec>(r#"{"speed": 1}"#).unwrap_err();
        assert!(error.to_string().contains("`speed`"), "{error}");
    }
}
