//! Blobs in memory: for one round of a federation that exchanges files.

use std::collections::HashMap;
use std::io::Cursor;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fedllm_shared::{BlobRef, Digest};

use super::{BlobStore, StoreError};

/// Blobs by their digests. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct MemoryBlobs {
    blobs: Arc<Mutex<HashMap<Digest, Arc<[u8]>>>>,
}

impl MemoryBlobs {
    fn blobs(&self) -> MutexGuard<'_, HashMap<Digest, Arc<[u8]>>> {
        self.blobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BlobStore for MemoryBlobs {
    type File = Cursor<Arc<[u8]>>;

    fn read(&self, blob: &BlobRef) -> Result<Self::File, StoreError> {
        let found = self.blobs().get(&blob.digest).cloned();
        let found = found.ok_or_else(|| StoreError::Damaged {
            what: "blobs",
            reason: format!("{} is not among them", blob.digest),
        })?;
        Ok(Cursor::new(found))
    }

    fn load(&self, blob: &BlobRef) -> Result<Vec<u8>, StoreError> {
        Ok(self.read(blob)?.into_inner().to_vec())
    }

    fn put(&self, bytes: &[u8]) -> Result<BlobRef, StoreError> {
        let blob = BlobRef::of(bytes);
        self.blobs().insert(blob.digest, bytes.into());
        Ok(blob)
    }
}
