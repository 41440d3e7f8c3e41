//! Reads files of training rows, one row at a time, whatever their size.
//!
//! A file is a JSON array of objects, JSON Lines, CSV or TSV with a header line, plain text with
//! blank lines between its rows, or Parquet (feature `parquet`); each may be compressed with gzip
//! or zstd. Its fields say what the rows are ([`Format`]). A known [`Dataset`](crate::Dataset) says
//! more about its files than they do themselves ([`ReadAs`]).

mod json;
#[cfg(feature = "parquet")]
mod parquet;
mod preference;
mod record;
mod source;
mod table;

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fedllm_shared::{JsonObject, ReadAs};
use serde_json::{Map, Value};
use thiserror::Error;

use source::Kind;

pub use record::{Format, Prompt, Record, RowProblem};
pub(crate) use record::{is_answer, text};

/// The longest row that is read: a file that is not what it seems must not fill the memory.
const MAX_ROW_BYTES: usize = 64 << 20;

/// Rows in the order of their file.
type Rows = Box<dyn Iterator<Item = Result<RawRow, ReadError>> + Send>;

/// The rows of one file, in order.
pub struct RowReader {
    path: PathBuf,
    rows: Rows,
    read: Arc<AtomicU64>,
    bytes: u64,
}

impl RowReader {
    /// Opens a file of rows.
    ///
    /// # Errors
    ///
    /// [`ReadError`] if the file cannot be opened, is empty, or is of no kind that is read here.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ReadError> {
        Self::open_as(path.as_ref(), &ReadAs::ITSELF)
    }

    /// Opens a file of rows of which more is known than it says itself.
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open).
    pub fn open_as(path: &Path, read_as: &ReadAs) -> Result<Self, ReadError> {
        let source = source::open(path)?;
        let read = Arc::clone(&source.read);
        let bytes = source.bytes;
        let rows: Rows = match source.kind {
            Kind::Array => Box::new(json::Array::new(source)),
            Kind::Lines => match read_as.object {
                // JSON Lines say by their name that they are no other object.
                _ if source.is_jsonl() => Box::new(json::Lines::new(source)),
                JsonObject::Row => Box::new(json::Lines::new(source)),
                JsonObject::LongRow => Box::new(json::Values::new(source)),
                JsonObject::OfRows => Box::new(json::Members::new(source)),
            },
            Kind::Text => Box::new(table::Blocks::new(source, read_as)),
            Kind::Table { delimiter } => Box::new(table::Table::open(source, delimiter, read_as)?),
            Kind::Parquet => parquet_rows(path, &read, bytes)?,
        };
        Ok(Self {
            path: path.to_owned(),
            rows,
            read,
            bytes,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length of the file, as it lies on the disk.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How much of [`bytes`](Self::bytes) was read so far.
    pub fn bytes_read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }
}

impl Iterator for RowReader {
    type Item = Result<RawRow, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.rows.next()
    }
}

impl fmt::Debug for RowReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RowReader")
            .field("path", &self.path)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

/// Where something lies in a file. Lines and columns count from 1, columns in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Line.
    pub line: u64,
    /// Byte of the line; 0 where only the line is known.
    pub column: u64,
    /// Byte of the (uncompressed) file, from 0.
    pub offset: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}", self.line)?;
        if self.column > 0 {
            write!(f, ", column {}", self.column)?;
        }
        Ok(())
    }
}

/// A row as it lies in its file, not yet understood: understanding it can be done in parallel.
#[derive(Debug)]
pub struct RawRow {
    place: Place,
    body: Body,
    /// What the file's object calls the row, or the list that holds it.
    key: Option<Arc<str>>,
    /// Bytes that are no UTF-8 are Latin-1.
    latin1: bool,
}

#[derive(Debug)]
enum Body {
    /// The bytes of one JSON value.
    Json(Vec<u8>),
    /// A table's cells and the names of its columns.
    Cells(Arc<Vec<String>>, csv::ByteRecord),
    /// Text without fields.
    Text(Vec<u8>),
    /// Fields that a typed file already had.
    #[cfg(feature = "parquet")]
    Fields(Map<String, Value>),
    /// A row that the file's own syntax does not allow.
    Broken(RowProblem),
}

impl RawRow {
    fn new(place: Place, body: Body) -> Self {
        Self {
            place,
            body,
            key: None,
            latin1: false,
        }
    }

    /// What the file calls the row, or the list that holds it; in files that are one object.
    pub fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// Where the row begins.
    pub fn place(&self) -> Place {
        self.place
    }

    /// The row's fields.
    ///
    /// # Errors
    ///
    /// [`RowError`] if the row is no JSON object, not UTF-8, or has the wrong number of cells.
    pub fn fields(&self) -> Result<Map<String, Value>, RowError> {
        let place = self.place;
        match &self.body {
            Body::Json(bytes) => json::fields(bytes, place),
            Body::Cells(names, cells) => table::fields(names, cells, self.latin1, place),
            Body::Text(bytes) => {
                let text = match self.latin1 {
                    true => utf8_or_latin1(bytes),
                    false => utf8(bytes, place)?.into(),
                };
                Ok(Map::from_iter([("text".to_owned(), Value::from(text))]))
            }
            #[cfg(feature = "parquet")]
            Body::Fields(fields) => Ok(fields.clone()),
            Body::Broken(problem) => Err(RowError {
                place,
                problem: problem.clone(),
            }),
        }
    }

    /// About how many bytes the row takes.
    pub fn size(&self) -> usize {
        match &self.body {
            Body::Json(bytes) | Body::Text(bytes) => bytes.len(),
            Body::Cells(_, cells) => cells.as_slice().len(),
            #[cfg(feature = "parquet")]
            Body::Fields(_) => 1 << 10,
            Body::Broken(_) => 0,
        }
    }
}

/// A row that cannot be used: where, and why.
#[derive(Debug, Error)]
#[error("{place}: {problem}")]
pub struct RowError {
    /// Where the row, or the mistake in it, lies.
    pub place: Place,
    /// What is wrong.
    pub problem: RowProblem,
}

/// A file whose rows cannot be read (on).
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The system could not open or read it.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is nothing in it.
    #[error("{} is empty", .0.display())]
    Empty(PathBuf),
    /// It is of no kind that is read here.
    #[error("{} holds no rows: {found}", path.display())]
    NotRows {
        /// The file.
        path: PathBuf,
        /// What it seems to be.
        found: String,
    },
    /// The file's frame is broken, so that no later row can be found.
    #[error("{}, {place}: {what}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where.
        place: Place,
        /// What is wrong there.
        what: String,
    },
    /// It is a Parquet file, and this program was built without Parquet.
    #[error("{} is a Parquet file, and this program was built without the feature `parquet`", .0.display())]
    ParquetNotBuilt(PathBuf),
}

impl ReadError {
    /// What the owner of the file can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NotRows { .. } => Some(
                "rows are read from a JSON array, JSON Lines, CSV with a header line, plain text \
                 (.txt) and Parquet, each also as .gz or .zst",
            ),
            Self::ParquetNotBuilt(_) => Some(
                "build it with `cargo install --path client --features parquet`, or convert the \
                 file to JSON Lines",
            ),
            Self::Empty(_) | Self::Io { .. } => None,
            Self::Syntax { .. } => {
                Some("the rows after this place cannot be found, so `--skip-bad-rows` cannot help")
            }
        }
    }

    fn io(path: &Path, source: io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }
}

/// The text of `bytes`, which begin at `start`; the error names the first bad byte.
fn utf8(bytes: &[u8], start: Place) -> Result<&str, RowError> {
    std::str::from_utf8(bytes).map_err(|error| {
        let good = error.valid_up_to();
        RowError {
            place: advance(start, &bytes[..good]),
            problem: RowProblem::NotUtf8 {
                offset: start.offset + good as u64,
                byte: bytes[good],
            },
        }
    })
}

/// The text of bytes that are UTF-8 or, failing that, Latin-1, which any bytes can be.
fn utf8_or_latin1(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Cow::from(text),
        Err(_) => bytes.iter().map(|&byte| char::from(byte)).collect(),
    }
}

/// The place after `bytes` that begin at `start`.
fn advance(start: Place, bytes: &[u8]) -> Place {
    let newlines = bytes.iter().filter(|&&byte| byte == b'\n').count() as u64;
    let column = match bytes.iter().rposition(|&byte| byte == b'\n') {
        Some(last) => (bytes.len() - last) as u64,
        None => start.column + bytes.len() as u64,
    };
    Place {
        line: start.line + newlines,
        column,
        offset: start.offset + bytes.len() as u64,
    }
}

#[cfg(feature = "parquet")]
fn parquet_rows(path: &Path, read: &Arc<AtomicU64>, bytes: u64) -> Result<Rows, ReadError> {
    Ok(Box::new(parquet::Rows::open(
        path,
        Arc::clone(read),
        bytes,
    )?))
}

#[cfg(not(feature = "parquet"))]
fn parquet_rows(path: &Path, _read: &Arc<AtomicU64>, _bytes: u64) -> Result<Rows, ReadError> {
    Err(ReadError::ParquetNotBuilt(path.to_owned()))
}

#[cfg(test)]
mod tests;
