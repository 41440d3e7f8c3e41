//! The update that waits for a receipt: kept on disk, so that neither a crash nor a long absence
//! costs a round of training.
//!
//! One file: `FDU1 | u32 length of the head, little endian | head (postcard) | the encoded delta`.
//! It is written whole before the update is offered, and removed after the server's last word.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use fedllm_shared::{Digest, RoundId, RunId, UpdateOffer};
use serde::{Deserialize, Serialize};

use crate::files::{Readers, write_durable};
use crate::state::{StateError, io_error};

const MAGIC: &[u8; 4] = b"FDU1";
const FILE: &str = "round.bin";

/// An update with all that is needed to offer it again.
#[derive(Clone, Debug, PartialEq)]
pub struct Unfinished {
    /// The run that it belongs to.
    pub run: RunId,
    /// What was, or is to be, offered.
    pub offer: UpdateOffer,
    /// The encoded delta.
    pub blob: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct Head {
    run: RunId,
    offer: UpdateOffer,
}

impl Unfinished {
    /// Its round and the digest of its blob.
    pub fn name(&self) -> (RoundId, Digest) {
        (self.offer.round, self.offer.blob.digest)
    }
}

/// The place of the unfinished round in a federation's directory.
#[derive(Clone, Debug)]
pub struct UnfinishedStore {
    path: PathBuf,
}

impl UnfinishedStore {
    /// The place in `folder`.
    pub fn at(folder: &Path) -> Self {
        Self {
            path: folder.join(FILE),
        }
    }

    /// Reads the update that waits, if one does.
    ///
    /// # Errors
    ///
    /// [`StateError::Damaged`] if the file is not what was written.
    pub fn load(&self) -> Result<Option<Unfinished>, StateError> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error("read", &self.path)(error)),
        };
        decode(&bytes)
            .map(Some)
            .map_err(|reason| StateError::Damaged {
                path: self.path.clone(),
                reason: reason.to_owned(),
            })
    }

    /// Keeps `update`; when this returns, it survives a crash.
    ///
    /// # Errors
    ///
    /// [`StateError::Io`], for example on a full disk; what was kept before is unchanged.
    pub fn save(&self, update: &Unfinished) -> Result<(), StateError> {
        let bytes = encode(update).map_err(|reason| StateError::Damaged {
            path: self.path.clone(),
            reason: reason.to_string(),
        })?;
        write_durable(&self.path, &bytes, Readers::Owner).map_err(io_error("write", &self.path))
    }

    /// Forgets the update.
    ///
    /// # Errors
    ///
    /// [`StateError::Io`].
    pub fn clear(&self) -> Result<(), StateError> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(io_error("remove", &self.path)(error))
            }
            _ => Ok(()),
        }
    }
}

fn encode(update: &Unfinished) -> Result<Vec<u8>, postcard::Error> {
    let head = Head {
        run: update.run,
        offer: update.offer.clone(),
    };
    let head = postcard::to_stdvec(&head)?;
    let mut bytes = Vec::with_capacity(8 + head.len() + update.blob.len());
    bytes.extend_from_slice(MAGIC);
    // The head has a few hundred bytes.
    bytes.extend_from_slice(&(head.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&head);
    bytes.extend_from_slice(&update.blob);
    Ok(bytes)
}

fn decode(bytes: &[u8]) -> Result<Unfinished, &'static str> {
    let rest = bytes
        .strip_prefix(MAGIC)
        .ok_or("it does not begin as it should")?;
    let (len, rest) = rest.split_first_chunk().ok_or("it is cut off")?;
    let len = u32::from_le_bytes(*len) as usize;
    let (head, blob) = rest.split_at_checked(len).ok_or("it is cut off")?;
    let head: Head = postcard::from_bytes(head).map_err(|_| "its head is malformed")?;
    if blob.len() as u64 != head.offer.blob.len || Digest::of(blob) != head.offer.blob.digest {
        return Err("the update in it is not the one that was written");
    }
    Ok(Unfinished {
        run: head.run,
        offer: head.offer,
        blob: blob.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use fedllm_shared::{BlobRef, ModelVersion, UpdateMetrics};

    fn update(blob: &[u8]) -> Unfinished {
        Unfinished {
            run: RunId([3; 16]),
            offer: UpdateOffer {
                round: RoundId(4),
                base_version: ModelVersion(4),
                blob: BlobRef::of(blob),
                rows: 10,
                loss_tokens: 100,
                metrics: UpdateMetrics::default(),
            },
            blob: blob.to_vec(),
        }
    }

    #[test]
    fn what_was_kept_comes_back_until_it_is_cleared() {
        let folder = tempfile::tempdir().unwrap();
        let store = UnfinishedStore::at(folder.path());
        assert_eq!(store.load().unwrap(), None);
        store.clear().unwrap();
        store.save(&update(b"first")).unwrap();
        store.save(&update(b"second, longer")).unwrap();
        assert_eq!(store.load().unwrap(), Some(update(b"second, longer")));
        store.clear().unwrap();
        assert_eq!(store.load().unwrap(), None);
    }

    #[test]
    fn damage_anywhere_is_found() {
        let bytes = encode(&update(b"some delta")).unwrap();
        for len in 0..bytes.len() {
            assert!(decode(&bytes[..len]).is_err(), "cut to {len}");
        }
        for position in [0, 3, 4, 5, bytes.len() - 1, bytes.len() - 10] {
            let mut bad = bytes.clone();
            bad[position] ^= 0x41;
            assert!(decode(&bad).is_err(), "byte {position}");
        }
    }
}
