//! The command line of `fedllm-client`: one file per subcommand, and what they share.

mod bench;
mod devices;
mod generate;
mod join;
mod model;
mod prepare;
mod progress;
mod pull;
mod run;
mod run_view;
mod score;
mod status;
mod train;

pub use devices::select as select_device;
pub use model::load_adapter;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use indicatif::MultiProgress;
use serde::Serialize;
use tracing_subscriber::EnvFilter;

use crate::exit::{self, Code};
use crate::governor;
use crate::net::NetError;

/// Runs `fedllm-client` with these arguments (the program's name first), as `main` does.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing is left to do if the terminal is gone.
            let _ = error.print();
            let code = if error.use_stderr() {
                Code::Usage
            } else {
                Code::Ok
            };
            return code.into();
        }
    };
    match dispatch(cli) {
        Ok(()) => Code::Ok.into(),
        Err(error) => exit::report(&error).into(),
    }
}

/// Trains a shared LoRA adapter on your own data, which stays on this machine.
#[derive(Debug, Parser)]
#[command(name = "fedllm-client", version, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Global options")]
struct Options {
    /// Write results to standard output as JSON.
    #[arg(long, global = true)]
    json: bool,
    /// Show no progress bars, and only warnings in the log.
    #[arg(long, short, global = true)]
    quiet: bool,
    /// How log lines on standard error look. FEDLLM_LOG filters them, for example `debug`.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// Directory of keys, certificates and unfinished rounds [default: the system's for programs].
    #[arg(long, global = true, value_name = "DIR", env = "FEDLLM_STATE")]
    state: Option<PathBuf>,
    /// Use at most this many CPU threads [default: all].
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Run below normal priority, so that the machine stays pleasant to use.
    #[arg(long, global = true)]
    low_priority: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

// The texts are attributes: a doc comment here would hide the long text at a command's `Args`.
#[derive(Debug, Subcommand)]
enum Command {
    #[command(about = "List the devices that can train here, with a self-test of each")]
    Devices(devices::Args),
    #[command(about = "Download a model of the catalog")]
    Pull(pull::Args),
    #[command(
        about = "Turn your own texts into a shard: token numbers in one file, read at training time"
    )]
    Prepare(prepare::Args),
    #[command(about = "Enroll in a federation with a join token")]
    Join(join::Args),
    #[command(
        about = "Take part in a federation: train on your shard when the server asks, send only the delta"
    )]
    Run(run::Args),
    #[command(
        about = "Show what this client is enrolled in, and exactly what has left this machine"
    )]
    Status(status::Args),
    #[command(about = "Train an adapter alone, without a server")]
    Train(train::Args),
    #[command(about = "Score prompts and completions: log-probabilities of every token")]
    Score(score::Args),
    #[command(about = "Generate text from a model and an adapter")]
    Generate(generate::Args),
    #[command(about = "Measure how fast a device trains, and what the time goes into")]
    Bench(bench::Args),
    /// Print the completion script of a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// What every subcommand gets: the global options and the place for progress bars.
#[derive(Debug)]
pub(crate) struct Global {
    /// Results go to standard output as JSON.
    pub(crate) json: bool,
    /// No progress bars.
    pub(crate) quiet: bool,
    /// `--state` or `FEDLLM_STATE`.
    pub(crate) state: Option<PathBuf>,
    bars: MultiProgress,
}

impl Global {
    /// Writes `value` to standard output as one line of JSON.
    pub(crate) fn print_json(&self, value: &impl Serialize) -> anyhow::Result<()> {
        let line = serde_json::to_string(value)?;
        self.print(&format!("{line}\n"))
    }

    /// Writes `text` to standard output. Whoever reads may have seen enough; that is no error.
    pub(crate) fn print(&self, text: &str) -> anyhow::Result<()> {
        let mut output = std::io::stdout().lock();
        let written = self.bars.suspend(|| {
            output
                .write_all(text.as_bytes())
                .and_then(|()| output.flush())
        });
        match written {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            other => other.context("standard output cannot be written"),
        }
    }
}

fn dispatch(cli: Cli) -> anyhow::Result<()> {
    let bars = MultiProgress::new();
    progress::start_logging(&bars, cli.options.log_format, log_filter(cli.options.quiet));
    let global = Global {
        json: cli.options.json,
        quiet: cli.options.quiet,
        state: cli.options.state,
        bars,
    };
    if let Some(threads) = cli.options.threads
        && let Err(error) = governor::limit_threads(usize::from(threads))
    {
        tracing::warn!(%error, "the number of threads could not be limited");
    }
    if cli.options.low_priority
        && let Err(error) = governor::lower_priority()
    {
        tracing::warn!(%error, "the priority could not be lowered");
    }
    match cli.command {
        Command::Devices(args) => devices::run(args, &global),
        Command::Pull(args) => pull::run(args, &global),
        Command::Prepare(args) => prepare::run(args, &global),
        Command::Join(args) => join::run(args, &global),
        Command::Run(args) => run::run(args, &global),
        Command::Status(args) => status::run(args, &global),
        Command::Train(args) => train::run(args, &global),
        Command::Score(args) => score::run(args, &global),
        Command::Generate(args) => generate::run(args, &global),
        Command::Bench(args) => bench::run(args, &global),
        Command::Completions { shell } => {
            let mut command = Cli::command();
            clap_complete::generate(shell, &mut command, "fedllm-client", &mut std::io::stdout());
            Ok(())
        }
    }
}

/// A runtime for the commands that use the network.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    runtime.context("the network cannot be used")
}

/// What a user can do about a failure of the network.
fn net_hint(error: &NetError) -> String {
    match error {
        NetError::Address { .. } => "is the server's name right, and does this machine have a network?"
            .into(),
        NetError::Unreachable { .. } => "is the server running, and does every firewall between let UDP through to that port?"
            .into(),
        NetError::ServerCertificate { .. } => "is this machine's clock right? If so, the operator has to renew the server's certificate"
            .into(),
        NetError::WrongAuthority => "somebody else answers at this address; if the operator made a new certificate authority, join again with a new token"
            .into(),
        NetError::ClientCertificateExpired => "ask the operator for a new token and join again; rounds and ledger are kept"
            .into(),
        NetError::ClientCertificate { .. } => "the operator may have revoked it: ask for a new token and join again"
            .into(),
        NetError::Version { .. } => "install the version of fedllm-client that the operator names"
            .into(),
        _ => "try again; if it stays, show the operator this message".into(),
    }
}

fn log_filter(quiet: bool) -> EnvFilter {
    let default = if quiet {
        "warn"
    } else {
        "warn,fedllm_client=info,fedllm_models=info"
    };
    EnvFilter::try_from_env("FEDLLM_LOG").unwrap_or_else(|_| EnvFilter::new(default))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
