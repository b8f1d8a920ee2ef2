//! Does not try all of what would fail anyway: while fewer requests of the route succeed than is set, a part of them is
//! turned away at once.
//!
//! A request has failed when its answer is a 5xx or a 429, when a gRPC call has its failure in the head, and when there
//! was no head at all; what the proxy refused by itself, and what its client gave up, tells nothing about the service.
//! So does a time that the client has set: who sets it too short must not make others be turned away. Refuses with
//! `low_success_rate` (503), protected requests never. Stands above the deadline, since the end of the route's own time
//! is a failure like another.
//!
//! ```toml
//! [[route]]
//! shed.success_rate = "50%"
//! ```

use std::future::Future;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::StatusCode;
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

use crate::context::{Priority, Request, RequestContext, Response};
use crate::control::success_rate::SuccessRate;
use crate::entropy;
use crate::error::{Exit, ProxyError, Reason};

/// What became of a route's requests. One for all its clones, and kept over a reload.
#[derive(Debug)]
pub struct Outcomes {
    least: NonZeroU32,
    rate: Mutex<SuccessRate>,
}

impl Outcomes {
    /// Nothing has happened yet; so many of a million must succeed.
    #[must_use]
    pub fn new(least: NonZeroU32) -> Self {
        let rate = SuccessRate::new(f64::from(least.get()) / 1_000_000.0, Instant::now());
        Self { least, rate: Mutex::new(rate) }
    }

    /// How many of a million must succeed.
    #[must_use]
    pub fn least(&self) -> NonZeroU32 {
        self.least
    }

    fn lock(&self) -> MutexGuard<'_, SuccessRate> {
        self.rate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See the module's text.
#[derive(Clone, Debug)]
pub struct SuccessRateLayer {
    outcomes: Arc<Outcomes>,
}

impl SuccessRateLayer {
    /// A layer that goes by these outcomes.
    #[must_use]
    pub fn new(outcomes: Arc<Outcomes>) -> Self {
        Self { outcomes }
    }
}

impl<S> Layer<S> for SuccessRateLayer {
    type Service = Tried<S>;

    fn layer(&self, inner: S) -> Tried<S> {
        Tried { inner, outcomes: Arc::clone(&self.outcomes) }
    }
}

/// The service of [`SuccessRateLayer`].
#[derive(Clone, Debug)]
pub struct Tried<S> {
    inner: S,
    outcomes: Arc<Outcomes>,
}

impl<S> Service<Request> for Tried<S>
where
    S: Service<Request, Response = Response, Error = ProxyError>,
{
    type Response = Response;
    type Error = ProxyError;
    type Future = Trying<S::Future>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Trying<S::Future> {
        let priority = request.extensions().get().map_or_else(Priority::default, RequestContext::priority);
        let refuses = priority != Priority::Protected && self.outcomes.lock().refuses(Instant::now(), entropy::unit());
        Trying { inner: (!refuses).then(|| self.inner.call(request)), outcomes: Arc::clone(&self.outcomes) }
    }
}

pin_project! {
    /// The future of [`Tried`].
    #[derive(Debug)]
    pub struct Trying<F> {
        // None: turned away.
        #[pin]
        inner: Option<F>,
        outcomes: Arc<Outcomes>,
    }
}

impl<F: Future<Output = Result<Response, ProxyError>>> Future for Trying<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let Some(inner) = this.inner.as_pin_mut() else {
            let wait = Duration::from_secs_f64(1.0 + 4.0 * entropy::unit());
            return Poll::Ready(Err(ProxyError::from(Reason::LowSuccessRate).retry_after(wait)));
        };
        let outcome = ready!(inner.poll(cx));
        if let Some(well) = went_well(&outcome) {
            this.outcomes.lock().ended(Instant::now(), well);
        }
        Poll::Ready(outcome)
    }
}

/// Whether the service has done its work; none when the outcome does not tell.
fn went_well(outcome: &Result<Response, ProxyError>) -> Option<bool> {
    match outcome {
        Ok(response) => {
            let status = response.status();
            let grpc = response.headers().get("grpc-status").map(http::HeaderValue::as_bytes);
            // DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, INTERNAL, UNAVAILABLE
            let has_failed = matches!(grpc, Some(b"4" | b"8" | b"13" | b"14"));
            Some(!(status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS || has_failed))
        }
        Err(error) if error.reason == Reason::DeadlineExceeded => None,
        Err(error) if error.reason.exit() == Exit::Failed => Some(false),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::{Connection, RequestId};
    use std::time::SystemTime;

    fn outcomes() -> Arc<Outcomes> {
        Arc::new(Outcomes::new(NonZeroU32::new(500_000).expect("half")))
    }

    fn answer(status: u16) -> Response {
        let mut response = Response::default();
        *response.status_mut() = StatusCode::from_u16(status).expect("a status");
        response
    }

    /// Of so many requests, those that were turned away.
    async fn run(
        outcomes: &Arc<Outcomes>,
        count: usize,
        priority: Priority,
        outcome: impl Fn() -> Result<Response, ProxyError> + Clone,
    ) -> usize {
        let inner = tower::service_fn(move |_: Request| std::future::ready(outcome()));
        let mut service = SuccessRateLayer::new(Arc::clone(outcomes)).layer(inner);
        let mut refused = 0;
        for _ in 0..count {
            let mut request = Request::default();
            let connection = Arc::new(Connection::new("test".into(), None, None, false, Duration::ZERO));
            let context = RequestContext::new(RequestId::new(SystemTime::UNIX_EPOCH, 1), connection, None);
            context.set_priority(priority);
            request.extensions_mut().insert(context);
            let answer = service.call(request).await;
            refused += usize::from(answer.is_err_and(|error| error.reason == Reason::LowSuccessRate));
        }
        refused
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_is_turned_away_and_what_succeeds_is_not() {
        for (outcome, is_refused) in [(200, false), (404, false), (500, true), (503, true), (429, true)] {
            let refused = run(&outcomes(), 500, Priority::Critical, || Ok(answer(outcome))).await;
            assert_eq!(refused > 300, is_refused, "{outcome}: {refused}");
            assert!(is_refused || refused == 0, "{outcome}: {refused}");
        }
        let failed = run(&outcomes(), 500, Priority::Default, || Err(Reason::ConnectFailed.into())).await;
        assert!(failed > 300, "{failed}");
        for reason in [Reason::QueueFull, Reason::DeadlineExceeded, Reason::DeadlinePassed] {
            let refused = run(&outcomes(), 500, Priority::Default, || Err(reason.into())).await;
            assert_eq!(refused, 0, "{reason} is not what the service does");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn protected_requests_are_always_tried() {
        let outcomes = outcomes();
        assert!(run(&outcomes, 200, Priority::Default, || Ok(answer(500))).await > 0);
        assert_eq!(run(&outcomes, 200, Priority::Protected, || Ok(answer(500))).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_leaves_says_nothing() {
        let outcomes = outcomes();
        let inner = tower::service_fn(|_: Request| std::future::pending::<Result<Response, ProxyError>>());
        let mut service = SuccessRateLayer::new(Arc::clone(&outcomes)).layer(inner);
        for _ in 0..100 {
            let call = service.call(Request::default());
            assert!(tokio::time::timeout(Duration::from_millis(1), call).await.is_err());
        }
        assert_eq!(run(&outcomes, 100, Priority::Default, || Ok(answer(200))).await, 0);
    }

    #[test]
    fn a_grpc_failure_is_one() {
        for (status, well) in [("0", true), ("5", true), ("14", false), ("8", false)] {
            let mut response = Response::default();
            response.headers_mut().insert("grpc-status", status.parse().expect("a value"));
            assert_eq!(went_well(&Ok(response)), Some(well), "{status}");
        }
    }
}
