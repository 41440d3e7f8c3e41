//! Federations of real processes over loopback QUIC: from `init` to the export, and what happens
//! when a client or the server dies or sleeps in the middle.

#![allow(
    clippy::unwrap_used,
    reason = "a panic is how a test fails, in its helpers too"
)]

#[cfg(unix)]
mod benchmarks;
#[cfg(unix)]
mod churn;
#[cfg(unix)]
mod evaluation;
mod quickstart;
#[cfg(unix)]
mod simulate;
mod whole;

use fedllm_tests::federation::Programs;

fn programs() -> Programs {
    Programs::new(env!("CARGO_BIN_EXE_fedllm-under-test"))
}
