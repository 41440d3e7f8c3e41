//! CSV and TSV with a header line, and plain text.

use std::io::{self, BufRead, Cursor, Read};
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
    /// Where the table begins in the file.
    base: u64,
    /// Whether records end in CR LF. The parser then takes the LF with the next record, so the
    /// places that it tells are one line and one byte too early.
    crlf: bool,
}

impl Table {
    pub(super) fn open(mut source: Source, delimiter: u8) -> Result<Self, ReadError> {
        let base = source.text.place.offset;
        let mut header = Vec::new();
        line(&mut source.text, &mut header).map_err(|e| ReadError::io(&source.path, e))?;
        let crlf = header.ends_with(b"\r\n");
        let reader: Box<dyn BufRead + Send> =
            Box::new(Cursor::new(header).chain(source.text.into_reader()));
        let mut reader = csv::ReaderBuilder::new()
            .delimiter(delimiter)
            .from_reader(reader);
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
            crlf,
        })
    }
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
            let more = line(&mut self.text, &mut block)?;
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
}

/// Appends a line with its newline to `row`; false at the end of the file.
fn line(text: &mut Text, row: &mut Vec<u8>) -> io::Result<bool> {
    loop {
        let bytes = text.peek()?;
        if bytes.is_empty() {
            return Ok(false);
        }
        let newline = bytes.iter().position(|&byte| byte == b'\n');
        let length = newline.map_or(bytes.len(), |at| at + 1);
        text.take_into(length, row)?;
        if newline.is_some() || row.len() > MAX_ROW_BYTES {
            return Ok(true);
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
