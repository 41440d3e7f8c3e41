//! From the updates of a round to the next adapter, on a thread of its own.

use std::sync::Arc;

use burn::tensor::Device;
use fedllm_shared::{
    AdapterError, Aggregate, BlobRef, Codec, CodecError, Layout, ModelVersion, RoundId,
    RoundReport, ServerState, StrategySpec, TransformChain, WeightedUpdate, decode_adapter,
    encode_adapter,
};
use thiserror::Error;

use crate::aggregate::{AggregateError, Source, weighted_mean};
use crate::store::{DirBlobs, StoreError};

/// Everything that a round's averaging depends on: the same job gives the same adapter.
pub(super) struct Job {
    pub(super) round: RoundId,
    pub(super) base_version: ModelVersion,
    pub(super) base: BlobRef,
    pub(super) updates: Vec<WeightedUpdate>,
    pub(super) layout: Arc<Layout>,
    pub(super) codec: Codec,
    pub(super) max_norm: Option<f32>,
    pub(super) strategy: StrategySpec,
    pub(super) state: ServerState,
    pub(super) blobs: DirBlobs,
    pub(super) device: Device,
}

/// What became of a job.
#[derive(Debug)]
pub(crate) struct Averaged {
    pub(super) round: RoundId,
    pub(super) result: Result<Next, AveragingError>,
}

/// The next adapter, already on disk.
#[derive(Debug)]
pub(super) struct Next {
    pub(super) adapter: BlobRef,
    pub(super) report: RoundReport,
    pub(super) state: ServerState,
}

/// Why there is no next adapter.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(super) enum AveragingError {
    #[error(transparent)]
    Aggregate(#[from] AggregateError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the present adapter: {0}")]
    Adapter(#[from] CodecError),
    #[error("the step: {0}")]
    Step(#[from] AdapterError),
}

impl Job {
    /// Does the work. The updates themselves stay where they are.
    pub(super) fn run(self) -> Averaged {
        Averaged {
            round: self.round,
            result: self.next(),
        }
    }

    fn next(self) -> Result<Next, AveragingError> {
        let bytes = self.blobs.load(&self.base)?;
        let mut adapter = decode_adapter(&bytes, &self.layout)?;
        drop(bytes);
        let blobs = &self.blobs;
        let source = |update: &WeightedUpdate| {
            let blob = update.blob;
            Source {
                client: update.client,
                weight: update.weight,
                scale: update.scale,
                open: move || blobs.read(&blob),
            }
        };
        let sources = self.updates.iter().map(source).collect();
        let mut delta = weighted_mean(&self.layout, self.codec, sources, &self.device)?;
        TransformChain::of(self.max_norm).on_server(&mut delta)?;
        let aggregate = Aggregate {
            round: self.round,
            base_version: self.base_version,
            delta,
            updates: self.updates.len() as u32,
            total_weight: self.updates.iter().map(|update| update.weight).sum(),
        };
        let mut state = self.state;
        let strategy = self.strategy.build();
        let report = strategy.apply(&mut adapter, &aggregate, &mut state)?;
        let adapter = self.blobs.put(&encode_adapter(&adapter, Codec::F32)?)?;
        Ok(Next {
            adapter,
            report,
            state,
        })
    }
}
