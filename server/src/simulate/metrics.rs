//! `metrics.jsonl` and `summary.json`: what a run measured, for reports, resuming and tables.

use std::io::{self, Write};

use fedllm_shared::{ClientsScore, TaskScore};
use serde::{Deserialize, Deserializer, Serialize};
use thiserror::Error;

/// What happened in one round; a line of `metrics.jsonl`.
///
/// JSON has no number for what is not finite, as the loss of a run that diverged: it is written as
/// `null`, and read as NaN.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoundMetrics {
    /// The round; the first is 0.
    pub round: u64,
    /// The model version that it made.
    pub version: u64,
    /// Virtual time at which it closed, in seconds since the run began.
    pub virtual_seconds: f64,
    /// Clients that were asked to train.
    pub cohort: u32,
    /// Updates that were averaged.
    pub updates: u32,
    /// Clients that vanished.
    pub dropped: u32,
    /// Clients whose update came too late to count.
    pub late: u32,
    /// How often the round was opened until it had enough updates.
    pub attempts: u32,
    /// The clients' learning rate.
    pub lr: f32,
    /// Weighted mean of the clients' mean losses, in nats: a token, or a pair of answers where
    /// preferences are learned. Losses below are in the same.
    #[serde(deserialize_with = "number")]
    pub loss: f64,
    /// L2 norm of the mean delta.
    #[serde(deserialize_with = "number")]
    pub delta_norm: f64,
    /// L2 norm of the step that the server made of it.
    #[serde(deserialize_with = "number")]
    pub step_norm: f64,
    /// Weighted mean of the deltas' distances from their mean, relative to the mean's norm.
    #[serde(deserialize_with = "number")]
    pub drift: f64,
    /// How far the product of the mean factors is from the mean product, relative to the latter:
    /// ‖mean(B)·mean(A) − mean(B·A)‖ / ‖mean(B·A)‖.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap: Option<f64>,
    /// Share of the mean product's norm that did not fit into the adapter's rank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discarded: Option<f64>,
    /// Bytes that clients sent.
    pub bytes_up: u64,
    /// Bytes that clients were sent.
    pub bytes_down: u64,
    /// Wall-clock seconds spent in training steps.
    pub train_seconds: f64,
    /// Wall-clock seconds of the whole round.
    pub seconds: f64,
    /// How the adapter that the round began with does on rows that clients hold out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_out: Option<ClientsScore>,
    /// Each client whose update counted, in the order of their numbers.
    pub clients: Vec<ClientRound>,
    /// What was measured after the round.
    #[serde(default)]
    pub evaluations: Vec<Evaluation>,
    /// The same models on benchmarks, one model after the other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<TaskEvaluation>,
}

/// One client's part of a round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClientRound {
    /// Its number.
    pub client: u32,
    /// Its owner's name.
    pub name: String,
    /// Rows that it holds.
    pub rows: u64,
    /// What its update counted.
    pub weight: f64,
    /// Loss of its first step.
    #[serde(deserialize_with = "number")]
    pub loss_first: f32,
    /// Loss of its last step.
    #[serde(deserialize_with = "number")]
    pub loss_last: f32,
    /// Mean loss of its steps.
    #[serde(deserialize_with = "number")]
    pub loss_mean: f32,
    /// L2 norm of its delta.
    #[serde(deserialize_with = "number")]
    pub update_norm: f64,
    /// Virtual seconds from the task to its stored update.
    pub virtual_seconds: f64,
    /// Bytes that it sent.
    pub bytes_up: u64,
    /// What it measured of preferences, when it learns those.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preference: Option<PreferenceRound>,
    /// What it did with its control variate, when the strategy has those.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variate: Option<String>,
}

/// Means over a client's preference pairs in one round. Rewards are in nats, `beta` included.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PreferenceRound {
    /// Implicit reward of the chosen answers.
    #[serde(deserialize_with = "number")]
    pub chosen: f32,
    /// Implicit reward of the rejected answers.
    #[serde(deserialize_with = "number")]
    pub rejected: f32,
    /// Mean of the first minus the second.
    #[serde(deserialize_with = "number")]
    pub margin: f32,
    /// Share of pairs whose chosen answer has the larger reward.
    #[serde(deserialize_with = "number")]
    pub accuracy: f32,
}

/// How one model does on held-out rows. Standard errors are over rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Which model: `global`, `base`, `local mean`, `central`, or an owner's name.
    pub arm: String,
    /// Rows that it was measured on.
    pub rows: u64,
    /// Mean loss, in nats.
    #[serde(deserialize_with = "number")]
    pub loss: f64,
    /// Standard error of the loss.
    #[serde(deserialize_with = "number")]
    pub loss_se: f64,
    /// Share of rows that are answered rightly, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// Standard error of the accuracy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy_se: Option<f64>,
    /// Mean reward of chosen answers minus that of rejected ones, in nats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub margin: Option<f64>,
    /// Standard error of the margin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub margin_se: Option<f64>,
}

/// How one model does on a benchmark. Standard errors are over rows, those of `local mean` over
/// owners.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskEvaluation {
    /// Which model, as [`Evaluation::arm`] has it.
    pub arm: String,
    /// The task and its main metric.
    #[serde(flatten)]
    pub score: TaskScore,
}

/// A whole run; `summary.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunSummary {
    /// What the experiment calls itself.
    pub name: String,
    /// The strategy's name.
    pub strategy: String,
    /// The objective's name.
    pub objective: String,
    /// The seed of everything random.
    pub seed: u64,
    /// Rounds that were closed.
    pub rounds: u64,
    /// Clients there are.
    pub clients: u32,
    /// What was measured at the end.
    pub evaluations: Vec<Evaluation>,
    /// The same on benchmarks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<TaskEvaluation>,
    /// Digest of the final adapter, in hexadecimal.
    pub adapter_digest: String,
    /// The program's version and commit.
    pub code_version: String,
    /// Wall-clock seconds, over all the processes that the run took.
    pub wall_seconds: f64,
    /// Those of them that were spent in training steps.
    pub train_seconds: f64,
    /// Virtual seconds.
    pub virtual_seconds: f64,
    /// Bytes that clients sent.
    pub bytes_up: u64,
    /// Bytes that clients were sent.
    pub bytes_down: u64,
}

/// Why `metrics.jsonl` could not be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MetricsError {
    /// A line is not what a round looks like.
    #[error("line {line}: {source}")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A round does not follow the one before it.
    #[error("line {line}: expected a round after {previous}, got {round}")]
    Order {
        /// The line's number, from 1.
        line: usize,
        /// The round of the line before it.
        previous: u64,
        /// The round of this line.
        round: u64,
    },
}

/// The rounds of a `metrics.jsonl`, and where each line ends.
#[derive(Clone, Debug, Default)]
pub struct MetricsLog {
    rounds: Vec<RoundMetrics>,
    ends: Vec<u64>,
}

impl RoundMetrics {
    /// Writes it as one line, with one call: a process that is killed leaves part of a line at
    /// most.
    ///
    /// # Errors
    ///
    /// That of `out`.
    pub fn write_line(&self, mut out: impl Write) -> io::Result<()> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        out.write_all(&line)
    }
}

impl RunSummary {
    /// What a loss is in.
    pub(super) fn loss_unit(&self) -> &'static str {
        match self.objective.as_str() {
            "sft" => "nats a token",
            _ => "nats",
        }
    }
}

impl MetricsLog {
    /// Reads the bytes of a `metrics.jsonl`. A last line without its line feed was cut short, and
    /// does not count.
    ///
    /// # Errors
    ///
    /// [`MetricsError`] if another line is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, MetricsError> {
        let mut log = Self::default();
        let mut end = 0;
        for (index, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
            let Some(text) = line.strip_suffix(b"\n") else {
                break;
            };
            end += line.len() as u64;
            log.push(index + 1, text, end)?;
        }
        Ok(log)
    }

    /// The rounds, in order.
    pub fn rounds(&self) -> &[RoundMetrics] {
        &self.rounds
    }

    /// Takes the rounds out.
    pub fn into_rounds(self) -> Vec<RoundMetrics> {
        self.rounds
    }

    /// Forgets `round` and what followed. Returns how many bytes of the file remain: it is to be
    /// cut there before it is appended to.
    pub fn rewind(&mut self, round: u64) -> u64 {
        let keep = self.rounds.partition_point(|kept| kept.round < round);
        self.rounds.truncate(keep);
        self.ends.truncate(keep);
        self.ends.last().copied().unwrap_or(0)
    }

    fn push(&mut self, line: usize, text: &[u8], end: u64) -> Result<(), MetricsError> {
        let metrics: RoundMetrics =
            serde_json::from_slice(text).map_err(|source| MetricsError::Line { line, source })?;
        let round = metrics.round;
        let previous = self.rounds.last().map(|previous| previous.round);
        if let Some(previous) = previous.filter(|previous| *previous >= round) {
            return Err(MetricsError::Order {
                line,
                previous,
                round,
            });
        }
        self.rounds.push(metrics);
        self.ends.push(end);
        Ok(())
    }
}

fn number<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + From<f32>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or(T::from(f32::NAN)))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn client(client: u32) -> ClientRound {
        ClientRound {
            client,
            name: format!("größe {client}"),
            rows: 12,
            weight: 12.0,
            loss_first: 2.5,
            loss_last: 1.25,
            loss_mean: 1.75,
            update_norm: 0.5,
            virtual_seconds: 30.0,
            bytes_up: 1000,
            preference: Some(PreferenceRound {
                chosen: 0.5,
                rejected: -0.25,
                margin: 0.75,
                accuracy: 0.625,
            }),
            variate: None,
        }
    }

    pub(in crate::simulate) fn round(round: u64) -> RoundMetrics {
        RoundMetrics {
            round,
            version: round + 1,
            virtual_seconds: 60.0,
            cohort: 3,
            updates: 2,
            dropped: 1,
            late: 0,
            attempts: 1,
            lr: 1e-4,
            loss: 1.5,
            delta_norm: 0.75,
            step_norm: 0.5,
            drift: 1.25,
            gap: Some(0.125),
            discarded: None,
            bytes_up: 2000,
            bytes_down: 3000,
            train_seconds: 1.5,
            seconds: 2.0,
            held_out: Some(ClientsScore {
                clients: 2,
                rows: 20,
                loss: 1.25,
                accuracy: 0.25,
            }),
            clients: vec![client(0), client(7)],
            evaluations: vec![Evaluation {
                arm: "global".into(),
                rows: 64,
                loss: 1.5,
                loss_se: 0.25,
                accuracy: Some(0.5),
                accuracy_se: Some(0.0625),
                margin: None,
                margin_se: None,
            }],
            tasks: vec![task("global", "mmlu", 0.375)],
        }
    }

    pub(in crate::simulate) fn task(arm: &str, task: &str, value: f64) -> TaskEvaluation {
        TaskEvaluation {
            arm: arm.into(),
            score: TaskScore {
                task: task.into(),
                metric: "acc".into(),
                value: Some(value),
                standard_error: Some(0.0625),
                rows: 60,
                base: None,
            },
        }
    }

    fn file(rounds: &[RoundMetrics]) -> Vec<u8> {
        let mut file = Vec::new();
        for round in rounds {
            round.write_line(&mut file).unwrap();
        }
        file
    }

    #[test]
    fn what_is_written_is_read_back() {
        let rounds = [round(0), round(1), round(3)];
        let log = MetricsLog::parse(&file(&rounds)).unwrap();
        assert_eq!(log.rounds(), rounds);
        assert!(MetricsLog::parse(b"").unwrap().rounds().is_empty());
        // Rounds of before there were benchmarks.
        let mut old = round(0);
        old.tasks.clear();
        let bytes = file(std::slice::from_ref(&old));
        assert!(!String::from_utf8_lossy(&bytes).contains("tasks"));
        assert_eq!(MetricsLog::parse(&bytes).unwrap().rounds(), [old]);
    }

    #[test]
    fn a_run_killed_at_any_byte_is_read() {
        let whole = file(&[round(0), round(1)]);
        let first = file(&[round(0)]).len();
        for len in 0..=whole.len() {
            let log = MetricsLog::parse(&whole[..len]).unwrap();
            let lines = usize::from(len >= first) + usize::from(len == whole.len());
            assert_eq!(log.rounds().len(), lines, "{len} bytes");
        }
    }

    #[test]
    fn rewinding_says_where_to_cut_the_file() {
        let rounds = [round(0), round(1), round(2)];
        let mut whole = file(&rounds);
        whole.extend(b"{\"round\":3,\"ver");
        let mut log = MetricsLog::parse(&whole).unwrap();
        assert_eq!(log.rewind(9), file(&rounds).len() as u64);
        assert_eq!(log.rewind(1), file(&rounds[..1]).len() as u64);
        assert_eq!(log.into_rounds(), rounds[..1]);
        assert_eq!(MetricsLog::parse(&whole).unwrap().rewind(0), 0);
    }

    #[test]
    fn other_damage_is_named_by_its_line() {
        let mut broken = file(&[round(0)]);
        broken.extend(b"{\"round\":1,\n");
        broken.extend(file(&[round(2)]));
        let error = MetricsLog::parse(&broken).unwrap_err().to_string();
        assert!(error.starts_with("line 2: EOF"), "{error}");
        let error = MetricsLog::parse(&file(&[round(0), round(2), round(1)])).unwrap_err();
        let expected = "line 3: expected a round after 2, got 1";
        assert_eq!(error.to_string(), expected);
        let error = MetricsLog::parse(b"\n").unwrap_err().to_string();
        assert!(error.starts_with("line 1: "), "{error}");
        let error = MetricsLog::parse(b"{\"round\":1}\n").unwrap_err();
        assert!(error.to_string().contains("`version`"), "{error}");
    }

    #[test]
    fn what_is_not_finite_is_read_as_nan() {
        let mut diverged = round(0);
        diverged.loss = f64::NAN;
        diverged.step_norm = f64::INFINITY;
        diverged.clients[0].loss_last = f32::NAN;
        diverged.evaluations[0].loss_se = f64::NAN;
        let log = MetricsLog::parse(&file(&[diverged])).unwrap();
        let read = &log.rounds()[0];
        assert!(read.loss.is_nan() && read.step_norm.is_nan());
        assert!(read.clients[0].loss_last.is_nan() && read.evaluations[0].loss_se.is_nan());
        assert_eq!(read.delta_norm, 0.75);
    }
}
