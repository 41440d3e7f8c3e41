//! Connections: so many at once, and none that only takes up room.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};

/// Takes connections while there is room for them.
pub(super) struct Connections {
    listener: TcpListener,
    room: Arc<Semaphore>,
    idle: Duration,
}

impl Connections {
    pub(super) fn new(listener: TcpListener, most: usize, idle: Duration) -> Self {
        let room = Arc::new(Semaphore::new(most));
        Self {
            listener,
            room,
            idle,
        }
    }
}

impl Listener for Connections {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        // Nobody closes the semaphore, so a permit always comes.
        let permit = self.room.clone().acquire_owned().await.ok();
        let (stream, address) = Listener::accept(&mut self.listener).await;
        let connection = Connection {
            stream,
            idle: self.idle,
            activity: Activity::default(),
            asked: 0,
            unasked: None,
            untaken: None,
            _permit: permit,
        };
        (connection, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that ends when no request comes, or an answer is not taken, for the idle time.
pub(super) struct Connection {
    stream: TcpStream,
    idle: Duration,
    activity: Activity,
    /// Requests when the wait for another began.
    asked: u64,
    /// The end of the wait for a request. Its parts do not prolong it, however they trickle in.
    unasked: Option<Pin<Box<Sleep>>>,
    /// The end of the wait for the client to take what is written.
    untaken: Option<Pin<Box<Sleep>>>,
    _permit: Option<OwnedSemaphorePermit>,
}

/// What the requests of one connection tell it.
#[derive(Clone, Debug, Default)]
pub(super) struct Activity(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    asked: AtomicU64,
    open: AtomicUsize,
}

/// A request that is being answered, until it is dropped.
pub(super) struct Open(Arc<Counts>);

impl Activity {
    pub(super) fn open(&self) -> Open {
        self.0.asked.fetch_add(1, Ordering::Relaxed);
        self.0.open.fetch_add(1, Ordering::Relaxed);
        Open(self.0.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connected<IncomingStream<'_, Connections>> for Activity {
    fn connect_info(stream: IncomingStream<'_, Connections>) -> Self {
        stream.io().activity.clone()
    }
}

impl Connection {
    /// Whether the wait for a request has lasted too long.
    fn is_idle(&mut self, context: &mut Context<'_>) -> bool {
        let counts = &self.activity.0;
        let asked = counts.asked.load(Ordering::Relaxed);
        if counts.open.load(Ordering::Relaxed) > 0 || asked != self.asked {
            (self.asked, self.unasked) = (asked, None);
        }
        if counts.open.load(Ordering::Relaxed) > 0 {
            return false;
        }
        is_over(&mut self.unasked, self.idle, context)
    }

    /// What a write came to; none may wait for longer than the idle time.
    fn written<T>(
        &mut self,
        written: Poll<io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.untaken = None;
            return written;
        }
        match is_over(&mut self.untaken, self.idle, context) {
            true => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            false => Poll::Pending,
        }
    }
}

/// Whether a wait that begins now, unless it has begun, is over.
fn is_over(wait: &mut Option<Pin<Box<Sleep>>>, time: Duration, context: &mut Context<'_>) -> bool {
    let wait = wait.get_or_insert_with(|| Box::pin(sleep(time)));
    wait.as_mut().poll(context).is_ready()
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_idle(context) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.written(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.written(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
