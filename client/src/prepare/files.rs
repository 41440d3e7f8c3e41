//! The files of a preparation, one block of rows after the other.

use std::path::{Path, PathBuf};

use fedllm_shared::{RowKind, Split};
use rayon::prelude::*;
use serde_json::{Map, Value};

use super::counts::Counts;
use super::{FileReport, Output, PrepareError, PrepareOptions, Vocabulary, row_error};
use crate::datasets::{Dataset, Entry, Fields, RowTags, Seen};
use crate::readers::{Format, RawRow, ReadError, Record, RowError, RowProblem, RowReader};
use crate::shard::Row;
use crate::template::{Pair, Template, TemplateName, Tokens};

/// Rows are handed to the cores in blocks of at most this many rows ...
const BLOCK_ROWS: usize = 1024;
/// ... and about this many bytes.
const BLOCK_BYTES: usize = 4 << 20;

/// The files so far.
pub(super) struct Preparation<'a> {
    vocabulary: Vocabulary<'a>,
    options: &'a PrepareOptions,
    split: Option<&'static Split>,
    /// Chosen with the first row that can be read.
    template: Option<Template<'a>>,
    /// The first file of which a row could be read, and what it holds.
    first: Option<(PathBuf, RowKind)>,
    seen: Seen,
    counts: Counts,
}

impl<'a> Preparation<'a> {
    pub(super) fn new(
        vocabulary: Vocabulary<'a>,
        options: &'a PrepareOptions,
    ) -> Result<Self, PrepareError> {
        Ok(Self {
            vocabulary,
            options,
            split: wanted_split(options)?,
            template: None,
            first: None,
            seen: Seen::default(),
            counts: Counts::default(),
        })
    }

    /// The template, if a row could be read, and what became of the rows.
    pub(super) fn finish(self) -> (Option<Template<'a>>, Counts) {
        (self.template, self.counts)
    }

    /// Prepares one file; `None` if no row of it could be read.
    pub(super) fn file(
        &mut self,
        reader: &mut RowReader,
        output: &mut Output<'_>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Option<FileReport>, PrepareError> {
        let mut chosen = None;
        let before = (self.counts.units(), self.counts.rows());
        if let Some(labels) = &mut output.labels {
            labels.start_file();
        }
        loop {
            let block = next_block(reader)?;
            if block.is_empty() {
                break;
            }
            if chosen.is_none() {
                chosen = self.choose(reader.path(), &block)?;
            }
            match (&chosen, &self.template) {
                (Some(chosen), Some(template)) => {
                    let field = output.labels.as_ref().map(|labels| labels.field());
                    let reading = Reading {
                        understood: chosen.understood,
                        path: reader.path(),
                        split: self.split,
                        options: self.options,
                    };
                    let rows = block
                        .par_iter()
                        .map(|row| reading.made(row, template, field))
                        .collect();
                    self.store(reader.path(), rows, output)?;
                }
                // No row of this block could be read, and the user wants to go on.
                _ => self.count_unreadable(reader.path(), &block),
            }
            if let Some(labels) = &mut output.labels {
                labels.pass(block.len());
            }
            progress(reader.bytes_read());
        }
        Ok(chosen.map(|chosen| FileReport {
            path: reader.path().to_owned(),
            format: chosen.understood.name(),
            units: self.counts.units() - before.0,
            rows: self.counts.rows() - before.1,
            ignored: chosen.ignored,
        }))
    }

    /// Chooses the format, and for the first file the template, by the first row that can be read.
    fn choose(&mut self, path: &Path, block: &[RawRow]) -> Result<Option<Chosen>, PrepareError> {
        for row in block {
            match self.look_at(path, row) {
                Ok((chosen, record)) => {
                    self.check_kind(path, chosen.kind)?;
                    self.choose_template(path, &chosen, record.as_ref())?;
                    return Ok(Some(chosen));
                }
                Err(error) if !self.options.skip_bad_rows => {
                    return Err(row_error(path, error));
                }
                Err(_) => {} // Counted with its block.
            }
        }
        Ok(None)
    }

    /// What the row's file is, and what the row says unless that is nothing worth learning.
    fn look_at(&self, path: &Path, row: &RawRow) -> Result<(Chosen, Option<Record>), RowError> {
        let fields = row.fields()?;
        let place = row.place();
        let understood = match (self.options.dataset, self.options.format) {
            (Some(dataset), _) => Understood::Dataset(dataset),
            (None, Some(format)) => Understood::Format(format),
            (None, None) => Format::detect(&fields)
                .map(Understood::Format)
                .map_err(|problem| RowError { place, problem })?,
        };
        let reading = Reading {
            understood,
            path,
            split: self.split,
            options: self.options,
        };
        let record = match reading.entries(row, &fields) {
            Ok(entries) => entries.into_iter().next().map(|entry| entry.record),
            Err(problem) if problem.is_harmless() => None,
            Err(problem) => return Err(RowError { place, problem }),
        };
        let chosen = Chosen {
            understood,
            kind: match &record {
                Some(record) => record.kind(),
                None => understood.kind(),
            },
            ignored: understood.ignores(&fields),
        };
        Ok((chosen, record))
    }

    fn check_kind(&mut self, path: &Path, kind: RowKind) -> Result<(), PrepareError> {
        match &self.first {
            Some((first, first_kind)) if *first_kind != kind => Err(PrepareError::MixedKinds {
                first: first.clone(),
                first_kind: *first_kind,
                second: path.to_owned(),
                second_kind: kind,
            }),
            Some(_) => Ok(()),
            None => {
                self.first = Some((path.to_owned(), kind));
                Ok(())
            }
        }
    }

    fn choose_template(
        &mut self,
        path: &Path,
        chosen: &Chosen,
        first: Option<&Record>,
    ) -> Result<(), PrepareError> {
        let Vocabulary { tokenizer, chat } = self.vocabulary;
        let verbatim = matches!(first, Some(Record::Preference { verbatim: true, .. }));
        let name = self.options.template.unwrap_or(match verbatim {
            // Only the templates of the program that cut the row can join it again.
            true => TemplateName::Vicuna,
            false => TemplateName::default_for(chosen.understood.format(), first, chat.is_some()),
        });
        match &self.template {
            None => self.template = Some(Template::new(name, tokenizer, chat)?),
            Some(chosen) if chosen.name() != name => {
                return Err(PrepareError::MixedTemplates {
                    path: path.to_owned(),
                    first: chosen.name(),
                    second: name,
                });
            }
            Some(_) => {}
        }
        Ok(())
    }

    fn store(
        &mut self,
        path: &Path,
        rows: Vec<Result<Vec<Made>, RowError>>,
        output: &mut Output<'_>,
    ) -> Result<(), PrepareError> {
        for (at, row) in rows.into_iter().enumerate() {
            let made = match row {
                Ok(made) => made,
                Err(error) => {
                    self.refuse(path, error)?;
                    continue;
                }
            };
            for made in made {
                if !self.seen.is_new(made.unique) {
                    self.counts.add_dropped(RowProblem::Duplicate.reason());
                    continue;
                }
                match made.unit {
                    Ok(unit) => {
                        self.push(&unit, output)?;
                        if let Some(labels) = &mut output.labels {
                            labels.add(at, made.category);
                        }
                    }
                    Err(error) => self.refuse(path, error)?,
                }
            }
        }
        Ok(())
    }

    fn push(&mut self, unit: &Unit, output: &mut Output<'_>) -> Result<(), PrepareError> {
        match unit {
            Unit::Example(row) => {
                output.sink.push(&row.ids, &row.loss)?;
                self.counts.add_unit(RowKind::Examples, &[row]);
            }
            Unit::Pair(Pair { chosen, rejected }) => {
                output.sink.push_pair(view(chosen), view(rejected))?;
                self.counts
                    .add_unit(RowKind::Preferences, &[chosen, rejected]);
            }
        }
        Ok(())
    }

    /// Counts a row that is not learned, or ends the preparation.
    fn refuse(&mut self, path: &Path, error: RowError) -> Result<(), PrepareError> {
        let reason = error.problem.reason();
        if error.problem.is_harmless() {
            self.counts.add_dropped(reason);
        } else if self.options.skip_bad_rows {
            self.counts.add_bad(reason);
        } else {
            return Err(row_error(path, error));
        }
        Ok(())
    }

    fn count_unreadable(&mut self, path: &Path, block: &[RawRow]) {
        for row in block {
            if let Err(error) = self.look_at(path, row) {
                self.counts.add_bad(error.problem.reason());
            }
        }
    }
}

/// The split that rows of a file must be of, if the user named one or a place with several files.
fn wanted_split(options: &PrepareOptions) -> Result<Option<&'static Split>, PrepareError> {
    let Some(dataset) = options.dataset else {
        return Ok(None);
    };
    let whole = !options.files.is_empty() && options.files.iter().all(|file| !file.is_dir());
    match (&options.split, whole) {
        (None, true) => Ok(None),
        (split, _) => Ok(Some(dataset.split(split.as_deref())?)),
    }
}

/// What a file's rows are, by its first.
struct Chosen {
    understood: Understood,
    kind: RowKind,
    ignored: Vec<String>,
}

/// By what the fields of rows are understood.
#[derive(Clone, Copy)]
enum Understood {
    Format(Format),
    Dataset(&'static Dataset),
}

impl Understood {
    fn name(self) -> &'static str {
        match self {
            Self::Format(format) => format.name(),
            Self::Dataset(dataset) => dataset.name,
        }
    }

    fn kind(self) -> RowKind {
        match self {
            Self::Format(format) => format.kind(),
            Self::Dataset(dataset) => dataset.kind,
        }
    }

    /// The format, or the one that the rows of a data set are most like.
    fn format(self) -> Format {
        match self {
            Self::Format(format) => format,
            Self::Dataset(dataset) => match dataset.kind {
                RowKind::Examples => Format::Alpaca,
                RowKind::Preferences => Format::Preference,
            },
        }
    }

    /// Fields that nothing reads; of a data set they are known and not worth a word.
    fn ignores(self, fields: &Map<String, Value>) -> Vec<String> {
        match self {
            Self::Format(format) => format.ignores(fields),
            Self::Dataset(_) => Vec::new(),
        }
    }
}

/// How the rows of one file are read. Shared by all cores.
struct Reading<'a> {
    understood: Understood,
    path: &'a Path,
    split: Option<&'static Split>,
    options: &'a PrepareOptions,
}

/// What one entry of a row became.
struct Made {
    unit: Result<Unit, RowError>,
    unique: Option<[u8; 16]>,
    category: Option<String>,
}

enum Unit {
    Example(Tokens),
    Pair(Pair),
}

impl Reading<'_> {
    /// Everything that a row says, as tokens; with the value of `field` if there is one.
    fn made(
        &self,
        row: &RawRow,
        template: &Template<'_>,
        field: Option<&str>,
    ) -> Result<Vec<Made>, RowError> {
        let fields = row.fields()?;
        let place = row.place();
        let entries = self
            .entries(row, &fields)
            .map_err(|problem| RowError { place, problem })?;
        let made = entries.into_iter().map(|entry| Made {
            unit: tokenize(&entry.record, template, self.options.max_tokens as usize)
                .map_err(|problem| RowError { place, problem }),
            unique: entry.unique,
            category: field.and_then(|field| category(field, &entry.tags, &fields)),
        });
        Ok(made.collect())
    }

    fn entries(&self, row: &RawRow, fields: &Map<String, Value>) -> Result<Vec<Entry>, RowProblem> {
        match self.understood {
            Understood::Format(format) => Ok(vec![Entry {
                record: format.record_as(fields, self.options.compat)?,
                tags: RowTags::default(),
                unique: None,
            }]),
            Understood::Dataset(dataset) => dataset.entries(&Fields {
                row: fields,
                key: row.key(),
                path: self.path,
                split: self.split,
                compat: self.options.compat,
            }),
        }
    }
}

fn tokenize(
    record: &Record,
    template: &Template<'_>,
    max_tokens: usize,
) -> Result<Unit, RowProblem> {
    match record.kind() {
        RowKind::Examples => template.apply(record, max_tokens).map(Unit::Example),
        RowKind::Preferences => template.apply_pair(record, max_tokens).map(Unit::Pair),
    }
}

/// A tag of this name, or what the row has in the field of this name.
fn category(field: &str, tags: &RowTags, fields: &Map<String, Value>) -> Option<String> {
    let tag = match field {
        "label" => &tags.label,
        "source" => &tags.source,
        "owner" => &tags.owner,
        _ => &None,
    };
    tag.clone()
        .or_else(|| crate::datasets::string(fields, field))
}

fn view(row: &Tokens) -> Row<'_> {
    Row {
        ids: &row.ids,
        loss: &row.loss,
    }
}

/// The next rows of the file, as many as make a block; none at its end.
fn next_block(reader: &mut RowReader) -> Result<Vec<RawRow>, ReadError> {
    let mut block = Vec::new();
    let mut bytes = 0;
    while block.len() < BLOCK_ROWS && bytes < BLOCK_BYTES {
        let Some(row) = reader.next().transpose()? else {
            break;
        };
        bytes += row.size();
        block.push(row);
    }
    Ok(block)
}
