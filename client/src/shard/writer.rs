//! Writes shards: to a file in constant memory, or in memory for a few rows.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use fedllm_shared::{Digest, RowKind};

use super::format::{self, HEADER_BYTES, ShardFacts};
use super::store::Store;
use super::{Row, Shard, ShardError};

/// What made the rows of a shard: the part of [`ShardFacts`] that is not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardOrigin {
    /// Fingerprint of the tokenizer.
    pub tokenizer: Digest,
    /// Digest of the template.
    pub template: Digest,
    /// The most tokens that a row may have.
    pub max_tokens: u32,
}

/// Takes rows of token ids and labels, in order: examples or pairs, never both.
pub trait RowSink {
    /// Adds an example: its token ids, and for each 1 if it is a label, else 0.
    ///
    /// # Errors
    ///
    /// [`ShardError::Row`] if the row is empty, the lengths differ or a label is neither 0 nor 1;
    /// [`ShardError::MixedKinds`] after a pair; [`ShardError::Io`] if it cannot be written.
    fn push(&mut self, ids: &[u32], loss: &[u8]) -> Result<(), ShardError>;

    /// Adds a preference: both of its rows, or none.
    ///
    /// # Errors
    ///
    /// As of [`push`](Self::push); [`ShardError::MixedKinds`] after an example.
    fn push_pair(&mut self, chosen: Row<'_>, rejected: Row<'_>) -> Result<(), ShardError>;

    /// Adds a unit of another shard.
    ///
    /// # Errors
    ///
    /// As of [`push`](Self::push) and [`push_pair`](Self::push_pair).
    ///
    /// # Panics
    ///
    /// Panics if `unit` is not below the shard's [`units`](Shard::units).
    fn push_unit(&mut self, shard: &Shard, unit: usize) -> Result<(), ShardError> {
        let rows = shard.rows_of(unit);
        let first = shard.row(rows.start);
        match shard.kind() {
            RowKind::Examples => self.push(first.ids, first.loss),
            RowKind::Preferences => self.push_pair(first, shard.row(rows.start + 1)),
        }
    }
}

/// Writes a shard file, row by row, in constant memory.
///
/// Until [`finish`](Self::finish) the rows lie in files beside the target whose names end in
/// `.incomplete`; they are removed if the writer is dropped before.
#[derive(Debug)]
pub struct ShardWriter {
    path: PathBuf,
    ids: Part,
    loss: Part,
    index: Part,
    /// Sees the ids as they are written: the header's digest is known without reading them again.
    content: Option<blake3::Hasher>,
    counts: Counts,
}

impl ShardWriter {
    /// Starts a shard that will lie at `path`.
    ///
    /// # Errors
    ///
    /// [`ShardError::Io`] if no file can be made there.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self, ShardError> {
        let path = path.into();
        let mut writer = Self {
            ids: Part::create(&path, "ids")?,
            loss: Part::create(&path, "loss")?,
            index: Part::create(&path, "rows")?,
            path,
            content: None,
            counts: Counts::default(),
        };
        writer.ids.write(&[0; HEADER_BYTES])?;
        writer.index.write(&0u64.to_le_bytes())?;
        Ok(writer)
    }

    /// Completes the file: when this returns, the shard is on the disk under its own name.
    ///
    /// # Errors
    ///
    /// [`ShardError::Io`] if it cannot be written, for example because the disk is full.
    pub fn finish(mut self, origin: ShardOrigin) -> Result<ShardFacts, ShardError> {
        self.pad()?;
        self.append(Section::Loss)?;
        self.pad()?;
        self.append(Section::Index)?;
        let content = Digest(*self.content().finalize().as_bytes());
        let facts = self.counts.facts(origin, content);
        self.ids.seal(&format::encode(&facts), &self.path)?;
        Ok(facts)
    }

    fn write(&mut self, row: Row<'_>) -> Result<(), ShardError> {
        self.counts.add(row);
        let bytes = bytemuck::cast_slice(row.ids);
        self.content().update(bytes);
        self.ids.write(bytes)?;
        self.loss.write(row.loss)?;
        self.index.write(&self.counts.tokens.to_le_bytes())
    }

    /// The hasher of the content; it begins with the kind, which the first row decides.
    fn content(&mut self) -> &mut blake3::Hasher {
        let kind = self.counts.kind();
        self.content
            .get_or_insert_with(|| format::content_hasher(kind))
    }

    fn pad(&mut self) -> Result<(), ShardError> {
        let zeros = [0; 8];
        let missing = (8 - self.ids.bytes % 8) % 8;
        let padding = &zeros[..missing as usize];
        self.content().update(padding);
        self.ids.write(padding)
    }

    fn append(&mut self, section: Section) -> Result<(), ShardError> {
        let part = match section {
            Section::Loss => &mut self.loss,
            Section::Index => &mut self.index,
        };
        let mut reader = part.rewind()?;
        let path = part.path.clone();
        let mut block = vec![0; 1 << 16];
        loop {
            let length = reader
                .read(&mut block)
                .map_err(|e| ShardError::io(&path, e))?;
            if length == 0 {
                return Ok(());
            }
            self.content().update(&block[..length]);
            self.ids.write(&block[..length])?;
        }
    }
}

impl RowSink for ShardWriter {
    fn push(&mut self, ids: &[u32], loss: &[u8]) -> Result<(), ShardError> {
        self.counts.check(RowKind::Examples, &[Row { ids, loss }])?;
        self.write(Row { ids, loss })
    }

    fn push_pair(&mut self, chosen: Row<'_>, rejected: Row<'_>) -> Result<(), ShardError> {
        self.counts
            .check(RowKind::Preferences, &[chosen, rejected])?;
        self.write(chosen)?;
        self.write(rejected)
    }
}

/// Builds a shard in memory: for a few rows, and for tests.
#[derive(Debug, Default)]
pub struct ShardBuilder {
    ids: Vec<u32>,
    loss: Vec<u8>,
    ends: Vec<u64>,
    counts: Counts,
}

impl ShardBuilder {
    /// Starts an empty shard.
    pub fn new() -> Self {
        Self::default()
    }

    /// The shard with the rows pushed so far.
    pub fn finish(self, origin: ShardOrigin) -> Shard {
        let mut index = Vec::with_capacity(self.ends.len() + 1);
        index.push(0);
        index.extend(self.ends);
        let content = digest_in_memory(self.counts.kind(), &self.ids, &self.loss, &index);
        let facts = self.counts.facts(origin, content);
        Shard::whole(Store::in_memory(facts, self.ids, self.loss, index))
    }

    fn add(&mut self, row: Row<'_>) {
        self.counts.add(row);
        self.ids.extend_from_slice(row.ids);
        self.loss.extend_from_slice(row.loss);
        self.ends.push(self.counts.tokens);
    }
}

impl RowSink for ShardBuilder {
    fn push(&mut self, ids: &[u32], loss: &[u8]) -> Result<(), ShardError> {
        self.counts.check(RowKind::Examples, &[Row { ids, loss }])?;
        self.add(Row { ids, loss });
        Ok(())
    }

    fn push_pair(&mut self, chosen: Row<'_>, rejected: Row<'_>) -> Result<(), ShardError> {
        self.counts
            .check(RowKind::Preferences, &[chosen, rejected])?;
        self.add(chosen);
        self.add(rejected);
        Ok(())
    }
}

#[derive(Clone, Copy)]
enum Section {
    Loss,
    Index,
}

#[derive(Debug, Default)]
struct Counts {
    /// What the rows are, once there is one.
    kind: Option<RowKind>,
    rows: u64,
    tokens: u64,
    loss_tokens: u64,
    ids_below: u32,
}

impl Counts {
    fn kind(&self) -> RowKind {
        self.kind.unwrap_or_default()
    }

    /// Refuses a unit that cannot be stored here; the first one decides what the others must be.
    fn check(&mut self, offered: RowKind, rows: &[Row<'_>]) -> Result<(), ShardError> {
        for row in rows {
            check_row(*row)?;
        }
        match *self.kind.get_or_insert(offered) {
            shard if shard != offered => Err(ShardError::MixedKinds { shard, offered }),
            _ => Ok(()),
        }
    }

    fn add(&mut self, row: Row<'_>) {
        self.rows += 1;
        self.tokens += row.ids.len() as u64;
        self.loss_tokens += row.loss_tokens();
        for &id in row.ids {
            self.ids_below = self.ids_below.max(id.saturating_add(1));
        }
    }

    fn facts(&self, origin: ShardOrigin, content: Digest) -> ShardFacts {
        ShardFacts {
            kind: self.kind(),
            tokenizer: origin.tokenizer,
            template: origin.template,
            rows: self.rows,
            tokens: self.tokens,
            loss_tokens: self.loss_tokens,
            ids_below: self.ids_below,
            max_tokens: origin.max_tokens,
            content,
        }
    }
}

fn check_row(row: Row<'_>) -> Result<(), ShardError> {
    if row.ids.is_empty() {
        return Err(ShardError::Row("it has no tokens"));
    }
    if row.ids.len() != row.loss.len() {
        return Err(ShardError::Row("it has not one label mark for each token"));
    }
    if row.loss.iter().any(|&mark| mark > 1) {
        return Err(ShardError::Row("a label mark is neither 0 nor 1"));
    }
    Ok(())
}

/// A file that exists only while the shard is being written.
#[derive(Debug)]
struct Part {
    path: PathBuf,
    file: Option<BufWriter<File>>,
    bytes: u64,
}

impl Part {
    fn create(target: &Path, name: &str) -> Result<Self, ShardError> {
        let mut file_name = target.file_name().unwrap_or_default().to_os_string();
        file_name.push(format!(".{}.{name}.incomplete", std::process::id()));
        let path = target.with_file_name(file_name);
        let file = private_file(&path).map_err(|source| ShardError::io(target, source))?;
        Ok(Self {
            path,
            file: Some(BufWriter::with_capacity(1 << 16, file)),
            bytes: 0,
        })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), ShardError> {
        self.bytes += bytes.len() as u64;
        match &mut self.file {
            Some(file) => file.write_all(bytes).map_err(|e| self.error(e)),
            None => Ok(()),
        }
    }

    fn take(&mut self) -> Result<File, ShardError> {
        let Some(writer) = self.file.take() else {
            return Err(self.error(io::Error::other("the file was already closed")));
        };
        writer
            .into_inner()
            .map_err(|error| self.error(error.into_error()))
    }

    fn rewind(&mut self) -> Result<BufReader<File>, ShardError> {
        let mut file = self.take()?;
        file.rewind().map_err(|e| self.error(e))?;
        Ok(BufReader::with_capacity(1 << 16, file))
    }

    /// Writes the header, waits for the disk, and gives the file its name.
    fn seal(&mut self, header: &[u8], target: &Path) -> Result<(), ShardError> {
        let mut file = self.take()?;
        let sealed = file
            .seek(SeekFrom::Start(0))
            .and_then(|_| file.write_all(header))
            .and_then(|()| file.sync_all());
        drop(file);
        sealed
            .and_then(|()| fs::rename(&self.path, target))
            .and_then(|()| sync_directory(target))
            .map_err(|e| ShardError::io(target, e))
    }

    fn error(&self, source: io::Error) -> ShardError {
        ShardError::io(&self.path, source)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.file = None;
        // After `seal` there is nothing left under this name.
        let _ = fs::remove_file(&self.path);
    }
}

/// Shards hold private data: only their owner may read them.
fn private_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// A rename is durable once its directory is.
fn sync_directory(file: &Path) -> io::Result<()> {
    if cfg!(unix) {
        let parent = file.parent().filter(|p| !p.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))?.sync_all()?;
    }
    Ok(())
}

fn digest_in_memory(kind: RowKind, ids: &[u32], loss: &[u8], index: &[u64]) -> Digest {
    let mut hasher = format::content_hasher(kind);
    let mut bytes = HEADER_BYTES;
    for section in [
        bytemuck::cast_slice(ids),
        loss,
        bytemuck::cast_slice::<u64, u8>(index),
    ] {
        hasher.update(&[0; 8][..bytes.next_multiple_of(8) - bytes]);
        hasher.update(section);
        bytes = bytes.next_multiple_of(8) + section.len();
    }
    Digest(*hasher.finalize().as_bytes())
}
