//! What survives the process: the run's record in redb and blobs as files.

mod dir;
mod enrolment;
mod memory;
mod run;
mod scores;

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use fedllm_shared::{BlobError, BlobRef, ClientId, RoundId};
use thiserror::Error;

pub(crate) use dir::{DirBlobs, PartialBlob};
pub(crate) use enrolment::Invitation;
pub use enrolment::{EnrolledClient, TokenRefusal};
pub(crate) use memory::MemoryBlobs;
pub(crate) use run::{AcceptedUpdate, Commit, RunStore};
pub(crate) use scores::NewScore;
pub use scores::VersionScore;

/// Where blobs are: a directory for a server, memory for a simulation.
pub(crate) trait BlobStore {
    /// What a blob is read through.
    type File: Read + Send;

    /// Opens a blob.
    fn read(&self, blob: &BlobRef) -> Result<Self::File, StoreError>;

    /// The bytes of a blob, checked.
    fn load(&self, blob: &BlobRef) -> Result<Vec<u8>, StoreError>;

    /// Keeps bytes.
    fn put(&self, bytes: &[u8]) -> Result<BlobRef, StoreError>;
}

/// Why something could not be stored or read back.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The disk is full: nothing was acknowledged, and nothing that was is lost.
    #[error("no space left for {path}")]
    Full {
        /// What was being written.
        path: PathBuf,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The system could not make a file durable. What it holds is unknown: the server stops.
    #[error("{path} could not be made durable: {source}")]
    Sync {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A blob on disk has another length than its name says.
    #[error("{path} has {got} bytes, expected {expected}")]
    Length {
        /// Which file.
        path: PathBuf,
        /// The length in its name.
        expected: u64,
        /// The length that it has.
        got: u64,
    },
    /// Bytes are not those of the blob's name.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// The record is in use by another process: a server is running on this folder.
    #[error("{path} is in use: a server is running on this folder")]
    InUse {
        /// The record's file.
        path: PathBuf,
    },
    /// The record was written by another version of this program.
    #[error("the record has format {got}, this program reads format {expected}")]
    Format {
        /// The format that this program reads.
        expected: u64,
        /// The format that was found.
        got: u64,
    },
    /// Two different updates of one client for one round reached the record.
    #[error("client {client} has another update in round {round} already")]
    Conflict {
        /// The round.
        round: RoundId,
        /// The client.
        client: ClientId,
    },
    /// A row of the record cannot be understood.
    #[error("the record's {what} is damaged: {reason}")]
    Damaged {
        /// Which row.
        what: &'static str,
        /// What the parser said.
        reason: String,
    },
    /// The database failed.
    #[error("the record: {0}")]
    Database(Box<redb::Error>),
}

impl StoreError {
    /// Whether the same action may succeed once somebody frees space.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Full { .. } => true,
            Self::Database(error) => match error.as_ref() {
                redb::Error::Io(source) => out_of_space(source),
                _ => false,
            },
            _ => false,
        }
    }

    pub(crate) fn file(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        if out_of_space(&source) {
            Self::Full { path }
        } else {
            Self::File { path, source }
        }
    }

    fn sync(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        if out_of_space(&source) {
            Self::Full { path }
        } else {
            Self::Sync { path, source }
        }
    }
}

fn out_of_space(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}
