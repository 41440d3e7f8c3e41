//! What all figures have in common.

use std::fmt::Write as _;

use super::html::escape;

/// The width of every figure, in units of its own.
pub(crate) const WIDTH: f64 = 560.0;

/// How wide a character is taken to be.
pub(crate) const CHARACTER: f64 = 6.6;

/// Styles of lines that can be told apart: `s1` and so on in the style sheet.
pub(crate) const STYLES: usize = 6;

/// The beginning of a figure that describes itself.
pub(crate) fn open(
    id: usize,
    (width, height): (f64, f64),
    title: &str,
    description: &str,
) -> String {
    format!(
        "<svg viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\" aria-labelledby=\"t{id} d{id}\">\n\
         <title id=\"t{id}\">{}</title><desc id=\"d{id}\">{}</desc>\n",
        escape(title),
        escape(description)
    )
}

/// A mark whose shape tells its style.
pub(crate) fn mark(style: usize, x: f64, y: f64) -> String {
    let shape = match style {
        0 => format!("M{:.1} {y:.1}a3 3 0 1 0 6 0a3 3 0 1 0-6 0z", x - 3.0),
        1 => format!("M{:.1} {:.1}h5.6v5.6h-5.6z", x - 2.8, y - 2.8),
        2 => format!("M{x:.1} {:.1}l3.8 6.4h-7.6z", y - 4.2),
        3 => format!("M{x:.1} {:.1}l3.8 4l-3.8 4l-3.8-4z", y - 4.0),
        4 => format!("M{x:.1} {:.1}l3.8-6.4h-7.6z", y + 4.2),
        _ => format!(
            "M{:.1} {:.1}h2v-2.6h2v2.6h2.6v2h-2.6v2.6h-2v-2.6h-2.6z",
            x - 3.2,
            y - 1.0
        ),
    };
    format!("<path class=\"f{}\" d=\"{shape}\"/>", style + 1)
}

/// The legend of lines and of those in the background, and its height. A single line needs none: it
/// is what the title says.
pub(crate) fn legend(names: &[&str], faint: Option<&str>) -> (String, f64) {
    let mut svg = String::new();
    if faint.is_none() && names.len() < 2 {
        return (svg, 0.0);
    }
    let (mut x, mut y) = (0.0, 30.0);
    for (index, name) in names.iter().chain(&faint).enumerate() {
        let width = 44.0 + name.chars().count() as f64 * CHARACTER;
        if x > 0.0 && x + width > WIDTH {
            (x, y) = (0.0, y + 18.0);
        }
        let style = index % STYLES;
        let (line, mark) = match index < names.len() {
            true => (format!("s{}", style + 1), mark(style, x + 14.0, y - 4.0)),
            false => ("c".into(), String::new()),
        };
        let _ = writeln!(
            svg,
            "<path class=\"{line}\" d=\"M{x:.1} {:.1}h28\"/>{mark}<text x=\"{:.1}\" \
             y=\"{y:.1}\">{}</text>",
            y - 4.0,
            x + 34.0,
            escape(name)
        );
        x += width + 14.0;
    }
    (svg, y - 12.0)
}
