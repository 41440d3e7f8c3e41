//! Counters and gauges in the OpenMetrics text format.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::store::VersionScore;

/// What the server counts. Clones share their counters.
#[derive(Clone)]
pub(crate) struct Metrics {
    registry: Arc<Registry>,
    round: Gauge,
    round_duration: Histogram,
    clients: Family<State, Gauge>,
    tokens: Counter,
    bytes: Family<Direction, Counter>,
    updates: Counter,
    rejected: Family<Reason, Counter>,
    violations: Counter,
    scores: Scores,
}

/// The newest score by whom it is from.
#[derive(Clone, Default)]
struct Scores {
    version: Family<By, Gauge>,
    rows: Family<By, Gauge>,
    loss: Family<By, Gauge<f64, AtomicU64>>,
    accuracy: Family<By, Gauge<f64, AtomicU64>>,
    task_version: Family<Of, Gauge>,
    task: Family<Of, Gauge<f64, AtomicU64>>,
    task_error: Family<Of, Gauge<f64, AtomicU64>>,
    task_base: Family<Of, Gauge<f64, AtomicU64>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct By {
    by: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    task: String,
    metric: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct State {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Direction {
    dir: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: String,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut metrics = Self {
            registry: Arc::default(),
            round: Gauge::default(),
            // 1 s to about 9 h.
            round_duration: Histogram::new(exponential_buckets(1.0, 2.0, 16)),
            clients: Family::default(),
            tokens: Counter::default(),
            bytes: Family::default(),
            updates: Counter::default(),
            rejected: Family::default(),
            violations: Counter::default(),
            scores: Scores::default(),
        };
        let mut registry = Registry::with_prefix("fedllm");
        registry.register(
            "round",
            "The round that is open or next",
            metrics.round.clone(),
        );
        registry.register(
            "round_duration_seconds",
            "How long closed rounds took",
            metrics.round_duration.clone(),
        );
        registry.register("clients", "Clients by state", metrics.clients.clone());
        registry.register(
            "tokens",
            "Tokens that clients trained on in accepted updates",
            metrics.tokens.clone(),
        );
        registry.register(
            "bytes",
            "Bytes of blobs by direction",
            metrics.bytes.clone(),
        );
        registry.register(
            "update_accepted",
            "Accepted updates",
            metrics.updates.clone(),
        );
        registry.register(
            "update_rejected",
            "Rejected updates by reason",
            metrics.rejected.clone(),
        );
        registry.register(
            "protocol_violations",
            "Connections closed because the client broke the protocol",
            metrics.violations.clone(),
        );
        registry.register(
            "evaluation_version",
            "The newest version of the adapter that was evaluated on held-out rows",
            metrics.scores.version.clone(),
        );
        registry.register(
            "evaluation_rows",
            "The held-out rows of that evaluation",
            metrics.scores.rows.clone(),
        );
        registry.register(
            "evaluation_loss",
            "The mean loss of a held-out row in that evaluation, in nats",
            metrics.scores.loss.clone(),
        );
        registry.register(
            "evaluation_accuracy",
            "The share of held-out rows that are right in that evaluation",
            metrics.scores.accuracy.clone(),
        );
        registry.register(
            "evaluation_task_version",
            "The newest version of the adapter that was evaluated on a benchmark",
            metrics.scores.task_version.clone(),
        );
        registry.register(
            "evaluation_task",
            "The main metric of a benchmark in that evaluation",
            metrics.scores.task.clone(),
        );
        registry.register(
            "evaluation_task_standard_error",
            "The standard error of that metric over rows",
            metrics.scores.task_error.clone(),
        );
        registry.register(
            "evaluation_task_base",
            "The same metric of the base model on the same rows",
            metrics.scores.task_base.clone(),
        );
        metrics.registry = Arc::new(registry);
        metrics
    }

    /// The metrics in the OpenMetrics text format.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    pub(crate) fn round(&self, round: u64) {
        self.round.set(i64::try_from(round).unwrap_or(i64::MAX));
    }

    pub(crate) fn round_closed(&self, took: Duration) {
        self.round_duration.observe(took.as_secs_f64());
    }

    pub(crate) fn clients(&self, enrolled: usize, connected: usize, training: usize) {
        for (state, count) in [
            ("enrolled", enrolled),
            ("connected", connected),
            ("training", training),
        ] {
            let gauge = self.clients.get_or_create(&State { state });
            gauge.set(count as i64);
        }
    }

    /// Sets the gauges of the newest scores.
    pub(crate) fn scores(&self, scores: &[VersionScore]) {
        let newest = scores.iter().rev();
        let clients = newest.clone().find_map(|s| Some((s.version, s.clients?)));
        let server = newest.clone().find_map(|s| Some((s.version, s.server?)));
        if let Some((version, score)) = clients {
            self.score(
                "clients",
                (version, score.rows),
                (score.loss, score.accuracy),
            );
        }
        if let Some((version, score)) = server {
            self.score(
                "server",
                (version, score.rows),
                (score.loss, score.accuracy),
            );
        }
        // Newer versions come later.
        for score in scores {
            self.tasks(score);
        }
    }

    fn tasks(&self, of: &VersionScore) {
        for score in &of.tasks {
            let label = Of {
                task: score.task.clone(),
                metric: score.metric.clone(),
            };
            let version = i64::try_from(of.version).unwrap_or(i64::MAX);
            let gauges = &self.scores;
            gauges.task_version.get_or_create(&label).set(version);
            for (gauge, value) in [
                (&gauges.task, score.value),
                (&gauges.task_error, score.standard_error),
                (&gauges.task_base, score.base),
            ] {
                let value = value.unwrap_or(f64::NAN);
                gauge.get_or_create(&label).set(value);
            }
        }
    }

    fn score(&self, by: &'static str, (version, rows): (u64, u64), (loss, accuracy): (f64, f64)) {
        let (by, scores) = (By { by }, &self.scores);
        let count = |count| i64::try_from(count).unwrap_or(i64::MAX);
        scores.version.get_or_create(&by).set(count(version));
        scores.rows.get_or_create(&by).set(count(rows));
        scores.loss.get_or_create(&by).set(loss);
        scores.accuracy.get_or_create(&by).set(accuracy);
    }

    pub(crate) fn update_accepted(&self, tokens: u64) {
        self.updates.inc();
        self.tokens.inc_by(tokens);
    }

    pub(crate) fn update_rejected(&self, reason: &str) {
        let reason = reason.to_owned();
        self.rejected.get_or_create(&Reason { reason }).inc();
    }

    pub(crate) fn bytes_sent(&self, bytes: u64) {
        self.bytes
            .get_or_create(&Direction { dir: "down" })
            .inc_by(bytes);
    }

    pub(crate) fn bytes_received(&self, bytes: u64) {
        self.bytes
            .get_or_create(&Direction { dir: "up" })
            .inc_by(bytes);
    }

    /// Bytes sent and received so far.
    pub(crate) fn traffic(&self) -> (u64, u64) {
        let count = |dir| self.bytes.get_or_create(&Direction { dir }).get();
        (count("down"), count("up"))
    }

    pub(crate) fn protocol_violation(&self) {
        self.violations.inc();
    }
}

#[cfg(test)]
mod tests {
    use fedllm_shared::{ClientsScore, TaskScore};

    use super::*;

    #[test]
    fn names_and_labels_are_as_documented() {
        let metrics = Metrics::new();
        metrics.round(3);
        metrics.clients(4, 3, 2);
        metrics.update_accepted(512);
        metrics.update_rejected("non_finite");
        metrics.bytes_sent(10);
        metrics.bytes_received(20);
        metrics.round_closed(Duration::from_secs(7));
        metrics.protocol_violation();
        let clients = ClientsScore {
            clients: 2,
            rows: 30,
            loss: 1.5,
            accuracy: 0.25,
        };
        metrics.scores(&[VersionScore {
            version: 7,
            clients: Some(clients),
            server: None,
            tasks: vec![TaskScore {
                task: "mmlu".to_owned(),
                metric: "acc".to_owned(),
                value: Some(0.75),
                standard_error: None,
                rows: 20,
                base: Some(0.5),
            }],
        }]);
        let text = metrics.text();
        for line in [
            "fedllm_round 3",
            "fedllm_round_duration_seconds_count 1",
            "fedllm_clients{state=\"training\"} 2",
            "fedllm_tokens_total 512",
            "fedllm_bytes_total{dir=\"down\"} 10",
            "fedllm_bytes_total{dir=\"up\"} 20",
            "fedllm_update_rejected_total{reason=\"non_finite\"} 1",
            "fedllm_protocol_violations_total 1",
            "fedllm_evaluation_version{by=\"clients\"} 7",
            "fedllm_evaluation_rows{by=\"clients\"} 30",
            "fedllm_evaluation_loss{by=\"clients\"} 1.5",
            "fedllm_evaluation_accuracy{by=\"clients\"} 0.25",
            "fedllm_evaluation_task_version{task=\"mmlu\",metric=\"acc\"} 7",
            "fedllm_evaluation_task{task=\"mmlu\",metric=\"acc\"} 0.75",
            "fedllm_evaluation_task_standard_error{task=\"mmlu\",metric=\"acc\"} NaN",
            "fedllm_evaluation_task_base{task=\"mmlu\",metric=\"acc\"} 0.5",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
        }
        assert_eq!(metrics.traffic(), (10, 20));
    }
}
