//! A shard: one owner's rows as token ids and labels, memory-mapped while a model trains.
//!
//! `prepare` writes it once; after that no text is read again. The header names the tokenizer and
//! the template that made it (as digests) and holds no text.

mod batcher;
mod format;
mod writer;

use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fedllm_models::MappedBytes;
use fedllm_shared::Digest;
use thiserror::Error;

use format::{BadHeader, HEADER_BYTES, Sections};

pub use batcher::Batcher;
pub use format::ShardFacts;
pub use writer::{RowSink, ShardBuilder, ShardOrigin, ShardWriter};

/// One owner's rows, ready to train on. Cheap to clone; clones share the rows.
#[derive(Clone, Debug)]
pub struct Shard {
    facts: ShardFacts,
    store: Arc<Store>,
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
        let path = path.as_ref();
        let bytes = MappedBytes::open(path).map_err(|e| ShardError::io(path, e))?;
        let facts = header(&bytes, path)?;
        let sections = sections(&facts, bytes.len(), path)?;
        let shard = Self {
            facts,
            store: Arc::new(Store::Mapped {
                path: path.to_owned(),
                bytes,
                sections,
            }),
        };
        shard.check_index()?;
        Ok(shard)
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
    pub fn verify(&self, mut progress: impl FnMut(u64, u64)) -> Result<(), ShardError> {
        let Store::Mapped { bytes, .. } = &*self.store else {
            return Ok(());
        };
        let content = &bytes[HEADER_BYTES..];
        let mut hasher = blake3::Hasher::new();
        let mut done = 0;
        for block in content.chunks(1 << 20) {
            hasher.update(block);
            done += block.len() as u64;
            progress(done, content.len() as u64);
        }
        if hasher.finalize() != blake3::Hash::from_bytes(self.facts.content.0) {
            return Err(self.damaged("its content does not match its digest"));
        }
        self.check_values()
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

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.index().len() - 1
    }

    /// Row `i`.
    ///
    /// # Panics
    ///
    /// Panics if `i` is not below [`rows`](Self::rows).
    pub fn row(&self, i: usize) -> Row<'_> {
        let index = self.index();
        let range = index[i] as usize..index[i + 1] as usize;
        Row {
            ids: &self.ids()[range.clone()],
            loss: &self.loss()[range],
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

    /// A shard whose sections lie in memory; the caller has checked them.
    fn in_memory(facts: ShardFacts, ids: Vec<u32>, loss: Vec<u8>, index: Vec<u64>) -> Self {
        Self {
            facts,
            store: Arc::new(Store::Memory { ids, loss, index }),
        }
    }

    fn ids(&self) -> &[u32] {
        match &*self.store {
            Store::Mapped {
                bytes, sections, ..
            } => numbers(bytes, &sections.ids),
            Store::Memory { ids, .. } => ids,
        }
    }

    fn loss(&self) -> &[u8] {
        match &*self.store {
            Store::Mapped {
                bytes, sections, ..
            } => &bytes[sections.loss.clone()],
            Store::Memory { loss, .. } => loss,
        }
    }

    fn index(&self) -> &[u64] {
        match &*self.store {
            Store::Mapped {
                bytes, sections, ..
            } => numbers(bytes, &sections.index),
            Store::Memory { index, .. } => index,
        }
    }

    /// Rows must follow each other, none empty, from the first token to the last.
    fn check_index(&self) -> Result<(), ShardError> {
        let index = self.index();
        let whole = index.first() == Some(&0) && index.last() == Some(&self.facts.tokens);
        if !whole || index.windows(2).any(|pair| pair[0] >= pair[1]) {
            return Err(self.damaged("its row index is impossible"));
        }
        Ok(())
    }

    fn check_values(&self) -> Result<(), ShardError> {
        if self.ids().iter().any(|&id| id >= self.facts.ids_below) {
            return Err(self.damaged("it has a token id that its header excludes"));
        }
        let labels: u64 = self.loss().iter().map(|&mark| u64::from(mark)).sum();
        if labels != self.facts.loss_tokens || self.loss().iter().any(|&mark| mark > 1) {
            return Err(self.damaged("its label marks do not add up"));
        }
        Ok(())
    }

    fn damaged(&self, what: &'static str) -> ShardError {
        let path = match &*self.store {
            Store::Mapped { path, .. } => path.clone(),
            Store::Memory { .. } => PathBuf::from("(in memory)"),
        };
        ShardError::Damaged { path, what }
    }
}

#[derive(Debug)]
enum Store {
    Mapped {
        path: PathBuf,
        bytes: MappedBytes,
        sections: Sections,
    },
    Memory {
        ids: Vec<u32>,
        loss: Vec<u8>,
        index: Vec<u64>,
    },
}

fn header(bytes: &[u8], path: &Path) -> Result<ShardFacts, ShardError> {
    let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
        if !bytes.starts_with(&format::MAGIC) {
            return Err(ShardError::NotAShard(path.to_owned()));
        }
        return Err(ShardError::Length {
            path: path.to_owned(),
            expected: HEADER_BYTES as u64,
            found: bytes.len() as u64,
        });
    };
    format::decode(header).map_err(|bad| match bad {
        BadHeader::NotAShard => ShardError::NotAShard(path.to_owned()),
        BadHeader::Version(found) => ShardError::Version {
            path: path.to_owned(),
            found,
            supported: format::VERSION,
        },
        BadHeader::Damaged => ShardError::Damaged {
            path: path.to_owned(),
            what: "its header does not match its digest",
        },
    })
}

fn sections(facts: &ShardFacts, found: usize, path: &Path) -> Result<Sections, ShardError> {
    let Some(sections) = Sections::of(facts.rows, facts.tokens) else {
        return Err(ShardError::Damaged {
            path: path.to_owned(),
            what: "its header counts more rows than this machine can address",
        });
    };
    if sections.index.end != found {
        return Err(ShardError::Length {
            path: path.to_owned(),
            expected: sections.index.end as u64,
            found: found as u64,
        });
    }
    Ok(sections)
}

/// A section as numbers. Maps begin at a page and sections at a multiple of eight, so this holds.
fn numbers<'a, T: bytemuck::AnyBitPattern>(bytes: &'a [u8], section: &Range<usize>) -> &'a [T] {
    bytemuck::cast_slice(&bytes[section.clone()])
}

#[cfg(test)]
mod tests;
