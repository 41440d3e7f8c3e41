//! `fedllm-client join`.

use super::Global;

/// Arguments of `join`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Runs `join`.
pub(crate) fn run(_args: Args, _global: &Global) -> anyhow::Result<()> {
    anyhow::bail!("`join` is not part of this build")
}
