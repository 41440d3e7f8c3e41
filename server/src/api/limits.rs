//! What one client may ask for, and all of them together.

use std::time::Duration;

/// Bounds on requests and connections.
#[derive(Clone, Copy, Debug, clap::Args)]
#[command(next_help_heading = "Limits")]
pub(crate) struct Limits {
    /// Tokens of one request: its prompts and what may be written to each.
    #[arg(long, value_name = "N", default_value_t = 65_536)]
    pub(crate) max_tokens_per_request: usize,
    /// Prompts of one request.
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub(crate) max_prompts: usize,
    /// Bytes of one request.
    #[arg(long, value_name = "N", default_value_t = 2 << 20)]
    pub(crate) max_body_bytes: usize,
    /// Requests that wait for the model; more are told to come again (429).
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = positive)]
    pub(crate) max_queue: usize,
    /// Memory for what the model has read and written, in MiB: the texts in progress, and as many
    /// earlier ones as have room, so that what begins like one of them is not read again. One long
    /// text may take more.
    #[arg(long, value_name = "MIB", default_value_t = 512, value_parser = positive)]
    pub(crate) max_cache_mib: usize,
    /// Connections at once; more wait until one is closed.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = positive)]
    pub(crate) max_connections: usize,
    /// Seconds after which a connection that asks nothing, or does not take its answer, is closed.
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub(crate) idle_timeout: Duration,
}

fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".to_owned()),
        Ok(number) => Ok(number),
        Err(_) => Err("must be a number".to_owned()),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("must be a number of seconds, at least 1".to_owned()),
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
    }
}
