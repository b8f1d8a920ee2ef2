use super::*;
use crate::access_log::Format;
use crate::body::{Body, BodyError};
use bytes::Bytes;
use http_body_util::{BodyExt as _, channel::Channel};
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};
use tower::ServiceExt as _;

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A route under test: its metrics, its log, and the layer.
struct Bench {
    registry: Registry,
    log: AccessLog,
    sink: Sink,
    layer: RecordLayer,
}

impl Bench {
    fn new() -> Self {
        let (registry, sink) = (Registry::new(), Sink::default());
        let log = AccessLog::new(Format::Json, &registry, sink.clone());
        let layer = RecordLayer::new("chat", &registry, Some(log.clone()));
        Self { registry, log, sink, layer }
    }

    async fn send(&self, request: Request, answer: impl FnOnce(Request) -> Response + Clone) -> Response {
        let inner = tower::service_fn(move |request| std::future::ready(Ok(answer.clone()(request))));
        let Ok(response) = self.layer.layer(inner).oneshot(request).await;
        response
    }

    /// The sample whose name and labels begin so.
    fn value(&self, sample: &str) -> u64 {
        let text = self.registry.encode();
        let line = text.lines().find(|line| line.strip_prefix(sample).is_some_and(|rest| rest.starts_with(' ')));
        line.map_or(0, |line| line.rsplit(' ').next().and_then(|n| n.parse().ok()).expect("a number"))
    }

    fn requests(&self, class: &str, reason: &str) -> u64 {
        self.value(&format!("headworks_requests_total{{route=\"chat\",class=\"{class}\",reason=\"{reason}\"}}"))
    }

    fn ended(&self, reason: &str) -> u64 {
        self.value(&format!("headworks_streams_ended_total{{route=\"chat\",reason=\"{reason}\"}}"))
    }

    fn in_flight(&self) -> u64 {
        self.value("headworks_requests_in_flight{route=\"chat\"}")
    }

    /// Closes the log and gives its lines.
    fn lines(&self) -> Vec<serde_json::Value> {
        self.log.close();
        let text = self.sink.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let text = String::from_utf8(text).expect("text");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }
}

fn request(method: Method) -> (Request, RequestContext) {
    let connection = Arc::new(Connection::new("public".into(), None, None, false, Duration::from_secs(1)));
    let context = RequestContext::new(RequestId::new(SystemTime::now(), 0), connection, None);
    let request = http::Request::builder()
        .method(method)
        .uri("/v1/chat?secret=1")
        .header("host", "api.example.com")
        .header(USER_AGENT, "curl/8")
        .header("authorization", "secret")
        .extension(context.clone());
    (request.body(Body::empty()).expect("a request"), context)
}

fn get() -> Request {
    request(Method::GET).0
}

fn ok(body: Body) -> Response {
    Response::new(body)
}

#[tokio::test]
async fn an_exchange_is_closed_with_the_last_byte() {
    let bench = Bench::new();
    let answer = |request: Request| {
        request.extensions().get::<RequestContext>().expect("context").notes().first_byte.set(Duration::from_millis(1));
        ok(Body::full("tokens"))
    };
    let mut response = bench.send(get(), answer).await;
    assert_eq!((bench.in_flight(), bench.requests("2xx", "none")), (1, 0));
    response.body_mut().frame().await.expect("a frame").expect("data");
    assert_eq!((bench.in_flight(), bench.requests("2xx", "none")), (0, 1));
    drop(response);
    assert_eq!((bench.in_flight(), bench.requests("2xx", "none")), (0, 1));
    assert_eq!(bench.value("headworks_response_bytes_total{route=\"chat\"}"), 6);
    assert_eq!(bench.value("headworks_request_duration_seconds_count{route=\"chat\"}"), 1);
    assert_eq!(bench.value("headworks_first_byte_seconds_count{route=\"chat\"}"), 1);
    let lines = bench.lines();
    assert_eq!(lines.len(), 1);
    assert_eq!((&lines[0]["status"], &lines[0]["bytes_out"]), (&200.into(), &6.into()));
    assert_eq!((&lines[0]["path"], &lines[0]["host"]), (&"/v1/chat".into(), &"api.example.com".into()));
    assert_eq!(lines[0]["user_agent"], "curl/8");
    assert!(!lines[0].to_string().contains("secret"));
}

#[tokio::test]
async fn bytes_of_the_request_are_counted_as_they_are_read() {
    let bench = Bench::new();
    let mut request = get();
    *request.body_mut() = Body::full("a question");
    let inner = tower::service_fn(|request: Request| async {
        request.into_body().collect().await.expect("a whole body");
        Ok(ok(Body::empty()))
    });
    let Ok(response) = bench.layer.layer(inner).oneshot(request).await;
    drop(response);
    assert_eq!(bench.value("headworks_request_bytes_total{route=\"chat\"}"), 10);
    assert_eq!(bench.lines()[0]["bytes_in"], 10);
}

#[tokio::test]
async fn a_client_that_leaves_before_the_head_is_recorded() {
    let bench = Bench::new();
    let silent = tower::service_fn(|_: Request| std::future::pending::<Result<Response, Infallible>>());
    let call = bench.layer.layer(silent).oneshot(get());
    assert!(tokio::time::timeout(Duration::from_millis(1), call).await.is_err());
    assert_eq!((bench.in_flight(), bench.requests("4xx", "client_gone"), bench.ended("client_gone")), (0, 1, 0));
    let lines = bench.lines();
    assert_eq!((&lines[0]["status"], &lines[0]["reason"]), (&499.into(), &"client_gone".into()));
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_is_recorded() {
    let bench = Bench::new();
    let mut senders = Vec::new();
    for stalled in [false, true] {
        let (request, context) = request(Method::GET);
        let (mut sender, channel) = Channel::<Bytes, BodyError>::new(4);
        sender.send_data(Bytes::from_static(b"tokens")).await.expect("room");
        senders.push(sender);
        let mut body = Some(Body::boxed(channel));
        let inner = tower::service_fn(move |_: Request| std::future::ready(Ok(ok(body.take().expect("one call")))));
        let Ok(mut response) = bench.layer.layer(inner).call(request).await;
        response.body_mut().frame().await.expect("a frame").expect("data");
        if stalled {
            context.connection().mark_cut(Reason::ClientStalled);
        }
    }
    assert_eq!((bench.requests("2xx", "client_gone"), bench.ended("client_gone")), (1, 1));
    assert_eq!((bench.requests("2xx", "client_stalled"), bench.ended("client_stalled")), (1, 1));
    assert_eq!(bench.in_flight(), 0);
    assert_eq!(bench.lines()[1]["reason"], "client_stalled");
}

#[tokio::test]
async fn a_body_that_breaks_off_is_recorded() {
    let bench = Bench::new();
    let reset = Err::<http_body::Frame<Bytes>, _>(io::Error::other("reset"));
    let broken = http_body_util::StreamBody::new(futures_util::stream::iter([reset]));
    let mut body = Some(Body::boxed(broken));
    let inner = tower::service_fn(move |_: Request| std::future::ready(Ok(ok(body.take().expect("one call")))));
    let Ok(mut response) = bench.layer.layer(inner).call(get()).await;
    response.body_mut().frame().await.expect("a frame").expect_err("broken");
    drop(response);
    assert_eq!((bench.requests("2xx", "upstream_reset"), bench.ended("upstream_reset")), (1, 1));
    assert_eq!(bench.lines().len(), 1);
}

#[tokio::test]
async fn a_refusal_keeps_its_reason_when_its_body_is_not_read() {
    let bench = Bench::new();
    let refuse = |request: Request| {
        let context = request.extensions().get::<RequestContext>().expect("context");
        context.notes().set_reason(Reason::RateLimited);
        let mut response = ok(Body::full("come back"));
        *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
        response
    };
    drop(bench.send(get(), refuse).await);
    assert_eq!((bench.requests("4xx", "rate_limited"), bench.ended("rate_limited")), (1, 0));
    assert_eq!(bench.lines()[0]["reason"], "rate_limited");
}

#[tokio::test]
async fn an_answer_without_a_body_is_complete_although_nobody_reads_it() {
    let bench = Bench::new();
    let response = bench.send(request(Method::HEAD).0, |_| ok(Body::full("not sent"))).await;
    assert_eq!(response.body().size_hint().exact(), Some(8), "Content-Length stays");
    drop(response);
    drop(bench.send(get(), |_| ok(Body::empty())).await);
    let not_modified = |_| {
        let mut response = ok(Body::full("not sent"));
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    };
    drop(bench.send(get(), not_modified).await);
    assert_eq!((bench.requests("2xx", "none"), bench.requests("3xx", "none")), (2, 1));
    assert_eq!(bench.lines().len(), 3);
}

#[tokio::test]
async fn it_serves_without_a_context_and_without_a_log() {
    let registry = Registry::new();
    let inner = tower::service_fn(|_: Request| std::future::ready(Ok(ok(Body::empty()))));
    let Ok(response) = RecordLayer::new("bare", &registry, None).layer(inner).oneshot(Request::default()).await;
    drop(response);
    assert!(registry.encode().contains("headworks_requests_total{route=\"bare\",class=\"2xx\",reason=\"none\"} 1\n"));
}
