//! How the versions of the adapter do on rows that nobody trains on.

use fedllm_shared::{
    CentralEvaluation, CentralScore, ClientsScore, HeldOutScore, ModelVersion, TaskScore,
};
use redb::{ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};

use super::StoreError;
use super::run::{RunStore, json, parse};

pub(super) const SCORES: TableDefinition<u64, &[u8]> = TableDefinition::new("scores");

/// How one version of the adapter does on rows that nobody trains on.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct VersionScore {
    /// The version.
    pub version: u64,
    /// On rows that clients hold out: what they say, of the version that a round began with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clients: Option<ClientsScore>,
    /// On the operator's rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<CentralScore>,
    /// On benchmarks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<TaskScore>,
}

/// A score that is to be added.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum NewScore {
    /// One more client's.
    Client(HeldOutScore),
    /// The server's own.
    Server(CentralScore),
    /// The server's own of benchmarks.
    Tasks(Vec<TaskScore>),
}

impl VersionScore {
    fn has(&self, evaluation: &CentralEvaluation) -> bool {
        let mut names = evaluation.tasks.names.iter();
        let is_done = |name: &String| self.tasks.iter().any(|score| score.task == *name);
        (self.server.is_some() || evaluation.held_out.is_empty()) && names.all(is_done)
    }

    fn add(&mut self, score: &NewScore) {
        match score {
            NewScore::Client(score) => self.clients.get_or_insert_default().add(score),
            NewScore::Server(score) => self.server = Some(*score),
            NewScore::Tasks(scores) => self.tasks.clone_from(scores),
        }
    }
}

impl RunStore {
    /// What is known of each version, oldest first.
    pub(crate) fn scores(&self) -> Result<Vec<VersionScore>, StoreError> {
        let rows = self.rows(SCORES, 0)?;
        rows.iter().map(|(_, row)| parse("score", row)).collect()
    }

    /// Whether the server has measured a version on everything that there is to measure on.
    pub(crate) fn is_measured(
        &self,
        version: ModelVersion,
        evaluation: &CentralEvaluation,
    ) -> Result<bool, StoreError> {
        let scores = self.scores()?.into_iter();
        let mut of_version = scores.filter(|score| score.version == version.0);
        Ok(of_version.any(|score| score.has(evaluation)))
    }
}

/// Adds scores to those that are there.
pub(super) fn add_scores(
    transaction: &WriteTransaction,
    scores: &[(ModelVersion, NewScore)],
) -> Result<Result<(), StoreError>, redb::Error> {
    for (version, score) in scores {
        let mut table = transaction.open_table(SCORES)?;
        let row = table.get(version.0)?.map(|row| row.value().to_vec());
        let known = row.map(|row| parse::<VersionScore>("score", &row));
        let mut known = match known.transpose() {
            Ok(known) => known.unwrap_or_default(),
            Err(error) => return Ok(Err(error)),
        };
        known.version = version.0;
        known.add(score);
        table.insert(version.0, json(&known).as_slice())?;
    }
    Ok(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Commit;

    #[test]
    fn scores_of_one_version_come_together() {
        let folder = tempfile::tempdir().unwrap();
        let store = RunStore::open(folder.path()).unwrap();
        let client = |loss| {
            NewScore::Client(HeldOutScore {
                loss,
                accuracy: 0.5,
                rows: 10,
            })
        };
        let server = CentralScore {
            loss: 3.0,
            loss_se: 0.1,
            accuracy: 0.25,
            accuracy_se: 0.01,
            rows: 100,
        };
        for scores in [
            vec![
                (ModelVersion(0), client(2.0)),
                (ModelVersion(0), client(4.0)),
            ],
            vec![(ModelVersion(1), NewScore::Server(server))],
            vec![(ModelVersion(1), client(1.0))],
        ] {
            let commit = Commit {
                scores,
                ..Commit::default()
            };
            store.commit(&commit).unwrap();
        }
        let scores = store.scores().unwrap();
        let clients = scores[0].clients.unwrap();
        assert_eq!((clients.clients, clients.rows, clients.loss), (2, 20, 3.0));
        assert_eq!((scores[0].version, scores[0].server), (0, None));
        assert_eq!(scores[1].server, Some(server));
        assert_eq!(scores[1].clients.unwrap().clients, 1);
        let mut evaluation = CentralEvaluation {
            held_out: vec!["rows.jsonl".to_owned()],
            ..CentralEvaluation::default()
        };
        let is_measured = |version, evaluation: &CentralEvaluation| {
            let version = ModelVersion(version);
            store.is_measured(version, evaluation).unwrap()
        };
        assert!(is_measured(1, &evaluation) && !is_measured(0, &evaluation));

        evaluation.tasks.names = vec!["mmlu".to_owned()];
        assert!(!is_measured(1, &evaluation));
        let tasks = vec![TaskScore {
            task: "mmlu".to_owned(),
            metric: "acc".to_owned(),
            value: Some(0.25),
            standard_error: Some(0.1),
            rows: 20,
            base: Some(0.5),
        }];
        let commit = Commit {
            scores: vec![(ModelVersion(1), NewScore::Tasks(tasks.clone()))],
            ..Commit::default()
        };
        store.commit(&commit).unwrap();
        assert!(is_measured(1, &evaluation));
        let scores = store.scores().unwrap();
        assert_eq!((scores[1].server, &scores[1].tasks), (Some(server), &tasks));
    }
}
