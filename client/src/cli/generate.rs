//! `fedllm-client generate`.

use super::Global;

/// Arguments of `generate`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Runs `generate`.
pub(crate) fn run(_args: Args, _global: &Global) -> anyhow::Result<()> {
    anyhow::bail!("`generate` is not part of this build")
}
