//! `invite`: a one-time join token on standard output.

use super::{DirArg, Operator, ask, open_folder};
use crate::admin::InviteRequest;
use crate::operator::{Invited, invite};

/// Let one client in: prints a one-time join token.
///
/// The token carries the server's address and the hash of the federation's authority, so whoever
/// uses it knows whom it talks to. Give it to one person over a channel you trust: whoever uses it
/// first is that client. It works while the server runs and while it does not.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:
  fedllm-server invite clinic --name alice --ttl 24h
  then, on alice's machine: fedllm-client join fj1...")]
pub(crate) struct Args {
    #[command(flatten)]
    folder: DirArg,
    /// The client's name: letters, digits, '-', '_', '.'.
    #[arg(long, value_name = "NAME")]
    name: String,
    /// How long the token can be used: 30m, 24h, 7d.
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = seconds)]
    ttl: u64,
    /// Print token, name and end as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let folder = open_folder(&args.folder.dir)?;
    let invited: Invited = match Operator::find(&folder)? {
        Operator::Running(address) => {
            let request = InviteRequest {
                name: args.name,
                ttl_seconds: args.ttl,
            };
            ask(&address, "POST", "/invite", Some(&request))?
        }
        Operator::Stopped(store) => {
            let authority = folder.authority()?.fingerprint();
            let address = &folder.federation().server.address;
            invite(&store, authority, address, &args.name, args.ttl)?
        }
    };
    match args.json {
        true => super::print_json(&invited),
        false => {
            println!("{}", invited.token);
            Ok(())
        }
    }
}

/// Reads `90s`, `30m`, `24h` or `7d`.
fn seconds(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no time: write 30m, 24h or 7d");
    let (count, unit) = text.split_at(text.len() - text.chars().last().map_or(0, char::len_utf8));
    let count: u64 = count.parse().map_err(|_| wrong())?;
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        _ => return Err(wrong()),
    };
    count.checked_mul(unit).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        assert_eq!(seconds("90s"), Ok(90));
        assert_eq!(seconds("24h"), Ok(86_400));
        assert_eq!(seconds("7d"), Ok(604_800));
        for text in ["", "h", "24", "1.5h", "-1h", "24é", "99999999999999999999d"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
