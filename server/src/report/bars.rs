//! Bar charts as SVG: groups of bars, one for each system, with their standard errors.

use std::fmt::Write as _;

use super::html::{escape, name};
use super::scale::{Scale, extent};
use super::svg::{CHARACTER, STYLES, WIDTH, legend, mark, open};
use crate::simulate::text::{estimate, printable};

/// The height of a bar with what is between it and the next.
const ROW: f64 = 15.0;

/// What is between groups.
const GAP: f64 = 9.0;

/// Groups of bars.
pub(crate) struct Bars {
    /// What the values are.
    pub(crate) unit: String,
    /// Where bars begin.
    pub(crate) from: f64,
    /// Where the axis ends, if it does not end with the longest bar.
    pub(crate) to: Option<f64>,
    /// Who has a bar in each group.
    pub(crate) systems: Vec<String>,
    /// The groups.
    pub(crate) groups: Vec<Group>,
}

/// The bars of one thing.
pub(crate) struct Group {
    /// What they are of.
    pub(crate) name: String,
    /// Each system's value, and its standard error if it has one.
    pub(crate) values: Vec<(f64, Option<f64>)>,
}

impl Bars {
    /// The chart, unless there is no finite value. `id` is its number in the page.
    pub(crate) fn svg(&self, id: usize, title: &str) -> Option<String> {
        let values = || self.groups.iter().flat_map(|group| &group.values);
        let ends = values().map(|(value, error)| value + finite(*error));
        let (_, high) = extent(ends)?;
        let high = self.to.unwrap_or(high);
        let scale = Scale::new(self.from, f64::max(high, self.from), 5);
        let names: Vec<&str> = self.systems.iter().map(String::as_str).collect();
        let (legend, legend_height) = legend(&names, None);
        let widest = |texts: &mut dyn Iterator<Item = usize>| texts.max().unwrap_or(0) as f64;
        let labels = &mut self.groups.iter().map(|group| {
            let label = printable(&group.name, 24);
            label.chars().count()
        });
        let left = 10.0 + widest(labels) * CHARACTER;
        let texts = &mut values().map(|(v, error)| estimate(*v, *error).chars().count());
        let right = WIDTH - 14.0 - widest(texts) * CHARACTER;
        let top = if legend_height == 0.0 {
            4.0
        } else {
            legend_height + 20.0
        };
        let heights = self
            .groups
            .iter()
            .map(|g| g.values.len() as f64 * ROW + GAP);
        let bottom = top + heights.sum::<f64>();

        let size = (WIDTH, bottom + 40.0);
        let mut svg = open(id, size, title, &self.description());
        svg.push_str(&legend);
        let x = |value: f64| left + scale.position(value).clamp(0.0, 1.0) * (right - left);
        for tick in &scale.ticks {
            let (x, text) = (x(*tick), scale.text(*tick));
            let _ = writeln!(
                svg,
                "<path class=\"g\" d=\"M{x:.1} {top:.1}V{bottom:.1}\"/><text class=\"m\" \
                 x=\"{x:.1}\" y=\"{:.1}\">{text}</text>",
                bottom + 17.0
            );
        }
        let mut y = top + GAP / 2.0;
        for group in &self.groups {
            let middle = y + group.values.len() as f64 * ROW / 2.0;
            let _ = writeln!(
                svg,
                "<text class=\"e\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                left - 8.0,
                middle + 4.0,
                name(&group.name)
            );
            for (index, (value, error)) in group.values.iter().enumerate() {
                bar(
                    &mut svg,
                    index % STYLES,
                    y + ROW / 2.0,
                    left,
                    x,
                    (*value, *error),
                );
                y += ROW;
            }
            y += GAP;
        }
        let _ = writeln!(
            svg,
            "<path class=\"a\" d=\"M{left:.1} {top:.1}V{bottom:.1}\"/><text class=\"m\" x=\"{:.1}\" \
             y=\"{:.1}\">{}</text>\n</svg>",
            (left + right) / 2.0,
            bottom + 34.0,
            escape(&self.unit)
        );
        Some(svg)
    }

    /// What it shows, for those who do not see it.
    fn description(&self) -> String {
        let group = |group: &Group| {
            let of = self.systems.iter().zip(&group.values);
            let of = of.map(|(system, (value, error))| {
                let text = estimate(*value, *error);
                format!("{system} {text}")
            });
            format!("{}: {}.", group.name, of.collect::<Vec<_>>().join(", "))
        };
        let groups: Vec<String> = self.groups.iter().map(group).collect();
        groups.join(" ")
    }
}

/// A bar with its error and its figures.
fn bar(
    svg: &mut String,
    style: usize,
    y: f64,
    left: f64,
    x: impl Fn(f64) -> f64,
    (value, error): (f64, Option<f64>),
) {
    let _ = write!(
        svg,
        "<text class=\"e\" x=\"{WIDTH:.1}\" y=\"{:.1}\">{}</text>",
        y + 4.0,
        estimate(value, error)
    );
    if value.is_finite() {
        let (class, end, top) = (style + 1, x(value), y - ROW / 2.0 + 2.0);
        let _ = write!(
            svg,
            "<path class=\"r f{class}\" d=\"M{left:.1} {top:.1}H{end:.1}v{:.1}H{left:.1}z\"/>",
            ROW - 4.0
        );
        let error = finite(error);
        if error > 0.0 {
            let (low, high, top) = (x(value - error), x(value + error), y - 4.0);
            let _ = write!(
                svg,
                "<path class=\"w t{class}\" d=\"M{low:.1} {top:.1}v8M{low:.1} \
                 {y:.1}H{high:.1}M{high:.1} {top:.1}v8\"/>"
            );
        }
        svg.push_str(&mark(style, end, y));
    }
    svg.push('\n');
}

fn finite(error: Option<f64>) -> f64 {
    error.filter(|error| error.is_finite()).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bars(values: &[(f64, Option<f64>)]) -> Bars {
        Bars {
            unit: "share".into(),
            from: 0.0,
            to: Some(1.0),
            systems: (0..values.len()).map(|n| format!("system {n}")).collect(),
            groups: vec![Group {
                name: "<mmlu>".into(),
                values: values.to_vec(),
            }],
        }
    }

    #[test]
    fn bars_are_as_long_as_their_values() {
        let bars = bars(&[(0.5, Some(0.1)), (0.25, None), (f64::NAN, None)]);
        let svg = bars.svg(1, "Tasks").unwrap();
        let ends: Vec<(f64, f64)> = svg
            .split("class=\"r f")
            .skip(1)
            .map(|bar| {
                let (left, rest) = bar.split_once("d=\"M").unwrap().1.split_once(' ').unwrap();
                let end = rest.split_once('H').unwrap().1.split_once('v').unwrap().0;
                (left.parse().unwrap(), end.parse().unwrap())
            })
            .collect();
        let [(left, half), (also_left, quarter)] = ends[..] else {
            panic!("{svg}");
        };
        assert_eq!(left, also_left);
        assert!(
            ((half - left) / (quarter - left) - 2.0).abs() < 0.01,
            "{ends:?}"
        );
        assert_eq!(svg.matches("class=\"w ").count(), 1);
        assert!(
            svg.contains(">0.50 ± 0.10</text>") && svg.contains(">–</text>"),
            "{svg}"
        );
        assert!(svg.contains(">&lt;mmlu&gt;</text>") && !svg.contains("<mmlu>"));
        assert!(!svg.contains("NaN"));
    }

    #[test]
    fn an_axis_without_an_end_has_room_for_the_longest_bar() {
        let mut bars = bars(&[(12.0, Some(1.0)), (7.0, None)]);
        bars.to = None;
        let svg = bars.svg(1, "Perplexity").unwrap();
        assert!(
            svg.contains(">10</text>") && !svg.contains(">20</text>"),
            "{svg}"
        );
    }

    #[test]
    fn nothing_to_show_is_no_chart() {
        assert!(bars(&[(f64::NAN, None)]).svg(1, "").is_none());
        assert!(bars(&[]).svg(1, "").is_none());
    }
}
