//! What stays the same through a run.

use serde::{Deserialize, Serialize};

use super::policy::RoundPolicy;
use super::seed::derive_u64;
use crate::adapter::Layout;
use crate::codec::Codec;
use crate::config::{Federation, LocalConfig};
use crate::id::{ClientId, Digest, ModelVersion, RoundId, RunId};
use crate::strategy::{StrategySpec, Weighting};
use crate::wire::{
    BlobRef, ErrorCode, Hello, LoraSpec, ObjectiveSpec, PROTOCOL, TrainTask, Welcome,
};

/// What stays the same through a run: the federation's configuration, and
/// what the base model and its adapter are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunPlan {
    /// The run.
    pub run: RunId,
    /// The federation's name.
    pub federation: String,
    /// The seed of cohorts and tasks.
    pub seed: u64,
    /// The rounds of the run.
    pub rounds: u64,
    /// When rounds open and close.
    pub policy: RoundPolicy,
    /// The base model that clients must have.
    pub base: Digest,
    /// The tokenizer that shards must be made with; any if `None`.
    pub tokenizer: Option<Digest>,
    /// The template that shards must be made with; any if `None`.
    pub template: Option<Digest>,
    /// The adapter's layout.
    pub layout: Digest,
    /// The longest encoded update.
    pub max_update_bytes: u64,
    /// The initial adapter, version 0.
    pub adapter: BlobRef,
    /// Where the adapter sits.
    pub lora: LoraSpec,
    /// What is minimized.
    pub objective: ObjectiveSpec,
    /// What clients do in a round.
    pub local: LocalConfig,
    /// How updates are written.
    pub codec: Codec,
    /// The longest update (L2).
    pub max_norm: Option<f32>,
    /// The algorithm.
    pub strategy: StrategySpec,
    /// What an update weighs.
    pub weighting: Weighting,
}

/// What a client says it has, as far as rounds depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ShardFacts {
    /// Rows in its shard.
    pub rows: u64,
    /// Label tokens in its shard.
    pub loss_tokens: u64,
    /// The update it holds and has no receipt for.
    pub resume: Option<(RoundId, Digest)>,
}

impl RunPlan {
    /// The plan of a new run, from what the operator configured and what the
    /// model is. Tokenizer and template are not checked until they are set.
    pub fn new(
        federation: &Federation,
        run: RunId,
        base: Digest,
        layout: &Layout,
        adapter: BlobRef,
    ) -> Self {
        Self {
            run,
            federation: federation.name.clone(),
            seed: federation.seed,
            rounds: federation.rounds.count,
            policy: (&federation.rounds).into(),
            base,
            tokenizer: None,
            template: None,
            layout: layout.digest(),
            max_update_bytes: federation.wire.codec.max_encoded_len(layout),
            adapter,
            lora: federation.lora.clone(),
            objective: ObjectiveSpec::Sft,
            local: federation.local.clone(),
            codec: federation.wire.codec,
            max_norm: federation.wire.max_norm,
            strategy: federation.strategy.clone(),
            weighting: federation.weighting,
        }
    }

    /// Whether a client can take part, by its own account.
    ///
    /// # Errors
    ///
    /// The code to close the connection with.
    pub fn admit(&self, hello: &Hello) -> Result<ShardFacts, ErrorCode> {
        let differs = |expected: Option<Digest>, got| expected.is_some_and(|d| d != got);
        if hello.protocol != PROTOCOL {
            return Err(ErrorCode::Version);
        }
        if hello.base != self.base {
            return Err(ErrorCode::WrongBase);
        }
        if differs(self.tokenizer, hello.tokenizer) {
            return Err(ErrorCode::WrongTokenizer);
        }
        if differs(self.template, hello.template) {
            return Err(ErrorCode::WrongTemplate);
        }
        if hello.shard_rows == 0 || hello.shard_loss_tokens == 0 {
            return Err(ErrorCode::EmptyShard);
        }
        Ok(ShardFacts {
            rows: hello.shard_rows,
            loss_tokens: hello.shard_loss_tokens,
            resume: hello.resume,
        })
    }

    pub(super) fn welcome(&self, round: RoundId, version: ModelVersion) -> Welcome {
        Welcome {
            protocol: PROTOCOL,
            run: self.run,
            federation: self.federation.clone(),
            round,
            rounds: self.rounds,
            version,
        }
    }

    /// The task of `client`; the same whenever it is asked for.
    pub(super) fn task(
        &self,
        client: ClientId,
        (round, attempt): (RoundId, u32),
        (version, adapter): (ModelVersion, BlobRef),
        deadline_ms: u64,
    ) -> TrainTask {
        let (counted, tried) = (round.0.to_le_bytes(), attempt.to_le_bytes());
        TrainTask {
            run: self.run,
            round,
            version,
            base: self.base,
            layout: self.layout,
            adapter,
            lora: self.lora.clone(),
            objective: self.objective.clone(),
            local: self.local.at(round),
            codec: self.codec,
            rule: self.strategy.build().configure(round).rule,
            max_norm: self.max_norm,
            seed: derive_u64(self.seed, "task", &[&counted, &tried, &client.0]),
            deadline_ms,
        }
    }
}
