//! Averaging a round on a thread of its own.

use fedllm_shared::RoundId;

use crate::aggregate::{NextVersion, RoundError, RoundJob};
use crate::store::DirBlobs;

/// What became of a round's averaging.
#[derive(Debug)]
pub(crate) struct Averaged {
    pub(super) round: RoundId,
    pub(super) result: Result<NextVersion, RoundError>,
}

impl Averaged {
    /// Does the work.
    pub(super) fn of(job: RoundJob<DirBlobs>) -> Self {
        Self {
            round: job.given.round,
            result: job.run(),
        }
    }
}
