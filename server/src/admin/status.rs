//! What a server says about itself, as JSON and as a table.

use std::fmt;

use fedllm_shared::{ClientId, RunId, TaskScore};
use serde::{Deserialize, Serialize};

use crate::store::VersionScore;

/// A moment of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The federation's name.
    pub federation: String,
    /// The run.
    pub run: RunId,
    /// Where the run stands.
    pub state: RunState,
    /// The version of the adapter, which is the number of rounds that went into it.
    pub version: u64,
    /// Rounds of the whole run.
    pub rounds: u64,
    /// The round that is open, if one is.
    pub round: Option<OpenRound>,
    /// Every enrolled client, by name.
    pub clients: Vec<ClientStatus>,
    /// Every closed round, oldest first.
    pub history: Vec<ClosedRound>,
    /// What is known of how versions do on held-out rows, oldest first.
    #[serde(default)]
    pub scores: Vec<VersionScore>,
    /// Bytes of blobs sent since the server started.
    pub bytes_sent: u64,
    /// Bytes of blobs received since the server started.
    pub bytes_received: u64,
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// No server is running.
    Stopped,
    /// More clients must connect before a round opens.
    Waiting,
    /// A round is open.
    Open,
    /// The updates of a round are being averaged.
    Aggregating,
    /// All rounds are done.
    Finished,
}

/// The round that is open.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpenRound {
    /// The round, from 0.
    pub round: u64,
    /// Clients that were asked.
    pub cohort: usize,
    /// Updates that are in.
    pub updates: usize,
    /// Updates that let it close at the deadline.
    pub quorum: usize,
    /// Seconds until the deadline.
    pub deadline_seconds: u64,
}

/// A client as its operator sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClientStatus {
    /// The name that the operator gave it.
    pub name: String,
    /// Its identity.
    pub client: ClientId,
    /// What it does now.
    pub state: ClientState,
    /// Rows in its shard, if it has connected since the server started.
    pub rows: Option<u64>,
    /// The device it trains on.
    pub device: Option<String>,
    /// Steps done in this round, and steps to do.
    pub progress: Option<(u32, u32)>,
    /// The loss of its last step.
    pub loss: Option<f32>,
    /// Bytes of blobs sent to it on its present connection.
    pub bytes_sent: u64,
    /// Bytes of blobs received from it on its present connection.
    pub bytes_received: u64,
}

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientState {
    /// It may not take part any more.
    Revoked,
    /// It is not connected.
    Offline,
    /// It waits for a task.
    Idle,
    /// It has a task.
    Training,
    /// Its update of this round is in.
    Done,
}

/// What a closed round came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClosedRound {
    /// The round, from 0.
    pub round: u64,
    /// The version it made.
    pub version: u64,
    /// Updates that were averaged.
    pub updates: usize,
    /// Updates that were refused.
    pub rejected: usize,
    /// The weighted mean of the clients' mean losses.
    pub loss: f64,
    /// The length (L2) of the step that the adapter took.
    pub step_norm: f64,
    /// How far apart the clients' deltas were, relative to their mean.
    #[serde(default)]
    pub drift: f64,
    /// How far averaging the factors apart is from averaging their products, relative to that.
    #[serde(default)]
    pub gap: Option<f64>,
    /// What factorising the products' mean anew lost, relative to it.
    #[serde(default)]
    pub discarded: Option<f64>,
    /// Bytes of the updates.
    pub bytes: u64,
    /// How long the round took, with averaging.
    pub seconds: f64,
}

impl Status {
    /// Whether nothing will change any more.
    pub fn is_over(&self) -> bool {
        self.state == RunState::Finished
    }
}

impl fmt::Display for RunState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stopped => "no server is running",
            Self::Waiting => "waiting for clients",
            Self::Open => "in a round",
            Self::Aggregating => "averaging updates",
            Self::Finished => "finished",
        })
    }
}

impl fmt::Display for ClientState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Revoked => "revoked",
            Self::Offline => "offline",
            Self::Idle => "idle",
            Self::Training => "training",
            Self::Done => "done",
        })
    }
}

/// The table that `status` prints.
impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.federation, self.state)?;
        writeln!(f, "version {} of {} rounds", self.version, self.rounds)?;
        if let Some(open) = &self.round {
            writeln!(
                f,
                "round {}: {} of {} updates in, quorum {}, {} s to the deadline",
                open.round, open.updates, open.cohort, open.quorum, open.deadline_seconds
            )?;
        }
        let (sent, received) = (Bytes(self.bytes_sent), Bytes(self.bytes_received));
        if self.bytes_sent + self.bytes_received > 0 {
            writeln!(f, "{sent} sent, {received} received")?;
        }
        if !self.clients.is_empty() {
            writeln!(
                f,
                "\n{:<20} {:<9} {:>9} {:>11} {:>8}  device",
                "client", "state", "rows", "step", "loss"
            )?;
        }
        for client in &self.clients {
            writeln!(f, "{client}")?;
        }
        if !self.history.is_empty() {
            writeln!(
                f,
                "\n{:>6} {:>8} {:>8} {:>8} {:>10} {:>10} {:>9}",
                "round", "updates", "refused", "loss", "step norm", "bytes", "seconds"
            )?;
        }
        for round in &self.history {
            writeln!(f, "{round}")?;
        }
        let on_rows = |score: &VersionScore| score.clients.is_some() || score.server.is_some();
        if self.scores.iter().any(on_rows) {
            writeln!(
                f,
                "\n{:>7} {:<14} {:>8} {:>8} {:>8} {:>7}",
                "version", "held-out rows", "rows", "loss", "±", "right"
            )?;
        }
        for score in &self.scores {
            write!(f, "{score}")?;
        }
        self.tasks(f)
    }
}

impl Status {
    /// How versions do on benchmarks.
    fn tasks(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scores = self.scores.iter();
        let scores = scores.flat_map(|of| of.tasks.iter().map(|score| (of.version, score)));
        let width = scores.clone().map(|(_, score)| score.task.len()).max();
        let Some(width) = width.map(|width| width.max(4)) else {
            return Ok(());
        };
        writeln!(
            f,
            "\n{:>7} {:<width$} {:<10} {:>8} {:>8} {:>8} {:>8}",
            "version", "task", "metric", "rows", "adapter", "±", "base"
        )?;
        for (version, score) in scores {
            let number = |value: Option<f64>| value.map_or("-".to_owned(), |v| format!("{v:.4}"));
            let TaskScore {
                task, metric, rows, ..
            } = score;
            let (value, error) = (number(score.value), number(score.standard_error));
            let base = number(score.base);
            writeln!(
                f,
                "{version:>7} {task:<width$} {metric:<10} {rows:>8} {value:>8} {error:>8} {base:>8}"
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for ClientStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let rows = or_dash(self.rows.map(|rows| rows.to_string()));
        let step = or_dash(self.progress.map(|(step, steps)| format!("{step}/{steps}")));
        let loss = or_dash(self.loss.map(|loss| format!("{loss:.4}")));
        let device = printable(self.device.as_deref().unwrap_or("-"));
        write!(
            f,
            "{:<20} {:<9} {rows:>9} {step:>11} {loss:>8}  {device}",
            printable(&self.name),
            self.state,
        )
    }
}

impl fmt::Display for ClosedRound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>6} {:>8} {:>8} {:>8.4} {:>10.4} {:>10} {:>9.1}",
            self.round,
            self.updates,
            self.rejected,
            self.loss,
            self.step_norm,
            Bytes(self.bytes).to_string(),
            self.seconds,
        )
    }
}

/// A line for clients' rows, and one for the operator's.
impl fmt::Display for VersionScore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |whose: &str, rows, loss: f64, error: &str, accuracy: f64| {
            let (version, right) = (self.version, 100.0 * accuracy);
            writeln!(
                f,
                "{version:>7} {whose:<14} {rows:>8} {loss:>8.4} {error:>8} {right:>6.1}%"
            )
        };
        if let Some(score) = &self.clients {
            let whose = format!("of {} clients", score.clients);
            line(&whose, score.rows, score.loss, "", score.accuracy)?;
        }
        if let Some(score) = &self.server {
            let error = format!("{:.4}", score.loss_se);
            line(
                "of the server",
                score.rows,
                score.loss,
                &error,
                score.accuracy,
            )?;
        }
        Ok(())
    }
}

/// A count of bytes for people.
pub(crate) struct Bytes(pub(crate) u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = ["B", "KiB", "MiB", "GiB", "TiB"];
        let mut value = self.0 as f64;
        let mut unit = 0;
        while value >= 1024.0 && unit + 1 < units.len() {
            value /= 1024.0;
            unit += 1;
        }
        match unit {
            0 => write!(f, "{} B", self.0),
            _ => write!(f, "{value:.1} {}", units[unit]),
        }
    }
}

/// Devices and names come from others: no control characters reach the terminal.
pub(crate) fn printable(text: &str) -> String {
    let clean = |character: char| match character.is_control() {
        true => char::REPLACEMENT_CHARACTER,
        false => character,
    };
    text.chars().map(clean).collect()
}

#[cfg(test)]
mod tests {
    use fedllm_shared::{CentralScore, ClientsScore};

    use super::*;

    fn status() -> Status {
        Status {
            federation: "clinics".into(),
            run: RunId([7; 16]),
            state: RunState::Open,
            version: 2,
            rounds: 5,
            round: Some(OpenRound {
                round: 2,
                cohort: 3,
                updates: 1,
                quorum: 2,
                deadline_seconds: 59,
            }),
            clients: vec![ClientStatus {
                name: "alice".into(),
                client: ClientId([1; 32]),
                state: ClientState::Training,
                rows: Some(120),
                device: Some("CPU".into()),
                progress: Some((3, 10)),
                loss: Some(1.5),
                bytes_sent: 0,
                bytes_received: 0,
            }],
            history: vec![ClosedRound {
                round: 1,
                version: 2,
                updates: 3,
                rejected: 0,
                loss: 2.25,
                step_norm: 0.5,
                drift: 0.25,
                gap: Some(0.125),
                discarded: None,
                bytes: 3 << 20,
                seconds: 12.0,
            }],
            scores: vec![VersionScore {
                version: 1,
                clients: Some(ClientsScore {
                    clients: 3,
                    rows: 40,
                    loss: 2.5,
                    accuracy: 0.125,
                }),
                server: Some(CentralScore {
                    loss: 2.0,
                    loss_se: 0.25,
                    accuracy: 0.5,
                    accuracy_se: 0.05,
                    rows: 100,
                }),
                tasks: vec![TaskScore {
                    task: "fpb-held-out".into(),
                    metric: "acc".into(),
                    value: Some(0.75),
                    standard_error: None,
                    rows: 100,
                    base: Some(0.5),
                }],
            }],
            bytes_sent: 1536,
            bytes_received: 12,
        }
    }

    #[test]
    fn json_is_read_back() {
        let text = serde_json::to_string(&status()).unwrap();
        assert_eq!(serde_json::from_str::<Status>(&text).unwrap(), status());
    }

    #[test]
    fn the_table_shows_rounds_and_clients() {
        let table = status().to_string();
        for part in [
            "clinics: in a round",
            "round 2: 1 of 3 updates in, quorum 2, 59 s to the deadline",
            "1.5 KiB sent, 12 B received",
            "alice                training        120        3/10   1.5000  CPU",
            "     1        3        0   2.2500     0.5000    3.0 MiB      12.0",
            "      1 of 3 clients         40   2.5000            12.5%",
            "      1 of the server       100   2.0000   0.2500   50.0%",
            "version task         metric         rows  adapter        ±     base",
            "      1 fpb-held-out acc             100   0.7500        -   0.5000",
        ] {
            assert!(table.contains(part), "{part:?} is not in:\n{table}");
        }
    }

    #[test]
    fn terminals_get_no_control_characters() {
        assert_eq!(printable("a\x1b[2Jb"), "a\u{fffd}[2Jb");
    }
}
