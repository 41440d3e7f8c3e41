//! The file of rows, for comparing scores row by row with other programs'.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use fedllm_models::eval::{Grade, Reply};
use fedllm_shared::Digest;
use serde::Serialize;

use super::run::EvaluateError;

/// The file of rows, as it is written.
pub(crate) struct RowLog {
    path: PathBuf,
    file: BufWriter<File>,
}

/// One line of `rows.jsonl`.
#[derive(Serialize)]
pub(super) struct RowLine<'a> {
    pub(super) task: &'a str,
    pub(super) system: &'a str,
    pub(super) id: &'a str,
    pub(super) cluster: Option<&'a str>,
    /// Names the text that was asked, whoever was asked.
    pub(super) asked: Digest,
    pub(super) reply: &'a Reply,
    #[serde(flatten)]
    pub(super) grade: &'a Grade,
}

impl RowLog {
    /// Begins the file anew.
    pub(crate) fn create(path: PathBuf) -> Result<Self, EvaluateError> {
        match File::create(&path) {
            Ok(file) => Ok(Self {
                path,
                file: BufWriter::new(file),
            }),
            Err(error) => Err(EvaluateError::Write { path, error }),
        }
    }

    pub(super) fn put(&mut self, line: &RowLine<'_>) -> Result<(), EvaluateError> {
        let written = serde_json::to_writer(&mut self.file, line).map_err(io::Error::from);
        self.written(written)?;
        let written = self.file.write_all(b"\n");
        self.written(written)
    }

    /// Writes what is still in memory.
    pub(crate) fn finish(mut self) -> Result<(), EvaluateError> {
        let written = self.file.flush();
        self.written(written)
    }

    fn written(&self, written: io::Result<()>) -> Result<(), EvaluateError> {
        written.map_err(|error| EvaluateError::Write {
            path: self.path.clone(),
            error,
        })
    }
}
