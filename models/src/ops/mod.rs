//! The operations of a decoder block, each forward and backward.
//!
//! A function takes and returns burn tensors and looks at their device: on the CPU it
//! runs a fused, parallel loop over the Flex backend's own storage, on a GPU a CubeCL kernel.
//! What is composed of burn's operations runs on any other device, and is the twin that the
//! tests hold both against. Backward passes are written by hand, because a frozen base needs
//! no tape: only block inputs and adapters carry gradients.
//!
//! Rows of a batch are packed one after another as `[tokens, features]`, so nothing is
//! ever padded; `segments` tell attention where rows begin and end.

mod adamw;
mod attention;
mod cube;
mod dropout;
mod flat;
mod frozen;
mod gemm;
mod glu;
mod host;
mod kernels;
mod linear;
mod loss;
mod matmul;
mod norm;
mod packed;
mod precision;
mod product;
mod rope;
mod score;
mod simd;
mod stored;
#[cfg(test)]
mod twins;

pub use adamw::{AdamW, AdamWStep};
pub use attention::{
    Attended, AttentionSpec, Continuation, KeyValues, Segments, attention, attention_backward,
    attention_cached,
};
pub use dropout::{Dropout, dropout};
pub use flat::{combine, concatenate, pull, sum_of_squares};
pub use frozen::{FrozenMatrix, HostMatrix, embed};
pub use glu::{glu, glu_backward};
pub use host::is_cpu;
pub(crate) use host::{Host, host_tensor, indices_on, tensor_on};
pub use linear::{GroupGrads, GroupLora, GroupOutput, LinearGroup, PartB, low_rank};
pub use loss::Head;
pub use matmul::{has_matrix_units, holds_halves};
pub(crate) use matmul::{keep_in, mark_software};
pub use norm::{Normed, rms_norm, rms_norm_again, rms_norm_backward, rms_norm_backward_onto};
pub use packed::PackedMatrix;
pub use precision::MixedPrecision;
pub use rope::{Rotation, Turn, rotate};
pub use score::{TokenLogProbs, TokenScore};
