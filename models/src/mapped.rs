//! Cheaply cloned windows into a read-only file.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

/// A range of bytes of a memory-mapped file, or of a shared buffer.
///
/// Cloning and slicing copy nothing. The bytes have no alignment of their own:
/// read numbers from them with `from_le_bytes`.
///
/// The file must not be shortened while it is mapped: the system would end the
/// process when it touches a page that is gone. Model files are written once, under
/// another name, and then renamed, so this does not happen to files that we fetched.
#[derive(Clone)]
pub struct MappedBytes {
    source: Arc<Source>,
    range: Range<usize>,
}

enum Source {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

impl MappedBytes {
    /// Maps the whole file at `path`.
    ///
    /// # Errors
    ///
    /// Whatever opening or mapping the file reports. An empty file is no error.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a regular file",
            ));
        }
        if metadata.len() == 0 {
            return Ok(Self::from(Vec::new()));
        }
        Ok(Self::whole(Source::Mapped(map(&file)?)))
    }

    /// The bytes at `range` of this range, or `None` where it reaches past the end.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        if range.start > range.end || range.end > self.len() {
            return None;
        }
        let start = self.range.start + range.start;
        let end = self.range.start + range.end;
        Some(Self {
            source: Arc::clone(&self.source),
            range: start..end,
        })
    }

    fn whole(source: Source) -> Self {
        let range = 0..source.bytes().len();
        Self {
            source: Arc::new(source),
            range,
        }
    }
}

#[expect(
    unsafe_code,
    reason = "one of the two memory maps of the workspace; see below"
)]
fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: the map is read-only and private to this module, which hands out shared
    // slices only. Another process that writes to the file would change the bytes under
    // us; every reader of these bytes treats them as untrusted numbers, never as values
    // with invalid bit patterns, so a change can give wrong numbers but no invalid value.
    unsafe { Mmap::map(file) }
}

impl Source {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }
}

impl From<Vec<u8>> for MappedBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self::whole(Source::Owned(bytes))
    }
}

impl Deref for MappedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.source.bytes()[self.range.clone()]
    }
}

impl fmt::Debug for MappedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match *self.source {
            Source::Mapped(_) => "mapped",
            Source::Owned(_) => "owned",
        };
        write!(f, "MappedBytes({kind}, {:?})", self.range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_of_slices_stay_inside() {
        let bytes = MappedBytes::from((0..100u8).collect::<Vec<_>>());
        let inner = bytes.slice(10..20).unwrap();
        assert_eq!(&inner.slice(2..5).unwrap()[..], &[12, 13, 14]);
        assert_eq!(inner.slice(10..10).unwrap().len(), 0);
        assert!(inner.slice(5..11).is_none());
        assert!(inner.slice(Range { start: 3, end: 2 }).is_none());
        assert!(bytes.slice(0..101).is_none());
    }

    #[test]
    fn maps_this_file_and_reports_a_missing_one() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let bytes = MappedBytes::open(&path).unwrap();
        assert!(bytes.starts_with(b"[package]"));
        assert!(MappedBytes::open(&path.join("nothing")).is_err());
        assert!(MappedBytes::open(Path::new(env!("CARGO_MANIFEST_DIR"))).is_err());
    }
}
