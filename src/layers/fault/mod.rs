//! Does wrong on purpose, so that one sees what clients and alarms make of it before a real fault comes.
//!
//! ```toml
//! fault = { share = "5%", delay = "200ms", abort = 503 }
//! fault = { slow_body = "10KiB/s", stall = "5s" }
//! ```
//!
//! | file | does |
//! |---|---|
//! | `mod.rs` | what can be done wrong, and the layer that does it |
//! | `faults.rs` | [`Faults`]: what is in force for a route, by its configuration or by an order with an end |
//! | `body.rs` | a body that comes slowly, or not at all for a time |
//!
//! **Does.** A request that is drawn waits for `delay`; then it is aborted, by an answer with a status
//! (`fault_injected`) or without a word (`fault_reset`), or it goes its way, and its answer is handed on at a pace or
//! rests for a time. While an answer rests nothing more of it is read, so the service meets what a client that stalls
//! would make it meet; the proxy's own clock for stalled clients does not run, since it is not the client who stalls.
//!
//! **Stands** below the rendering of errors and above everything else: a request that is aborted takes no credit, no
//! place in a queue and nothing of a rate limit, and its delay is the client's, not a wait that deadlines bound.
//!
//! **Costs** one look at one number while nothing is in force.

mod body;
mod faults;
#[cfg(test)]
mod tests;

use std::fmt;
use std::future::Future;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::body::Body;
use crate::body::kind::{Kind, of_response};
use crate::context::{Done, Fault, Request, RequestContext, Response};
use crate::error::{ProxyError, Reason};
use body::Slowed;
pub use faults::{Faults, InForce, Order, show_share};

static PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

/// What is done wrong, and to how many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Of a million requests, so many are hit.
    pub share: NonZeroU32,
    /// How long one waits before anything else is done with it.
    pub delay: Option<Duration>,
    /// Whether it ends there.
    pub abort: Option<Abort>,
    /// Bytes a second with which the body of its answer is handed on.
    pub slow_body: Option<NonZeroU32>,
    /// How long nothing more of the answer is read after its first part.
    pub stall: Option<Duration>,
}

/// How a request ends by a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abort {
    /// By an answer.
    Status(StatusCode),
    /// Without a word: HTTP/1 connections are reset, and streams on HTTP/2.
    Reset,
}

/// Of a million requests, all.
pub const WHOLE: NonZeroU32 = NonZeroU32::MIN.saturating_add(999_999);

impl Settings {
    /// Why these make no sense together; none when they do.
    #[must_use]
    pub fn wrong(&self) -> Option<&'static str> {
        let body = self.slow_body.is_some() || self.stall.is_some();
        if self.abort.is_some() && body {
            return Some("what is aborted has no body to slow down or to stall");
        }
        let nothing = self.delay.is_none() && self.abort.is_none() && !body;
        nothing.then_some("this fault does nothing: it has none of `delay`, `abort`, `slow_body` and `stall`")
    }
}

/// Puts [`Faulty`] around a service.
#[derive(Clone, Debug)]
pub struct FaultLayer(Arc<Faults>);

impl FaultLayer {
    /// Does what `faults` say at the time. They are live state, and outlive a reload.
    #[must_use]
    pub fn new(faults: Arc<Faults>) -> Self {
        Self(faults)
    }
}

impl<S> Layer<S> for FaultLayer {
    type Service = Faulty<S>;

    fn layer(&self, inner: S) -> Faulty<S> {
        Faulty { inner, faults: Arc::clone(&self.0) }
    }
}

/// See the module's text.
#[derive(Clone, Debug)]
pub struct Faulty<S> {
    inner: S,
    faults: Arc<Faults>,
}

impl<S> Service<Request> for Faulty<S>
where
    S: Service<Request, Response = Response, Error = ProxyError, Future: Send> + Clone + Send + 'static,
{
    type Response = Response;
    type Error = ProxyError;
    type Future = Faulting<S::Future>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Faulting<S::Future> {
        let course = match self.faults.draw() {
            None => Course::Passes { inner: self.inner.call(request) },
            Some(settings) => {
                let context = request.extensions().get().cloned();
                let hit = Hit { settings, faults: Arc::clone(&self.faults), context };
                // Layers are always ready, so a fresh clone may be called.
                Course::Hit { inner: Box::pin(hit.answer(self.inner.clone(), request)) }
            }
        };
        Faulting { course }
    }
}

pin_project! {
    /// The future of [`Faulty`]. To drop it ends the wait, or the call below.
    pub struct Faulting<F> {
        #[pin]
        course: Course<F>,
    }
}

pin_project! {
    #[project = CourseOf]
    enum Course<F> {
        Passes {
            #[pin]
            inner: F,
        },
        Hit { inner: Pin<Box<dyn Future<Output = Result<Response, ProxyError>> + Send>> },
    }
}

impl<F> fmt::Debug for Faulting<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faulting").finish_non_exhaustive()
    }
}

impl<F: Future<Output = Result<Response, ProxyError>>> Future for Faulting<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        match self.project().course.project() {
            CourseOf::Passes { inner } => inner.poll(cx),
            CourseOf::Hit { inner } => inner.as_mut().poll(cx),
        }
    }
}

/// A request that was drawn.
struct Hit {
    settings: Settings,
    faults: Arc<Faults>,
    context: Option<RequestContext>,
}

impl Hit {
    async fn answer<S>(self, mut inner: S, request: Request) -> Result<Response, ProxyError>
    where
        S: Service<Request, Response = Response, Error = ProxyError>,
    {
        if let Some(delay) = self.settings.delay {
            self.note(Fault::Delay);
            tokio::time::sleep(delay).await;
        }
        match self.settings.abort {
            Some(Abort::Status(status)) => {
                self.note(Fault::Abort);
                return Err(ProxyError::from(Reason::FaultInjected).status(status));
            }
            Some(Abort::Reset) => {
                self.note(Fault::Reset);
                let Some(context) = &self.context else { return Err(Reason::FaultReset.into()) };
                context.reset(Reason::FaultReset);
                // Whoever drives the exchange drops it now.
                std::future::pending::<()>().await;
            }
            None => {}
        }
        let response = inner.call(request).await?;
        Ok(self.spoil(response))
    }

    /// Puts on the answer what is to be done to it, and says so in it.
    fn spoil(&self, response: Response) -> Response {
        let Settings { slow_body, stall, delay, .. } = self.settings;
        // What follows an upgrade is no body.
        let has_body = of_response(response.status(), response.headers()) != Kind::Upgrade;
        let (slow_body, stall) = (slow_body.filter(|_| has_body), stall.filter(|_| has_body));
        let done = Done::default();
        for (fault, is_done) in [(Fault::SlowBody, slow_body.is_some()), (Fault::Stall, stall.is_some())] {
            if is_done {
                self.note(fault);
                done.note(fault);
            }
        }
        let mut response = response;
        if done.names().is_some() {
            response = response.map(|body| Body::boxed(Slowed::new(body, slow_body, stall)));
        }
        if delay.is_some() {
            done.note(Fault::Delay);
        }
        if let Some(names) = done.names() {
            let said = format!("headworks; details=\"{}: {names}\"", Reason::FaultInjected.label());
            if let Ok(value) = HeaderValue::try_from(said) {
                response.headers_mut().append(&PROXY_STATUS, value);
            }
        }
        response
    }

    fn note(&self, fault: Fault) {
        self.faults.count(fault);
        if let Some(context) = &self.context {
            context.notes().faults.note(fault);
        }
    }
}
