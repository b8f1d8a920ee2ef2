//! A connection while a request has it.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use hyper::body::Incoming;
use tokio::time::{Instant, timeout};

use super::state::{Grant, Http1, Http2};
use super::{Pool, Slot};
use crate::body::{End, Watch};
use crate::context::Request;
use crate::tasks;
use crate::upstream::first_byte::{FirstByte, Uploads};

/// An HTTP/1.1 connection, or the place of one h2 stream.
///
/// Dropped before a request was sent, it goes back unharmed. Dropped afterwards it takes the HTTP/1.1 connection
/// along: what is left of the exchange would be read as the next answer.
pub(in crate::upstream) struct Lease {
    pool: Arc<Pool>,
    kind: Option<Kind>,
    in_flight: Option<InFlight>,
    reused: bool,
    /// The exchange was ended by the upstream, not by us.
    failed: bool,
    /// The connection can carry no further request.
    spent: bool,
}

enum Kind {
    Http1(Http1),
    Http2(Arc<Stream>),
}

/// The place of a stream. Shared with the request's body: a stream is open until both directions have ended.
pub(in crate::upstream) struct Stream {
    pool: Arc<Pool>,
    connection: Arc<Http2>,
}

impl Stream {
    /// What is sent beside it.
    pub(in crate::upstream) fn uploads(&self) -> &Uploads {
        &self.connection.uploads
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let now = Instant::now();
        self.pool.settle(|state| state.stream_ended(&self.connection, now));
    }
}

struct InFlight(Arc<Pool>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.counts.in_flight.fetch_sub(1, Relaxed);
    }
}

/// What keeps the place of an upgraded connection taken.
pub(in crate::upstream) struct UpgradeGuard {
    _slot: Arc<Slot>,
    _in_flight: Option<InFlight>,
}

/// No response head came.
pub(in crate::upstream) struct Unanswered {
    pub(in crate::upstream) error: hyper::Error,
    /// The request has not left hyper, and is back in its place.
    pub(in crate::upstream) is_unsent: bool,
}

impl Lease {
    pub(super) fn new(pool: Arc<Pool>, grant: Grant) -> Self {
        let (kind, reused) = match grant {
            Grant::Http1(connection) => {
                let reused = connection.used;
                (Kind::Http1(connection), reused)
            }
            Grant::Http2 { connection, used } => {
                (Kind::Http2(Arc::new(Stream { pool: Arc::clone(&pool), connection })), used)
            }
        };
        Self { pool, kind: Some(kind), in_flight: None, reused, failed: false, spent: false }
    }

    /// Whether the connection has carried a request before, and may have gone stale.
    pub(in crate::upstream) fn is_reused(&self) -> bool {
        self.reused
    }

    /// The place of the h2 stream; none on HTTP/1.1.
    pub(in crate::upstream) fn stream(&self) -> Option<&Arc<Stream>> {
        match &self.kind {
            Some(Kind::Http2(stream)) => Some(stream),
            _ => None,
        }
    }

    /// Sends the request and waits for the response's head; none when it is overdue.
    pub(in crate::upstream) async fn send(
        &mut self,
        request: &mut Request,
        first_byte: &FirstByte,
    ) -> Option<Result<http::Response<Incoming>, Unanswered>> {
        self.begin();
        let sent = std::mem::take(request);
        let result = match &mut self.kind {
            Some(Kind::Http1(Http1 { sender, clock, .. })) => tokio::select! {
                biased;
                result = sender.try_send_request(sent) => result,
                () = first_byte.overdue(clock) => return None,
            },
            Some(Kind::Http2(stream)) => {
                let (mut sender, mut clock) = (stream.connection.sender.clone(), None);
                tokio::select! {
                    biased;
                    result = sender.try_send_request(sent) => result,
                    () = first_byte.overdue(&mut clock) => return None,
                }
            }
            // Only the end of a lease takes its connection.
            None => std::future::pending().await,
        };
        self.failed = result.is_err();
        Some(result.map_err(|mut error| {
            let unsent = error.take_message();
            let is_unsent = unsent.is_some();
            *request = unsent.unwrap_or_default();
            Unanswered { error: error.into_error(), is_unsent }
        }))
    }

    /// What was promised of the request is not sent: another one cannot follow it.
    pub(in crate::upstream) fn spend(&mut self) {
        self.spent = true;
    }

    fn begin(&mut self) {
        let counts = &self.pool.counts;
        counts.in_flight.fetch_add(1, Relaxed);
        self.in_flight = Some(InFlight(Arc::clone(&self.pool)));
        if self.reused {
            counts.reuses.fetch_add(1, Relaxed);
        }
        if let Some(Kind::Http1(connection)) = &mut self.kind {
            connection.used = true;
        }
    }

    /// The response was read to its end. The HTTP/1.1 connection goes back once hyper is ready for the next request:
    /// that is when the request's body has been sent as well.
    pub(in crate::upstream) fn finish(mut self) {
        self.in_flight = None;
        match self.kind.take() {
            Some(Kind::Http1(connection)) if self.spent => connection.cut(),
            Some(Kind::Http1(connection)) if connection.sender.is_ready() => put(&self.pool, connection),
            Some(Kind::Http1(connection)) if !connection.sender.is_closed() => {
                let pool = Arc::clone(&self.pool);
                tasks::detach(return_when_ready(pool, connection));
            }
            Some(Kind::Http1(connection)) => connection.cut(),
            Some(Kind::Http2(_)) | None => {}
        }
    }

    /// The connection has left HTTP; only its place remains to be held. None on h2.
    pub(in crate::upstream) fn upgrade(mut self) -> Option<UpgradeGuard> {
        match self.kind.take() {
            Some(Kind::Http1(connection)) => {
                Some(UpgradeGuard { _slot: connection.slot, _in_flight: self.in_flight.take() })
            }
            _ => None,
        }
    }
}

fn put(pool: &Arc<Pool>, connection: Http1) {
    let now = Instant::now();
    pool.settle(|state| state.put(connection, now));
}

/// An upload that outlasts its response keeps its connection busy; one that outlasts an idle connection's life is cut.
async fn return_when_ready(pool: Arc<Pool>, mut connection: Http1) {
    if let Ok(Ok(())) = timeout(pool.bounds.idle_timeout, connection.sender.ready()).await {
        put(&pool, connection);
    } else {
        connection.cut();
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let begun = self.in_flight.take().is_some();
        if begun && self.kind.is_some() && !self.failed {
            self.pool.counts.cancelled.fetch_add(1, Relaxed);
        }
        match self.kind.take() {
            Some(Kind::Http1(connection)) if begun => connection.cut(),
            Some(Kind::Http1(connection)) => put(&self.pool, connection),
            Some(Kind::Http2(_)) | None => {}
        }
    }
}

/// Rides in the response's body and ends the lease with it.
pub(in crate::upstream) struct UntilEnd(Option<Lease>);

impl UntilEnd {
    pub(in crate::upstream) fn new(lease: Lease) -> Self {
        Self(Some(lease))
    }
}

impl Watch for UntilEnd {
    fn end(&mut self, end: End) {
        if let Some(mut lease) = self.0.take() {
            match end {
                End::Complete => lease.finish(),
                End::Failed(reason) => lease.failed = reason == crate::error::Reason::UpstreamReset,
                End::Dropped => {}
            }
        }
    }
}
