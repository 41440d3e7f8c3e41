//! Blob streams: adapters out, updates in.
//!
//! Bytes move only after the host has agreed: a client gets the adapter of its task and puts the
//! update it has offered, nothing else. An upload holds a permit, is written chunk by chunk as it
//! comes, and is checked as a whole before anybody counts it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fedllm_shared::{
    BlobRef, BlobRefusal, BlobRequest, BlobResponse, CHUNK_BYTES, CHUNK_HEADER_BYTES, ChunkHeader,
    ClientId, FrameDecoder, RefuseReason, RoundId,
};
use quinn::{RecvStream, SendStream};
use thiserror::Error;
use tracing::{debug, warn};

use super::Context;
use super::stream::{StreamError, read_exact, read_first, write_all, write_message};
use crate::aggregate::{Expected, check_update};
use crate::host::{Stored, Traffic};
use crate::store::{PartialBlob, StoreError};

const FIRST_FRAME: Duration = Duration::from_secs(5);

/// Why a transfer failed.
#[derive(Debug, Error)]
enum TransferError {
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("refused: {0}")]
    Refused(#[from] BlobRefusal),
}

/// Serves one blob stream to its end.
pub(crate) async fn serve(
    context: Arc<Context>,
    client: ClientId,
    traffic: Arc<Traffic>,
    mut send: SendStream,
    mut recv: RecvStream,
) {
    let mut decoder = FrameDecoder::new();
    let request = match read_first(&mut recv, &mut decoder, FIRST_FRAME).await {
        Ok(request) => request,
        Err(error) => return debug!(%error, "a blob stream without a request"),
    };
    let done = match request {
        BlobRequest::Get { blob, offset } => {
            get(&context, client, &traffic, &mut send, blob, offset).await
        }
        BlobRequest::Put { round, blob } => {
            put(
                &context, client, &traffic, &mut send, &mut recv, round, blob,
            )
            .await
        }
    };
    let refusal = match done {
        Ok(()) => None,
        Err(TransferError::Refused(reason)) => Some(reason),
        Err(TransferError::Stream(error)) => return debug!(%error, "a transfer broke off"),
        Err(TransferError::Store(error)) => Some(store_refusal(&context, &error).await),
    };
    if let Some(reason) = refusal {
        debug!(%reason, "refused a transfer");
        // A peer that is gone needs no answer.
        let _ = write_message(&mut send, &BlobResponse::Refused { reason }).await;
    }
    // The stream may be closed already; then there is nothing to finish.
    let _ = send.finish();
}

async fn get(
    context: &Context,
    client: ClientId,
    traffic: &Traffic,
    send: &mut SendStream,
    blob: BlobRef,
    offset: u64,
) -> Result<(), TransferError> {
    context.host.may_get(client, blob).await?;
    if !offset.is_multiple_of(CHUNK_BYTES as u64) || offset > blob.len {
        return Err(BlobRefusal::BadOffset.into());
    }
    let permit = context.downloads.clone().try_acquire_owned();
    let _permit = permit.map_err(|_| BlobRefusal::Busy)?;
    let blobs = context.blobs.clone();
    let mut file = blocking(move || blobs.read(&blob)).await?;
    let len = blob.len - offset;
    write_message(send, &BlobResponse::Have { len }).await?;
    let mut at = offset;
    while at < blob.len {
        let len = (blob.len - at).min(CHUNK_BYTES as u64) as usize;
        let (chunk, returned) = blocking(move || read_chunk(file, at, len)).await?;
        file = returned;
        write_all(send, &ChunkHeader::of(&chunk).encode()).await?;
        write_all(send, &chunk).await?;
        traffic.sent.fetch_add(len as u64, Ordering::Relaxed);
        context.metrics.bytes_sent(len as u64);
        at += len as u64;
    }
    Ok(())
}

async fn put(
    context: &Arc<Context>,
    client: ClientId,
    traffic: &Traffic,
    send: &mut SendStream,
    recv: &mut RecvStream,
    round: RoundId,
    blob: BlobRef,
) -> Result<(), TransferError> {
    let expected = context.host.may_put(client, round, blob).await?;
    // One upload at a time for a client, so many for the server.
    let mine = traffic.upload.clone().try_acquire_owned();
    let _mine = mine.map_err(|_| BlobRefusal::Busy)?;
    let permit = context.uploads.clone().try_acquire_owned();
    let _permit = permit.map_err(|_| BlobRefusal::Busy)?;
    let blobs = context.blobs.clone();
    let mut partial = blocking(move || blobs.resume(client, blob)).await?;
    let offset = partial.offset();
    write_message(send, &BlobResponse::From { offset }).await?;
    while partial.missing() > 0 {
        partial = receive_chunk(context, traffic, recv, partial).await?;
    }
    let checked = context.clone();
    let verdict = blocking(move || seal(&checked, partial, blob, &expected)).await?;
    match verdict {
        Ok(norm) => {
            let stored = Stored {
                client,
                round,
                blob,
                norm,
            };
            context.host.stored(stored).await?;
            let digest = blob.digest;
            write_message(send, &BlobResponse::Stored { digest }).await?;
            Ok(())
        }
        Err(reason) => {
            warn!(client = %client.short(), round = round.0, %reason, "refused an update");
            context.host.rejected(client, round, blob, reason).await;
            Err(BlobRefusal::Invalid.into())
        }
    }
}

async fn receive_chunk(
    context: &Context,
    traffic: &Traffic,
    recv: &mut RecvStream,
    mut partial: PartialBlob,
) -> Result<PartialBlob, TransferError> {
    let mut header = [0; CHUNK_HEADER_BYTES];
    read_exact(recv, &mut header).await?;
    let corrupt = |_| BlobRefusal::Corrupt;
    let header = ChunkHeader::decode(&header, partial.missing()).map_err(corrupt)?;
    let mut chunk = vec![0; header.len];
    read_exact(recv, &mut chunk).await?;
    header.check(&chunk).map_err(corrupt)?;
    traffic
        .received
        .fetch_add(header.len as u64, Ordering::Relaxed);
    context.metrics.bytes_received(header.len as u64);
    let partial = blocking(move || partial.write(&chunk).map(|()| partial)).await?;
    Ok(partial)
}

/// Makes the blob durable and looks at every value in it, before anybody counts it.
fn seal(
    context: &Context,
    partial: PartialBlob,
    blob: BlobRef,
    expected: &Expected,
) -> Result<Result<f64, RefuseReason>, StoreError> {
    partial.seal()?;
    let file = context.blobs.read(&blob)?;
    Ok(check_update(file, expected))
}

fn read_chunk(mut file: File, at: u64, len: usize) -> Result<(Vec<u8>, File), StoreError> {
    let mut chunk = vec![0; len];
    let read = file
        .seek(SeekFrom::Start(at))
        .and_then(|_| file.read_exact(&mut chunk));
    read.map_err(|source| StoreError::File {
        path: "a blob".into(),
        source,
    })?;
    Ok((chunk, file))
}

/// What a client is told of trouble with our disk, and what becomes of us.
async fn store_refusal(context: &Context, error: &StoreError) -> BlobRefusal {
    match error {
        StoreError::Blob(_) => BlobRefusal::Corrupt,
        StoreError::Sync { .. } => {
            context.host.fail(error.to_string()).await;
            BlobRefusal::Internal
        }
        error if error.is_full() => {
            warn!(%error, "an upload was put off");
            BlobRefusal::Busy
        }
        error => {
            warn!(%error, "a transfer failed here");
            BlobRefusal::Internal
        }
    }
}

/// Runs file work where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, TransferError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(done?),
        // The work panicked or the runtime is shutting down.
        Err(_) => Err(BlobRefusal::Internal.into()),
    }
}
