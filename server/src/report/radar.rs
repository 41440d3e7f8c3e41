//! Radar plots as SVG: several systems over many axes, from 0 in the middle to 1 at the rim.

use std::f64::consts::TAU;
use std::fmt::Write as _;

use super::html::escape;
use super::svg::{CHARACTER, STYLES, WIDTH, legend, mark, open};
use crate::simulate::text::printable;

/// Axes below which a plot would be no area.
const AXES: usize = 3;

/// Characters of an axis' name.
const NAME: usize = 20;

/// The largest radius.
const RADIUS: f64 = 190.0;

/// Shares of the radius that have a ring.
const RINGS: [f64; 5] = [0.2, 0.4, 0.6, 0.8, 1.0];

/// Systems over axes.
pub(crate) struct Radar {
    /// What each axis is.
    pub(crate) axes: Vec<String>,
    /// Each system with its value on each axis, from 0 to 1; what is not finite is left out.
    pub(crate) systems: Vec<(String, Vec<f64>)>,
}

impl Radar {
    /// The plot, unless it has too few axes or nothing to show. `id` is its number in the page.
    pub(crate) fn svg(&self, id: usize, title: &str) -> Option<String> {
        let values = || self.systems.iter().flat_map(|(_, values)| values);
        if self.axes.len() < AXES || !values().any(|value| value.is_finite()) {
            return None;
        }
        let names: Vec<&str> = self.systems.iter().map(|(name, _)| name.as_str()).collect();
        let (legend, legend_height) = legend(&names, None);
        let labels = self.axes.iter().map(|axis| printable(axis, NAME));
        let labels: Vec<String> = labels.collect();
        let widest = labels.iter().map(|label| label.chars().count()).max()?;
        let radius = RADIUS.min(WIDTH / 2.0 - 16.0 - widest as f64 * CHARACTER);
        let disc = Disc {
            x: WIDTH / 2.0,
            y: legend_height + 44.0 + radius,
            radius,
            axes: labels.len(),
        };
        let height = disc.y + radius + 24.0;
        let mut svg = open(id, (WIDTH, height), title, &self.description());
        svg.push_str(&legend);
        disc.grid(&mut svg, &labels);
        for (index, (name, values)) in self.systems.iter().enumerate().rev() {
            disc.system(&mut svg, index % STYLES, name, values);
        }
        svg.push_str("</svg>\n");
        Some(svg)
    }

    /// What it shows, for those who do not see it.
    fn description(&self) -> String {
        let system = |(name, values): &(String, Vec<f64>)| {
            let of = self.axes.iter().zip(values);
            let finite = of.filter(|(_, value)| value.is_finite());
            let of: Vec<String> = finite.map(|(axis, v)| format!("{axis} {v:.2}")).collect();
            format!("{name}: {}.", of.join(", "))
        };
        let systems: Vec<String> = self.systems.iter().map(system).collect();
        systems.join(" ")
    }
}

/// Where things are.
struct Disc {
    x: f64,
    y: f64,
    radius: f64,
    axes: usize,
}

impl Disc {
    /// A value on an axis. The first one points up, the others follow the clock.
    fn at(&self, axis: usize, value: f64) -> (f64, f64) {
        let angle = TAU * axis as f64 / self.axes as f64;
        let radius = self.radius * value;
        (self.x + radius * angle.sin(), self.y - radius * angle.cos())
    }

    fn grid(&self, svg: &mut String, labels: &[String]) {
        for ring in RINGS {
            let points = vec![ring; self.axes];
            let _ = writeln!(svg, "<path class=\"g\" d=\"{}\"/>", self.path(&points));
        }
        for (axis, label) in labels.iter().enumerate() {
            let (x, y) = self.at(axis, 1.0);
            let away = 8.0 / self.radius;
            let (text_x, text_y) = self.at(axis, 1.0 + away);
            // Names start, end or have their middle at the rim, whichever keeps them outside.
            let class = match text_x - self.x {
                left if left < -self.radius * 0.04 => "e",
                right if right > self.radius * 0.04 => "",
                _ => "m",
            };
            let down = 4.0 + 4.0 * (text_y - self.y) / self.radius;
            let _ = writeln!(
                svg,
                "<path class=\"g\" d=\"M{:.1} {:.1}L{x:.1} {y:.1}\"/><text class=\"{class}\" \
                 x=\"{text_x:.1}\" y=\"{:.1}\">{}</text>",
                self.x,
                self.y,
                text_y + down,
                escape(label)
            );
        }
        for ring in RINGS {
            let (x, y) = self.at(0, ring);
            let _ = writeln!(
                svg,
                "<text class=\"e\" x=\"{:.1}\" y=\"{:.1}\">{ring:.1}</text>",
                x - 4.0,
                y + 12.0
            );
        }
    }

    fn system(&self, svg: &mut String, style: usize, name: &str, values: &[f64]) {
        let _ = write!(
            svg,
            "<path class=\"s{}\" d=\"{}\"><title>{}</title></path>",
            style + 1,
            self.path(values),
            escape(name)
        );
        for (axis, value) in values.iter().enumerate() {
            if value.is_finite() {
                let (x, y) = self.at(axis, value.clamp(0.0, 1.0));
                svg.push_str(&mark(style, x, y));
            }
        }
        svg.push('\n');
    }

    /// A path around the disc; it is open where a value is missing.
    fn path(&self, values: &[f64]) -> String {
        let mut path = String::new();
        let mut drawing = false;
        for (axis, value) in values.iter().enumerate() {
            if value.is_finite() {
                let (x, y) = self.at(axis, value.clamp(0.0, 1.0));
                let _ = write!(path, "{}{x:.1} {y:.1}", if drawing { 'L' } else { 'M' });
            }
            drawing = value.is_finite();
        }
        match (values.first(), values.last()) {
            _ if values.iter().all(|value| value.is_finite()) => path.push('Z'),
            (Some(first), Some(last)) if first.is_finite() && last.is_finite() => {
                let (x, y) = self.at(0, first.clamp(0.0, 1.0));
                let _ = write!(path, "L{x:.1} {y:.1}");
            }
            _ => {}
        }
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn radar(values: &[f64]) -> Radar {
        Radar {
            axes: (0..values.len()).map(|axis| format!("<t{axis}>")).collect(),
            systems: vec![
                ("base".into(), values.to_vec()),
                ("b".into(), vec![0.5; values.len()]),
            ],
        }
    }

    /// The path of the first system.
    fn path(svg: &str) -> &str {
        let path = svg.split("class=\"s1\" d=\"").nth(2).unwrap();
        path.split('"').next().unwrap()
    }

    #[test]
    fn values_lie_on_their_axes() {
        let svg = radar(&[1.0, 0.5, 0.0, 0.5]).svg(1, "Tasks").unwrap();
        // A legend of one line, then a disc in the middle: up, right, the middle, left.
        let middle = 18.0 + 44.0 + 190.0;
        let expected = format!(
            "M280.0 {:.1}L375.0 {middle:.1}L280.0 {middle:.1}L185.0 {middle:.1}Z",
            middle - 190.0
        );
        assert_eq!(path(&svg), expected);
        assert!(svg.contains(">&lt;t0&gt;</text>") && !svg.contains("<t0>"));
        assert_eq!(svg.matches("<path class=\"f1\"").count(), 1 + 4);
    }

    #[test]
    fn what_is_missing_is_a_gap() {
        let svg = radar(&[0.5, f64::NAN, 2.0, 0.5]).svg(1, "").unwrap();
        assert!(!svg.contains("NaN"), "{svg}");
        let path = path(&svg);
        assert_eq!(
            (path.matches('M').count(), path.matches('Z').count()),
            (2, 0)
        );
        // It is closed where it began, and stays within the disc.
        assert!(
            path.ends_with("L280.0 157.0") && path.contains("M280.0 442.0"),
            "{path}"
        );
    }

    #[test]
    fn too_little_is_no_plot() {
        assert!(radar(&[0.5, 0.5]).svg(0, "").is_none());
        let nothing = Radar {
            axes: vec!["a".into(), "b".into(), "c".into()],
            systems: vec![("base".into(), vec![f64::NAN; 3])],
        };
        assert!(nothing.svg(0, "").is_none());
    }
}
