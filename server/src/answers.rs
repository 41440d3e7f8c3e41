//! What was answered, kept line by line, so that nothing is asked for twice: replies of models,
//! judgements of judges.

use std::collections::HashMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use fedllm_shared::Digest;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// How each line begins.
const BEGINNING: &[u8] = b"{\"key\":\"";

/// Values by the key of what they depend on, in a file of JSON Lines that only grows. One process
/// at a time has it.
///
/// A value is in the file as soon as [`put`](Self::put) returns, however this program ends. A
/// last line that a crash cut short is dropped; whatever else is no line of ours is somebody
/// else's, and left alone.
#[derive(Debug)]
pub(crate) struct Answers<V> {
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

/// Answers that cannot be kept.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(crate) enum AnswersError {
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
    #[error("another process writes to {}", .0.display())]
    InUse(PathBuf),
    /// A line is no answer.
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

impl<V: Serialize + DeserializeOwned> Answers<V> {
    /// Opens the file, or begins it.
    pub(crate) fn open(path: PathBuf) -> Result<Self, AnswersError> {
        let io = |action| io_error(&path, action);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(io("make the folder of"))?;
        }
        let mut options = File::options();
        let options = options.read(true).append(true).create(true);
        let file = options.open(&path).map_err(io("open"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(AnswersError::InUse(path)),
            Err(TryLockError::Error(error)) => return Err(io("lock")(error)),
        }
        let (known, end) = read(&file, &path)?;
        if end < file.metadata().map_err(io("read"))?.len() {
            tracing::warn!("{}: the last line broke off and is removed", path.display());
            file.set_len(end).map_err(io("shorten"))?;
        }
        Ok(Self { path, file, known })
    }

    /// What is known of a key.
    pub(crate) fn get(&self, key: &Digest) -> Option<&V> {
        self.known.get(key)
    }

    /// Keeps a value; `id` says to people what it is of.
    pub(crate) fn put(&mut self, key: Digest, id: &str, value: V) -> Result<(), AnswersError> {
        let line = Line {
            key,
            id,
            value: &value,
        };
        let line = serde_json::to_string(&line).map_err(io::Error::from);
        let mut line = line.map_err(io_error(&self.path, "write"))?;
        // Reading rounds the last digit of a number: a value is from the first what it will be.
        let read = serde_json::from_str(&line).map(|line: Line<String, V>| line.value);
        line.push('\n');
        self.append(line.as_bytes())
            .map_err(io_error(&self.path, "write"))?;
        self.known.insert(key, read.unwrap_or(value));
        Ok(())
    }

    /// Returns when what was put is on the disk, for what is expensive to ask again.
    pub(crate) fn sync(&self) -> Result<(), AnswersError> {
        let synced = self.file.sync_data();
        synced.map_err(io_error(&self.path, "write"))
    }

    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        let before = self.file.metadata()?.len();
        let written = self.file.write_all(line);
        if written.is_err() {
            // Half a line in the middle would be an error for good.
            let _ = self.file.set_len(before);
        }
        written
    }
}

/// The values of a file, and where its last whole line ends.
fn read<V: DeserializeOwned>(
    file: &File,
    path: &Path,
) -> Result<(HashMap<Digest, V>, u64), AnswersError> {
    let mut known = HashMap::new();
    let mut reader = BufReader::new(file);
    let (mut line, mut number, mut end) = (Vec::new(), 0, 0);
    loop {
        line.clear();
        let length = reader.read_until(b'\n', &mut line);
        let length = length.map_err(io_error(path, "read"))?;
        if length == 0 || is_torn(&line) {
            return Ok((known, end));
        }
        number += 1;
        let parsed = serde_json::from_slice(&line);
        let parsed: Line<String, V> = parsed.map_err(|error| AnswersError::Line {
            path: path.to_owned(),
            line: number,
            problem: error.to_string(),
        })?;
        known.insert(parsed.key, parsed.value);
        end += length as u64;
    }
}

/// Whether this is the beginning of a line of ours and no more.
fn is_torn(line: &[u8]) -> bool {
    let compared = line.len().min(BEGINNING.len());
    !line.ends_with(b"\n") && line[..compared] == BEGINNING[..compared]
}

fn io_error(path: &Path, action: &'static str) -> impl Fn(io::Error) -> AnswersError {
    move |error| AnswersError::Io {
        action,
        path: path.to_owned(),
        error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Digest {
        Digest::of(text.as_bytes())
    }

    #[test]
    fn values_outlive_a_crash() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("replies/task/base.jsonl");
        {
            let mut answers: Answers<Vec<f64>> = Answers::open(path.clone()).unwrap();
            answers.put(key("a"), "first", vec![0.1, -1e-9]).unwrap();
            answers.put(key("b"), "second", vec![2.5]).unwrap();
            answers.sync().unwrap();
            let again = Answers::<Vec<f64>>::open(path.clone());
            assert!(matches!(again, Err(AnswersError::InUse(_))));
        }
        let whole = fs::read(&path).unwrap();
        assert!(whole.starts_with(BEGINNING));
        let first = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        for cut in first..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let mut answers: Answers<Vec<f64>> = Answers::open(path.clone()).unwrap();
            assert_eq!(answers.get(&key("a")), Some(&vec![0.1, -1e-9]));
            assert_eq!(answers.get(&key("b")), None, "cut at {cut}");
            answers.put(key("b"), "second", vec![2.5]).unwrap();
            drop(answers);
            assert_eq!(fs::read(&path).unwrap(), whole);
        }
    }

    #[test]
    fn what_is_no_line_of_ours_is_named_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("judgements.jsonl");
        let mut answers: Answers<u32> = Answers::open(path.clone()).unwrap();
        answers.put(key("a"), "first", 1).unwrap();
        drop(answers);
        let text = fs::read_to_string(&path).unwrap();
        for (wrong, line) in [
            (text + "{\"key\":\"00\"}\n", 2),
            ("notes of mine".to_owned(), 1),
            ("{\"other\":1}\n".to_owned(), 1),
        ] {
            fs::write(&path, &wrong).unwrap();
            let error = Answers::<u32>::open(path.clone()).unwrap_err();
            let place = format!("judgements.jsonl, line {line}: ");
            assert!(error.to_string().contains(&place), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), wrong);
        }
    }
}
