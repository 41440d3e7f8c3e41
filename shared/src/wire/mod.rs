//! What client and server say to each other.
//!
//! Control messages travel as frames, `u32 LE length | postcard body`, of at
//! most [`MAX_BODY_BYTES`]. Tensors never do: they are blobs, named by
//! [`BlobRef`], on streams of their own. postcard knows fields by position
//! only, so shipped structs never change and enums grow at the end; anything
//! else needs a new ALPN name.

mod blob;
mod client;
mod frame;
mod join;
mod score;
mod server;
mod task;
mod text;

pub use blob::{
    BlobCheck, BlobError, BlobRef, BlobRefusal, BlobRequest, BlobResponse, CHUNK_BYTES,
    CHUNK_HEADER_BYTES, ChunkHeader, resume_offset,
};
pub use client::{
    ClientMessage, DeclineReason, FailReason, Hello, PreferenceMetrics, UpdateMetrics, UpdateOffer,
    VariateOrigin,
};
pub use frame::{FrameDecoder, MAX_BODY_BYTES, WireError, decode_body, encode_frame};
pub use join::{
    JoinGrant, JoinRefusal, JoinRequest, JoinResponse, JoinToken, JoinTokenError, MAX_CSR_BYTES,
    TokenId, TokenSecret,
};
pub use score::{ClientsScore, HeldOutScore};
pub use server::{
    ErrorCode, RefuseReason, RoundOutcome, RoundSummary, ServerMessage, WaitReason, Welcome,
};
pub use task::{
    Factors, LocalOptimizer, LocalRule, LocalSpec, LoraSpec, ObjectiveSpec, ParseTargetsError,
    PreferenceLoss, PreferenceSpec, Reference, RowKind, Target, Targets, TaskError, TrainTask,
    VariateForm,
};
pub use text::MAX_TEXT_BYTES;

/// The application protocol of a run, in the TLS handshake.
pub const ALPN: &[u8] = b"fedllm/2";
/// The application protocol of joining, in the TLS handshake.
pub const ALPN_JOIN: &[u8] = b"fedllm-join/1";
/// The protocol version in [`Hello`] and [`Welcome`].
pub const PROTOCOL: u16 = 2;

#[cfg(test)]
pub(crate) mod golden;
