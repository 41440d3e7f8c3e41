//! JSON arrays and JSON Lines, cut into rows without reading the whole file.
//!
//! The cut follows strings and brackets only; each row is parsed later, by itself, so that a
//! mistake in one row does not hide the next and rows can be parsed in parallel.

use std::io;
use std::path::PathBuf;

use serde_json::{Map, Value};

use super::source::{Source, Text};
use super::{Body, MAX_ROW_BYTES, Place, RawRow, ReadError, RowError, RowProblem};

/// The elements of one JSON array.
pub(super) struct Array {
    path: PathBuf,
    text: Text,
    state: State,
}

enum State {
    /// Before `[`.
    Start,
    /// After a row, or right after `[` when `first`.
    Between { first: bool },
    /// After `]`, or after an error.
    Done,
}

impl Array {
    pub(super) fn new(source: Source) -> Self {
        Self {
            path: source.path,
            text: source.text,
            state: State::Start,
        }
    }

    fn next_row(&mut self) -> Result<Option<RawRow>, ReadError> {
        if matches!(self.state, State::Start) {
            self.text.take(1); // `[`: that is how the file was recognised.
            self.state = State::Between { first: true };
        }
        let State::Between { first } = self.state else {
            return Ok(None);
        };
        self.state = State::Done; // unless all goes well
        match self.skip_space()? {
            Some(b']') => return self.end(),
            Some(b',') if !first => {
                self.text.take(1);
                match self.skip_space()? {
                    Some(b']' | b',') => return Err(self.error("a row is missing after the comma")),
                    Some(_) => {}
                    None => return Err(self.cut_off()),
                }
            }
            Some(_) if first => {}
            Some(_) => return Err(self.error("expected `,` or `]` after a row")),
            None => return Err(self.cut_off()),
        }
        let place = self.text.place;
        let body = Body::Json(self.element()?);
        self.state = State::Between { first: false };
        Ok(Some(RawRow { place, body }))
    }

    /// Takes the bytes of the value that begins here.
    fn element(&mut self) -> Result<Vec<u8>, ReadError> {
        let start = self.text.place;
        let mut row = Vec::new();
        let mut scanner = Scanner::default();
        loop {
            let bytes = self.text.peek().map_err(|e| ReadError::io(&self.path, e))?;
            if bytes.is_empty() {
                return Err(ReadError::Syntax {
                    path: self.path.clone(),
                    place: start,
                    what: "the file ends inside the row that begins here".to_owned(),
                });
            }
            let length = bytes.len();
            let end = scanner.end(bytes);
            self.text
                .take_into(end.unwrap_or(length), &mut row)
                .map_err(|e| ReadError::io(&self.path, e))?;
            if end.is_some() {
                return Ok(row);
            }
            if row.len() > MAX_ROW_BYTES {
                return Err(too_long(&self.path, start));
            }
        }
    }

    fn end(&mut self) -> Result<Option<RawRow>, ReadError> {
        self.text.take(1);
        match self.skip_space()? {
            None => Ok(None),
            Some(_) => Err(self.error("there is more after the end of the array")),
        }
    }

    fn skip_space(&mut self) -> Result<Option<u8>, ReadError> {
        self.text
            .skip_space()
            .map_err(|e| ReadError::io(&self.path, e))
    }

    fn cut_off(&self) -> ReadError {
        self.error("the file ends before the array's `]`")
    }

    fn error(&self, what: &str) -> ReadError {
        ReadError::Syntax {
            path: self.path.clone(),
            place: self.text.place,
            what: what.to_owned(),
        }
    }
}

impl Iterator for Array {
    type Item = Result<RawRow, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_row().transpose()
    }
}

/// Finds the end of a JSON value, fed with its bytes in pieces of any size.
#[derive(Default)]
struct Scanner {
    depth: usize,
    in_string: bool,
    escaped: bool,
    started: bool,
}

impl Scanner {
    /// How many of `bytes` belong to the value, if it ends among them.
    fn end(&mut self, bytes: &[u8]) -> Option<usize> {
        for (i, &byte) in bytes.iter().enumerate() {
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => {
                        self.in_string = false;
                        if self.depth == 0 {
                            return Some(i + 1);
                        }
                    }
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                // A bracket or comma that no value of this depth can hold ends a bare word.
                b'}' | b']' | b',' if self.depth == 0 && self.started => return Some(i),
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return Some(i + 1);
                    }
                }
                _ if self.depth == 0 && byte.is_ascii_whitespace() => return Some(i),
                _ => {}
            }
            self.started = true;
        }
        None
    }
}

/// The lines of a file of one JSON value a line.
pub(super) struct Lines {
    path: PathBuf,
    text: Text,
    done: bool,
}

impl Lines {
    pub(super) fn new(source: Source) -> Self {
        Self {
            path: source.path,
            text: source.text,
            done: false,
        }
    }

    fn next_row(&mut self) -> Result<Option<RawRow>, ReadError> {
        let fail = |e: io::Error| ReadError::io(&self.path, e);
        // Blank lines separate nothing, so they are skipped with all other white space.
        if self.text.skip_space().map_err(fail)?.is_none() {
            return Ok(None);
        }
        let place = self.text.place;
        let mut row = Vec::new();
        loop {
            let bytes = self.text.peek().map_err(fail)?;
            let newline = bytes.iter().position(|&byte| byte == b'\n');
            let length = newline.unwrap_or(bytes.len());
            let ended = newline.is_some() || bytes.is_empty();
            self.text.take_into(length, &mut row).map_err(fail)?;
            if ended {
                let end = row.trim_ascii_end().len();
                row.truncate(end);
                let body = Body::Json(row);
                return Ok(Some(RawRow { place, body }));
            }
            if row.len() > MAX_ROW_BYTES {
                return Err(too_long(&self.path, place));
            }
        }
    }
}

impl Iterator for Lines {
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

/// Parses a row.
pub(super) fn fields(bytes: &[u8], place: Place) -> Result<Map<String, Value>, RowError> {
    let text = super::utf8(bytes, place)?;
    let problem = match serde_json::from_str(text) {
        Ok(Value::Object(fields)) => return Ok(fields),
        Ok(other) => {
            return Err(RowError {
                place,
                problem: RowProblem::NotAnObject {
                    found: super::record::type_name(&other),
                },
            });
        }
        Err(error) => error,
    };
    let mut place = place;
    let (line, column) = (problem.line() as u64, problem.column() as u64);
    place.column = match line {
        0 | 1 => place.column + column.saturating_sub(1),
        _ => column,
    };
    place.line += line.saturating_sub(1);
    Err(RowError {
        place,
        problem: RowProblem::NotJson {
            what: without_place(&problem),
            unfinished: problem.is_eof(),
        },
    })
}

/// The message of `error` without its own line and column, which count from the row's start.
fn without_place(error: &serde_json::Error) -> String {
    let message = error.to_string();
    match message.rfind(" at line ") {
        Some(end) => message[..end].to_owned(),
        None => message,
    }
}

fn too_long(path: &std::path::Path, place: Place) -> ReadError {
    ReadError::Syntax {
        path: path.to_owned(),
        place,
        what: format!(
            "the row that begins here is longer than {} MiB",
            MAX_ROW_BYTES >> 20
        ),
    }
}
