//! The frame of a page: one file that needs no other, and no script.

use super::figure::{Draw, Figure};
use super::html::escape;

/// A fact: a term, a value, and a remark, which may be empty. All are text.
pub(crate) type Fact = (&'static str, String, String);

/// A page in the making.
pub(crate) struct Page {
    title: String,
    body: String,
    figures: usize,
}

impl Page {
    /// A page that begins with a title, and a sentence that says what it comes to. Both are text.
    pub(crate) fn new(kind: &str, title: &str, lead: &str) -> Self {
        let title = escape(title);
        let (kind, lead) = (escape(kind), escape(lead));
        Self {
            body: format!(
                "<header>\n<p class=\"kind\">{kind}</p>\n<h1>{title}</h1>\n<p>{lead}</p>\n</header>\n<main>\n"
            ),
            title,
            figures: 0,
        }
    }

    /// Adds HTML.
    pub(crate) fn push(&mut self, html: &str) {
        self.body.push_str(html);
    }

    /// Begins a section.
    pub(crate) fn section(&mut self, title: &str) {
        self.body.push_str(&format!("<h2>{}</h2>\n", escape(title)));
    }

    /// Adds facts.
    pub(crate) fn facts(&mut self, facts: &[Fact]) {
        self.body.push_str("<dl>\n");
        for (term, value, remark) in facts {
            let remark = match remark.as_str() {
                "" => String::new(),
                remark => format!("<small>{}</small>", escape(remark)),
            };
            self.body.push_str(&format!(
                "<div><dt>{}</dt><dd>{}{remark}</dd></div>\n",
                escape(term),
                escape(value)
            ));
        }
        self.body.push_str("</dl>\n");
    }

    /// Adds figures side by side, after some HTML. A figure with nothing to show is left out.
    pub(crate) fn figures<D: Draw>(&mut self, before: &str, figures: &[Figure<D>]) {
        let mut drawn = before.to_owned();
        for figure in figures {
            if let Some(html) = figure.html(self.figures) {
                self.figures += 1;
                drawn.push_str(&html);
            }
        }
        self.body
            .push_str(&format!("<div class=\"figures\">\n{drawn}</div>\n"));
    }

    /// The page.
    pub(crate) fn finish(self) -> String {
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta \
             name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{}</title>\n\
             <style>\n{}</style>\n</head>\n<body>\n{}</main>\n</body>\n</html>\n",
            self.title,
            include_str!("style.css"),
            self.body
        )
    }
}
