//! Judgements in a file, a line of JSON each, added at its end as they come.

use std::collections::HashMap;
use std::fs::{File, TryLockError};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use fedllm_shared::Digest;
use serde::{Deserialize, Serialize};

use super::JudgeError;

/// How each line begins.
const BEGINNING: &[u8] = b"{\"key\":\"";

/// A line: what the judge said to one question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// What names the question: the hash of judge model, question and settings.
    pub(super) key: Digest,
    /// What the question measures.
    pub(super) metric: String,
    /// The model that was asked.
    pub(super) judge: String,
    /// The model that answered, as the endpoint calls it.
    pub(super) answered_by: Option<String>,
    /// Its words.
    pub(super) answer: String,
    /// The rating in them.
    pub(super) figure: Option<f64>,
    /// How often it was asked until there was a rating.
    pub(super) requests: u32,
    /// Tokens that were read for that.
    pub(super) prompt_tokens: u64,
    /// Tokens that were written for that.
    pub(super) completion_tokens: u64,
    /// Answers that came without a count of tokens.
    pub(super) uncounted: u32,
}

/// What is kept in memory of a line.
#[derive(Debug)]
pub(super) struct Answer {
    /// The judge's words.
    pub(super) answer: String,
    /// The model that answered.
    pub(super) answered_by: Option<String>,
}

/// The file and what is in it. One process at a time has it.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
    file: File,
    answers: HashMap<Digest, Answer>,
}

impl Store {
    /// Opens the file, or makes it. A last line that broke off, as after a crash, is removed.
    pub(super) fn open(path: &Path) -> Result<Self, JudgeError> {
        let fail = |source| io_error(path, source);
        let mut options = File::options();
        let file = options.read(true).append(true).create(true).open(path);
        let file = file.map_err(fail)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(JudgeError::StoreInUse {
                    path: path.to_owned(),
                });
            }
            Err(TryLockError::Error(source)) => return Err(fail(source)),
        }
        let mut store = Self {
            path: path.to_owned(),
            file,
            answers: HashMap::new(),
        };
        let whole = store.read()?;
        if whole < store.file.metadata().map_err(fail)?.len() {
            tracing::warn!("{}: the last line broke off and is removed", path.display());
            store.file.set_len(whole).map_err(fail)?;
        }
        Ok(store)
    }

    /// Reads all whole lines, and says where they end.
    fn read(&mut self) -> Result<u64, JudgeError> {
        let fail = |source| io_error(&self.path, source);
        let mut lines = BufReader::new(&self.file);
        let (mut whole, mut text) = (0, Vec::new());
        for line in 1.. {
            text.clear();
            let length = lines.read_until(b'\n', &mut text).map_err(fail)?;
            if length == 0 || is_torn(&text) {
                break;
            }
            let entry: Entry =
                serde_json::from_slice(&text).map_err(|error| JudgeError::StoreLine {
                    path: self.path.clone(),
                    line,
                    reason: error.to_string(),
                })?;
            self.answers.insert(entry.key, entry.into());
            whole += length as u64;
        }
        Ok(whole)
    }

    /// Whether a question was answered.
    pub(super) fn has(&self, key: &Digest) -> bool {
        self.answers.contains_key(key)
    }

    /// What was answered to a question.
    pub(super) fn answer(&self, key: &Digest) -> Option<&Answer> {
        self.answers.get(key)
    }

    /// Adds an answer; it is on the disk when this returns.
    pub(super) fn add(&mut self, entry: Entry) -> Result<(), JudgeError> {
        let fail = |source| io_error(&self.path, source);
        let mut line = serde_json::to_vec(&entry).map_err(|error| fail(error.into()))?;
        line.push(b'\n');
        let before = self.file.metadata().map_err(fail)?.len();
        let written = self.file.write_all(&line);
        let written = written.and_then(|()| self.file.sync_data());
        if let Err(source) = written {
            // Half a line in the middle would be an error for good.
            let _ = self.file.set_len(before);
            return Err(fail(source));
        }
        self.answers.insert(entry.key, entry.into());
        Ok(())
    }
}

impl From<Entry> for Answer {
    fn from(entry: Entry) -> Self {
        Self {
            answer: entry.answer,
            answered_by: entry.answered_by,
        }
    }
}

/// Whether this is the beginning of a line of ours and no more. Anything else without an end is
/// somebody else's file, and not to be cut.
fn is_torn(line: &[u8]) -> bool {
    let compared = line.len().min(BEGINNING.len());
    !line.ends_with(b"\n") && line[..compared] == BEGINNING[..compared]
}

fn io_error(path: &Path, source: io::Error) -> JudgeError {
    JudgeError::Store {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(question: &str) -> Entry {
        Entry {
            key: Digest::of(question.as_bytes()),
            metric: "turn 1".into(),
            judge: "gpt-4".into(),
            answered_by: None,
            answer: format!("It is good.\nRating: [[8]] \u{2028}{question}"),
            figure: Some(8.0),
            requests: 1,
            prompt_tokens: 10,
            completion_tokens: 5,
            uncounted: 0,
        }
    }

    #[test]
    fn a_torn_last_line_is_removed_and_the_rest_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("judgements.jsonl");
        let mut store = Store::open(&path).unwrap();
        store.add(entry("a")).unwrap();
        store.add(entry("b")).unwrap();
        drop(store);
        let whole = std::fs::read(&path).unwrap();
        assert!(whole.starts_with(BEGINNING));
        let first = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        for length in first..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let mut store = Store::open(&path).unwrap();
            let has = ["a", "b"].map(|q| store.has(&Digest::of(q.as_bytes())));
            assert_eq!(has, [true, false], "cut at {length}");
            store.add(entry("b")).unwrap();
            drop(store);
            assert_eq!(std::fs::read(&path).unwrap(), whole);
        }
    }

    #[test]
    fn what_is_no_judgement_is_named_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("judgements.jsonl");
        let mut store = Store::open(&path).unwrap();
        store.add(entry("a")).unwrap();
        drop(store);
        let mut text = std::fs::read_to_string(&path).unwrap();
        text.push_str("{\"key\":\"00\"}\n");
        for wrong in [text.as_str(), "notes of mine", "{\"other\":1}\n"] {
            std::fs::write(&path, wrong).unwrap();
            let error = Store::open(&path).unwrap_err();
            assert!(matches!(error, JudgeError::StoreLine { .. }), "{wrong:?}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), wrong);
        }
    }

    #[test]
    fn one_process_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("judgements.jsonl");
        let store = Store::open(&path).unwrap();
        let error = Store::open(&path).unwrap_err();
        assert!(matches!(error, JudgeError::StoreInUse { .. }));
        drop(store);
        Store::open(&path).unwrap();
    }
}
