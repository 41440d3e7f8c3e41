//! The operator's side: status, metrics, events, invitations and revocations, on loopback.

mod client;
mod http;
mod metrics;
mod status;

pub(crate) use client::AdminAddress;
pub use client::AdminError;
pub(crate) use http::{Admin, InviteRequest, RevokeRequest, is_loopback, serve};
pub(crate) use metrics::Metrics;
pub use status::{ClientState, ClientStatus, ClosedRound, OpenRound, RunState, Status};
