//! Written answers: how they are asked for, and what is taken out of them.

pub(super) use super::blank::split;

use super::blank;
use super::{Grade, Grader, Item, ItemError, Metric, Prompts, Reply, Row, Task};

/// The answer is the right one, to the letter.
pub(super) const EXACT: Metric = Metric::mean("exact_match");

/// A task of written answers. Its file says the rest.
pub(super) const fn task(
    name: &'static str,
    items: fn(&Row<'_>, Prompts) -> Result<Vec<Item>, ItemError>,
    grader: Grader,
) -> Task {
    blank::task(name, items, grader, &[EXACT])
}

/// What was written; nothing if something else was asked.
pub(super) fn text(reply: &Reply) -> &str {
    match reply {
        Reply::Texts(texts) => texts.first().map_or("", String::as_str),
        Reply::Scores(_) => "",
    }
}

/// The first line that is not blank, without white space around it.
pub(super) fn first_line(text: &str) -> &str {
    text.trim_start().lines().next().unwrap_or("").trim_end()
}

/// The line after the last `mark`, whose case does not matter; None without one.
pub(super) fn after<'a>(text: &'a str, mark: &str) -> Option<&'a str> {
    let at = text.to_ascii_lowercase().rfind(mark)?; // This lowercase keeps its places.
    let rest = &text[at + mark.len()..];
    Some(rest.lines().next().unwrap_or("").trim())
}

/// The first `count` of the examples that a benchmark always shows, an empty line after each.
pub(super) fn fixed(examples: &[&str], count: usize) -> String {
    let shown = examples.iter().take(count);
    shown.map(|example| format!("{example}\n\n")).collect()
}

/// 1 of what is right, 0 of what is wrong.
pub(super) fn share(right: bool) -> f64 {
    f64::from(u8::from(right))
}

/// Grades an answer by [`EXACT`].
pub(super) fn exact(answer: &str, right: bool) -> Grade {
    Grade::of(EXACT.name, share(right)).answering(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_out_of_any_text() {
        assert_eq!(first_line(" \n\n  (A) \r\n(B)"), "(A)");
        assert_eq!(first_line(" \n "), "");
        let text = "The answer is 3.\nİ say, the ANSWER IS (ß)\nso";
        assert_eq!(after(text, "answer is"), Some("(ß)"));
        assert_eq!(after("Unknown", "answer is"), None);
        assert_eq!(after("answer is", "answer is"), Some(""));
        assert_eq!(fixed(&["a", "b"], 5), "a\n\nb\n\n");
        assert_eq!(fixed(&["a", "b"], 0), "");
        assert_eq!(super::text(&Reply::Texts(Vec::new())), "");
    }
}
