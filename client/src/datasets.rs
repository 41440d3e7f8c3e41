//! Data sets that are known by name: where their files lie, how they are laid out, and what their
//! fields mean.
//!
//! A row of the [table](DATASETS) is all that a data set takes. Rows of the Alpaca family read as
//! OpenFedLLM's utils/process_dataset.py reads them: what it joins, renames and drops is joined,
//! renamed and dropped here.

mod finance;
mod locate;
mod rows;
mod table;

use std::collections::{HashSet, VecDeque};
use std::path::{Path, PathBuf};

use fedllm_shared::{Compat, Files, ReadAs, RowKind, Split};
use serde_json::{Map, Value};
use thiserror::Error;

use crate::readers::{RawRow, ReadError, Record, RowError, RowProblem, RowReader};

pub use locate::find_files;
pub(crate) use rows::string;
pub use table::DATASETS;

/// A data set that is known by name.
#[derive(Debug)]
pub struct Dataset {
    /// Its short name.
    pub name: &'static str,
    /// What the Hugging Face hub calls it, or called it once; of several collections each.
    pub hub: &'static [&'static str],
    /// What its rows are.
    pub kind: RowKind,
    /// What is in it.
    pub about: &'static str,
    /// Its licence.
    pub licence: &'static str,
    /// Its splits; the first is the one that nobody has to name.
    pub splits: &'static [Split],
    /// How its files are laid out.
    read_as: ReadAs,
    /// What a row says.
    rows: fn(&Fields<'_>) -> Result<Vec<Entry>, RowProblem>,
    /// Of rows with the same value in this field only the first is kept.
    unique: Option<&'static str>,
}

/// What is known of a row besides what is learned from it: by these a simulation deals rows out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RowTags {
    /// Its class.
    pub label: Option<String>,
    /// The collection that it comes from.
    pub source: Option<String>,
    /// Whose row it is.
    pub owner: Option<String>,
}

/// The data set of this name, or of this name on the hub.
///
/// # Errors
///
/// [`DatasetError::Unknown`] with the nearest name.
///
/// # Examples
///
/// ```
/// let dataset = fedllm_client::dataset("vicgalle/alpaca-gpt4").unwrap();
/// assert_eq!(dataset.name, "alpaca-gpt4");
/// let error = fedllm_client::dataset("alpaca-gtp4").unwrap_err().to_string();
/// assert!(error.ends_with("is `alpaca-gpt4` meant?"));
/// ```
pub fn dataset(name: &str) -> Result<&'static Dataset, DatasetError> {
    let named = |dataset: &&Dataset| dataset.names().any(|n| n.eq_ignore_ascii_case(name));
    DATASETS
        .iter()
        .find(named)
        .ok_or_else(|| DatasetError::Unknown {
            name: name.chars().take(80).collect(),
            nearest: fedllm_shared::nearest(name, DATASETS.iter().flat_map(Dataset::names)),
        })
}

/// Why a data set cannot be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DatasetError {
    /// None is called so.
    #[error("no data set is called `{name}`; is `{nearest}` meant?")]
    Unknown {
        /// What was asked for.
        name: String,
        /// The name that is most like it.
        nearest: &'static str,
    },
    /// It has no such split.
    #[error("{dataset} has no split `{split}`, but {}", .splits.join(", "))]
    UnknownSplit {
        /// The data set.
        dataset: &'static str,
        /// What was asked for.
        split: String,
        /// What it has.
        splits: Vec<&'static str>,
    },
    /// Its files are not there.
    #[error("{place} has no files of the split `{split}` of {dataset}: {wanted}")]
    NotFound {
        /// The data set.
        dataset: &'static str,
        /// The split.
        split: &'static str,
        /// Where was looked for them.
        place: String,
        /// What their names would be.
        wanted: String,
        /// What the hub calls it.
        hub: &'static [&'static str],
    },
    /// A file cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A row cannot be used.
    #[error("{}, {error}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// Where in it, and why.
        error: RowError,
    },
}

impl DatasetError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unknown { .. } => {
                let names: Vec<&str> = DATASETS.iter().map(|dataset| dataset.name).collect();
                Some(format!("known data sets: {}", names.join(", ")))
            }
            Self::UnknownSplit { .. } => None,
            Self::NotFound { hub, .. } => Some(match hub {
                [] => "name its files".to_owned(),
                [first, ..] => format!(
                    "name its files, or get them with `hf download --repo-type dataset {first}`"
                ),
            }),
            Self::Read(error) => error.hint().map(str::to_owned),
            Self::Row { error, .. } => Some(error.problem.hint().to_owned()),
        }
    }
}

impl Dataset {
    /// Its name and its names on the hub.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        std::iter::once(self.name).chain(self.hub.iter().copied())
    }

    /// The split of this name; without a name the first.
    ///
    /// # Errors
    ///
    /// [`DatasetError::UnknownSplit`].
    pub fn split(&self, name: Option<&str>) -> Result<&'static Split, DatasetError> {
        let Some(name) = name else {
            return Ok(&self.splits[0]); // No data set is without.
        };
        let found = self.splits.iter().find(|split| split.name == name);
        found.ok_or_else(|| DatasetError::UnknownSplit {
            dataset: self.name,
            split: name.chars().take(80).collect(),
            splits: self.splits.iter().map(|split| split.name).collect(),
        })
    }

    /// The files of a split (without a name of the first), in order.
    ///
    /// `place` is a file, which is taken as it is, or a directory with the hub's layout or with the
    /// files alone; without it the cache of the hub's own tools is searched.
    ///
    /// # Errors
    ///
    /// [`DatasetError::UnknownSplit`], [`DatasetError::NotFound`].
    pub fn locate(
        &self,
        place: Option<&Path>,
        split: Option<&str>,
    ) -> Result<Vec<PathBuf>, DatasetError> {
        locate::files(self, place, self.split(split)?)
    }

    /// The examples or preferences in these files, in order, each with its tags.
    ///
    /// With a `split`, rows of a file that holds several are left out unless they are of it.
    /// Errors name file and line; those [in order](RowProblem::is_harmless) can be skipped.
    pub fn open(
        &'static self,
        files: Vec<PathBuf>,
        split: Option<&'static Split>,
        compat: Compat,
    ) -> DatasetRows {
        DatasetRows {
            dataset: self,
            split,
            compat,
            files: files.into(),
            reader: None,
            ready: VecDeque::new(),
            seen: Seen::default(),
        }
    }

    /// A file of this data set.
    pub(crate) fn reader(&self, path: &Path) -> Result<RowReader, ReadError> {
        RowReader::open_as(path, &self.read_as)
    }

    /// What one row of a file says; most say one thing.
    pub(crate) fn entries(&self, fields: &Fields<'_>) -> Result<Vec<Entry>, RowProblem> {
        let mut entries = (self.rows)(fields)?;
        if let Some(field) = self.unique
            && let Some(text) = fields.row.get(field).and_then(Value::as_str)
        {
            for entry in &mut entries {
                entry.unique = Some(unique_key(text));
            }
        }
        Ok(entries)
    }
}

/// A row of a file, and where it was found.
pub(crate) struct Fields<'a> {
    /// Its fields.
    pub(crate) row: &'a Map<String, Value>,
    /// What the file's object calls it.
    pub(crate) key: Option<&'a str>,
    /// The file.
    pub(crate) path: &'a Path,
    /// The split that is wanted, if one is.
    pub(crate) split: Option<&'static Split>,
    /// Whose reading of preferences is followed.
    pub(crate) compat: Compat,
}

/// One thing to learn, and what is known of it.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) record: Record,
    pub(crate) tags: RowTags,
    /// Later entries with the same key are dropped.
    pub(crate) unique: Option<[u8; 16]>,
}

/// The keys of entries that were kept.
#[derive(Debug, Default)]
pub(crate) struct Seen(HashSet<[u8; 16]>);

impl Seen {
    /// Whether an entry with this key is the first.
    pub(crate) fn is_new(&mut self, key: Option<[u8; 16]>) -> bool {
        key.is_none_or(|key| self.0.insert(key))
    }
}

/// Half of a hash: two texts of a data set share one by accident with probability 1e-20.
fn unique_key(text: &str) -> [u8; 16] {
    let hash = blake3::hash(text.as_bytes());
    std::array::from_fn(|i| hash.as_bytes()[i])
}

/// The examples or preferences of a data set's files.
#[derive(Debug)]
pub struct DatasetRows {
    dataset: &'static Dataset,
    split: Option<&'static Split>,
    compat: Compat,
    files: VecDeque<PathBuf>,
    reader: Option<RowReader>,
    /// The rest of a row that says several things.
    ready: VecDeque<(Record, RowTags)>,
    seen: Seen,
}

impl DatasetRows {
    /// Reads the next row; false after the last.
    fn advance(&mut self) -> Result<bool, DatasetError> {
        let Some(reader) = &mut self.reader else {
            let Some(file) = self.files.pop_front() else {
                return Ok(false);
            };
            self.reader = Some(self.dataset.reader(&file)?);
            return Ok(true);
        };
        match reader.next().transpose()? {
            None => self.reader = None,
            Some(row) => {
                let path = reader.path().to_owned();
                let read = self.read(&row, &path);
                read.map_err(|error| DatasetError::Row { path, error })?;
            }
        }
        Ok(true)
    }

    fn read(&mut self, row: &RawRow, path: &Path) -> Result<(), RowError> {
        let fields = Fields {
            row: &row.fields()?,
            key: row.key(),
            path,
            split: self.split,
            compat: self.compat,
        };
        let place = row.place();
        let entries = self.dataset.entries(&fields);
        for entry in entries.map_err(|problem| RowError { place, problem })? {
            if !self.seen.is_new(entry.unique) {
                let problem = RowProblem::Duplicate;
                return Err(RowError { place, problem });
            }
            self.ready.push_back((entry.record, entry.tags));
        }
        Ok(())
    }
}

impl Iterator for DatasetRows {
    type Item = Result<(Record, RowTags), DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(row) = self.ready.pop_front() {
                return Some(Ok(row));
            }
            match self.advance() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => {
                    if matches!(error, DatasetError::Read(_)) {
                        self.reader = None; // Nothing more can be read there.
                    }
                    return Some(Err(error));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
