use super::*;
use crate::context::{Connection, Protocol, RequestId};
use crate::metrics::Registry;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use http_body_util::channel::Channel;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::SystemTime;
use tokio::time::Instant;

const QUIET: Settings = Settings { share: WHOLE, delay: None, abort: None, slow_body: None, stall: None };

struct Bench {
    faults: Arc<Faults>,
    registry: Registry,
    calls: Arc<AtomicUsize>,
}

impl Bench {
    fn new(settings: Settings) -> Self {
        let registry = Registry::new();
        let faults = Arc::new(Faults::new("chat".into(), &registry));
        faults.configure(Some(settings));
        Self { faults, registry, calls: Arc::default() }
    }

    fn service(&self, answer: fn() -> Body) -> impl Service<Request, Response = Response, Error = ProxyError> {
        let calls = Arc::clone(&self.calls);
        let inner = tower::service_fn(move |_: Request| {
            calls.fetch_add(1, Relaxed);
            async move { Ok::<_, ProxyError>(Response::new(answer())) }
        });
        FaultLayer::new(Arc::clone(&self.faults)).layer(inner)
    }

    async fn send(&self, request: Request, answer: fn() -> Body) -> Result<Response, ProxyError> {
        self.service(answer).call(request).await
    }

    fn counted(&self, kind: &str) -> bool {
        self.registry.encode().contains(&format!("headworks_faults_total{{route=\"chat\",kind=\"{kind}\"}} 1\n"))
    }
}

fn request() -> (Request, RequestContext) {
    let connection = Connection::new("test".into(), None, None, false, Duration::ZERO);
    connection.speaks(Protocol::Http1);
    let context = RequestContext::new(RequestId::new(SystemTime::UNIX_EPOCH, 1), Arc::new(connection), None);
    let mut request = Request::default();
    request.extensions_mut().insert(context.clone());
    (request, context)
}

fn pace(bytes: u32) -> Option<NonZeroU32> {
    NonZeroU32::new(bytes)
}

#[tokio::test(start_paused = true)]
async fn a_delay_and_then_a_status_in_the_upstreams_place() {
    let abort = Some(Abort::Status(StatusCode::IM_A_TEAPOT));
    let bench = Bench::new(Settings { delay: Some(Duration::from_millis(200)), abort, ..QUIET });
    let (request, context) = request();
    let began = Instant::now();
    let error = bench.send(request, Body::empty).await.expect_err("an abort");
    assert_eq!((error.reason, error.status), (Reason::FaultInjected, Some(StatusCode::IM_A_TEAPOT)));
    assert_eq!((began.elapsed().as_millis(), bench.calls.load(Relaxed)), (200, 0));
    assert_eq!(context.notes().faults.names().expect("two").to_string(), "delay+abort");
    assert!(bench.counted("delay") && bench.counted("abort"));
}

#[tokio::test(start_paused = true)]
async fn a_reset_cuts_the_exchange() {
    let bench = Bench::new(Settings { abort: Some(Abort::Reset), ..QUIET });
    let (request, context) = request();
    let answer = tokio::time::timeout(Duration::from_secs(60), bench.send(request, Body::empty)).await;
    assert!(answer.is_err() && context.is_cut());
    assert_eq!((context.notes().reason(), bench.calls.load(Relaxed)), (Some(Reason::FaultReset), 0));
    let error = bench.send(Request::default(), Body::empty).await.expect_err("nobody to cut");
    assert_eq!(error.reason, Reason::FaultReset);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_ends_the_delay() {
    let bench = Bench::new(Settings { delay: Some(Duration::from_secs(60)), ..QUIET });
    let (request, context) = request();
    let left = tokio::time::timeout(Duration::from_secs(1), bench.send(request, Body::empty)).await;
    assert!(left.is_err());
    assert_eq!(Arc::strong_count(&bench.faults), 1, "nothing waits on");
    assert_eq!((context.connection().active(), bench.calls.load(Relaxed)), (1, 0), "the test's own");
}

#[tokio::test(start_paused = true)]
async fn a_slow_body_keeps_its_pace_and_its_bytes() {
    let bench = Bench::new(Settings { slow_body: pace(1000), ..QUIET });
    let answer = || Body::full(Bytes::from((0..=255).cycle().take(3000).collect::<Vec<u8>>()));
    let (request, _) = request();
    let response = bench.send(request, answer).await.expect("an answer");
    assert_eq!(response.headers()["proxy-status"], "headworks; details=\"fault_injected: slow_body\"");
    let mut body = response.into_body();
    let began = Instant::now();
    let mut read = Vec::new();
    while let Some(frame) = body.frame().await {
        let data = frame.expect("no error").into_data().expect("data");
        assert!(data.len() <= 100, "{}", data.len());
        read.extend_from_slice(&data);
        assert_eq!(http_body::Body::size_hint(&body).exact(), Some(3000 - read.len() as u64));
    }
    assert_eq!(read, answer().collect().await.expect("whole").to_bytes());
    let took = began.elapsed();
    assert!((Duration::from_millis(2900)..Duration::from_millis(3100)).contains(&took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stall_reads_nothing_of_the_upstream() {
    let (mut sender, channel) = Channel::<Bytes, crate::body::BodyError>::new(1);
    let mut body = Slowed::new(Body::boxed(channel), None, Some(Duration::from_secs(5)));
    sender.send_data(Bytes::from_static(b"first")).await.expect("room");
    let mut body = Pin::new(&mut body);
    assert_eq!(body.frame().await.expect("a frame").expect("data").into_data().expect("data"), "first");
    sender.send_data(Bytes::from_static(b"second")).await.expect("room for one");
    let began = Instant::now();
    let more = async {
        sender.send_data(Bytes::from_static(b"third")).await.expect("room");
        began.elapsed().as_secs()
    };
    let (sent_after, frame) = tokio::join!(more, body.frame());
    assert_eq!(frame.expect("a frame").expect("data").into_data().expect("data"), "second");
    assert_eq!((sent_after, began.elapsed().as_secs()), (5, 5));
    assert_eq!(body.frame().await.expect("a frame").expect("data").into_data().expect("data"), "third");
    assert_eq!(began.elapsed().as_secs(), 5, "it stalls once");
}

#[tokio::test]
async fn an_error_of_the_body_keeps_its_reason() {
    let broken = || {
        let error = Err::<http_body::Frame<Bytes>, _>(crate::body::BodyError::from(Reason::UpstreamStalled));
        Body::boxed(http_body_util::StreamBody::new(futures_util::stream::iter([error])))
    };
    let bench = Bench::new(Settings { slow_body: pace(1000), ..QUIET });
    let mut response = bench.send(Request::default(), broken).await.expect("a head");
    let error = response.body_mut().frame().await.expect("an error").expect_err("broken");
    assert_eq!(error.reason, Reason::UpstreamStalled);
}

#[tokio::test(start_paused = true)]
async fn an_order_stands_before_the_configuration_and_ends_by_itself() {
    let bench = Bench::new(Settings { share: NonZeroU32::MIN, delay: Some(Duration::from_secs(1)), ..QUIET });
    let until = Instant::now() + Duration::from_secs(30);
    let settings = Settings { abort: Some(Abort::Status(StatusCode::BAD_GATEWAY)), ..QUIET };
    bench.faults.order(Some(Order { settings: settings.clone(), until }));
    assert!(bench.send(Request::default(), Body::empty).await.is_err());
    let in_force = bench.faults.in_force().expect("a fault");
    assert_eq!((in_force.settings, in_force.ends_in.map(|time| time.as_secs())), (settings, Some(30)));
    bench.faults.configure(None);
    assert!(bench.send(Request::default(), Body::empty).await.is_err(), "an order outlives a reload");
    tokio::time::advance(Duration::from_secs(30)).await;
    assert!(bench.send(Request::default(), Body::empty).await.is_ok());
    assert_eq!(bench.faults.in_force(), None);
    assert_eq!(bench.faults.draw(), None);
}

#[tokio::test]
async fn a_share_of_the_requests_is_hit() {
    let abort = Some(Abort::Status(StatusCode::BAD_GATEWAY));
    let share = NonZeroU32::new(50_000).expect("5 %");
    let bench = Bench::new(Settings { share, abort, ..QUIET });
    let hit = (0..100_000).filter(|_| bench.faults.draw().is_some()).count();
    // 5,000 on the average, and five times the deviation to either side.
    assert!((4650..5350).contains(&hit), "{hit}");
    bench.faults.configure(None);
    assert!((0..1000).all(|_| bench.faults.draw().is_none()));
}
