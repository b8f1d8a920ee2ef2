//! What each layer adds to a request, over a service that answers at once: `cargo bench --bench layers`.

#![expect(clippy::unwrap_used, reason = "a benchmark may stop at once")]

use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use divan::{Bencher, black_box};
use headworks::access_log::AccessLog;
use headworks::body::Body;
use headworks::context::{Connection, Part, Request, RequestContext, RequestId, Response};
use headworks::error::ProxyError;
use headworks::layers::deadline::{self, DeadlineLayer};
use headworks::layers::forward::ForwardLayer;
use headworks::layers::rate_limit::{self, Limiter, RateLimitLayer};
use headworks::layers::record::RecordLayer;
use headworks::layers::render::RenderLayer;
use headworks::layers::trace::TraceLayer;
use headworks::metrics::Registry;
use tower::Service;
use tower::layer::Layer;
use tower::layer::util::Identity;

fn main() {
    divan::main();
}

#[derive(Clone)]
struct Answer;

impl Service<Request> for Answer {
    type Response = Response;
    type Error = ProxyError;
    type Future = std::future::Ready<Result<Response, ProxyError>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _request: Request) -> Self::Future {
        std::future::ready(Ok(Response::new(Body::full("ok"))))
    }
}

fn request(connection: &Arc<Connection>) -> Request {
    let id = RequestId::new(SystemTime::UNIX_EPOCH, 1);
    let context = RequestContext::new(id, Arc::clone(connection), connection.peer.map(|peer| peer.ip()));
    let mut request = http::Request::get("/v1/chat?x=1").header("host", "example.com").body(Body::empty()).unwrap();
    request.extensions_mut().insert(context);
    request
}

/// A request made, passed through `layer`, answered, and its body dropped.
fn measure<L>(bencher: Bencher<'_, '_>, layer: L)
where
    L: Layer<Answer, Service: Service<Request>>,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _inside = runtime.enter();
    let peer = "192.0.2.1:4711".parse().ok();
    let connection = Arc::new(Connection::new("bench".into(), peer, None, false, Duration::from_secs(30)));
    let mut service = layer.layer(Answer);
    bencher.bench_local(|| {
        let mut answer = std::pin::pin!(service.call(request(&connection)));
        let polled = answer.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(black_box(polled).is_ready());
    });
}

#[divan::bench]
fn nothing(bencher: Bencher<'_, '_>) {
    measure(bencher, Identity::new());
}

#[divan::bench]
fn record(bencher: Bencher<'_, '_>) {
    let layer = RecordLayer::new("bench", &Registry::new(), None::<AccessLog>);
    measure(bencher, tower::layer::util::Stack::new(RenderLayer, layer));
}

#[divan::bench]
fn deadline(bencher: Bencher<'_, '_>) {
    measure(bencher, DeadlineLayer::new(Some(Duration::from_secs(60)), deadline::Settings::default()).unwrap());
}

#[divan::bench]
fn rate_limit(bencher: Bencher<'_, '_>) {
    let settings = rate_limit::Settings {
        name: "bench".into(),
        by: Part::Client.into(),
        cost: rate_limit::Cost::Requests,
        amount: u64::from(u32::MAX).try_into().unwrap(),
        period: Duration::from_secs(1),
        burst: u64::from(u32::MAX).try_into().unwrap(),
        max_keys: 1_000,
        dry_run: false,
        surge: Vec::new(),
        top_talkers: None,
        shared: false,
    };
    measure(bencher, RateLimitLayer::new([Arc::new(Limiter::new(settings, &Registry::new(), "bench"))]));
}

#[divan::bench]
fn trace(bencher: Bencher<'_, '_>) {
    measure(bencher, TraceLayer);
}

#[divan::bench]
fn forward(bencher: Bencher<'_, '_>) {
    measure(bencher, ForwardLayer::default());
}
