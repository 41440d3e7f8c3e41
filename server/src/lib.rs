//! The fedllm server: opens rounds, aggregates deltas, keeps the record.
//!
//! The program is a thin `main` over [`cli::run`]. As a library, [`Folder::init`] makes a
//! federation, [`Base::open`] finds its model and [`Server::start`] runs it, so that tests and the
//! quickstart use what operators use.

mod admin;
mod aggregate;
mod base;
pub mod cli;
mod files;
mod folder;
mod host;
mod net;
mod operator;
mod pki;
mod record;
mod server;
mod store;
#[cfg(test)]
mod testing;

pub use admin::{AdminError, ClientState, ClientStatus, ClosedRound, OpenRound, RunState, Status};
pub use aggregate::{AggregateError, Source, weighted_mean};
pub use base::{Base, BaseError};
pub use folder::{Folder, FolderError, InitOptions};
pub use host::HostError;
pub use net::EndpointError;
pub use operator::{Invited, OperatorError, Revoked};
pub use pki::{Authority, IssuedCertificate, PkiError, SERVER_NAME, ServerIdentity, client_id};
pub use record::RecordError;
pub use server::{Server, ServerError, ServerOptions};
pub use store::{EnrolledClient, StoreError, TokenRefusal};
