//! The front door: floods, handshakes, protocols and identities.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fedllm_shared::{ALPN, ALPN_JOIN, ClientId, ErrorCode};
use quinn::crypto::rustls::HandshakeData;
use quinn::{Connecting, Connection, Endpoint, Incoming};
use rustls_pki_types::CertificateDer;
use tokio::time::timeout;
use tracing::{debug, info};

use super::{Context, control, join};
use crate::pki::client_id;

const HANDSHAKE: Duration = Duration::from_secs(5);
/// With more handshakes than this under way, newcomers must first prove their address.
const RETRY_ABOVE: usize = 500;
const CONNECTIONS: usize = 16_384;
/// Handshakes that one address may begin at once, and how many more each second.
const BURST: f64 = 200.0;
const PER_SECOND: f64 = 50.0;
/// Addresses that are remembered; beyond that the idle ones are forgotten.
const ADDRESSES: usize = 8192;

/// Accepts connections until the endpoint is closed.
pub(crate) async fn listen(context: Arc<Context>, endpoint: Endpoint) {
    let pending = Arc::new(AtomicUsize::new(0));
    let mut limiter = Limiter::default();
    while let Some(incoming) = endpoint.accept().await {
        let validated = incoming.remote_address_validated();
        if !validated && pending.load(Ordering::Relaxed) > RETRY_ABOVE {
            // It may come back with a token that proves its address.
            if let Err(refused) = incoming.retry() {
                refused.into_incoming().ignore();
            }
            continue;
        }
        if endpoint.open_connections() >= CONNECTIONS
            || !limiter.admits(incoming.remote_address().ip(), Instant::now())
        {
            incoming.refuse();
            continue;
        }
        greet(context.clone(), pending.clone(), incoming);
    }
}

fn greet(context: Arc<Context>, pending: Arc<AtomicUsize>, incoming: Incoming) {
    let from = incoming.remote_address();
    let connecting = match incoming.accept() {
        Ok(connecting) => connecting,
        Err(error) => return debug!(%from, %error, "refused a handshake"),
    };
    pending.fetch_add(1, Ordering::Relaxed);
    tokio::spawn(async move {
        let connection = handshake(connecting).await;
        pending.fetch_sub(1, Ordering::Relaxed);
        match connection {
            Some(connection) => dispatch(context, connection).await,
            None => debug!(%from, "a handshake failed or took too long"),
        }
    });
}

async fn handshake(connecting: Connecting) -> Option<Connection> {
    match timeout(HANDSHAKE, connecting).await {
        Ok(Ok(connection)) => Some(connection),
        Ok(Err(error)) => {
            // Wrong authority, expired certificate, unknown protocol: TLS has told the peer.
            debug!(%error, "a handshake failed");
            None
        }
        Err(_) => None,
    }
}

async fn dispatch(context: Arc<Context>, connection: Connection) {
    let protocol = connection
        .handshake_data()
        .and_then(|data| data.downcast::<HandshakeData>().ok())
        .and_then(|data| data.protocol);
    match protocol.as_deref() {
        Some(ALPN_JOIN) => join::serve(context, connection).await,
        Some(ALPN) => match identity(&connection) {
            Some(client) => control::serve(context, connection, client).await,
            None => refuse(&connection, "a client certificate is required"),
        },
        _ => refuse(&connection, "unknown protocol"),
    }
}

/// Who the peer is, by the certificate that TLS has checked.
fn identity(connection: &Connection) -> Option<ClientId> {
    let chain = connection.peer_identity()?;
    let chain = chain.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    client_id(chain.first()?).ok()
}

fn refuse(connection: &Connection, reason: &'static str) {
    info!(from = %connection.remote_address(), reason, "refused a connection");
    connection.close(
        control::close_code(ErrorCode::NotAdmitted),
        reason.as_bytes(),
    );
}

/// A token bucket for each address.
#[derive(Default)]
struct Limiter {
    buckets: HashMap<IpAddr, Bucket>,
    /// When idle addresses were last forgotten; looking for them takes time as well.
    swept: Option<Instant>,
}

struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Limiter {
    fn admits(&mut self, from: IpAddr, now: Instant) -> bool {
        // Whoever is on this machine can do worse; simulations put thousands of clients here.
        if from.is_loopback() {
            return true;
        }
        let full = Duration::from_secs_f64(BURST / PER_SECOND);
        let sweep = self.swept.is_none_or(|at| now - at >= full);
        if self.buckets.len() >= ADDRESSES && sweep {
            self.buckets.retain(|_, bucket| now - bucket.at < full);
            self.swept = Some(now);
        }
        let room = self.buckets.len() < ADDRESSES;
        let new = || Bucket {
            tokens: BURST,
            at: now,
        };
        let bucket = match self.buckets.get_mut(&from) {
            Some(bucket) => bucket,
            None if room => self.buckets.entry(from).or_insert_with(new),
            None => return false,
        };
        let gained = (now - bucket.at).as_secs_f64() * PER_SECOND;
        bucket.tokens = (bucket.tokens + gained).min(BURST);
        bucket.at = now;
        if bucket.tokens < 1.0 {
            return false;
        }
        bucket.tokens -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_take_everything() {
        let mut limiter = Limiter::default();
        let now = Instant::now();
        let (greedy, modest) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let admitted = (0..1000).filter(|_| limiter.admits(greedy, now)).count();
        assert_eq!(admitted, BURST as usize);
        assert!(limiter.admits(modest, now));
        let later = now + Duration::from_secs(1);
        let admitted = (0..1000).filter(|_| limiter.admits(greedy, later)).count();
        assert_eq!(admitted, PER_SECOND as usize);
    }

    #[test]
    fn remembered_addresses_are_bounded() {
        let mut limiter = Limiter::default();
        let now = Instant::now();
        let address = |i: u32| IpAddr::from(i.to_be_bytes());
        for i in 0..2 * ADDRESSES as u32 {
            limiter.admits(address(i), now);
        }
        assert_eq!(limiter.buckets.len(), ADDRESSES);
        let later = now + Duration::from_secs(60);
        assert!(limiter.admits(address(u32::MAX), later));
        assert_eq!(limiter.buckets.len(), 1);
    }
}
