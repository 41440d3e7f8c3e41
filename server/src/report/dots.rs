//! Dot plots as SVG: values side by side, each with its standard error.

use std::fmt::Write as _;

use super::html::{escape, name};
use super::scale::{Scale, extent};
use super::svg::{CHARACTER, STYLES, WIDTH, mark, open};
use crate::simulate::text::{estimate, printable};

/// The height of a row.
const ROW: f64 = 22.0;

/// Rows that are drawn.
pub(crate) const ROWS: usize = 24;

/// One value.
pub(crate) struct Dot {
    /// What it is of.
    pub(crate) name: String,
    /// The value.
    pub(crate) value: f64,
    /// Its standard error, if it has one.
    pub(crate) error: Option<f64>,
}

/// The plot of the first [`ROWS`] values, unless none is finite. `id` is its number in the page.
pub(crate) fn svg(id: usize, title: &str, unit: &str, dots: &[Dot]) -> Option<String> {
    let dots = &dots[..dots.len().min(ROWS)];
    let ends = dots.iter().flat_map(|dot| {
        let error = dot.error.filter(|error| error.is_finite()).unwrap_or(0.0);
        [dot.value - error, dot.value + error]
    });
    let (low, high) = extent(ends)?;
    let pad = (high - low) * 0.05;
    let scale = Scale::new(low - pad, high + pad, 5);
    let texts: Vec<String> = dots
        .iter()
        .map(|dot| estimate(dot.value, dot.error))
        .collect();
    let names = dots
        .iter()
        .map(|dot| printable(&dot.name, 24).chars().count());
    let left = 10.0 + names.max().unwrap_or(0) as f64 * CHARACTER;
    let widest = texts
        .iter()
        .map(|text| text.chars().count())
        .max()
        .unwrap_or(0);
    let right = WIDTH - 14.0 - widest as f64 * CHARACTER;
    let bottom = 8.0 + dots.len() as f64 * ROW;

    let described: Vec<String> = dots
        .iter()
        .zip(&texts)
        .map(|(dot, text)| format!("{}: {text}", dot.name))
        .collect();
    let mut svg = open(id, (WIDTH, bottom + 40.0), title, &described.join("; "));
    let x = |value: f64| left + scale.position(value) * (right - left);
    for tick in &scale.ticks {
        let (x, text) = (x(*tick), scale.text(*tick).replace('-', "−"));
        let _ = writeln!(
            svg,
            "<path class=\"g\" d=\"M{x:.1} 4V{bottom:.1}\"/><text class=\"m\" x=\"{x:.1}\" \
             y=\"{:.1}\">{text}</text>",
            bottom + 17.0
        );
    }
    let _ = writeln!(
        svg,
        "<path class=\"a\" d=\"M{left:.1} {bottom:.1}H{right:.1}\"/><text class=\"m\" x=\"{:.1}\" \
         y=\"{:.1}\">{}</text>",
        (left + right) / 2.0,
        bottom + 34.0,
        escape(unit)
    );
    for (index, (dot, text)) in dots.iter().zip(&texts).enumerate() {
        let y = 8.0 + (index as f64 + 0.5) * ROW;
        let _ = write!(
            svg,
            "<text class=\"e\" x=\"{:.1}\" y=\"{:.1}\">{}</text><text class=\"e\" x=\"{WIDTH:.1}\" \
             y=\"{:.1}\">{text}</text>",
            left - 8.0,
            y + 4.0,
            name(&dot.name),
            y + 4.0
        );
        if dot.value.is_finite() {
            svg.push_str(&whisker(dot, index % STYLES, y, x));
        }
        svg.push('\n');
    }
    svg.push_str("</svg>\n");
    Some(svg)
}

fn whisker(dot: &Dot, style: usize, y: f64, x: impl Fn(f64) -> f64) -> String {
    let mut svg = String::new();
    if let Some(error) = dot.error.filter(|error| error.is_finite() && *error > 0.0) {
        let (low, high) = (x(dot.value - error), x(dot.value + error));
        let (class, top) = (style + 1, y - 4.0);
        let _ = write!(
            svg,
            "<path class=\"w t{class}\" d=\"M{low:.1} {top:.1}v8M{low:.1} {y:.1}H{high:.1}M{high:.1} \
             {top:.1}v8\"/>"
        );
    }
    svg + &mark(style, x(dot.value), y)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dot(name: &str, value: f64, error: Option<f64>) -> Dot {
        Dot {
            name: name.into(),
            value,
            error,
        }
    }

    #[test]
    fn each_value_has_a_row_with_its_error() {
        let dots = [dot("base", 2.0, Some(0.1)), dot("<global>", 1.0, None)];
        let svg = svg(1, "Loss", "nats", &dots).unwrap();
        assert_eq!(svg.matches("class=\"w ").count(), 1);
        assert!(
            svg.contains(">2.00 ± 0.10</text>") && svg.contains(">1.000</text>"),
            "{svg}"
        );
        assert!(svg.contains(">&lt;global&gt;</text>") && !svg.contains("<global>"));
    }

    #[test]
    fn a_value_that_is_not_finite_has_no_mark() {
        let dots = [
            dot("a", f64::NAN, Some(f64::NAN)),
            dot("b", 1.0, Some(f64::INFINITY)),
        ];
        let svg = svg(1, "Loss", "nats", &dots).unwrap();
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        assert!(super::svg(1, "", "", &[dot("a", f64::NAN, None)]).is_none());
        assert!(super::svg(1, "", "", &[]).is_none());
    }

    #[test]
    fn there_is_an_end_to_rows() {
        let dots: Vec<Dot> = (0..90)
            .map(|index| dot("a", f64::from(index), None))
            .collect();
        let svg = svg(1, "", "", &dots).unwrap();
        assert_eq!(svg.matches("<path class=\"f").count(), ROWS);
    }
}
