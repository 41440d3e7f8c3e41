//! What the quickstart found, as one JSON object and as a table.

use std::fmt::Write as _;
use std::path::PathBuf;

use serde::Serialize;

use crate::ClosedRound;

/// Everything that one quickstart measured. Losses are in nats a token.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    /// The model's name in the catalog, or its path.
    pub(super) model: String,
    /// The device that trained and measured.
    pub(super) device: String,
    /// The base model with no adapter.
    pub(super) base: Score,
    /// Each owner's adapter, trained alone for as many steps as it took part in the federation.
    pub(super) local: Vec<OwnerScore>,
    /// The federation's adapter, unless the strategy averages nothing.
    pub(super) federated: Option<Score>,
    /// The rounds, in order.
    pub(super) rounds: Vec<ClosedRound>,
    /// The federation's adapter as a PEFT directory, or the first owner's if there is none.
    pub(super) adapter: PathBuf,
    /// The settings of the training.
    pub(super) settings: Settings,
    /// Wall-clock seconds of each part.
    pub(super) seconds: Seconds,
}

/// How well one model answers the held-out rows.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Score {
    /// Mean over all owners' held-out rows of a row's mean loss.
    pub(super) loss: f64,
    /// Share of all held-out rows whose answer greedy decoding gives exactly.
    pub(super) exact_match: f64,
    /// The same for each owner's rows.
    pub(super) owners: Vec<OwnerRows>,
}

/// One owner's held-out rows under one model.
#[derive(Clone, Debug, Serialize)]
pub(super) struct OwnerRows {
    /// The owner.
    pub(super) owner: String,
    /// Number of rows.
    pub(super) rows: usize,
    /// Mean over the rows of a row's mean loss.
    pub(super) loss: f64,
    /// Share of the rows answered exactly.
    pub(super) exact_match: f64,
}

/// The score of an adapter that one owner trained alone.
#[derive(Clone, Debug, Serialize)]
pub(super) struct OwnerScore {
    /// The owner who trained it.
    pub(super) owner: String,
    /// How it does on every owner's rows.
    #[serde(flatten)]
    pub(super) score: Score,
}

/// How it trained.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Settings {
    /// Strategy of the server.
    pub(super) strategy: String,
    /// Rounds of the federation.
    pub(super) rounds: u32,
    /// Local steps in a round; an owner alone makes `rounds * steps`.
    pub(super) steps: u32,
    /// Rows in a step.
    pub(super) batch: u32,
    /// Learning rate of the first round; it falls by a cosine.
    pub(super) lr: f32,
    /// Rank of the adapter.
    pub(super) rank: u32,
}

/// Where the time went, in seconds of wall clock.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Seconds {
    /// Finding or downloading the model.
    pub(super) model: f64,
    /// Preparing shards and loading the model.
    pub(super) prepare: f64,
    /// The federation, from the server's start to its last round.
    pub(super) federation: f64,
    /// The owners' training alone.
    pub(super) local: f64,
    /// Measuring on the held-out rows.
    pub(super) evaluate: f64,
    /// Everything but finding or downloading the model.
    pub(super) total: f64,
}

impl Score {
    /// Joins the rows of all owners, each row with equal weight.
    pub(super) fn over(owners: Vec<OwnerRows>) -> Self {
        let rows: usize = owners.iter().map(|owner| owner.rows).sum();
        let mean = |value: fn(&OwnerRows) -> f64| {
            let sum: f64 = owners.iter().map(|o| value(o) * o.rows as f64).sum();
            sum / rows.max(1) as f64
        };
        Self {
            loss: mean(|owner| owner.loss),
            exact_match: mean(|owner| owner.exact_match),
            owners,
        }
    }
}

impl Report {
    /// Whether the federation beats the base model and every owner alone on all owners' rows.
    #[must_use]
    pub(super) fn federation_wins(&self) -> bool {
        let others = self.local.iter().map(|local| &local.score);
        let mut others = others.chain([&self.base]);
        let federated = self.federated.as_ref();
        federated.is_some_and(|federated| others.all(|other| federated.loss < other.loss))
    }

    /// The table: one row a model, one column an owner's held-out rows, then all of them.
    #[must_use]
    pub(super) fn table(&self) -> String {
        let mut lines = vec![self.heading(), row_of("base", &self.base)];
        for local in &self.local {
            lines.push(row_of(&format!("{} alone", local.owner), &local.score));
        }
        lines.extend(
            self.federated
                .iter()
                .map(|score| row_of("federated", score)),
        );
        align(&lines)
    }

    fn heading(&self) -> Vec<String> {
        let owners = self.base.owners.iter().map(|rows| rows.owner.clone());
        let mut cells = vec!["loss, exact match".to_owned()];
        cells.extend(owners);
        cells.push("all".to_owned());
        cells
    }
}

fn row_of(name: &str, score: &Score) -> Vec<String> {
    let mut cells = vec![name.to_owned()];
    cells.extend(
        score
            .owners
            .iter()
            .map(|owner| cell(owner.loss, owner.exact_match)),
    );
    cells.push(cell(score.loss, score.exact_match));
    cells
}

fn cell(loss: f64, exact_match: f64) -> String {
    format!("{loss:.3}  {:>3.0} %", exact_match * 100.0)
}

/// Pads the cells of each column to one width: the first to the left, the others to the right.
fn align(lines: &[Vec<String>]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells.map(|cell| cell.len()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in lines {
        for (column, (cell, &width)) in line.iter().zip(&widths).enumerate() {
            // Writing to a string cannot fail.
            let _ = match column {
                0 => write!(text, "{cell:<width$}"),
                _ => write!(text, "   {cell:>width$}"),
            };
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(losses: [f64; 2]) -> Score {
        let rows = |(owner, loss): (&str, f64)| OwnerRows {
            owner: owner.to_owned(),
            rows: 2,
            loss,
            exact_match: 0.5,
        };
        Score::over(["ada", "ben"].into_iter().zip(losses).map(rows).collect())
    }

    fn report(federated: [f64; 2]) -> Report {
        Report {
            model: "tiny".to_owned(),
            device: "cpu".to_owned(),
            base: score([4.0, 6.0]),
            local: vec![OwnerScore {
                owner: "ada".to_owned(),
                score: score([0.5, 5.5]),
            }],
            federated: Some(score(federated)),
            rounds: Vec::new(),
            adapter: PathBuf::from("out/adapter"),
            settings: Settings {
                strategy: "fedavg".to_owned(),
                rounds: 1,
                steps: 2,
                batch: 4,
                lr: 1e-3,
                rank: 8,
            },
            seconds: Seconds::default(),
        }
    }

    #[test]
    fn a_score_weighs_every_row_alike() {
        let mut owners = score([1.0, 2.0]).owners;
        owners[1].rows = 6;
        owners[1].exact_match = 1.0;
        let all = Score::over(owners);
        assert_eq!(all.loss, 1.75);
        assert_eq!(all.exact_match, 0.875);
    }

    #[test]
    fn the_federation_must_beat_everyone() {
        assert!(report([1.0, 1.5]).federation_wins());
        assert!(!report([1.0, 5.5]).federation_wins());
        let apart = Report {
            federated: None,
            ..report([1.0, 1.5])
        };
        assert!(!apart.federation_wins());
        assert!(!apart.table().contains("federated"));
    }

    #[test]
    fn the_json_has_the_promised_keys() {
        let json = serde_json::to_value(report([1.0, 1.5])).unwrap();
        assert_eq!(json["base"]["loss"], 5.0);
        assert_eq!(json["local"][0]["owner"], "ada");
        assert_eq!(json["local"][0]["loss"], 3.0);
        assert_eq!(json["federated"]["loss"], 1.25);
        assert_eq!(json["adapter"], "out/adapter");
        assert!(json["rounds"].is_array());
    }

    #[test]
    fn the_table_is_aligned() {
        let table = report([1.0, 1.5]).table();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 4);
        assert!(lines.iter().all(|line| line.len() == lines[0].len()));
        assert!(lines[3].starts_with("federated"));
        assert!(lines[3].ends_with("1.250   50 %"));
    }
}
