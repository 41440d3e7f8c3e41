//! What was computed, kept line by line, so that a run that ends early costs nothing.

use std::collections::HashMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use fedllm_shared::Digest;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Values by the key of what they depend on, in a file of JSON Lines that only grows.
///
/// A value is in the file as soon as [`put`](Self::put) returns, however this program ends. A
/// last line that a crash cut short is dropped.
#[derive(Debug)]
pub(crate) struct Store<V> {
    path: PathBuf,
    file: File,
    known: HashMap<Digest, V>,
}

#[derive(Serialize, Deserialize)]
struct Line<I, V> {
    key: Digest,
    id: I,
    value: V,
}

/// A store that cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(crate) enum StoreError {
    /// The system refuses.
    #[error("cannot {action} {}: {error}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What it said.
        error: io::Error,
    },
    /// Another process writes to it.
    #[error("another process evaluates into {}", .0.display())]
    InUse(PathBuf),
    /// A line is no value.
    #[error("{}, line {line}: {problem}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
}

impl<V: Serialize + DeserializeOwned> Store<V> {
    /// Opens the file, or begins it.
    pub(crate) fn open(path: PathBuf) -> Result<Self, StoreError> {
        let io = |action| {
            let path = path.clone();
            move |error| StoreError::Io {
                action,
                path,
                error,
            }
        };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(io("make the folder of"))?;
        }
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(io("open"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StoreError::InUse(path)),
            Err(TryLockError::Error(error)) => return Err(io("lock")(error)),
        }
        let (known, end) = read(&file, &path)?;
        file.set_len(end).map_err(io("shorten"))?;
        let mut file = file;
        file.seek(SeekFrom::Start(end)).map_err(io("open"))?;
        Ok(Self { path, file, known })
    }

    /// What is known of a key.
    pub(crate) fn get(&self, key: &Digest) -> Option<&V> {
        self.known.get(key)
    }

    /// Keeps a value; `id` says to people what it is of.
    pub(crate) fn put(&mut self, key: Digest, id: &str, value: V) -> Result<(), StoreError> {
        let line = Line {
            key,
            id,
            value: &value,
        };
        let written = serde_json::to_string(&line)
            .map_err(io::Error::from)
            .and_then(|line| {
                self.file
                    .write_all(format!("{line}\n").as_bytes())
                    .map(|()| line)
            });
        let line = written.map_err(|error| StoreError::Io {
            action: "write",
            path: self.path.clone(),
            error,
        })?;
        // Reading rounds the last digit of a number: a value is from the first what it will be.
        let read = serde_json::from_str(&line).map(|line: Line<String, V>| line.value);
        self.known.insert(key, read.unwrap_or(value));
        Ok(())
    }
}

/// The values of a file, and where its last whole line ends.
fn read<V: DeserializeOwned>(
    file: &File,
    path: &Path,
) -> Result<(HashMap<Digest, V>, u64), StoreError> {
    let mut known = HashMap::new();
    let mut reader = BufReader::new(file);
    let (mut line, mut number, mut end) = (Vec::new(), 0, 0);
    loop {
        line.clear();
        let length = reader
            .read_until(b'\n', &mut line)
            .map_err(|error| StoreError::Io {
                action: "read",
                path: path.to_owned(),
                error,
            })?;
        if line.last() != Some(&b'\n') {
            return Ok((known, end)); // The end, or a line that a crash cut short.
        }
        number += 1;
        let parsed: Line<String, V> =
            serde_json::from_slice(&line).map_err(|error| StoreError::Line {
                path: path.to_owned(),
                line: number,
                problem: error.to_string(),
            })?;
        known.insert(parsed.key, parsed.value);
        end += length as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_outlive_a_crash() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("replies/task/base.jsonl");
        let key = |text: &str| Digest::of(text.as_bytes());
        {
            let mut store: Store<Vec<f64>> = Store::open(path.clone()).unwrap();
            store.put(key("a"), "first", vec![0.1, -1e-9]).unwrap();
            store.put(key("b"), "second", vec![2.5]).unwrap();
            let again = Store::<Vec<f64>>::open(path.clone());
            assert!(matches!(again, Err(StoreError::InUse(_))));
        }
        let whole = fs::read(&path).unwrap();
        let first = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        for cut in [first, first + 1, whole.len() - 1] {
            fs::write(&path, &whole[..cut]).unwrap();
            let mut store: Store<Vec<f64>> = Store::open(path.clone()).unwrap();
            assert_eq!(store.get(&key("a")), Some(&vec![0.1, -1e-9]));
            assert_eq!(store.get(&key("b")), None);
            store.put(key("b"), "second", vec![2.5]).unwrap();
            drop(store);
            assert_eq!(fs::read(&path).unwrap(), whole);
        }
        fs::write(&path, b"{\"key\":\n").unwrap();
        let error = Store::<Vec<f64>>::open(path).unwrap_err().to_string();
        assert!(error.contains("base.jsonl, line 1: "), "{error}");
    }
}
