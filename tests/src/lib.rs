//! End-to-end and golden tests of fedllm.
//!
//! [`synthetic`] makes weights from a formula, [`tiny`] writes whole tiny models, [`federation`]
//! runs a server and clients as real processes, [`gpu`] finds the adapter to test on.

pub mod federation;
pub mod gpu;
pub mod process;
pub mod synthetic;
pub mod tiny;
