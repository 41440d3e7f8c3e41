//! Joining: a token and a public key in, a certificate out.

use std::sync::Arc;
use std::time::Duration;

use fedllm_shared::{
    FrameDecoder, JoinGrant, JoinRefusal, JoinRequest, JoinResponse, MAX_CSR_BYTES, PROTOCOL,
};
use quinn::Connection;
use time::OffsetDateTime;
use tokio::time::timeout;
use tracing::{info, warn};

use super::Context;
use super::stream::{StreamError, read_first, write_message};
use crate::store::{EnrolledClient, TokenRefusal};

/// From the first byte to the last: joining is one request and one answer.
const LIMIT: Duration = Duration::from_secs(5);

/// Serves one joining connection to its end.
pub(crate) async fn serve(context: Arc<Context>, connection: Connection) {
    match timeout(2 * LIMIT, answer(&context, &connection)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "joining broke off"),
        Err(_) => tracing::debug!("joining took too long"),
    }
    connection.close(0u32.into(), b"done");
}

async fn answer(context: &Arc<Context>, connection: &Connection) -> Result<(), StreamError> {
    let accepted = timeout(LIMIT, connection.accept_bi()).await;
    let Ok(Ok((mut send, mut recv))) = accepted else {
        return Err(StreamError::Stalled);
    };
    let mut decoder = FrameDecoder::new();
    let request: JoinRequest = read_first(&mut recv, &mut decoder, LIMIT).await?;
    let granting = context.clone();
    let granted = tokio::task::spawn_blocking(move || grant(&granting, &request)).await;
    let response = match granted {
        Ok(Ok(grant)) => JoinResponse::Granted(grant),
        Ok(Err(reason)) => {
            warn!(from = %connection.remote_address(), %reason, "refused to enrol a client");
            JoinResponse::Refused { reason }
        }
        Err(_) => JoinResponse::Refused {
            reason: JoinRefusal::Internal,
        },
    };
    write_message(&mut send, &response).await?;
    // Either way the answer is out; the client closes when it has read it.
    let _ = send.finish();
    let _ = timeout(LIMIT, send.stopped()).await;
    Ok(())
}

fn grant(context: &Context, request: &JoinRequest) -> Result<JoinGrant, JoinRefusal> {
    if request.protocol < PROTOCOL {
        return Err(JoinRefusal::Version);
    }
    if request.csr.len() > MAX_CSR_BYTES {
        return Err(JoinRefusal::BadRequest);
    }
    let now_unix = OffsetDateTime::now_utc().unix_timestamp();
    let (id, secret) = (request.id.0, &request.secret.0);
    let internal = |error: &dyn std::fmt::Display| {
        warn!(%error, "enrolling a client failed here");
        JoinRefusal::Internal
    };
    // Looked at first, so that a stranger cannot make us sign; used up below, atomically.
    let invitation = context
        .store
        .invitation(id, secret, now_unix)
        .map_err(|error| internal(&error))?
        .map_err(refusal)?;
    let issued = context
        .authority
        .issue_client(&request.csr, &invitation.name, context.client_life)
        .map_err(|error| match error {
            crate::pki::PkiError::Request(_) | crate::pki::PkiError::KeyKind => {
                JoinRefusal::BadRequest
            }
            error => internal(&error),
        })?;
    let client = EnrolledClient {
        client: issued.client,
        name: invitation.name.clone(),
        enrolled_unix: now_unix,
        expires_unix: issued.expires_unix,
        revoked_unix: None,
    };
    context
        .store
        .enrol(id, secret, &client)
        .map_err(|error| internal(&error))?
        .map_err(refusal)?;
    info!(client = %issued.client.short(), name = client.name, "enrolled a client");
    Ok(JoinGrant {
        name: invitation.name,
        federation: context.federation.clone(),
        certificate: issued.der,
        authority: context.authority.certificate().to_vec(),
    })
}

fn refusal(refusal: TokenRefusal) -> JoinRefusal {
    match refusal {
        TokenRefusal::Unknown => JoinRefusal::Invalid,
        TokenRefusal::Expired => JoinRefusal::Expired,
        TokenRefusal::Used | TokenRefusal::NameTaken => JoinRefusal::Used,
    }
}
