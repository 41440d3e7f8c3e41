//! One round of a federation that exchanges files: the same code as a server's, on any set of
//! tensors with equal names.

mod tensors;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use fedllm_client::files;
use fedllm_shared::{
    Adapter, BlobRef, ClientId, Codec, Contributions, Delta, Digest, LowRankError, ModelVersion,
    Models, Reduction, RoundId, RoundReport, ServerState, Strategy, VARIATE, WeightBy,
    WeightedUpdate, decode_adapter, encode_adapter, encode_delta,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::aggregate::{Layouts, RoundError, RoundJob, RoundRules};
use crate::store::{BlobStore, MemoryBlobs, StoreError};

pub use tensors::{TensorError, Tensors};

const STATE: &str = "state.json";

/// Why there is no next adapter.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OfflineError {
    /// A file of tensors cannot be used.
    #[error(transparent)]
    Tensors(#[from] TensorError),
    /// The state cannot be read or written.
    #[error("{path}: {reason}")]
    State {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The state belongs to another strategy or other tensors.
    #[error("{path} was begun with {what} {expected}, now it is {got}")]
    OtherState {
        /// The state's directory.
        path: PathBuf,
        /// What differs.
        what: &'static str,
        /// What the state was begun with.
        expected: String,
        /// What it is now.
        got: String,
    },
    /// The strategy needs a control variate's delta for each update, and only then.
    #[error("{kind} takes {expected} --variate-delta files, one an update, got {got}")]
    Variates {
        /// The strategy.
        kind: String,
        /// How many it takes.
        expected: usize,
        /// How many there are.
        got: usize,
    },
    /// The tensors are not those of low-rank factors.
    #[error(transparent)]
    LowRank(#[from] LowRankError),
    /// A value is not finite.
    #[error("{path}: {reason}")]
    Value {
        /// The file.
        path: PathBuf,
        /// Which value.
        reason: String,
    },
    /// The updates cannot be averaged.
    #[error("{0}")]
    Round(String),
}

/// One round, as the operator describes it.
#[derive(Clone, Debug)]
pub struct OfflineRound {
    /// The algorithm.
    pub strategy: Strategy,
    /// How factors are averaged.
    pub reduction: Reduction,
    /// What updates weigh; by the strategy's paper if `None`.
    pub weight_by: Option<WeightBy>,
    /// The directory of momentum, second moments and the server's control variate.
    pub state: PathBuf,
    /// The present adapter.
    pub global: PathBuf,
    /// The updates, each with its number of rows.
    pub updates: Vec<(PathBuf, f64)>,
    /// The deltas of the clients' control variates, in the order of the updates.
    pub variate_deltas: Vec<PathBuf>,
    /// Whether updates are deltas rather than adapters.
    pub is_delta: bool,
    /// How many clients there are (SCAFFOLD's N); as many as there are updates if `None`.
    pub population: Option<u64>,
    /// Where the next adapter goes.
    pub out: PathBuf,
}

/// What a round did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OfflineReport {
    /// The round, from 0.
    pub round: u64,
    /// What it did to the adapter.
    #[serde(flatten)]
    pub report: RoundReport,
    /// The BLAKE3 digest of the new adapter's values.
    pub digest: Digest,
}

/// What `state.json` says beside the vectors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct StateFile {
    rounds: u64,
    strategy: Strategy,
    layout: Digest,
}

impl OfflineRound {
    /// Averages, steps, and writes the next adapter and the state.
    ///
    /// The adapter is written before the state: if the program is killed in between, the same
    /// command does the same again.
    ///
    /// # Errors
    ///
    /// [`OfflineError`]; then neither the adapter nor the state has changed.
    pub fn run(&self) -> Result<OfflineReport, OfflineError> {
        let kind = self.strategy.kind;
        let expected = match self.strategy.has_variates() {
            true => self.updates.len(),
            false => 0,
        };
        let got = self.variate_deltas.len();
        if got != expected {
            let kind = kind.to_string();
            return Err(OfflineError::Variates {
                kind,
                expected,
                got,
            });
        }
        let global = Tensors::read(&self.global)?;
        let layout = global.layout().clone();
        let factors = self.reduction.factors();
        let layouts = Layouts::new(layout, factors, &self.strategy)?;
        let (rounds, state) = self.load_state(&layouts)?;
        let blobs = MemoryBlobs::default();
        let adapter = adapter(&self.global, &global)?;
        let base = Models::shared(put(&blobs, &self.global, &adapter)?);
        let updates = self.encode(&adapter, &layouts, base.adapter, &blobs)?;
        let everyone = self.population.unwrap_or(self.updates.len() as u64);
        let job = RoundJob {
            given: Contributions {
                round: RoundId(rounds),
                base_version: ModelVersion(rounds),
                base,
                population: everyone,
                updates,
            },
            rules: RoundRules {
                layouts: layouts.clone(),
                factors,
                ranks: Vec::new(),
                codec: Codec::F32,
                max_norm: None,
                strategy: self.strategy.clone(),
            },
            state,
            measure_gap: true,
            blobs: blobs.clone(),
            device: Device::flex(),
        };
        let next = job.run().map_err(|error| self.explain(&error))?;
        let bytes = blobs.load(&next.models.adapter).map_err(failed)?;
        let adapter = decode_adapter(&bytes, &layouts.adapter);
        let adapter = adapter.map_err(|error| value(&self.global, error))?;
        let digest = Digest::of(bytemuck::cast_slice(adapter.values()));
        global.with_values(adapter.into_values()).write(&self.out)?;
        self.save_state(&layouts, rounds + 1, &next.state)?;
        Ok(OfflineReport {
            round: rounds,
            report: next.report,
            digest,
        })
    }

    /// Encodes the updates as clients do, under names that follow from their contents: so the order
    /// in which they are given changes nothing.
    fn encode(
        &self,
        adapter: &Adapter,
        layouts: &Layouts,
        start: BlobRef,
        blobs: &MemoryBlobs,
    ) -> Result<Vec<WeightedUpdate>, OfflineError> {
        let mut updates: BTreeMap<ClientId, WeightedUpdate> = BTreeMap::new();
        let trained = adapter
            .select(&layouts.trained)
            .map_err(|error| value(&self.global, error))?;
        for (index, (path, weight)) in self.updates.iter().enumerate() {
            let delta = self.delta(path, &trained, adapter)?;
            let norm = delta.l2_norm();
            let mut values = delta.into_values();
            if let Some(path) = self.variate_deltas.get(index) {
                let step = Tensors::read(path)?;
                let step = step.matching(&layouts.trained)?;
                values.extend(step);
            }
            let delta = Delta::new(layouts.update.clone(), values);
            let delta = delta.map_err(|error| value(path, error))?;
            let bytes = encode_delta(&delta, Codec::F32).map_err(|error| value(path, error))?;
            let blob = blobs.put(&bytes).map_err(failed)?;
            let mut client = ClientId(blob.digest.0);
            // The same update twice counts twice.
            while updates.contains_key(&client) {
                client = ClientId(Digest::of(&client.0).0);
            }
            updates.insert(
                client,
                WeightedUpdate {
                    client,
                    blob,
                    weight: self.weight(*weight),
                    scale: 1.0,
                    norm,
                    start,
                    rank: None,
                },
            );
        }
        Ok(updates.into_values().collect())
    }

    fn delta(
        &self,
        path: &Path,
        trained: &Adapter,
        adapter: &Adapter,
    ) -> Result<Delta, OfflineError> {
        let update = Tensors::read(path)?;
        let layout = trained.layout();
        let values = match update.layout() == adapter.layout() {
            true => update.matching(adapter.layout())?,
            false => update.matching(layout)?,
        };
        let whole = match values.len() == layout.len() {
            true => layout,
            false => adapter.layout(),
        };
        let local = Adapter::new(whole.clone(), values).map_err(|error| value(path, error))?;
        let local = local.select(layout).map_err(|error| value(path, error))?;
        let delta = match self.is_delta {
            true => Delta::new(layout.clone(), local.into_values()),
            false => Delta::between(&local, trained),
        };
        delta.map_err(|error| value(path, error))
    }

    fn weight(&self, rows: f64) -> f64 {
        let strategy = &self.strategy;
        let by = strategy.kind.weight_by(strategy.compat);
        match self.weight_by.unwrap_or(by) {
            WeightBy::Uniform => 1.0,
            WeightBy::Rows | WeightBy::LossTokens => rows,
        }
    }

    fn load_state(&self, layouts: &Layouts) -> Result<(u64, ServerState), OfflineError> {
        let path = self.state.join(STATE);
        let broken = |reason: String| OfflineError::State {
            path: path.clone(),
            reason,
        };
        let text = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok((0, ServerState::default()));
            }
            read => read.map_err(|error| broken(error.to_string()))?,
        };
        let file: StateFile =
            serde_json::from_slice(&text).map_err(|error| broken(error.to_string()))?;
        let other = |what, expected: String, got: String| OfflineError::OtherState {
            path: self.state.clone(),
            what,
            expected,
            got,
        };
        if file.strategy != self.strategy {
            let text = |strategy: &Strategy| serde_json::to_string(strategy).unwrap_or_default();
            return Err(other(
                "strategy",
                text(&file.strategy),
                text(&self.strategy),
            ));
        }
        let (expected, got) = (file.layout, layouts.adapter.digest());
        if expected != got {
            return Err(other("tensors", expected.to_string(), got.to_string()));
        }
        let mut state = ServerState::default();
        for name in vectors(&self.strategy) {
            let path = self.vector(name, file.rounds);
            let values = Tensors::read(&path)?.matching(&layouts.trained)?;
            state.vectors.insert(name.to_owned(), values);
        }
        Ok((file.rounds, state))
    }

    /// Vectors are written under the number of rounds, then named by the state: a crash in between
    /// leaves the old state whole.
    fn save_state(
        &self,
        layouts: &Layouts,
        rounds: u64,
        state: &ServerState,
    ) -> Result<(), OfflineError> {
        let path = self.state.join(STATE);
        let broken = |reason: String| OfflineError::State {
            path: path.clone(),
            reason,
        };
        files::create_private_folder(&self.state).map_err(|error| broken(error.to_string()))?;
        for (name, values) in &state.vectors {
            let tensors = Tensors::of(layouts.trained.clone(), values.clone());
            tensors.write(&self.vector(name, rounds))?;
        }
        let file = StateFile {
            rounds,
            strategy: self.strategy.clone(),
            layout: layouts.adapter.digest(),
        };
        let text = serde_json::to_vec_pretty(&file).map_err(|error| broken(error.to_string()))?;
        files::write_durable(&path, &text).map_err(|error| broken(error.to_string()))?;
        for name in state.vectors.keys() {
            // What stays of the round before is only in the way.
            let _ = std::fs::remove_file(self.vector(name, rounds - 1));
        }
        Ok(())
    }

    fn vector(&self, name: &str, rounds: u64) -> PathBuf {
        self.state.join(format!("{name}-{rounds}.safetensors"))
    }

    fn explain(&self, error: &RoundError) -> OfflineError {
        OfflineError::Round(format!("{}: {error}", self.strategy.kind))
    }
}

/// The vectors that a strategy keeps after a round.
fn vectors(strategy: &Strategy) -> Vec<&'static str> {
    use fedllm_shared::{MOMENTUM, SECOND_MOMENT, ServerOptimizer};
    let mut vectors = match strategy.server {
        ServerOptimizer::Sgd { .. } => vec![],
        ServerOptimizer::Momentum { .. } => vec![MOMENTUM],
        ServerOptimizer::Adaptive { .. } => vec![MOMENTUM, SECOND_MOMENT],
    };
    if strategy.has_variates() {
        vectors.push(VARIATE);
    }
    vectors
}

fn adapter(path: &Path, tensors: &Tensors) -> Result<Adapter, OfflineError> {
    let adapter = Adapter::new(tensors.layout().clone(), tensors.values().to_vec());
    adapter.map_err(|error| value(path, error))
}

fn put(blobs: &MemoryBlobs, path: &Path, adapter: &Adapter) -> Result<BlobRef, OfflineError> {
    let bytes = encode_adapter(adapter, Codec::F32).map_err(|error| value(path, error))?;
    blobs.put(&bytes).map_err(failed)
}

fn value(path: &Path, error: impl std::fmt::Display) -> OfflineError {
    OfflineError::Value {
        path: path.to_owned(),
        reason: error.to_string(),
    }
}

fn failed(error: StoreError) -> OfflineError {
    OfflineError::Round(error.to_string())
}
