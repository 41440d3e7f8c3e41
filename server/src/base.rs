//! The base model as far as a server needs it: its names and the adapter's shape, no weights.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fedllm_client::{ModelError, Progress, Template, TemplateError, TemplateName};
use fedllm_models::checkpoint::{Checkpoint, CheckpointError};
use fedllm_models::{ModelConfig, PeftAdapter, lora};
use fedllm_shared::{Adapter, AdapterError, Digest, Federation, Layout, LayoutError, ModelSource};
use thiserror::Error;

/// Why the base model cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BaseError {
    /// It is not here and cannot be had.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Its files are damaged or of a kind that is not known.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// It is another than the settings name.
    #[error("{path} has fingerprint {got}, model.digest says {expected}")]
    OtherModel {
        /// Where it is.
        path: PathBuf,
        /// The fingerprint in the settings.
        expected: Digest,
        /// The fingerprint that it has.
        got: Digest,
    },
    /// The settings name a template that does not exist.
    #[error("data.template: {0}")]
    TemplateName(String),
    /// The model lacks what the template needs.
    #[error("data.template: {0}")]
    Template(#[from] TemplateError),
    /// The adapter would be too large.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The first adapter could not be made.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// The adapter to start from cannot be read.
    #[error("adapter.start: {0}")]
    Start(String),
}

/// What clients of one run must have in common.
#[derive(Clone, Debug)]
pub struct Base {
    /// The fingerprint of the base model.
    pub digest: Digest,
    /// The fingerprint of its tokenizer.
    pub tokenizer: Digest,
    /// The fingerprint of the template.
    pub template: Digest,
    /// The adapter's tensors.
    pub layout: Arc<Layout>,
    /// The first adapter.
    pub adapter: Adapter,
    /// What the model is called, for exports.
    pub model: String,
}

impl Base {
    /// Finds the base model that the settings name, downloading it if need be.
    ///
    /// # Errors
    ///
    /// [`BaseError`].
    pub fn open(federation: &Federation, progress: &dyn Progress) -> Result<Self, BaseError> {
        let checkpoint = checkpoint(federation, progress)?;
        let digest = checkpoint.fingerprint();
        if let Some(expected) = federation
            .model
            .digest
            .filter(|expected| *expected != digest)
        {
            let path = checkpoint.path().to_owned();
            return Err(BaseError::OtherModel {
                path,
                expected,
                got: digest,
            });
        }
        let name: TemplateName = federation
            .data
            .template
            .parse()
            .map_err(BaseError::TemplateName)?;
        let tokenizer = checkpoint.tokenizer()?;
        let chat = checkpoint.chat_template(&tokenizer)?;
        let template = Template::new(name, &tokenizer, chat.as_ref())?;
        let layout = Arc::new(lora::layout(checkpoint.config(), &federation.lora)?);
        Ok(Self {
            digest,
            tokenizer: tokenizer.fingerprint(),
            template: template.digest(),
            adapter: first_adapter(federation, checkpoint.config(), &layout)?,
            layout,
            model: checkpoint.name().to_owned(),
        })
    }
}

/// A fresh adapter, or the one that the settings start from.
pub(crate) fn first_adapter(
    federation: &Federation,
    config: &ModelConfig,
    layout: &Arc<Layout>,
) -> Result<Adapter, BaseError> {
    let Some(start) = &federation.start else {
        return Ok(lora::init(layout, federation.lora.seed)?);
    };
    let failed = |error: String| BaseError::Start(format!("{start}: {error}"));
    let peft = PeftAdapter::read(Path::new(start)).map_err(|error| failed(error.to_string()))?;
    let (spec, adapter) =
        lora::from_peft(config, &peft).map_err(|error| failed(error.to_string()))?;
    let wanted = &federation.lora;
    if adapter.layout() != layout || spec.scale() != wanted.scale() {
        return Err(failed(format!(
            "it has rank {}, scale {} and targets {}; [adapter] says rank {}, scale {}, targets {}",
            spec.rank,
            spec.scale(),
            spec.targets,
            wanted.rank,
            wanted.scale(),
            wanted.targets
        )));
    }
    Ok(adapter)
}

/// Opens the base model that the settings name, downloading it if need be.
///
/// # Errors
///
/// [`BaseError::Model`] and [`BaseError::Checkpoint`].
pub(crate) fn checkpoint(
    federation: &Federation,
    progress: &dyn Progress,
) -> Result<Checkpoint, BaseError> {
    let path = match &federation.model.source {
        ModelSource::Name(name) => fedllm_client::resolve(name, progress)?,
        ModelSource::Path(path) => PathBuf::from(path),
    };
    Ok(Checkpoint::open(&path)?)
}
