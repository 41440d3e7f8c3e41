//! Turns files of rows into a shard: reads them in blocks, tokenizes each block on all cores, and
//! writes the rows in their order. Memory use does not grow with the files.

mod counts;
mod files;
mod labelled;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use fedllm_models::template::ChatTemplate;
use fedllm_models::tokenizer::Tokenizer;
use fedllm_shared::{Compat, RowKind};
use serde::Serialize;
use thiserror::Error;

use crate::datasets::{Dataset, DatasetError};
use crate::readers::{Format, ReadError, RowError, RowReader};
use crate::shard::{
    RowSink, Shard, ShardBuilder, ShardError, ShardFacts, ShardOrigin, ShardWriter,
};
use crate::template::{TemplateError, TemplateName};

use files::Preparation;
pub use labelled::{Categories, Labelled, UnitOrigin, prepare_labelled};

/// The part of a model that makes tokens of text.
#[derive(Clone, Copy, Debug)]
pub struct Vocabulary<'a> {
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Its own chat template, if it has one.
    pub chat: Option<&'a ChatTemplate>,
}

/// What to prepare, and how.
#[derive(Clone, Debug)]
pub struct PrepareOptions {
    /// Files of rows; their rows follow each other in this order. With a data set they may be
    /// directories, and may be left out if the hub's own tools have downloaded it.
    pub files: Vec<PathBuf>,
    /// The data set that the files belong to, if it is a known one.
    pub dataset: Option<&'static Dataset>,
    /// The split of the data set; `None` takes files whole, and of a directory the first split.
    pub split: Option<String>,
    /// Whose way to cut preferences is followed.
    pub compat: Compat,
    /// What the rows are; `None` looks at each file's first row.
    pub format: Option<Format>,
    /// How rows become tokens; `None` chooses by [`TemplateName::default_for`].
    pub template: Option<TemplateName>,
    /// Longer rows are cut.
    pub max_tokens: u32,
    /// Count rows that cannot be read instead of stopping at the first one.
    pub skip_bad_rows: bool,
}

impl PrepareOptions {
    /// The most tokens of a row when nobody says otherwise; OpenFedLLM's setting.
    pub const DEFAULT_MAX_TOKENS: u32 = 512;

    /// Prepares `files` with every choice left to the files and the model.
    pub fn new(files: Vec<PathBuf>) -> Self {
        Self {
            files,
            dataset: None,
            split: None,
            compat: Compat::Paper,
            format: None,
            template: None,
            max_tokens: Self::DEFAULT_MAX_TOKENS,
            skip_bad_rows: false,
        }
    }
}

/// What became of the rows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PrepareReport {
    /// The files, in order.
    pub files: Vec<FileReport>,
    /// How rows became tokens.
    pub template: TemplateName,
    /// The most tokens of a row.
    pub max_tokens: u32,
    /// What the rows are.
    pub kind: RowKind,
    /// Examples or pairs in the shard.
    pub units: u64,
    /// Rows in the shard, two for each pair.
    pub rows: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Their tokens that are labels.
    pub loss_tokens: u64,
    /// Tokens of the longest row.
    pub longest: u64,
    /// Tokens of the middle row, by length.
    pub median: u64,
    /// Labels of the middle row, by their number.
    pub median_loss: u64,
    /// Examples or pairs of which something was cut off.
    pub truncated: u64,
    /// Rows without anything to learn, by reason.
    pub dropped: BTreeMap<&'static str, u64>,
    /// Rows that could not be read, by reason.
    pub bad: BTreeMap<&'static str, u64>,
    /// How long it took.
    pub seconds: f64,
}

/// What became of one file's rows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FileReport {
    /// The file.
    pub path: PathBuf,
    /// What its rows were read as: a format, or the name of a data set.
    pub format: &'static str,
    /// Its examples or pairs in the shard.
    pub units: u64,
    /// Its rows in the shard.
    pub rows: u64,
    /// Fields of its first row that are not read.
    pub ignored: Vec<String>,
}

/// Why nothing was prepared.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PrepareError {
    /// A file cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The files of a data set cannot be found.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// A row cannot be used.
    #[error("{}, {error}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// Where in it, and why.
        error: RowError,
    },
    /// The model cannot use the template.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// Two files want different templates, and a shard has one.
    #[error(
        "{} would use the template `{second}`, the files before it use `{first}`",
        path.display()
    )]
    MixedTemplates {
        /// The second file.
        path: PathBuf,
        /// Template of the first file.
        first: TemplateName,
        /// Template of the second.
        second: TemplateName,
    },
    /// One file holds examples, another preferences, and a shard has one kind.
    #[error(
        "{} holds {second_kind}, and {} before it holds {first_kind}",
        second.display(),
        first.display()
    )]
    MixedKinds {
        /// The first file.
        first: PathBuf,
        /// What it holds.
        first_kind: RowKind,
        /// The file that holds something else.
        second: PathBuf,
        /// What that holds.
        second_kind: RowKind,
    },
    /// No row has the field by which rows were to be told apart.
    #[error("no row has the field `{0}`")]
    NoField(String),
    /// All files together have no row to learn.
    #[error("no row is left to learn{0}")]
    NoRows(String),
    /// The shard cannot be written.
    #[error(transparent)]
    Shard(#[from] ShardError),
}

impl PrepareError {
    /// What the owner of the files can do about it.
    pub fn hint(&self) -> Option<Cow<'static, str>> {
        if let Self::Dataset(error) = self {
            return error.hint().map(Cow::from);
        }
        self.fixed_hint().map(Cow::from)
    }

    fn fixed_hint(&self) -> Option<&'static str> {
        match self {
            Self::Dataset(_) => None,
            Self::Read(error) => error.hint(),
            Self::Row { error, .. } => Some(error.problem.hint()),
            Self::MixedKinds { .. } => {
                Some("an owner trains on one kind of rows: prepare a shard of each file")
            }
            Self::NoField(_) => Some("name a field of the rows, or `label`, `source` or `owner`"),
            Self::Template(TemplateError::NoChatTemplate) => {
                Some("use `--template alpaca`, or an instruction-tuned model")
            }
            Self::Template(_) => None,
            Self::MixedTemplates { .. } => {
                Some("choose one with `--template`, or prepare a shard of each file")
            }
            Self::NoRows(_) => Some("look at the reasons; perhaps `--max-tokens` is too small"),
            Self::Shard(error) => error.hint(),
        }
    }
}

/// How many bytes of the files were read, and of how many.
pub type PrepareProgress<'a> = &'a mut dyn FnMut(u64, u64);

/// Prepares a shard file at `out`.
///
/// # Errors
///
/// [`PrepareError`]; nothing is then left at `out`.
pub fn prepare_shard(
    vocabulary: Vocabulary<'_>,
    options: &PrepareOptions,
    out: &Path,
    progress: PrepareProgress<'_>,
) -> Result<(ShardFacts, PrepareReport), PrepareError> {
    let mut writer = ShardWriter::create(out)?;
    let (origin, report) = prepare_rows(vocabulary, options, &mut writer, progress)?;
    Ok((writer.finish(origin)?, report))
}

/// Prepares a shard in memory: for data that is trained on or scored once.
///
/// # Errors
///
/// [`PrepareError`].
pub fn prepare_in_memory(
    vocabulary: Vocabulary<'_>,
    options: &PrepareOptions,
    progress: PrepareProgress<'_>,
) -> Result<(Shard, PrepareReport), PrepareError> {
    let mut builder = ShardBuilder::new();
    let (origin, report) = prepare_rows(vocabulary, options, &mut builder, progress)?;
    Ok((builder.finish(origin), report))
}

/// Opens `path` as a shard of this tokenizer if it is one, and reads it once to verify it; else
/// prepares it in memory.
///
/// # Errors
///
/// [`PrepareError`].
pub fn shard_or_rows(
    path: &Path,
    vocabulary: Vocabulary<'_>,
    options: &PrepareOptions,
    progress: PrepareProgress<'_>,
) -> Result<Shard, PrepareError> {
    if Shard::is_shard(path) {
        let shard = Shard::open(path)?;
        shard.check_tokenizer(vocabulary.tokenizer.fingerprint())?;
        shard.verify(progress)?;
        return Ok(shard);
    }
    let options = PrepareOptions {
        files: vec![path.to_owned()],
        ..options.clone()
    };
    Ok(prepare_in_memory(vocabulary, &options, progress)?.0)
}

/// Reads the files, makes tokens of their rows, and gives them to `sink` in order.
///
/// # Errors
///
/// [`PrepareError`]; the sink may have got some rows then.
pub fn prepare_rows(
    vocabulary: Vocabulary<'_>,
    options: &PrepareOptions,
    sink: &mut dyn RowSink,
    progress: PrepareProgress<'_>,
) -> Result<(ShardOrigin, PrepareReport), PrepareError> {
    prepare(vocabulary, options, &mut Output::new(sink), progress)
}

/// Where prepared units go.
struct Output<'a> {
    sink: &'a mut dyn RowSink,
    /// Also told where each unit comes from, if somebody wants to know.
    labels: Option<&'a mut labelled::Labels>,
}

impl<'a> Output<'a> {
    fn new(sink: &'a mut dyn RowSink) -> Self {
        Self { sink, labels: None }
    }
}

fn prepare(
    vocabulary: Vocabulary<'_>,
    options: &PrepareOptions,
    output: &mut Output<'_>,
    progress: PrepareProgress<'_>,
) -> Result<(ShardOrigin, PrepareReport), PrepareError> {
    let started = Instant::now();
    let mut preparation = Preparation::new(vocabulary, options)?;
    let paths = located(options)?;
    let mut files = Vec::new();
    let total = paths.iter().map(|file| length(file)).sum();
    let mut before = 0;
    for file in &paths {
        let mut reader = match options.dataset {
            Some(dataset) => dataset.reader(file)?,
            None => RowReader::open(file)?,
        };
        let mut at = |read| progress(before + read, total);
        files.extend(preparation.file(&mut reader, output, &mut at)?);
        before += reader.bytes();
    }
    let (template, counts) = preparation.finish();
    let template = match template {
        Some(template) if counts.units() > 0 => template,
        _ => return Err(PrepareError::NoRows(counts.reasons())),
    };
    let origin = ShardOrigin {
        tokenizer: vocabulary.tokenizer.fingerprint(),
        template: template.digest(),
        max_tokens: options.max_tokens,
    };
    let report = counts.report(files, template.name(), options.max_tokens, started);
    Ok((origin, report))
}

/// The files that the options name: those of a data set are looked for.
fn located(options: &PrepareOptions) -> Result<Vec<PathBuf>, PrepareError> {
    let Some(dataset) = options.dataset else {
        return Ok(options.files.clone());
    };
    let split = options.split.as_deref();
    if options.files.is_empty() {
        return Ok(dataset.locate(None, split)?);
    }
    let mut files = Vec::new();
    for place in &options.files {
        files.extend(dataset.locate(Some(place), split)?);
    }
    Ok(files)
}

fn row_error(path: &Path, error: RowError) -> PrepareError {
    PrepareError::Row {
        path: path.to_owned(),
        error,
    }
}

/// Length of a file for the progress bar; opening it reports what is wrong with it.
fn length(file: &Path) -> u64 {
    std::fs::metadata(file).map_or(0, |metadata| metadata.len())
}

#[cfg(test)]
mod tests;
