use super::*;
use crate::body::Body;
use crate::context::{Connection, Part, RequestId};
use crate::metrics::Registry;
use http::{HeaderMap, HeaderName};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::SystemTime;
use tower::ServiceExt as _;

const AUTHORIZATION: HeaderName = http::header::AUTHORIZATION;

fn token() -> Key {
    Part::Header(AUTHORIZATION).into()
}

fn settings(by: Key, amount: u32, period: u64, burst: u32) -> Settings {
    let positive = |n| NonZeroU32::new(n).expect("positive");
    let period = Duration::from_secs(period);
    Settings { name: "per-key".into(), by, amount: positive(amount), period, burst: positive(burst), max_keys: 10_000 }
}

fn limiter(settings: Settings) -> Arc<Limiter> {
    Arc::new(Limiter::new(settings, &Registry::new(), "route"))
}

async fn send(limits: &[Arc<Limiter>], request: Request) -> Result<Response, ProxyError> {
    let inner = tower::service_fn(async |_| Ok(Response::new(Body::empty())));
    RateLimitLayer::new(limits.to_vec()).layer(inner).oneshot(request).await
}

fn with_token(token: &str) -> Request {
    http::Request::builder().header(AUTHORIZATION, token).body(Body::empty()).expect("a request")
}

fn from(client: Option<&str>) -> Request {
    let connection = Arc::new(Connection::new("public".into(), None, None, false, Duration::from_secs(1)));
    let client = client.map(|address| address.parse().expect("an address"));
    let mut request = Request::new(Body::empty());
    request.extensions_mut().insert(RequestContext::new(RequestId::new(SystemTime::now(), 0), connection, client));
    request
}

fn told(headers: &HeaderMap) -> (&str, &str) {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("none");
    (text("ratelimit"), text("ratelimit-policy"))
}

fn told_by(error: ProxyError) -> (Reason, Duration, HeaderMap) {
    (error.reason, error.retry_after.expect("a wait"), error.headers.into_iter().collect())
}

#[tokio::test(start_paused = true)]
async fn a_burst_passes_and_then_the_wait_is_exact() {
    let limits = [limiter(settings(Key::default(), 60, 60, 3))];
    for expected in ["\"per-key\";r=2;t=1", "\"per-key\";r=1;t=1", "\"per-key\";r=0;t=1"] {
        let response = send(&limits, from(None)).await.expect("room");
        assert_eq!(told(response.headers()), (expected, "\"per-key\";q=60;w=60"));
    }
    tokio::time::advance(Duration::from_millis(300)).await;
    let (reason, wait, headers) = told_by(send(&limits, from(None)).await.expect_err("used up"));
    assert_eq!((reason, wait), (Reason::RateLimited, Duration::from_millis(700)));
    assert_eq!(told(&headers), ("\"per-key\";r=0;t=1", "\"per-key\";q=60;w=60"));
    tokio::time::advance(Duration::from_millis(699)).await;
    send(&limits, from(None)).await.expect_err("a millisecond too early");
    tokio::time::advance(Duration::from_millis(1)).await;
    send(&limits, from(None)).await.expect("exactly in time");
}

#[tokio::test(start_paused = true)]
async fn what_is_left_is_told_as_it_comes_back() {
    let limits = [limiter(settings(Key::default(), 1, 3600, 2))];
    let response = send(&limits, from(None)).await.expect("room");
    assert_eq!(told(response.headers()), ("\"per-key\";r=1;t=3600", "\"per-key\";q=1;w=3600"));
    tokio::time::advance(Duration::from_secs(3000)).await;
    let response = send(&limits, from(None)).await.expect("room");
    assert_eq!(told(response.headers()).0, "\"per-key\";r=0;t=600");
    let (_, wait, _) = told_by(send(&limits, from(None)).await.expect_err("used up"));
    assert_eq!(wait, Duration::from_secs(600));
    tokio::time::advance(Duration::from_secs(48 * 3600)).await;
    let response = send(&limits, from(None)).await.expect("full again");
    assert_eq!(told(response.headers()).0, "\"per-key\";r=1;t=3600");
}

#[tokio::test(start_paused = true)]
async fn keys_are_kept_apart_and_requests_without_one_share() {
    let limits = [limiter(settings(token(), 1, 60, 1))];
    send(&limits, with_token("a")).await.expect("room");
    send(&limits, with_token("b")).await.expect("another key");
    send(&limits, with_token("")).await.expect("an empty value is a value");
    send(&limits, with_token("a")).await.expect_err("used up");
    send(&limits, from(None)).await.expect("no field is a key of its own");
    send(&limits, from(None)).await.expect_err("and shared");
    let mut twice = with_token("a");
    twice.headers_mut().append(AUTHORIZATION, "junk".parse().expect("a value"));
    send(&limits, twice).await.expect_err("a second line opens no way around");
}

#[tokio::test(start_paused = true)]
async fn a_refused_request_takes_nothing_from_the_other_limits() {
    let registry = Registry::new();
    let new = |name: &str, by, burst| {
        let settings = Settings { name: name.into(), ..settings(by, 1, 60, burst) };
        Arc::new(Limiter::new(settings, &registry, "route"))
    };
    let limits = [new("all", Key::default(), 3), new("each", token(), 1), new("loose", Key::default(), 100)];
    let response = send(&limits, with_token("a")).await.expect("room");
    assert_eq!(told(response.headers()), ("\"each\";r=0;t=60", "\"each\";q=1;w=60"), "the tightest is told");
    for _ in 0..10 {
        send(&limits, with_token("a")).await.expect_err("used up");
    }
    send(&limits, with_token("b")).await.expect("the refused ones took nothing");
    let response = send(&limits, with_token("c")).await.expect("the refused ones took nothing");
    assert_eq!(told(response.headers()).0, "\"all\";r=0;t=60", "the first of equals is told");
    let text = registry.encode();
    for line in [
        "headworks_rate_limit_requests_total{route=\"route\",limit=\"all\",result=\"allowed\"} 3",
        "headworks_rate_limit_requests_total{route=\"route\",limit=\"all\",result=\"refused\"} 0",
        "headworks_rate_limit_requests_total{route=\"route\",limit=\"each\",result=\"refused\"} 10",
        "headworks_rate_limit_keys{route=\"route\",limit=\"each\"} 3",
    ] {
        assert!(text.lines().any(|known| known == line), "{line} is not in\n{text}");
    }
    drop(limits);
    assert!(registry.encode().contains("headworks_rate_limit_keys{route=\"route\",limit=\"each\"} 0"));
}

#[tokio::test(start_paused = true)]
async fn the_longest_wait_is_told() {
    let limits = [limiter(settings(Key::default(), 1, 1, 1)), limiter(settings(Key::default(), 1, 60, 1))];
    send(&limits, from(None)).await.expect("room");
    let (_, wait, _) = told_by(send(&limits, from(None)).await.expect_err("used up"));
    assert_eq!(wait, Duration::from_secs(60));
}

#[tokio::test(start_paused = true)]
async fn fields_of_the_upstream_stay_and_errors_carry_ours() {
    let limit = limiter(settings(Key::default(), 60, 60, 10));
    let upstream = tower::service_fn(async |_| {
        let mut response = Response::new(Body::empty());
        response.headers_mut().insert("ratelimit", "\"origin\";r=5".parse().expect("a value"));
        Ok(response)
    });
    let response = RateLimitLayer::new([Arc::clone(&limit)]).layer(upstream).oneshot(from(None)).await.expect("room");
    let values: Vec<_> = response.headers().get_all("ratelimit").iter().collect();
    assert_eq!(values, ["\"origin\";r=5", "\"per-key\";r=9;t=1"]);
    let failing = tower::service_fn(async |_| Err(Reason::QueueFull.into()));
    let error = RateLimitLayer::new([limit]).layer(failing).oneshot(from(None)).await.expect_err("refused below");
    assert_eq!(error.reason, Reason::QueueFull);
    assert_eq!(error.headers.len(), 2);
}

#[tokio::test]
async fn it_is_always_ready_when_its_inner_service_is() {
    let limit = limiter(settings(Key::default(), 1, 60, 1));
    let inner = tower::service_fn(async |_| Ok(Response::new(Body::empty())));
    let mut service = RateLimitLayer::new([limit]).layer(inner);
    for _ in 0..3 {
        service.ready().await.expect("ready although used up").call(from(None)).await.ok();
    }
}

#[test]
fn names_are_quoted_and_huge_bursts_do_no_harm() {
    let odd = Settings { name: "a \"b\" \\ ü".into(), ..settings(Key::default(), 1, 3600, u32::MAX) };
    let limit = limiter(odd);
    let room = limit.take(limit.hash(&from(None)), Instant::now()).expect("room");
    assert_eq!(room.remaining, 100 * 365 * 24 - 1);
    let [(_, state), (_, policy)] = limit.fields(Room { remaining: 1, next: Duration::from_nanos(1) });
    assert_eq!(state, "\"a \\\"b\\\" \\\\ ?\";r=1;t=1");
    assert_eq!(policy, "\"a \\\"b\\\" \\\\ ?\";q=1;w=3600");
}

#[test]
fn a_million_strangers_do_not_free_an_abuser() {
    let registry = Registry::new();
    let limit = Limiter::new(settings(token(), 60, 60, 20), &registry, "route");
    let mut now = Instant::now();
    let abuser = limit.hash(&with_token("abuser"));
    let mut allowed = 0;
    for n in 0..1_000_000_u64 {
        let _ = limit.take(limit.hash(&with_token(&n.to_string())), now);
        if n.is_multiple_of(100) {
            now += Duration::from_millis(10);
            allowed += u64::from(limit.take(abuser, now).is_ok());
        }
    }
    // 10 000 steps of 10 ms are 100 s, at one a second.
    assert!((100..=121).contains(&allowed), "{allowed}");
    let text = registry.encode();
    let keys = text.lines().find_map(|line| line.strip_prefix("headworks_rate_limit_keys")).expect("the gauge");
    let keys: u64 = keys.rsplit(' ').next().and_then(|count| count.parse().ok()).expect("a count");
    assert!((9_000..=10_000).contains(&keys), "{keys}");
}

#[test]
fn many_threads_together_get_no_more_than_burst_and_rate() {
    const PER_SECOND: u32 = 1000;
    let limit = limiter(settings(Key::default(), PER_SECOND, 1, 50));
    let other = limiter(settings(Key::default(), 1, 60, 1));
    let (start, passed) = (Instant::now(), AtomicU32::new(0));
    let now = || start + Duration::from_millis(passed.load(Relaxed).into());
    let key = limit.hash(&from(None));
    let _ = other.take(key, start);
    let admitted = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (limit, passed, now, admitted, other) = (&limit, &passed, &now, &admitted, &other);
            scope.spawn(move || {
                for n in 0..5000 {
                    // Every other request is refused elsewhere and gives its place back.
                    match limit.take(key, now()) {
                        Ok(_) if n % 2 == 0 && other.take(key, now()).is_err() => limit.give_back(key),
                        Ok(_) => drop(admitted.fetch_add(1, Relaxed)),
                        Err(_) => {}
                    }
                    if thread == 0 && n % 10 == 0 {
                        passed.fetch_add(1, Relaxed);
                    }
                }
            });
        }
    });
    let admitted = admitted.into_inner();
    // 500 ms went by.
    assert!(admitted <= 50 + 500, "{admitted}");
    assert!(admitted >= 50, "{admitted}");
}
