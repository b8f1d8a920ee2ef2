use super::*;
use crate::body::Body;
use crate::context::{Connection, Key, Part, RequestId};
use crate::control::surge::{Raise, Window};
use crate::metrics::Registry;
use http::{HeaderMap, HeaderName};
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::SystemTime;
use tower::ServiceExt as _;

const AUTHORIZATION: HeaderName = http::header::AUTHORIZATION;

fn token() -> Key {
    Part::Header(AUTHORIZATION).into()
}

fn settings(by: Key, amount: u64, period: u64, burst: u64) -> Settings {
    let positive = |n| NonZeroU64::new(n).expect("positive");
    Settings {
        name: "per-key".into(),
        by,
        cost: Cost::Requests,
        amount: positive(amount),
        period: Duration::from_secs(period),
        burst: positive(burst),
        max_keys: 10_000,
        dry_run: false,
        shared: false,
        surge: Vec::new(),
        top_talkers: None,
    }
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
    assert_eq!(reason, Reason::RateLimited);
    assert!(wait >= Duration::from_millis(700) && wait <= Duration::from_millis(770), "{wait:?}");
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
    assert!((600..=660).contains(&wait.as_secs()), "{wait:?}");
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
    assert!((60..=66).contains(&wait.as_secs()), "{wait:?}");
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
    let odd = Settings { name: "a \"b\" \\ ü".into(), ..settings(Key::default(), 1, 3600, u64::MAX) };
    let limit = limiter(odd);
    let room = limit.take(&limit.ask(&from(None), Instant::now())).expect("room").room;
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
    let ask = |token: &str, now| limit.take(&limit.ask(&with_token(token), now));
    let mut allowed = 0;
    for n in 0..1_000_000_u64 {
        let _ = ask(&n.to_string(), now);
        if n.is_multiple_of(100) {
            now += Duration::from_millis(10);
            allowed += u64::from(ask("abuser", now).is_ok());
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
    const PER_SECOND: u64 = 1000;
    let limit = limiter(settings(Key::default(), PER_SECOND, 1, 50));
    let other = limiter(settings(Key::default(), 1, 60, 1));
    let (start, passed) = (Instant::now(), AtomicU32::new(0));
    let now = || start + Duration::from_millis(passed.load(Relaxed).into());
    let ask = |limit: &Limiter| limit.ask(&Request::default(), now());
    let _ = other.take(&ask(&other));
    let admitted = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (limit, passed, ask, admitted, other) = (&limit, &passed, &ask, &admitted, &other);
            scope.spawn(move || {
                for n in 0..5000 {
                    // Every other request is refused elsewhere and gives its place back.
                    let asked = ask(limit);
                    match limit.take(&asked) {
                        Ok(grant) if n % 2 == 0 && other.take(&ask(other)).is_err() => limit.give_back(&asked, &grant),
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

/// Tells `amount` bytes to the watches of a body, as if they had passed.
#[tokio::test(start_paused = true)]
async fn one_who_was_overtaken_on_the_way_to_its_bucket_is_not_refused_for_it() {
    let limit = limiter(settings(Key::default(), 2, 3600, 2));
    let request = with_token("a");
    let overtaken = limit.ask(&request, Instant::now());
    tokio::time::advance(Duration::from_millis(1)).await;
    let faster = limit.ask(&request, Instant::now());
    assert!(limit.take(&faster).is_ok() && limit.take(&overtaken).is_ok());
    assert_eq!(limit.take(&overtaken).err(), Some(Duration::from_millis(1_800_001)), "two are two");
}

fn pass(body: &mut Body, amount: usize) {
    body.tell(&vec![0; amount]);
}

#[tokio::test(start_paused = true)]
async fn answers_are_charged_as_they_pass_and_debt_is_kept() {
    let down = Settings { cost: Cost::ResponseBytes, ..settings(token(), 1000, 1, 5000) };
    let limits = [limiter(down)];
    let response = send(&limits, with_token("a")).await.expect("full");
    let whole = ("\"per-key\";r=5000;t=0", "\"per-key\";q=1000;w=1;qu=\"content-bytes\"");
    assert_eq!(told(response.headers()), whole);
    let mut body = response.into_body();
    pass(&mut body, 2000);
    assert_eq!(told(send(&limits, with_token("a")).await.expect("in credit").headers()).0, "\"per-key\";r=3000;t=2");
    pass(&mut body, 5000);
    drop(body);
    let (_, wait, headers) = told_by(send(&limits, with_token("a")).await.expect_err("2000 in debt"));
    assert!((2001..=2202).contains(&wait.as_millis()), "{wait:?}");
    assert_eq!(told(&headers).0, "\"per-key\";r=0;t=3");
    send(&limits, with_token("b")).await.expect("another key has its own");
    tokio::time::advance(Duration::from_secs(2)).await;
    send(&limits, with_token("a")).await.expect_err("the debt is paid, and no more");
    tokio::time::advance(Duration::from_millis(1)).await;
    send(&limits, with_token("a")).await.expect("one byte of credit");
}

#[tokio::test(start_paused = true)]
async fn requests_are_charged_for_what_is_read_of_them() {
    use http_body_util::BodyExt as _;
    let up = limiter(Settings { cost: Cost::RequestBytes, ..settings(Key::default(), 10, 1, 100) });
    let post = |bytes: usize| Request::new(Body::full(vec![0; bytes]));
    let reader = tower::service_fn(async |request: Request| {
        let read = request.into_body().collect().await.map_err(|error| ProxyError::from(error.reason))?;
        Ok(Response::new(Body::full(read.to_bytes())))
    });
    let deaf = tower::service_fn(async |_: Request| Ok(Response::new(Body::full("answer"))));
    let layer = RateLimitLayer::new([Arc::clone(&up)]);
    layer.layer(deaf).oneshot(post(1000)).await.expect("full");
    let response = layer.layer(reader).oneshot(post(150)).await.expect("what nobody read costs nothing");
    drop(response);
    let (_, wait, _) = told_by(layer.layer(deaf).oneshot(Request::default()).await.expect_err("50 in debt"));
    assert!((5100..=5610).contains(&wait.as_millis()), "{wait:?}");
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_refuses_nothing_and_tells_clients_nothing() {
    let registry = Registry::new();
    let dry = |by, burst| Settings { dry_run: true, ..settings(by, 1, 60, burst) };
    let dry = Arc::new(Limiter::new(dry(Key::default(), 1), &registry, "route"));
    let alone = [Arc::clone(&dry)];
    for would_refuse in [None, Some(&Reason::RateLimited), Some(&Reason::RateLimited)] {
        let request = from(None);
        let context = request.extensions().get::<RequestContext>().expect("a context").clone();
        let response = send(&alone, request).await.expect("nothing is refused");
        assert_eq!(told(response.headers()), ("none", "none"));
        assert_eq!(context.notes().would_refuse.get(), would_refuse);
    }
    let count = |result: &str, n: u64| {
        let line =
            format!("headworks_rate_limit_requests_total{{route=\"route\",limit=\"per-key\",result=\"{result}\"}} {n}");
        let text = registry.encode();
        assert!(text.lines().any(|known| known == line), "{line} is not in\n{text}");
    };
    count("allowed", 1);
    count("dry_run", 2);
    let both = [dry, limiter(settings(token(), 60, 60, 5))];
    let response = send(&both, with_token("a")).await.expect("the other has room");
    assert_eq!(told(response.headers()).0, "\"per-key\";r=4;t=1", "the one that binds is told");
    count("dry_run", 3);
}

#[tokio::test(start_paused = true)]
async fn a_raise_lets_more_through_and_the_told_wait_is_exact() {
    let limits = [limiter(settings(Key::default(), 6, 60, 1))];
    send(&limits, from(None)).await.expect("room");
    limits[0].raise(Raise { factor: 2500, length: Duration::from_secs(60), ramp: Duration::ZERO });
    let error = send(&limits, from(None)).await.expect_err("used up");
    let headers: HeaderMap = error.headers.into_iter().collect();
    assert_eq!(told(&headers), ("\"per-key\";r=0;t=4", "\"per-key\";q=15;w=60"));
    for _ in 0..3 {
        tokio::time::advance(Duration::from_millis(3999)).await;
        send(&limits, from(None)).await.expect_err("a millisecond too early");
        tokio::time::advance(Duration::from_millis(1)).await;
        send(&limits, from(None)).await.expect("exactly in time");
    }
    let view = limits[0].view();
    assert_eq!((view.factor, view.raised_for), (2500, Some((Duration::from_secs(48), Duration::from_secs(48)))));
    assert!(limits[0].lower() && !limits[0].lower());
    let error = send(&limits, from(None)).await.expect_err("used up");
    let headers: HeaderMap = error.headers.into_iter().collect();
    assert_eq!(told(&headers), ("\"per-key\";r=0;t=10", "\"per-key\";q=6;w=60"));
}

#[tokio::test(start_paused = true)]
async fn a_schedule_raises_by_the_wall_clock() {
    /// Monday, the fifth of January 1970, at eight.
    fn wall() -> u64 {
        (4 * 24 + 8) * 3600 * 1_000_000_000
    }
    let hours = |n: u64| Duration::from_secs(n * 3600);
    let window = |from| Window { days: 1, from: hours(from), length: hours(2), factor: 3000, ramp: Duration::ZERO };
    for (hour, expected) in [(8, "\"per-key\";q=180;w=60"), (9, "\"per-key\";q=60;w=60"), (6, "\"per-key\";q=60;w=60")]
    {
        let settings = Settings { surge: vec![window(hour)], ..settings(Key::default(), 60, 60, 5) };
        let limit = Arc::new(Limiter::with_wall(settings, &Registry::new(), "route", wall));
        let response = send(&[limit], from(None)).await.expect("room");
        assert_eq!(told(response.headers()).1, expected, "from {hour}");
    }
}

/// One hog and twenty others share 100 a second, of which half is burst: how many of each get through in ten seconds.
async fn share_with_a_hog(top_talkers: Option<TopTalkers>, others_per_second: u32) -> (u32, u32) {
    let limits = [limiter(Settings { top_talkers, ..settings(Key::default(), 100, 1, 50) })];
    let (mut hog, mut others) = (0, 0);
    for tick in 0..1000_u32 {
        for _ in 0..5 {
            hog += u32::from(send(&limits, with_token("hog")).await.is_ok());
        }
        if tick * others_per_second / 100 != (tick + 1) * others_per_second / 100 {
            let other = with_token(&format!("other {}", tick % 20));
            others += u32::from(send(&limits, other).await.is_ok());
        }
        tokio::time::advance(Duration::from_millis(10)).await;
    }
    (hog, others)
}

#[tokio::test(start_paused = true)]
async fn top_talkers_take_what_nobody_else_wants() {
    let top = |percent| Some(TopTalkers { by: token(), count: 2, percent });
    // Without it, 5 of 6 tries are the hog's, and it is there first whenever there is room.
    let (hog, others) = share_with_a_hog(None, 80).await;
    assert!(hog > 900 && others < 200, "{hog} {others}");
    let (hog, others) = share_with_a_hog(top(10), 80).await;
    assert!(others >= 795, "all of the others' 800, and not {others}");
    assert!((200..=260).contains(&hog), "what they leave, and not {hog}");
    let (hog, others) = share_with_a_hog(top(10), 0).await;
    assert!((1000..=1050).contains(&hog) && others == 0, "{hog} of all, since nobody else is there");
}

#[tokio::test(start_paused = true)]
async fn a_talkers_own_share_pays_only_for_what_it_let_through() {
    let top_talkers = Some(TopTalkers { by: token(), count: 2, percent: 10 });
    let down = Settings { cost: Cost::ResponseBytes, top_talkers, ..settings(Key::default(), 1000, 1, 1000) };
    let limits = [limiter(down)];
    let mut body = send(&limits, with_token("hog")).await.expect("full").into_body();
    pass(&mut body, 600);
    tokio::time::advance(Duration::from_millis(200)).await;
    let mut body = send(&limits, with_token("hog")).await.expect("600 are left, and 500 for others").into_body();
    pass(&mut body, 150);
    let mut body =
        send(&limits, with_token("hog")).await.expect("a share of its own, of which nothing is used").into_body();
    pass(&mut body, 120);
    let (_, wait, _) = told_by(send(&limits, with_token("hog")).await.expect_err("it is used up"));
    // The bucket has 330 and is half full again before the share is in credit, after 210 ms.
    assert!((171..=232).contains(&wait.as_millis()), "{wait:?}");
    send(&limits, with_token("other")).await.expect("the others have the rest");
}

#[tokio::test(start_paused = true)]
async fn top_talkers_are_known_by_a_number_where_they_are_secret() {
    let top_talkers = Some(TopTalkers { by: token(), count: 2, percent: 10 });
    let limits = [limiter(Settings { top_talkers, ..settings(Key::default(), 100, 1, 50) })];
    for n in 0..20 {
        send(&limits, with_token(if n % 4 == 0 { "b" } else { "hunter2" })).await.expect("room");
    }
    let (top, total) = limits[0].talkers().expect("somebody counts");
    assert_eq!((top[0].count, top[1].count, total), (15, 5, 20));
    assert!(top.iter().all(|talker| talker.label.starts_with("header:authorization=#")), "{top:?}");
}

#[tokio::test(start_paused = true)]
async fn who_was_delayed_on_purpose_is_not_judged_as_of_its_receipt() {
    let limits = [limiter(settings(Key::default(), 1, 1, 1))];
    let (delayed, second) = (from(None), Duration::from_secs(1));
    delayed.extensions().get::<RequestContext>().expect("a context").notes().faults.note(Fault::Delay);
    tokio::time::advance(5 * second).await;
    send(&limits, from(None)).await.expect("room");
    tokio::time::advance(second).await;
    send(&limits, delayed).await.expect("there is room again");
}

/// In a process of its own, whose memory nobody else uses.
#[test]
fn five_million_keys_leave_memory_flat() {
    const CHILD: &str = "HEADWORKS_TEST_KEYS";
    if std::env::var_os(CHILD).is_none() {
        let name = std::thread::current().name().expect("a test has a name").to_owned();
        let mut child = std::process::Command::new(std::env::current_exe().expect("this program"));
        let done = child.args(["--exact", &name, "--test-threads", "1"]).env(CHILD, "1").output().expect("it runs");
        let told = String::from_utf8_lossy(&done.stdout);
        assert!(done.status.success() && told.contains("1 passed"), "{told}");
        return;
    }
    let resident = || {
        let pages = std::fs::read_to_string("/proc/self/statm").expect("Linux tells");
        pages.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("a number") * 4096
    };
    let registry = Registry::new();
    let limit = Settings { max_keys: 100_000, ..settings(token(), 60, 60, 20) };
    let limit = Limiter::new(limit, &registry, "route");
    let now = Instant::now();
    let pass = |keys: std::ops::Range<u64>| {
        let mut request = Request::default();
        for n in keys {
            request.headers_mut().insert(AUTHORIZATION, n.into());
            let _ = limit.take(&limit.ask(&request, now));
        }
    };
    pass(0..200_000);
    let before = resident();
    std::thread::scope(|scope| {
        scope.spawn(|| pass(200_000..2_600_000));
        scope.spawn(|| pass(2_600_000..5_000_000));
    });
    let grown = resident().saturating_sub(before);
    assert!(grown < 4 << 20, "{grown} bytes more");
    let keys = limit.view().keys;
    assert!((90_000..=100_000).contains(&keys), "{keys}");
}
