//! `serve`: the federation, until its rounds are done or a signal comes.

use std::net::SocketAddr;

use anyhow::Context;
use clap::ValueEnum;
use fedllm_client::Code;

use super::{DirArg, Global, open_folder};
use crate::base::{Base, BaseError};
use crate::central::CentralError;
use crate::server::{Server, ServerError, ServerOptions};

/// Run the federation in a folder until its rounds are done or a signal comes.
///
/// A server that was stopped or killed goes on with the round it was in; every update that it had
/// acknowledged is still there. Ctrl-C and SIGTERM stop it cleanly, a second one at once.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:
  fedllm-server serve clinic
  FEDLLM_LOG=debug fedllm-server --log-format json serve clinic 2>server.log")]
pub(crate) struct Args {
    #[command(flatten)]
    folder: DirArg,
    /// Listen here instead of where federation.toml says (UDP).
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// Serve status and metrics here instead of where federation.toml says (TCP, loopback).
    #[arg(long, value_name = "ADDR:PORT")]
    status_listen: Option<SocketAddr>,
    /// Where updates are averaged.
    #[arg(long, value_enum, default_value_t = AverageOn::Cpu)]
    device: AverageOn,
    /// Print the addresses as one line of JSON when clients can come.
    #[arg(long)]
    json: bool,
    /// Stay after the last round, so that late clients still get the last adapter.
    #[arg(long)]
    keep_serving: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum AverageOn {
    /// The processor.
    Cpu,
    /// The first GPU that wgpu finds.
    Gpu,
}

pub(crate) fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    let folder = open_folder(&args.folder.dir)?;
    let base = Base::open(folder.federation(), &*global.progress());
    let base = base.map_err(explain_base)?;
    let mut options = ServerOptions::new(folder, base);
    options.listen = args.listen;
    options.status_listen = args.status_listen;
    options.keep_serving = args.keep_serving;
    options.gpu = args.device == AverageOn::Gpu;
    let runtime = tokio::runtime::Runtime::new().context("the network cannot be used")?;
    runtime.block_on(async {
        let server = Server::start(options).await.map_err(explain_start)?;
        let (listen, status) = (server.addr(), server.admin_addr());
        match args.json {
            true => super::print_json(&serde_json::json!({ "listen": listen, "status": status }))?,
            false => eprintln!("serving on {listen}, status on http://{status}/status"),
        }
        tokio::select! {
            ended = server.wait() => ended.map_err(anyhow::Error::from),
            signal = signals() => {
                signal?;
                tracing::info!("stopping; a second signal stops at once");
                tokio::select! {
                    ended = server.stop() => ended.map_err(anyhow::Error::from),
                    second = signals() => {
                        second?;
                        std::process::exit(Code::Interrupted as i32);
                    }
                }
            }
        }
    })
}

/// Waits for Ctrl-C or SIGTERM.
pub(super) async fn signals() -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            interrupted = tokio::signal::ctrl_c() => interrupted,
            _ = terminate.recv() => Ok(()),
        }
    }
    #[cfg(not(unix))]
    tokio::signal::ctrl_c().await
}

fn explain_base(error: BaseError) -> anyhow::Error {
    let (code, hint) = match &error {
        BaseError::Model(model) if model.is_network() => (Code::Network, model.hint()),
        BaseError::Model(model) => (Code::Data, model.hint()),
        BaseError::Checkpoint(_) => (Code::Data, None),
        BaseError::OtherModel { .. } => {
            let hint = "remove model.digest from federation.toml if this is the model you want";
            (Code::Incompatible, Some(hint.to_owned()))
        }
        _ => (Code::Config, None),
    };
    super::explained(error, code, hint)
}

/// What to do when nothing can be measured.
const CORRECT: &str = "correct [evaluation] in federation.toml, or remove held_out and tasks";

fn explain_start(error: ServerError) -> anyhow::Error {
    let (code, hint) = match &error {
        ServerError::Endpoint(_) | ServerError::Admin { .. } => {
            let hint =
                "is another server using the address? --listen and --status-listen change it";
            (Code::Network, Some(hint))
        }
        ServerError::Central(CentralError::Tasks(tasks)) => {
            (Code::Config, Some(tasks.hint().unwrap_or(CORRECT)))
        }
        ServerError::Central(_) => (Code::Config, Some(CORRECT)),
        ServerError::Store(store) if store.is_full() => (
            Code::Failure,
            Some("free some space and start again; nothing acknowledged is lost"),
        ),
        ServerError::Host(crate::HostError::OtherRun { .. }) => {
            let hint = "start a new run in a new folder: fedllm-server init NEWDIR";
            (Code::Incompatible, Some(hint))
        }
        _ => (Code::Failure, None),
    };
    let hint = hint.map(str::to_owned);
    super::explained(error, code, hint)
}
