//! Algorithms, each a choice on three axes: what clients correct, how their
//! updates reduce to one, and how the server steps.
//!
//! | axis | type | choices |
//! |---|---|---|
//! | clients correct | [`LocalChoice`] | plain, proximal, control variate |
//! | updates reduce | [`ReduceRule`] | mean, mean of products, each apart |
//! | the server steps | [`ServerOptimizer`] | SGD, momentum, adaptive |
//!
//! A [`StrategyKind`] is a row of choices with the parameters that its paper
//! gives it; a [`Strategy`] is one with its values.

mod fedavg;
mod fedavgm;
mod fedopt;
mod fedprox;
mod local;
mod scaffold;
mod server;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use server::{MOMENTUM, SECOND_MOMENT, SecondMoment, ServerOptimizer};

use crate::adapter::{Adapter, AdapterError, Delta, Layout, LayoutError, TensorSpec};
use crate::id::{ModelVersion, RoundId};
use crate::lowrank::{self, LowRankError};
use crate::nearest::nearest;
use crate::wire::{Factors, VariateForm};

/// The name of the server's control variate in a [`ServerState`].
pub const VARIATE: &str = "variate";

/// The algorithms by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StrategyKind {
    /// The weighted mean.
    FedAvg,
    /// The mean, with clients pulled to where the round began.
    FedProx,
    /// The mean, with clients corrected by control variates.
    Scaffold,
    /// The mean, with momentum on the server.
    FedAvgM,
    /// The mean, with Adagrad on the server.
    FedAdagrad,
    /// The mean, with Yogi on the server.
    FedYogi,
    /// The mean, with Adam on the server.
    FedAdam,
    /// No mean: every owner alone.
    Local,
}

impl StrategyKind {
    /// All algorithms, in the order of the documentation.
    pub const ALL: [Self; 8] = [
        Self::FedAvg,
        Self::FedProx,
        Self::Scaffold,
        Self::FedAvgM,
        Self::FedAdagrad,
        Self::FedYogi,
        Self::FedAdam,
        Self::Local,
    ];

    /// The name in configuration files.
    pub fn name(self) -> &'static str {
        match self {
            Self::FedAvg => "fedavg",
            Self::FedProx => "fedprox",
            Self::Scaffold => "scaffold",
            Self::FedAvgM => "fedavgm",
            Self::FedAdagrad => "fedadagrad",
            Self::FedYogi => "fedyogi",
            Self::FedAdam => "fedadam",
            Self::Local => "local",
        }
    }

    /// Where the algorithm is described.
    pub fn paper(self) -> &'static str {
        self.preset().paper
    }

    /// What can be set.
    pub fn parameters(self) -> &'static [Parameter] {
        self.preset().parameters
    }

    /// What updates weigh if nobody says otherwise.
    pub fn weight_by(self, compat: Compat) -> WeightBy {
        (self.preset().weight_by)(compat)
    }

    fn preset(self) -> &'static Preset {
        match self {
            Self::FedAvg => &fedavg::PRESET,
            Self::FedProx => &fedprox::PRESET,
            Self::Scaffold => &scaffold::PRESET,
            Self::FedAvgM => &fedavgm::PRESET,
            Self::FedAdagrad => &fedopt::ADAGRAD,
            Self::FedYogi => &fedopt::YOGI,
            Self::FedAdam => &fedopt::ADAM,
            Self::Local => &local::PRESET,
        }
    }
}

impl fmt::Display for StrategyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for StrategyKind {
    type Err = StrategyError;

    fn from_str(name: &str) -> Result<Self, StrategyError> {
        let found = Self::ALL.into_iter().find(|kind| kind.name() == name);
        found.ok_or_else(|| StrategyError::Unknown {
            nearest: nearest(name, Self::ALL.map(Self::name)),
            name: name.chars().take(80).collect(),
        })
    }
}

/// Whose formulas are computed where a paper and OpenFedLLM differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compat {
    /// The paper's.
    #[default]
    Paper,
    /// Those of OpenFedLLM (Ye et al. 2024, arXiv 2402.06954), as its code
    /// computes them.
    OpenFedLlm,
}

impl Compat {
    /// Both, by their names in configuration files.
    pub const NAMES: [(&'static str, Self); 2] =
        [("paper", Self::Paper), ("openfedllm", Self::OpenFedLlm)];
}

/// One row of the table of algorithms.
struct Preset {
    paper: &'static str,
    parameters: &'static [Parameter],
    weight_by: fn(Compat) -> WeightBy,
    local: fn(&Values, Compat) -> LocalChoice,
    server: fn(&Values, Compat) -> ServerOptimizer,
}

/// A number of an algorithm, by the name that its paper gives it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Parameter {
    /// Its name.
    pub name: &'static str,
    /// Its value if nobody gives one.
    pub default: f64,
    /// The least and the greatest value.
    pub range: (f64, f64),
    /// What it is, for people.
    pub about: &'static str,
}

/// An algorithm's parameters, complete and in range.
struct Values(BTreeMap<&'static str, f64>);

impl Values {
    fn of(&self, name: &str) -> f64 {
        // Presets ask for the parameters in their own list, and a test asks for all of them.
        self.0.get(name).copied().unwrap_or(f64::NAN)
    }
}

/// What clients correct.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LocalChoice {
    /// Nothing.
    Plain,
    /// A pull to the adapter of the round's beginning.
    Proximal {
        /// The strength μ of the pull.
        mu: f32,
    },
    /// The server's control variate minus the client's own.
    ControlVariate {
        /// Where it is applied.
        form: VariateForm,
    },
}

/// How updates become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReduceRule {
    /// The weighted mean of each value: A and B apart.
    Mean,
    /// The weighted mean of the products `B·A`, factorised anew by truncated
    /// SVD (FlexLoRA: Bai et al. 2024, arXiv 2402.11505).
    Products,
    /// None: each client goes on from its own adapter.
    Separate,
}

impl ReduceRule {
    /// Whether it must see each client's update, rather than their sum only.
    ///
    /// A rule that must cannot work under secure aggregation.
    pub fn needs_individual_updates(self) -> bool {
        match self {
            Self::Mean => false,
            Self::Products | Self::Separate => true,
        }
    }
}

/// How low-rank factors are averaged, as configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reduction {
    /// A and B apart, as OpenFedLLM does: not the mean of their products.
    #[default]
    Plain,
    /// B only is trained, so that plain averaging is exact (arXiv 2403.12313).
    Ffa,
    /// The products, factorised anew to each client's rank (arXiv 2402.11505).
    Exact,
}

impl Reduction {
    /// All, by their names in configuration files.
    pub const NAMES: [(&'static str, Self); 3] = [
        ("plain", Self::Plain),
        ("ffa", Self::Ffa),
        ("exact", Self::Exact),
    ];

    /// The name in configuration files.
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize].0
    }

    /// The factors that clients train.
    pub fn factors(self) -> Factors {
        match self {
            Self::Ffa => Factors::B,
            Self::Plain | Self::Exact => Factors::Both,
        }
    }
}

/// A choice of algorithm that cannot be.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum StrategyError {
    /// No algorithm of this name.
    #[error("there is no strategy {name:?}; did you mean {nearest:?}? There are {}", names(StrategyKind::ALL.map(StrategyKind::name)))]
    Unknown {
        /// The name.
        name: String,
        /// The most similar one.
        nearest: &'static str,
    },
    /// A parameter that the algorithm does not have.
    #[error("{kind} has no parameter {name:?}; {}", has(*.kind))]
    UnknownParameter {
        /// The algorithm.
        kind: StrategyKind,
        /// The parameter.
        name: String,
    },
    /// A parameter out of its range.
    #[error("{name} must be {low:e} to {high:e}, got {got}")]
    OutOfRange {
        /// The parameter.
        name: &'static str,
        /// The least value.
        low: f64,
        /// The greatest value.
        high: f64,
        /// The value.
        got: f64,
    },
    /// An algorithm that cannot go with a reduction.
    #[error("{kind} cannot go with reduce = {:?}: {reason}", reduction.name())]
    Reduction {
        /// The algorithm.
        kind: StrategyKind,
        /// The reduction.
        reduction: Reduction,
        /// Why not.
        reason: &'static str,
    },
}

fn has(kind: StrategyKind) -> String {
    match kind.parameters() {
        [] => "it has none".to_owned(),
        some => format!("it has {}", names(some.iter().map(|p| p.name))),
    }
}

fn names(names: impl IntoIterator<Item = &'static str>) -> String {
    names.into_iter().collect::<Vec<_>>().join(", ")
}

/// An algorithm with its parameters: a choice on each axis.
///
/// ```
/// use fedllm_shared::{Compat, Reduction, Strategy, StrategyKind};
///
/// let fedprox = Strategy::new(
///     StrategyKind::FedProx,
///     Compat::Paper,
///     Reduction::Plain,
///     &[("mu", 0.1)],
/// )?;
/// assert_eq!(fedprox.kind.name(), "fedprox");
///
/// let error = Strategy::new(
///     StrategyKind::FedAdam,
///     Compat::Paper,
///     Reduction::Exact,
///     &[],
/// );
/// assert!(error.unwrap_err().to_string().contains("momentum"));
/// # Ok::<(), fedllm_shared::StrategyError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Strategy {
    /// The algorithm.
    pub kind: StrategyKind,
    /// Whose formulas.
    pub compat: Compat,
    /// What clients correct.
    pub local: LocalChoice,
    /// How updates become one.
    pub reduce: ReduceRule,
    /// How the server steps.
    pub server: ServerOptimizer,
}

impl Strategy {
    /// Chooses an algorithm, with these of its parameters set.
    ///
    /// # Errors
    ///
    /// [`StrategyError`] if a parameter is unknown or out of range, or the
    /// algorithm cannot go with the reduction.
    pub fn new(
        kind: StrategyKind,
        compat: Compat,
        reduction: Reduction,
        parameters: &[(&str, f64)],
    ) -> Result<Self, StrategyError> {
        let values = values(kind, parameters)?;
        let preset = kind.preset();
        let strategy = Self {
            kind,
            compat,
            local: (preset.local)(&values, compat),
            reduce: match (kind, reduction) {
                (StrategyKind::Local, _) => ReduceRule::Separate,
                (_, Reduction::Exact) => ReduceRule::Products,
                (_, Reduction::Plain | Reduction::Ffa) => ReduceRule::Mean,
            },
            server: (preset.server)(&values, compat),
        };
        match strategy.clash(reduction) {
            None => Ok(strategy),
            Some(reason) => Err(StrategyError::Reduction {
                kind,
                reduction,
                reason,
            }),
        }
    }

    /// Why the algorithm cannot go with the reduction, if so.
    fn clash(&self, reduction: Reduction) -> Option<&'static str> {
        if reduction != Reduction::Exact {
            return None;
        }
        match (self.kind, self.local, self.server) {
            (StrategyKind::Local, ..) => Some("it averages nothing"),
            (_, LocalChoice::ControlVariate { .. }, _) => Some(
                "control variates belong to the factors' coordinates, and each new factorisation \
                 changes those",
            ),
            (_, _, ServerOptimizer::Sgd { lr: 1.0 }) => None,
            (_, _, ServerOptimizer::Sgd { .. }) => Some(
                "the products' mean is the new adapter, so the server's learning rate must be 1",
            ),
            (_, _, ServerOptimizer::Momentum { .. } | ServerOptimizer::Adaptive { .. }) => Some(
                "the server's momentum belongs to the factors' coordinates, and each new \
                 factorisation changes those",
            ),
        }
    }

    /// Whether updates carry a control variate's delta behind the adapter's.
    pub fn has_variates(&self) -> bool {
        matches!(self.local, LocalChoice::ControlVariate { .. })
    }

    /// Moves the adapter's trained values by what the updates became.
    ///
    /// # Errors
    ///
    /// [`AdapterError`] if layouts differ or a value would not be finite; the
    /// adapter and the state are then unchanged.
    pub fn apply(
        &self,
        adapter: &mut Adapter,
        aggregate: &Aggregate,
        state: &mut ServerState,
    ) -> Result<RoundReport, AdapterError> {
        let mut next = state.clone();
        if let Some(step) = &aggregate.variate {
            next.move_variate(step)?;
        }
        let step_norm = self.server.step(adapter, &aggregate.delta, &mut next)?;
        *state = next;
        Ok(RoundReport {
            updates: aggregate.updates,
            total_weight: aggregate.total_weight,
            delta_norm: aggregate.delta.l2_norm(),
            step_norm,
            ..RoundReport::default()
        })
    }
}

fn values(kind: StrategyKind, given: &[(&str, f64)]) -> Result<Values, StrategyError> {
    let known = kind.parameters();
    let mut values: BTreeMap<_, _> = known.iter().map(|p| (p.name, p.default)).collect();
    for (name, got) in given {
        let Some(parameter) = known.iter().find(|p| p.name == *name) else {
            let name = name.chars().take(80).collect();
            return Err(StrategyError::UnknownParameter { kind, name });
        };
        let (low, high) = parameter.range;
        // A value that is no number is in no range.
        if !(*got >= low && *got <= high) {
            let (name, got) = (parameter.name, *got);
            return Err(StrategyError::OutOfRange {
                name,
                low,
                high,
                got,
            });
        }
        values.insert(parameter.name, *got);
    }
    Ok(Values(values))
}

/// What an update's values mean: the trained factors' delta and, with
/// SCAFFOLD, their control variate's delta behind it.
///
/// # Errors
///
/// [`LowRankError`] if what is sent would be no layout.
pub fn update_layout(
    adapter: &Layout,
    factors: Factors,
    variates: bool,
) -> Result<Layout, LowRankError> {
    let trained = lowrank::trained(adapter, factors)?;
    match variates {
        true => Ok(with_variates(&trained)?),
        false => Ok(trained),
    }
}

fn with_variates(layout: &Layout) -> Result<Layout, LayoutError> {
    let tensors = layout.tensors().iter().cloned();
    let behind = layout.tensors().iter().map(|tensor| TensorSpec {
        name: format!("{VARIATE}.{}", tensor.name),
        ..tensor.clone()
    });
    Layout::new(tensors.chain(behind).collect())
}

/// What the updates of a round became.
#[derive(Clone, Debug, PartialEq)]
pub struct Aggregate {
    /// The round.
    pub round: RoundId,
    /// The version they started from.
    pub base_version: ModelVersion,
    /// The reduced delta over the trained factors. Its negation is the
    /// pseudo-gradient.
    pub delta: Delta,
    /// `1/N·Σ Δc_i`, if clients keep control variates.
    pub variate: Option<Delta>,
    /// How many updates went into it.
    pub updates: u32,
    /// The sum of their weights.
    pub total_weight: f64,
}

/// What a server keeps from round to round: named vectors, each as long as
/// the trained factors. FedAvg keeps none.
///
/// It belongs to a version as the adapter does: both are made durable together.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct ServerState {
    /// The vectors by name, for example [`MOMENTUM`].
    pub vectors: BTreeMap<String, Vec<f32>>,
}

impl ServerState {
    /// `c ← c + step`, from zero.
    fn move_variate(&mut self, step: &Delta) -> Result<(), AdapterError> {
        let layout = step.layout();
        let old = self.vectors.remove(VARIATE);
        let old = old.unwrap_or_else(|| vec![0.0; layout.len()]);
        let mut variate = Adapter::new(layout.clone(), old)?;
        variate.apply(step, 1.0)?;
        let variate = variate.into_values();
        self.vectors.insert(VARIATE.to_owned(), variate);
        Ok(())
    }
}

/// What a round did to the adapter.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct RoundReport {
    /// How many updates were averaged.
    pub updates: u32,
    /// The sum of their weights.
    pub total_weight: f64,
    /// The length (L2) of the reduced delta.
    pub delta_norm: f64,
    /// The length (L2) of the step the server took.
    pub step_norm: f64,
    /// How far apart the clients' deltas are: the root of the weighted mean of
    /// `‖Δ_i - Δ‖²`, over `‖Δ‖`.
    pub drift: f64,
    /// How far plain averaging of the factors is from the mean of their
    /// products, relative to that mean (Frobenius); absent if not measured.
    pub gap: Option<f64>,
    /// What factorising the mean of the products anew lost, relative to it.
    pub discarded: Option<f64>,
}

/// What an update weighs in the mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Weighting {
    /// The figure that is taken.
    pub by: WeightBy,
    /// The most it may count.
    pub max: u64,
}

/// The figure an update's weight is taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightBy {
    /// Rows of the client's shard: the n of the FedAvg paper.
    Rows,
    /// Label tokens of the client's shard.
    LossTokens,
    /// One for everyone.
    Uniform,
}

impl Weighting {
    /// The weight of an update from a shard of this size. Zero means that it
    /// cannot be averaged.
    pub fn weight(&self, shard_rows: u64, shard_loss_tokens: u64) -> u64 {
        let figure = match self.by {
            WeightBy::Rows => shard_rows,
            WeightBy::LossTokens => shard_loss_tokens,
            WeightBy::Uniform => 1,
        };
        figure.min(self.max)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::id::ClientId;
    use crate::reduce::weighted_mean;

    fn plain(kind: StrategyKind) -> Strategy {
        Strategy::new(kind, Compat::Paper, Reduction::Plain, &[]).unwrap()
    }

    #[test]
    fn every_algorithm_has_its_name_and_its_parameters() {
        for kind in StrategyKind::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
            let json = serde_json::to_string(&kind).unwrap();
            assert_eq!(json, format!("{:?}", kind.name()));
            for compat in [Compat::Paper, Compat::OpenFedLlm] {
                let strategy = Strategy::new(kind, compat, Reduction::Plain, &[]).unwrap();
                // A preset that asks for a parameter it does not list gets NaN.
                let text = format!("{strategy:?}");
                assert!(!text.contains("NaN"), "{text}");
            }
            for parameter in kind.parameters() {
                let (low, high) = parameter.range;
                assert!((low..=high).contains(&parameter.default), "{parameter:?}");
            }
        }
    }

    #[test]
    fn what_cannot_be_says_why() {
        let error = |kind, reduction, parameters: &[(&str, f64)]| {
            let strategy = Strategy::new(kind, Compat::Paper, reduction, parameters);
            strategy.unwrap_err().to_string()
        };
        let (plain, exact) = (Reduction::Plain, Reduction::Exact);
        let text = "fedadgrad".parse::<StrategyKind>().unwrap_err().to_string();
        assert!(text.contains("did you mean \"fedadagrad\""), "{text}");
        let text = error(StrategyKind::FedProx, plain, &[("tau", 1.0)]);
        assert_eq!(
            text,
            "fedprox has no parameter \"tau\"; it has mu, server_lr"
        );
        let text = error(StrategyKind::FedAdam, plain, &[("beta2", 1.5)]);
        assert!(text.starts_with("beta2 must be"), "{text}");
        assert!(error(StrategyKind::FedAvg, plain, &[("server_lr", f64::NAN)]).contains("NaN"));
        for (kind, parameters, reason) in [
            (StrategyKind::Scaffold, &[][..], "control variates"),
            (StrategyKind::FedAvgM, &[], "momentum"),
            (StrategyKind::FedYogi, &[], "momentum"),
            (StrategyKind::Local, &[], "averages nothing"),
            (StrategyKind::FedAvg, &[("server_lr", 0.5)], "must be 1"),
        ] {
            let text = error(kind, exact, parameters);
            assert!(text.contains(reason), "{kind}: {text}");
        }
        for kind in [StrategyKind::FedAvg, StrategyKind::FedProx] {
            assert!(Strategy::new(kind, Compat::Paper, exact, &[]).is_ok());
        }
    }

    pub(super) fn layout() -> Arc<Layout> {
        let spec = TensorSpec {
            name: "a".to_owned(),
            rows: 1,
            cols: 3,
        };
        Arc::new(Layout::new(vec![spec]).unwrap())
    }

    fn aggregate(delta: Delta, variate: Option<Delta>) -> Aggregate {
        Aggregate {
            round: RoundId(0),
            base_version: ModelVersion(0),
            delta,
            variate,
            updates: 2,
            total_weight: 4.0,
        }
    }

    /// w = (3·w₁ + 1·w₂)/4 (McMahan et al. 2017, Algorithm 1).
    #[test]
    fn fedavg_ends_at_the_weighted_mean_of_the_clients() {
        let adapter = |values: [f32; 3]| Adapter::new(layout(), values.to_vec()).unwrap();
        let mut global = adapter([1.0, 1.0, 1.0]);
        let locals = [adapter([2.0, 0.0, 1.0]), adapter([5.0, 4.0, -1.0])];
        let deltas = locals.map(|local| Delta::between(&local, &global).unwrap());
        let updates = [
            (ClientId([1; 32]), 3.0, &deltas[0]),
            (ClientId([2; 32]), 1.0, &deltas[1]),
        ];
        let aggregate = aggregate(weighted_mean(&updates).unwrap(), None);
        let mut state = ServerState::default();
        let strategy = plain(StrategyKind::FedAvg);
        let report = strategy.apply(&mut global, &aggregate, &mut state).unwrap();
        // (3·2 + 5)/4, (3·0 + 4)/4 and (3·1 - 1)/4.
        assert_eq!(global.values(), [2.75, 1.0, 0.5]);
        assert_eq!(report.step_norm, report.delta_norm);
        assert_eq!(state, ServerState::default());
    }

    /// x = x + η_g/|S|·Σ Δy_i and c = c + 1/N·Σ Δc_i with N = 4, twice.
    #[test]
    fn scaffold_moves_its_control_variate_by_the_population() {
        let vector = |values: [f32; 3]| Delta::new(layout(), values.to_vec()).unwrap();
        let strategy = Strategy::new(
            StrategyKind::Scaffold,
            Compat::Paper,
            Reduction::Plain,
            &[("eta_g", 0.5)],
        );
        let strategy = strategy.unwrap();
        let mut adapter = Adapter::zeros(layout());
        let mut state = ServerState::default();
        // Two of four clients have Δc = (1, 2, 3) and (3, 2, 1).
        let quarter = [(1.0 + 3.0) / 4.0, (2.0 + 2.0) / 4.0, (3.0 + 1.0) / 4.0];
        for _ in 0..2 {
            let step = aggregate(vector([2.0, 4.0, -2.0]), Some(vector(quarter)));
            strategy.apply(&mut adapter, &step, &mut state).unwrap();
        }
        assert_eq!(adapter.values(), [2.0, 4.0, -2.0]);
        assert_eq!(state.vectors[VARIATE], [2.0, 2.0, 2.0]);
        let broken = aggregate(vector([f32::MAX; 3]), Some(vector([f32::MAX; 3])));
        let before = (adapter.clone(), state.clone());
        for _ in 0..4 {
            let _ = strategy.apply(&mut adapter, &broken, &mut state);
        }
        let bad = strategy.apply(&mut adapter, &broken, &mut state);
        assert!(
            matches!(bad, Err(AdapterError::NonFinite { .. })),
            "{before:?}"
        );
    }

    #[test]
    fn weights_are_those_of_the_papers() {
        use StrategyKind::*;
        for (kind, paper, reference) in [
            (FedAvg, WeightBy::Rows, WeightBy::Rows),
            (FedProx, WeightBy::Rows, WeightBy::Rows),
            (Scaffold, WeightBy::Uniform, WeightBy::Rows),
            (FedAvgM, WeightBy::Rows, WeightBy::Rows),
            (FedAdagrad, WeightBy::Uniform, WeightBy::Uniform),
            (FedYogi, WeightBy::Uniform, WeightBy::Uniform),
            (FedAdam, WeightBy::Uniform, WeightBy::Uniform),
        ] {
            assert_eq!(kind.weight_by(Compat::Paper), paper, "{kind}");
            assert_eq!(kind.weight_by(Compat::OpenFedLlm), reference, "{kind}");
        }
    }

    #[test]
    fn a_claim_counts_up_to_the_cap() {
        let weighting = |by| Weighting { by, max: 1000 };
        assert_eq!(weighting(WeightBy::Rows).weight(7, 90), 7);
        assert_eq!(weighting(WeightBy::LossTokens).weight(7, 90), 90);
        assert_eq!(weighting(WeightBy::Uniform).weight(7, 90), 1);
        assert_eq!(weighting(WeightBy::Rows).weight(u64::MAX, 1), 1000);
        assert_eq!(weighting(WeightBy::Rows).weight(0, 1), 0);
    }
}
