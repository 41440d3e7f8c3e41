//! Pure logic and vocabulary of fedllm: no async, sockets, GPU, files or clock.
//!
//! What a run is made of: names ([`RunId`], [`ClientId`]), vectors
//! ([`Adapter`], [`Delta`] over a [`Layout`]), messages ([`ClientMessage`],
//! [`ServerMessage`]) and the bytes of both.

mod adapter;
mod codec;
mod config;
mod event;
mod files;
mod id;
mod lowrank;
pub mod manual;
mod metric;
mod nearest;
mod proto;
mod reduce;
mod strategy;
mod time;
mod transform;
mod wire;

pub use adapter::{
    Adapter, AdapterError, Delta, Layout, LayoutError, MAX_TENSORS, MAX_VALUES, TensorSpec,
    check_finite,
};
pub use codec::{
    Codec, CodecError, DeltaDecoder, ParseCodecError, decode_adapter, decode_delta, encode_adapter,
    encode_delta,
};
pub use config::{
    CentralEvaluation, ConfigError, DataConfig, DataSource, DevicesConfig, EvaluationConfig,
    Experiment, Federation, LocalConfig, LrSchedule, ModelConfig, ModelSource, ObjectiveConfig,
    OutputConfig, ReferenceConfig, RoundsConfig, ScheduleKind, ServerConfig, SplitConfig,
    SplitKind, TasksConfig, WireConfig,
};
pub use event::{CentralScore, Event, EventRecord, TaskScore};
pub use files::{Files, Header, JsonObject, ReadAs, Split};
pub use id::{ClientId, Digest, ModelVersion, ParseIdError, RoundId, RunId};
pub use lowrank::{FactorPair, LowRankError, factor_pairs, is_trained, trained, with_rank};
pub use metric::{
    Average, Bleu, BleuCounts, Bootstrap, Classification, Comparison, Estimate, LabelScores, Mean,
    PairedTest, ReadingScore, average_ranks, drop_score, exact_match, last_boxed, last_number,
    marked_number, maths_equal, numbers_equal, pass_at_k, perplexity, squad_score,
};
pub use nearest::nearest;
pub use proto::{
    Backoff, Contributions, Coordinator, CoordinatorAction, CoordinatorInput, CoordinatorPhase,
    CoordinatorStatus, Member, MemberState, Models, Participant, ParticipantAction,
    ParticipantInput, ParticipantState, Presence, RankPlan, RoundCounts, RoundPolicy, RoundVerdict,
    RunPlan, ShardFacts, SnapshotError, StopReason, UpdateRecord, WeightedUpdate,
};
pub use reduce::{ReduceError, WeightedMean, weighted_mean};
pub use strategy::{
    Aggregate, Compat, LocalChoice, MOMENTUM, Parameter, ReduceRule, Reduction, RoundReport,
    SECOND_MOMENT, SecondMoment, ServerOptimizer, ServerState, Strategy, StrategyError,
    StrategyKind, VARIATE, WeightBy, Weighting, update_layout,
};
pub use time::Timestamp;
pub use transform::{ClipNorm, DeltaTransform, TransformChain, clip_factor};
pub use wire::{
    ALPN, ALPN_JOIN, BlobCheck, BlobError, BlobRef, BlobRefusal, BlobRequest, BlobResponse,
    CHUNK_BYTES, CHUNK_HEADER_BYTES, ChunkHeader, ClientMessage, ClientsScore, DeclineReason,
    ErrorCode, Factors, FailReason, FrameDecoder, HeldOutScore, Hello, JoinGrant, JoinRefusal,
    JoinRequest, JoinResponse, JoinToken, JoinTokenError, LocalOptimizer, LocalRule, LocalSpec,
    LoraSpec, MAX_BODY_BYTES, MAX_CSR_BYTES, MAX_TEXT_BYTES, ObjectiveSpec, PROTOCOL,
    ParseTargetsError, PreferenceLoss, PreferenceMetrics, PreferenceSpec, Reference, RefuseReason,
    RoundOutcome, RoundSummary, RowKind, ServerMessage, Target, Targets, TaskError, TokenId,
    TokenSecret, TrainTask, UpdateMetrics, UpdateOffer, VariateForm, VariateOrigin, WaitReason,
    Welcome, WireError, decode_body, encode_frame, resume_offset,
};

#[cfg(test)]
mod tests {
    /// What would let this crate wait, talk, draw or compute on a device is
    /// not among what it depends on.
    #[test]
    fn dependencies_are_pure() {
        let manifest: toml::Table = include_str!("../Cargo.toml").parse().unwrap();
        let dependencies = manifest["dependencies"].as_table().unwrap();
        let names: Vec<_> = dependencies.keys().map(String::as_str).collect();
        let allowed = [
            "blake3",
            "data-encoding",
            "half",
            "postcard",
            "rand",
            "rand_chacha",
            "serde",
            "thiserror",
            "toml",
            "zstd",
        ];
        let mut others = names.iter().filter(|name| !allowed.contains(name));
        assert_eq!(others.next(), None);
    }
}
