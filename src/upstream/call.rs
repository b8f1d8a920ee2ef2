//! Calls an upstream: a credit from admission, then the one attempt that it is good for.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::time::Instant;
use tower_service::Service;

use super::first_byte::AskedAt;
use super::{Credit, Timeouts, Upstream};
use crate::body::kind::{self, Kind};
use crate::body::{Clocks, Pulse};
use crate::context::{Notes, Request, RequestContext, Response};
use crate::control::credits::{Ask, Class};
use crate::error::ProxyError;

/// What a field takes beside its text, as HTTP/2 counts it (RFC 9113, section 10.5.1).
const FIELD: usize = 32;

type Answer = Pin<Box<dyn Future<Output = Result<Response, ProxyError>> + Send>>;

/// Calls an upstream, with the clocks of a route. A credit is held from admission to the end of the response body.
///
/// Refuses with what admission refuses with: `queue_full`, `queue_timeout`, `breaker_open` and `no_endpoint`. Dropping
/// the future, or the body of the answer, cancels the call and gives the credit back.
#[derive(Clone, Debug)]
pub struct Calls {
    upstream: Arc<Upstream>,
    timeouts: Timeouts,
}

impl Calls {
    /// The service of a route that leads to this upstream.
    #[must_use]
    pub fn new(upstream: Arc<Upstream>, timeouts: Timeouts) -> Self {
        Self { upstream, timeouts }
    }
}

impl Service<Request> for Calls {
    type Response = Response;
    type Error = ProxyError;
    type Future = Answer;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request) -> Answer {
        let Self { upstream, timeouts } = self.clone();
        let context = request.extensions().get::<RequestContext>().cloned();
        let call = Call { upstream, timeouts, context };
        Box::pin(async move {
            let ask = call.ask(&request);
            let credit = call.admit(ask, &request).await?;
            call.attempt(&mut request, credit).await
        })
    }
}

/// One request on its way.
struct Call {
    upstream: Arc<Upstream>,
    timeouts: Timeouts,
    context: Option<RequestContext>,
}

impl Call {
    fn notes(&self) -> Option<&Notes> {
        self.context.as_ref().map(RequestContext::notes)
    }

    /// What the request wants of admission.
    fn ask(&self, request: &Request) -> Ask {
        let kind = kind::of_request(request.headers());
        if let Some(notes) = self.notes() {
            let _ = notes.upstream.set(Arc::clone(self.upstream.name()));
            notes.set_kind(kind);
        }
        let class = match kind {
            Kind::Unary => Class::Unary,
            Kind::Stream | Kind::Upgrade => Class::Stream,
        };
        let mut ask = Ask { affinity: self.upstream.affinity(request), ..Ask::new(class, Instant::now()) };
        self.upstream.tell_apart(request, &mut ask);
        if let Some(context) = &self.context {
            (ask.priority, ask.deadline) = (context.priority(), context.deadline());
        }
        ask
    }

    /// Waits for a credit.
    fn admit<'a>(&'a self, ask: Ask, request: &Request) -> impl Future<Output = Result<Credit, ProxyError>> + use<'a> {
        let entry = self.upstream.admission.enter(ask, || head_size(request));
        async move {
            let admitted = entry.wait().await;
            if let Some(notes) = self.notes() {
                notes.queued.set(ask.at.elapsed());
            }
            admitted
        }
    }

    /// Asks the endpoint that a credit is good for, and waits for the head of its answer, whose body holds the credit
    /// from then on. A request of which nothing was sent is back in its place when this fails.
    async fn attempt(&self, request: &mut Request, credit: Credit) -> Result<Response, ProxyError> {
        if let Some(notes) = self.notes() {
            let _ = notes.endpoint.set(Arc::clone(credit.endpoint().label()));
        }
        let sent = credit.endpoint().client().send(request, self.timeouts.first_byte).await;
        let mut response = match sent {
            Ok(response) => response,
            Err(error) => {
                credit.failed(error.reason);
                return Err(error);
            }
        };
        let kind = kind::of_response(response.status(), response.headers());
        if let Some(context) = &self.context {
            context.notes().first_byte.set(context.received_at().elapsed());
            context.notes().set_kind(kind);
        }
        let asked = response.extensions_mut().remove::<AskedAt>().map(|AskedAt(at)| at);
        let clocks = Clocks { idle: self.timeouts.idle, deadline: None };
        let pulse = response.extensions_mut().remove::<Pulse>();
        let response = response.map(|body| match pulse {
            _ if http_body::Body::is_end_stream(&body) => body,
            // Both directions are one call: neither is silent while the other speaks.
            Some(pulse) => body.time(clocks).beside(pulse),
            None => body.time(clocks),
        });
        Ok(credit.answered(response, kind, asked))
    }
}

/// Bytes of a request's head, about: what is held while it waits. Its body is not read before.
fn head_size(request: &Request) -> usize {
    let fields = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD);
    let uri = request.uri();
    uri.path().len() + uri.query().map_or(0, str::len) + fields.sum::<usize>()
}
