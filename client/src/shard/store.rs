//! Where a shard's rows lie: in a mapped file or in memory.

use std::ops::Range;
use std::path::{Path, PathBuf};

use fedllm_models::MappedBytes;

use super::format::{self, BadHeader, HEADER_BYTES, Sections, ShardFacts};
use super::{Row, ShardError, rows_per_unit};

/// All rows of a shard, and what its header says of them.
#[derive(Debug)]
pub(super) struct Store {
    facts: ShardFacts,
    place: Place,
}

#[derive(Debug)]
enum Place {
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

impl Store {
    /// Maps a file and checks its header, its length and its row index.
    pub(super) fn open(path: &Path) -> Result<Self, ShardError> {
        let bytes = MappedBytes::open(path).map_err(|e| ShardError::io(path, e))?;
        let facts = header(&bytes, path)?;
        let sections = sections(&facts, bytes.len(), path)?;
        let store = Self {
            facts,
            place: Place::Mapped {
                path: path.to_owned(),
                bytes,
                sections,
            },
        };
        store.check_index()?;
        Ok(store)
    }

    /// Sections that lie in memory; the caller has checked them.
    pub(super) fn in_memory(
        facts: ShardFacts,
        ids: Vec<u32>,
        loss: Vec<u8>,
        index: Vec<u64>,
    ) -> Self {
        let place = Place::Memory { ids, loss, index };
        Self { facts, place }
    }

    pub(super) fn facts(&self) -> &ShardFacts {
        &self.facts
    }

    pub(super) fn row(&self, i: usize) -> Row<'_> {
        let index = self.index();
        let range = index[i] as usize..index[i + 1] as usize;
        Row {
            ids: &self.ids()[range.clone()],
            loss: &self.loss()[range],
        }
    }

    /// Reads a mapped file once and compares it with the digest in its header.
    pub(super) fn verify(&self, mut progress: impl FnMut(u64, u64)) -> Result<(), ShardError> {
        let Place::Mapped { bytes, .. } = &self.place else {
            return Ok(());
        };
        let content = &bytes[HEADER_BYTES..];
        let mut hasher = format::content_hasher(self.facts.kind);
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

    fn ids(&self) -> &[u32] {
        match &self.place {
            Place::Mapped {
                bytes, sections, ..
            } => numbers(bytes, &sections.ids),
            Place::Memory { ids, .. } => ids,
        }
    }

    fn loss(&self) -> &[u8] {
        match &self.place {
            Place::Mapped {
                bytes, sections, ..
            } => &bytes[sections.loss.clone()],
            Place::Memory { loss, .. } => loss,
        }
    }

    fn index(&self) -> &[u64] {
        match &self.place {
            Place::Mapped {
                bytes, sections, ..
            } => numbers(bytes, &sections.index),
            Place::Memory { index, .. } => index,
        }
    }

    /// Rows must follow each other, none empty, from the first token to the last, and come in
    /// whole units.
    fn check_index(&self) -> Result<(), ShardError> {
        let index = self.index();
        let whole = index.first() == Some(&0) && index.last() == Some(&self.facts.tokens);
        if !whole || index.windows(2).any(|pair| pair[0] >= pair[1]) {
            return Err(self.damaged("its row index is impossible"));
        }
        if !(index.len() - 1).is_multiple_of(rows_per_unit(self.facts.kind)) {
            return Err(self.damaged("its last preference is not a pair"));
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
        let path = match &self.place {
            Place::Mapped { path, .. } => path.clone(),
            Place::Memory { .. } => PathBuf::from("(in memory)"),
        };
        ShardError::Damaged { path, what }
    }
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
