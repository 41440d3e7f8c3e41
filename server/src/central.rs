//! Measuring the shared adapter on the operator's own rows, while a federation runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::Device;
use fedllm_client::{
    Base as Model, PrepareError, PrepareOptions, Rewards, ScoreError, Shard, Silent, StopFlag,
    Vocabulary, prepare_in_memory, score_units,
};
use fedllm_models::lora::{Lora, LoraError};
use fedllm_models::{BasePrecision, CausalLm, CheckpointError, LoadError};
use fedllm_shared::{
    Adapter, CentralScore, CodecError, Digest, Federation, Layout, LoraSpec, ObjectiveConfig,
    ReferenceConfig, RowKind, TaskScore, decode_adapter,
};
use thiserror::Error;

use crate::base::{Base, BaseError, checkpoint};
use crate::evaluate::{AdapterSystem, Loaded, Tasks, TasksError, central_score, loaded_digest};
use crate::store::StoreError;

/// How the base is held.
const PRECISION: BasePrecision = BasePrecision::AsStored;

/// Why the shared adapter cannot be measured.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CentralError {
    /// The base model.
    #[error(transparent)]
    Base(#[from] BaseError),
    /// Its files.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The template.
    #[error("data.template: {0}")]
    Template(String),
    /// The rows.
    #[error("evaluation.held_out: {0}")]
    Rows(#[from] PrepareError),
    /// The rows are not of the kind that the objective learns from.
    #[error("evaluation.held_out: the objective learns from {expected}, and the rows are {got}")]
    WrongRows {
        /// What the objective learns from.
        expected: RowKind,
        /// What the rows are.
        got: RowKind,
    },
    /// The benchmarks.
    #[error(transparent)]
    Tasks(#[from] TasksError),
    /// The base model cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The adapter cannot be had.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The adapter cannot be read.
    #[error("the adapter cannot be read: {0}")]
    Adapter(#[from] CodecError),
    /// The adapter does not fit the model.
    #[error(transparent)]
    Lora(#[from] LoraError),
    /// Scoring failed.
    #[error(transparent)]
    Score(#[from] ScoreError),
    /// The thread that measures crashed.
    #[error("measuring crashed: {0}")]
    Crashed(String),
    /// The adapter gives losses that are not finite.
    #[error("the adapter gives losses that are not finite")]
    NotFinite,
}

/// What an operator measures on, and the model that does it once it is loaded.
pub(crate) struct Central {
    base: Model,
    spec: LoraSpec,
    layout: Arc<Layout>,
    held_out: Option<HeldOut>,
    tasks: Option<Benchmarks>,
    device: Device,
    model: Option<CausalLm>,
}

/// The operator's rows.
struct HeldOut {
    rows: Shard,
    /// The β of preferences.
    beta: f32,
    /// What the policy is compared with, unless that is the base.
    reference: Option<Adapter>,
}

/// The operator's benchmarks.
struct Benchmarks {
    tasks: Tasks,
    /// Names the base as it is loaded.
    digest: Digest,
    /// How the base does, once that is known.
    base: Option<Vec<TaskScore>>,
}

/// How an adapter does, on what there is to measure on.
#[derive(Debug)]
pub(crate) struct Measurement {
    /// On the operator's rows.
    pub(crate) held_out: Option<Result<CentralScore, CentralError>>,
    /// On benchmarks.
    pub(crate) tasks: Option<Result<Vec<TaskScore>, CentralError>>,
}

impl Central {
    /// Reads the rows, if the settings name any. Replies are kept below `state`.
    ///
    /// # Errors
    ///
    /// [`CentralError`] if they cannot be used.
    pub(crate) fn open(
        federation: &Federation,
        first: &Base,
        device: &Device,
        state: &Path,
    ) -> Result<Option<Self>, CentralError> {
        let evaluation = &federation.evaluation;
        if evaluation.held_out.is_empty() && evaluation.tasks.is_empty() {
            return Ok(None);
        }
        let base = Model::open(&checkpoint(federation, &Silent)?.path().to_owned())?;
        let tasks = Tasks::open(&evaluation.tasks, &base)?;
        let tasks = tasks.map(|tasks| Benchmarks {
            tasks: tasks.kept_in(state.join("evaluation")),
            digest: loaded_digest(first.digest, first.tokenizer, PRECISION),
            base: None,
        });
        let held_out = match evaluation.held_out.is_empty() {
            true => None,
            false => Some(HeldOut::open(federation, first, &base)?),
        };
        Ok(Some(Self {
            held_out,
            tasks,
            spec: federation.lora.clone(),
            layout: first.layout.clone(),
            device: device.clone(),
            model: None,
            base,
        }))
    }

    /// How many rows of the operator there are, and how many benchmarks.
    pub(crate) fn extent(&self) -> (usize, usize) {
        let rows = self.held_out.as_ref().map_or(0, |own| own.rows.units());
        let tasks = self.tasks.as_ref().map_or(0, |own| own.tasks.count());
        (rows, tasks)
    }

    /// Scores an adapter, as it is encoded. Loads the base model if that is not done yet.
    pub(crate) fn score(&mut self, adapter: &[u8]) -> Result<Measurement, CentralError> {
        let adapter = decode_adapter(adapter, &self.layout)?;
        let model = match self.model.take() {
            Some(model) => model,
            None => CausalLm::load(self.base.checkpoint(), PRECISION, &self.device)?,
        };
        let (model, base, spec) = (&*self.model.insert(model), &self.base, &self.spec);
        let held_out = self.held_out.as_ref();
        let held_out = held_out.map(|own| own.score(model, spec, &adapter));
        let tasks = self.tasks.as_mut();
        let tasks = tasks.map(|own| own.score(base, model, spec, adapter));
        Ok(Measurement { held_out, tasks })
    }
}

impl HeldOut {
    fn open(federation: &Federation, first: &Base, base: &Model) -> Result<Self, CentralError> {
        let files = federation.evaluation.held_out.iter().map(PathBuf::from);
        let template = federation.data.template.parse();
        let options = PrepareOptions {
            template: Some(template.map_err(CentralError::Template)?),
            max_tokens: federation.data.max_tokens,
            ..PrepareOptions::new(files.collect())
        };
        let vocabulary = Vocabulary {
            tokenizer: base.tokenizer(),
            chat: base.chat(),
        };
        let (rows, _) = prepare_in_memory(vocabulary, &options, &mut |_, _| ())?;
        let (expected, beta, reference) = match federation.objective {
            ObjectiveConfig::Sft => (RowKind::Examples, 0.0, None),
            ObjectiveConfig::Dpo {
                beta, reference, ..
            } => {
                let initial = reference == ReferenceConfig::Initial;
                let reference = initial.then(|| first.adapter.clone());
                (RowKind::Preferences, beta, reference)
            }
        };
        if rows.kind() != expected {
            let got = rows.kind();
            return Err(CentralError::WrongRows { expected, got });
        }
        Ok(Self {
            rows,
            beta,
            reference,
        })
    }

    fn score(
        &self,
        model: &CausalLm,
        spec: &LoraSpec,
        adapter: &Adapter,
    ) -> Result<CentralScore, CentralError> {
        let on_device = |adapter| Lora::new(model.config(), spec, adapter, model.device());
        let lora = on_device(adapter)?;
        let reference = self.reference.as_ref().map(on_device).transpose()?;
        let rewards = Rewards {
            beta: self.beta,
            reference: reference.as_ref(),
        };
        // A server that is told to stop does not wait for this.
        let never = StopFlag::new();
        let scores = score_units(model, Some(&lora), rewards, &self.rows, &never)?;
        let score = central_score(&scores);
        match score.loss.is_finite() {
            true => Ok(score),
            false => Err(CentralError::NotFinite),
        }
    }
}

impl Benchmarks {
    fn score(
        &mut self,
        base: &Model,
        model: &CausalLm,
        spec: &LoraSpec,
        adapter: Adapter,
    ) -> Result<Vec<TaskScore>, CentralError> {
        let loaded = Loaded {
            base,
            model,
            digest: self.digest,
        };
        // A server that is told to stop does not wait for this.
        let never = StopFlag::new();
        let base = match self.base.take() {
            Some(base) => base,
            None => self.tasks.score(loaded, None, &never)?,
        };
        let base = self.base.insert(base);
        let system = AdapterSystem::unnamed(spec.clone(), adapter);
        let mut scores = self.tasks.score(loaded, Some(system), &never)?;
        for (score, base) in scores.iter_mut().zip(base) {
            score.base = base.value;
        }
        self.tasks.forget_earlier();
        Ok(scores)
    }
}
