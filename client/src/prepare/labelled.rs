//! Units with what a simulation deals them out by.

use std::collections::HashMap;

use super::{
    Output, PrepareError, PrepareOptions, PrepareProgress, PrepareReport, Vocabulary, prepare,
};
use crate::shard::{Shard, ShardBuilder};

/// A shard in memory, and what each of its units is.
#[derive(Debug)]
pub struct Labelled {
    /// The shard.
    pub shard: Shard,
    /// What became of the rows.
    pub report: PrepareReport,
    /// Where each unit comes from.
    pub origins: Vec<UnitOrigin>,
    /// The category of each unit.
    pub categories: Categories,
}

/// The row that a unit was made of. A row that says several things makes several units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnitOrigin {
    /// The file, counted from 0.
    pub file: u32,
    /// The row of the file, counted from 0, unreadable rows included.
    pub row: u32,
}

/// Categories of units, numbered in the order in which they first came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Categories {
    /// The category of each unit.
    pub of: Vec<u32>,
    /// The names of the categories.
    pub names: Vec<String>,
}

/// Prepares a shard in memory as [`prepare_in_memory`](super::prepare_in_memory) does, and tells
/// for each unit where it comes from and what its `field` says.
///
/// `label`, `source` and `owner` are the [tags](crate::RowTags) of a data set's rows; any other
/// name, and these where the rows have no such tag, is a field of the rows: a text, a number or a
/// truth value. Units without it have the category with the empty name.
///
/// # Errors
///
/// [`PrepareError`]; [`PrepareError::NoField`] if no unit has the field.
pub fn prepare_labelled(
    vocabulary: Vocabulary<'_>,
    options: &PrepareOptions,
    field: &str,
    progress: PrepareProgress<'_>,
) -> Result<Labelled, PrepareError> {
    let mut builder = ShardBuilder::new();
    let mut labels = Labels::new(field);
    let mut output = Output {
        sink: &mut builder,
        labels: Some(&mut labels),
    };
    let (origin, report) = prepare(vocabulary, options, &mut output, progress)?;
    if labels.categories.names == [""] {
        return Err(PrepareError::NoField(labels.field));
    }
    Ok(Labelled {
        shard: builder.finish(origin),
        report,
        origins: labels.origins,
        categories: labels.categories,
    })
}

/// Collects what [`Labelled`] tells, while files are read.
#[derive(Debug)]
pub(super) struct Labels {
    field: String,
    /// Files begun.
    files: u32,
    /// Rows of the file before the block in hand.
    passed: usize,
    origins: Vec<UnitOrigin>,
    categories: Categories,
    numbers: HashMap<String, u32>,
}

impl Labels {
    fn new(field: &str) -> Self {
        Self {
            field: field.to_owned(),
            files: 0,
            passed: 0,
            origins: Vec::new(),
            categories: Categories::default(),
            numbers: HashMap::new(),
        }
    }

    pub(super) fn field(&self) -> &str {
        &self.field
    }

    pub(super) fn start_file(&mut self) {
        self.files += 1;
        self.passed = 0;
    }

    /// A block of rows is done.
    pub(super) fn pass(&mut self, rows: usize) {
        self.passed += rows;
    }

    /// A unit was made of this row of the block.
    pub(super) fn add(&mut self, row: usize, category: Option<String>) {
        self.origins.push(UnitOrigin {
            file: self.files - 1,
            row: (self.passed + row) as u32, // More rows than that do not fit in memory as units.
        });
        let name = category.unwrap_or_default();
        let next = self.categories.names.len() as u32;
        let number = *self.numbers.entry(name).or_insert_with_key(|name| {
            self.categories.names.push(name.clone());
            next
        });
        self.categories.of.push(number);
    }
}
