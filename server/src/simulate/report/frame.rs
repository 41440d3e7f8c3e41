//! The area between the axes of a plot, and what is drawn in it.

use std::fmt::Write as _;

use super::plot::Point;
use crate::report::scale::Scale;
use crate::report::svg::{STYLES, mark};

/// Points up to which each has an error bar of its own; along more there is a band.
const BARS: usize = 12;

/// Marks on a line, so that it can be told from others without colour.
pub(super) const MARKS: usize = 10;

/// The area between the axes.
pub(super) struct Frame {
    pub(super) left: f64,
    pub(super) top: f64,
    pub(super) right: f64,
    pub(super) bottom: f64,
    pub(super) x: Scale,
    pub(super) y: Scale,
}

impl Frame {
    fn at(&self, point: &Point) -> (f64, f64) {
        let x = self.left + self.x.position(point.round) * (self.right - self.left);
        (x, self.y(point.value))
    }

    fn y(&self, value: f64) -> f64 {
        // Far outside the frame is outside: numbers stay short.
        let position = self.y.position(value).clamp(-2.0, 3.0);
        self.bottom - position * (self.bottom - self.top)
    }

    /// The axes with their ticks.
    pub(super) fn axes(&self, svg: &mut String) {
        let (left, right, bottom) = (self.left, self.right, self.bottom);
        for tick in &self.y.ticks {
            let y = self.y(*tick);
            // Below nought there is something: the line of nought stands out.
            let class = if *tick == 0.0 && y < bottom - 1.0 {
                "a"
            } else {
                "g"
            };
            let _ = writeln!(
                svg,
                "<path class=\"{class}\" d=\"M{left:.1} {y:.1}H{right:.1}\"/><text class=\"e\" x=\"{:.1}\" \
                 y=\"{:.1}\">{}</text>",
                left - 6.0,
                y + 4.0,
                self.y.text(*tick).replace('-', "−")
            );
        }
        for tick in &self.x.ticks {
            let x = left + self.x.position(*tick) * (right - left);
            let _ = writeln!(
                svg,
                "<path class=\"a\" d=\"M{x:.1} {bottom:.1}v4\"/><text class=\"m\" x=\"{x:.1}\" \
                 y=\"{:.1}\">{}</text>",
                bottom + 17.0,
                self.x.text(*tick)
            );
        }
        let _ = writeln!(
            svg,
            "<path class=\"a\" d=\"M{left:.1} {bottom:.1}H{right:.1}\"/><text class=\"m\" x=\"{:.1}\" \
             y=\"{:.1}\">round</text>",
            (left + right) / 2.0,
            bottom + 34.0
        );
    }

    /// A line with its errors: bars at few points, a band along many.
    pub(super) fn line(&self, svg: &mut String, style: usize, points: &[Point]) {
        let errors = points.iter().any(|point| point.error > 0.0);
        let class = style + 1;
        if errors && points.len() > BARS {
            let _ = writeln!(
                svg,
                "<path class=\"b f{class}\" d=\"{}\"/>",
                self.band(points)
            );
        }
        match points {
            [point] if point.value.is_finite() => {
                let y = self.y(point.value);
                let (left, right) = (self.left, self.right);
                let _ = writeln!(
                    svg,
                    "<path class=\"s{class}\" d=\"M{left:.1} {y:.1}H{right:.1}\"/>"
                );
            }
            points => {
                let _ = writeln!(
                    svg,
                    "<path class=\"s{class}\" d=\"{}\"/>",
                    self.path(points)
                );
            }
        }
        // Lines that nearly coincide have their marks apart.
        let stride = points.len().div_ceil(MARKS).max(1);
        let first = style * stride / STYLES;
        for (index, point) in points.iter().enumerate() {
            if !point.value.is_finite() {
                continue;
            }
            let (x, y) = self.at(point);
            if errors && points.len() <= BARS && point.error > 0.0 {
                svg.push_str(&self.error_bar(class, x, point));
            }
            if index % stride == first {
                svg.push_str(&mark(style, x, y));
                svg.push('\n');
            }
        }
    }

    fn error_bar(&self, class: usize, x: f64, point: &Point) -> String {
        let (low, high) = (point.value - point.error, point.value + point.error);
        let (low, high, left) = (self.y(low), self.y(high), x - 3.0);
        format!(
            "<path class=\"w t{class}\" d=\"M{left:.1} {low:.1}h6M{x:.1} {low:.1}V{high:.1}M{left:.1} \
             {high:.1}h6\"/>"
        )
    }

    /// A path through points; it is broken where a value is not finite, and a single point is a ring.
    pub(super) fn path(&self, points: &[Point]) -> String {
        let mut path = String::new();
        let mut drawing = false;
        for (index, point) in points.iter().enumerate() {
            if !point.value.is_finite() {
                drawing = false;
                continue;
            }
            let (x, y) = self.at(point);
            let _ = write!(path, "{}{x:.1} {y:.1}", if drawing { 'L' } else { 'M' });
            let alone = points
                .get(index + 1)
                .is_none_or(|next| !next.value.is_finite());
            if !drawing && alone {
                // A ring, since a line of one point would not be seen.
                path.push_str("m-1.5 0a1.5 1.5 0 1 0 3 0a1.5 1.5 0 1 0-3 0");
            }
            drawing = true;
        }
        path
    }

    fn band(&self, points: &[Point]) -> String {
        let finite = || {
            let finite = |point: &&Point| point.value.is_finite() && point.error.is_finite();
            points.iter().filter(finite)
        };
        let edge = |point: &Point, sign: f64| {
            let x = self.at(point).0;
            format!("{x:.1} {:.1}", self.y(point.value + sign * point.error))
        };
        let upper = finite().map(|point| edge(point, 1.0));
        let lower = finite().rev().map(|point| edge(point, -1.0));
        format!("M{}Z", upper.chain(lower).collect::<Vec<_>>().join("L"))
    }
}
