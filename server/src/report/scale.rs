//! Axes: where values are drawn, and which of them are written.

/// A range of values and the round numbers in it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Scale {
    low: f64,
    high: f64,
    /// The values that are written at the axis, in rising order.
    pub(crate) ticks: Vec<f64>,
    decimals: usize,
}

impl Scale {
    /// A scale from `low` to `high` with about `count` ticks. A range of nothing is widened.
    pub(crate) fn new(low: f64, high: f64, count: usize) -> Self {
        let (low, high) = widened(low, high);
        Self::with_step(low, high, step(low, high, count))
    }

    /// A scale of whole numbers, as of rounds.
    pub(crate) fn whole(low: f64, high: f64, count: usize) -> Self {
        let (low, high) = if high > low {
            (low, high)
        } else {
            (low - 0.5, high + 0.5)
        };
        Self::with_step(low, high, step(low, high, count).max(1.0))
    }

    fn with_step(low: f64, high: f64, step: f64) -> Self {
        let first = (low / step - 1e-9).ceil();
        let count = ((high / step + 1e-9).floor() - first).max(0.0) as usize;
        // Adding 0 makes a negative nought positive.
        let ticks = (0..=count).map(|index| (first + index as f64) * step + 0.0);
        Self {
            low,
            high,
            ticks: ticks.collect(),
            decimals: (-(step.log10() + 1e-9).floor()).clamp(0.0, 12.0) as usize,
        }
    }

    /// Where a value is: 0 at the low end, 1 at the high one.
    pub(crate) fn position(&self, value: f64) -> f64 {
        (value - self.low) / (self.high - self.low)
    }

    /// A tick as text.
    pub(crate) fn text(&self, tick: f64) -> String {
        format!("{tick:.0$}", self.decimals)
    }
}

/// The smallest of 1, 2 and 5 times a power of ten that makes at most `count` steps of a range.
fn step(low: f64, high: f64, count: usize) -> f64 {
    let rough = (high - low) / count.max(1) as f64;
    let power = 10f64.powf(rough.log10().floor());
    let steps = [1.0, 2.0, 5.0].map(|factor| factor * power);
    let fitting = steps.into_iter().find(|step| *step >= rough * (1.0 - 1e-9));
    fitting.unwrap_or(10.0 * power)
}

fn widened(low: f64, high: f64) -> (f64, f64) {
    let size = f64::max(low.abs(), high.abs());
    if high - low > size * 1e-9 {
        return (low, high);
    }
    let half = if size > 0.0 { size * 0.1 } else { 1.0 };
    (low - half, high + half)
}

/// The smallest and the largest of finite values.
pub(crate) fn extent(values: impl IntoIterator<Item = f64>) -> Option<(f64, f64)> {
    let finite = values.into_iter().filter(|value| value.is_finite());
    finite.fold(None, |range, value| {
        let (low, high) = range.unwrap_or((value, value));
        Some((low.min(value), high.max(value)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(scale: &Scale) -> Vec<String> {
        scale.ticks.iter().map(|tick| scale.text(*tick)).collect()
    }

    #[test]
    fn ticks_are_round_numbers_within_the_range() {
        assert_eq!(
            texts(&Scale::new(0.0, 1.0, 5)),
            ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
        );
        assert_eq!(
            texts(&Scale::new(0.13, 0.92, 4)),
            ["0.2", "0.4", "0.6", "0.8"]
        );
        assert_eq!(
            texts(&Scale::new(-30.0, 70.0, 5)),
            ["-20", "0", "20", "40", "60"]
        );
        assert_eq!(
            texts(&Scale::new(1.234, 1.238, 4)),
            ["1.234", "1.235", "1.236", "1.237", "1.238"]
        );
        assert_eq!(texts(&Scale::whole(1.0, 3.0, 8)), ["1", "2", "3"]);
        assert_eq!(
            texts(&Scale::whole(1.0, 500.0, 6)),
            ["100", "200", "300", "400", "500"]
        );
    }

    #[test]
    fn positions_go_from_nought_to_one() {
        let scale = Scale::new(2.0, 4.0, 5);
        assert_eq!(
            [2.0, 3.0, 4.0].map(|value| scale.position(value)),
            [0.0, 0.5, 1.0]
        );
    }

    #[test]
    fn a_range_of_nothing_is_widened() {
        for value in [0.0, 1e-4, -3.0, 1e12] {
            let scale = Scale::new(value, value, 5);
            let middle = scale.position(value);
            assert!(
                (middle - 0.5).abs() < 1e-9 && !scale.ticks.is_empty(),
                "{value}"
            );
        }
        assert_eq!(texts(&Scale::whole(1.0, 1.0, 8)), ["1"]);
    }

    #[test]
    fn any_range_has_few_ticks() {
        for exponent in -12..12 {
            for factor in [1.0, 1.7, 3.3, 9.9] {
                let high = factor * 10f64.powi(exponent);
                let ticks = Scale::new(high * -0.3, high, 6).ticks;
                assert!((2..=8).contains(&ticks.len()), "{high}: {ticks:?}");
            }
        }
    }

    #[test]
    fn the_extent_ignores_what_is_not_finite() {
        assert_eq!(
            extent([3.0, f64::NAN, -1.0, f64::INFINITY]),
            Some((-1.0, 3.0))
        );
        assert_eq!(extent([f64::NAN]), None);
    }
}
