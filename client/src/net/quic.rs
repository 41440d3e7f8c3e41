//! A connection over QUIC, set as a client behind a home router needs it.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use fedllm_shared::{ClientMessage, FrameDecoder, ServerMessage};
use quinn::congestion::{BbrConfig, CubicConfig};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{
    ClientConfig, Connection, Endpoint, EndpointConfig, IdleTimeout, RecvStream, SendStream,
    TransportConfig, VarInt,
};
use tokio::time::timeout;

use super::{Dial, NetError, Streams, Transport, blobs, tls};
use crate::state::Membership;

/// How long one address may take to answer.
const HANDSHAKE: Duration = Duration::from_secs(8);
/// How long the server may leave a control message unread.
const SEND: Duration = Duration::from_secs(30);
/// How long a goodbye may take.
const GOODBYE: Duration = Duration::from_secs(1);
const MIB: u32 = 1 << 20;

/// How fast to send when packets are lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Congestion {
    /// Slows down at every loss: fair, and slow on a bad radio link (RFC 9438).
    #[default]
    Cubic,
    /// Paces by measured bandwidth: fast on a bad radio link, unfair to others on a narrow one.
    Bbr,
}

/// How to connect.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct DialOptions {
    /// The congestion control of uploads.
    pub congestion: Congestion,
    /// Hand packets to the system one by one. Some drivers lose them otherwise.
    pub no_segmentation_offload: bool,
}

impl DialOptions {
    /// The given congestion control, and everything else as usual.
    pub fn new(congestion: Congestion) -> Self {
        Self {
            congestion,
            ..Self::default()
        }
    }
}

/// Connects to a federation's server as one of its clients.
#[derive(Debug)]
pub struct QuicDialer {
    server: String,
    config: ClientConfig,
}

impl QuicDialer {
    /// Prepares to connect as `membership` says.
    ///
    /// # Errors
    ///
    /// [`NetError::Tls`] if key or certificate cannot be used.
    pub fn new(membership: &Membership, options: DialOptions) -> Result<Self, NetError> {
        let tls = tls::member(membership).map_err(|error| NetError::Tls(error.to_string()))?;
        Ok(Self {
            server: membership.server.clone(),
            config: client_config(tls, options)?,
        })
    }
}

impl Dial for QuicDialer {
    type Transport = QuicTransport;

    async fn dial(&mut self) -> Result<QuicTransport, NetError> {
        let (endpoint, connection) = connect(&self.server, &self.config).await?;
        let (sender, receiver) = connection.open_bi().await?;
        Ok(QuicTransport {
            endpoint,
            connection,
            sender,
            receiver,
            decoder: FrameDecoder::new(),
        })
    }
}

/// A connection to a server: the control stream, and streams for blobs.
#[derive(Debug)]
pub struct QuicTransport {
    endpoint: Endpoint,
    connection: Connection,
    sender: SendStream,
    receiver: RecvStream,
    decoder: FrameDecoder<ServerMessage>,
}

/// Opens blob streams on a [`QuicTransport`]'s connection.
#[derive(Clone, Debug)]
pub struct QuicStreams(Connection);

impl Transport for QuicTransport {
    type Streams = QuicStreams;

    async fn send(&mut self, message: &ClientMessage) -> Result<u64, NetError> {
        timeout(SEND, blobs::send(&mut self.sender, message))
            .await
            .unwrap_or_else(|_| Err(NetError::Lost("the server does not listen".to_owned())))
    }

    async fn receive(&mut self) -> Result<ServerMessage, NetError> {
        loop {
            let message = self.decoder.next();
            if let Some(message) = message.map_err(|e| NetError::Malformed(e.to_string()))? {
                return Ok(message);
            }
            match self.receiver.read_chunk(64 * 1024, true).await? {
                Some(chunk) => self.decoder.push(&chunk.bytes),
                None => {
                    return Err(NetError::Lost(
                        "the server ended the conversation".to_owned(),
                    ));
                }
            }
        }
    }

    fn streams(&self) -> QuicStreams {
        QuicStreams(self.connection.clone())
    }

    async fn close(mut self) {
        if self.sender.finish().is_ok() {
            // Whether or not the server confirms, we go.
            let _ = timeout(GOODBYE, self.sender.stopped()).await;
        }
        hang_up(&self.endpoint, &self.connection).await;
    }
}

impl Streams for QuicStreams {
    type Reader = RecvStream;
    type Writer = SendStream;

    async fn open(&self) -> Result<(RecvStream, SendStream), NetError> {
        let (sender, receiver) = self.0.open_bi().await?;
        Ok((receiver, sender))
    }
}

/// Connects to the first of the server's addresses that answers.
pub(super) async fn connect(
    server: &str,
    config: &ClientConfig,
) -> Result<(Endpoint, Connection), NetError> {
    let resolved = tokio::net::lookup_host(server).await;
    let address = |reason: String| NetError::Address {
        address: server.to_owned(),
        reason,
    };
    let addresses: Vec<_> = resolved
        .map_err(|error| address(error.to_string()))?
        .collect();
    let mut last = address("it has no address".to_owned());
    for address in addresses {
        match try_connect(server, address, config).await {
            Err(error) if error.is_transient() => last = error,
            other => return other,
        }
    }
    Err(last)
}

/// Closes the connection and waits a moment for the server to hear it.
pub(super) async fn hang_up(endpoint: &Endpoint, connection: &Connection) {
    connection.close(VarInt::from_u32(0), b"goodbye");
    let _ = timeout(GOODBYE, endpoint.wait_idle()).await;
}

/// What QUIC needs beside TLS.
pub(super) fn client_config(
    tls: QuicClientConfig,
    options: DialOptions,
) -> Result<ClientConfig, NetError> {
    let idle = IdleTimeout::try_from(Duration::from_secs(60))
        .map_err(|error| NetError::Tls(error.to_string()))?;
    let mut transport = TransportConfig::default();
    transport
        // Home routers forget a silent connection after 20 to 30 s.
        .keep_alive_interval(Some(Duration::from_secs(15)))
        .max_idle_timeout(Some(idle))
        .max_concurrent_bidi_streams(VarInt::from_u32(4))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        // 8 MiB are 670 Mbit/s over 100 ms.
        .stream_receive_window(VarInt::from_u32(8 * MIB))
        .receive_window(VarInt::from_u32(16 * MIB))
        .send_window(u64::from(4 * MIB))
        .datagram_receive_buffer_size(None)
        .enable_segmentation_offload(!options.no_segmentation_offload);
    match options.congestion {
        Congestion::Cubic => {
            transport.congestion_controller_factory(Arc::new(CubicConfig::default()))
        }
        Congestion::Bbr => transport.congestion_controller_factory(Arc::new(BbrConfig::default())),
    };
    let mut config = ClientConfig::new(Arc::new(tls));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

async fn try_connect(
    server: &str,
    address: SocketAddr,
    config: &ClientConfig,
) -> Result<(Endpoint, Connection), NetError> {
    let unreachable = |reason: String| NetError::Unreachable {
        address: server.to_owned(),
        reason,
    };
    let endpoint = bind(address).map_err(|error| unreachable(error.to_string()))?;
    let connecting = endpoint
        .connect_with(config.clone(), address, tls::SERVER_NAME)
        .map_err(|error| unreachable(error.to_string()))?;
    match timeout(HANDSHAKE, connecting).await {
        Ok(Ok(connection)) => Ok((endpoint, connection)),
        Ok(Err(error)) => Err(match NetError::from(error) {
            NetError::Lost(reason) => unreachable(reason),
            other => other,
        }),
        Err(_) => Err(unreachable(format!(
            "no answer within {} s",
            HANDSHAKE.as_secs()
        ))),
    }
}

/// A socket of the right family.
fn bind(peer: SocketAddr) -> std::io::Result<Endpoint> {
    let local = match peer {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(local)?;
    enlarge_buffers(&socket);
    let runtime = quinn::default_runtime()
        .ok_or_else(|| std::io::Error::other("not within an asynchronous runtime"))?;
    Endpoint::new(EndpointConfig::default(), None, socket, runtime)
}

/// Asks for room for bursts, which the usual 208 KiB lose; the system may grant less, which only costs speed.
fn enlarge_buffers(socket: &UdpSocket) {
    let Ok(state) = quinn::udp::UdpSocketState::new(socket.into()) else {
        return;
    };
    let bytes = 2 * MIB as usize;
    let receive = state.set_recv_buffer_size(socket.into(), bytes);
    if let Err(error) = receive.and(state.set_send_buffer_size(socket.into(), bytes)) {
        tracing::debug!(%error, "socket buffers stay at the system's default");
    }
}

#[cfg(test)]
#[path = "quic_tests.rs"]
mod tests;
