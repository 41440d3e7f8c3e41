//! End-to-end and golden tests of fedllm.
//!
//! [`synthetic`] makes weights from a formula, [`tiny`] writes whole tiny models, [`federation`]
//! runs a server and clients as real processes.

pub mod federation;
pub mod process;
pub mod synthetic;
pub mod tiny;
