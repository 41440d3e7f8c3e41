//! A client's connection: its control stream, and a task for each blob stream.

use std::sync::Arc;
use std::time::Duration;

use fedllm_shared::{ClientId, ClientMessage, ErrorCode, FrameDecoder, Hello, ServerMessage};
use quinn::{Connection, RecvStream, SendStream, VarInt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{Instrument, debug, info, info_span};

use super::Context;
use super::blob;
use super::stream::{StreamError, read_first, read_message, write_message};
use crate::host::{Outgoing, Session, Traffic};

const FIRST_FRAME: Duration = Duration::from_secs(5);
/// How long a last message may take to arrive before the connection is cut.
const FAREWELL: Duration = Duration::from_secs(2);
/// Messages that wait for a slow reader; one that lets more pile up is cut off.
const OUTBOX: usize = 64;

/// Serves a client's connection to its end.
pub(crate) async fn serve(context: Arc<Context>, connection: Connection, client: ClientId) {
    let span = info_span!("client", id = client.short());
    let from = connection.remote_address();
    async {
        info!(%from, "connected");
        match converse(&context, &connection, client).await {
            End::Gone => {
                connection.close(VarInt::from_u32(0), b"goodbye");
                info!("gone");
            }
            End::Closed(code) => {
                connection.close(close_code(code), code.to_string().as_bytes());
                info!(reason = %code, "closed");
            }
        }
    }
    .instrument(span)
    .await;
}

/// How a conversation ended.
enum End {
    /// The client left, or the network did.
    Gone,
    /// We ended it, for this reason.
    Closed(ErrorCode),
}

/// The code with which a connection is closed for this reason.
pub(crate) fn close_code(code: ErrorCode) -> VarInt {
    VarInt::from_u32(code as u32 + 1)
}

async fn converse(context: &Arc<Context>, connection: &Connection, client: ClientId) -> End {
    let (mut send, mut recv, mut decoder, hello) = match open(connection).await {
        Ok(opened) => opened,
        Err(error) => {
            debug!(%error, "no conversation began");
            return End::Closed(ErrorCode::Protocol);
        }
    };
    let (outbox, mut queue) = mpsc::channel(OUTBOX);
    let traffic = Arc::new(Traffic::default());
    let session = match context
        .host
        .connect(client, hello, outbox, traffic.clone())
        .await
    {
        Ok(session) => session,
        Err(code) => {
            let message = code.to_string();
            farewell(&mut send, ServerMessage::Error { code, message }).await;
            return End::Closed(code);
        }
    };
    let end = tokio::select! {
        end = listen(context, session, &mut recv, &mut decoder) => end,
        end = speak(&mut queue, &mut send) => end,
        end = transfers(context, connection, client, &traffic) => end,
    };
    context.host.disconnect(session).await;
    if let End::Closed(code) = end {
        let message = code.to_string();
        farewell(&mut send, ServerMessage::Error { code, message }).await;
    }
    end
}

type Opened = (SendStream, RecvStream, FrameDecoder<ClientMessage>, Hello);

async fn open(connection: &Connection) -> Result<Opened, StreamError> {
    let accepted = timeout(FIRST_FRAME, connection.accept_bi()).await;
    let Ok(Ok((send, mut recv))) = accepted else {
        return Err(StreamError::Stalled);
    };
    let mut decoder = FrameDecoder::new();
    match read_first(&mut recv, &mut decoder, FIRST_FRAME).await? {
        ClientMessage::Hello(hello) => Ok((send, recv, decoder, hello)),
        _ => Err(StreamError::Ended),
    }
}

/// Passes what the client says to the host.
async fn listen(
    context: &Context,
    session: Session,
    recv: &mut RecvStream,
    decoder: &mut FrameDecoder<ClientMessage>,
) -> End {
    loop {
        match read_message(recv, decoder).await {
            // The client has ended its side: it is leaving.
            Ok(None) => return End::Gone,
            Ok(Some(ClientMessage::Hello(_))) => return End::Closed(ErrorCode::Protocol),
            Ok(Some(message)) => context.host.message(session, message).await,
            Err(StreamError::Wire(error)) => {
                info!(%error, "the client broke the protocol");
                context.metrics.protocol_violation();
                return End::Closed(ErrorCode::Protocol);
            }
            Err(error) => {
                debug!(%error, "the control stream ended");
                return End::Gone;
            }
        }
    }
}

/// Passes what the host says to the client.
async fn speak(queue: &mut mpsc::Receiver<Outgoing>, send: &mut SendStream) -> End {
    loop {
        match queue.recv().await {
            Some(Outgoing::Message(message)) => {
                if let Err(error) = write_message(send, &*message).await {
                    debug!(%error, "the client does not listen");
                    return End::Gone;
                }
            }
            Some(Outgoing::Close(code)) => return End::Closed(code),
            // The host has let go of a client that does not keep up.
            None => return End::Closed(ErrorCode::Busy),
        }
    }
}

/// Serves blob streams; QUIC bounds how many there are.
async fn transfers(
    context: &Arc<Context>,
    connection: &Connection,
    client: ClientId,
    traffic: &Arc<Traffic>,
) -> End {
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            accepted = connection.accept_bi() => match accepted {
                Ok((send, recv)) => {
                    let (context, traffic) = (context.clone(), traffic.clone());
                    let task = blob::serve(context, client, traffic, send, recv);
                    tasks.spawn(task.in_current_span());
                }
                Err(error) => {
                    debug!(%error, "the connection ended");
                    return End::Gone;
                }
            },
            Some(_) = tasks.join_next() => {}
        }
    }
}

/// Sends a last message and waits a moment for it to arrive.
async fn farewell(send: &mut SendStream, message: ServerMessage) {
    let told = async {
        write_message(send, &message).await.ok()?;
        send.finish().ok()?;
        send.stopped().await.ok()
    };
    // A peer that is gone or does not read is cut off all the same.
    let _ = timeout(FAREWELL, told).await;
}
