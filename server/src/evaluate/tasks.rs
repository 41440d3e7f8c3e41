//! Tasks that adapters are measured on while they are trained.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use fedllm_client::{Base, Silent, StopFlag, TemplateError};
use fedllm_models::eval::{Grader, Prompts, Task, task};
use fedllm_shared::{TaskScore, TasksConfig};
use thiserror::Error;

use super::asked::Templates;
use super::choice::Selection;
use super::data::{self, Data, DataError};
use super::grades::{Graders, Refusal};
use super::options::{Opened, Options};
use super::report::TaskReport;
use super::run::{EvaluateError, Evaluation, Loaded};
use super::systems::{BASE, System};

/// Why tasks cannot be measured.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TasksError {
    /// They are none that can be measured.
    #[error("evaluation.tasks {0}")]
    Names(String),
    /// Their rows are not here, or damaged.
    #[error("evaluation.data: {problem}")]
    Data {
        /// What is wrong.
        problem: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// The model lacks what their templates need.
    #[error("evaluation.tasks: {0}")]
    Template(#[from] TemplateError),
    /// It was asked to end.
    #[error("{0}")]
    Stopped(String),
    /// The model cannot be asked, or what it replied be kept.
    #[error("evaluation.tasks: {0}")]
    Failed(String),
}

/// Tasks with their rows.
pub(crate) struct Tasks {
    opened: Vec<Opened>,
    options: Options,
    /// Where replies are kept.
    out: PathBuf,
    /// Whose replies are those of now.
    asked: BTreeSet<String>,
}

/// Finds tasks by their names, each once.
///
/// # Errors
///
/// What is wrong with `evaluation.tasks`: there is no such task, or grading it takes more than a
/// model.
pub(crate) fn find_tasks(names: &[String]) -> Result<Vec<&'static Task>, String> {
    let mut tasks: Vec<&'static Task> = Vec::new();
    for name in names {
        let task = task(name).map_err(|meant| {
            format!("names {name:?}, and no task is called that; is {meant:?} meant?")
        })?;
        let needs = match task.grader {
            Grader::Direct(_) | Grader::Relative(_) => None,
            Grader::Judge(_) => Some("whose answers a judge has to read"),
            Grader::Program(_) => Some("which runs programs that the model writes"),
        };
        if let Some(needs) = needs {
            return Err(format!(
                "names {name:?}, {needs}; leave it out, and run `fedllm-server evaluate --task \
                 {name}` with the adapter afterwards"
            ));
        }
        if !tasks.iter().any(|known| known.name == task.name) {
            tasks.push(task);
        }
    }
    Ok(tasks)
}

impl Tasks {
    /// Reads the rows of the tasks that are configured, if any are.
    ///
    /// # Errors
    ///
    /// [`TasksError`] if something is not here or cannot be used.
    pub(crate) fn open(config: &TasksConfig, base: &Base) -> Result<Option<Self>, TasksError> {
        if config.is_empty() {
            return Ok(None);
        }
        let tasks = find_tasks(&config.names).map_err(TasksError::Names)?;
        Templates::new(None, base)?;
        let Ok(data) = config.data.iter().map(|data| data.parse()).collect();
        let options = Options {
            data,
            selection: Selection {
                limit: Some(usize::try_from(config.limit).unwrap_or(usize::MAX)),
                ..Selection::default()
            },
            shots: config.shots.map(|shots| shots as usize),
            context: Options::context(base, None),
            ..Options::default()
        };
        for Data { path, .. } in &options.data {
            path.metadata().map_err(|error| TasksError::Data {
                problem: format!("{}: {error}", path.display()),
                hint: None,
            })?;
        }
        let opened = tasks.into_iter().map(|task| open(task, &options));
        Ok(Some(Self {
            opened: opened.collect::<Result<_, _>>()?,
            options,
            out: PathBuf::new(),
            asked: BTreeSet::new(),
        }))
    }

    /// Keeps replies in this folder.
    pub(crate) fn kept_in(self, out: PathBuf) -> Self {
        Self { out, ..self }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.opened.len()
    }

    /// The main metric of each task: an adapter's, or the base's without one. What was replied
    /// already is not asked again.
    ///
    /// # Errors
    ///
    /// [`TasksError`]; what was replied by then is kept.
    pub(crate) fn score(
        &mut self,
        base: Loaded<'_>,
        adapter: Option<System>,
        stop: &StopFlag,
    ) -> Result<Vec<TaskScore>, TasksError> {
        let adapters = Vec::from_iter(adapter);
        let names = adapters.iter().map(|adapter| adapter.name.clone());
        self.asked.extend(names);
        let nothing = Refusal {
            reason: "only the model is asked".to_owned(),
            hint: "run `fedllm-server evaluate`".to_owned(),
        };
        let evaluation = Evaluation {
            base,
            asks_base: adapters.is_empty(),
            adapters: &adapters,
            templates: &Templates::new(None, base.base)?,
            graders: Graders {
                programs: Err(&nothing),
                judge: Err(&nothing),
                prompts: Prompts::default(),
            },
            options: &self.options,
            out: &self.out,
            stop,
            progress: &Silent,
        };
        let scores = self.opened.iter().map(|opened| {
            let report = evaluation.task(opened, None)?;
            Ok(last(&report))
        });
        let scores: Vec<Option<TaskScore>> = scores.collect::<Result<_, TasksError>>()?;
        Ok(scores.into_iter().flatten().collect())
    }

    /// Drops the replies of all adapters that were not scored since this was called last.
    pub(crate) fn forget_earlier(&mut self) {
        let asked = std::mem::take(&mut self.asked);
        let is_kept = |name: &str| name == BASE || asked.contains(name);
        for opened in &self.opened {
            let folder = self.out.join("replies").join(opened.task.name);
            if let Err(error) = retain(&folder, is_kept) {
                let folder = folder.display();
                tracing::warn!(%error, "old replies cannot be removed from {folder}");
            }
        }
    }
}

fn open(task: &'static Task, options: &Options) -> Result<Opened, TasksError> {
    let unusable = |error: &DataError, hint| TasksError::Data {
        problem: format!("{}: {error}", task.name),
        hint,
    };
    let opened = options.open(task).map_err(|error| match &error {
        // Bad rows are not left out here: the figures of all rounds are of the rows that are named.
        DataError::Row { .. } | DataError::Item { .. } => unusable(&error, None),
        other => unusable(other, other.hint()),
    })?;
    match &opened.rows {
        Ok(_) => Ok(opened),
        Err(missing) => Err(unusable(
            missing,
            Some(data::hint(task, "in evaluation.data")),
        )),
    }
}

/// The main metric of the system that was asked last.
fn last(report: &TaskReport) -> Option<TaskScore> {
    let metric = report.main()?;
    let value = metric.values.last()?;
    Some(TaskScore {
        task: report.name.clone(),
        metric: metric.name.clone(),
        value: value.mean.filter(|mean| mean.is_finite()),
        standard_error: value.standard_error.filter(|error| error.is_finite()),
        rows: report.rows as u64,
        base: None,
    })
}

/// Removes the files of replies whose names are not kept.
fn retain(folder: &Path, is_kept: impl Fn(&str) -> bool) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let is_old = path.extension().is_some_and(|kind| kind == "jsonl")
            && !path
                .file_stem()
                .and_then(|stem| stem.to_str())
                .is_some_and(&is_kept);
        if is_old {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

impl From<EvaluateError> for TasksError {
    fn from(error: EvaluateError) -> Self {
        match error {
            EvaluateError::Stopped { .. } => Self::Stopped(error.to_string()),
            other => Self::Failed(other.to_string()),
        }
    }
}

impl TasksError {
    /// What can be done about it.
    pub(crate) fn hint(&self) -> Option<&str> {
        match self {
            Self::Data { hint, .. } => hint.as_deref(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn tasks_that_take_more_than_a_model_are_refused_by_name() {
        let found = find_tasks(&names(&["fpb-held-out", "mmlu", "fpb-held-out"])).unwrap();
        let found: Vec<&str> = found.iter().map(|task| task.name).collect();
        assert_eq!(found, ["fpb-held-out", "mmlu"]);
        for (name, says) in [
            ("mlmu", "no task is called that; is \"mmlu\" meant?"),
            ("mt-bench", "a judge has to read; leave it out"),
            ("humaneval", "programs that the model writes; leave it out"),
        ] {
            let problem = find_tasks(&names(&["mmlu", name])).unwrap_err();
            assert!(problem.starts_with(&format!("names {name:?}")), "{problem}");
            assert!(problem.contains(says), "{problem}");
        }
    }

    #[test]
    fn only_replies_of_the_base_and_of_now_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["base.jsonl", "adapter-1.jsonl", "adapter-2.jsonl", "notes"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        retain(dir.path(), |name| name == "base" || name == "adapter-2").unwrap();
        let left = fs::read_dir(dir.path()).unwrap();
        let left: BTreeSet<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        let expected = ["adapter-2.jsonl", "base.jsonl", "notes"].map(Into::into);
        assert_eq!(left, BTreeSet::from(expected));
    }
}
