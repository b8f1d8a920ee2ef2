//! THE order of the layers. Read this file first.
//!
//! Every layer is always ready: hyper calls without asking, so waiting happens inside `call`, where it is bounded.
//! There is one box a route, at [`RouteService`].

use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use tower::ServiceBuilder;
use tower_service::Service;

use crate::config::{Action, Route};
use crate::context::{Request, Response};
use crate::control::published::Pressure;
use crate::error::{ProxyError, Reason};
use crate::layers::deadline::DeadlineLayer;
use crate::layers::fault::{FaultLayer, Faults};
use crate::layers::forward::ForwardLayer;
use crate::layers::headers::HeadersLayer;
use crate::layers::pressure::PressureLayer;
use crate::layers::priority::PriorityLayer;
use crate::layers::rate_limit::{AskLayer, RateLimitLayer};
use crate::layers::record::RecordLayer;
use crate::layers::render::RenderLayer;
use crate::layers::respond::{Redirect, Refuse, Respond};
use crate::layers::rewrite::RewriteLayer;
use crate::layers::shed::ShedLayer;
use crate::layers::success_rate::SuccessRateLayer;
use crate::layers::trace::TraceLayer;
use crate::layers::upload::UploadLayer;
use crate::live::{FaultsByRoute, Limiters, NO_ROUTE, OutcomesByRoute, Records};
use crate::metrics::Registry;
use crate::upstream::{Calls, Upstream};

/// A whole route: it answers every request and never fails. The one box of a route.
pub struct RouteService(Box<dyn Serve>);

type Answer = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

trait Serve: Send + Sync {
    fn serve(&self, request: Request) -> Answer;
}

impl<S> Serve for S
where
    S: Service<Request, Response = Response, Error = Infallible, Future: Send + 'static> + Clone + Send + Sync,
{
    fn serve(&self, request: Request) -> Answer {
        // Layers are always ready, so a fresh clone may be called at once.
        Box::pin(self.clone().call(request))
    }
}

impl RouteService {
    fn new(
        service: impl Service<Request, Response = Response, Error = Infallible, Future: Send + 'static>
        + Clone
        + Send
        + Sync
        + 'static,
    ) -> Self {
        Self(Box::new(service))
    }

    /// Answers a request. Dropping the future cancels what it waits for.
    #[must_use]
    pub fn call(&self, request: Request) -> Answer {
        self.0.serve(request)
    }
}

impl fmt::Debug for RouteService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RouteService").finish_non_exhaustive()
    }
}

/// What outlives a route and is shared with others.
#[derive(Debug)]
pub struct Shared {
    /// Where metrics are registered.
    pub registry: Registry,
    /// The record of each route.
    pub records: Records,
    /// In the order of the configuration.
    pub upstreams: Vec<Arc<Upstream>>,
    /// The rate limits of each route.
    pub limiters: Limiters,
    /// What is done wrong on each route.
    pub faults: FaultsByRoute,
    /// What became of the requests of each route that goes by it.
    pub outcomes: OutcomesByRoute,
    /// Sheds on all routes alike.
    pub shed: ShedLayer,
}

/// The layers of a route; the top is the first to see a request.
#[must_use]
pub fn route(route: &Route, shared: &Shared) -> RouteService {
    let top = ServiceBuilder::new()
        .layer(record(&route.name, shared)) // sees refusals too, and the end of every body
        .layer(TraceLayer) // passes on or begins the trace, which refusals are logged with as well
        .layer(RenderLayer) // errors become answers; nothing above can fail
        .layer(FaultLayer::new(faults(route, shared))); // wrong on purpose, before anything real is taken
    match &route.action {
        Action::Forward(upstream) => match shared.upstreams.get(*upstream) {
            Some(upstream) => RouteService::new(top.service(forward(route, shared, upstream))),
            None => RouteService::new(top.service(Refuse(Reason::NoEndpoint))),
        },
        Action::Respond { status, content_type, body } => RouteService::new(
            top.option_layer(asks(route, shared))
                .option_layer(rate_limits(route, shared))
                .option_layer(edits(route))
                .service(Respond::new(*status, content_type.clone(), Arc::clone(body))),
        ),
        Action::Redirect { status, to } => RouteService::new(
            top.option_layer(asks(route, shared))
                .option_layer(rate_limits(route, shared))
                .option_layer(edits(route))
                .service(Redirect::new(*status, Arc::clone(to))),
        ),
    }
}

/// What stands between the rendering of errors and an upstream.
fn forward(
    route: &Route,
    shared: &Shared,
    upstream: &Arc<Upstream>,
) -> impl Service<Request, Response = Response, Error = ProxyError, Future: Send + 'static> + Clone + Send + Sync + 'static
{
    ServiceBuilder::new()
        .option_layer(pressure(route, upstream)) // above whatever refuses, which tells about pressure most
        .layer(PriorityLayer::new(route.priority.clone())) // how much it matters, for all that refuse by class
        .layer(shared.shed.clone()) // while the proxy itself has too much to do, before anything is done
        .option_layer(shared.outcomes.get(&route.name).cloned().map(SuccessRateLayer::new)) // what would fail anyway
        .option_layer(DeadlineLayer::new(route.timeout.total, route.deadline)) // one clock over all that follows
        .option_layer(asks(route, shared)) // what instances share is asked for, before the limits decide
        .option_layer(rate_limits(route, shared)) // a cheap refusal, before any credit is taken
        .layer(UploadLayer::new(route.upload)) // what is too large takes no credit; the body is read below only
        .layer(ForwardLayer::new(route.forward.clone())) // the duties of an intermediary, which edits may override
        .option_layer(edits(route))
        .option_layer(route.rewrite.as_ref().map(RewriteLayer::new))
        // A bounded wait for a credit, held until the body ends, and the attempt that it is good for. One that fails may
        // be followed by another, with a credit of its own.
        .service(Calls::new(Arc::clone(upstream), route.timeout, route.retry.clone()))
}

/// What serves a request that reaches no route: refused, and recorded like any other.
#[must_use]
pub fn refuse(reason: Reason, shared: &Shared) -> RouteService {
    RouteService::new(
        ServiceBuilder::new()
            .layer(record(NO_ROUTE, shared))
            .layer(TraceLayer)
            .layer(RenderLayer)
            .service(Refuse(reason)),
    )
}

fn record(name: &str, shared: &Shared) -> RecordLayer {
    shared.records.get(name).cloned().unwrap_or_else(|| RecordLayer::new(name, &shared.registry, None))
}

fn rate_limits(route: &Route, shared: &Shared) -> Option<RateLimitLayer> {
    shared.limiters.get(&route.name).map(|limiters| RateLimitLayer::new(limiters.clone()))
}

fn asks(route: &Route, shared: &Shared) -> Option<AskLayer> {
    shared.limiters.get(&route.name).and_then(|limiters| AskLayer::new(limiters))
}

fn faults(route: &Route, shared: &Shared) -> Arc<Faults> {
    let unknown = || Arc::new(Faults::new(Arc::clone(&route.name), &shared.registry));
    shared.faults.get(&route.name).map_or_else(unknown, Arc::clone)
}

fn pressure(route: &Route, upstream: &Arc<Upstream>) -> Option<PressureLayer> {
    let source: Arc<dyn Pressure> = Arc::<Upstream>::clone(upstream);
    route.publish_pressure.then_some(PressureLayer(source))
}

fn edits(route: &Route) -> Option<HeadersLayer> {
    (!route.headers.is_empty()).then(|| HeadersLayer::new(&route.headers))
}
