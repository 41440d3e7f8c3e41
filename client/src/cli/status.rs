//! `fedllm-client status`: what this client is enrolled in, and what has left this machine.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::Global;
use crate::exit::{Code, Explain};
use crate::ledger::{Kind, Outcome, RoundRecord};
use crate::state::{Enrollment, StateDir, StateError};

/// Arguments of `status`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  fedllm-client status --json | jq '.[0].sent'")]
pub(crate) struct Args {
    /// Only this federation [default: all].
    #[arg(long, value_name = "NAME")]
    federation: Option<String>,
    /// Show at most this many of the last rounds.
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: usize,
}

/// Runs `status`.
pub(crate) fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    let state = StateDir::locate(global.state.clone()).code(Code::Failure)?;
    let names = match &args.federation {
        Some(name) => vec![name.clone()],
        None => state.names()?,
    };
    if names.is_empty() {
        return Err(StateError::NotEnrolled {
            name: None,
            known: names,
        })
        .hint("ask the operator for a join token, then: fedllm-client join TOKEN");
    }
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs();
    let mut reports = Vec::new();
    for name in &names {
        reports.push(Report::new(state.open(Some(name))?, args.rounds, now)?);
    }
    if global.json {
        return global.print_json(&reports);
    }
    let texts: Vec<_> = reports.iter().map(|report| report.text(now)).collect();
    global.print(&texts.join("\n"))
}

#[derive(Serialize)]
struct Report {
    federation: String,
    server: String,
    client: String,
    name: String,
    certificate_expires: i64,
    certificate_expired: bool,
    unfinished_round: Option<u64>,
    rounds_received: u64,
    rounds: Vec<RoundRecord>,
    sent: Vec<SentRow>,
    sent_bytes: u64,
    received_bytes: u64,
    state: String,
}

#[derive(Serialize)]
struct SentRow {
    kind: Kind,
    contents: &'static str,
    count: u64,
    bytes: u64,
}

impl Report {
    fn new(enrollment: Enrollment, rounds: usize, now: u64) -> Result<Self, StateError> {
        let ledger = &enrollment.ledger;
        let row = |kind| {
            let sent = ledger.sent(kind);
            SentRow {
                kind,
                contents: kind.contents(),
                count: sent.count,
                bytes: sent.bytes,
            }
        };
        let expires = enrollment.facts.not_after;
        let unfinished = enrollment.rounds().load()?.held;
        Ok(Self {
            server: enrollment.membership.server.clone(),
            client: enrollment.facts.key.to_string(),
            name: enrollment.facts.name.clone(),
            certificate_expires: expires,
            certificate_expired: i64::try_from(now).is_ok_and(|now| now > expires),
            unfinished_round: unfinished.map(|offer| offer.round.0),
            rounds_received: ledger.rounds_received,
            rounds: ledger
                .rounds
                .iter()
                .rev()
                .take(rounds)
                .rev()
                .cloned()
                .collect(),
            sent: Kind::ALL.into_iter().map(row).collect(),
            sent_bytes: ledger.sent_bytes(),
            received_bytes: ledger.received_bytes,
            state: enrollment.folder().display().to_string(),
            federation: enrollment.membership.name,
        })
    }

    fn text(&self, now: u64) -> String {
        let mut text = format!("federation {} at {}\n", self.federation, self.server);
        text += &format!("  enrolled as      {} ({})\n", self.name, &self.client[..8]);
        text += &format!("  certificate      {}\n", self.validity(now));
        text += &format!("  rounds received  {}\n", self.rounds_received);
        if let Some(round) = self.unfinished_round {
            text += &format!("  unfinished       round {round}: its update waits for a receipt\n");
        }
        for round in &self.rounds {
            text += &format!("  round {:<11}{}\n", round.round, describe(round));
        }
        text += "  sent, and nothing else:\n";
        for row in &self.sent {
            text += &format!(
                "    {:>10}  {:>7}  {}\n",
                size(row.bytes),
                row.count,
                row.contents
            );
        }
        text += &format!(
            "    {:>10}           in all; {} received\n",
            size(self.sent_bytes),
            size(self.received_bytes)
        );
        text += &format!("  state            {}\n", self.state);
        text
    }

    fn validity(&self, now: u64) -> String {
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        let days = (self.certificate_expires - now) / 86_400;
        if self.certificate_expired {
            return format!(
                "expired {} days ago: ask the operator for a new join token",
                -days
            );
        }
        format!("valid for {days} more days")
    }
}

fn describe(round: &RoundRecord) -> String {
    let loss = |loss: Option<f32>| loss.map_or_else(|| "-".to_owned(), |loss| format!("{loss:.4}"));
    let outcome = match round.outcome {
        Outcome::Received => "received by the server".to_owned(),
        Outcome::Refused | Outcome::Failed => {
            let what = if round.outcome == Outcome::Refused {
                "refused"
            } else {
                "failed"
            };
            format!(
                "{what}: {}",
                round.reason.as_deref().unwrap_or("no reason given")
            )
        }
    };
    format!(
        "loss {} -> {}, {} rows, {} sent, {:.0} s, {outcome}",
        loss(round.loss_first),
        loss(round.loss_last),
        round.rows,
        size(round.delta_bytes),
        round.seconds
    )
}

fn size(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}
