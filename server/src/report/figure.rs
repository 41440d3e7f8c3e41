//! A figure: something drawn, with what is to be said of it.

use super::html::escape;

/// A figure of a page.
pub(crate) struct Figure<D> {
    /// What it shows.
    pub(crate) title: String,
    /// How to read it.
    pub(crate) caption: String,
    /// What is drawn.
    pub(crate) drawing: D,
}

/// What a figure draws.
pub(crate) trait Draw {
    /// The drawing, unless it has nothing to show. `id` is its number in the page.
    fn svg(&self, id: usize, title: &str) -> Option<String>;

    /// Whether it needs the width of the page.
    fn is_wide(&self) -> bool {
        false
    }
}

impl<D: Draw> Figure<D> {
    /// The figure, unless it has nothing to show. `id` is its number in the page.
    pub(crate) fn html(&self, id: usize) -> Option<String> {
        let svg = self.drawing.svg(id, &self.title)?;
        let (title, caption) = (escape(&self.title), escape(&self.caption));
        let class = match self.drawing.is_wide() {
            true => " class=\"wide\"",
            false => "",
        };
        Some(format!(
            "<figure{class}><h3>{title}</h3>\n{svg}<figcaption>{caption}</figcaption></figure>\n"
        ))
    }
}
