//! Running somebody else's program beside ours, in the same quiet minutes.

use std::process::Command;

use anyhow::{Context, bail};
use serde_json::Value;

/// What a reference program printed.
#[derive(Clone, Debug, PartialEq)]
pub struct Reference {
    /// Tokens a second.
    pub tokens_per_second: f64,
    /// Peak resident memory in MiB.
    pub peak_rss_mib: f64,
}

/// Runs a command line that prints one JSON object with `median_s` and `peak_rss_mib` (or
/// `peak_rss_MiB`) last, for steps of `tokens` tokens.
///
/// # Errors
///
/// If the program fails or prints something else.
pub fn run_reference(command: &str, tokens: usize) -> anyhow::Result<Reference> {
    let value = run_json(command)?;
    let number = |names: &[&str]| names.iter().find_map(|name| value.get(name)?.as_f64());
    let seconds = number(&["median_s"]).context("the reference printed no median_s")?;
    Ok(Reference {
        tokens_per_second: tokens as f64 / seconds,
        peak_rss_mib: number(&["peak_rss_mib", "peak_rss_MiB"]).unwrap_or(0.0),
    })
}

/// Runs a command line and gives the JSON value that it prints last, on a line of its own.
///
/// # Errors
///
/// If the program fails or prints something else.
pub fn run_json(command: &str) -> anyhow::Result<Value> {
    let output = Command::new("sh")
        .args(["-c", command])
        .output()
        .with_context(|| format!("cannot run {command}"))?;
    if !output.status.success() {
        bail!(
            "{command} failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default();
    serde_json::from_str(last).with_context(|| format!("{command} printed {last:?}"))
}
