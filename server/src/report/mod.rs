//! What reports are made of: one HTML file with its plots, for a browser and for paper.
//!
//! A page needs no other file and no script, follows the reader's light or dark scheme, and prints
//! on A4. Lines can be told apart without colour. Values that are not finite are left out.

pub(crate) mod bars;
pub(crate) mod dots;
pub(crate) mod figure;
pub(crate) mod html;
pub(crate) mod page;
pub(crate) mod radar;
pub(crate) mod scale;
pub(crate) mod svg;
#[cfg(test)]
pub(crate) mod testing;
