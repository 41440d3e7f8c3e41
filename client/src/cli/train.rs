//! `fedllm-client train`.

use super::Global;

/// Arguments of `train`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Runs `train`.
pub(crate) fn run(_args: Args, _global: &Global) -> anyhow::Result<()> {
    anyhow::bail!("`train` is not part of this build")
}
