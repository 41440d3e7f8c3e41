//! Blobs of a simulation: files that survive this process, but not a power cut.

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use fedllm_client::files::write_whole;
use fedllm_shared::{BlobCheck, BlobRef, Digest};

use crate::store::{BlobStore, StoreError};

/// A folder of blobs, written without waiting for the disk.
#[derive(Clone, Debug)]
pub(super) struct ScratchBlobs {
    folder: PathBuf,
}

impl ScratchBlobs {
    /// Makes the folder if need be.
    pub(super) fn open(folder: &Path) -> Result<Self, StoreError> {
        fs::create_dir_all(folder).map_err(|source| StoreError::file(folder, source))?;
        Ok(Self {
            folder: folder.to_owned(),
        })
    }

    /// Deletes everything but these.
    pub(super) fn keep_only(&self, keep: impl Iterator<Item = BlobRef>) -> Result<(), StoreError> {
        let keep: HashSet<Digest> = keep.map(|blob| blob.digest).collect();
        let failed = |source| StoreError::file(&self.folder, source);
        for entry in fs::read_dir(&self.folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let digest = name.and_then(|name| name.parse::<Digest>().ok());
            if !digest.is_some_and(|digest| keep.contains(&digest)) {
                fs::remove_file(&path).map_err(|source| StoreError::file(&path, source))?;
            }
        }
        Ok(())
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.folder.join(digest.to_string())
    }
}

impl BlobStore for ScratchBlobs {
    type File = File;

    fn read(&self, blob: &BlobRef) -> Result<File, StoreError> {
        let path = self.path(blob.digest);
        File::open(&path).map_err(|source| StoreError::file(&path, source))
    }

    fn load(&self, blob: &BlobRef) -> Result<Vec<u8>, StoreError> {
        let path = self.path(blob.digest);
        let bytes = fs::read(&path).map_err(|source| StoreError::file(&path, source))?;
        let mut check = BlobCheck::new(*blob);
        check.update(&bytes)?;
        check.finish()?;
        Ok(bytes)
    }

    fn put(&self, bytes: &[u8]) -> Result<BlobRef, StoreError> {
        let blob = BlobRef::of(bytes);
        let path = self.path(blob.digest);
        write_whole(&path, bytes).map_err(|source| StoreError::file(&path, source))?;
        Ok(blob)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_named_goes() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = ScratchBlobs::open(folder.path()).unwrap();
        let (kept, other) = (blobs.put(b"kept").unwrap(), blobs.put(b"other").unwrap());
        fs::write(folder.path().join("cut.partial"), b"half").unwrap();
        blobs.keep_only([kept].into_iter()).unwrap();
        assert_eq!(blobs.load(&kept).unwrap(), b"kept");
        assert!(blobs.load(&other).is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
