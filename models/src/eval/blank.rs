//! What the file of a task begins with, and then says the rest of.

use fedllm_shared::{Files, ReadAs, Split};

use super::{Grader, Item, ItemError, Metric, Prompts, Row, Shots, Source, Task};

/// A task without examples unless the user asks for them.
pub(super) const fn task(
    name: &'static str,
    items: fn(&Row<'_>, Prompts) -> Result<Vec<Item>, ItemError>,
    grader: Grader,
    metrics: &'static [Metric],
) -> Task {
    Task {
        name,
        about: "",
        prompt: "",
        reference: None,
        suites: &[],
        source: SOURCE,
        shots: Shots::NONE,
        items,
        grader,
        metrics,
        group: None,
    }
}

/// A source of nothing.
pub(super) const SOURCE: Source = Source {
    hub: &[],
    folders: &[],
    test: split("test", Files::AnyOf(&[])),
    examples: None,
    beside: None,
    read_as: ReadAs::ITSELF,
    licence: "",
};

/// A split of files.
pub(super) const fn split(name: &'static str, files: Files) -> Split {
    Split { name, files }
}
