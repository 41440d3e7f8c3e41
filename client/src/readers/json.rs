//! JSON arrays, JSON Lines and objects of rows, cut into rows without reading the whole file.
//!
//! The cut follows strings and brackets only; each row is parsed later, by itself, so that a
//! mistake in one row does not hide the next and rows can be parsed in parallel.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::source::{Source, Text};
use super::{Body, MAX_ROW_BYTES, Place, RawRow, ReadError, RowError, RowProblem};

/// The elements of one JSON array.
pub(super) struct Array {
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
        match self.text.skip_space()? {
            Some(b']') => return self.end(),
            Some(b',') if !first => {
                self.text.take(1);
                match self.text.skip_space()? {
                    Some(b']' | b',') => {
                        return Err(self.text.wrong("a row is missing after the comma"));
                    }
                    Some(_) => {}
                    None => return Err(self.cut_off()),
                }
            }
            Some(_) if first => {}
            Some(_) => return Err(self.text.wrong("expected `,` or `]` after a row")),
            None => return Err(self.cut_off()),
        }
        let row = element(&mut self.text)?;
        self.state = State::Between { first: false };
        Ok(Some(row))
    }

    fn end(&mut self) -> Result<Option<RawRow>, ReadError> {
        self.text.take(1);
        match self.text.skip_space()? {
            None => Ok(None),
            Some(_) => Err(self.text.wrong("there is more after the end of the array")),
        }
    }

    fn cut_off(&self) -> ReadError {
        self.text.wrong("the file ends before the array's `]`")
    }
}

impl Iterator for Array {
    type Item = Result<RawRow, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_row().transpose()
    }
}

/// The values of one JSON object: each is a row, or a list of rows, and each row has its name as
/// [key](RawRow::key).
pub(super) struct Members {
    text: Text,
    place: Within,
}

/// Where [`Members`] stopped.
enum Within {
    /// Before `{`.
    Start,
    /// After a member, or right after `{` when `first`.
    Object { first: bool },
    /// In the list of a member, after a row or right after `[` when `first`.
    List { key: Arc<str>, first: bool },
    /// After `}`, or after an error.
    Done,
}

impl Members {
    pub(super) fn new(source: Source) -> Self {
        Self {
            text: source.text,
            place: Within::Start,
        }
    }

    fn next_row(&mut self) -> Result<Option<RawRow>, ReadError> {
        loop {
            match std::mem::replace(&mut self.place, Within::Done) {
                Within::Done => return Ok(None),
                Within::Start => {
                    self.text.take(1); // `{`: that is how the file was recognised.
                    self.place = Within::Object { first: true };
                }
                Within::Object { first } => {
                    if !self.separated(first, b'}')? {
                        return match self.text.skip_space()? {
                            None => Ok(None),
                            Some(_) => {
                                Err(self.text.wrong("there is more after the end of the object"))
                            }
                        };
                    }
                    if let Some(row) = self.member()? {
                        self.place = Within::Object { first: false };
                        return Ok(Some(row));
                    }
                }
                Within::List { key, first } => {
                    if !self.separated(first, b']')? {
                        self.place = Within::Object { first: false };
                        continue;
                    }
                    let mut row = element(&mut self.text)?;
                    row.key = Some(Arc::clone(&key));
                    self.place = Within::List { key, first: false };
                    return Ok(Some(row));
                }
            }
        }
    }

    /// Takes a member's name and its value, or of a list only the `[`.
    fn member(&mut self) -> Result<Option<RawRow>, ReadError> {
        if self.text.skip_space()? != Some(b'"') {
            return Err(self.text.wrong("expected a name in double quotes"));
        }
        let name = element(&mut self.text)?;
        let key = match &name.body {
            Body::Json(name) => serde_json::from_slice::<String>(name).ok(),
            _ => None,
        };
        let key: Arc<str> = key
            .ok_or_else(|| self.text.wrong("the name before this is no JSON"))?
            .into();
        if self.text.skip_space()? != Some(b':') {
            return Err(self.text.wrong("expected `:` after a name"));
        }
        self.text.take(1);
        if self.text.skip_space()? == Some(b'[') {
            self.text.take(1);
            self.place = Within::List { key, first: true };
            return Ok(None);
        }
        let mut row = element(&mut self.text)?;
        row.key = Some(key);
        Ok(Some(row))
    }

    /// Takes the comma before another value, or `close`; whether there is another value.
    fn separated(&mut self, first: bool, close: u8) -> Result<bool, ReadError> {
        match self.text.skip_space()? {
            Some(byte) if byte == close => {
                self.text.take(1);
                Ok(false)
            }
            Some(b',') if !first => {
                self.text.take(1);
                match self.text.skip_space()? {
                    Some(b',' | b']' | b'}') => {
                        Err(self.text.wrong("a row is missing after the comma"))
                    }
                    _ => Ok(true),
                }
            }
            Some(_) if first => Ok(true),
            Some(_) => Err(self
                .text
                .wrong("expected a comma or the end of the list or object")),
            None => Err(self.text.wrong("the file ends inside the object")),
        }
    }
}

impl Iterator for Members {
    type Item = Result<RawRow, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_row().transpose()
    }
}

/// JSON values one after the other, on as many lines as they like.
pub(super) struct Values {
    text: Text,
    done: bool,
}

impl Values {
    pub(super) fn new(source: Source) -> Self {
        Self {
            text: source.text,
            done: false,
        }
    }

    fn next_row(&mut self) -> Result<Option<RawRow>, ReadError> {
        match self.text.skip_space()? {
            None => Ok(None),
            Some(_) => element(&mut self.text).map(Some),
        }
    }
}

impl Iterator for Values {
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

/// Takes the value that begins here.
fn element(text: &mut Text) -> Result<RawRow, ReadError> {
    let place = text.place;
    let mut row = Vec::new();
    let mut scanner = Scanner::default();
    loop {
        let bytes = text.peek()?;
        if bytes.is_empty() {
            let what = "the file ends inside the row that begins here";
            return Err(text.wrong_at(place, what));
        }
        let length = bytes.len();
        let end = scanner.end(bytes);
        text.take_into(end.unwrap_or(length), &mut row)?;
        if end.is_some() {
            return Ok(RawRow::new(place, Body::Json(row)));
        }
        if row.len() > MAX_ROW_BYTES {
            return Err(too_long(text, place));
        }
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
    text: Text,
    done: bool,
}

impl Lines {
    pub(super) fn new(source: Source) -> Self {
        Self {
            text: source.text,
            done: false,
        }
    }

    fn next_row(&mut self) -> Result<Option<RawRow>, ReadError> {
        // Blank lines separate nothing, so they are skipped with all other white space.
        if self.text.skip_space()?.is_none() {
            return Ok(None);
        }
        let place = self.text.place;
        let mut row = Vec::new();
        self.text.line(&mut row)?;
        if row.len() > MAX_ROW_BYTES {
            return Err(too_long(&self.text, place));
        }
        row.truncate(row.trim_ascii_end().len());
        Ok(Some(RawRow::new(place, Body::Json(row))))
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

fn too_long(text: &Text, place: Place) -> ReadError {
    let limit = MAX_ROW_BYTES >> 20;
    text.wrong_at(
        place,
        format!("the row that begins here is longer than {limit} MiB"),
    )
}
