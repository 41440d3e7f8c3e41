//! Measuring the shared adapter on the operator's own rows, while a federation runs.

use std::path::PathBuf;
use std::sync::Arc;

use burn::tensor::Device;
use fedllm_client::{
    Base as Model, PrepareError, PrepareOptions, Rewards, ScoreError, Shard, Silent, StopFlag,
    Vocabulary, prepare_in_memory, score_units,
};
use fedllm_models::lora::{Lora, LoraError};
use fedllm_models::{BasePrecision, CausalLm, CheckpointError, LoadError};
use fedllm_shared::{
    Adapter, CentralScore, CodecError, Federation, Layout, LoraSpec, ObjectiveConfig,
    ReferenceConfig, RowKind, decode_adapter,
};
use thiserror::Error;

use crate::base::{Base, BaseError, checkpoint};
use crate::evaluate::central_score;
use crate::store::StoreError;

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

/// The operator's rows, and the model that scores them once it is loaded.
pub(crate) struct Central {
    base: Model,
    rows: Shard,
    spec: LoraSpec,
    layout: Arc<Layout>,
    /// The β of preferences.
    beta: f32,
    /// What the policy is compared with, unless that is the base.
    reference: Option<Adapter>,
    device: Device,
    model: Option<CausalLm>,
}

impl Central {
    /// Reads the rows, if the settings name any.
    ///
    /// # Errors
    ///
    /// [`CentralError`] if they cannot be used.
    pub(crate) fn open(
        federation: &Federation,
        first: &Base,
        device: &Device,
    ) -> Result<Option<Self>, CentralError> {
        let files = &federation.evaluation.held_out;
        if files.is_empty() {
            return Ok(None);
        }
        let base = Model::open(&checkpoint(federation, &Silent)?.path().to_owned())?;
        let template = federation.data.template.parse();
        let options = PrepareOptions {
            template: Some(template.map_err(CentralError::Template)?),
            max_tokens: federation.data.max_tokens,
            ..PrepareOptions::new(files.iter().map(PathBuf::from).collect())
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
        Ok(Some(Self {
            rows,
            spec: federation.lora.clone(),
            layout: first.layout.clone(),
            beta,
            reference,
            device: device.clone(),
            model: None,
            base,
        }))
    }

    /// How many rows there are.
    pub(crate) fn rows(&self) -> usize {
        self.rows.units()
    }

    /// Scores an adapter, as it is encoded. Loads the base model if that is not done yet.
    pub(crate) fn score(&mut self, adapter: &[u8]) -> Result<CentralScore, CentralError> {
        let adapter = decode_adapter(adapter, &self.layout)?;
        let model = match self.model.take() {
            Some(model) => model,
            None => {
                let precision = BasePrecision::default();
                CausalLm::load(self.base.checkpoint(), precision, &self.device)?
            }
        };
        let model = self.model.insert(model);
        let on_device = |adapter| Lora::new(model.config(), &self.spec, adapter, model.device());
        let lora = on_device(&adapter)?;
        let reference = self.reference.as_ref().map(on_device).transpose()?;
        let rewards = Rewards {
            beta: self.beta,
            reference: reference.as_ref(),
        };
        // A server that is told to stop does not wait for this.
        let never = StopFlag::new();
        let score = central_score(&score_units(
            model,
            Some(&lora),
            rewards,
            &self.rows,
            &never,
        )?);
        match score.loss.is_finite() {
            true => Ok(score),
            false => Err(CentralError::NotFinite),
        }
    }
}
