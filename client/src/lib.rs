//! The fedllm client: trains a LoRA adapter on private data and sends only its delta.
//!
//! The program is a thin `main` over [`cli::run`]. The library is used by the server's simulation
//! and by the tests: a client is a [`Session`] over a [`Transport`] and a [`Trainer`].

pub mod cli;
mod exit;
mod governor;

pub use exit::{Code, Explain, report};
pub use governor::{StopFlag, limit_threads, lower_priority};
