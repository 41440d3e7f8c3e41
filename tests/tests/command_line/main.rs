//! What the programs say to bad input: which file and line, what to do, and the exit code.

#![allow(
    clippy::unwrap_used,
    reason = "a panic is how a test fails, in its helpers too"
)]

mod aggregate;
mod api;
mod bench;
mod data;
mod evaluate;
mod evaluate_tasks;
mod federation;
mod help;
mod models;

use fedllm_tests::federation::Programs;

fn programs() -> Programs {
    Programs::new(env!("CARGO_BIN_EXE_fedllm-under-test"))
}
