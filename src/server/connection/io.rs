//! The client's socket: shared with the one who watches for its end, and cut when the client takes nothing.

use std::fmt;
use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::socket::Socket;
use crate::context::Connection;
use crate::error::Reason;

/// A client's socket whose writes fail with `TimedOut` once the client has taken nothing for the stall time.
///
/// The kernel refuses bytes as soon as `TCP_NOTSENT_LOWAT` bytes wait unsent, so refusal means that the client's
/// window is closed, not that some buffer is full.
#[derive(Debug)]
pub(super) struct GuardedIo {
    socket: Arc<Socket>,
    connection: Arc<Connection>,
    /// Since when the socket refuses bytes, with the timer that ends it.
    blocked: Option<Pin<Box<Sleep>>>,
    /// Bytes to ask for next: a head's worth, and more while an upload fills what is asked for.
    read_size: usize,
    /// What was read to find out what the client speaks; it comes before what the socket has.
    ahead: Bytes,
    linger: Option<Linger>,
}

const FIRST_READ: usize = 2 * 1024;
const LARGEST_READ: usize = 64 * 1024;

impl GuardedIo {
    /// `ahead` was read from the socket already, and is what the reader gets first.
    pub(super) fn new(socket: Arc<Socket>, connection: Arc<Connection>, ahead: Bytes) -> Self {
        Self { socket, connection, blocked: None, read_size: FIRST_READ, ahead, linger: None }
    }

    fn read_ahead(&mut self, buf: &mut ReadBuf<'_>) {
        if self.connection.active() == 0 {
            self.connection.head_begins();
        }
        let taken = self.ahead.len().min(buf.remaining());
        self.connection.count_in(taken);
        buf.put_slice(&self.ahead.split_to(taken));
        if self.ahead.is_empty() {
            self.ahead = Bytes::new();
        }
    }

    fn poll_write_with(
        &mut self,
        cx: &mut Context<'_>,
        mut write: impl FnMut(&Socket) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            match self.socket.poll_write_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return self.poll_stall(cx),
            }
            match write(&self.socket) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => {
                    if self.blocked.take().is_some() {
                        self.connection.writes_flow();
                    }
                    if let Ok(written) = result {
                        self.connection.count_out(written);
                    }
                    return Poll::Ready(result);
                }
            }
        }
    }

    fn poll_stall(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let connection = &self.connection;
        let timer = self.blocked.get_or_insert_with(|| {
            let now = Instant::now();
            connection.writes_block(now);
            Box::pin(tokio::time::sleep_until(now + connection.stall_timeout()))
        });
        ready!(timer.as_mut().poll(cx));
        connection.mark_cut(Reason::ClientStalled);
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for GuardedIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            self.read_ahead(buf);
            return Poll::Ready(Ok(()));
        }
        loop {
            ready!(self.socket.poll_read_ready(cx))?;
            // Clearing costs, so no more is cleared than is likely to be filled.
            let size = buf.remaining().min(self.read_size);
            match self.socket.read_some(buf.initialize_unfilled_to(size)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(read) => {
                    if read > 0 && self.connection.active() == 0 {
                        self.connection.head_begins();
                    }
                    self.connection.count_in(read);
                    buf.advance(read);
                    self.read_size = if read == size { LARGEST_READ.min(2 * size.max(FIRST_READ)) } else { FIRST_READ };
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl AsyncWrite for GuardedIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write_with(cx, |socket| socket.try_write(buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write_with(cx, |socket| socket.try_write_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.linger.is_none() {
            this.socket.finish().or_else(
                // The peer may have gone first; then there is nothing left to say.
                |error| if error.kind() == io::ErrorKind::NotConnected { Ok(()) } else { Err(error) },
            )?;
        }
        if this.connection.is_tunnel() { Poll::Ready(Ok(())) } else { this.poll_linger(cx).map(Ok) }
    }
}

/// Closing a socket that holds unread bytes resets the connection, and the client loses the answer it was about to
/// read. So after the last byte what the client still sends is read and thrown away, until it closes, for a short time.
struct Linger {
    until: Pin<Box<Sleep>>,
    bytes_left: usize,
}

const LINGER_TIME: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 16 << 20;
/// Reads in a row before others get their turn.
const LINGER_TURNS: usize = 64;

impl GuardedIo {
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let linger = self.linger.get_or_insert_with(|| Linger {
            until: Box::pin(tokio::time::sleep(LINGER_TIME)),
            bytes_left: LINGER_BYTES,
        });
        let mut waste = [0; 4 * 1024];
        for turn in 0.. {
            if turn == LINGER_TURNS {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if linger.bytes_left == 0 {
                break;
            }
            match self.socket.try_read(&mut waste) {
                Ok(read) if read > 0 => linger.bytes_left = linger.bytes_left.saturating_sub(read),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.socket.poll_read_ready(cx).is_pending() {
                        return linger.until.as_mut().poll(cx);
                    }
                }
                Ok(_) | Err(_) => break,
            }
        }
        Poll::Ready(())
    }
}

impl fmt::Debug for Linger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Linger").field("bytes_left", &self.bytes_left).finish_non_exhaustive()
    }
}

/// Waits until the client has closed its side or the connection is lost, also while bytes of it lie unread.
///
/// tokio counts a hang-up as readiness of every interest and `PRIORITY` is never ready otherwise, so this costs
/// nothing while the client lives. hyper alone does not notice as long as a request's body is unread.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(super) async fn gone(socket: &Socket) {
    while let Ok(ready) = socket.ready(Interest::PRIORITY).await {
        if ready.is_read_closed() || ready.is_write_closed() || ready.is_error() {
            return;
        }
        // Urgent data, which nobody speaks in HTTP: look again without spinning.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// The same where the system has no such interest: a look each second.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(super) async fn gone(socket: &Socket) {
    while let Ok(ready) = socket.ready(Interest::READABLE).await {
        if ready.is_read_closed() {
            return;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Waits until nobody can be answered any more: a client that has closed its sending half only is still there.
pub(super) async fn lost(socket: &Socket) {
    while let Ok(ready) = socket.ready(Interest::ERROR).await {
        if ready.is_write_closed() || ready.is_error() {
            return;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
