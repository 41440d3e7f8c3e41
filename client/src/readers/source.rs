//! Opens a file: takes off its compression and byte order mark, and sees what kind it is.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{MAX_ROW_BYTES, Place, ReadError};

/// How the rows of a file are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// One JSON array of rows.
    Array,
    /// One JSON value a line.
    Lines,
    /// Cells between delimiters, with a header line.
    Table {
        /// The byte between two cells.
        delimiter: u8,
    },
    /// Plain text, blank lines between rows.
    Text,
    /// Apache Parquet.
    Parquet,
}

/// An open file, at its first byte that is not white space.
pub(super) struct Source {
    pub(super) kind: Kind,
    pub(super) text: Text,
    /// Length of the file on the disk.
    pub(super) bytes: u64,
    /// How much of that was read.
    pub(super) read: Arc<AtomicU64>,
}

impl Source {
    /// Whether the file's name says that it holds JSON Lines.
    pub(super) fn is_jsonl(&self) -> bool {
        matches!(
            extension(&self.text.path).as_deref(),
            Some("jsonl" | "ndjson")
        )
    }
}

/// Bytes that know where they are.
pub(super) struct Text {
    pub(super) path: PathBuf,
    reader: Box<dyn BufRead + Send>,
    pub(super) place: Place,
}

pub(super) fn open(path: &Path) -> Result<Source, ReadError> {
    let fail = |source| ReadError::io(path, source);
    let file = File::open(path).map_err(fail)?;
    let metadata = file.metadata().map_err(fail)?;
    if metadata.is_dir() {
        return Err(not_rows(path, "it is a directory; name the files in it"));
    }
    if metadata.len() == 0 {
        return Err(ReadError::Empty(path.to_owned()));
    }
    let read = Arc::new(AtomicU64::new(0));
    let counted = Counted {
        file,
        read: Arc::clone(&read),
    };
    let mut text = Text {
        path: path.to_owned(),
        reader: decompress(counted).map_err(fail)?,
        place: Place {
            line: 1,
            column: 1,
            offset: 0,
        },
    };
    let kind = kind(&mut text)?;
    Ok(Source {
        kind,
        text,
        bytes: metadata.len(),
        read,
    })
}

impl Text {
    /// The next bytes, without taking them; empty at the end of the file.
    pub(super) fn peek(&mut self) -> Result<&[u8], ReadError> {
        loop {
            match self.reader.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ReadError::io(&self.path, error)),
                Ok(_) => break,
            }
        }
        // Asked again, because the borrow checker does not let a loop return a borrow.
        let bytes = self.reader.fill_buf();
        bytes.map_err(|error| ReadError::io(&self.path, error))
    }

    /// Takes `count` bytes of what [`peek`](Self::peek) showed, none of them a newline.
    pub(super) fn take(&mut self, count: usize) {
        self.reader.consume(count);
        self.place.offset += count as u64;
        self.place.column += count as u64;
    }

    /// Moves the place over bytes that were read, newlines and all.
    pub(super) fn passed(&mut self, bytes: &[u8]) {
        self.place = super::advance(self.place, bytes);
    }

    /// Takes `count` bytes of what [`peek`](Self::peek) showed and appends them to `row`.
    pub(super) fn take_into(&mut self, count: usize, row: &mut Vec<u8>) -> Result<(), ReadError> {
        let start = row.len();
        row.extend_from_slice(&self.peek()?[..count]);
        self.reader.consume(count);
        self.passed(&row[start..]);
        Ok(())
    }

    /// Takes white space; returns the byte after it, if there is one.
    pub(super) fn skip_space(&mut self) -> Result<Option<u8>, ReadError> {
        loop {
            let Some(&byte) = self.peek()?.first() else {
                return Ok(None);
            };
            if !byte.is_ascii_whitespace() {
                return Ok(Some(byte));
            }
            self.take(1);
            if byte == b'\n' {
                self.place.line += 1;
                self.place.column = 1;
            }
        }
    }

    /// Appends a line with its newline to `row`, or of a longer one more than [`MAX_ROW_BYTES`];
    /// false at the end of the file.
    pub(super) fn line(&mut self, row: &mut Vec<u8>) -> Result<bool, ReadError> {
        loop {
            let bytes = self.peek()?;
            if bytes.is_empty() {
                return Ok(false);
            }
            let newline = bytes.iter().position(|&byte| byte == b'\n');
            let length = newline.map_or(bytes.len(), |at| at + 1);
            self.take_into(length, row)?;
            if newline.is_some() || row.len() > MAX_ROW_BYTES {
                return Ok(true);
            }
        }
    }

    /// What is wrong here, or at another place.
    pub(super) fn wrong(&self, what: impl Into<String>) -> ReadError {
        self.wrong_at(self.place, what)
    }

    pub(super) fn wrong_at(&self, place: Place, what: impl Into<String>) -> ReadError {
        ReadError::Syntax {
            path: self.path.clone(),
            place,
            what: what.into(),
        }
    }

    /// What is left, as a plain reader.
    pub(super) fn into_reader(self) -> Box<dyn BufRead + Send> {
        self.reader
    }
}

/// Counts the bytes that leave a file.
struct Counted {
    file: File,
    read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.read.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

const BUFFER_BYTES: usize = 1 << 16;

fn decompress(file: Counted) -> io::Result<Box<dyn BufRead + Send>> {
    let (head, file) = head(BufReader::with_capacity(BUFFER_BYTES, file))?;
    let file = Cursor::new(head.clone()).chain(file);
    Ok(match head[..] {
        [0x1f, 0x8b, ..] => Box::new(BufReader::with_capacity(
            BUFFER_BYTES,
            flate2::bufread::MultiGzDecoder::new(file),
        )),
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(BufReader::with_capacity(
            BUFFER_BYTES,
            zstd::stream::read::Decoder::with_buffer(file)?,
        )),
        _ => Box::new(file),
    })
}

/// The first four bytes, or all of a shorter file.
fn head<R: Read>(mut reader: R) -> io::Result<(Vec<u8>, R)> {
    let mut head = Vec::with_capacity(4);
    reader.by_ref().take(4).read_to_end(&mut head)?;
    Ok((head, reader))
}

fn kind(text: &mut Text) -> Result<Kind, ReadError> {
    // What `decompress` looked at comes first, so up to four bytes are here at once.
    let start = text.peek()?;
    match start {
        [b'P', b'A', b'R', b'1', ..] => return Ok(Kind::Parquet),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => {
            return Err(not_rows(
                &text.path,
                "it is UTF-16; convert it with `iconv -f UTF-16 -t UTF-8`",
            ));
        }
        [0xef, 0xbb, 0xbf, ..] => {
            text.take(3);
            text.place.column = 1;
        }
        _ => {}
    }
    match extension(&text.path).as_deref() {
        Some("csv") => return Ok(Kind::Table { delimiter: b',' }),
        Some("tsv") => return Ok(Kind::Table { delimiter: b'\t' }),
        Some("txt") => return Ok(Kind::Text),
        _ => {}
    }
    match text.skip_space()? {
        Some(b'[') => Ok(Kind::Array),
        Some(b'{') => Ok(Kind::Lines),
        Some(byte) => Err(not_rows(
            &text.path,
            &format!(
                "it is no JSON: {} begins with the byte 0x{byte:02x} instead of `[` or `{{`",
                text.place
            ),
        )),
        None => Err(ReadError::Empty(text.path.clone())),
    }
}

/// The extension that says what is in the file, below that of its compression.
fn extension(path: &Path) -> Option<String> {
    let lower = |p: &Path| Some(p.extension()?.to_str()?.to_ascii_lowercase());
    match lower(path)?.as_str() {
        "gz" | "zst" => lower(Path::new(path.file_stem()?)),
        other => Some(other.to_owned()),
    }
}

fn not_rows(path: &Path, found: &str) -> ReadError {
    ReadError::NotRows {
        path: path.to_owned(),
        found: found.to_owned(),
    }
}
