//! The gate on a client's byte stream, between its socket and hyper.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::gate::{Gate, Step};
use super::{Bounds, Violation};
use crate::body::Malformed;
use crate::context::Connection;
use crate::error::Reason;

/// A byte stream of which hyper sees what the [`Gate`] lets through.
///
/// What arrives whole is looked at in hyper's own buffer. A head that comes in pieces is held back until it is whole.
#[derive(Debug)]
pub(in crate::server) struct GateIo<I> {
    inner: I,
    gate: Gate,
    bounds: Bounds,
    connection: Arc<Connection>,
    held: Held,
    end: Option<End>,
    /// Who waits for the answer to a request that asks to switch protocols.
    waiting: Option<Waker>,
}

/// What there is instead of further bytes of the client.
#[derive(Clone, Copy, Debug)]
enum End {
    /// Nothing: a refused message was the last, and the connection ends with its answer.
    Refused,
    /// The body that hyper is reading is malformed.
    Malformed(&'static str),
    /// The end, as if the client had closed.
    Closed,
    /// The protocol was switched: all bytes pass.
    Switched,
}

/// Bytes that hyper does not have yet; none most of the time. `given <= cleared <= bytes.len()`.
#[derive(Debug, Default)]
struct Held {
    bytes: Vec<u8>,
    /// So many hyper has.
    given: usize,
    /// So many it may have.
    cleared: usize,
}

/// Bytes to read at once when a head comes in pieces.
const PIECE: usize = 2 * 1024;

impl Held {
    fn give(&mut self, buf: &mut ReadBuf<'_>) {
        let ready = self.bytes.get(self.given..self.cleared).unwrap_or_default();
        let ready = ready.get(..buf.remaining()).unwrap_or(ready);
        buf.put_slice(ready);
        self.given += ready.len();
        if self.given == self.bytes.len() {
            *self = Self::default();
        }
    }

    fn is_ready(&self) -> bool {
        self.given < self.cleared
    }

    /// What the gate has not let through.
    fn unread(&self) -> &[u8] {
        self.bytes.get(self.cleared..).unwrap_or_default()
    }

    /// Whether a part of a head is held. An empty line alone begins none.
    fn has_begun(&self) -> bool {
        !matches!(self.unread(), b"" | b"\r" | b"\r\n")
    }

    fn drop_unread(&mut self) {
        self.bytes.truncate(self.cleared);
    }

    fn clear_unread(&mut self) {
        self.cleared = self.bytes.len();
    }
}

impl<I> GateIo<I> {
    pub(in crate::server) fn new(inner: I, bounds: Bounds, connection: Arc<Connection>) -> Self {
        let (gate, held) = (Gate::new(bounds), Held::default());
        Self { inner, gate, bounds, connection, held, end: None, waiting: None }
    }

    /// Looks at the held bytes again, with more behind them.
    fn look(&mut self) {
        let step = self.gate.advance(self.held.unread());
        self.follow(step);
    }

    /// Does with the unread bytes what the gate says.
    fn follow(&mut self, step: Step) {
        match step {
            Step::Pass => self.held.clear_unread(),
            Step::Hold { at } | Step::Park { at } => self.held.cleared += at,
            Step::Refuse { at, violation, canonical } => {
                self.held.cleared += at;
                self.refuse(violation, &canonical);
            }
            Step::Break { at, what } => {
                tracing::debug!(peer = ?self.connection.peer, what, "a request's body is malformed");
                self.held.cleared += at;
                self.held.drop_unread();
                self.end = Some(End::Malformed(what));
            }
        }
    }

    fn refuse(&mut self, Violation { reason, what }: Violation, canonical: &[u8]) {
        tracing::debug!(peer = ?self.connection.peer, %reason, what, "a request is refused");
        self.connection.refuse(self.gate.passed(), reason);
        self.held.drop_unread();
        self.held.bytes.extend_from_slice(canonical);
        self.held.clear_unread();
        self.end = Some(End::Refused);
    }

    /// Ends the wait for a head: one that has begun is refused.
    fn end_head(&mut self, reason: Reason) {
        if self.held.has_begun() {
            let canonical = self.gate.refuse();
            self.refuse(Violation { reason, what: "its head was not complete in time" }, &canonical);
        } else {
            self.held.drop_unread();
            self.end = Some(End::Closed);
        }
    }

    /// Behind a request that asks to switch protocols: whether its answer has come.
    fn is_answered(&self) -> bool {
        self.connection.is_tunnel() || self.connection.has_refused_switch()
    }

    fn unpark(&mut self) {
        self.waiting = None;
        if self.connection.is_tunnel() {
            self.held.clear_unread();
            self.end = Some(End::Switched);
        } else {
            self.connection.forget_refused_switch();
            self.gate.resume();
            if !self.held.unread().is_empty() {
                self.look();
            }
        }
    }

    /// The answer is on its way out: who waits for it may read on.
    fn wake(&mut self) {
        if self.waiting.is_some()
            && self.is_answered()
            && let Some(waiting) = self.waiting.take()
        {
            waiting.wake();
        }
    }
}

impl<I: AsyncRead + Unpin> GateIo<I> {
    /// Reads into hyper's buffer and takes back what may not pass yet.
    fn poll_fresh(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<bool>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        let fresh = buf.filled().get(before..).unwrap_or_default();
        if fresh.is_empty() {
            return Poll::Ready(Ok(true));
        }
        let mut step = self.gate.advance(fresh);
        let at = match &mut step {
            Step::Pass => return Poll::Ready(Ok(true)),
            Step::Hold { at } | Step::Park { at } | Step::Refuse { at, .. } | Step::Break { at, .. } => {
                std::mem::take(at)
            }
        };
        let unread = fresh.get(at..).unwrap_or_default();
        if !unread.is_empty() {
            self.held.bytes.extend_from_slice(unread);
        }
        buf.set_filled(before + at);
        self.follow(step);
        Poll::Ready(Ok(at > 0))
    }

    /// Reads more of a head that came in pieces. False at the client's end.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let length = self.held.bytes.len();
        self.held.bytes.resize(length + PIECE, 0);
        let mut piece = ReadBuf::new(self.held.bytes.get_mut(length..).unwrap_or_default());
        let polled = Pin::new(&mut self.inner).poll_read(cx, &mut piece);
        let read = piece.filled().len();
        let line_ends = piece.filled().contains(&b'\n');
        self.held.bytes.truncate(length + read);
        ready!(polled)?;
        // The head is read anew each time, so only when there is something to be found.
        if line_ends || self.held.unread().len() >= self.bounds.bytes {
            self.look();
        }
        Poll::Ready(Ok(read > 0))
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for GateIo<I> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if this.held.is_ready() {
                this.held.give(buf);
                return Poll::Ready(Ok(()));
            }
            match this.end {
                None => {}
                Some(End::Refused) => return Poll::Pending,
                Some(End::Malformed(what)) => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, Malformed(what))));
                }
                Some(End::Closed) => return Poll::Ready(Ok(())),
                Some(End::Switched) => return Pin::new(&mut this.inner).poll_read(cx, buf),
            }
            if this.gate.is_parked() {
                if this.is_answered() {
                    this.unpark();
                    continue;
                }
                this.waiting = Some(cx.waker().clone());
                return Poll::Pending;
            }
            if let Some(reason) = this.connection.head_end() {
                this.end_head(reason);
                continue;
            }
            let polled = if this.held.unread().is_empty() {
                this.poll_fresh(cx, buf)
            } else {
                this.poll_piece(cx).map_ok(|more| !more)
            };
            match polled {
                Poll::Ready(Ok(false)) => {}
                Poll::Ready(result) => return Poll::Ready(result.map(drop)),
                Poll::Pending => {
                    let holds = this.held.has_begun();
                    this.connection.hold_head(holds);
                    if holds && this.connection.active() == 0 {
                        this.connection.head_begins();
                    }
                    return Poll::Pending;
                }
            }
        }
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for GateIo<I> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.wake();
        Pin::new(&mut this.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.wake();
        Pin::new(&mut this.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
