//! One client's connection: its protocol is found, hyper drives it, and it ends when the client has gone, when it
//! idles, or when the proxy drains.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::entry::Entry;
use super::io::{GuardedIo, gone};
use super::shutdown::Shutdown;
use super::socket::Socket;
use super::stream_task::{Paced, StreamExecutor};
use crate::context::Connection;
use crate::error::Reason;
use crate::snapshot::Limits;
use crate::upstream::CONNECTION_WINDOW;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Serves a connection to its end.
pub(super) struct Session {
    pub(super) entry: Arc<Entry>,
    /// Its listener's.
    pub(super) shutdown: Shutdown,
    pub(super) limits: Limits,
    pub(super) connection: Arc<Connection>,
    pub(super) socket: Arc<Socket>,
    /// What has been read already.
    pub(super) seen: BytesMut,
}

impl Session {
    /// Finds the protocol and serves it. What follows is boxed: a connection then holds the state of its own protocol
    /// only, not room for any.
    pub(super) async fn run(mut self, tls: Option<TlsAcceptor>) {
        let mut seen = std::mem::take(&mut self.seen);
        match tls {
            None => {
                let Some(Ok(h2)) = self.in_time(speaks_h2(&self.socket, &mut seen)).await else { return };
                let io = self.io(seen);
                if h2 { Box::pin(self.serve_h2(io)).await } else { Box::pin(self.serve_h1(io)).await }
            }
            Some(tls) => match self.in_time(Box::pin(tls.accept(self.io(seen)))).await {
                Some(Ok(stream)) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => {
                    Box::pin(self.serve_h2(Box::new(stream))).await;
                }
                Some(Ok(stream)) => Box::pin(self.serve_h1(Box::new(stream))).await,
                Some(Err(error)) => tracing::debug!(peer = ?self.connection.peer, %error, "TLS handshake failed"),
                None => {}
            },
        }
    }

    fn io(&self, seen: BytesMut) -> GuardedIo {
        GuardedIo::new(Arc::clone(&self.socket), Arc::clone(&self.connection), seen.freeze())
    }

    /// What comes before the first request: bounded in time, and not worth waiting for when the proxy drains.
    async fn in_time<T>(&self, opening: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            opened = timeout(self.limits.header_timeout, opening) => opened.ok(),
            () = self.shutdown.drain.cancelled() => None,
        }
    }

    async fn serve_h1(self, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let (entry, connection) = (Arc::clone(&self.entry), Arc::clone(&self.connection));
        let service = service_fn(move |request| {
            let context = entry.begin(&connection, &request);
            let answer = Arc::clone(&entry).answer(context, request);
            async move { Ok::<_, Infallible>(answer.await.map(Paced::unwatched)) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(None) // also cuts idle connections; `overdue` tells the two apart
            .max_buf_size(self.limits.buffer.max(self.limits.max_header_size))
            .max_header_size(self.limits.max_header_size)
            .serve_connection(TokioIo::new(io), service)
            .with_upgrades();
        self.drive(connection, self.limits.header_timeout).await;
    }

    async fn serve_h2(self, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let (entry, connection) = (Arc::clone(&self.entry), Arc::clone(&self.connection));
        let executor = StreamExecutor::new(self.entry.tasks.clone());
        let streams = executor.clone();
        let service = service_fn(move |request| {
            let context = entry.begin(&connection, &request);
            let pace = streams.announce(context.clone());
            let answer = Arc::clone(&entry).answer(context, request);
            async move { Ok::<_, Infallible>(answer.await.map(|body| Paced::new(body, pace))) }
        });
        let buffer = u32::try_from(self.limits.buffer).unwrap_or(u32::MAX);
        let connection = http2::Builder::new(executor)
            .timer(TokioTimer::new())
            .initial_connection_window_size(CONNECTION_WINDOW)
            .initial_stream_window_size(buffer.max(64 * 1024 - 1))
            .max_send_buf_size(self.limits.buffer)
            .max_concurrent_streams(self.limits.max_streams)
            .max_header_list_size(u32::try_from(self.limits.max_header_size).unwrap_or(u32::MAX))
            .keep_alive_interval(Duration::from_secs(30))
            // A client that reads nothing answers no ping either; how long it may do so is the routes' matter.
            .keep_alive_timeout(self.limits.longest_stall.max(Duration::from_secs(20)))
            .serve_connection(TokioIo::new(io), service);
        // Frames that are no request come at any time, so bytes do not mean that a head has begun.
        self.drive(connection, Duration::MAX).await;
    }

    /// Drives hyper's connection until it ends or must.
    async fn drive(&self, connection: impl Drive, header_timeout: Duration) {
        let mut connection = std::pin::pin!(connection);
        let mut client = Client {
            overdue: Some(Box::pin(overdue(&self.connection, self.limits.idle_timeout, header_timeout))),
            gone: Box::pin(gone(&self.socket)),
            has_gone: false,
        };
        let shutdown = &self.shutdown;
        let mut until = self.serve_until(connection.as_mut(), &mut client, &shutdown.drain).await;
        if !matches!(until, Until::Over) {
            // Told of the end, the client knows that a request which crosses it was not read.
            connection.as_mut().graceful_shutdown();
            let quiet_since = self.connection.idle_since();
            let mut goodbye = std::pin::pin!(self.serve_until(connection.as_mut(), &mut client, &shutdown.cut));
            until = match until {
                Until::Idle => match timeout(GOODBYE, goodbye.as_mut()).await {
                    Ok(until) => until,
                    Err(_) if self.connection.active() == 0 && self.connection.idle_since() == quiet_since => {
                        Until::Over
                    }
                    // One crossed and was read all the same: it is served.
                    Err(_) => goodbye.await,
                },
                _ => goodbye.await,
            };
            if let Until::Signal = until {
                self.connection.mark_cut(Reason::Drained);
            }
        }
        if self.connection.cut().is_some() {
            self.socket.reset_on_close();
        }
    }

    /// Serves until the connection is over or idle, or until `signal`.
    async fn serve_until<C: Drive, O: Future<Output = Overdue>, G: Future<Output = ()>>(
        &self,
        mut connection: Pin<&mut C>,
        client: &mut Client<O, G>,
        signal: &CancellationToken,
    ) -> Until {
        let mut signal = std::pin::pin!(signal.cancelled());
        std::future::poll_fn(|cx| {
            if let Poll::Ready(result) = connection.as_mut().poll(cx) {
                // Our body broke off, and to this client the end of the connection would look like the body's.
                if result.is_err_and(|error| error.is_user()) && self.connection.is_close_delimited() {
                    self.socket.reset_on_close();
                }
                return Poll::Ready(Until::Over);
            }
            if let Poll::Ready(until) = client.poll_end(&self.connection, cx) {
                return Poll::Ready(until);
            }
            signal.as_mut().poll(cx).map(|()| Until::Signal)
        })
        .await
    }
}

/// How long an idle connection may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(1);

/// Why a connection is not served on as before.
enum Until {
    Over,
    Idle,
    Signal,
}

/// What took too long.
enum Overdue {
    Head,
    Request,
}

/// What is known of the client beside its bytes.
struct Client<O, G> {
    /// None once it was told.
    overdue: Option<Pin<Box<O>>>,
    gone: Pin<Box<G>>,
    has_gone: bool,
}

impl<O: Future<Output = Overdue>, G: Future<Output = ()>> Client<O, G> {
    /// Ready when there is nobody left to serve, or nothing to serve.
    fn poll_end(&mut self, connection: &Connection, cx: &mut Context<'_>) -> Poll<Until> {
        self.has_gone = self.has_gone || self.gone.as_mut().poll(cx).is_ready();
        // What a client said before it went hyper may still read and serve, but nothing is waited for.
        if self.has_gone && connection.active() > 0 {
            return Poll::Ready(Until::Over);
        }
        let Some(overdue) = &mut self.overdue else { return Poll::Pending };
        let overdue = ready!(overdue.as_mut().poll(cx));
        self.overdue = None;
        Poll::Ready(match overdue {
            Overdue::Head => Until::Over,
            Overdue::Request => Until::Idle,
        })
    }
}

/// hyper's two kinds of connection, as far as they are driven alike.
trait Drive: Future<Output = hyper::Result<()>> {
    fn graceful_shutdown(self: Pin<&mut Self>);
}

impl<I, S, B> Drive for http1::UpgradeableConnection<I, S>
where
    http1::UpgradeableConnection<I, S>: Future<Output = hyper::Result<()>>,
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    S: hyper::service::HttpService<hyper::body::Incoming, ResBody = B>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: http_body::Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn graceful_shutdown(self: Pin<&mut Self>) {
        http1::UpgradeableConnection::graceful_shutdown(self);
    }
}

impl<I, S, B, E> Drive for http2::Connection<I, S, E>
where
    http2::Connection<I, S, E>: Future<Output = hyper::Result<()>>,
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
    S: hyper::service::HttpService<hyper::body::Incoming, ResBody = B>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: http_body::Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    E: hyper::rt::bounds::Http2ServerConnExec<S::Future, B>,
{
    fn graceful_shutdown(self: Pin<&mut Self>) {
        http2::Connection::graceful_shutdown(self);
    }
}

/// Ends when the connection has been without a request, or with half a head, for too long.
async fn overdue(connection: &Connection, idle: Duration, header: Duration) -> Overdue {
    let glance = (idle.min(header) / 2).max(Duration::from_millis(1));
    loop {
        if connection.active() > 0 {
            sleep(glance).await;
            continue;
        }
        let head_until = connection.head_since().and_then(|since| since.checked_add(header));
        let deadline = head_until.unwrap_or_else(|| connection.idle_since() + idle);
        if deadline <= Instant::now() {
            return if head_until.is_some() { Overdue::Head } else { Overdue::Request };
        }
        sleep_until(deadline.min(Instant::now() + glance)).await;
    }
}

/// Reads as many of the first bytes as tell: HTTP/2 by prior knowledge begins with a fixed preface.
async fn speaks_h2(socket: &Socket, seen: &mut BytesMut) -> std::io::Result<bool> {
    loop {
        if seen.starts_with(PREFACE) {
            return Ok(true);
        }
        if !PREFACE.starts_with(seen) || socket.read_more(seen).await? == 0 {
            return Ok(false);
        }
    }
}
