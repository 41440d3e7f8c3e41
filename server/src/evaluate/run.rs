//! An evaluation from data to report.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

use fedllm_client::{Base, Progress, StopFlag};
use fedllm_models::eval::{Engine, Grade, Grader, Item, Reply, Task};
use fedllm_models::lora::LoraError;
use fedllm_models::{BasePrecision, CausalLm, Lora};
use fedllm_shared::Digest;
use thiserror::Error;

use super::asked::{AskError, Asked, Templates, ask};
use super::choice::Examples;
use super::data::{self, DataError};
use super::figures::Graded;
use super::grades::{Fault, Graders, Replied};
use super::options::{Opened, Options};
use super::report::{Outcome, TaskReport};
use super::row_log::{RowLine, RowLog};
use super::systems::{BASE, System};
use crate::answers::{Answers, AnswersError};

/// Questions that an engine gets at once: enough to share beginnings and to fill batches.
const AT_ONCE: usize = 256;

/// A base model on a device.
#[derive(Clone, Copy)]
pub(crate) struct Loaded<'a> {
    /// Its tokenizer and templates.
    pub(crate) base: &'a Base,
    /// The model.
    pub(crate) model: &'a CausalLm,
    /// Its [`loaded_digest`].
    pub(crate) digest: Digest,
}

/// Names a base as far as its replies depend on it: by its weights, its tokenizer and how the weights
/// are held. Devices may differ in the last digits.
pub(crate) fn loaded_digest(weights: Digest, tokenizer: Digest, held: BasePrecision) -> Digest {
    Digest::of(format!("{weights} {tokenizer} {held}").as_bytes())
}

/// Everything that an evaluation works with.
pub(crate) struct Evaluation<'a> {
    /// The base.
    pub(crate) base: Loaded<'a>,
    /// Whether the base is asked for its own sake; it is anyway where adapters are graded by what
    /// the base replied.
    pub(crate) asks_base: bool,
    /// The adapters.
    pub(crate) adapters: &'a [System],
    /// How questions are written.
    pub(crate) templates: &'a Templates<'a>,
    /// What grades replies.
    pub(crate) graders: Graders<'a>,
    /// How questions are put.
    pub(crate) options: &'a Options,
    /// Where replies are kept.
    pub(crate) out: &'a Path,
    /// Asks for an early end.
    pub(crate) stop: &'a StopFlag,
    /// Hears how it goes, in questions.
    pub(crate) progress: &'a dyn Progress,
}

/// Why an evaluation ended early.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(crate) enum EvaluateError {
    /// Its data is damaged.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A question cannot be put.
    #[error("{task}: {error}")]
    Ask {
        /// The task.
        task: &'static str,
        /// Why.
        error: AskError,
    },
    /// Replies cannot be kept.
    #[error(transparent)]
    Answers(#[from] AnswersError),
    /// An adapter does not fit the model.
    #[error(transparent)]
    Adapter(#[from] LoraError),
    /// Replies cannot be graded.
    #[error("{task}: the replies of {system} cannot be graded: {error}")]
    Grade {
        /// The task.
        task: &'static str,
        /// Whose replies.
        system: String,
        /// Why.
        error: Fault,
    },
    /// A file cannot be written.
    #[error("cannot write {}: {error}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// It was asked to end.
    #[error("stopped; {}", .known)]
    Stopped {
        /// How far it came.
        known: String,
    },
}

impl Evaluation<'_> {
    /// Does a task with every system. `log` is told each row.
    pub(crate) fn task(
        &self,
        opened: &Opened,
        log: Option<&mut RowLog>,
    ) -> Result<TaskReport, EvaluateError> {
        let task = opened.task;
        let mut report = TaskReport::new(task, self.options.prompts);
        let rows = match &opened.rows {
            Ok(rows) => rows,
            Err(error) => {
                report.outcome = missing(task, error);
                return Ok(report);
            }
        };
        for row in &rows.bad {
            tracing::warn!(task = task.name, "{row}");
        }
        (report.files, report.bad_rows) = (rows.files.clone(), rows.bad.len());
        let questions = self.options.selection.of(task, &rows.questions);
        if let Err(refusal) = self.graders.ready(task, &questions) {
            report.outcome = Outcome::refused(task, refusal);
            return Ok(report);
        }
        let (count, seed) = (self.options.shots, self.options.shot_seed);
        let examples = Examples::new(task, &rows.examples, &rows.questions, count, seed);
        (report.rows, report.shots) = (questions.len(), examples.count());

        let first = usize::from(!self.asks_base && !matches!(task.grader, Grader::Relative(_)));
        let (mut replies, mut grades) = (Vec::new(), Vec::new());
        for system in first..=self.adapters.len() {
            let own = self.replies(task, &questions, &examples, system)?;
            let base = replies.first().filter(|_| first == 0);
            grades.push(self.grade(task, &questions, system, &own, base)?);
            replies.push(own);
        }
        if let Some(log) = log {
            for (index, (replies, grades)) in replies.iter().zip(&grades).enumerate() {
                let system = self.name(first + index);
                self.log_rows(log, task, system, &questions, &examples, (replies, grades))?;
            }
        }
        let graded = Graded {
            task,
            questions: &questions,
            replies: &replies,
            grades: &grades,
            seed: self.options.selection.seed,
        };
        report.metrics = graded.metrics();
        Ok(report)
    }

    fn name(&self, system: usize) -> &str {
        match system {
            0 => BASE,
            adapter => &self.adapters[adapter - 1].name,
        }
    }

    /// Names a system with all that its replies depend on.
    fn system_digest(&self, system: usize) -> Digest {
        let mut hasher = blake3::Hasher::new_derive_key("fedllm 1 evaluated system");
        hasher.update(&self.base.digest.0);
        hasher.update(&(self.options.context as u64).to_le_bytes());
        if let Some(adapter) = system.checked_sub(1) {
            hasher.update(&self.adapters[adapter].digest().0);
        }
        Digest(hasher.finalize().into())
    }

    /// What a system replies to each question: what is known already, and the rest asked.
    fn replies(
        &self,
        task: &'static Task,
        questions: &[Item],
        examples: &Examples<'_>,
        system: usize,
    ) -> Result<Vec<Reply>, EvaluateError> {
        let name = self.name(system);
        let path = self.out.join("replies").join(task.name);
        let mut store: Answers<Reply> = Answers::open(path.join(format!("{name}.jsonl")))?;
        let digest = self.system_digest(system);
        let Loaded { base, model, .. } = self.base;
        let on_device = |System { spec, adapter, .. }: &System| {
            Lora::new(model.config(), spec, adapter, model.device())
        };
        let lora = system.checked_sub(1).map(|index| &self.adapters[index]);
        let lora = lora.map(on_device).transpose()?;
        let context = self.options.context;
        let engine = Engine::new(model, base.tokenizer(), lora.as_ref(), context);
        let mut asking = Asking {
            task,
            engine,
            evaluation: self,
            store: &mut store,
            pending: Vec::new(),
            keys: HashSet::new(),
            known: 0,
        };
        let what = format!("{} {name}", task.name);
        self.progress.begin(&what, questions.len() as u64);
        let mut keys = Vec::with_capacity(questions.len());
        for item in questions {
            let asked = self.asked(task, item, examples)?;
            let key = asked.key(&digest);
            keys.push(key);
            asking.add(key, &item.id, asked)?;
        }
        asking.flush()?;
        self.progress.end();
        // Every key is there: it was, or was asked.
        Ok(keys
            .iter()
            .filter_map(|key| store.get(key))
            .cloned()
            .collect())
    }

    fn asked(
        &self,
        task: &'static Task,
        item: &Item,
        examples: &Examples<'_>,
    ) -> Result<Asked, EvaluateError> {
        let asked = Asked::new(item, &examples.before(item), self.templates);
        asked.map_err(|error| EvaluateError::Ask {
            task: task.name,
            error,
        })
    }

    fn grade(
        &self,
        task: &'static Task,
        questions: &[Item],
        system: usize,
        replies: &[Reply],
        base: Option<&Vec<Reply>>,
    ) -> Result<Vec<Grade>, EvaluateError> {
        let name = self.name(system);
        let what = format!("{} {name} grades", task.name);
        self.progress.begin(&what, questions.len() as u64);
        let replied = Replied {
            task,
            questions,
            replies,
            base: base.map(Vec::as_slice),
        };
        let done = |done: usize| self.progress.at(done as u64);
        let grades = self.graders.grade(replied, &done);
        self.progress.end();
        grades.map_err(|error| EvaluateError::Grade {
            task: task.name,
            system: name.to_owned(),
            error,
        })
    }

    fn log_rows(
        &self,
        log: &mut RowLog,
        task: &'static Task,
        system: &str,
        questions: &[Item],
        examples: &Examples<'_>,
        (replies, grades): (&[Reply], &[Grade]),
    ) -> Result<(), EvaluateError> {
        for ((item, reply), grade) in questions.iter().zip(replies).zip(grades) {
            let asked = self.asked(task, item, examples)?;
            log.put(&RowLine {
                task: task.name,
                system,
                id: &item.id,
                cluster: item.cluster.as_deref(),
                asked: asked.key(&Digest::default()),
                reply,
                grade,
            })?;
        }
        Ok(())
    }
}

/// Questions whose replies are not known yet, until there are enough of them.
struct Asking<'a, 'b> {
    task: &'static Task,
    engine: Engine<'a>,
    evaluation: &'a Evaluation<'a>,
    store: &'b mut Answers<Reply>,
    pending: Vec<(Digest, String, Asked)>,
    /// Those of all that were pending: a data set may ask the same twice.
    keys: HashSet<Digest>,
    /// Questions that are done.
    known: u64,
}

impl Asking<'_, '_> {
    fn add(&mut self, key: Digest, id: &str, asked: Asked) -> Result<(), EvaluateError> {
        if self.store.get(&key).is_some() || !self.keys.insert(key) {
            self.known += 1;
            self.evaluation.progress.at(self.known);
            return Ok(());
        }
        self.pending.push((key, id.to_owned(), asked));
        match self.pending.len() {
            AT_ONCE => self.flush(),
            _ => Ok(()),
        }
    }

    fn flush(&mut self) -> Result<(), EvaluateError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        if self.evaluation.stop.is_stopped() {
            let known = format!("{} has {} replies so far", self.task.name, self.known);
            return Err(EvaluateError::Stopped { known });
        }
        let pending = std::mem::take(&mut self.pending);
        let asked: Vec<(&str, &Asked)> = pending
            .iter()
            .map(|(_, id, asked)| (id.as_str(), asked))
            .collect();
        let mut kept = Ok(());
        let (store, known) = (&mut *self.store, &mut self.known);
        let evaluation = self.evaluation;
        let answered = ask(&self.engine, evaluation.templates, &asked, |i, reply| {
            if kept.is_ok() {
                kept = store.put(pending[i].0, &pending[i].1, reply);
            }
            *known += 1;
            evaluation.progress.at(*known);
        });
        kept?;
        answered.map_err(|error| EvaluateError::Ask {
            task: self.task.name,
            error,
        })
    }
}

fn missing(task: &Task, error: &DataError) -> Outcome {
    Outcome::MissingData {
        reason: error.to_string(),
        hint: data::hint(task, "with --data DIR"),
    }
}
