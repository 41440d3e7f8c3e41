//! `fedllm-client devices`.

use super::Global;

/// Arguments of `devices`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Runs `devices`.
pub(crate) fn run(_args: Args, _global: &Global) -> anyhow::Result<()> {
    anyhow::bail!("`devices` is not part of this build")
}
