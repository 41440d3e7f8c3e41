//! `fedllm-client pull`.

use super::Global;

/// Arguments of `pull`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Runs `pull`.
pub(crate) fn run(_args: Args, _global: &Global) -> anyhow::Result<()> {
    anyhow::bail!("`pull` is not part of this build")
}
