//! From the updates of a round to the next version: the same code for a server that runs, for
//! simulations, and for federations that exchange files.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use burn::tensor::Device;
use fedllm_shared::{
    Adapter, AdapterError, Aggregate, BlobRef, ClientId, Codec, CodecError, Contributions, Delta,
    DeltaDecoder, Factors, Federation, Layout, LowRankError, Member, MemberState, Models,
    ReduceRule, RefuseReason, RoundReport, RunPlan, ServerState, Strategy, TransformChain, VARIATE,
    WeightedUpdate, decode_adapter, encode_adapter, trained, update_layout, with_rank,
};
use thiserror::Error;

use super::{
    AggregateError, RankedSource, Source, exact_mean, product_gap, truncate, weighted_sum,
};
use crate::store::{BlobStore, StoreError};

/// The layouts of a run: what is kept, what is trained, and what clients send.
#[derive(Clone, Debug)]
pub(crate) struct Layouts {
    /// The adapter's.
    pub(crate) adapter: Arc<Layout>,
    /// That of the factors which are trained.
    pub(crate) trained: Arc<Layout>,
    /// The updates'.
    pub(crate) update: Arc<Layout>,
}

impl Layouts {
    /// The layouts of a run with this adapter.
    ///
    /// # Errors
    ///
    /// [`LowRankError`] if updates would have no layout.
    pub(crate) fn new(
        adapter: Arc<Layout>,
        factors: Factors,
        strategy: &Strategy,
    ) -> Result<Self, LowRankError> {
        let update = update_layout(&adapter, factors, strategy.has_variates())?;
        Ok(Self {
            trained: Arc::new(trained(&adapter, factors)?),
            update: Arc::new(update),
            adapter,
        })
    }

    /// The layouts of the same run with another rank, the run's own if `None`.
    ///
    /// # Errors
    ///
    /// [`LowRankError`] if there are none.
    pub(crate) fn of_rank(&self, plan: &RunPlan, rank: Option<u32>) -> Result<Self, LowRankError> {
        match rank {
            None => Ok(self.clone()),
            Some(rank) => Self::new(
                Arc::new(with_rank(&self.adapter, rank)?),
                plan.lora.train,
                &plan.strategy,
            ),
        }
    }
}

/// How a run averages, which is the same in all of its rounds.
pub(crate) struct RoundRules {
    pub(crate) layouts: Layouts,
    pub(crate) factors: Factors,
    pub(crate) ranks: Vec<u32>,
    pub(crate) codec: Codec,
    pub(crate) max_norm: Option<f32>,
    pub(crate) strategy: Strategy,
}

impl RoundRules {
    pub(crate) fn of(plan: &RunPlan, layouts: &Layouts) -> Self {
        Self {
            layouts: layouts.clone(),
            factors: plan.lora.train,
            ranks: plan.ranks.iter().map(|plan| plan.rank).collect(),
            codec: plan.codec,
            max_norm: plan.max_norm,
            strategy: plan.strategy.clone(),
        }
    }
}

/// Everything that a round's averaging depends on: the same job gives the same adapter.
pub(crate) struct RoundJob<B> {
    pub(crate) given: Contributions,
    pub(crate) rules: RoundRules,
    pub(crate) state: ServerState,
    /// Whether to measure what plain averaging loses; it reads the updates once more.
    pub(crate) measure_gap: bool,
    pub(crate) blobs: B,
    pub(crate) device: Device,
}

/// What a round made, already stored.
#[derive(Debug)]
pub(crate) struct NextVersion {
    pub(crate) models: Models,
    pub(crate) report: RoundReport,
    pub(crate) state: ServerState,
}

/// Why there is no next adapter.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(crate) enum RoundError {
    #[error(transparent)]
    Aggregate(#[from] AggregateError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("a stored adapter: {0}")]
    Adapter(#[from] CodecError),
    #[error(transparent)]
    LowRank(#[from] LowRankError),
    #[error("the step: {0}")]
    Step(#[from] AdapterError),
}

/// What version 0 consists of.
///
/// # Errors
///
/// [`RoundError`] if a blob cannot be written.
pub(crate) fn first_version(
    adapter: &Adapter,
    federation: &Federation,
    blobs: &impl BlobStore,
) -> Result<Models, RoundError> {
    let layouts = Layouts::new(
        adapter.layout().clone(),
        federation.lora.train,
        &federation.strategy,
    )?;
    let mut models = with_ranks(adapter, &federation.ranks, blobs)?;
    if federation.strategy.has_variates() {
        models.variate = Some(put(blobs, &Adapter::zeros(layouts.trained))?);
    }
    Ok(models)
}

/// Stores the adapter, and what is left of it at lower ranks.
fn with_ranks(
    adapter: &Adapter,
    ranks: &[u32],
    blobs: &impl BlobStore,
) -> Result<Models, RoundError> {
    let mut models = Models::shared(put(blobs, adapter)?);
    for rank in ranks {
        let layout = Arc::new(with_rank(adapter.layout(), *rank)?);
        let lower = truncate(adapter, &layout)?;
        models.ranked.insert(*rank, put(blobs, &lower)?);
    }
    Ok(models)
}

fn put(blobs: &impl BlobStore, adapter: &Adapter) -> Result<BlobRef, RoundError> {
    Ok(blobs.put(&encode_adapter(adapter, Codec::F32)?)?)
}

impl<B: BlobStore> RoundJob<B> {
    /// Does the work. The updates themselves stay where they are.
    ///
    /// # Errors
    ///
    /// [`RoundError`]; then there is no new version.
    pub(crate) fn run(self) -> Result<NextVersion, RoundError> {
        match self.rules.strategy.reduce {
            ReduceRule::Mean => self.mean(),
            ReduceRule::Products => self.products(),
            ReduceRule::Separate => self.separate(),
        }
    }

    /// The weighted mean of each value, and the server optimizer's step along it.
    fn mean(self) -> Result<NextVersion, RoundError> {
        let total = self.total_weight();
        let everyone = 1.0 / self.given.population.max(1) as f64;
        let split = self.rules.layouts.trained.len();
        let sources = self.given.updates.iter().map(|update| Source {
            client: update.client,
            shares: [update.weight * update.scale / total, everyone],
            open: self.opener(update.blob),
        });
        let (update, sources) = (&self.rules.layouts.update, sources.collect());
        let sum = weighted_sum(update, split, self.rules.codec, sources, &self.device)?;
        let (mut delta, variate) = self.split(sum)?;
        TransformChain::of(self.rules.max_norm).on_server(&mut delta)?;
        let aggregate = Aggregate {
            round: self.given.round,
            base_version: self.given.base_version,
            delta,
            variate,
            updates: self.given.updates.len() as u32,
            total_weight: total,
        };
        let mut adapter = self.load(&self.given.base.adapter, &self.rules.layouts.adapter)?;
        let gap = self.gap(&adapter)?;
        let mut part = adapter.select(&self.rules.layouts.trained)?;
        let mut state = self.state.clone();
        let report = self
            .rules
            .strategy
            .apply(&mut part, &aggregate, &mut state)?;
        adapter.insert(&part)?;
        let mut models = Models::shared(put(&self.blobs, &adapter)?);
        if let Some(variate) = state.vectors.get(VARIATE) {
            let variate = Adapter::new(self.rules.layouts.trained.clone(), variate.clone())?;
            models.variate = Some(put(&self.blobs, &variate)?);
        }
        let report = RoundReport {
            drift: self.drift(report.delta_norm),
            gap,
            ..report
        };
        Ok(NextVersion {
            models,
            report,
            state,
        })
    }

    /// The mean of the clients' products, factorised anew.
    fn products(self) -> Result<NextVersion, RoundError> {
        let mut starts: BTreeMap<Option<u32>, Adapter> = BTreeMap::new();
        for update in &self.given.updates {
            if let Entry::Vacant(vacant) = starts.entry(update.rank) {
                let layout = match update.rank {
                    None => self.rules.layouts.adapter.clone(),
                    Some(rank) => Arc::new(with_rank(&self.rules.layouts.adapter, rank)?),
                };
                vacant.insert(self.load(&update.start, &layout)?);
            }
        }
        let start = |update: &WeightedUpdate| &starts[&update.rank];
        let sources = self.given.updates.iter().map(|update| RankedSource {
            client: update.client,
            weight: update.weight,
            scale: update.scale,
            start: start(update),
            layout: start(update).layout(),
            open: self.opener(update.blob),
        });
        let next = exact_mean(
            &self.rules.layouts.adapter,
            self.rules.codec,
            sources.collect(),
        )?;
        let before = self.load(&self.given.base.adapter, &self.rules.layouts.adapter)?;
        let step = Delta::between(&next.adapter, &before)?.l2_norm();
        Ok(NextVersion {
            models: with_ranks(&next.adapter, &self.rules.ranks, &self.blobs)?,
            report: RoundReport {
                updates: self.given.updates.len() as u32,
                total_weight: self.total_weight(),
                delta_norm: step,
                step_norm: step,
                gap: next.gap,
                discarded: Some(next.discarded),
                drift: 0.0,
            },
            state: self.state,
        })
    }

    /// Each client's own next adapter; the shared one stays as it began.
    fn separate(self) -> Result<NextVersion, RoundError> {
        let mut models = self.given.base.clone();
        let mut squares = 0.0;
        for update in &self.given.updates {
            let own = self.own_adapter(update)?;
            models.own.insert(update.client, put(&self.blobs, &own)?);
            squares += update.weight * (update.norm * update.scale).powi(2);
        }
        let total_weight = self.total_weight();
        let rms = (squares / total_weight).sqrt();
        Ok(NextVersion {
            models,
            report: RoundReport {
                updates: self.given.updates.len() as u32,
                total_weight,
                delta_norm: rms,
                step_norm: rms,
                ..RoundReport::default()
            },
            state: self.state,
        })
    }

    fn own_adapter(&self, update: &WeightedUpdate) -> Result<Adapter, RoundError> {
        let client = update.client;
        let failed = |source: CodecError| AggregateError::Update {
            client,
            source: Box::new(source),
        };
        let file = (self.opener(update.blob))().map_err(|source| AggregateError::Update {
            client,
            source: Box::new(source),
        })?;
        let decoder = DeltaDecoder::new(self.rules.layouts.update.clone(), self.rules.codec, file);
        let values = decoder.map_err(failed)?.read_all().map_err(failed)?;
        let delta = Delta::new(self.rules.layouts.trained.clone(), values)?;
        let mut own = self.load(&update.start, &self.rules.layouts.adapter)?;
        let mut part = own.select(&self.rules.layouts.trained)?;
        part.apply(&delta, update.scale as f32)?;
        own.insert(&part)?;
        Ok(own)
    }

    /// How far plain averaging is from the mean of the products; nothing where clients' updates are
    /// not those of factor pairs.
    fn gap(&self, start: &Adapter) -> Result<Option<f64>, RoundError> {
        if !self.measure_gap {
            return Ok(None);
        }
        if self.rules.factors == Factors::B {
            // All clients have the same A, so the mean of the products is the product of the means.
            return Ok(Some(0.0));
        }
        if fedllm_shared::factor_pairs(start.layout()).is_err() {
            return Ok(None);
        }
        let sources = self.given.updates.iter().map(|update| RankedSource {
            client: update.client,
            weight: update.weight,
            scale: update.scale,
            start,
            layout: &self.rules.layouts.update,
            open: self.opener(update.blob),
        });
        Ok(Some(product_gap(self.rules.codec, sources.collect())?))
    }

    /// `√(Σ p_i·‖Δ_i - Δ‖²) / ‖Δ‖`, from the lengths alone: the sum is `Σ p_i·‖Δ_i‖² - ‖Δ‖²`.
    fn drift(&self, mean: f64) -> f64 {
        let total = self.total_weight();
        let squares = self.given.updates.iter().map(|update| {
            let length = update.norm * update.scale;
            update.weight / total * length * length
        });
        let apart = (squares.sum::<f64>() - mean * mean).max(0.0);
        match mean > 0.0 {
            true => apart.sqrt() / mean,
            false => 0.0,
        }
    }

    fn split(&self, sum: Delta) -> Result<(Delta, Option<Delta>), RoundError> {
        let mut values = sum.into_values();
        let behind = values.split_off(self.rules.layouts.trained.len());
        let part = |values| Delta::new(self.rules.layouts.trained.clone(), values);
        let variate = (!behind.is_empty()).then(|| part(behind)).transpose()?;
        Ok((part(values)?, variate))
    }

    fn load(&self, blob: &BlobRef, layout: &Arc<Layout>) -> Result<Adapter, RoundError> {
        Ok(decode_adapter(&self.blobs.load(blob)?, layout)?)
    }

    fn opener(&self, blob: BlobRef) -> impl FnOnce() -> Result<B::File, StoreError> + use<'_, B> {
        move || self.blobs.read(&blob)
    }

    fn total_weight(&self) -> f64 {
        self.given.updates.iter().map(|update| update.weight).sum()
    }
}

/// Which update is to blame: one that cannot be read back, or the longest if the step is not finite.
pub(crate) fn culprit(
    failure: &RoundError,
    members: &BTreeMap<ClientId, Member>,
) -> Option<(ClientId, RefuseReason)> {
    match failure {
        RoundError::Aggregate(AggregateError::Update { client, .. }) => {
            Some((*client, RefuseReason::Malformed))
        }
        RoundError::Step(_) | RoundError::Aggregate(AggregateError::Mean(_)) => {
            let norms = members
                .iter()
                .filter_map(|(client, member)| match &member.state {
                    MemberState::Stored(record) => Some((*client, record.norm)),
                    _ => None,
                });
            let longest = norms.max_by(|a, b| a.1.total_cmp(&b.1));
            longest.map(|(client, _)| (client, RefuseReason::NormTooLarge))
        }
        _ => None,
    }
}
