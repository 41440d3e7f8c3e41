//! The work a server asks for: data, never code.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::codec::Codec;
use crate::id::{Digest, ModelVersion, RoundId, RunId};
use crate::wire::BlobRef;

/// One round's work for one client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainTask {
    /// The run it belongs to.
    pub run: RunId,
    /// The round it belongs to.
    pub round: RoundId,
    /// The version of the adapter to start from.
    pub version: ModelVersion,
    /// The fingerprint of the base model.
    pub base: Digest,
    /// The digest of the adapter's layout, which the client derives itself.
    pub layout: Digest,
    /// The adapter to start from, encoded.
    pub adapter: BlobRef,
    /// Where the adapter sits and how it is scaled.
    pub lora: LoraSpec,
    /// What is minimized.
    pub objective: ObjectiveSpec,
    /// How it is minimized.
    pub local: LocalSpec,
    /// How the delta is to be encoded.
    pub codec: Codec,
    /// What corrects the local gradients.
    pub rule: LocalRule,
    /// The longest delta (L2) to send; a longer one is scaled down to it.
    pub max_norm: Option<f32>,
    /// The seed of everything random in this task: same for nobody else.
    pub seed: u64,
    /// How long the round still lasts, from the moment of sending, in milliseconds.
    pub deadline_ms: u64,
}

/// Where the low-rank factors sit and how they are scaled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoraSpec {
    /// The rank r of `A [r, in]` and `B [out, r]`.
    pub rank: u32,
    /// The α in the scale α/r, or α/√r with `rslora`.
    pub alpha: f32,
    /// The probability with which an input of A is dropped in training.
    pub dropout: f32,
    /// Whether the scale is α/√r (Kalajdzievski 2023, arXiv 2312.03732).
    pub rslora: bool,
    /// The adapted projections.
    pub targets: Targets,
    /// The seed of the first A; B begins at zero.
    pub seed: u64,
    /// The factors that are trained and travel.
    pub train: Factors,
}

/// The factors that clients train.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Factors {
    /// A and B.
    #[default]
    Both,
    /// B only; A stays as it began. Then the mean of the factors is the
    /// factor of the mean product (FFA-LoRA: Sun et al. 2024, arXiv
    /// 2403.12313).
    B,
}

impl LoraSpec {
    /// What `B·A` is multiplied with.
    pub fn scale(&self) -> f32 {
        self.alpha / self.divisor(self.rank)
    }

    /// The same adapter with another rank: α changes with it so that the
    /// scale of the product stays, and products of different ranks add up.
    pub fn with_rank(&self, rank: u32) -> Self {
        Self {
            rank,
            alpha: self.alpha / self.divisor(self.rank) * self.divisor(rank),
            ..self.clone()
        }
    }

    fn divisor(&self, rank: u32) -> f32 {
        match self.rslora {
            true => (rank as f32).sqrt(),
            false => rank as f32,
        }
    }
}

/// What is minimized. Grows at the end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectiveSpec {
    /// Mean cross-entropy of the tokens that the shard marks as labels.
    Sft,
    /// A loss over pairs of a chosen and a rejected answer.
    Dpo(PreferenceSpec),
}

impl ObjectiveSpec {
    /// The rows that a shard must have.
    pub fn rows(&self) -> RowKind {
        match self {
            Self::Sft => RowKind::Examples,
            Self::Dpo(_) => RowKind::Preferences,
        }
    }

    /// The name in configuration files: `sft` or `dpo`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Sft => "sft",
            Self::Dpo(_) => "dpo",
        }
    }
}

/// What the rows of a shard are. Grows at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowKind {
    /// Each row an example of its own.
    #[default]
    Examples,
    /// Rows in pairs: a chosen answer, then the rejected one.
    Preferences,
}

impl fmt::Display for RowKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Examples => "examples",
            Self::Preferences => "preferences",
        })
    }
}

/// Direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290,
/// eq. 7) and its relatives.
///
/// With h the policy's log-ratio of chosen to rejected minus the
/// reference's, each loss is a function of h.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PreferenceSpec {
    /// The β that keeps the policy near the reference.
    pub beta: f32,
    /// The ε of labels that are wrong; for the sigmoid loss.
    pub label_smoothing: f32,
    /// The function of h.
    pub loss: PreferenceLoss,
    /// What the policy is compared with.
    pub reference: Reference,
}

/// A loss over preference pairs, as a function of h.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PreferenceLoss {
    /// `-(1-ε)·log σ(βh) - ε·log σ(-βh)`: DPO, with ε cDPO.
    Sigmoid,
    /// `max(0, 1 - βh)` (SLiC: Zhao et al. 2023, arXiv 2305.10425).
    Hinge,
    /// `(h - 1/(2β))²` (IPO: Azar et al. 2023, arXiv 2310.12036, eq. 17).
    Ipo,
    /// IPO on log-probabilities averaged over the answer's tokens, as TRL
    /// computes it.
    IpoMean,
}

/// The model that a policy is compared with; never a second copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reference {
    /// The base with the adapter off.
    Base,
    /// The base with this adapter, encoded.
    Adapter(BlobRef),
}

/// A local optimizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LocalOptimizer {
    /// AdamW as PyTorch defines it.
    #[default]
    AdamW,
    /// Plain gradient descent, with decoupled weight decay.
    Sgd,
}

/// How a client trains.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LocalSpec {
    /// Optimizer steps in the round.
    pub steps: u32,
    /// Rows in a step.
    pub batch: u32,
    /// The longest row, in tokens.
    pub max_tokens: u32,
    /// The learning rate of this round.
    pub lr: f32,
    /// The decay of the first moment.
    pub beta1: f32,
    /// The decay of the second moment.
    pub beta2: f32,
    /// What keeps the division by the second moment's root finite.
    pub eps: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// The longest gradient (L2) of a step; 0 clips nothing.
    pub max_grad_norm: f32,
    /// Whether the optimizer's moments stay from round to round.
    pub keep_optimizer: bool,
    /// Whether rows come in seeded random order rather than as in the file.
    pub shuffle: bool,
    /// What takes the steps; the constants above are AdamW's as far as SGD
    /// has none of the name.
    pub optimizer: LocalOptimizer,
}

/// What corrects the local gradients. Grows at the end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LocalRule {
    /// Nothing.
    Plain,
    /// A pull of strength `mu` to the adapter of the round's beginning (FedProx).
    Proximal {
        /// The strength of the pull.
        mu: f32,
    },
    /// The server's control variate minus the client's own (SCAFFOLD).
    ControlVariate {
        /// The server's control variate, encoded like an adapter of the
        /// update's layout.
        variate: BlobRef,
        /// Where the correction is applied.
        form: VariateForm,
        /// The round of the client's last update that counts: the client
        /// goes on from the variate it had then. `None` if none has counted.
        since: Option<RoundId>,
    },
}

/// Where SCAFFOLD's correction `c - c_i` is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VariateForm {
    /// To the gradient, before the local optimizer (Karimireddy et al. 2020,
    /// arXiv 1910.06378, Algorithm 1).
    Gradient,
    /// To the parameters, after each step of the optimizer, as OpenFedLLM
    /// does.
    AfterStep,
}

/// A task that no client should carry out.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("the task has {what} {got}, allowed is {allowed}")]
pub struct TaskError {
    what: &'static str,
    got: String,
    allowed: &'static str,
}

impl TrainTask {
    /// Confirms that every number is one a client can work with.
    ///
    /// The bounds are those of the machine and of sense, not of taste: they
    /// keep a wrong or hostile server from asking for endless work or memory.
    ///
    /// # Errors
    ///
    /// [`TaskError`] names the first number out of bounds.
    pub fn check(&self) -> Result<(), TaskError> {
        let (lora, local) = (&self.lora, &self.local);
        bound("rank", lora.rank, 1, 1024, "1 to 1024")?;
        bound("steps", local.steps, 1, 1_000_000, "1 to 1000000")?;
        bound("batch", local.batch, 1, 65_536, "1 to 65536")?;
        bound("max_tokens", local.max_tokens, 2, 1_048_576, "2 to 1048576")?;
        bound(
            "alpha",
            lora.alpha,
            f32::MIN_POSITIVE,
            1e6,
            "above 0 and at most 1e6",
        )?;
        bound("dropout", lora.dropout, 0.0, 0.99, "0 to 0.99")?;
        bound("lr", local.lr, 0.0, 10.0, "0 to 10")?;
        bound("beta1", local.beta1, 0.0, 0.999_999, "0 to 0.999999")?;
        bound("beta2", local.beta2, 0.0, 0.999_999_9, "0 to 0.9999999")?;
        bound(
            "eps",
            local.eps,
            f32::MIN_POSITIVE,
            1.0,
            "above 0 and at most 1",
        )?;
        bound("weight_decay", local.weight_decay, 0.0, 10.0, "0 to 10")?;
        bound("max_grad_norm", local.max_grad_norm, 0.0, 1e9, "0 to 1e9")?;
        if let Some(norm) = self.max_norm {
            bound(
                "max_norm",
                norm,
                f32::MIN_POSITIVE,
                1e9,
                "above 0 and at most 1e9",
            )?;
        }
        if let LocalRule::Proximal { mu } = self.rule {
            bound("mu", mu, 0.0, 1e6, "0 to 1e6")?;
        }
        if let ObjectiveSpec::Dpo(preference) = &self.objective {
            let (beta, smoothing) = (preference.beta, preference.label_smoothing);
            bound("beta", beta, 1e-6, 1e3, "1e-6 to 1000")?;
            bound("label_smoothing", smoothing, 0.0, 0.499, "0 to 0.499")?;
        }
        if lora.targets.is_empty() {
            return Err(TaskError {
                what: "targets",
                got: "none".to_owned(),
                allowed: "one or more",
            });
        }
        Ok(())
    }
}

fn bound<T: PartialOrd + fmt::Display>(
    what: &'static str,
    value: T,
    low: T,
    high: T,
    allowed: &'static str,
) -> Result<(), TaskError> {
    // A value that is no number is in no range.
    if value >= low && value <= high {
        return Ok(());
    }
    let got = value.to_string();
    Err(TaskError { what, got, allowed })
}

/// One of the seven projections of a decoder layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// The query projection.
    Q,
    /// The key projection.
    K,
    /// The value projection.
    V,
    /// The projection out of attention.
    O,
    /// The gate of the feed-forward block.
    Gate,
    /// The way up in the feed-forward block.
    Up,
    /// The way down in the feed-forward block.
    Down,
}

impl Target {
    /// All targets, in the order of layouts.
    pub const ALL: [Self; 7] = [
        Self::Q,
        Self::K,
        Self::V,
        Self::O,
        Self::Gate,
        Self::Up,
        Self::Down,
    ];

    /// The short name: `q`, `k`, `v`, `o`, `gate`, `up` or `down`.
    pub fn name(self) -> &'static str {
        ["q", "k", "v", "o", "gate", "up", "down"][self as usize]
    }

    /// The module's name in Hugging Face checkpoints, for example `q_proj`.
    pub fn module(self) -> &'static str {
        [
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        ][self as usize]
    }
}

/// A set of projections, written `q,k,v,o,gate,up,down`.
///
/// ```
/// use fedllm_shared::{Target, Targets};
///
/// let targets: Targets = "v,q".parse()?;
/// assert!(targets.contains(Target::Q));
/// assert_eq!(targets.to_string(), "q,v");
/// assert_eq!(Targets::ALL.iter().count(), 7);
/// # Ok::<(), fedllm_shared::ParseTargetsError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Targets(u8);

/// A text that names no set of projections.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a list of q, k, v, o, gate, up, down, got {0:?}")]
pub struct ParseTargetsError(String);

impl Targets {
    /// All seven.
    pub const ALL: Self = Self(0x7f);

    /// Whether `target` is in the set.
    pub fn contains(self, target: Target) -> bool {
        self.0 & (1 << target as u8) != 0
    }

    /// Whether the set has no member.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The members in the order of layouts.
    pub fn iter(self) -> impl Iterator<Item = Target> {
        Target::ALL.into_iter().filter(move |t| self.contains(*t))
    }
}

impl FromIterator<Target> for Targets {
    fn from_iter<I: IntoIterator<Item = Target>>(targets: I) -> Self {
        Self(targets.into_iter().fold(0, |set, t| set | 1 << t as u8))
    }
}

impl fmt::Display for Targets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.iter().map(Target::name).collect();
        f.write_str(&names.join(","))
    }
}

impl FromStr for Targets {
    type Err = ParseTargetsError;

    fn from_str(text: &str) -> Result<Self, ParseTargetsError> {
        text.split(',')
            .map(|name| {
                let name = name.trim();
                let mut all = Target::ALL.into_iter();
                all.find(|target| target.name() == name || target.module() == name)
            })
            .collect::<Option<Self>>()
            .ok_or_else(|| ParseTargetsError(text.chars().take(80).collect()))
    }
}

impl Serialize for Targets {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            serializer.serialize_u8(self.0)
        }
    }
}

impl<'de> Deserialize<'de> for Targets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            return text.parse().map_err(de::Error::custom);
        }
        let bits = u8::deserialize(deserializer)?;
        if bits & !Self::ALL.0 != 0 {
            let expected = &"a set of the seven projections";
            return Err(de::Error::invalid_value(
                de::Unexpected::Unsigned(bits.into()),
                expected,
            ));
        }
        Ok(Self(bits))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::golden::task;

    #[test]
    fn targets_read_and_write_alike() {
        assert_eq!(Targets::ALL.to_string(), "q,k,v,o,gate,up,down");
        assert_eq!(
            "q_proj, down_proj".parse::<Targets>().unwrap().to_string(),
            "q,down"
        );
        for text in ["", "q,,k", "x", "q k"] {
            assert!(text.parse::<Targets>().is_err(), "{text}");
        }
        assert!(postcard::from_bytes::<Targets>(&[0x80]).is_err());
    }

    #[test]
    fn the_scale_is_alpha_over_rank_or_its_root() {
        let mut lora = task().lora;
        (lora.rank, lora.alpha) = (16, 32.0);
        assert_eq!(lora.scale(), 2.0);
        lora.rslora = true;
        assert_eq!(lora.scale(), 8.0);
    }

    #[test]
    fn a_task_out_of_bounds_is_named() {
        assert_eq!(task().check(), Ok(()));
        type Spoil = fn(&mut TrainTask);
        let cases: [(Spoil, &str); 6] = [
            (|t| t.lora.rank = 0, "rank 0"),
            (|t| t.local.steps = u32::MAX, "steps 4294967295"),
            (|t| t.local.lr = f32::NAN, "lr NaN"),
            (|t| t.max_norm = Some(f32::INFINITY), "max_norm inf"),
            (|t| t.rule = LocalRule::Proximal { mu: -1.0 }, "mu -1"),
            (|t| t.lora.targets = Targets::default(), "targets none"),
        ];
        for (spoil, expected) in cases {
            let mut task = task();
            spoil(&mut task);
            let error = task.check().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
