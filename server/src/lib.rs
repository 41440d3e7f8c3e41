//! The fedllm server: opens rounds, aggregates deltas, keeps the record.
//!
//! The program is a thin `main` over [`cli::run`]. As a library, [`Folder::init`] makes a
//! federation, [`Base::open`] finds its model and [`Server::start`] runs it, so that tests and the
//! quickstart use what operators use.

mod admin;
mod aggregate;
mod answers;
mod api;
mod base;
mod central;
pub mod cli;
pub mod evaluate;
mod folder;
mod host;
mod judge;
mod net;
mod offline;
mod operator;
mod pki;
mod record;
mod report;
mod sandbox;
mod server;
pub mod simulate;
mod store;
#[cfg(test)]
mod testing;

pub use admin::{AdminError, ClientState, ClientStatus, ClosedRound, OpenRound, RunState, Status};
pub use aggregate::{
    AggregateError, ExactMean, Held, RankedSource, Source, exact_mean, product_gap, truncate,
    weighted_sum, weighted_sum_held,
};
pub use base::{Base, BaseError};
pub use central::CentralError;
pub use folder::{Folder, FolderError, InitOptions};
pub use host::HostError;
pub use net::EndpointError;
pub use offline::{OfflineError, OfflineReport, OfflineRound, TensorError, Tensors};
pub use operator::{Invited, OperatorError, Revoked};
pub use pki::{Authority, IssuedCertificate, PkiError, SERVER_NAME, ServerIdentity, client_id};
pub use record::RecordError;
pub use server::{Server, ServerError, ServerOptions};
pub use store::{EnrolledClient, StoreError, TokenRefusal, VersionScore};
