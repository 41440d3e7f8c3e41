//! The command line of `fedllm-server`: one file per subcommand, and what they share.

mod aggregate;
mod api;
mod evaluate;
mod export;
mod init;
mod invite;
mod quickstart;
mod revoke;
mod serve;
mod simulate;
mod status;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use fedllm_client::{Code, Explain};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing_subscriber::EnvFilter;

use crate::admin::{AdminAddress, AdminError};
use crate::folder::{Folder, FolderError};
use crate::store::{RunStore, StoreError};

/// Runs `fedllm-server` with these arguments (the program's name first), as `main` does.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    if let Some(client) = client_arguments(&args) {
        return fedllm_client::cli::run(client);
    }
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing is left to do if the terminal is gone.
            let _ = error.print();
            let code = match error.use_stderr() {
                true => Code::Usage,
                false => Code::Ok,
            };
            return code.into();
        }
    };
    match dispatch(cli) {
        Ok(()) => Code::Ok.into(),
        Err(error) => fedllm_client::report(&error).into(),
    }
}

/// Runs a federation: opens rounds, averages what clients learned, keeps the record.
///
/// The raw data stays with the clients. The server sees their updates, and deletes each round's
/// when it has averaged them.
#[derive(Debug, Parser)]
#[command(name = "fedllm-server", version, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Global options")]
struct Options {
    /// Show no progress bars, and only warnings in the log.
    #[arg(long, short, global = true)]
    quiet: bool,
    /// How log lines on standard error look. FEDLLM_LOG filters them, for example `debug`.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// See all of it at once: a real server and three real clients on this machine.
    Quickstart(quickstart::Args),
    /// Make a federation: its certificate authority and its configuration.
    Init(init::Args),
    /// Run the federation in a folder until its rounds are done or a signal comes.
    Serve(serve::Args),
    /// Run an experiment of virtual clients: any algorithm on any split, reproducibly.
    Simulate(Box<simulate::Args>),
    /// Compare a model and adapters on the field's benchmarks.
    Evaluate(Box<evaluate::Args>),
    /// Let one client in: prints a one-time join token.
    Invite(invite::Args),
    /// Show rounds, clients, losses and bytes.
    Status(status::Args),
    /// Do one round from files, for federations that exchange nothing else.
    Aggregate(aggregate::Args),
    /// Write the adapter in a format that other programs read.
    Export(export::Args),
    /// Serve a model and its adapters as OpenAI does, for evaluation harnesses and chat programs.
    Api(api::Args),
    /// Put a client out; its connection is closed at once.
    Revoke(revoke::Args),
    /// Print the completion script of a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// What every subcommand gets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Global {
    /// No progress bars.
    pub(crate) quiet: bool,
}

impl Global {
    /// Shows downloads on standard error, if somebody looks.
    pub(crate) fn progress(&self) -> Box<dyn fedllm_client::Progress> {
        self.bars("{msg:24} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec:>12}")
    }

    /// Shows how many things are done on standard error, if somebody looks.
    pub(crate) fn counting(&self) -> Box<dyn fedllm_client::Progress> {
        self.bars("{msg:32} [{bar:30}] {pos}/{len} {eta:>6} left")
    }

    fn bars(&self, template: &'static str) -> Box<dyn fedllm_client::Progress> {
        match !self.quiet && std::io::stderr().is_terminal() {
            true => Box::new(fedllm_client::Bars::new(|len, what: &str| {
                bar(template, len, what)
            })),
            false => Box::new(fedllm_client::Silent),
        }
    }
}

fn dispatch(cli: Cli) -> anyhow::Result<()> {
    // The quickstart and simulations tell what happens in their own words.
    let terse =
        cli.options.quiet || matches!(cli.command, Command::Quickstart(_) | Command::Simulate(_));
    start_logging(cli.options.log_format, terse);
    let global = Global {
        quiet: cli.options.quiet,
    };
    match cli.command {
        Command::Quickstart(args) => quickstart::run(args, &global),
        Command::Init(args) => init::run(args),
        Command::Serve(args) => serve::run(args, &global),
        Command::Simulate(args) => simulate::run(*args, &global),
        Command::Evaluate(args) => evaluate::run(*args, &global),
        Command::Invite(args) => invite::run(args),
        Command::Status(args) => status::run(args),
        Command::Aggregate(args) => aggregate::run(args),
        Command::Export(args) => export::run(args, &global),
        Command::Api(args) => api::run(args, &global),
        Command::Revoke(args) => revoke::run(args),
        Command::Completions { shell } => {
            let mut command = Cli::command();
            clap_complete::generate(shell, &mut command, "fedllm-server", &mut std::io::stdout());
            Ok(())
        }
    }
}

/// `fedllm-server client ..` is `fedllm-client ..`: one program can then start real clients.
fn client_arguments(args: &[OsString]) -> Option<Vec<OsString>> {
    if args.get(1)? != "client" {
        return None;
    }
    let name = OsString::from("fedllm-client");
    Some(
        std::iter::once(name)
            .chain(args[2..].iter().cloned())
            .collect(),
    )
}

fn start_logging(format: LogFormat, terse: bool) {
    let default = match terse {
        true => "warn",
        false => "warn,fedllm_server=info,fedllm_client=info,fedllm_models=info",
    };
    let filter = EnvFilter::try_from_env("FEDLLM_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    let started = match format {
        LogFormat::Text => builder.compact().try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    if started.is_err() {
        tracing::debug!("logging was started before");
    }
}

fn bar(template: &str, len: u64, what: &str) -> indicatif::ProgressBar {
    let bar = match len {
        0 => indicatif::ProgressBar::new_spinner(),
        len => indicatif::ProgressBar::new(len),
    };
    if let Ok(style) = indicatif::ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.with_message(what.to_owned())
}

/// An error for the user: its exit code, and what to do about it.
fn explained<E>(error: E, code: Code, hint: Option<String>) -> anyhow::Error
where
    E: std::error::Error + Send + Sync + 'static,
{
    let result: anyhow::Result<()> = Err(error).code(code);
    let result = match hint {
        Some(hint) => result.hint(hint),
        None => result,
    };
    // It was made from an error above.
    result
        .err()
        .unwrap_or_else(|| anyhow::anyhow!("unknown error"))
}

/// Writes one line of JSON to standard output.
fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(value)?);
    Ok(())
}

/// Opens a federation's folder, with a hint for who has none yet.
fn open_folder(path: &Path) -> anyhow::Result<Folder> {
    let opened = Folder::open(path);
    let absent = matches!(opened, Err(FolderError::NoFederation(_)));
    let opened = opened.code(Code::Config);
    match absent {
        true => opened.hint(format!(
            "make a federation with: fedllm-server init {}",
            path.display()
        )),
        false => opened,
    }
}

/// A federation's folder as an argument.
#[derive(Clone, Debug, clap::Args)]
struct DirArg {
    /// The federation's folder, made by `init`.
    dir: PathBuf,
}

/// Who answers for a federation now: its running server, or its record.
enum Operator {
    Running(AdminAddress),
    Stopped(RunStore),
}

impl Operator {
    /// Finds out. Between the two a server may start or stop, so it looks more than once.
    fn find(folder: &Folder) -> anyhow::Result<Self> {
        let state = folder.state();
        let mut left = 20;
        loop {
            if let Some(address) = AdminAddress::load(&state)
                && address.is_ours()
            {
                return Ok(Self::Running(address));
            }
            match RunStore::open(&state) {
                Ok(store) => return Ok(Self::Stopped(store)),
                Err(StoreError::InUse { .. }) if left > 0 => left -= 1,
                Err(error) => return Err(error.into()),
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    }
}

/// Asks a running server.
fn ask<T: DeserializeOwned>(
    address: &AdminAddress,
    method: &str,
    target: &str,
    body: Option<&impl Serialize>,
) -> anyhow::Result<T> {
    let body = body.map(serde_json::to_value).transpose()?;
    let answer = address.ask(method, target, body.as_ref());
    answer.map_err(|error| match error {
        AdminError::Refused { .. } => anyhow::Error::from(error),
        error => anyhow::Error::from(error).context("the running server does not answer"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn client_hands_over() {
        let args = ["fedllm-server", "client", "run", "--json"].map(OsString::from);
        let expected = ["fedllm-client", "run", "--json"].map(OsString::from);
        assert_eq!(client_arguments(&args).unwrap(), expected);
        assert!(client_arguments(&args[..1]).is_none());
        assert!(client_arguments(&["fedllm-server".into(), "serve".into()]).is_none());
    }

    #[test]
    fn every_command_shows_an_example() {
        for command in Cli::command().get_subcommands_mut() {
            let name = command.get_name().to_owned();
            let help = command.render_long_help().to_string();
            let exempt = ["completions", "help"].contains(&name.as_str());
            assert!(exempt || help.contains("Example"), "{name} has no example");
        }
    }
}
