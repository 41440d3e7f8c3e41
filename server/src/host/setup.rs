//! Beginning a run, or going on with the one in the record.

use fedllm_shared::{Coordinator, RunId, RunPlan, ServerState};
use tokio::sync::watch;
use tracing::warn;

use super::clock::{Clock, unix_ms};
use super::handle::HostHandle;
use super::journal::Journal;
use super::measuring::Measuring;
use super::seats::Seats;
use super::{Ended, Host, HostError, HostOptions};
use crate::aggregate::{Layouts, first_version};
use crate::record::RunFacts;

impl Host {
    /// Goes on with the run in the record, or begins one.
    pub(crate) fn open(
        options: HostOptions,
    ) -> Result<(Self, HostHandle, watch::Receiver<Option<Ended>>), HostError> {
        let started = options.store.started_unix_ms(unix_ms())?;
        let clock = Clock::new(started);
        let coordinator = match options.store.snapshot()? {
            Some(snapshot) => {
                let coordinator = Coordinator::restore(&snapshot, clock.now())?;
                compare(coordinator.plan(), &options)?;
                coordinator
            }
            None => begin(&options, &clock)?,
        };
        let optimizer = match options.store.optimizer()? {
            Some(bytes) => postcard::from_bytes(&bytes).map_err(HostError::Optimizer)?,
            None => ServerState::default(),
        };
        let (handle, inputs) = HostHandle::new();
        let (ended, watcher) = watch::channel(None);
        let host = Self {
            federation: options.federation,
            layouts: Layouts::new(
                options.base.layout,
                coordinator.plan().lora.train,
                &coordinator.plan().strategy,
            )?,
            coordinator,
            optimizer,
            next_optimizer: None,
            store: options.store,
            blobs: options.blobs,
            journal: Journal::new(options.metrics.clone()),
            metrics: options.metrics,
            seats: Seats::default(),
            clock,
            device: options.device,
            measuring: Measuring::new(options.central),
            keep_serving: options.keep_serving,
            contributors: Default::default(),
            closing: None,
            unanswered: Vec::new(),
            inputs,
            handle: handle.clone(),
            ended,
        };
        let removed = host.sweep()?;
        if removed > 0 {
            tracing::info!(removed, "removed blobs that nothing refers to");
        }
        Ok((host, handle, watcher))
    }
}

fn begin(options: &HostOptions, clock: &Clock) -> Result<Coordinator, HostError> {
    let (federation, base) = (&options.federation, &options.base);
    let mut run = RunId::default();
    getrandom::fill(&mut run.0).map_err(HostError::Random)?;
    let models = first_version(&base.adapter, federation, &options.blobs)
        .map_err(|error| HostError::Other(format!("the first adapter: {error}")))?;
    let mut plan = RunPlan::new(federation, run, base.digest, &base.layout, models)?;
    plan.tokenizer = Some(base.tokenizer);
    plan.template = Some(base.template);
    let facts = RunFacts {
        run,
        base: base.digest,
        model: base.model.clone(),
        tokenizer: base.tokenizer,
        template: base.template,
        lora: federation.lora.clone(),
        layout: base.layout.as_ref().clone(),
    };
    facts.save(&options.store)?;
    Ok(Coordinator::new(plan, clock.now()))
}

/// A run keeps the plan it was begun with. Another model is an error, other settings a warning.
fn compare(plan: &RunPlan, options: &HostOptions) -> Result<(), HostError> {
    let base = &options.base;
    for (what, expected, got) in [
        ("base model", plan.base, base.digest),
        ("adapter layout", plan.layout, base.layout.digest()),
    ] {
        if expected != got {
            return Err(HostError::OtherRun {
                what,
                expected: expected.to_string(),
                got: got.to_string(),
            });
        }
    }
    let federation = &options.federation;
    let mut now = RunPlan::new(
        federation,
        plan.run,
        base.digest,
        &base.layout,
        plan.models.clone(),
    )?;
    now.tokenizer = Some(base.tokenizer);
    now.template = Some(base.template);
    if now != *plan {
        warn!(
            "federation.toml has changed since the run began; the run goes on as it began, and a \
             new folder begins a new run"
        );
    }
    Ok(())
}
