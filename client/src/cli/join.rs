//! `fedllm-client join`: enroll in a federation with a one-time token.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use fedllm_shared::{JoinRefusal, JoinToken};
use serde::Serialize;

use super::{Global, net_hint, runtime};
use crate::exit::{Code, Explain};
use crate::ledger::Kind;
use crate::net::{self, JoinError, NetError};
use crate::state::{Enrollment, StateDir};

/// Arguments of `join`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  fedllm-client join fj1.mfrgg...3f2a.federation.example:7433")]
pub(crate) struct Args {
    /// The token that the operator's `fedllm-server invite` printed. It is a secret, and works once.
    #[arg(value_name = "TOKEN")]
    token: String,
    /// Name the federation on this machine [default: what it calls itself].
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

/// Runs `join`.
pub(crate) fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    let token: JoinToken = args
        .token
        .parse()
        .code(Code::Network)
        .hint("copy the whole line that `fedllm-server invite` printed, from `fj1.` on")?;
    let state = StateDir::locate(global.state.clone())?;
    state
        .check_writable()
        .hint("choose another directory with --state")?;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs();
    let spinner = global.spinner(format!("joining at {}", token.address));
    let joined = runtime()?.block_on(net::join(&token, now));
    spinner.finish_and_clear();
    let (mut membership, sent_bytes) = explain(joined, &token)?;
    membership.name = args
        .name
        .unwrap_or_else(|| state.name_for(&membership.name, &membership.ca));
    let mut enrollment = state
        .enroll(membership)
        .context("the server let this client in, but that could not be kept")
        .hint("the token is used up: ask the operator for another one")?;
    enrollment.ledger.count(Kind::Join, sent_bytes);
    enrollment.rounds().save_ledger(&enrollment.ledger)?;
    tell(&enrollment, global)
}

fn tell(enrollment: &Enrollment, global: &Global) -> anyhow::Result<()> {
    let joined = Joined {
        federation: &enrollment.membership.name,
        server: &enrollment.membership.server,
        name: &enrollment.facts.name,
        client: enrollment.facts.key.to_string(),
        certificate_expires: enrollment.facts.not_after,
        state: enrollment.folder().display().to_string(),
    };
    if global.json {
        return global.print_json(&joined);
    }
    global.print(&format!(
        "joined {} at {} as {}\nkey and certificate are in {}\n\
         next: fedllm-client run --shard SHARD --model MODEL\n",
        joined.federation, joined.server, joined.name, joined.state
    ))
}

#[derive(Serialize)]
struct Joined<'a> {
    federation: &'a str,
    server: &'a str,
    name: &'a str,
    client: String,
    certificate_expires: i64,
    state: String,
}

fn explain<T>(joined: Result<T, JoinError>, token: &JoinToken) -> anyhow::Result<T> {
    let error = match joined {
        Ok(joined) => return Ok(joined),
        Err(error) => error,
    };
    let (code, hint) = match &error {
        JoinError::Refused(JoinRefusal::Version) => (
            Code::Incompatible,
            "install the version of fedllm-client that the operator names".into(),
        ),
        JoinError::Refused(JoinRefusal::Used) => (
            Code::Network,
            "a token works once: ask the operator for another one; if nobody of yours used this \
             one, tell them so"
                .into(),
        ),
        JoinError::Refused(JoinRefusal::Expired) => {
            (Code::Network, "ask the operator for a new token".into())
        }
        JoinError::Refused(JoinRefusal::Invalid) => (
            Code::Network,
            "was it copied whole, and is it for this server?".into(),
        ),
        JoinError::Refused(_) => (
            Code::Network,
            "ask the operator to look at the server's log".into(),
        ),
        JoinError::Net(error @ NetError::Version { .. }) => (Code::Incompatible, net_hint(error)),
        JoinError::Net(NetError::WrongAuthority) | JoinError::OtherAuthority => (
            Code::Network,
            format!(
                "whoever answers at {} is not the server that the token is from: is the token \
                 older than the server's certificate authority, or is somebody in between?",
                token.address
            ),
        ),
        JoinError::Net(error) => (Code::Network, net_hint(error)),
        _ => (Code::Failure, "try again; the token is still unused".into()),
    };
    Err(error).context("joining failed").code(code).hint(hint)
}
