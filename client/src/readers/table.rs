//! CSV and TSV with a header line, and plain text.

use std::io::{self, BufRead};
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::source::{Source, Text};
use super::{Body, MAX_ROW_BYTES, Place, RawRow, ReadError, RowError, RowProblem};

/// The records of a table; the first names its columns.
pub(super) struct Table {
    path: PathBuf,
    reader: csv::Reader<Box<dyn BufRead + Send>>,
    names: Arc<Vec<String>>,
    base: u64,
}

impl Table {
    pub(super) fn open(source: Source, delimiter: u8) -> Result<Self, ReadError> {
        let base = source.text.place.offset;
        let mut reader = csv::ReaderBuilder::new()
            .delimiter(delimiter)
            .from_reader(source.text.into_reader());
        let header = reader
            .byte_headers()
            .map_err(|error| frame_error(&source.path, error))?;
        let names = header
            .iter()
            .map(|name| Ok(std::str::from_utf8(name)?.trim().to_owned()))
            .collect::<Result<Vec<String>, std::str::Utf8Error>>()
            .map_err(|_| ReadError::NotRows {
                path: source.path.clone(),
                found: "its header line is not UTF-8".to_owned(),
            })?;
        Ok(Self {
            path: source.path,
            reader,
            names: Arc::new(names),
            base,
        })
    }
}

impl Iterator for Table {
    type Item = Result<RawRow, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut cells = csv::ByteRecord::new();
        let read = self.reader.read_byte_record(&mut cells);
        let place = place(
            cells.position().unwrap_or(self.reader.position()),
            self.base,
        );
        let body = match read {
            Ok(false) => return None,
            Ok(true) => Body::Cells(Arc::clone(&self.names), cells),
            Err(error) => match *error.kind() {
                csv::ErrorKind::UnequalLengths {
                    expected_len, len, ..
                } => Body::Broken(RowProblem::Cells {
                    expected: expected_len,
                    found: len,
                }),
                _ => return Some(Err(frame_error(&self.path, error))),
            },
        };
        Some(Ok(RawRow { place, body }))
    }
}

/// The cells of a record by the names of their columns.
pub(super) fn fields(
    names: &[String],
    cells: &csv::ByteRecord,
    place: Place,
) -> Result<Map<String, Value>, RowError> {
    let mut fields = Map::new();
    for (name, cell) in names.iter().zip(cells) {
        let text = std::str::from_utf8(cell).map_err(|error| RowError {
            place,
            problem: RowProblem::CellNotUtf8 {
                column: name.clone(),
                byte: cell[error.valid_up_to()],
                within: error.valid_up_to(),
                record: place.offset,
            },
        })?;
        fields.insert(name.clone(), Value::from(text));
    }
    Ok(fields)
}

fn place(position: &csv::Position, base: u64) -> Place {
    Place {
        line: position.line(),
        column: 0,
        offset: base + position.byte(),
    }
}

fn frame_error(path: &std::path::Path, error: csv::Error) -> ReadError {
    ReadError::io(path, io::Error::other(error))
}

/// Blocks of a text between blank lines: each is a row.
pub(super) struct Blocks {
    path: PathBuf,
    text: Text,
    done: bool,
}

impl Blocks {
    pub(super) fn new(source: Source) -> Self {
        Self {
            path: source.path,
            text: source.text,
            done: false,
        }
    }

    fn next_row(&mut self) -> io::Result<Option<Result<RawRow, Place>>> {
        if self.text.skip_space()?.is_none() {
            return Ok(None);
        }
        let place = self.text.place;
        let mut block = Vec::new();
        loop {
            let start = block.len();
            let more = self.line(&mut block)?;
            let blank = block[start..].trim_ascii().is_empty();
            if blank || !more {
                block.truncate(block.trim_ascii_end().len());
                let body = Body::Text(block);
                return Ok(Some(Ok(RawRow { place, body })));
            }
            if block.len() > MAX_ROW_BYTES {
                return Ok(Some(Err(place)));
            }
        }
    }

    /// Appends a line with its newline; false at the end of the file.
    fn line(&mut self, block: &mut Vec<u8>) -> io::Result<bool> {
        loop {
            let bytes = self.text.peek()?;
            if bytes.is_empty() {
                return Ok(false);
            }
            let newline = bytes.iter().position(|&byte| byte == b'\n');
            let length = newline.map_or(bytes.len(), |at| at + 1);
            self.text.take_into(length, block)?;
            if newline.is_some() || block.len() > MAX_ROW_BYTES {
                return Ok(true);
            }
        }
    }
}

impl Iterator for Blocks {
    type Item = Result<RawRow, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let row = match self.next_row() {
            Ok(None) => return None,
            Ok(Some(Ok(row))) => return Some(Ok(row)),
            Ok(Some(Err(place))) => ReadError::Syntax {
                path: self.path.clone(),
                place,
                what: format!(
                    "no blank line in the {} MiB that begin here",
                    MAX_ROW_BYTES >> 20
                ),
            },
            Err(error) => ReadError::io(&self.path, error),
        };
        self.done = true;
        Some(Err(row))
    }
}
