//! Numbers at random, as a configuration writes them.

use std::fmt;
use std::str::FromStr;

use rand::{Rng, RngExt};
use rand_distr::{Distribution as _, Exp1, StandardNormal};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A distribution of finite numbers that are not negative.
///
/// ```
/// use fedllm_server::simulate::Distribution;
///
/// let speed: Distribution = "lognormal(900, 0.5)".parse()?;
/// assert_eq!(speed, Distribution::LogNormal { median: 900.0, sigma: 0.5 });
/// assert_eq!("12.5".parse(), Ok(Distribution::Constant(12.5)));
/// assert!("uniform(2, 1)".parse::<Distribution>().is_err());
/// # Ok::<(), fedllm_server::simulate::DistributionError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "String")]
pub enum Distribution {
    /// Always the same: `12.5`.
    Constant(f64),
    /// Any number between two with equal probability: `uniform(0.5, 2)`.
    Uniform {
        /// The smallest.
        low: f64,
        /// The largest.
        high: f64,
    },
    /// One whose logarithm is normal: `lognormal(900, 0.5)`. Two in three are between
    /// `median / exp(sigma)` and `median * exp(sigma)`.
    LogNormal {
        /// Half of them are below.
        median: f64,
        /// Standard deviation of the natural logarithm.
        sigma: f64,
    },
    /// Time until something that can happen at any moment: `exponential(3)`.
    Exponential {
        /// The mean.
        mean: f64,
    },
    /// `normal(10, 2)`, drawn again while it is negative.
    Normal {
        /// The mean, were none drawn again.
        mean: f64,
        /// The standard deviation, were none drawn again.
        deviation: f64,
    },
}

/// Why a text is no distribution.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum DistributionError {
    /// It does not look like one.
    #[error(
        "expected a number, uniform(low, high), lognormal(median, sigma), exponential(mean) or \
         normal(mean, deviation), got {0:?}"
    )]
    Syntax(String),
    /// A parameter is negative, or not finite.
    #[error("{name} must be a finite number from 0, got {got}")]
    Parameter {
        /// Which parameter.
        name: &'static str,
        /// What it is.
        got: f64,
    },
    /// A range is upside down.
    #[error("low must be at most high, got uniform({low}, {high})")]
    Order {
        /// What should be the smaller.
        low: f64,
        /// What should be the larger.
        high: f64,
    },
}

impl Distribution {
    /// One number. The generator moves by as much as the distribution needs.
    pub fn sample(&self, rng: &mut impl Rng) -> f64 {
        let number = match *self {
            Self::Constant(value) => value,
            Self::Uniform { low, high } => low + (high - low) * rng.random::<f64>(),
            Self::LogNormal { median, sigma } => median * (sigma * normal(rng)).exp(),
            Self::Exponential { mean } => {
                let unit: f64 = Exp1.sample(rng);
                mean * unit
            }
            Self::Normal { mean, deviation } => loop {
                // Half of them or more are not negative, since the mean is not.
                let number = mean + deviation * normal(rng);
                if number >= 0.0 {
                    break number;
                }
            },
        };
        number.min(f64::MAX)
    }

    /// Whether it is never anything but 0.
    pub fn is_zero(&self) -> bool {
        match *self {
            Self::Constant(value) => value == 0.0,
            Self::Uniform { high, .. } => high == 0.0,
            Self::LogNormal { median, .. } => median == 0.0,
            Self::Exponential { mean } => mean == 0.0,
            Self::Normal { mean, deviation } => mean == 0.0 && deviation == 0.0,
        }
    }

    fn checked(self) -> Result<Self, DistributionError> {
        let parameters = match self {
            Self::Constant(value) => [("the number", value), ("", 0.0)],
            Self::Uniform { low, high } => [("low", low), ("high", high)],
            Self::LogNormal { median, sigma } => [("median", median), ("sigma", sigma)],
            Self::Exponential { mean } => [("mean", mean), ("", 0.0)],
            Self::Normal { mean, deviation } => [("mean", mean), ("deviation", deviation)],
        };
        for (name, got) in parameters {
            if !(got.is_finite() && got >= 0.0) {
                return Err(DistributionError::Parameter { name, got });
            }
        }
        match self {
            Self::Uniform { low, high } if low > high => {
                Err(DistributionError::Order { low, high })
            }
            checked => Ok(checked),
        }
    }
}

impl FromStr for Distribution {
    type Err = DistributionError;

    fn from_str(text: &str) -> Result<Self, DistributionError> {
        let syntax = || DistributionError::Syntax(text.to_owned());
        let number = |text: &str| text.trim().parse::<f64>().map_err(|_| syntax());
        let Some((name, rest)) = text.split_once('(') else {
            return Self::Constant(number(text)?).checked();
        };
        let inside = rest.trim_end().strip_suffix(')').ok_or_else(syntax)?;
        let numbers = inside
            .split(',')
            .map(number)
            .collect::<Result<Vec<_>, _>>()?;
        let distribution = match (name.trim(), numbers.as_slice()) {
            ("uniform", &[low, high]) => Self::Uniform { low, high },
            ("lognormal", &[median, sigma]) => Self::LogNormal { median, sigma },
            ("exponential", &[mean]) => Self::Exponential { mean },
            ("normal", &[mean, deviation]) => Self::Normal { mean, deviation },
            _ => return Err(syntax()),
        };
        distribution.checked()
    }
}

impl fmt::Display for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Constant(value) => write!(f, "{value}"),
            Self::Uniform { low, high } => write!(f, "uniform({low}, {high})"),
            Self::LogNormal { median, sigma } => write!(f, "lognormal({median}, {sigma})"),
            Self::Exponential { mean } => write!(f, "exponential({mean})"),
            Self::Normal { mean, deviation } => write!(f, "normal({mean}, {deviation})"),
        }
    }
}

/// What a configuration may hold.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "expected a number, or a distribution such as \"uniform(0.5, 2)\""
)]
enum Written {
    Number(f64),
    Text(String),
}

impl TryFrom<Written> for Distribution {
    type Error = DistributionError;

    fn try_from(written: Written) -> Result<Self, DistributionError> {
        match written {
            Written::Number(number) => Self::Constant(number).checked(),
            Written::Text(text) => text.parse(),
        }
    }
}

impl From<Distribution> for String {
    fn from(distribution: Distribution) -> Self {
        distribution.to_string()
    }
}

fn normal(rng: &mut impl Rng) -> f64 {
    StandardNormal.sample(rng)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::seed::generator;

    const TEXTS: [&str; 5] = [
        "12.5",
        "uniform(0.5, 2)",
        "lognormal(900, 0.5)",
        "exponential(3)",
        "normal(10, 2)",
    ];

    fn sorted(text: &str) -> Vec<f64> {
        let distribution: Distribution = text.parse().unwrap();
        let mut rng = generator(1, text, &[]);
        let mut numbers: Vec<f64> = (0..20_000).map(|_| distribution.sample(&mut rng)).collect();
        numbers.sort_by(f64::total_cmp);
        numbers
    }

    #[test]
    fn texts_and_json_round_trip() {
        for text in TEXTS {
            let distribution: Distribution = text.parse().unwrap();
            assert_eq!(distribution.to_string(), text);
            let json = serde_json::to_string(&distribution).unwrap();
            assert_eq!(
                serde_json::from_str::<Distribution>(&json).unwrap(),
                distribution
            );
        }
        let spaced = " uniform( 0.5 ,2 ) ".parse::<Distribution>();
        assert_eq!(spaced, TEXTS[1].parse());
        let number: Distribution = serde_json::from_str("3").unwrap();
        assert_eq!(number, Distribution::Constant(3.0));
    }

    #[test]
    fn what_is_no_distribution_says_what_is_expected() {
        let error = |text: &str| text.parse::<Distribution>().unwrap_err().to_string();
        for wrong in [
            "",
            "fast",
            "gauss(1, 2)",
            "uniform(1)",
            "exponential(1, 2)",
            "normal(1, x)",
        ] {
            let expected = format!(
                "expected a number, uniform(low, high), lognormal(median, sigma), \
                 exponential(mean) or normal(mean, deviation), got {wrong:?}"
            );
            assert_eq!(error(wrong), expected);
        }
        assert_eq!(
            error("-1"),
            "the number must be a finite number from 0, got -1"
        );
        assert_eq!(
            error("lognormal(1, inf)"),
            "sigma must be a finite number from 0, got inf"
        );
        assert_eq!(
            error("nan"),
            "the number must be a finite number from 0, got NaN"
        );
        assert_eq!(
            error("uniform(2, 1)"),
            "low must be at most high, got uniform(2, 1)"
        );
        let error = serde_json::from_str::<Distribution>("true")
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("expected a number, or a distribution such as"),
            "{error}"
        );
    }

    #[test]
    fn quantiles_are_those_of_the_distributions() {
        // At the 10th, 50th and 90th percentile. Of the standard normal these are -1.2816, 0 and
        // 1.2816; of the exponential -ln(1 - p).
        let spread = (0.5 * 1.2816_f64).exp();
        let expected = [
            [12.5, 12.5, 12.5],
            [0.65, 1.25, 1.85],
            [900.0 / spread, 900.0, 900.0 * spread],
            [0.3161, 2.0794, 6.9078],
            [10.0 - 2.0 * 1.2816, 10.0, 10.0 + 2.0 * 1.2816],
        ];
        for (text, expected) in TEXTS.iter().zip(expected) {
            let numbers = sorted(text);
            for (index, expected) in [2000, 10_000, 18_000].into_iter().zip(expected) {
                let ratio = numbers[index] / expected;
                assert!((ratio - 1.0).abs() < 0.06, "{text}: {ratio} at {index}");
            }
        }
    }

    #[test]
    fn nothing_is_negative_or_infinite() {
        for text in [
            "normal(0, 5)",
            "lognormal(1, 1e6)",
            "exponential(1e308)",
            "normal(0, 0)",
        ] {
            let numbers = sorted(text);
            assert!(numbers[0] >= 0.0, "{text}");
            assert!(numbers.iter().all(|number| number.is_finite()), "{text}");
        }
    }
}
