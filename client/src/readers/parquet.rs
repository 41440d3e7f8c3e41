//! Rows of Parquet files.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use serde_json::{Map, Value};

use super::{Body, Place, RawRow, ReadError};

/// The rows of a file, decoded one after the other.
pub(super) struct Rows {
    path: PathBuf,
    rows: RowIter<'static>,
    total: u64,
    done: u64,
    read: Arc<AtomicU64>,
    bytes: u64,
}

impl Rows {
    pub(super) fn open(path: &Path, read: Arc<AtomicU64>, bytes: u64) -> Result<Self, ReadError> {
        let file = File::open(path).map_err(|e| ReadError::io(path, e))?;
        let reader = SerializedFileReader::new(file).map_err(|e| failed(path, e))?;
        let total = reader.metadata().file_metadata().num_rows();
        Ok(Self {
            path: path.to_owned(),
            rows: RowIter::from_file_into(Box::new(reader)),
            total: u64::try_from(total).unwrap_or(0),
            done: 0,
            read,
            bytes,
        })
    }
}

impl Iterator for Rows {
    type Item = Result<RawRow, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        let row = match self.rows.next()? {
            Ok(row) => row,
            Err(error) => return Some(Err(failed(&self.path, error))),
        };
        self.done += 1;
        // How far the file was read is not known, so rows stand for bytes.
        let share = self.done as f64 / self.total.max(1) as f64;
        let position = (self.bytes as f64 * share) as u64;
        self.read.store(position, Ordering::Relaxed);
        let place = Place {
            line: self.done,
            column: 0,
            offset: 0,
        };
        Some(Ok(RawRow::new(place, Body::Fields(object(&row)))))
    }
}

fn object(row: &Row) -> Map<String, Value> {
    row.get_column_iter()
        .map(|(name, field)| (name.clone(), value(field)))
        .collect()
}

fn value(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(truth) => Value::from(*truth),
        Field::Byte(number) => Value::from(*number),
        Field::Short(number) => Value::from(*number),
        Field::Int(number) => Value::from(*number),
        Field::Long(number) => Value::from(*number),
        Field::UByte(number) => Value::from(*number),
        Field::UShort(number) => Value::from(*number),
        Field::UInt(number) => Value::from(*number),
        Field::ULong(number) => Value::from(*number),
        Field::Float(number) => Value::from(*number),
        Field::Double(number) => Value::from(*number),
        Field::Str(text) => Value::from(text.as_str()),
        Field::Group(row) => Value::Object(object(row)),
        Field::ListInternal(list) => Value::Array(list.elements().iter().map(value).collect()),
        // Dates, decimals, maps and raw bytes: in no field that is read here.
        _ => Value::Null,
    }
}

fn failed(path: &Path, error: parquet::errors::ParquetError) -> ReadError {
    ReadError::io(path, io::Error::other(error))
}
