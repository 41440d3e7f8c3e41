//! An experiment's rows: read, drawn, held out, dealt to owners.

use std::path::PathBuf;

use fedllm_client::{
    Base, DatasetError, PrepareError, PrepareOptions, PrepareReport, Shard, Vocabulary, dataset,
    prepare_in_memory, prepare_labelled, sample_units,
};
use fedllm_shared::{Compat, Experiment, RowKind, SplitKind};
use thiserror::Error;

use super::split::{Categories, OwnerRows, Partition, Split, SplitError, SplitTable, split};

/// Why there are no owners.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DataError {
    /// The data set's name is not known.
    #[error("data.dataset: {0}")]
    Dataset(#[from] DatasetError),
    /// The template's name is not known.
    #[error("data.template: {0}")]
    Template(String),
    /// The rows cannot be read.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// The rows are not of the kind that the objective learns from.
    #[error(
        "objective.kind = {objective:?} learns from {expected}, and the rows are {got}; \
         set objective.kind to {other:?}, or choose other rows"
    )]
    WrongRows {
        /// The objective.
        objective: &'static str,
        /// What it learns from.
        expected: RowKind,
        /// What the rows are.
        got: RowKind,
        /// The objective that learns from those.
        other: &'static str,
    },
    /// Too few rows are left to hold some out.
    #[error("data.held_out = {held_out} leaves nothing of {rows} rows to train on")]
    HeldOut {
        /// Rows to hold out.
        held_out: u64,
        /// Rows that there are.
        rows: usize,
    },
    /// The rows cannot be dealt out.
    #[error("split: {0}")]
    Split(#[from] SplitError),
}

impl DataError {
    /// What the researcher can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Dataset(error) => error.hint(),
            Self::Prepare(error) => error.hint().map(|hint| hint.into_owned()),
            _ => None,
        }
    }
}

/// An experiment's rows.
pub(super) struct Owners {
    /// Each owner's name and rows.
    pub(super) owners: Vec<(String, Shard)>,
    /// Rows that nobody trains on.
    pub(super) held_out: Option<Shard>,
    /// Who has what, in figures.
    pub(super) table: SplitTable,
    /// What became of the files' rows.
    pub(super) report: PrepareReport,
}

impl Owners {
    /// Reads and deals out the rows of an experiment.
    ///
    /// # Errors
    ///
    /// [`DataError`].
    pub(super) fn prepare(experiment: &Experiment, base: &Base) -> Result<Self, DataError> {
        let source = &experiment.data;
        let vocabulary = Vocabulary {
            tokenizer: base.tokenizer(),
            chat: base.chat(),
        };
        let options = options_of(experiment, &source.path)?;
        let (whole, labels, report) = read(experiment, vocabulary, &options)?;
        check_kind(experiment, whole.kind())?;
        let seed = experiment.federation.seed;
        let rows = source.rows.map_or(usize::MAX, |rows| rows as usize);
        let drawn = sample_units(whole.units(), rows, seed);
        let own_rows = source.held_out_path.is_empty();
        let held_out = if own_rows {
            source.held_out as usize
        } else {
            0
        };
        if held_out >= drawn.len() {
            return Err(DataError::HeldOut {
                held_out: source.held_out,
                rows: drawn.len(),
            });
        }
        let (held_out, drawn) = drawn.split_at(held_out);
        let name = |unit: &u32| labels.names()[labels.rows()[*unit as usize] as usize].as_str();
        let labels = Categories::intern(drawn.iter().map(name));
        let dealt = deal(experiment, &labels)?;
        let tokens: Vec<u32> = drawn.iter().map(|unit| tokens(&whole, *unit)).collect();
        let table = SplitTable::new(partition_name(experiment), &dealt, &labels, &tokens);
        let owners = dealt.owners.into_iter().map(|owner| {
            let units = owner.rows.iter().map(|row| drawn[*row as usize]);
            (owner.name, whole.subset(&units.collect::<Vec<_>>()))
        });
        Ok(Self {
            owners: owners.collect(),
            held_out: match own_rows {
                true => (!held_out.is_empty()).then(|| whole.subset(held_out)),
                false => {
                    let options = options_of(experiment, &source.held_out_path)?;
                    let (shard, _) = prepare_in_memory(vocabulary, &options, &mut |_, _| ())?;
                    check_kind(experiment, shard.kind())?;
                    Some(shard)
                }
            },
            table,
            report,
        })
    }
}

/// The rows, and the category of each.
fn read(
    experiment: &Experiment,
    vocabulary: Vocabulary<'_>,
    options: &PrepareOptions,
) -> Result<(Shard, Categories, PrepareReport), DataError> {
    let by = experiment.split.by.as_str();
    let needed = matches!(
        experiment.split.kind,
        SplitKind::Dirichlet | SplitKind::Natural
    );
    // Where a file comes from is known of every row, whatever fields it has.
    let field = if by == "file" { "label" } else { by };
    match prepare_labelled(vocabulary, options, field, &mut |_, _| ()) {
        Ok(labelled) => {
            let name = |unit: usize| {
                labelled.categories.names[labelled.categories.of[unit] as usize].as_str()
            };
            let units = 0..labelled.shard.units();
            let categories = Categories::intern(units.map(name));
            Ok((labelled.shard, categories, labelled.report))
        }
        Err(PrepareError::NoField(_)) if !needed || by == "file" => {
            let (shard, report) = prepare_in_memory(vocabulary, options, &mut |_, _| ())?;
            let files = report.files.iter().flat_map(|file| {
                let name = file
                    .path
                    .file_stem()
                    .map(|name| name.to_string_lossy().into_owned());
                std::iter::repeat_n(name.unwrap_or_default(), file.units as usize)
            });
            let files: Vec<String> = match by {
                "file" => files.collect(),
                _ => vec![String::new(); shard.units()],
            };
            let categories = Categories::intern(files.iter().map(String::as_str));
            Ok((shard, categories, report))
        }
        Err(error) => Err(error.into()),
    }
}

fn deal(experiment: &Experiment, labels: &Categories) -> Result<Split, DataError> {
    let config = &experiment.split;
    let alpha = config.alpha;
    let partition = match config.kind {
        SplitKind::Iid => Partition::Iid,
        SplitKind::Dirichlet => Partition::Dirichlet { alpha },
        SplitKind::Quantity => Partition::Quantity { alpha },
        SplitKind::Natural => Partition::Natural {
            drop_small: config.drop_small,
        },
        SplitKind::Central => {
            let rows = 0..labels.rows().len() as u32;
            return Ok(Split {
                owners: vec![OwnerRows {
                    name: "everyone".to_owned(),
                    rows: rows.collect(),
                }],
                dropped: Vec::new(),
            });
        }
    };
    let (clients, least) = (config.clients as usize, config.min_rows as usize);
    let seed = experiment.federation.seed;
    Ok(split(labels, partition, clients, least, seed)?)
}

fn partition_name(experiment: &Experiment) -> String {
    let config = &experiment.split;
    match config.kind {
        SplitKind::Iid => "IID".to_owned(),
        SplitKind::Dirichlet => format!("Dirichlet({}) by {}", config.alpha, config.by),
        SplitKind::Quantity => format!("quantity skew, Dirichlet({})", config.alpha),
        SplitKind::Natural => format!("natural owners by {}", config.by),
        SplitKind::Central => "one owner of everything".to_owned(),
    }
}

fn options_of(experiment: &Experiment, paths: &[String]) -> Result<PrepareOptions, DataError> {
    let source = &experiment.data;
    let name = source.dataset.as_deref();
    let data = &experiment.federation.data;
    let template = data.template.parse().map_err(DataError::Template)?;
    Ok(PrepareOptions {
        dataset: name.map(dataset).transpose()?,
        split: source.part.clone(),
        compat: match source.reference {
            true => Compat::OpenFedLlm,
            false => Compat::Paper,
        },
        template: Some(template),
        max_tokens: data.max_tokens,
        ..PrepareOptions::new(paths.iter().map(PathBuf::from).collect())
    })
}

fn check_kind(experiment: &Experiment, got: RowKind) -> Result<(), DataError> {
    use fedllm_shared::ObjectiveConfig;
    let (objective, expected, other) = match experiment.federation.objective {
        ObjectiveConfig::Sft => ("sft", RowKind::Examples, "dpo"),
        ObjectiveConfig::Dpo { .. } => ("dpo", RowKind::Preferences, "sft"),
    };
    if got == expected {
        return Ok(());
    }
    Err(DataError::WrongRows {
        objective,
        expected,
        got,
        other,
    })
}

fn tokens(shard: &Shard, unit: u32) -> u32 {
    let rows = shard.rows_of(unit as usize);
    rows.map(|row| shard.row(row).ids.len() as u32).sum()
}
