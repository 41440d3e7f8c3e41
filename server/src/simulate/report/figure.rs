//! What figures of simulations draw.

use super::owners;
use super::plot::Plot;
use crate::report::dots::{self, Dot};
use crate::report::figure::{self, Draw};
use crate::simulate::split::SplitTable;

/// A figure of a simulation's page.
pub(super) type Figure<'a> = figure::Figure<Drawing<'a>>;

/// What a figure draws.
pub(super) enum Drawing<'a> {
    /// Lines over rounds.
    Plot(Plot),
    /// Values side by side, in a unit.
    Dots(&'a str, Vec<Dot>),
    /// Owners with their rows and labels.
    Owners(&'a SplitTable),
}

impl Draw for Drawing<'_> {
    fn svg(&self, id: usize, title: &str) -> Option<String> {
        match self {
            Drawing::Plot(plot) => plot.svg(id, title),
            Drawing::Dots(unit, dots) => dots::svg(id, title, unit, dots),
            Drawing::Owners(split) => owners::svg(id, title, split),
        }
    }

    fn is_wide(&self) -> bool {
        match self {
            Drawing::Owners(split) => owners::is_wide(split),
            _ => false,
        }
    }
}
