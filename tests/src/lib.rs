//! End-to-end and golden tests of fedllm.
//!
//! [`synthetic`] makes weights from a formula, [`tiny`] writes whole tiny models.

pub mod synthetic;
pub mod tiny;
