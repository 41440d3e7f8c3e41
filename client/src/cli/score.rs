//! `fedllm-client score`.

use super::Global;

/// Arguments of `score`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Runs `score`.
pub(crate) fn run(_args: Args, _global: &Global) -> anyhow::Result<()> {
    anyhow::bail!("`score` is not part of this build")
}
