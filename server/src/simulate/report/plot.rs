//! Line plots as SVG: readable on a screen, in print, without colour, and by a screen reader.

use std::fmt::Write as _;

use super::frame::Frame;
use crate::report::html::{escape, power_of_ten};
use crate::report::scale::{Scale, extent};
use crate::report::svg::{CHARACTER, STYLES, WIDTH, legend, open};
use crate::simulate::text::estimate;

/// The height of a line plot without its legend.
const HEIGHT: f64 = 250.0;

/// Points of a line that are drawn.
const POINTS: usize = 600;

/// Lines over rounds.
#[derive(Default)]
pub(super) struct Plot {
    /// What the values are, with their unit.
    pub(super) unit: String,
    /// The lines, in the order of the legend.
    pub(super) lines: Vec<Line>,
    /// What the thin lines in the background are, if there are any.
    pub(super) faint_name: String,
    /// The thin lines, each with a name.
    pub(super) faint: Vec<(String, Vec<Point>)>,
    /// Whether the axis begins at 0.
    pub(super) from_zero: bool,
}

/// One line.
#[derive(Default)]
pub(super) struct Line {
    /// What the legend calls it.
    pub(super) name: String,
    /// Its points, by rising round. A single one is drawn as a level.
    pub(super) points: Vec<Point>,
}

/// A value after a round.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Point {
    /// The round, from 1.
    pub(super) round: f64,
    /// The value.
    pub(super) value: f64,
    /// Its standard error, 0 if it has none.
    pub(super) error: f64,
}

impl Plot {
    /// The plot, unless it has nothing to show. `id` is its number in the page.
    pub(super) fn svg(&self, id: usize, title: &str) -> Option<String> {
        let exponent = self.exponent()?;
        let factor = 10f64.powi(-exponent);
        let scaled = |points: &[Point]| thinned(points, factor);
        let lines: Vec<(&str, Vec<Point>)> = self
            .lines
            .iter()
            .map(|line| (line.name.as_str(), scaled(&line.points)))
            .collect();
        let faint: Vec<(&str, Vec<Point>)> = self
            .faint
            .iter()
            .map(|(name, points)| (name.as_str(), scaled(points)))
            .collect();

        let names: Vec<&str> = self.lines.iter().map(|line| line.name.as_str()).collect();
        let faint_name = (!self.faint.is_empty()).then_some(self.faint_name.as_str());
        let (legend, legend_height) = legend(&names, faint_name);
        let frame = self.frame(&lines, &faint, legend_height)?;
        let unit = match exponent {
            0 => escape(&self.unit),
            _ => format!("{} (×{})", escape(&self.unit), power_of_ten(exponent)),
        };
        let height = frame.bottom + 40.0;
        let mut svg = open(id, (WIDTH, height), title, &self.description());
        svg.push_str(&format!("<text x=\"0\" y=\"12\">{unit}</text>\n"));
        svg.push_str(&legend);
        frame.axes(&mut svg);
        let _ = write!(
            svg,
            "<clipPath id=\"c{id}\"><rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\"/>\
             </clipPath>\n<g clip-path=\"url(#c{id})\">\n",
            frame.left - 5.0,
            frame.top - 5.0,
            frame.right - frame.left + 10.0,
            frame.bottom - frame.top + 10.0
        );
        for (name, points) in &faint {
            let (path, name) = (frame.path(points), escape(name));
            svg.push_str(&format!(
                "<path class=\"c\" d=\"{path}\"><title>{name}</title></path>\n"
            ));
        }
        for (index, (_, points)) in lines.iter().enumerate().rev() {
            frame.line(&mut svg, index % STYLES, points);
        }
        svg.push_str("</g>\n</svg>\n");
        Some(svg)
    }

    /// What it shows, for those who do not see it.
    fn description(&self) -> String {
        let mut parts = vec![format!("Values in {} by round.", self.unit)];
        for line in &self.lines {
            let finite = || line.points.iter().filter(|point| point.value.is_finite());
            if let (Some(first), Some(last)) = (finite().next(), finite().next_back()) {
                parts.push(format!(
                    "{}: {} after round {}, {} after round {}.",
                    line.name,
                    estimate(first.value, None),
                    first.round,
                    estimate(last.value, None),
                    last.round
                ));
            }
        }
        parts.join(" ")
    }

    /// The power of ten by which values are divided, so that no tick has many digits.
    fn exponent(&self) -> Option<i32> {
        let of_lines = self.lines.iter().flat_map(|line| &line.points);
        let of_faint = self.faint.iter().flat_map(|(_, points)| points);
        let (low, high) = extent(of_lines.chain(of_faint).map(|point| point.value))?;
        let size = f64::max(low.abs(), high.abs());
        Some(match size {
            0.0 => 0,
            fine if (0.01..1e5).contains(&fine) => 0,
            other => other.log10().floor() as i32,
        })
    }

    fn frame(
        &self,
        lines: &[(&str, Vec<Point>)],
        faint: &[(&str, Vec<Point>)],
        legend_height: f64,
    ) -> Option<Frame> {
        let strong = || lines.iter().flat_map(|(_, points)| points);
        let background = without_outliers(faint.iter().flat_map(|(_, points)| points));
        let rounds = strong().chain(faint.iter().flat_map(|(_, points)| points));
        let (first, last) = extent(rounds.map(|point| point.round))?;
        let ends = strong().flat_map(|point| {
            let error = if point.error.is_finite() {
                point.error
            } else {
                0.0
            };
            [point.value - error, point.value + error]
        });
        let zero = self.from_zero.then_some(0.0);
        let (low, high) = extent(ends.chain(background).chain(zero))?;
        let pad = (high - low) * 0.05;
        // What cannot be negative has no axis below 0.
        let low = if low >= 0.0 {
            f64::max(low - pad, 0.0)
        } else {
            low - pad
        };
        let y = Scale::new(low, high + pad, 6);
        let widest = y
            .ticks
            .iter()
            .map(|tick| y.text(*tick).len())
            .max()
            .unwrap_or(1);
        let top = 24.0 + legend_height;
        Some(Frame {
            left: 12.0 + widest as f64 * CHARACTER,
            top,
            right: WIDTH - 14.0,
            bottom: top + HEIGHT - 64.0,
            x: Scale::whole(first.min(1.0), last, 10),
            y,
        })
    }
}

/// The values of points but those that are three interquartile ranges from the quartiles: one
/// client that goes astray must not flatten all others.
fn without_outliers<'a>(points: impl Iterator<Item = &'a Point>) -> Vec<f64> {
    let mut values: Vec<f64> = points.map(|point| point.value).collect();
    values.retain(|value| value.is_finite());
    values.sort_by(f64::total_cmp);
    let Some(last) = values.len().checked_sub(1) else {
        return values;
    };
    let (lower, upper) = (values[last / 4], values[last - last / 4]);
    let fence = 3.0 * (upper - lower);
    values.retain(|value| (lower - fence..=upper + fence).contains(value));
    values
}

/// At most [`POINTS`] points and the last, multiplied by `factor`.
fn thinned(points: &[Point], factor: f64) -> Vec<Point> {
    let stride = points.len().div_ceil(POINTS).max(1);
    let last = points.len().saturating_sub(1);
    let kept = points.iter().enumerate();
    let kept = kept.filter(|(index, _)| index % stride == 0 || *index == last);
    kept.map(|(_, point)| Point {
        round: point.round,
        value: point.value * factor,
        error: point.error * factor,
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::super::frame::MARKS;
    use super::*;

    fn line(name: &str, values: &[f64]) -> Line {
        let point = |(index, value): (usize, &f64)| Point {
            round: index as f64 + 1.0,
            value: *value,
            error: 0.0,
        };
        Line {
            name: name.into(),
            points: values.iter().enumerate().map(point).collect(),
        }
    }

    fn svg(lines: Vec<Line>) -> String {
        let plot = Plot {
            unit: "nats".into(),
            lines,
            ..Plot::default()
        };
        plot.svg(3, "Loss").unwrap()
    }

    #[test]
    fn a_line_goes_from_corner_to_corner() {
        let svg = svg(vec![line("a", &[2.0, 1.0])]);
        let path = svg
            .split("class=\"s1\" d=\"")
            .nth(1)
            .unwrap()
            .split('"')
            .next()
            .unwrap();
        let numbers: Vec<f64> = path
            .split(|c: char| !(c.is_ascii_digit() || c == '.'))
            .filter_map(|number| number.parse().ok())
            .collect();
        let [left, top, right, bottom] = numbers[..] else {
            panic!("{path}");
        };
        assert!(left < 60.0 && right > 530.0 && top < bottom, "{path}");
    }

    #[test]
    fn what_is_not_finite_breaks_the_line_and_is_not_written() {
        let svg = svg(vec![
            line("a", &[2.0, f64::NAN, 1.0, 1.5]),
            line("b", &[f64::INFINITY]),
        ]);
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        let path = svg
            .split("class=\"s1\" d=\"")
            .nth(2)
            .unwrap()
            .split('"')
            .next()
            .unwrap();
        assert_eq!(path.matches('M').count(), 2, "{path}");
    }

    #[test]
    fn nothing_to_show_is_no_plot() {
        assert!(Plot::default().svg(0, "").is_none());
        let plot = Plot {
            lines: vec![line("a", &[f64::NAN])],
            ..Plot::default()
        };
        assert!(plot.svg(0, "").is_none());
    }

    #[test]
    fn small_numbers_have_a_power_of_ten() {
        let svg = svg(vec![line("a", &[1e-4, 2e-4])]);
        assert!(
            svg.contains(">nats (×10⁻⁴)</text>") && svg.contains(">1.6</text>"),
            "{svg}"
        );
    }

    #[test]
    fn few_points_have_error_bars_and_many_a_band() {
        let with_errors = |count: usize| {
            let mut line = line("a", &vec![1.0; count]);
            line.points.iter_mut().for_each(|point| point.error = 0.1);
            svg(vec![line])
        };
        assert_eq!(with_errors(5).matches("class=\"w t1\"").count(), 5);
        assert!(with_errors(50).contains("class=\"b f1\""));
        assert_eq!(with_errors(50).matches("class=\"w").count(), 0);
        assert_eq!(with_errors(50).matches("class=\"f1\"").count(), MARKS);
    }

    #[test]
    fn a_single_value_is_a_level() {
        let svg = svg(vec![line("a", &[1.0, 2.0]), line("base", &[3.0])]);
        let level = svg.split("class=\"s2\" d=\"").nth(2).unwrap();
        assert!(level.split('"').next().unwrap().contains('H'), "{svg}");
    }

    #[test]
    fn long_runs_are_thinned_and_keep_their_end() {
        let values: Vec<f64> = (0..5000).map(f64::from).collect();
        let kept = thinned(&line("a", &values).points, 1.0);
        assert!(kept.len() <= POINTS + 1);
        assert_eq!((kept[0].value, kept[kept.len() - 1].value), (0.0, 4999.0));
    }

    #[test]
    fn one_client_that_goes_astray_does_not_flatten_the_others() {
        let values = [1.0, 1.1, 1.2, 1.3, 1.4, 50.0, f64::NAN];
        let kept = without_outliers(line("a", &values).points.iter());
        assert_eq!(kept, values[..5]);
        assert_eq!(without_outliers(line("a", &[2.0]).points.iter()), [2.0]);
    }

    #[test]
    fn names_are_escaped() {
        let svg = svg(vec![line("<script>", &[1.0]), line("b", &[2.0])]);
        assert!(!svg.contains("<script>") && svg.contains("&lt;script&gt;"));
    }
}
