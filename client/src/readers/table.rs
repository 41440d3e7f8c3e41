//! CSV and TSV with a header line, and plain text.

use std::io::{self, BufRead, Cursor, Read};
use std::path::PathBuf;
use std::sync::Arc;

use fedllm_shared::{Header, ReadAs};
use serde_json::{Map, Value};

use super::source::{Source, Text};
use super::{Body, MAX_ROW_BYTES, Place, RawRow, ReadError, RowError, RowProblem};

/// The records of a table; the first names its columns, unless the table has no header.
pub(super) struct Table {
    path: PathBuf,
    reader: csv::Reader<Box<dyn BufRead + Send>>,
    names: Arc<Vec<String>>,
    /// Where the table begins in the file.
    base: u64,
    /// Whether records end in CR LF. The parser then takes the LF with the next record, so the
    /// places that it tells are one line and one byte too early.
    crlf: bool,
    latin1: bool,
}

impl Table {
    pub(super) fn open(
        mut source: Source,
        delimiter: u8,
        read_as: &ReadAs,
    ) -> Result<Self, ReadError> {
        let base = source.text.place.offset;
        let mut header = Vec::new();
        source.text.line(&mut header)?;
        let path = source.text.path.clone();
        // Where a comma separates decimals, a semicolon separates cells.
        let semicolons = !header.contains(&b',') && header.contains(&b';');
        let delimiter = match delimiter {
            b',' if semicolons => b';',
            delimiter => delimiter,
        };
        let crlf = header.ends_with(b"\r\n");
        let reader: Box<dyn BufRead + Send> =
            Box::new(Cursor::new(header).chain(source.text.into_reader()));
        let mut reader = csv::ReaderBuilder::new()
            .delimiter(delimiter)
            .has_headers(false)
            .from_reader(reader);
        // The first record, which stays to be read.
        let first = reader
            .byte_headers()
            .map_err(|error| frame_error(&path, error))?;
        let names = match is_header(first, read_as.header) {
            false => (0..first.len()).map(|i| i.to_string()).collect(),
            true => {
                let names = names(first, read_as.latin1).ok_or_else(|| ReadError::NotRows {
                    path: path.clone(),
                    found: "its header line is not UTF-8".to_owned(),
                })?;
                let mut skipped = csv::ByteRecord::new();
                reader
                    .read_byte_record(&mut skipped)
                    .map_err(|error| frame_error(&path, error))?;
                names
            }
        };
        Ok(Self {
            path,
            reader,
            names: Arc::new(names),
            base,
            crlf,
            latin1: read_as.latin1,
        })
    }
}

/// Whether a table's first record names its columns.
fn is_header(first: &csv::ByteRecord, header: Header) -> bool {
    let cell = first.get(0).unwrap_or_default().trim_ascii();
    let is_one_of = |values: &[&str]| {
        let mut values = values.iter();
        values.any(|value| cell.eq_ignore_ascii_case(value.as_bytes()))
    };
    match header {
        Header::Always => true,
        Header::UnlessFirstIs(values) => !is_one_of(values),
        Header::IfFirstIs(values) => is_one_of(values),
    }
}

fn names(header: &csv::ByteRecord, latin1: bool) -> Option<Vec<String>> {
    let name = |cell| match latin1 {
        true => Some(super::utf8_or_latin1(cell).trim().to_owned()),
        false => Some(std::str::from_utf8(cell).ok()?.trim().to_owned()),
    };
    header.iter().map(name).collect()
}

impl Iterator for Table {
    type Item = Result<RawRow, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut cells = csv::ByteRecord::new();
        let read = self.reader.read_byte_record(&mut cells);
        let position = cells.position().unwrap_or(self.reader.position());
        let late = u64::from(self.crlf);
        let place = Place {
            line: position.line() + late,
            column: 0,
            offset: self.base + position.byte() + late,
        };
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
        let mut row = RawRow::new(place, body);
        row.latin1 = self.latin1;
        Some(Ok(row))
    }
}

/// The cells of a record by the names of their columns.
pub(super) fn fields(
    names: &[String],
    cells: &csv::ByteRecord,
    latin1: bool,
    place: Place,
) -> Result<Map<String, Value>, RowError> {
    let mut fields = Map::new();
    for (name, cell) in names.iter().zip(cells) {
        if latin1 {
            fields.insert(name.clone(), Value::from(super::utf8_or_latin1(cell)));
            continue;
        }
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

fn frame_error(path: &std::path::Path, error: csv::Error) -> ReadError {
    ReadError::io(path, io::Error::other(error))
}

/// Blocks of a text between blank lines, or its lines: each is a row.
pub(super) struct Blocks {
    text: Text,
    row_per_line: bool,
    latin1: bool,
    done: bool,
}

impl Blocks {
    pub(super) fn new(source: Source, read_as: &ReadAs) -> Self {
        Self {
            text: source.text,
            row_per_line: read_as.row_per_line,
            latin1: read_as.latin1,
            done: false,
        }
    }

    fn next_row(&mut self) -> Result<Option<RawRow>, ReadError> {
        if self.text.skip_space()?.is_none() {
            return Ok(None);
        }
        let place = self.text.place;
        let mut block = Vec::new();
        loop {
            let start = block.len();
            let more = self.text.line(&mut block)?;
            let blank = block[start..].trim_ascii().is_empty();
            if blank || !more || self.row_per_line {
                block.truncate(block.trim_ascii_end().len());
                let mut row = RawRow::new(place, Body::Text(block));
                row.latin1 = self.latin1;
                return Ok(Some(row));
            }
            if block.len() > MAX_ROW_BYTES {
                let what = format!(
                    "no blank line in the {} MiB that begin here",
                    MAX_ROW_BYTES >> 20
                );
                return Err(self.text.wrong_at(place, what));
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
        let row = self.next_row().transpose();
        self.done = !matches!(row, Some(Ok(_)));
        row
    }
}
