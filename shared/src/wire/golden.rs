//! The bytes of every message of `fedllm/1` and `fedllm-join/1`, field by field.

use crate::codec::Codec;
use crate::id::{Digest, ModelVersion, RoundId, RunId};
use crate::wire::*;

/// A task with another value in every field.
pub(crate) fn task() -> TrainTask {
    TrainTask {
        run: RunId([0x11; 16]),
        round: RoundId(2),
        version: ModelVersion(300),
        base: Digest([0x22; 32]),
        layout: Digest([0x33; 32]),
        adapter: BlobRef {
            digest: Digest([0x44; 32]),
            len: 1000,
        },
        lora: LoraSpec {
            rank: 8,
            alpha: 16.0,
            dropout: 0.25,
            rslora: false,
            targets: [Target::Q, Target::V].into_iter().collect(),
            seed: 6,
        },
        objective: ObjectiveSpec::Sft,
        local: LocalSpec {
            steps: 10,
            batch: 4,
            max_tokens: 512,
            lr: 0.5,
            beta1: 0.75,
            beta2: 0.875,
            eps: 0.125,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            keep_optimizer: true,
            shuffle: false,
        },
        codec: Codec::Int8Rows,
        rule: LocalRule::Proximal { mu: 2.0 },
        max_norm: Some(10.0),
        seed: 5,
        deadline_ms: 60_000,
    }
}
