//! A figure: something drawn, with what is to be said of it.

use super::dots::{self, Dot};
use super::html::escape;
use super::owners;
use super::plot::Plot;
use crate::simulate::split::SplitTable;

/// A figure of a page.
pub(super) struct Figure<'a> {
    /// What it shows.
    pub(super) title: String,
    /// How to read it.
    pub(super) caption: String,
    /// What is drawn.
    pub(super) drawing: Drawing<'a>,
}

/// What a figure draws.
pub(super) enum Drawing<'a> {
    /// Lines over rounds.
    Plot(Plot),
    /// Values side by side, in a unit.
    Dots(&'a str, Vec<Dot>),
    /// Owners with their rows and labels.
    Owners(&'a SplitTable),
}

impl Figure<'_> {
    /// The figure, unless it has nothing to show. `id` is its number in the page.
    pub(super) fn html(&self, id: usize) -> Option<String> {
        let svg = match &self.drawing {
            Drawing::Plot(plot) => plot.svg(id, &self.title),
            Drawing::Dots(unit, dots) => dots::svg(id, &self.title, unit, dots),
            Drawing::Owners(split) => owners::svg(id, &self.title, split),
        }?;
        let (title, caption) = (escape(&self.title), escape(&self.caption));
        let class = match &self.drawing {
            Drawing::Owners(split) if owners::is_wide(split) => " class=\"wide\"",
            _ => "",
        };
        Some(format!(
            "<figure{class}><h3>{title}</h3>\n{svg}<figcaption>{caption}</figcaption></figure>\n"
        ))
    }
}
