//! An OpenAI-compatible server over one base model and its adapters.
//!
//! The routes are in `http`. A request is read into [`fields::Fields`], checked, and put into the
//! queue of the [`Worker`], the one thread that has the model. The thread's [`desk::Desk`] answers all
//! requests together; what the model says comes back as [`worker::Event`]s. Nothing here writes a prompt or an answer to the log.

mod chat;
mod checks;
mod completions;
mod connections;
mod desk;
mod error;
mod fields;
mod http;
mod key;
mod limits;
mod log_probs;
mod prompts;
mod request;
mod stream;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod text;
mod tokens;
mod worker;

pub(crate) use http::{Api, serve};
pub(crate) use key::Key;
pub(crate) use limits::Limits;
pub(crate) use worker::{Model, Worker};
