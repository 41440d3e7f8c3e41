//! How questions are put, and of what rows.

use fedllm_client::Base;
use fedllm_models::eval::{Prompts, Task};

use super::choice::Selection;
use super::data::{self, Data, DataError, Rows};

/// Tokens of a text at most, unless the user says otherwise or the model takes fewer.
const CONTEXT: usize = 8192;

/// How questions are put, and of what data.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    /// Where data may be.
    pub(crate) data: Vec<Data>,
    /// Whether rows that cannot be used are left out.
    pub(crate) skip_bad_rows: bool,
    /// Whose prompts.
    pub(crate) prompts: Prompts,
    /// Which rows.
    pub(crate) selection: Selection,
    /// How many examples, if not as many as the task says.
    pub(crate) shots: Option<usize>,
    /// What chooses them.
    pub(crate) shot_seed: Option<u64>,
    /// Tokens of a text at most.
    pub(crate) context: usize,
}

/// A task whose rows were looked for.
#[derive(Debug)]
pub(crate) struct Opened {
    /// The task.
    pub(crate) task: &'static Task,
    /// Its rows, or that they are not here.
    pub(crate) rows: Result<Rows, DataError>,
}

impl Options {
    /// Tokens of a text at most: as many as are wanted, or [`CONTEXT`], and no more than the model
    /// takes.
    pub(crate) fn context(base: &Base, wanted: Option<usize>) -> usize {
        let longest = base.checkpoint().config().max_positions;
        wanted.unwrap_or(CONTEXT).min(longest)
    }

    /// Reads a task's rows, if they are here.
    ///
    /// # Errors
    ///
    /// [`DataError`] if they are here and cannot be used.
    pub(crate) fn open(&self, task: &'static Task) -> Result<Opened, DataError> {
        let shown = self.shots.unwrap_or(task.shots.count);
        let rows = data::rows(task, &self.data, self.prompts, self.skip_bad_rows, shown);
        match rows {
            Ok(_) | Err(DataError::Missing { .. }) => Ok(Opened { task, rows }),
            Err(error) => Err(error),
        }
    }
}
