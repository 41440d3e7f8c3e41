//! What the commands that run a model share: finding it, opening it, and its adapter.

use std::path::{Path, PathBuf};

use anyhow::Context;
use fedllm_models::device::{self, Selection};
use fedllm_models::train::Memory;
use fedllm_models::{CausalLm, Lora, ModelConfig, PeftAdapter, lora};
use fedllm_shared::{Adapter, LoraSpec};

use super::{Global, devices};
use crate::base::{Base, ModelArgs};
use crate::catalog::{self, ModelError};
use crate::exit::{Code, Explain};
use crate::progress::{Bars, Progress};

/// Finds a model by name or path, downloading it if need be, and opens it.
pub(crate) fn open_base(name: &str, global: &Global) -> anyhow::Result<Base> {
    let path = catalog::resolve(name, &bars(global)).or_else(explained)?;
    Base::open(&path)
        .code(Code::Data)
        .hint("a damaged file of the catalog is fetched again by `fedllm-client pull NAME`")
}

/// Loads the network to the device that the arguments name.
pub(crate) fn load(base: &Base, args: &ModelArgs) -> anyhow::Result<(CausalLm, Selection)> {
    let selection = devices::select(&args.device)?;
    let model = base
        .load(args.base_precision, &selection)
        .code(Code::Data)?;
    Ok((model, selection))
}

/// How training uses the device.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct TrainingArgs {
    /// Keep only each block's input and compute the block again going back: slower, far less memory.
    /// Done anyway where free memory would not hold the rest.
    #[arg(long)]
    pub(crate) low_memory: bool,
    /// Multiply in single precision everywhere. Otherwise a GPU whose matrix units have passed the
    /// self-test multiplies the base in half precision: faster, with rounding as of other trainers.
    #[arg(long)]
    pub(crate) single_precision: bool,
}

impl TrainingArgs {
    /// Chooses the precision, and how training spends memory: blocks are computed again if the user
    /// says so, or where three quarters of what is free now would not hold what the backward pass
    /// needs of them.
    pub(crate) fn prepare(&self, model: &CausalLm, selection: &Selection) -> Memory {
        self.choose_precision(model, selection);
        let free = device::free_memory(&selection.info, &selection.device);
        Memory {
            recompute: self.low_memory,
            free_bytes: free.map(|free| free / 4 * 3),
            ..Memory::default()
        }
    }

    /// Turns mixed precision on where the device may use it.
    pub(crate) fn choose_precision(&self, model: &CausalLm, selection: &Selection) {
        let mixed = !self.single_precision && selection.takes_mixed_precision();
        model.mixed_precision().set(mixed);
    }
}

/// Reads a PEFT directory and puts its adapter beside the model.
///
/// # Errors
///
/// The file at fault, or that the adapter is of another model; the error carries its exit code.
pub fn load_adapter(directory: &Path, model: &CausalLm) -> anyhow::Result<Lora> {
    let (spec, adapter) = read_adapter(directory, model.config())?;
    Lora::new(model.config(), &spec, &adapter, model.device()).code(Code::Incompatible)
}

/// Reads a PEFT directory as an adapter of this model.
pub(crate) fn read_adapter(
    directory: &Path,
    config: &ModelConfig,
) -> anyhow::Result<(LoraSpec, Adapter)> {
    let unusable = || format!("the adapter in {} cannot be used", directory.display());
    let peft = PeftAdapter::read(directory)
        .with_context(unusable)
        .code(Code::Data)?;
    lora::from_peft(config, &peft)
        .with_context(unusable)
        .code(Code::Incompatible)
        .hint("an adapter belongs to the model that it was trained on: compare `--model`")
}

/// Shows a bar for each download.
pub(crate) fn bars(global: &Global) -> impl Progress {
    Bars::new(|bytes, what: &str| match bytes {
        0 => global.spinner(what),
        bytes => global.bytes_bar(bytes, what),
    })
}

/// A model that cannot be had, with its exit code and what to do.
pub(crate) fn explained(error: ModelError) -> anyhow::Result<PathBuf> {
    let code = if error.is_network() {
        Code::Network
    } else {
        Code::Data
    };
    let hint = error.hint();
    let failed = Err(error).code(code);
    match hint {
        Some(hint) => failed.hint(hint),
        None => failed,
    }
}
