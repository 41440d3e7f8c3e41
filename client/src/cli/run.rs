//! `fedllm-client run`.

use super::Global;

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Runs `run`.
pub(crate) fn run(_args: Args, _global: &Global) -> anyhow::Result<()> {
    anyhow::bail!("`run` is not part of this build")
}
