//! A shard: one owner's rows as token ids and labels, memory-mapped while a model trains.
//!
//! `prepare` writes it once; after that no text is read again. The header names the tokenizer and
//! the template that made it (as digests) and holds no text.
//!
//! A shard holds examples or preferences. What is drawn, counted and dealt out to owners is a
//! *unit*: an example is one row, a preference is two.

mod batcher;
mod format;
mod sample;
mod store;
mod writer;

use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fedllm_shared::{Digest, RowKind};
use thiserror::Error;

use store::Store;

pub use batcher::Batcher;
pub use format::ShardFacts;
pub use sample::sample_units;
pub use writer::{RowSink, ShardBuilder, ShardOrigin, ShardWriter};

/// One owner's rows, ready to train on. Cheap to clone; clones and subsets share the rows.
#[derive(Clone, Debug)]
pub struct Shard {
    facts: ShardFacts,
    store: Arc<Store>,
    /// The units of the store that this shard shows, if not all in order.
    chosen: Option<Arc<[u32]>>,
}

/// One row of a [`Shard`]: views into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row<'a> {
    /// Token ids, each below [`ShardFacts::ids_below`] in a shard that was verified.
    pub ids: &'a [u32],
    /// For each token 1 if it is a label, else 0. The first token is never one: nothing predicts it.
    pub loss: &'a [u8],
}

/// Why a shard cannot be written, read or used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ShardError {
    /// The disk failed, is full, or the file cannot be opened.
    #[error("cannot read or write the shard {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is something else.
    #[error("{} is not a shard", .0.display())]
    NotAShard(PathBuf),
    /// Another version of fedllm wrote it in another layout.
    #[error("{} has shard layout {found}, this program reads layout {supported}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its layout.
        found: u32,
        /// The layout that this program reads.
        supported: u32,
    },
    /// The file is shorter or longer than its header says.
    #[error("{} should have {expected} bytes and has {found}", path.display())]
    Length {
        /// The file.
        path: PathBuf,
        /// The length that follows from the header.
        expected: u64,
        /// The length on the disk.
        found: u64,
    },
    /// The file was changed after it was written.
    #[error("{} is damaged: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Which part of it does not fit.
        what: &'static str,
    },
    /// The shard was made with another tokenizer than the model's.
    #[error("the shard was made with tokenizer {found}, the model has tokenizer {expected}")]
    Tokenizer {
        /// The model's tokenizer.
        expected: Digest,
        /// The shard's.
        found: Digest,
    },
    /// Examples and preferences were offered to one shard.
    #[error("a shard of {shard} cannot hold {offered}")]
    MixedKinds {
        /// What the shard holds.
        shard: RowKind,
        /// What was offered.
        offered: RowKind,
    },
    /// A caller offered a row that cannot be stored.
    #[error("a row cannot be stored: {0}")]
    Row(&'static str),
    /// A caller was asked to end.
    #[error("writing the shard was stopped; nothing is left of it")]
    Stopped,
}

impl ShardError {
    /// What the owner of the shard can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NotAShard(_) => {
                Some("make a shard of a data file with `fedllm-client prepare --help`")
            }
            Self::Version { .. } | Self::Length { .. } | Self::Damaged { .. } => {
                Some("prepare the shard again from its data files")
            }
            Self::Tokenizer { .. } => {
                Some("prepare the shard again with `--model` set to the model that will train")
            }
            Self::MixedKinds { .. } => {
                Some("an owner trains on one kind of rows: prepare a shard of each")
            }
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                Some("free some space, or write the shard to another disk with `--out`")
            }
            Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Some("check the path; a new shard's directory must exist already")
            }
            Self::Io { .. } | Self::Row(_) | Self::Stopped => None,
        }
    }

    fn io(path: &Path, source: io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }
}

impl Shard {
    /// Maps the shard at `path` and checks its header, its length and its row index.
    ///
    /// The rows themselves are not read; [`verify`](Self::verify) does that.
    ///
    /// # Errors
    ///
    /// [`ShardError`] if it cannot be read, is no shard, has another layout, or is damaged.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ShardError> {
        Store::open(path.as_ref()).map(Self::whole)
    }

    /// Whether the file at `path` begins like a shard.
    pub fn is_shard(path: impl AsRef<Path>) -> bool {
        let mut magic = [0; 8];
        fs::File::open(path)
            .and_then(|mut file| io::Read::read_exact(&mut file, &mut magic))
            .is_ok_and(|()| magic == format::MAGIC)
    }

    /// Reads the whole shard once and compares it with the digest in its header.
    ///
    /// `progress` is told how many bytes were read, and of how many.
    ///
    /// # Errors
    ///
    /// [`ShardError::Damaged`] if a byte differs from what was written, or a number is impossible.
    pub fn verify(&self, progress: impl FnMut(u64, u64)) -> Result<(), ShardError> {
        self.store.verify(progress)
    }

    /// Refuses a shard that another tokenizer made.
    ///
    /// # Errors
    ///
    /// [`ShardError::Tokenizer`] if the fingerprints differ.
    pub fn check_tokenizer(&self, expected: Digest) -> Result<(), ShardError> {
        let found = self.facts.tokenizer;
        if found == expected {
            return Ok(());
        }
        Err(ShardError::Tokenizer { expected, found })
    }

    /// Everything that the header says.
    pub fn facts(&self) -> &ShardFacts {
        &self.facts
    }

    /// What the rows are.
    pub fn kind(&self) -> RowKind {
        self.facts.kind
    }

    /// Number of rows, two for each preference.
    pub fn rows(&self) -> usize {
        self.facts.rows as usize // An index of so many rows is in memory.
    }

    /// Row `i`. Of preferences row 2k is the chosen answer of pair k, row 2k + 1 the rejected one.
    ///
    /// # Panics
    ///
    /// Panics if `i` is not below [`rows`](Self::rows).
    pub fn row(&self, i: usize) -> Row<'_> {
        let per_unit = rows_per_unit(self.kind());
        match &self.chosen {
            None => self.store.row(i),
            Some(chosen) => {
                let unit = chosen[i / per_unit] as usize;
                self.store.row(unit * per_unit + i % per_unit)
            }
        }
    }

    /// Number of units: examples or pairs.
    pub fn units(&self) -> usize {
        self.rows() / rows_per_unit(self.kind())
    }

    /// The rows of a unit: one of an example; the chosen and the rejected one of a pair.
    pub fn rows_of(&self, unit: usize) -> Range<usize> {
        let per_unit = rows_per_unit(self.kind());
        unit * per_unit..(unit + 1) * per_unit
    }

    /// A shard of some of the units, in this order; a unit may come twice.
    ///
    /// The rows stay where they are and are shared, so that hundreds of virtual owners can be
    /// views of one shard. What a subset [`verify`](Self::verify)s is the whole.
    ///
    /// # Panics
    ///
    /// Panics if a unit is not below [`units`](Self::units).
    #[must_use]
    pub fn subset(&self, units: &[u32]) -> Self {
        let chosen: Arc<[u32]> = match &self.chosen {
            None => units.into(),
            Some(chosen) => units.iter().map(|&unit| chosen[unit as usize]).collect(),
        };
        let rows = (0..units.len())
            .flat_map(|i| self.rows_of(units[i] as usize))
            .map(|row| self.row(row));
        let mut facts = ShardFacts {
            rows: 0,
            tokens: 0,
            loss_tokens: 0,
            content: subset_digest(self.facts.content, units),
            ..self.facts
        };
        for row in rows {
            facts.rows += 1;
            facts.tokens += row.ids.len() as u64;
            facts.loss_tokens += row.loss_tokens();
        }
        Self {
            facts,
            store: Arc::clone(&self.store),
            chosen: Some(chosen),
        }
    }

    /// Number of tokens in all rows.
    pub fn tokens(&self) -> u64 {
        self.facts.tokens
    }

    /// Number of tokens that are labels.
    pub fn loss_tokens(&self) -> u64 {
        self.facts.loss_tokens
    }

    /// Fingerprint of the tokenizer that made the ids.
    pub fn tokenizer(&self) -> Digest {
        self.facts.tokenizer
    }

    /// Digest of the template that chose tokens and labels.
    pub fn template(&self) -> Digest {
        self.facts.template
    }

    fn whole(store: Store) -> Self {
        Self {
            facts: *store.facts(),
            store: Arc::new(store),
            chosen: None,
        }
    }
}

impl Row<'_> {
    /// Number of tokens that are labels.
    pub fn loss_tokens(&self) -> u64 {
        self.loss.iter().map(|&mark| u64::from(mark)).sum()
    }
}

fn rows_per_unit(kind: RowKind) -> usize {
    match kind {
        RowKind::Examples => 1,
        RowKind::Preferences => 2,
    }
}

fn subset_digest(whole: Digest, units: &[u32]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"fedllm subset of a shard");
    hasher.update(&whole.0);
    for unit in units {
        hasher.update(&unit.to_le_bytes());
    }
    Digest(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests;
