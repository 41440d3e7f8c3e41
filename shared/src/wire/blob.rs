//! Blobs: encoded tensors, named by their content, in chunks that are each checked.
//!
//! A client opens a stream for one blob and sends one [`BlobRequest`] frame;
//! the server answers with one [`BlobResponse`] frame, after which one of
//! them sends chunks, `u32 LE length | BLAKE3 of the bytes | bytes`, until
//! the blob is complete. An upload ends with a second response.

use serde::{Deserialize, Serialize};

use crate::id::{Digest, RoundId};

/// The length of every chunk but the last.
pub const CHUNK_BYTES: usize = 1 << 20;
/// The length of what precedes the bytes of a chunk.
pub const CHUNK_HEADER_BYTES: usize = 36;

/// A blob's name: the digest and the length of its encoded bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BlobRef {
    /// The BLAKE3 hash of the bytes.
    pub digest: Digest,
    /// The number of bytes.
    pub len: u64,
}

impl BlobRef {
    /// The name of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self {
            digest: Digest::of(bytes),
            len: bytes.len() as u64,
        }
    }
}

/// What a client wants on a blob stream. Grows at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlobRequest {
    /// Bytes that a task or the run's end named.
    Get {
        /// The blob.
        blob: BlobRef,
        /// How many bytes the client has; see [`resume_offset`].
        offset: u64,
    },
    /// The update that was offered and that the server is ready for.
    Put {
        /// The update's round.
        round: RoundId,
        /// The blob.
        blob: BlobRef,
    },
}

/// What a server answers on a blob stream. Grows at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlobResponse {
    /// Answers `Get`: this many bytes follow in chunks, from the offset asked for.
    Have {
        /// The number of bytes that follow.
        len: u64,
    },
    /// Answers `Put`: send chunks from here on.
    From {
        /// How many bytes the server has; see [`resume_offset`].
        offset: u64,
    },
    /// Ends an upload: the bytes are durable. The receipt comes on the control stream.
    Stored {
        /// The blob.
        digest: Digest,
    },
    /// Ends the stream without the blob.
    Refused {
        /// Why.
        reason: BlobRefusal,
    },
}

/// Why a blob does not travel. Grows at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum BlobRefusal {
    /// Not a blob that this client was told of, or was asked for.
    #[error("the blob is not expected")]
    NotExpected,
    /// An offset that is not at the beginning of a chunk, or beyond the end.
    #[error("the offset is out of place")]
    BadOffset,
    /// The bytes are not those of the blob's name.
    #[error("the bytes differ from their digest")]
    Corrupt,
    /// The bytes are no update of this task.
    #[error("the bytes are no valid update")]
    Invalid,
    /// Too many transfers, or no room; try again later.
    #[error("the server is busy")]
    Busy,
    /// The server failed; try again later.
    #[error("the server failed")]
    Internal,
}

/// What precedes the bytes of a chunk.
///
/// ```
/// use fedllm_shared::{BlobCheck, BlobRef, ChunkHeader};
///
/// let bytes = b"some bytes";
/// let blob = BlobRef::of(bytes);
///
/// // The sender:
/// let header = ChunkHeader::of(bytes).encode();
///
/// // The receiver:
/// let mut check = BlobCheck::new(blob);
/// let header = ChunkHeader::decode(&header, check.missing())?;
/// assert_eq!(header.len, bytes.len());
/// header.check(bytes)?;
/// check.update(bytes)?;
/// check.finish()?;
/// # Ok::<(), fedllm_shared::BlobError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkHeader {
    /// The number of bytes that follow, 1 to [`CHUNK_BYTES`].
    pub len: usize,
    /// Their BLAKE3 hash.
    pub digest: Digest,
}

/// Bytes that are not the blob's: the peer misbehaves or the path corrupts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BlobError {
    /// A chunk is not as long as it must be here.
    #[error("expected a chunk of {expected} bytes, got {got}")]
    ChunkLength {
        /// What the blob's length makes it.
        expected: u64,
        /// What the chunk says.
        got: u64,
    },
    /// A chunk's bytes are not those of its digest.
    #[error("a chunk differs from its digest")]
    ChunkDigest,
    /// More bytes than the blob has.
    #[error("the blob has {expected} bytes, got more")]
    TooLong {
        /// The blob's length.
        expected: u64,
    },
    /// Fewer bytes than the blob has.
    #[error("the blob has {expected} bytes, got {got}")]
    TooShort {
        /// The blob's length.
        expected: u64,
        /// What came.
        got: u64,
    },
    /// The blob's bytes are not those of its name.
    #[error("the blob is {got}, expected {expected}")]
    Digest {
        /// The blob's name.
        expected: Digest,
        /// The digest of what came.
        got: Digest,
    },
}

impl ChunkHeader {
    /// The header of a chunk of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self {
            len: bytes.len(),
            digest: Digest::of(bytes),
        }
    }

    /// The bytes that go before the chunk's.
    pub fn encode(&self) -> [u8; CHUNK_HEADER_BYTES] {
        let mut header = [0; CHUNK_HEADER_BYTES];
        header[..4].copy_from_slice(&(self.len as u32).to_le_bytes());
        header[4..].copy_from_slice(&self.digest.0);
        header
    }

    /// Reads a header of a blob of which `missing` bytes have not come yet.
    ///
    /// # Errors
    ///
    /// [`BlobError::ChunkLength`] if the chunk is not full and not the last
    /// one either: nothing needs to be allocated for such a chunk.
    pub fn decode(header: &[u8; CHUNK_HEADER_BYTES], missing: u64) -> Result<Self, BlobError> {
        let (len, digest) = header.split_at(4);
        let mut field = [0; 4];
        field.copy_from_slice(len);
        let got = u64::from(u32::from_le_bytes(field));
        let expected = missing.min(CHUNK_BYTES as u64);
        if got != expected || got == 0 {
            return Err(BlobError::ChunkLength { expected, got });
        }
        let mut name = Digest::default();
        name.0.copy_from_slice(digest);
        Ok(Self {
            len: got as usize,
            digest: name,
        })
    }

    /// Confirms that these are the chunk's bytes.
    ///
    /// # Errors
    ///
    /// [`BlobError::ChunkDigest`] if not.
    pub fn check(&self, bytes: &[u8]) -> Result<(), BlobError> {
        match ChunkHeader::of(bytes) == *self {
            true => Ok(()),
            false => Err(BlobError::ChunkDigest),
        }
    }
}

/// The offset at which a transfer goes on when `stored` bytes are there: the
/// beginning of the first chunk that is not complete.
pub fn resume_offset(stored: u64) -> u64 {
    stored - stored % CHUNK_BYTES as u64
}

/// Follows a blob as its bytes come and tells at the end whether it is the right one.
#[derive(Clone, Debug)]
pub struct BlobCheck {
    blob: BlobRef,
    hasher: blake3::Hasher,
}

impl BlobCheck {
    /// Expects `blob`. Bytes kept from an earlier transfer must be fed first.
    pub fn new(blob: BlobRef) -> Self {
        let hasher = blake3::Hasher::new();
        Self { blob, hasher }
    }

    /// How many bytes are still to come.
    pub fn missing(&self) -> u64 {
        self.blob.len - self.hasher.count()
    }

    /// Takes the bytes that came next.
    ///
    /// # Errors
    ///
    /// [`BlobError::TooLong`] if there are too many; none of them is then taken.
    pub fn update(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        if bytes.len() as u64 > self.missing() {
            let expected = self.blob.len;
            return Err(BlobError::TooLong { expected });
        }
        self.hasher.update(bytes);
        Ok(())
    }

    /// Confirms that the blob is complete and the right one.
    ///
    /// # Errors
    ///
    /// [`BlobError`] if it is not.
    pub fn finish(&self) -> Result<(), BlobError> {
        let (expected, got) = (self.blob.len, self.hasher.count());
        if got != expected {
            return Err(BlobError::TooShort { expected, got });
        }
        let (expected, got) = (self.blob.digest, Digest(self.hasher.finalize().into()));
        match got == expected {
            true => Ok(()),
            false => Err(BlobError::Digest { expected, got }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_is_full_or_the_last() {
        let full = CHUNK_BYTES as u64;
        let header = |len| {
            let digest = Digest::default();
            ChunkHeader { len, digest }.encode()
        };
        assert!(ChunkHeader::decode(&header(CHUNK_BYTES), full + 1).is_ok());
        assert!(ChunkHeader::decode(&header(1), 1).is_ok());
        for (len, missing, expected) in [
            (0, 0, 0),
            (1, 2, 2),
            (2, 1, 1),
            (CHUNK_BYTES + 1, full + 1, full),
            (u32::MAX as usize, u64::MAX, full),
        ] {
            let got = len as u64;
            assert_eq!(
                ChunkHeader::decode(&header(len), missing),
                Err(BlobError::ChunkLength { expected, got })
            );
        }
    }

    #[test]
    fn a_changed_byte_is_found_in_its_chunk() {
        let bytes = [7u8; 100];
        let header = ChunkHeader::of(&bytes);
        assert_eq!(header.check(&bytes), Ok(()));
        for place in 0..bytes.len() {
            let mut bytes = bytes;
            bytes[place] ^= 1;
            assert_eq!(header.check(&bytes), Err(BlobError::ChunkDigest));
        }
        assert_eq!(header.check(&bytes[1..]), Err(BlobError::ChunkDigest));
    }

    #[test]
    fn a_blob_is_checked_as_a_whole() {
        let blob = BlobRef::of(b"abc");
        let mut check = BlobCheck::new(blob);
        check.update(b"ab").unwrap();
        assert_eq!(check.missing(), 1);
        let short = BlobError::TooShort {
            expected: 3,
            got: 2,
        };
        assert_eq!(check.finish(), Err(short));
        assert_eq!(check.update(b"cd"), Err(BlobError::TooLong { expected: 3 }));
        let mut other = check.clone();
        check.update(b"c").unwrap();
        assert_eq!(check.finish(), Ok(()));
        other.update(b"x").unwrap();
        assert!(matches!(other.finish(), Err(BlobError::Digest { .. })));
    }

    #[test]
    fn transfers_go_on_at_a_chunk() {
        let chunk = CHUNK_BYTES as u64;
        assert_eq!(resume_offset(chunk - 1), 0);
        assert_eq!(resume_offset(chunk), chunk);
        assert_eq!(resume_offset(3 * chunk + 5), 3 * chunk);
    }
}
