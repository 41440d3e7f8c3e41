//! `fedllm-client status`.

use super::Global;

/// Arguments of `status`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Runs `status`.
pub(crate) fn run(_args: Args, _global: &Global) -> anyhow::Result<()> {
    anyhow::bail!("`status` is not part of this build")
}
