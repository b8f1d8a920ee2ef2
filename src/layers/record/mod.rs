//! Counts, times and logs every exchange of a route.
//!
//! | file | does |
//! |---|---|
//! | `mod.rs` | the layer, and the exchange that it follows to its end |
//! | `route.rs` | the metrics of one route |
//!
//! Refuses nothing. Stands above the layer that renders errors, so that it sees refusals as the answers they are, and
//! beneath it everything that can end an exchange: the record is closed when the body of the answer is over (complete,
//! broken off, or dropped by a client that left) or when the answer's future is dropped before there was a head. So
//! each request that began is counted exactly once, and a stream only when it ends; until then it is in flight.
//!
//! The class of `headworks_requests_total` is that of the status the client got, also when the body broke off later;
//! the `reason` says that it did. A client that left before the head counts as `4xx` with `client_gone`.

mod route;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use http::header::USER_AGENT;
use http::{Method, StatusCode, Version};
use http_body::Body as _;
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

use crate::access_log::{AccessLog, Line};
use crate::body::{End, Watch};
use crate::context::{Asked, Connection, Request, RequestContext, RequestId, Response, asked_authority};
use crate::entropy;
use crate::error::Reason;
use crate::metrics::{Counter, Registry};
use route::Route;

/// Puts [`Record`] around a service.
#[derive(Clone, Debug)]
pub struct RecordLayer {
    route: Arc<Route>,
}

impl RecordLayer {
    /// The record of `route`; without a log it only counts.
    #[must_use]
    pub fn new(route: &str, registry: &Registry, log: Option<AccessLog>) -> Self {
        Self { route: Arc::new(Route::new(route, registry, log)) }
    }
}

impl<S> Layer<S> for RecordLayer {
    type Service = Record<S>;

    fn layer(&self, inner: S) -> Record<S> {
        Record { inner, route: Arc::clone(&self.route) }
    }
}

/// See the module's text.
#[derive(Clone, Debug)]
pub struct Record<S> {
    inner: S,
    route: Arc<Route>,
}

impl<S> Service<Request> for Record<S>
where
    S: Service<Request, Response = Response, Error = Infallible>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Recording<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request) -> Recording<S::Future> {
        let exchange = Exchange::begin(Arc::clone(&self.route), &mut request);
        Recording { inner: self.inner.call(request), exchange: Some(exchange) }
    }
}

pin_project! {
    /// The future of [`Record`]. To drop it is an outcome, and recorded.
    #[derive(Debug)]
    pub struct Recording<F> {
        #[pin]
        inner: F,
        exchange: Option<Exchange>,
    }
}

impl<F: Future<Output = Result<Response, Infallible>>> Future for Recording<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let Ok(response) = ready!(this.inner.poll(cx));
        Poll::Ready(Ok(match this.exchange.take() {
            Some(mut exchange) => {
                exchange.head(response.status());
                response.map(|body| body.watch(Box::new(exchange)))
            }
            None => response,
        }))
    }
}

/// One exchange, from its request to the end of its answer.
#[derive(Debug)]
struct Exchange {
    route: Arc<Route>,
    context: RequestContext,
    /// What the log says; none without a log.
    facts: Option<Facts>,
    /// HEAD, whose answers have no body: whoever drops one unread has lost nothing.
    is_head: bool,
    /// Bytes that the client sent in a tunnel and the metric has counted; none when a body counts what it sends.
    counted: Option<u64>,
    status: Option<StatusCode>,
    /// The head was that of our own refusal or failure: a whole answer, whatever its reason.
    is_refusal: bool,
    closed: bool,
}

/// Copies, since the originals would keep the connection's whole read buffer alive.
#[derive(Debug)]
struct Facts {
    time: SystemTime,
    host: Box<str>,
    protocol: Version,
    user_agent: Option<Box<str>>,
}

impl Exchange {
    fn begin(route: Arc<Route>, request: &mut Request) -> Self {
        let context = request.extensions_mut().get_or_insert_with(unknown).clone();
        let asked = Asked { method: request.method().clone(), path: request.uri().path().into() };
        let _ = context.notes().asked.set(asked);
        let mut exchange = Self {
            facts: route.log.is_some().then(|| Facts::of(request)),
            is_head: request.method() == Method::HEAD,
            counted: Some(0),
            status: None,
            is_refusal: false,
            closed: false,
            context,
            route,
        };
        exchange.route.in_flight.inc();
        if !request.body().is_end_stream() {
            let received = Arc::new(AtomicU64::new(0));
            let _ = exchange.context.notes().received.set(Arc::clone(&received));
            exchange.counted = None;
            let total = exchange.route.request_bytes.clone();
            let upload = Upload { received, total, context: exchange.context.clone() };
            request.body_mut().watch_in_place(Box::new(upload));
        }
        exchange
    }

    fn head(&mut self, status: StatusCode) {
        self.status = Some(status);
        self.context.notes().set_status(status);
        self.context.head_goes_out();
        self.is_refusal = self.context.notes().reason().is_some();
        if let Some(elapsed) = self.context.notes().first_byte.get() {
            self.route.first_byte.observe(elapsed);
        }
    }

    fn close(&mut self, end: End) {
        if std::mem::replace(&mut self.closed, true) {
            return;
        }
        self.context.ends();
        self.count_received();
        let notes = self.context.notes();
        match end {
            End::Complete => {}
            End::Failed(reason) => notes.set_reason(reason),
            End::Dropped if self.has_no_body() => {}
            End::Dropped => notes.set_reason(self.context.connection().cut().unwrap_or(Reason::ClientGone)),
        }
        let reason = notes.reason();
        let status = self.status.or(reason.map(Reason::status)).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let total = self.context.received_at().elapsed();
        let broke_off = self.status.is_some() && !self.is_refusal;
        self.route.count(status, reason, broke_off, total);
        if let (Some(log), Some(facts), Some(asked)) = (&self.route.log, &self.facts, notes.asked.get()) {
            log.write(&Line {
                time: facts.time,
                context: &self.context,
                method: &asked.method,
                path: &asked.path,
                host: &facts.host,
                protocol: facts.protocol,
                status,
                bytes_in: notes.bytes_in(),
                bytes_out: notes.sent.get(),
                total,
                user_agent: facts.user_agent.as_deref(),
            });
        }
    }

    /// Counts what the client has said in a tunnel, whenever something else is to be counted.
    fn count_received(&mut self) {
        if let Some(counted) = &mut self.counted {
            let received = self.context.notes().bytes_in();
            if received > *counted {
                self.route.request_bytes.add(received - *counted);
                *counted = received;
            }
        }
    }

    /// Whether HTTP sends no body with this answer, whatever the answer holds.
    fn has_no_body(&self) -> bool {
        let bodiless = [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED];
        self.status.is_some_and(|status| self.is_head || bodiless.contains(&status))
    }
}

impl Watch for Exchange {
    fn data(&mut self, bytes: &[u8]) {
        let count = bytes.len() as u64;
        let notes = self.context.notes();
        notes.sent.add(count);
        notes.silent_since.clear();
        self.route.response_bytes.add(count);
        self.count_received();
    }

    fn silent(&mut self, since: Instant) {
        let since = since.saturating_duration_since(self.context.received_at());
        self.context.notes().silent_since.set(since);
    }

    fn end(&mut self, end: End) {
        self.close(end);
    }
}

impl Drop for Exchange {
    /// Still open, it was dropped together with the future: nobody waits for the answer any more.
    fn drop(&mut self) {
        self.close(End::Dropped);
    }
}

impl Facts {
    fn of(request: &Request) -> Self {
        let text = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
        Self {
            time: SystemTime::now(),
            host: asked_authority(request.uri(), request.headers()).into(),
            protocol: request.version(),
            user_agent: text(USER_AGENT).map(Into::into),
        }
    }
}

/// A request that came by no listener of ours: a program that uses the layer by itself.
fn unknown() -> RequestContext {
    let connection = Arc::new(Connection::new("-".into(), None, None, false, Duration::ZERO));
    RequestContext::new(RequestId::new(SystemTime::now(), entropy::random_u128()), connection, None)
}

/// Counts what the client sends.
struct Upload {
    received: Arc<AtomicU64>,
    total: Counter,
    context: RequestContext,
}

impl Watch for Upload {
    fn data(&mut self, bytes: &[u8]) {
        let count = bytes.len() as u64;
        self.received.fetch_add(count, Relaxed);
        self.total.add(count);
    }

    /// With an upload that is cut the upstream's answer breaks off as well, which is not the upstream's fault.
    fn end(&mut self, end: End) {
        if let End::Failed(reason @ (Reason::BodyTooLarge | Reason::UploadStalled | Reason::UploadSlow)) = end {
            self.context.notes().set_reason(reason);
        }
    }
}
