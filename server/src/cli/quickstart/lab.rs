//! What this process does itself: prepare shards, train each owner alone, measure, save.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use fedllm_client::{
    Base, Code, Explain, Fit, PrepareOptions, Schedule, Shard, StepReport, StopFlag, Vocabulary,
    prepare_in_memory, prepare_shard,
};
use fedllm_models::device::DeviceChoice;
use fedllm_models::train::Memory;
use fedllm_models::{BasePrecision, CausalLm, Lora, PeftAdapter, lora};
use fedllm_shared::{Adapter, Federation, RoundId};

use super::evaluate::{HeldOut, score};
use super::report::Score;

/// A base model, and the settings of the federation that it is compared with.
pub(super) struct Lab {
    base: Base,
    federation: Federation,
}

/// The model on a device, ready to train and to measure.
pub(super) struct Bench<'a> {
    lab: &'a Lab,
    model: CausalLm,
    device: String,
}

impl Lab {
    /// Opens the model that the federation trains.
    pub(super) fn open(model: &Path, federation: &Federation) -> anyhow::Result<Self> {
        let base = Base::open(&model.to_owned()).code(Code::Data)?;
        let federation = federation.clone();
        Ok(Self { base, federation })
    }

    /// Prepares a shard file of `rows`.
    pub(super) fn prepare(&self, rows: PathBuf, out: &Path) -> anyhow::Result<()> {
        let options = self.options(rows);
        prepare_shard(self.vocabulary(), &options, out, &mut |_, _| ()).code(Code::Data)?;
        Ok(())
    }

    /// Prepares `rows` in memory.
    pub(super) fn rows(&self, rows: PathBuf) -> anyhow::Result<Shard> {
        let options = self.options(rows);
        let prepared = prepare_in_memory(self.vocabulary(), &options, &mut |_, _| ());
        Ok(prepared.code(Code::Data)?.0)
    }

    /// Loads the model to a device.
    pub(super) fn load(&self, device: &DeviceChoice) -> anyhow::Result<Bench<'_>> {
        let selection = fedllm_client::cli::select_device(device)?;
        let model = self.base.load(BasePrecision::default(), &selection)?;
        Ok(Bench {
            lab: self,
            model,
            device: selection.info.to_string(),
        })
    }

    fn vocabulary(&self) -> Vocabulary<'_> {
        Vocabulary {
            tokenizer: self.base.tokenizer(),
            chat: self.base.chat(),
        }
    }

    fn options(&self, rows: PathBuf) -> PrepareOptions {
        PrepareOptions {
            max_tokens: self.federation.data.max_tokens,
            ..PrepareOptions::new(vec![rows])
        }
    }
}

impl Bench<'_> {
    /// The device's name.
    pub(super) fn device(&self) -> &str {
        &self.device
    }

    /// Trains one owner's adapter from the federation's first adapter, with its settings, for as
    /// many steps as the owner takes in all rounds. It keeps its optimizer from round to round.
    pub(super) fn train(
        &self,
        shard: &Path,
        stop: &StopFlag,
        on_step: &mut dyn FnMut(StepReport),
    ) -> anyhow::Result<Adapter> {
        let federation = &self.lab.federation;
        let (spec, rounds) = (&federation.lora, federation.rounds.count);
        let layout = Arc::new(lora::layout(self.model.config(), spec)?);
        let start = lora::init(&layout, spec.seed)?;
        let shard = Shard::open(shard).code(Code::Data)?;
        let memory = Memory::default();
        let mut fit = Fit::new(&self.model, &self.device, spec, &start, None, memory)?;
        for round in 0..rounds {
            let local = federation.local.at(RoundId(round));
            let schedule = Schedule {
                local: &local,
                dropout: spec.dropout,
                seed: federation.seed + round,
            };
            let mut in_all = |step: StepReport| {
                on_step(StepReport {
                    step: step.step + round as u32 * local.steps,
                    steps: local.steps * rounds as u32,
                    ..step
                });
            };
            fit.run(&schedule, &shard, stop, &mut in_all)?;
        }
        Ok(fit.adapter()?)
    }

    /// Reads an adapter of this federation from a PEFT directory.
    pub(super) fn read(&self, directory: &Path) -> anyhow::Result<Adapter> {
        let peft = PeftAdapter::read(directory)?;
        Ok(lora::from_peft(self.model.config(), &peft)?.1)
    }

    /// Measures the base model, or an adapter on it.
    pub(super) fn score(
        &self,
        adapter: Option<&Adapter>,
        held_out: &HeldOut,
    ) -> anyhow::Result<Score> {
        let lora = adapter.map(|adapter| {
            let spec = &self.lab.federation.lora;
            Lora::new(self.model.config(), spec, adapter, self.model.device())
        });
        let lora = lora.transpose().context("the adapter does not fit")?;
        Ok(score(&self.model, lora.as_ref(), held_out))
    }
}
