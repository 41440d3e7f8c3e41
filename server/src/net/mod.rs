//! The QUIC side of the server: who gets in, and what travels on which stream.
//!
//! A connection under `fedllm/2` has one control stream, the first that the client opens, and a
//! stream for each blob. Everything a peer can make us keep is bounded before it is kept.

mod admission;
mod blob;
mod control;
mod endpoint;
mod join;
pub(crate) mod stream;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::admin::Metrics;
use crate::host::HostHandle;
use crate::pki::Authority;
use crate::store::{DirBlobs, RunStore};

pub(crate) use admission::listen;
pub use endpoint::EndpointError;
pub(crate) use endpoint::{EndpointKeys, bind};

/// Uploads that are received and checked at the same time, over all clients.
const UPLOADS: usize = 64;
/// Downloads that are served at the same time; each holds one chunk in memory.
const DOWNLOADS: usize = 128;

/// What every connection needs.
pub(crate) struct Context {
    pub(crate) host: HostHandle,
    pub(crate) blobs: DirBlobs,
    pub(crate) store: Arc<RunStore>,
    pub(crate) authority: Authority,
    pub(crate) federation: String,
    /// How long a client's certificate lasts.
    pub(crate) client_life: Duration,
    pub(crate) metrics: Metrics,
    uploads: Arc<Semaphore>,
    downloads: Arc<Semaphore>,
}

impl Context {
    pub(crate) fn new(
        host: HostHandle,
        blobs: DirBlobs,
        store: Arc<RunStore>,
        authority: Authority,
        federation: String,
        client_life: Duration,
        metrics: Metrics,
    ) -> Self {
        Self {
            host,
            blobs,
            store,
            authority,
            federation,
            client_life,
            metrics,
            uploads: Arc::new(Semaphore::new(UPLOADS)),
            downloads: Arc::new(Semaphore::new(DOWNLOADS)),
        }
    }
}
