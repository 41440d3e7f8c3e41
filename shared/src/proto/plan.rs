//! What stays the same through a run.

use serde::{Deserialize, Serialize};

use super::models::Models;
use super::policy::RoundPolicy;
use super::seed::derive_u64;
use crate::adapter::Layout;
use crate::codec::Codec;
use crate::config::{Federation, LocalConfig, ObjectiveConfig, ReferenceConfig};
use crate::id::{ClientId, Digest, ModelVersion, RoundId, RunId};
use crate::lowrank::{self, LowRankError};
use crate::strategy::{LocalChoice, ReduceRule, Strategy, Weighting, update_layout};
use crate::wire::{
    ErrorCode, Hello, LocalRule, LoraSpec, ObjectiveSpec, PROTOCOL, PreferenceSpec, Reference,
    TrainTask, Welcome,
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
    /// Lower ranks that clients may train, the highest first.
    pub ranks: Vec<RankPlan>,
    /// What version 0 consists of.
    pub models: Models,
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
    pub strategy: Strategy,
    /// What an update weighs.
    pub weighting: Weighting,
    /// The N of SCAFFOLD: how many clients there are, at least. Those that
    /// have come count anyway.
    pub population: u64,
}

/// An adapter of a lower rank than the run's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankPlan {
    /// The rank.
    pub rank: u32,
    /// The layout of its adapter.
    pub layout: Digest,
    /// The longest encoded update.
    pub max_update_bytes: u64,
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
    /// The rank it trains, if it is a lower one than the run's own.
    pub rank: Option<u32>,
}

impl RunPlan {
    /// The plan of a new run, from what the operator configured and what the
    /// model is. Tokenizer and template are not checked until they are set.
    ///
    /// # Errors
    ///
    /// [`LowRankError`] if the layout is not one that the algorithm can work with.
    pub fn new(
        federation: &Federation,
        run: RunId,
        base: Digest,
        layout: &Layout,
        models: Models,
    ) -> Result<Self, LowRankError> {
        let strategy = &federation.strategy;
        let longest = |layout: &Layout| {
            let factors = federation.lora.train;
            let update = update_layout(layout, factors, strategy.has_variates())?;
            Ok::<_, LowRankError>(federation.wire.codec.max_encoded_len(&update))
        };
        let ranks = federation.ranks.iter().map(|rank| {
            let layout = lowrank::with_rank(layout, *rank)?;
            Ok(RankPlan {
                rank: *rank,
                layout: layout.digest(),
                max_update_bytes: longest(&layout)?,
            })
        });
        Ok(Self {
            run,
            federation: federation.name.clone(),
            seed: federation.seed,
            rounds: federation.rounds.count,
            policy: (&federation.rounds).into(),
            base,
            tokenizer: None,
            template: None,
            layout: layout.digest(),
            max_update_bytes: longest(layout)?,
            ranks: ranks.collect::<Result<_, LowRankError>>()?,
            objective: objective(&federation.objective, &models),
            models,
            lora: federation.lora.clone(),
            local: federation.local.clone(),
            codec: federation.wire.codec,
            max_norm: federation.wire.max_norm,
            strategy: strategy.clone(),
            weighting: federation.weighting,
            population: federation.population,
        })
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
        if hello.shard_kind != self.objective.rows() {
            return Err(ErrorCode::WrongRows);
        }
        Ok(ShardFacts {
            rows: hello.shard_rows,
            loss_tokens: hello.shard_loss_tokens,
            resume: hello.resume,
            rank: self.rank_below(hello.max_rank)?,
        })
    }

    /// The highest rank that a client can train, if it is not the run's own.
    fn rank_below(&self, max_rank: Option<u32>) -> Result<Option<u32>, ErrorCode> {
        let Some(max_rank) = max_rank.filter(|max| *max < self.lora.rank) else {
            return Ok(None);
        };
        let fitting = self.ranks.iter().find(|plan| plan.rank <= max_rank);
        match fitting {
            Some(plan) => Ok(Some(plan.rank)),
            None => Err(ErrorCode::WrongRank),
        }
    }

    /// The layout and the longest update of an adapter of this rank, the run's own if `None`.
    pub fn adapter_of(&self, rank: Option<u32>) -> RankPlan {
        let lower = self.ranks.iter().find(|plan| Some(plan.rank) == rank);
        lower.copied().unwrap_or(RankPlan {
            rank: self.lora.rank,
            layout: self.layout,
            max_update_bytes: self.max_update_bytes,
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
        (client, rank): (ClientId, Option<u32>),
        (round, attempt): (RoundId, u32),
        (version, models): (ModelVersion, &Models),
        since: Option<RoundId>,
        deadline_ms: u64,
    ) -> TrainTask {
        let (counted, tried) = (round.0.to_le_bytes(), attempt.to_le_bytes());
        let adapter = self.adapter_of(rank);
        TrainTask {
            run: self.run,
            round,
            version,
            base: self.base,
            layout: adapter.layout,
            adapter: models.start_of(client, rank),
            lora: self.lora.with_rank(adapter.rank),
            objective: self.objective.clone(),
            local: self.local.at(round),
            codec: self.codec,
            rule: self.rule(models, since),
            max_norm: self.max_norm,
            seed: derive_u64(self.seed, "task", &[&counted, &tried, &client.0]),
            deadline_ms,
        }
    }

    fn rule(&self, models: &Models, since: Option<RoundId>) -> LocalRule {
        match (self.strategy.local, models.variate) {
            (LocalChoice::Proximal { mu }, _) => LocalRule::Proximal { mu },
            (LocalChoice::ControlVariate { form }, Some(variate)) => LocalRule::ControlVariate {
                variate,
                form,
                since,
            },
            // A server of control variates has one from the first version on.
            (LocalChoice::Plain | LocalChoice::ControlVariate { .. }, _) => LocalRule::Plain,
        }
    }

    /// Whether each client goes on from an adapter of its own.
    pub fn is_separate(&self) -> bool {
        self.strategy.reduce == ReduceRule::Separate
    }
}

fn objective(config: &ObjectiveConfig, models: &Models) -> ObjectiveSpec {
    match config {
        ObjectiveConfig::Sft => ObjectiveSpec::Sft,
        ObjectiveConfig::Dpo {
            beta,
            label_smoothing,
            loss,
            reference,
        } => ObjectiveSpec::Dpo(PreferenceSpec {
            beta: *beta,
            label_smoothing: *label_smoothing,
            loss: *loss,
            reference: match reference {
                ReferenceConfig::Base => Reference::Base,
                ReferenceConfig::Initial => Reference::Adapter(models.adapter),
            },
        }),
    }
}
