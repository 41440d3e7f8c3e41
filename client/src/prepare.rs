//! Turns files of rows into a shard: reads them in blocks, tokenizes each block on all cores, and
//! writes the rows in their order. Memory use does not grow with the files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use fedllm_models::template::ChatTemplate;
use fedllm_models::tokenizer::Tokenizer;
use rayon::prelude::*;
use serde::Serialize;
use thiserror::Error;

use crate::readers::{Format, RawRow, ReadError, Record, RowError, RowReader};
use crate::shard::{
    RowSink, Shard, ShardBuilder, ShardError, ShardFacts, ShardOrigin, ShardWriter,
};
use crate::template::{Template, TemplateError, TemplateName, Tokens};

/// Rows are handed to the cores in blocks of at most this many rows ...
const BLOCK_ROWS: usize = 1024;
/// ... and about this many bytes.
const BLOCK_BYTES: usize = 4 << 20;

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
    /// Files of rows; their rows follow each other in this order.
    pub files: Vec<PathBuf>,
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
    /// Rows in the shard.
    pub rows: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Their tokens that are labels.
    pub loss_tokens: u64,
    /// Tokens of the longest row.
    pub longest: u64,
    /// Rows whose end was cut off.
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
    /// What its rows were read as.
    pub format: Format,
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
    /// All files together have no row to learn.
    #[error("no row is left to learn{0}")]
    NoRows(String),
    /// The shard cannot be written.
    #[error(transparent)]
    Shard(#[from] ShardError),
}

impl PrepareError {
    /// What the owner of the files can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Read(error) => error.hint(),
            Self::Row { error, .. } => Some(error.problem.hint()),
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
    let started = Instant::now();
    let mut preparation = Preparation {
        vocabulary,
        options,
        template: None,
        counts: Counts::default(),
    };
    let mut files = Vec::new();
    let total = options.files.iter().map(|file| length(file)).sum();
    let mut before = 0;
    for file in &options.files {
        let mut reader = RowReader::open(file)?;
        let mut at = |read| progress(before + read, total);
        files.extend(preparation.file(&mut reader, sink, &mut at)?);
        before += reader.bytes();
    }
    let Preparation {
        template, counts, ..
    } = preparation;
    let template = match template {
        Some(template) if counts.rows > 0 => template,
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

struct Preparation<'a> {
    vocabulary: Vocabulary<'a>,
    options: &'a PrepareOptions,
    /// Chosen with the first row that can be read.
    template: Option<Template<'a>>,
    counts: Counts,
}

impl<'a> Preparation<'a> {
    /// Prepares one file; `None` if no row of it could be read.
    fn file(
        &mut self,
        reader: &mut RowReader,
        sink: &mut dyn RowSink,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Option<FileReport>, PrepareError> {
        let mut chosen = None;
        let rows_before = self.counts.rows;
        loop {
            let block = next_block(reader)?;
            if block.is_empty() {
                break;
            }
            if chosen.is_none() {
                chosen = self.choose(reader.path(), &block)?;
            }
            match (&chosen, &self.template) {
                (Some(chosen), Some(template)) => {
                    let rows = tokenize(&block, chosen.format, template, self.options.max_tokens);
                    self.store(reader.path(), rows, sink)?;
                }
                // No row of this block could be read, and the user wants to go on.
                _ => self.count_unreadable(&block),
            }
            progress(reader.bytes_read());
        }
        Ok(chosen.map(|chosen| FileReport {
            path: reader.path().to_owned(),
            format: chosen.format,
            rows: self.counts.rows - rows_before,
            ignored: chosen.ignored,
        }))
    }

    /// Chooses the format, and for the first file the template, by the first row that can be read.
    fn choose(&mut self, path: &Path, block: &[RawRow]) -> Result<Option<Chosen>, PrepareError> {
        for row in block {
            match self.look_at(row) {
                Ok((chosen, record)) => {
                    self.choose_template(path, chosen.format, record.as_ref())?;
                    return Ok(Some(chosen));
                }
                Err(error) if !self.options.skip_bad_rows => {
                    return Err(row_error(path, error));
                }
                Err(_) => {} // Counted with its block.
            }
        }
        Ok(None)
    }

    /// The row's format, and what it says unless it says nothing worth learning.
    fn look_at(&self, row: &RawRow) -> Result<(Chosen, Option<Record>), RowError> {
        let fields = row.fields()?;
        let place = row.place();
        let format = match self.options.format {
            Some(format) => format,
            None => Format::detect(&fields).map_err(|problem| RowError { place, problem })?,
        };
        let chosen = Chosen {
            format,
            ignored: format.ignores(&fields),
        };
        match format.record(&fields) {
            Ok(record) => Ok((chosen, Some(record))),
            Err(problem) if problem.is_harmless() => Ok((chosen, None)),
            Err(problem) => Err(RowError { place, problem }),
        }
    }

    fn choose_template(
        &mut self,
        path: &Path,
        format: Format,
        first: Option<&Record>,
    ) -> Result<(), PrepareError> {
        let Vocabulary { tokenizer, chat } = self.vocabulary;
        let name = self
            .options
            .template
            .unwrap_or_else(|| TemplateName::default_for(format, first, chat.is_some()));
        match &self.template {
            None => self.template = Some(Template::new(name, tokenizer, chat)?),
            Some(chosen) if chosen.name() != name => {
                return Err(PrepareError::MixedTemplates {
                    path: path.to_owned(),
                    first: chosen.name(),
                    second: name,
                });
            }
            Some(_) => {}
        }
        Ok(())
    }

    fn store(
        &mut self,
        path: &Path,
        rows: Vec<Result<Tokens, RowError>>,
        sink: &mut dyn RowSink,
    ) -> Result<(), PrepareError> {
        for row in rows {
            match row {
                Ok(row) => {
                    sink.push(&row.ids, &row.loss)?;
                    self.counts.add(&row);
                }
                Err(error) if error.problem.is_harmless() => {
                    *self
                        .counts
                        .dropped
                        .entry(error.problem.reason())
                        .or_default() += 1;
                }
                Err(error) if self.options.skip_bad_rows => {
                    *self.counts.bad.entry(error.problem.reason()).or_default() += 1;
                }
                Err(error) => return Err(row_error(path, error)),
            }
        }
        Ok(())
    }

    fn count_unreadable(&mut self, block: &[RawRow]) {
        for row in block {
            if let Err(error) = self.look_at(row) {
                *self.counts.bad.entry(error.problem.reason()).or_default() += 1;
            }
        }
    }
}

/// What a file's rows are, by its first.
struct Chosen {
    format: Format,
    ignored: Vec<String>,
}

#[derive(Default)]
struct Counts {
    rows: u64,
    tokens: u64,
    loss_tokens: u64,
    longest: u64,
    truncated: u64,
    dropped: BTreeMap<&'static str, u64>,
    bad: BTreeMap<&'static str, u64>,
}

impl Counts {
    fn add(&mut self, row: &Tokens) {
        let tokens = row.ids.len() as u64;
        self.rows += 1;
        self.tokens += tokens;
        self.loss_tokens += row.loss.iter().map(|&mark| u64::from(mark)).sum::<u64>();
        self.longest = self.longest.max(tokens);
        self.truncated += u64::from(row.truncated);
    }

    fn reasons(&self) -> String {
        let reasons: Vec<String> = self
            .dropped
            .iter()
            .chain(&self.bad)
            .map(|(reason, count)| format!("{count} × {reason}"))
            .collect();
        match reasons.is_empty() {
            true => String::new(),
            false => format!(" ({})", reasons.join(", ")),
        }
    }

    fn report(
        self,
        files: Vec<FileReport>,
        template: TemplateName,
        max_tokens: u32,
        started: Instant,
    ) -> PrepareReport {
        PrepareReport {
            files,
            template,
            max_tokens,
            rows: self.rows,
            tokens: self.tokens,
            loss_tokens: self.loss_tokens,
            longest: self.longest,
            truncated: self.truncated,
            dropped: self.dropped,
            bad: self.bad,
            seconds: started.elapsed().as_secs_f64(),
        }
    }
}

/// The next rows of the file, as many as make a block; none at its end.
fn next_block(reader: &mut RowReader) -> Result<Vec<RawRow>, ReadError> {
    let mut block = Vec::new();
    let mut bytes = 0;
    while block.len() < BLOCK_ROWS && bytes < BLOCK_BYTES {
        let Some(row) = reader.next().transpose()? else {
            break;
        };
        bytes += row.size();
        block.push(row);
    }
    Ok(block)
}

fn tokenize(
    block: &[RawRow],
    format: Format,
    template: &Template<'_>,
    max_tokens: u32,
) -> Vec<Result<Tokens, RowError>> {
    block
        .par_iter()
        .map(|row| {
            let fields = row.fields()?;
            let place = row.place();
            format
                .record(&fields)
                .and_then(|record| template.apply(&record, max_tokens as usize))
                .map_err(|problem| RowError { place, problem })
        })
        .collect()
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
