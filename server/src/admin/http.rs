//! The endpoint: `GET /status`, `/metrics` and `/events`; `POST /invite` and `/revoke`.
//!
//! It listens on loopback. Reading needs nothing, so that Prometheus can; what changes something
//! needs the secret from a file that only the server's owner can read. A `Host` that is not
//! loopback is refused, so that no web page can reach it by a name of its own.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use subtle::ConstantTimeEq;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::{ClientState, Metrics};
use crate::host::HostHandle;
use crate::operator::{Invited, OperatorError, Revoked, invite, revoke};
use crate::record::{own_adapter, stored_adapter};
use crate::store::RunStore;

/// Events in one answer.
const EVENTS: usize = 1000;

/// What the endpoint can reach.
pub(crate) struct Admin {
    pub(crate) host: HostHandle,
    pub(crate) store: Arc<RunStore>,
    pub(crate) metrics: Metrics,
    pub(crate) secret: String,
    /// What a join token must say.
    pub(crate) authority: [u8; 32],
    pub(crate) address: String,
}

/// What the operator asks for to let a client in.
#[derive(Clone, Debug, serde::Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct InviteRequest {
    pub(crate) name: String,
    pub(crate) ttl_seconds: u64,
}

/// Whom the operator puts out.
#[derive(Clone, Debug, serde::Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RevokeRequest {
    pub(crate) name: String,
}

/// Serves until `stop` changes.
pub(crate) async fn serve(admin: Admin, listener: TcpListener, mut stop: watch::Receiver<bool>) {
    let admin = Arc::new(admin);
    let router = Router::new()
        .route("/ping", get(answer_ping))
        .route("/status", get(show_status))
        .route("/metrics", get(show_metrics))
        .route("/events", get(show_events))
        .route("/adapter", get(show_adapter))
        .route("/invite", post(make_invitation))
        .route("/revoke", post(make_revocation))
        .layer(from_fn_with_state(admin.clone(), only_ours))
        .layer(from_fn(only_loopback))
        .with_state(admin);
    let stopped = async move {
        // An error means that the server is gone, which is a stop as well.
        let _ = stop.wait_for(|stop| *stop).await;
    };
    let served = axum::serve(listener, router).with_graceful_shutdown(stopped);
    if let Err(error) = served.await {
        tracing::warn!(%error, "the admin endpoint ended");
    }
}

/// Tells an operator's command that this is the server it looks for.
async fn answer_ping() -> Response {
    Json("fedllm").into_response()
}

async fn show_status(State(admin): State<Arc<Admin>>) -> Response {
    match admin.host.status().await {
        Some(status) => Json(status).into_response(),
        None => failure(StatusCode::SERVICE_UNAVAILABLE, "the server is stopping"),
    }
}

async fn show_metrics(State(admin): State<Arc<Admin>>) -> Response {
    if let Some(status) = admin.host.status().await {
        let count = |state| {
            status
                .clients
                .iter()
                .filter(|client| client.state == state)
                .count()
        };
        let away = count(ClientState::Offline) + count(ClientState::Revoked);
        let connected = status.clients.len() - away;
        let training = count(ClientState::Training);
        admin
            .metrics
            .clients(status.clients.len(), connected, training);
        admin.metrics.scores(&status.scores);
    }
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], admin.metrics.text()).into_response()
}

/// `?after=N` gives what follows event N.
async fn show_events(State(admin): State<Arc<Admin>>, uri: Uri) -> Response {
    let from = match number(&uri, "after=") {
        Ok(after) => after.map_or(0, |after| after.saturating_add(1)),
        Err(reason) => return failure(StatusCode::BAD_REQUEST, &reason),
    };
    let read = tokio::task::spawn_blocking(move || admin.store.events(from, EVENTS)).await;
    match read {
        Ok(Ok(events)) => Json(events).into_response(),
        Ok(Err(error)) => failure(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        Err(_) => failure(
            StatusCode::INTERNAL_SERVER_ERROR,
            "reading the record failed",
        ),
    }
}

/// Where the adapter of `?round=N`, of `?client=NAME` in hex, or the last one, lies in the folder.
async fn show_adapter(State(admin): State<Arc<Admin>>, uri: Uri) -> Response {
    let client = match client_name(&uri) {
        Ok(client) => client,
        Err(reason) => return failure(StatusCode::BAD_REQUEST, &reason),
    };
    let round = match number(&uri, "round=") {
        Ok(round) => round,
        Err(reason) => return failure(StatusCode::BAD_REQUEST, &reason),
    };
    let read = tokio::task::spawn_blocking(move || match &client {
        Some(client) => own_adapter(&admin.store, client),
        None => stored_adapter(&admin.store, round),
    });
    match read.await {
        Ok(Ok(adapter)) => Json(adapter).into_response(),
        Ok(Err(error)) => failure(StatusCode::CONFLICT, &error.to_string()),
        Err(_) => failure(
            StatusCode::INTERNAL_SERVER_ERROR,
            "reading the record failed",
        ),
    }
}

async fn make_invitation(
    State(admin): State<Arc<Admin>>,
    headers: HeaderMap,
    Json(request): Json<InviteRequest>,
) -> Response {
    change(admin, &headers, move |admin| -> Result<Invited, _> {
        let (store, address) = (&admin.store, &admin.address);
        invite(
            store,
            admin.authority,
            address,
            &request.name,
            request.ttl_seconds,
        )
    })
    .await
}

async fn make_revocation(
    State(admin): State<Arc<Admin>>,
    headers: HeaderMap,
    Json(request): Json<RevokeRequest>,
) -> Response {
    let host = admin.host.clone();
    let revoked = change(admin, &headers, move |admin| -> Result<Revoked, _> {
        let revoked = revoke(&admin.store, &request.name)?;
        host.revoke(&revoked.clients);
        Ok(revoked)
    });
    revoked.await
}

/// Requires the secret, which [`only_ours`] has checked, and runs `work` where it may block.
async fn change<T: serde::Serialize + Send + 'static>(
    admin: Arc<Admin>,
    headers: &HeaderMap,
    work: impl FnOnce(&Admin) -> Result<T, OperatorError> + Send + 'static,
) -> Response {
    let given = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "))
        .unwrap_or_default();
    if !bool::from(given.as_bytes().ct_eq(admin.secret.as_bytes())) {
        return failure(
            StatusCode::UNAUTHORIZED,
            "the operator's secret is required",
        );
    }
    match tokio::task::spawn_blocking(move || work(&admin)).await {
        Ok(Ok(done)) => Json(done).into_response(),
        Ok(Err(error @ OperatorError::Store(_))) => {
            failure(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string())
        }
        Ok(Err(error)) => failure(StatusCode::CONFLICT, &error.to_string()),
        Err(_) => failure(StatusCode::INTERNAL_SERVER_ERROR, "the request failed"),
    }
}

/// The number behind `name` in the query, if it is there.
fn client_name(uri: &Uri) -> Result<Option<String>, String> {
    let mut query = uri.query().unwrap_or_default().split('&');
    let Some(hex) = query.find_map(|pair| pair.strip_prefix("client=")) else {
        return Ok(None);
    };
    let bytes = data_encoding::HEXLOWER.decode(hex.as_bytes());
    let name = bytes.ok().and_then(|bytes| String::from_utf8(bytes).ok());
    name.map(Some)
        .ok_or_else(|| "client= must be a name in hex".to_owned())
}

fn number(uri: &Uri, name: &str) -> Result<Option<u64>, String> {
    let mut query = uri.query().unwrap_or_default().split('&');
    let Some(text) = query.find_map(|pair| pair.strip_prefix(name)) else {
        return Ok(None);
    };
    let wrong = |_| format!("{name} must be a number");
    text.parse().map(Some).map_err(wrong)
}

/// Refuses whoever comes with another server's secret: it has taken us for that one.
async fn only_ours(State(admin): State<Arc<Admin>>, request: Request, next: Next) -> Response {
    match secret(request.headers()) {
        Some(given) if !bool::from(given.as_bytes().ct_eq(admin.secret.as_bytes())) => failure(
            StatusCode::UNAUTHORIZED,
            "this is not the operator's secret",
        ),
        _ => next.run(request).await,
    }
}

fn secret(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?;
    Some(value.to_str().ok()?.strip_prefix("Bearer ").unwrap_or(""))
}

async fn only_loopback(request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST);
    match host.and_then(|host| host.to_str().ok()) {
        Some(host) if is_loopback(host) => next.run(request).await,
        _ => failure(StatusCode::FORBIDDEN, "ask for a loopback address"),
    }
}

pub(crate) fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost"
        || name
            .parse()
            .is_ok_and(|address: IpAddr| address.is_loopback())
}

fn failure(status: StatusCode, reason: &str) -> Response {
    (status, reason.to_owned()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_names_are_served() {
        for host in [
            "127.0.0.1:7434",
            "localhost",
            "localhost:1",
            "[::1]:80",
            "[::1]",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "example.org",
            "10.0.0.1:7434",
            "localhost.evil.org",
            "127.0.0.1.nip.io:1",
            "",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
