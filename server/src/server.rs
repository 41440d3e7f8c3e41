//! A running server: its listeners, its host, and how to stop it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use burn::tensor::{Device, DeviceKind};
use quinn::Endpoint;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::admin::{Admin, AdminAddress, Metrics, Status, serve};
use crate::base::Base;
use crate::central::{Central, CentralError};
use crate::folder::Folder;
use crate::host::{Ended, Host, HostError, HostHandle, HostOptions};
use crate::net::{Context, EndpointError, EndpointKeys, bind, listen};
use crate::operator::{Invited, OperatorError, Revoked, invite, revoke};
use crate::pki::PkiError;
use crate::store::{DirBlobs, RunStore, StoreError};

/// Client certificates last this long; renewing one is joining again with a new token.
const CLIENT_LIFE: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// How long clients may take to hear that the server stops.
const GOODBYE: Duration = Duration::from_secs(3);

/// Why a server cannot start, or had to stop.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The record or the blobs failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The authority or the certificate failed.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The QUIC endpoint failed.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The admin endpoint cannot listen.
    #[error("cannot serve status on {address}: {source}")]
    Admin {
        /// Where we tried.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The shared adapter cannot be measured.
    #[error(transparent)]
    Central(#[from] CentralError),
    /// The run failed.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The system gave no random bytes.
    #[error("no random bytes from the system: {0}")]
    Random(getrandom::Error),
    /// The server had to stop.
    #[error("the server had to stop: {0}")]
    Failed(String),
}

/// What to serve, and how.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ServerOptions {
    /// The federation.
    pub folder: Folder,
    /// Its base model.
    pub base: Base,
    /// Listen here instead of where the settings say.
    pub listen: Option<SocketAddr>,
    /// Serve status here instead of where the settings say.
    pub status_listen: Option<SocketAddr>,
    /// Average on the first GPU that wgpu finds, instead of the CPU.
    pub gpu: bool,
    /// Stay after the last round.
    pub keep_serving: bool,
}

impl ServerOptions {
    /// Serves `folder` as its settings say, and averages on the CPU.
    pub fn new(folder: Folder, base: Base) -> Self {
        Self {
            folder,
            base,
            listen: None,
            status_listen: None,
            gpu: false,
            keep_serving: false,
        }
    }
}

/// A running server. Dropping it stops it without a goodbye, as a crash would.
pub struct Server {
    folder: Folder,
    endpoint: Endpoint,
    address: SocketAddr,
    public: String,
    authority: [u8; 32],
    admin_address: SocketAddr,
    store: Arc<RunStore>,
    host: HostHandle,
    ended: watch::Receiver<Option<Ended>>,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Server {
    /// Opens the record, goes on with the run in it or begins one, and listens.
    ///
    /// It must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`ServerError`]; nothing listens then.
    pub async fn start(options: ServerOptions) -> Result<Self, ServerError> {
        let ServerOptions { folder, base, .. } = options;
        let state = folder.state();
        let settings = &folder.federation().server;
        let store = Arc::new(RunStore::open(&state)?);
        let blobs = DirBlobs::open(&state.join("blobs"))?;
        let metrics = Metrics::new();
        let device = match options.gpu {
            true => Device::wgpu(DeviceKind::DefaultDevice),
            false => Device::flex(),
        };
        let central = Central::open(folder.federation(), &base, &device, &state)?;
        if let Some(central) = &central {
            let (rows, tasks) = central.extent();
            tracing::info!(rows, tasks, "the adapter will be measured");
        }
        let (host, handle, ended) = Host::open(HostOptions {
            federation: folder.federation().clone(),
            base,
            store: store.clone(),
            blobs: blobs.clone(),
            metrics: metrics.clone(),
            device,
            central,
            keep_serving: options.keep_serving,
        })?;

        let authority = folder.authority()?;
        let fingerprint = authority.fingerprint();
        let identity = authority.server_identity(&folder.hosts())?;
        let keys = EndpointKeys::load_or_create(&state)?;
        let wanted = options.listen.unwrap_or(settings.listen);
        let endpoint = bind(wanted, authority.certificate(), identity, &keys)?;
        let unbound = |source| EndpointError::Bind {
            address: wanted,
            source,
        };
        let address = endpoint.local_addr().map_err(unbound)?;
        let public = match options.listen.is_some() || wanted.port() == 0 {
            true => with_port(&settings.address, address.port()),
            false => settings.address.clone(),
        };

        let wanted = options.status_listen.unwrap_or(settings.status_listen);
        let unserved = |source| ServerError::Admin {
            address: wanted,
            source,
        };
        let listener = TcpListener::bind(wanted).await.map_err(unserved)?;
        let admin_address = listener.local_addr().map_err(unserved)?;
        let secret = new_secret()?;
        let (stop, stopped) = watch::channel(false);
        let admin = Admin {
            host: handle.clone(),
            store: store.clone(),
            metrics: metrics.clone(),
            secret: secret.clone(),
            authority: fingerprint,
            address: public.clone(),
        };
        let contact = AdminAddress {
            address: admin_address,
            secret,
        };
        contact.save(&state).map_err(unserved)?;

        let name = folder.federation().name.clone();
        let context = Context::new(
            handle.clone(),
            blobs,
            store.clone(),
            authority,
            name,
            CLIENT_LIFE,
            metrics,
        );
        host.spawn()
            .map_err(|source| ServerError::Failed(source.to_string()))?;
        let tasks = vec![
            tokio::spawn(listen(Arc::new(context), endpoint.clone())),
            tokio::spawn(serve(admin, listener, stopped)),
        ];
        tracing::info!(%address, status = %admin_address, "serving");
        Ok(Self {
            folder,
            endpoint,
            address,
            public,
            authority: fingerprint,
            admin_address,
            store,
            host: handle,
            ended,
            stop,
            tasks,
        })
    }

    /// Where it listens (UDP).
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// Where status and metrics are served (TCP).
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin_address
    }

    /// How the run goes; nothing if the server has stopped.
    pub async fn status(&self) -> Option<Status> {
        self.host.status().await
    }

    /// Makes an invitation for one client. It writes to disk, so it may block for some milliseconds.
    ///
    /// # Errors
    ///
    /// [`OperatorError`].
    pub fn invite(&self, name: &str, ttl: Duration) -> Result<Invited, OperatorError> {
        invite(
            &self.store,
            self.authority,
            &self.public,
            name,
            ttl.as_secs(),
        )
    }

    /// Revokes the client called `name` and closes its connection.
    ///
    /// # Errors
    ///
    /// [`OperatorError`].
    pub fn revoke(&self, name: &str) -> Result<Revoked, OperatorError> {
        let revoked = revoke(&self.store, name)?;
        self.host.revoke(&revoked.clients);
        Ok(revoked)
    }

    /// Waits until the run is finished and its clients have what they need, then stops.
    ///
    /// # Errors
    ///
    /// [`ServerError::Failed`] if the server had to stop before.
    pub async fn wait(&self) -> Result<(), ServerError> {
        let mut ended = self.ended.clone();
        let ended = ended
            .wait_for(Option::is_some)
            .await
            .map(|ended| ended.clone());
        self.close().await;
        match ended.ok().flatten() {
            Some(Ended::Finished | Ended::Stopped) => Ok(()),
            Some(Ended::Failed(reason)) => Err(ServerError::Failed(reason)),
            None => Err(ServerError::Failed("its main loop is gone".to_owned())),
        }
    }

    /// Stops: tells the clients, and closes everything.
    ///
    /// # Errors
    ///
    /// [`ServerError::Failed`] if the server had failed before.
    pub async fn stop(&self) -> Result<(), ServerError> {
        self.host.stop().await;
        self.wait().await
    }

    /// Stops and gives everything back.
    ///
    /// # Errors
    ///
    /// Those of [`Server::stop`].
    pub async fn shutdown(self) -> Result<(), ServerError> {
        self.stop().await
    }

    async fn close(&self) {
        AdminAddress::clear(&self.folder.state());
        // Nobody listens any more if the admin endpoint has failed.
        let _ = self.stop.send(true);
        // The host has let go of every client; their connections end when they have been told.
        let goodbyes = async {
            while self.endpoint.open_connections() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        // Whoever does not listen is cut off.
        let _ = tokio::time::timeout(GOODBYE, goodbyes).await;
        self.endpoint.close(0u32.into(), b"stopping");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        self.endpoint.close(0u32.into(), b"");
        self.host.abandon();
    }
}

fn with_port(address: &str, port: u16) -> String {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    format!("{host}:{port}")
}

fn new_secret() -> Result<String, ServerError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(ServerError::Random)?;
    Ok(data_encoding::HEXLOWER.encode(&bytes))
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
