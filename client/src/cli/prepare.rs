//! `fedllm-client prepare`.

use super::Global;

/// Arguments of `prepare`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Runs `prepare`.
pub(crate) fn run(_args: Args, _global: &Global) -> anyhow::Result<()> {
    anyhow::bail!("`prepare` is not part of this build")
}
