//! `status`: rounds, clients, losses and bytes.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use super::{DirArg, Operator, ask, open_folder};
use crate::admin::Status;
use crate::folder::Folder;
use crate::record::status_of_record;

const REFRESH: Duration = Duration::from_secs(1);

/// Show rounds, clients, losses and bytes.
///
/// It asks the running server, or reads the record if none is running.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:
  fedllm-server status clinic --watch
  fedllm-server status clinic --json | jq .round")]
pub(crate) struct Args {
    #[command(flatten)]
    folder: DirArg,
    /// Show it again every second, until interrupted or the run is finished.
    #[arg(long)]
    watch: bool,
    /// Print JSON, one line each time.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let folder = open_folder(&args.folder.dir)?;
    loop {
        let status = current(&folder)?;
        show(&status, &args)?;
        if !args.watch || status.is_over() {
            return Ok(());
        }
        std::thread::sleep(REFRESH);
    }
}

fn current(folder: &Folder) -> anyhow::Result<Status> {
    match Operator::find(folder)? {
        Operator::Running(address) => ask(&address, "GET", "/status", None::<&()>),
        Operator::Stopped(store) => Ok(status_of_record(folder.federation(), &store)?),
    }
}

fn show(status: &Status, args: &Args) -> anyhow::Result<()> {
    if args.json {
        return super::print_json(status);
    }
    let mut out = std::io::stdout().lock();
    if args.watch && out.is_terminal() {
        // Clears the screen and begins at its top.
        write!(out, "\x1b[2J\x1b[H")?;
    }
    write!(out, "{status}")?;
    out.flush()?;
    Ok(())
}
