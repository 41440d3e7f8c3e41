//! The models against reference numbers that this project did not make.

#![allow(
    clippy::unwrap_used,
    reason = "a panic is how a test fails, in its helpers too"
)]

mod correction;
mod engine;
mod golden;
mod gpu;
mod gpu_counts;
mod preference;
mod writer;
