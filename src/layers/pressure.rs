//! Says with each answer how much the upstream of the route has to do, refusals included, so that a proxy in front can
//! hold back by itself: `endpoint-load-metrics` (ORCA, as TEXT) and `x-headworks-credit`; gRPC calls say it in their
//! trailers too, as `endpoint-load-metrics-bin`. `docs/capacity.md` has them.
//!
//! Refuses nothing. Stands above whatever refuses, and takes the place of what an upstream says of itself.
//!
//! ```toml
//! [[route]]
//! publish_pressure = true
//! ```

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::Body as _;
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::body::Watch;
use crate::body::kind::{Kind, is_grpc, of_request, of_response};
use crate::context::{Request, RequestContext, Response};
use crate::control::published::{LoadReport, Pressure, fields};
use crate::error::ProxyError;

/// See the module's text.
#[derive(Clone, Debug)]
pub struct PressureLayer(pub Arc<dyn Pressure>);

impl<S> Layer<S> for PressureLayer {
    type Service = Publish<S>;

    fn layer(&self, inner: S) -> Publish<S> {
        Publish { inner, source: Arc::clone(&self.0) }
    }
}

/// The service of [`PressureLayer`].
#[derive(Clone, Debug)]
pub struct Publish<S> {
    inner: S,
    source: Arc<dyn Pressure>,
}

impl<S> Service<Request> for Publish<S>
where
    S: Service<Request, Response = Response, Error = ProxyError>,
{
    type Response = Response;
    type Error = ProxyError;
    type Future = Publishing<S::Future>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Publishing<S::Future> {
        let context = request.extensions().get::<RequestContext>().cloned();
        let asked = of_request(request.headers());
        Publishing { inner: self.inner.call(request), source: Arc::clone(&self.source), context, asked }
    }
}

pin_project! {
    /// The future of [`Publish`].
    #[derive(Debug)]
    pub struct Publishing<F> {
        #[pin]
        inner: F,
        source: Arc<dyn Pressure>,
        context: Option<RequestContext>,
        asked: Kind,
    }
}

impl<F: Future<Output = Result<Response, ProxyError>>> Future for Publishing<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let mut result = ready!(this.inner.poll(cx));
        let waited = this.context.as_ref().and_then(|context| context.notes().queued.get());
        match &mut result {
            Ok(response) => {
                let kind = of_response(response.status(), response.headers());
                let report = this.source.pressure(kind != Kind::Unary);
                // This one has waited for as long as it has, whatever the next one will.
                let report = LoadReport { queue_delay: waited.or(report.queue_delay), ..report };
                replace(response.headers_mut(), fields::write(&report).into_iter().flatten());
                if is_grpc(response.headers()) && !response.body().is_end_stream() {
                    let source = Arc::clone(this.source);
                    response.body_mut().watch_in_place(Box::new(AtTheEnd { source, waited }));
                }
            }
            Err(error) => {
                let report = this.source.pressure(*this.asked != Kind::Unary);
                // One that found no place has not waited, and is no sign that nobody does.
                let report = LoadReport { queue_delay: report.queue_delay.max(waited), ..report };
                error.headers.extend(fields::write(&report).into_iter().flatten());
            }
        }
        Poll::Ready(result)
    }
}

/// Says in the trailers how much there is to do by then.
struct AtTheEnd {
    source: Arc<dyn Pressure>,
    waited: Option<Duration>,
}

impl Watch for AtTheEnd {
    fn trailers(&mut self, trailers: &mut HeaderMap) {
        let report = self.source.pressure(true);
        let report = LoadReport { queue_delay: self.waited.or(report.queue_delay), ..report };
        replace(trailers, fields::write_trailer(&report));
    }
}

/// In place of what an upstream says of itself, in whatever form.
fn replace(headers: &mut HeaderMap, said: impl IntoIterator<Item = (HeaderName, HeaderValue)>) {
    if fields::is_there(headers) {
        fields::remove(headers);
    }
    for (name, value) in said {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::Body;
    use crate::error::Reason;
    use bytes::Bytes;
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    #[derive(Debug)]
    struct Busy;

    impl Pressure for Busy {
        fn pressure(&self, is_stream: bool) -> LoadReport {
            LoadReport {
                credit: Some(if is_stream { 7 } else { 30 }),
                queue_delay: Some(Duration::from_millis(40)),
                utilization: Some(1.5),
                rps: None,
            }
        }
    }

    async fn answered(answer: Result<Response, ProxyError>) -> Result<Response, ProxyError> {
        let answer = std::sync::Mutex::new(Some(answer));
        let inner = tower::service_fn(move |_: Request| {
            let answer = answer.lock().expect("no panic").take().expect("it is asked once");
            async { answer }
        });
        PressureLayer(Arc::new(Busy)).layer(inner).oneshot(Request::default()).await
    }

    async fn asked(answer: Result<Response, ProxyError>) -> HeaderMap {
        match answered(answer).await {
            Ok(response) => response.headers().clone(),
            Err(error) => error.headers.into_iter().collect(),
        }
    }

    #[tokio::test]
    async fn answers_and_refusals_say_how_busy_the_upstream_is() {
        let mut response = Response::default();
        response.headers_mut().insert(&fields::LOAD, "TEXT eps=1".parse().expect("a value"));
        response.headers_mut().insert(&fields::QUEUE_DELAY, "5".parse().expect("a value"));
        let text = "TEXT application_utilization=1.5, named_metrics.queue_delay_ms=40";
        for headers in [asked(Ok(response)).await, asked(Err(Reason::QueueFull.into())).await] {
            assert_eq!(headers[&fields::LOAD], text);
            assert_eq!((headers[&fields::CREDIT].clone(), headers.len()), ("30".parse().expect("a value"), 2));
        }
        let mut stream = Response::default();
        stream.headers_mut().insert("content-type", "text/event-stream".parse().expect("a value"));
        assert_eq!(asked(Ok(stream)).await[&fields::CREDIT], "7");
    }

    #[tokio::test]
    async fn a_grpc_call_says_it_at_its_end_too() {
        let said = [("grpc-status", "0"), ("endpoint-load-metrics", "TEXT eps=1"), ("x-headworks-credit", "3")];
        let said = said.map(|(name, value)| (name.parse().expect("a name"), value.parse().expect("a value")));
        let trailers = HeaderMap::from_iter(said);
        let frame = http_body::Frame::<Bytes>::trailers(trailers);
        let frames = futures_util::stream::iter([Ok::<_, std::io::Error>(frame)]);
        let mut response = Response::new(Body::boxed(http_body_util::StreamBody::new(frames)));
        response.headers_mut().insert("content-type", "application/grpc".parse().expect("a value"));
        let body = answered(Ok(response)).await.expect("an answer").into_body();
        let trailers = body.collect().await.expect("a whole body").trailers().cloned().expect("trailers");
        let said = fields::read(&trailers).expect("a report").report;
        assert_eq!((said.credit, said.utilization, trailers.len()), (Some(7), Some(1.5), 2));
    }
}
