//! The sending half of an HTTP/2 stream that has become a tunnel.
//!
//! hyper gives that half to a task of its own, which is beyond the reach of whoever holds the tunnel: it would wait for
//! a stalled client as long as the connection stands, and would end a stream cleanly whose upstream broke off. So
//! [`StreamExecutor`](super::stream_task::StreamExecutor) starts that task through the stream's [`Writer`], which the
//! tunnel holds as well.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::UPGRADE;
use http::{HeaderValue, Method, Request};
use hyper::ext::Protocol;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::context::ExtendedConnect;

tokio::task_local!(static CURRENT: Writer);

/// See the module's text. In the extensions of an extended CONNECT.
#[derive(Clone, Debug, Default)]
pub(in crate::server) struct Writer(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    cut: CancellationToken,
    over: CancellationToken,
    /// Everything was said, so that the end of the task is the end of the sending.
    closed: AtomicBool,
}

impl Writer {
    /// Marks an extended CONNECT (RFC 8441); none for any other request.
    pub(super) fn of<B>(request: &mut Request<B>) -> Option<Self> {
        let is_extended = *request.method() == Method::CONNECT && request.extensions().get::<Protocol>().is_some();
        is_extended.then(|| {
            let writer = Self::default();
            request.extensions_mut().insert(writer.clone());
            writer
        })
    }

    /// Polls the stream; the task that hyper starts meanwhile is the stream's writer.
    pub(super) fn poll<T>(&self, poll: impl FnOnce() -> T) -> T {
        CURRENT.sync_scope(self.clone(), poll)
    }

    /// Whose task it is that is being started.
    pub(super) fn current() -> Option<Self> {
        CURRENT.try_with(Self::clone).ok()
    }

    /// Runs hyper's task until it ends or is cut.
    pub(super) async fn run(self, task: impl Future<Output = ()>) {
        let _over = self.0.over.clone().drop_guard();
        tokio::select! {
            biased;
            () = self.0.cut.cancelled() => {}
            () = task => {}
        }
    }

    /// Ends the task, and with it the stream: by a reset, unless everything had been said.
    pub(in crate::server) async fn cut(&self) {
        self.0.cut.cancel();
        self.0.over.cancelled().await;
    }

    /// Waits until nobody is there to send to, though not all was said.
    pub(in crate::server) async fn lost(&self) {
        self.0.over.cancelled().await;
        if self.0.closed.load(Relaxed) {
            std::future::pending::<()>().await;
        }
    }
}

/// Makes of an extended CONNECT a GET of its path, which is routed like any other.
pub(in crate::server) fn as_get<B>(request: &mut Request<B>) {
    let Some(protocol) = request.extensions_mut().remove::<Protocol>() else { return };
    *request.method_mut() = Method::GET;
    let upgrade = HeaderValue::try_from(protocol.as_str()).unwrap_or(HeaderValue::from_static("-"));
    request.headers_mut().insert(UPGRADE, upgrade);
    request.extensions_mut().insert(ExtendedConnect { protocol: protocol.as_str().into() });
}

/// A client's side of a tunnel whose writes fail with `TimedOut` once the client has taken nothing for the stall time.
#[derive(Debug)]
pub(in crate::server) struct Patient<T> {
    io: T,
    writer: Writer,
    stall: Duration,
    blocked: Option<Pin<Box<Sleep>>>,
}

impl<T> Patient<T> {
    pub(in crate::server) fn new(io: T, writer: Writer, stall: Duration) -> Self {
        Self { io, writer, stall, blocked: None }
    }

    fn timed<V>(&mut self, polled: Poll<io::Result<V>>, cx: &mut Context<'_>) -> Poll<io::Result<V>> {
        if polled.is_ready() {
            self.blocked = None;
            return polled;
        }
        let stall = self.stall;
        let timer = self.blocked.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + stall)));
        timer.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Patient<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Patient<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, buf);
        self.timed(polled, cx)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_flush(cx);
        self.timed(polled, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writer.0.closed.store(true, Relaxed);
        let polled = Pin::new(&mut self.io).poll_shutdown(cx);
        self.timed(polled, cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncWriteExt as _, duplex};

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_not_waited_for() {
        let (near, _far) = duplex(4);
        let stall = Duration::from_secs(10);
        let mut io = Patient::new(near, Writer::default(), stall);
        let began = Instant::now();
        let error = io.write_all(b"more than fits").await.expect_err("nobody reads");
        assert_eq!((error.kind(), began.elapsed()), (io::ErrorKind::TimedOut, stall));
    }

    #[tokio::test]
    async fn the_task_ends_before_who_cuts_it_goes_on() {
        let writer = Writer::default();
        let held = Arc::new(());
        let kept = Arc::clone(&held);
        let task = writer.clone().run(async move {
            std::future::pending::<()>().await;
            drop(kept);
        });
        let (ended, ()) = tokio::join!(
            async {
                task.await;
                Arc::strong_count(&held)
            },
            writer.cut()
        );
        assert_eq!(ended, 1, "what the task held is gone");
        tokio::time::timeout(Duration::from_secs(1), writer.lost()).await.expect("not all was said");
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_said_all_has_lost_nobody() {
        let writer = Writer::default();
        let (near, _far) = duplex(4);
        let mut io = Patient::new(near, writer.clone(), Duration::from_secs(1));
        io.shutdown().await.expect("open");
        writer.clone().run(std::future::ready(())).await;
        assert!(tokio::time::timeout(Duration::from_secs(60), writer.lost()).await.is_err());
    }
}
