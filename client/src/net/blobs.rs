//! Getting and putting blobs, each on a stream of its own.

use std::io;
use std::time::Duration;

use fedllm_shared::{
    BlobCheck, BlobRef, BlobRequest, BlobResponse, CHUNK_BYTES, CHUNK_HEADER_BYTES, ChunkHeader,
    FrameDecoder, RoundId, encode_frame, resume_offset,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::{NetError, Streams};
use crate::ledger::{Kind, Meter};

/// How long the server may take for an answer; it may have to write a blob to its disk first.
const ANSWER: Duration = Duration::from_secs(120);

/// Downloads what `received` lacks of `blob`. On an error `received` keeps the chunks that are
/// good, and a later call goes on there.
///
/// The caller has made sure that `blob.len` is a length that makes sense.
///
/// # Errors
///
/// [`NetError`]; [`is_transient`](NetError::is_transient) tells whether to try again.
pub async fn get<S: Streams>(
    streams: &S,
    blob: BlobRef,
    received: &mut Vec<u8>,
    meter: &Meter,
) -> Result<(), NetError> {
    let (mut reader, mut writer) = streams.open().await?;
    let offset = resume_offset(received.len() as u64);
    // What was received fits in memory, so its length fits.
    received.truncate(offset as usize);
    let request = BlobRequest::Get { blob, offset };
    meter.count(Kind::Request, send(&mut writer, &request).await?);
    let len = match answer(&mut reader).await? {
        BlobResponse::Have { len } => len,
        other => return Err(refusal(other)),
    };
    let expected = blob.len.saturating_sub(offset);
    if len != expected {
        return Err(NetError::Malformed(format!(
            "{len} bytes follow where {expected} are missing"
        )));
    }
    read_chunks(&mut reader, blob, received, |bytes| meter.receive(bytes)).await
}

/// Uploads `bytes`, the blob of an update that was offered; the server says where to begin.
///
/// # Errors
///
/// [`NetError`]; [`is_transient`](NetError::is_transient) tells whether to try again.
pub async fn put<S: Streams>(
    streams: &S,
    round: RoundId,
    bytes: &[u8],
    meter: &Meter,
) -> Result<(), NetError> {
    let (mut reader, mut writer) = streams.open().await?;
    let blob = BlobRef::of(bytes);
    let request = BlobRequest::Put { round, blob };
    meter.count(Kind::Delta, send(&mut writer, &request).await?);
    let offset = match answer(&mut reader).await? {
        BlobResponse::From { offset } => offset,
        BlobResponse::Stored { digest } if digest == blob.digest => return Ok(()),
        other => return Err(refusal(other)),
    };
    let rest = rest_of(bytes, offset)?;
    let written = write_chunks(&mut writer, rest, |bytes| meter.add(Kind::Delta, bytes)).await;
    // Whoever stops reading says why in an answer, which is worth more than a broken pipe.
    match (answer(&mut reader).await, written) {
        (Ok(BlobResponse::Stored { digest }), _) if digest == blob.digest => Ok(()),
        (Ok(other), _) => Err(refusal(other)),
        (Err(_), Err(error)) => Err(NetError::lost(error)),
        (Err(error), Ok(())) => Err(error),
    }
}

/// Sends one frame; returns its length.
pub(crate) async fn send(
    writer: &mut (impl AsyncWrite + Unpin),
    message: &impl Serialize,
) -> Result<u64, NetError> {
    let frame = encode_frame(message).map_err(|error| NetError::Malformed(error.to_string()))?;
    writer.write_all(&frame).await.map_err(NetError::lost)?;
    writer.flush().await.map_err(NetError::lost)?;
    Ok(frame.len() as u64)
}

/// Receives one frame and reads no byte beyond it.
pub(crate) async fn receive<M: Serialize + DeserializeOwned>(
    reader: &mut (impl AsyncRead + Unpin),
) -> Result<M, NetError> {
    let mut decoder = FrameDecoder::new();
    let malformed = |error: fedllm_shared::WireError| NetError::Malformed(error.to_string());
    loop {
        if let Some(message) = decoder.next().map_err(malformed)? {
            return Ok(message);
        }
        // At most one frame, which is bounded.
        let mut bytes = vec![0; decoder.missing().map_err(malformed)?];
        reader
            .read_exact(&mut bytes)
            .await
            .map_err(NetError::lost)?;
        decoder.push(&bytes);
    }
}

/// Sends `bytes` in chunks and ends the stream; tells how many bytes went out each time.
pub(crate) async fn write_chunks(
    writer: &mut (impl AsyncWrite + Unpin),
    bytes: &[u8],
    mut on_bytes: impl FnMut(u64),
) -> io::Result<()> {
    for chunk in bytes.chunks(CHUNK_BYTES) {
        writer.write_all(&ChunkHeader::of(chunk).encode()).await?;
        writer.write_all(chunk).await?;
        on_bytes((CHUNK_HEADER_BYTES + chunk.len()) as u64);
    }
    writer.shutdown().await
}

/// Receives the chunks that `received` lacks of `blob`, and checks the whole.
pub(crate) async fn read_chunks(
    reader: &mut (impl AsyncRead + Unpin),
    blob: BlobRef,
    received: &mut Vec<u8>,
    mut on_bytes: impl FnMut(u64),
) -> Result<(), NetError> {
    let mut check = BlobCheck::new(blob);
    check.update(received)?;
    while check.missing() > 0 {
        let good = received.len();
        if let Err(error) = read_chunk(reader, &mut check, received).await {
            received.truncate(good);
            return Err(error);
        }
        on_bytes((received.len() - good) as u64);
    }
    check.finish().inspect_err(|_| received.clear())?;
    Ok(())
}

async fn read_chunk(
    reader: &mut (impl AsyncRead + Unpin),
    check: &mut BlobCheck,
    received: &mut Vec<u8>,
) -> Result<(), NetError> {
    let mut header = [0; CHUNK_HEADER_BYTES];
    reader
        .read_exact(&mut header)
        .await
        .map_err(NetError::lost)?;
    let header = ChunkHeader::decode(&header, check.missing())?;
    let good = received.len();
    // A chunk has at most 1 MiB.
    received.resize(good + header.len, 0);
    let chunk = &mut received[good..];
    reader.read_exact(chunk).await.map_err(NetError::lost)?;
    header.check(chunk)?;
    check.update(chunk)?;
    Ok(())
}

async fn answer(reader: &mut (impl AsyncRead + Unpin)) -> Result<BlobResponse, NetError> {
    timeout(ANSWER, receive(reader))
        .await
        .unwrap_or_else(|_| Err(NetError::Lost("the server does not answer".to_owned())))
}

fn refusal(response: BlobResponse) -> NetError {
    match response {
        BlobResponse::Refused { reason } => NetError::Refused(reason),
        other => NetError::Malformed(format!("{other:?} answers another request")),
    }
}

/// What follows `offset`, which must be where a chunk begins, or the end.
fn rest_of(bytes: &[u8], offset: u64) -> Result<&[u8], NetError> {
    usize::try_from(offset)
        .ok()
        .filter(|_| offset == resume_offset(offset) || offset == bytes.len() as u64)
        .and_then(|offset| bytes.get(offset..))
        .ok_or_else(|| NetError::Malformed(format!("the server wants to go on at byte {offset}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use fedllm_shared::Digest;

    fn bytes(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 31 % 251) as u8).collect()
    }

    async fn encode(bytes: &[u8]) -> Vec<u8> {
        let mut stream = Vec::new();
        write_chunks(&mut stream, bytes, |_| {}).await.unwrap();
        stream
    }

    #[tokio::test]
    async fn any_length_and_any_offset_comes_through() {
        for len in [
            0,
            1,
            CHUNK_BYTES - 1,
            CHUNK_BYTES,
            CHUNK_BYTES + 1,
            3 * CHUNK_BYTES + 7,
        ] {
            let bytes = bytes(len);
            for offset in [
                0,
                resume_offset(len as u64 / 2),
                resume_offset(len as u64),
                len as u64,
            ] {
                let rest = rest_of(&bytes, offset).unwrap();
                let stream = encode(rest).await;
                let mut received = bytes[..offset as usize].to_vec();
                let mut counted = 0;
                let blob = BlobRef::of(&bytes);
                read_chunks(&mut stream.as_slice(), blob, &mut received, |n| {
                    counted += n
                })
                .await
                .unwrap();
                assert_eq!(received, bytes);
                assert_eq!(counted, rest.len() as u64);
            }
        }
        assert!(rest_of(&bytes(10), 11).is_err());
        assert!(rest_of(&bytes(10), 5).is_err());
    }

    #[tokio::test]
    async fn a_cut_keeps_the_good_chunks() {
        let bytes = bytes(2 * CHUNK_BYTES + 5);
        let blob = BlobRef::of(&bytes);
        let stream = encode(&bytes).await;
        let mut received = Vec::new();
        let mut cut = &stream[..stream.len() - 3];
        let error = read_chunks(&mut cut, blob, &mut received, |_| {})
            .await
            .unwrap_err();
        assert!(error.is_transient(), "{error}");
        assert_eq!(received, bytes[..2 * CHUNK_BYTES]);
        let rest = encode(&bytes[received.len()..]).await;
        read_chunks(&mut rest.as_slice(), blob, &mut received, |_| {})
            .await
            .unwrap();
        assert_eq!(received, bytes);
    }

    #[tokio::test]
    async fn a_flipped_bit_or_another_blob_is_found() {
        let bytes = bytes(1000);
        let blob = BlobRef::of(&bytes);
        let stream = encode(&bytes).await;
        for position in [0, 1, 3, 4, 20, 36, 500, 1035] {
            let mut bad = stream.clone();
            bad[position] ^= 1;
            let mut received = Vec::new();
            let result = read_chunks(&mut bad.as_slice(), blob, &mut received, |_| {}).await;
            assert!(result.is_err(), "bit in byte {position}");
            assert!(received.is_empty());
        }
        let other = BlobRef {
            digest: Digest::of(b"other"),
            len: 1000,
        };
        let mut received = Vec::new();
        let result = read_chunks(&mut stream.as_slice(), other, &mut received, |_| {}).await;
        assert!(matches!(result, Err(NetError::Blob(_))));
        assert!(received.is_empty());
    }
}
