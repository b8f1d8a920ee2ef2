//! One upstream as services: admission above, the attempt below.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

use super::{Admission, Client, ClientError, Settings, Timeouts};
use crate::body::Clocks;
use crate::body::kind::{self, Kind};
use crate::context::{Request, RequestContext, Response};
use crate::control::credits::Class;
use crate::error::{ProxyError, Reason};
use crate::metrics::Registry;

type Answer = Pin<Box<dyn Future<Output = Result<Response, ProxyError>> + Send>>;

/// A pool of endpoints that serve the same thing, with the one queue in front of them.
#[derive(Debug)]
pub struct Upstream {
    settings: Settings,
    admission: Admission,
    clients: Vec<Arc<Client>>,
}

impl Upstream {
    /// Fails when a certificate, a key or an authority cannot be read.
    pub fn new(settings: Settings, registry: &Registry) -> Result<Self, ClientError> {
        let clients =
            settings.endpoints.iter().map(|endpoint| Client::new(&settings, endpoint)).collect::<Result<_, _>>()?;
        Ok(Self { admission: Admission::new(&settings, registry), clients, settings })
    }

    /// What it was built from.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }
}

/// A request that holds a credit of one endpoint.
#[derive(Debug)]
pub struct Admitted {
    request: Request,
    endpoint: usize,
}

/// Holds a credit from admission to the end of the response body. Refuses with `queue_full` and `queue_timeout`.
#[derive(Clone, Debug)]
pub struct AdmissionLayer(pub Arc<Upstream>);

impl<S> Layer<S> for AdmissionLayer {
    type Service = Admit<S>;

    fn layer(&self, inner: S) -> Admit<S> {
        Admit { inner, upstream: Arc::clone(&self.0) }
    }
}

/// The service of [`AdmissionLayer`].
#[derive(Clone, Debug)]
pub struct Admit<S> {
    inner: S,
    upstream: Arc<Upstream>,
}

impl<S> Service<Request> for Admit<S>
where
    S: Service<Admitted, Response = Response, Error = ProxyError, Future: Send> + Clone + Send + 'static,
{
    type Response = Response;
    type Error = ProxyError;
    type Future = Answer;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Answer {
        let mut inner = self.inner.clone();
        let upstream = Arc::clone(&self.upstream);
        let context = request.extensions().get::<RequestContext>().cloned();
        Box::pin(async move {
            if let Some(context) = &context {
                let _ = context.notes().upstream.set(Arc::clone(&upstream.settings.name));
            }
            let class = match kind::of_request(request.headers()) {
                Kind::Unary => Class::Unary,
                Kind::Stream | Kind::Upgrade => Class::Stream,
            };
            let asked_at = Instant::now();
            let admitted = upstream.admission.admit(class).await;
            if let Some(context) = &context {
                context.notes().queued.set(asked_at.elapsed());
            }
            let mut credit = admitted?;
            let response = inner.call(Admitted { request, endpoint: credit.endpoint() }).await?;
            if kind::of_response(response.status(), response.headers()) != Kind::Unary {
                credit = credit.into_stream();
            }
            Ok(response.map(|body| credit.hold(body)))
        })
    }
}

/// One call of one endpoint, with the clocks of the route.
#[derive(Clone, Debug)]
pub struct Attempt {
    upstream: Arc<Upstream>,
    timeouts: Timeouts,
}

impl Attempt {
    /// Calls endpoints of `upstream`.
    #[must_use]
    pub fn new(upstream: Arc<Upstream>, timeouts: Timeouts) -> Self {
        Self { upstream, timeouts }
    }
}

impl Service<Admitted> for Attempt {
    type Response = Response;
    type Error = ProxyError;
    type Future = Answer;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, Admitted { request, endpoint }: Admitted) -> Answer {
        let Self { upstream, timeouts } = self.clone();
        Box::pin(async move {
            let client = upstream.clients.get(endpoint).ok_or(Reason::NoEndpoint)?;
            let context = request.extensions().get::<RequestContext>().cloned();
            if let (Some(context), Some(endpoint)) = (&context, upstream.settings.endpoints.get(endpoint)) {
                let _ = context.notes().endpoint.set(Arc::clone(&endpoint.label));
            }
            let response = client.send(request, timeouts.first_byte).await?;
            if let Some(context) = &context {
                context.notes().first_byte.set(context.received_at().elapsed());
            }
            let clocks = Clocks { idle: timeouts.idle, deadline: None };
            Ok(response.map(|body| if http_body::Body::is_end_stream(&body) { body } else { body.time(clocks) }))
        })
    }
}
