//! How the files of public data sets are named and laid out.

use std::fmt;

use serde::Serialize;

/// The files of a split, as patterns of their paths: `*` stands for any part of a name, `**/` for
/// any directories.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Files {
    /// The first list of which every pattern has a file: the same rows in several layouts.
    FirstOf(&'static [&'static [&'static str]]),
    /// Every file of any pattern: parts that make sense alone.
    AnyOf(&'static [&'static str]),
}

impl fmt::Display for Files {
    /// As people say what they are missing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AnyOf(patterns) => f.write_str(&patterns.join(", ")),
            Self::FirstOf(lists) => {
                let lists: Vec<String> = lists.iter().map(|list| list.join(" and ")).collect();
                f.write_str(&lists.join(", or "))
            }
        }
    }
}

/// A split of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Split {
    /// Its name.
    pub name: &'static str,
    /// Its files.
    pub files: Files,
}

/// What is known of a file's layout before it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ReadAs {
    /// What a JSON object at the file's beginning is.
    pub object: JsonObject,
    /// What the first record of a table is.
    pub header: Header,
    /// In plain text each line is a row.
    pub row_per_line: bool,
    /// Cells and plain text that are no UTF-8 are Latin-1.
    pub latin1: bool,
}

/// What a JSON object at the beginning of a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum JsonObject {
    /// A row, on one line.
    Row,
    /// A row, on one line or more.
    LongRow,
    /// All of the file: its values are rows, or lists of rows.
    OfRows,
}

/// Whether the first record of a table names its columns. Columns without a name are called `0`, `1`
/// and so on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Header {
    /// It does.
    Always,
    /// It does, unless its first cell is one of these.
    UnlessFirstIs(&'static [&'static str]),
    /// It does if its first cell is one of these.
    IfFirstIs(&'static [&'static str]),
}

impl ReadAs {
    /// As the file says itself.
    pub const ITSELF: Self = Self {
        object: JsonObject::Row,
        header: Header::Always,
        row_per_line: false,
        latin1: false,
    };
}
