//! The rows of a task: which files they are in, and the questions that they make.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use fedllm_client::{Place, ReadError, RowError, RowReader, find_files};
use fedllm_models::eval::{Item, ItemError, Prompts, Row, TASKS, Task, task};
use fedllm_shared::{Digest, Files, Split};
use serde_json::{Map, Value};
use thiserror::Error;

use super::report::{DataFile, UsedFor};

/// A file or folder with data, as the user names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Data {
    /// The only task that it is for.
    pub(crate) task: Option<String>,
    /// Where it is.
    pub(crate) path: PathBuf,
}

impl FromStr for Data {
    type Err = Infallible;

    /// `TASK=PATH`, or `PATH` for all tasks.
    fn from_str(text: &str) -> Result<Self, Infallible> {
        let named = text.split_once('=').filter(|(name, _)| task(name).is_ok());
        Ok(match named {
            Some((task, path)) => Self {
                task: Some(task.to_owned()),
                path: path.into(),
            },
            None => Self {
                task: None,
                path: text.into(),
            },
        })
    }
}

/// Rows of other files, by what a task's own rows have in common with them.
type Others = HashMap<String, Map<String, Value>>;

/// The questions of a task.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    /// What is asked.
    pub(crate) questions: Vec<Item>,
    /// What may be shown as an example; empty if there is no split for that.
    pub(crate) examples: Vec<Item>,
    /// The files.
    pub(crate) files: Vec<DataFile>,
    /// Rows that were left out.
    pub(crate) bad: Vec<String>,
}

/// Why there are no rows.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(crate) enum DataError {
    /// They are not here.
    #[error("no files {wanted} of the split `{split}` in {}", places.join(", "))]
    Missing {
        /// What their names would be.
        wanted: String,
        /// Their split.
        split: &'static str,
        /// Where was looked.
        places: Vec<String>,
    },
    /// A file cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A file could not be hashed.
    #[error("cannot read {}: {error}", path.display())]
    Hash {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A row is damaged.
    #[error("{}, {error}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// Where in it, and why.
        error: RowError,
    },
    /// A row is none of this task.
    #[error("{}, {place}: {problem}; {task} cannot ask that", path.display())]
    Item {
        /// The task.
        task: &'static str,
        /// The file.
        path: PathBuf,
        /// Where in it.
        place: Place,
        /// What is wrong.
        problem: ItemError,
    },
    /// There is nothing in the files.
    #[error("{} holds no row that makes a question", .0.display())]
    Empty(PathBuf),
}

/// Finds and reads the rows of a task; those of its examples only if any are `shown`. `skip_bad`
/// counts rows that cannot be used, and goes on.
pub(crate) fn rows(
    task: &'static Task,
    data: &[Data],
    prompts: Prompts,
    skip_bad: bool,
    shown: usize,
) -> Result<Rows, DataError> {
    let mut rows = Rows::default();
    let (others, files) = beside(task, data)?;
    rows.files = files;
    let mut read = |split: &Split, used_for| -> Result<Vec<Item>, DataError> {
        let mut items = Vec::new();
        for path in find(task, data, split)? {
            let before = items.len();
            let bad = file(task, &path, prompts, &others, &mut items)?;
            match bad {
                bad if skip_bad => rows.bad.extend(bad.iter().map(ToString::to_string)),
                bad => bad.into_iter().next().map_or(Ok(()), Err)?,
            }
            rows.files.push(DataFile {
                digest: digest(&path)?,
                rows: items.len() - before,
                path,
                used_for,
            });
        }
        match (items.is_empty(), rows.files.last()) {
            (true, Some(file)) => Err(DataError::Empty(file.path.clone())),
            _ => Ok(items),
        }
    };
    let questions = read(&task.source.test, UsedFor::Questions)?;
    let examples = match &task.source.examples {
        Some(split) if shown > 0 => read(split, UsedFor::Examples)?,
        _ => Vec::new(),
    };
    Ok(Rows {
        questions,
        examples,
        ..rows
    })
}

/// What other files say about the questions of a task, and these files. Rows that say everything
/// themselves need none.
fn beside(task: &'static Task, data: &[Data]) -> Result<(Others, Vec<DataFile>), DataError> {
    let (mut others, mut files) = (Others::new(), Vec::new());
    let Some(beside) = &task.source.beside else {
        return Ok((others, files));
    };
    let (paths, _) = look(task, data, &beside.files);
    for path in paths {
        let before = others.len();
        for raw in RowReader::open_as(&path, &task.source.read_as)? {
            let fields = raw?.fields().map_err(|error| DataError::Row {
                path: path.clone(),
                error,
            })?;
            others.extend(beside.named([fields]));
        }
        files.push(DataFile {
            digest: digest(&path)?,
            rows: others.len() - before,
            path,
            used_for: UsedFor::References,
        });
    }
    Ok((others, files))
}

/// The files of a split.
fn find(task: &Task, data: &[Data], split: &Split) -> Result<Vec<PathBuf>, DataError> {
    let (files, places) = look(task, data, &split.files);
    match files.is_empty() {
        false => Ok(files),
        true => Err(DataError::Missing {
            wanted: split.files.to_string(),
            split: split.name,
            places,
        }),
    }
}

/// Looks for files in what the user named, in order, then in the cache of the hub's tools; the second
/// list is where was looked.
fn look(task: &Task, data: &[Data], wanted: &Files) -> (Vec<PathBuf>, Vec<String>) {
    let mut places = Vec::new();
    for data in data {
        for root in roots(task, data) {
            let mut files = find_files(&[], wanted, Some(&root));
            if files.is_empty() {
                // A pattern may begin with the folder's own name.
                files = find_files(&[], wanted, Some(&data.path));
                files.retain(|file| file.starts_with(&root));
            }
            if !files.is_empty() {
                return (files, places);
            }
            places.push(root.display().to_string());
        }
    }
    places.push("the Hugging Face cache".to_owned());
    (find_files(task.source.hub, wanted, None), places)
}

/// Where a task's files may lie in what the user named.
///
/// A folder of folders that tasks are called by is a collection: then only the task's own folder
/// is looked into, or a pattern such as `**/test.jsonl` would find another set.
fn roots(task: &Task, data: &Data) -> Vec<PathBuf> {
    match &data.task {
        Some(only) if only != task.name => return Vec::new(),
        Some(_) => return vec![data.path.clone()],
        None => {}
    }
    let own = |name: &str| data.path.join(name);
    let mut roots: Vec<PathBuf> = Vec::new();
    for root in task.folders().map(own).filter(|path| path.is_dir()) {
        if !roots.contains(&root) {
            roots.push(root);
        }
    }
    let mut known = TASKS.iter().filter(|other| other.name != task.name);
    let is_collection = known.any(|task| task.folders().any(|name| own(name).is_dir()));
    if roots.is_empty() && !is_collection {
        roots.push(data.path.clone());
    }
    roots
}

/// Reads a file's items, and says which rows make none.
fn file(
    task: &'static Task,
    path: &Path,
    prompts: Prompts,
    others: &Others,
    items: &mut Vec<Item>,
) -> Result<Vec<DataError>, ReadError> {
    let mut bad = Vec::new();
    for (index, raw) in RowReader::open_as(path, &task.source.read_as)?.enumerate() {
        let raw = raw?;
        let mut fields = match raw.fields() {
            Ok(fields) => fields,
            Err(error) => {
                let path = path.to_owned();
                bad.push(DataError::Row { path, error });
                continue;
            }
        };
        if let Some(beside) = &task.source.beside {
            beside.complete(&mut fields, others);
        }
        let row = Row {
            fields: &fields,
            key: raw.key(),
            path,
            index,
        };
        match (task.items)(&row, prompts) {
            Ok(made) => items.extend(made),
            Err(problem) => bad.push(DataError::Item {
                task: task.name,
                path: path.to_owned(),
                place: raw.place(),
                problem,
            }),
        }
    }
    Ok(bad)
}

fn digest(path: &Path) -> Result<Digest, DataError> {
    let mut hasher = blake3::Hasher::new();
    let hashed = File::open(path).and_then(|file| hasher.update_reader(file).map(drop));
    hashed.map_err(|error| DataError::Hash {
        path: path.to_owned(),
        error,
    })?;
    Ok(Digest(hasher.finalize().into()))
}

impl DataError {
    /// What the owner of the data can do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Missing { .. } | Self::Hash { .. } | Self::Empty(_) => None,
            Self::Read(error) => error.hint().map(str::to_owned),
            Self::Row { .. } | Self::Item { .. } => {
                Some("`--skip-bad-rows` leaves such rows out, and counts them".to_owned())
            }
        }
    }
}

/// What to do about a set that is not here; `how` its folder is named.
pub(crate) fn hint(task: &Task, how: &str) -> String {
    let name = format!("name its folder {how}");
    match task.source.hub {
        [] => name,
        hub => {
            let sets: Vec<String> = hub
                .iter()
                .map(|set| format!("`hf download --repo-type dataset {set}`"))
                .collect();
            format!("{name}, or get it with {}", sets.join(" and "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    fn data(dir: &tempfile::TempDir) -> Vec<Data> {
        vec![Data {
            task: None,
            path: dir.path().to_owned(),
        }]
    }

    const ROW: &str = "2+2?,1,2,3,4,D\n";

    #[test]
    fn questions_and_examples_come_from_the_tasks_folder() {
        let dir = tree(&[
            ("hendrycks_test/test/astronomy_test.csv", ROW),
            ("hendrycks_test/dev/astronomy_dev.csv", ROW),
            ("other/test/law_test.csv", ROW),
        ]);
        let rows = rows(task("mmlu").unwrap(), &data(&dir), Prompts::Sound, false, 1).unwrap();
        let ids: Vec<_> = rows.questions.iter().map(|item| &item.id).collect();
        assert_eq!(ids, ["astronomy/0"]);
        assert_eq!((rows.examples.len(), rows.files.len()), (1, 2));
        assert_eq!(rows.files[0].digest, Digest::of(ROW.as_bytes()));
        assert_eq!(rows.files[1].used_for, UsedFor::Examples);
    }

    #[test]
    fn a_task_that_has_no_part_of_what_is_named_gets_nothing_of_it() {
        let dir = tree(&[("astronomy_test.csv", ROW), ("astronomy_dev.csv", ROW)]);
        let mmlu = task("mmlu").unwrap();
        assert!(rows(mmlu, &data(&dir), Prompts::Sound, false, 1).is_ok());
        let mut other = data(&dir);
        other[0].task = Some("arc".to_owned());
        let error = rows(mmlu, &other, Prompts::Sound, false, 1).unwrap_err();
        assert!(error.to_string().contains("**/*_test.csv"), "{error}");
        assert!(hint(mmlu, "here").contains("folder here, or get it with `hf download"));
    }

    #[test]
    fn a_bad_row_is_named_or_counted() {
        let test = format!("{ROW}3+3?,1,2,3,6,Z\n{ROW}");
        let dir = tree(&[("a_test.csv", test.as_str()), ("a_dev.csv", ROW)]);
        let mmlu = task("mmlu").unwrap();
        let error = rows(mmlu, &data(&dir), Prompts::Sound, false, 1).unwrap_err();
        let said = error.to_string();
        for part in ["a_test.csv, line 2", "field `answer` is \"Z\""] {
            assert!(said.contains(part), "{said}");
        }
        let rows = rows(mmlu, &data(&dir), Prompts::Sound, true, 1).unwrap();
        assert_eq!((rows.questions.len(), rows.bad.len()), (2, 1));
        assert_eq!(rows.questions[1].id, "a/2", "numbers are those of the file");
    }
}
