//! `revoke`: a client that may not come back.

use super::{DirArg, Operator, ask, open_folder};
use crate::admin::RevokeRequest;
use crate::operator::{Revoked, revoke};

/// Put a client out: its certificate is not accepted any more, and its connection is closed.
///
/// An update of it that is accepted already stays in its round. The name can be invited again.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:
  fedllm-server revoke clinic --name alice")]
pub(crate) struct Args {
    #[command(flatten)]
    folder: DirArg,
    /// The client's name.
    #[arg(long, value_name = "NAME")]
    name: String,
    /// Print name and identity as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let folder = open_folder(&args.folder.dir)?;
    let revoked: Revoked = match Operator::find(&folder)? {
        Operator::Running(address) => {
            let request = RevokeRequest { name: args.name };
            ask(&address, "POST", "/revoke", Some(&request))?
        }
        Operator::Stopped(store) => revoke(&store, &args.name)?,
    };
    if args.json {
        return super::print_json(&revoked);
    }
    for client in &revoked.clients {
        println!("revoked {} ({})", revoked.name, client.short());
    }
    Ok(())
}
