//! One upstream as services: admission above, the attempt below.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

use super::admission::EndpointState;
use super::endpoint::{Endpoint, Recipe};
use super::first_byte::AskedAt;
use super::{Admission, ClientError, Settings, Timeouts};
use crate::body::kind::{self, Kind};
use crate::body::{Clocks, Pulse};
use crate::context::{Request, RequestContext, Response};
use crate::control::credits::{Ask, Class};
use crate::error::ProxyError;
use crate::metrics::Registry;

type Answer = Pin<Box<dyn Future<Output = Result<Response, ProxyError>> + Send>>;

/// A pool of endpoints that serve the same thing, with the one queue in front of them.
///
/// It outlives changes of its settings: credits that are out count on, who waits keeps its place, and an endpoint whose
/// connections would be made alike keeps them. A request that waits gets an endpoint of those that are there when its
/// credit comes.
#[derive(Debug)]
pub struct Upstream {
    name: Arc<str>,
    admission: Admission,
}

/// Other settings of an upstream, with everything built that could fail.
#[derive(Debug)]
pub struct Change {
    settings: Settings,
    endpoints: Vec<Arc<Endpoint>>,
}

impl Upstream {
    /// Fails when a certificate, a key or an authority cannot be read.
    pub fn new(settings: &Settings, registry: &Registry) -> Result<Self, ClientError> {
        let endpoints = settings.endpoints.iter().map(|endpoint| Endpoint::new(settings, endpoint));
        let admission = Admission::new(settings, endpoints.collect::<Result<_, _>>()?, registry);
        Ok(Self { name: Arc::clone(&settings.name), admission })
    }

    /// Builds what other settings need, and changes nothing.
    pub fn prepare(&self, settings: &Settings) -> Result<Change, ClientError> {
        let known = self.admission.endpoints();
        let endpoints = settings.endpoints.iter().map(|wanted| {
            let recipe = Recipe::new(settings, wanted);
            let same =
                |state: &&EndpointState| state.endpoint.settings() == wanted && *state.endpoint.recipe() == recipe;
            match known.iter().find(same) {
                Some(state) => Ok(Arc::clone(&state.endpoint)),
                None => Endpoint::new(settings, wanted),
            }
        });
        Ok(Change { endpoints: endpoints.collect::<Result<_, _>>()?, settings: settings.clone() })
    }

    /// Brings other settings in force.
    pub fn apply(&self, change: Change) {
        self.admission.apply(&change.settings, change.endpoints);
    }

    /// No route leads here any more: connections are closed as soon as they idle. What is under way goes on.
    pub fn retire(&self) {
        for EndpointState { endpoint, .. } in self.admission.endpoints() {
            endpoint.client().set_closing(true);
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// All endpoints, in the order of the configuration.
    #[must_use]
    pub fn endpoints(&self) -> Vec<EndpointState> {
        self.admission.endpoints()
    }

    /// How many requests wait for a credit.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.admission.waiting()
    }

    /// Begins the drain of an endpoint, or ends it: a draining one gets no more requests, those it has go on, and its
    /// idle connections are closed. False when it is not among the endpoints.
    pub fn set_draining(&self, endpoint: &Arc<Endpoint>, is_draining: bool) -> bool {
        self.admission.set_draining(endpoint, is_draining)
    }
}

/// A request that holds a credit of one endpoint.
#[derive(Debug)]
pub struct Admitted {
    request: Request,
    endpoint: Arc<Endpoint>,
}

/// Holds a credit from admission to the end of the response body. Refuses with `queue_full`, `queue_timeout` and
/// `no_endpoint`.
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
                let _ = context.notes().upstream.set(Arc::clone(&upstream.name));
            }
            let asked = kind::of_request(request.headers());
            let class = match asked {
                Kind::Unary => Class::Unary,
                Kind::Stream | Kind::Upgrade => Class::Stream,
            };
            if let Some(context) = &context {
                context.notes().set_kind(asked);
            }
            let asked_at = Instant::now();
            let admitted = upstream.admission.admit(Ask::new(class, asked_at)).await;
            if let Some(context) = &context {
                context.notes().queued.set(asked_at.elapsed());
            }
            let credit = admitted?;
            let response = inner.call(Admitted { request, endpoint: Arc::clone(credit.endpoint()) }).await;
            let mut response = match response {
                Ok(response) => response,
                Err(error) => {
                    credit.failed(error.reason);
                    return Err(error);
                }
            };
            let answered = kind::of_response(response.status(), response.headers());
            if let Some(context) = &context {
                context.notes().set_kind(answered);
            }
            let asked = response.extensions_mut().remove::<AskedAt>().map(|AskedAt(at)| at);
            let credit = credit.answered(response.status(), answered, asked);
            Ok(response.map(|body| credit.hold(body)))
        })
    }
}

/// One call of one endpoint, with the clocks of the route.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    timeouts: Timeouts,
}

impl Attempt {
    /// Calls the endpoint that a request was admitted to.
    #[must_use]
    pub fn new(timeouts: Timeouts) -> Self {
        Self { timeouts }
    }
}

impl Service<Admitted> for Attempt {
    type Response = Response;
    type Error = ProxyError;
    type Future = Answer;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, Admitted { mut request, endpoint }: Admitted) -> Answer {
        let Self { timeouts } = *self;
        Box::pin(async move {
            let context = request.extensions().get::<RequestContext>().cloned();
            if let Some(context) = &context {
                let _ = context.notes().endpoint.set(Arc::clone(endpoint.label()));
            }
            let mut response = endpoint.client().send(&mut request, timeouts.first_byte).await?;
            if let Some(context) = &context {
                context.notes().first_byte.set(context.received_at().elapsed());
            }
            let clocks = Clocks { idle: timeouts.idle, deadline: None };
            let pulse = response.extensions_mut().remove::<Pulse>();
            Ok(response.map(|body| match pulse {
                _ if http_body::Body::is_end_stream(&body) => body,
                // Both directions are one call: neither is silent while the other speaks.
                Some(pulse) => body.time(clocks).beside(pulse),
                None => body.time(clocks),
            }))
        })
    }
}
