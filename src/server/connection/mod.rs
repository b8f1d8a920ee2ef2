//! One client's connection: its protocol is found, and hyper serves it within the limits of this place.
//!
//! | file | does |
//! |---|---|
//! | `mod.rs` | finds the protocol, and sets hyper up for it |
//! | `handshake.rs` | the TLS handshake, and how it fails |
//! | `drive.rs` | drives hyper, watches for the client's end, says goodbye |
//! | `deadlines.rs` | when a connection has taken too long |
//! | `endings.rs` | how connections end, counted |
//! | `socket.rs` | a client's socket, TCP or unix, and its options |
//! | `io.rs` | the socket that cuts a stalled client |
//! | `frames.rs` | what HTTP/2 frames tell before h2 reads them: floods, and work that is thrown away |
//! | `stream_task.rs` | h2 streams that are cut one by one |
//! | `writer.rs` | h2 streams that become tunnels |

mod deadlines;
mod drive;
pub(super) mod endings;
mod frames;
pub(super) mod handshake;
mod io;
pub(super) mod socket;
mod stream_task;
pub(super) mod writer;

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use http::header::CONNECTION;
use http::{HeaderValue, Method, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ProtocolVersion;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use crate::context::{Connection, Protocol};
use crate::error::Reason;
use crate::server::entry::Entry;
use crate::server::http1::{Bounds, GateIo};
use crate::server::plain::is_too_large;
use crate::server::shutdown::Shutdown;
use crate::snapshot::Limits;
use deadlines::Deadlines;
use endings::Endings;
use frames::{FrameGate, Frames};
use handshake::Handshake;
use io::GuardedIo;
use socket::Socket;
use stream_task::{Paced, StreamExecutor, second_look};
use writer::Writer;

/// The largest that HTTP/2 knows is twice that.
const LARGEST_WINDOW: u32 = 1 << 30;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long a request may be on its way when the drain begins.
pub(super) const LAST_CALL: Duration = Duration::from_millis(100);

/// Serves a connection to its end.
pub(super) struct Session {
    pub(super) entry: Arc<Entry>,
    /// Its listener's.
    pub(super) shutdown: Shutdown,
    pub(super) limits: Limits,
    pub(super) endings: Arc<Endings>,
    pub(super) connection: Arc<Connection>,
    pub(super) socket: Arc<Socket>,
    /// What has been read already.
    pub(super) seen: BytesMut,
}

impl Session {
    /// Finds the protocol and serves it. What follows is boxed: a connection then holds the state of its own protocol
    /// only, not room for any.
    pub(super) async fn run(mut self, handshake: Option<Handshake>) {
        let mut seen = std::mem::take(&mut self.seen);
        match handshake {
            None => {
                let Some(Ok(h2)) = self.in_time(speaks_h2(&self.socket, &mut seen)).await else { return };
                let io = self.io(seen);
                if h2 { Box::pin(self.serve_h2(io)).await } else { Box::pin(self.serve_h1(io)).await }
            }
            Some(handshake) => {
                let Some(mut stream) = self.shake_hands(handshake, seen).await else { return };
                // What is written and not sent belongs to the bound on a connection; rustls would take 64 KiB.
                stream.get_mut().1.set_buffer_limit(Some(self.limits.buffer));
                let tls = stream.get_ref().1;
                self.connection.note_tls(tls.protocol_version().map_or("?", version));
                let h2 = tls.alpn_protocol() == Some(b"h2");
                if h2 { Box::pin(self.serve_h2(stream)).await } else { Box::pin(self.serve_h1(stream)).await }
            }
        }
    }

    fn io(&self, seen: BytesMut) -> GuardedIo {
        GuardedIo::new(Arc::clone(&self.socket), Arc::clone(&self.connection), seen.freeze())
    }

    /// What comes before the first request: bounded in time, and not worth more than a moment when the proxy drains.
    async fn in_time<T>(&self, opening: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            opened = timeout(self.limits.header_timeout, opening) => opened.ok(),
            () = self.last_call() => None,
        }
    }

    /// Ends a moment after the drain has begun: what a client sent before it could know is on its way.
    async fn last_call(&self) {
        self.shutdown.drain.cancelled().await;
        tokio::time::sleep(LAST_CALL).await;
    }

    /// What a head may measure.
    fn bounds(&self) -> Bounds {
        Bounds { bytes: self.limits.max_header_size, fields: self.limits.max_headers }
    }

    async fn serve_h1(self, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let bounds = self.bounds();
        let io = GateIo::new(io, bounds, Arc::clone(&self.connection));
        let (entry, connection) = (Arc::clone(&self.entry), Arc::clone(&self.connection));
        connection.speaks(Protocol::Http1);
        let most = self.limits.max_requests;
        let service = service_fn(move |request| {
            let context = entry.begin(&connection, &request);
            let is_last = most.is_some_and(|most| connection.requests() >= most);
            let answer = Arc::clone(&entry).answer(context, request, connection.refused());
            async move {
                let mut answer = answer.await;
                if is_last && answer.status() != StatusCode::SWITCHING_PROTOCOLS {
                    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(answer.map(Paced::unwatched))
            }
        });
        let mut http1 = http1::Builder::new();
        // The gate's bounds come first, so that hyper refuses nothing by itself.
        let head = self.limits.max_header_size + SPARE;
        http1.max_header_size(head).max_buf_size(self.limits.buffer.max(head));
        if self.limits.max_headers > HYPER_FIELDS {
            http1.max_headers(self.limits.max_headers);
        }
        let connection = http1
            .timer(TokioTimer::new())
            .half_close(self.limits.half_close) // then `gone` alone tells, and the route decides
            .header_read_timeout(None) // also cuts idle connections; `Deadlines` tells the two apart
            .serve_connection(TokioIo::new(io), service)
            .with_upgrades();
        self.drive(connection, self.deadlines(None), None).await;
    }

    async fn serve_h2(self, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let bounds = self.bounds();
        let (entry, connection) = (Arc::clone(&self.entry), Arc::clone(&self.connection));
        connection.speaks(Protocol::Http2);
        let frames = Frames::new(Arc::clone(&self.connection), self.limits.cancel_budget);
        let executor = StreamExecutor::new(self.entry.tasks.clone(), Arc::clone(&frames));
        let (streams, watched) = (executor.clone(), Arc::clone(&frames));
        let service = service_fn(move |mut request: http::Request<Incoming>| {
            let context = entry.begin(&connection, &request);
            let trace = streams.announce(context.clone(), Writer::of(&mut request));
            let (watched, is_connect) = (Arc::clone(&watched), request.method() == Method::CONNECT);
            let refused = is_too_large(request.uri(), request.headers(), bounds).then_some(Reason::HeaderTooLarge);
            let entry = Arc::clone(&entry);
            async move {
                second_look().await;
                if watched.is_spent() {
                    return std::future::pending().await; // until the connection goes
                }
                let answer = entry.answer(context, request, refused).await;
                if is_connect {
                    trace.answer(); // a tunnel has its own end
                }
                Ok::<_, Infallible>(answer.map(|body| Paced::new(body, trace)))
            }
        });
        let stream_window = u32::try_from(self.limits.buffer).unwrap_or(u32::MAX).clamp(64 * 1024 - 1, LARGEST_WINDOW);
        // Room for all streams at their bound and as much again, so that none waits for another. Not more: h2 allows
        // unread frames of a few bytes, which cost far more than they hold, in proportion to this window.
        let window = stream_window.saturating_mul(self.limits.max_streams.saturating_mul(2)).min(LARGEST_WINDOW);
        let resets = usize::try_from(self.limits.cancel_budget.get()).unwrap_or(usize::MAX);
        // What is a little too large is refused by us, with a reason; the rest h2 answers without reading it.
        let head = u32::try_from(bounds.bytes.saturating_mul(2)).unwrap_or(u32::MAX);
        let connection = http2::Builder::new(executor)
            .timer(TokioTimer::new())
            .initial_connection_window_size(window)
            .initial_stream_window_size(stream_window)
            .max_send_buf_size(self.limits.buffer)
            .max_concurrent_streams(self.limits.max_streams)
            .enable_connect_protocol()
            .max_header_list_size(head)
            // Streams that were reset before they were looked at are paid for like others, once they are.
            .max_pending_accept_reset_streams(resets)
            // Over the whole life of the connection.
            .max_local_error_reset_streams(1024)
            .keep_alive_interval(Duration::from_secs(30))
            // A client that reads nothing answers no ping either; how long it may do so is the routes' matter.
            .keep_alive_timeout(self.limits.longest_stall.max(Duration::from_secs(20)))
            .serve_connection(TokioIo::new(FrameGate::new(io, Arc::clone(&frames))), service);
        self.drive(connection, self.deadlines(Some(self.limits.header_timeout)), Some(&frames)).await;
    }

    fn deadlines(&self, first: Option<Duration>) -> Deadlines {
        let old_at = self.limits.max_age.map(|age| self.connection.opened_at() + Deadlines::spread(age));
        Deadlines { head: self.limits.header_timeout, first, idle: self.limits.idle_timeout, old_at }
    }
}

/// A version of TLS as people write it.
fn version(version: ProtocolVersion) -> &'static str {
    match version {
        ProtocolVersion::TLSv1_2 => "1.2",
        ProtocolVersion::TLSv1_3 => "1.3",
        _ => "?",
    }
}

/// What hyper takes beyond the bound on a head.
const SPARE: usize = 64;
/// Fields that hyper reads without memory of its own.
const HYPER_FIELDS: usize = 100;

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
