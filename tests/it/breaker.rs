//! Endpoints that are ill are left out and tried again; endpoints that have too much to do get a rest.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::HeaderMap;
use http_body::Frame;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::support::{Answer, Origin, Proxy, Raw, Switch, eventually, get};

const SOON: Duration = Duration::from_secs(10);

fn config(endpoints: &[String], more: &str) -> String {
    let endpoints: Vec<_> = endpoints.iter().map(|url| format!("\"{url}\"")).collect();
    format!("[upstream.app]\nendpoints = [{}]\n{more}\n[[route]]\nupstream = \"app\"\n", endpoints.join(", "))
}

/// One endpoint, which is asked once for each request.
fn alone(service: &Switch, more: &str) -> Proxy {
    Proxy::from_toml(&config(&[service.url()], more))
}

fn is_in(proxy: &Proxy, endpoint: &str, state: &str) -> bool {
    proxy.metric("headworks_endpoint_breaker_state", &[("endpoint", endpoint), ("state", state)]) > 0.5
}

fn attempts(proxy: &Proxy, verdict: &str) -> usize {
    proxy.metric("headworks_endpoint_attempts_total", &[("verdict", verdict)]) as usize
}

/// Whether the proxy said that nobody is left.
fn is_refused(answer: &Answer) -> bool {
    answer.header("proxy-status").contains("breaker_open")
}

/// Asks until the proxy says that nobody is left; the last answer.
async fn until_refused(proxy: &Proxy) -> Answer {
    for _ in 0..100 {
        let answer = get(proxy.public(), "/").await;
        if is_refused(&answer) {
            return answer;
        }
        assert_ne!(answer.status, 200);
    }
    panic!("nobody is left out:\n{}", proxy.log());
}

#[tokio::test]
async fn one_that_is_killed_is_left_out_and_comes_back() {
    let (stays, killed) = (Switch::new(), Switch::new());
    // By load, one that fails is hardly asked again, and needs its time to be left out.
    let turns = "balance.policy = \"round_robin\"\nbreaker.open = \"200ms..400ms\"";
    let proxy = Proxy::from_toml(&config(&[stays.url(), killed.url()], turns));
    assert!(is_in(&proxy, &killed.url(), "closed"));
    killed.kill().await;
    for _ in 0..200 {
        get(proxy.public(), "/").await;
        if is_in(&proxy, &killed.url(), "open") {
            break;
        }
    }
    assert!(is_in(&proxy, &killed.url(), "open"), "{}", proxy.log());
    assert!(is_in(&proxy, &stays.url(), "closed"));
    assert_eq!(get(proxy.public(), "/").await.status, 200, "the other one serves");
    let before = killed.seen("/");
    killed.start();
    let back = Instant::now() + SOON;
    while !is_in(&proxy, &killed.url(), "closed") {
        assert!(Instant::now() < back, "{}", proxy.log());
        get(proxy.public(), "/").await;
    }
    assert!(killed.seen("/") > before);
    assert!(proxy.metric("headworks_endpoint_breaker_opened_total", &[("cause", "unreachable")]) >= 1.0);
    let is_told = || proxy.log().contains("left out for a while") && proxy.log().contains("back in service");
    assert!(eventually(is_told, SOON).await, "{}", proxy.log());
}

#[tokio::test]
async fn one_whose_answers_break_off_is_left_out() {
    let (whole, cuts) = (Switch::new(), Origin::h1());
    let proxy = Proxy::from_toml(&config(&[whole.url(), cuts.url()], "balance.policy = \"round_robin\""));
    for _ in 0..100 {
        let mut client = Raw::connect(proxy.public()).await;
        client.send("GET /reset/4 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
        let _ = client.read_to_end().await;
        if is_in(&proxy, &cuts.url(), "open") {
            break;
        }
    }
    assert!(is_in(&proxy, &cuts.url(), "open"), "{}", proxy.metrics().text());
    assert!(attempts(&proxy, "broken") >= 10);
    assert!(proxy.metric("headworks_endpoint_breaker_opened_total", &[("cause", "share")]) >= 1.0);
    assert!(is_in(&proxy, &whole.url(), "closed"));
}

#[tokio::test]
async fn when_all_are_out_clients_are_told_when_the_next_trial_is() {
    let service = Switch::new();
    let proxy = alone(&service, "");
    service.kill().await;
    let refused = until_refused(&proxy).await;
    assert_eq!(refused.status, 503);
    let wait: u64 = refused.header("retry-after").parse().unwrap();
    assert!((1..=2).contains(&wait), "{wait}");
    let asked = attempts(&proxy, "unreachable");
    assert!(is_refused(&get(proxy.public(), "/").await));
    assert_eq!(attempts(&proxy, "unreachable"), asked, "nothing was tried");
    let rows = proxy.ask_admin("GET", "/upstreams?format=json", "").1;
    let rows: serde_json::Value = serde_json::from_str(&rows).unwrap();
    let row = &rows["endpoints"][0];
    assert_eq!(row["breaker"], "open", "{rows}");
    assert!(row["next_trial_s"].as_f64().unwrap() <= 1.0, "{rows}");
    service.start();
    sleep(Duration::from_secs(wait)).await;
    assert_eq!(get(proxy.public(), "/").await.status, 200, "that was honest");
}

#[tokio::test]
async fn half_open_lets_one_through_and_the_others_wait_for_it() {
    let service = Switch::new();
    let proxy = alone(&service, "breaker.open = \"300ms\"\nqueue.timeout = \"10s\"");
    service.kill().await;
    until_refused(&proxy).await;
    service.hold(true);
    service.start();
    sleep(Duration::from_millis(350)).await;
    let mut clients = JoinSet::new();
    for _ in 0..6 {
        let addr = proxy.public();
        clients.spawn(async move { get(addr, "/").await });
    }
    assert!(eventually(|| proxy.metric("headworks_queue_depth", &[]) > 4.5, SOON).await, "{}", proxy.log());
    assert_eq!(service.seen("/"), 1);
    assert!(is_in(&proxy, &service.url(), "half_open"));
    service.hold(false);
    for answer in clients.join_all().await {
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    assert!(service.seen("/") >= 6);
}

#[tokio::test]
async fn who_waits_is_sent_home_when_nobody_is_left() {
    let service = Switch::new();
    let proxy = alone(&service, "limit.in_flight = 1\nqueue.timeout = \"30s\"\nbreaker.failures = 2");
    service.hold(true);
    let mut clients = JoinSet::new();
    for _ in 0..12 {
        let addr = proxy.public();
        clients.spawn(async move { get(addr, "/").await });
    }
    assert!(eventually(|| service.seen("/") == 1, SOON).await);
    assert!(eventually(|| proxy.metric("headworks_queue_depth", &[]) > 10.5, SOON).await);
    let began = Instant::now();
    service.kill().await;
    let answers = clients.join_all().await;
    assert!(began.elapsed() < SOON);
    let sent_home = answers.iter().filter(|answer| is_refused(answer)).count();
    assert!(sent_home >= 4, "{answers:?}");
    assert_eq!(proxy.metric("headworks_queue_depth", &[]) as usize, 0);
    assert!(eventually(|| proxy.metric("headworks_credits_used", &[]) < 0.5, SOON).await);
}

#[tokio::test]
async fn an_upstream_that_answers_nothing_good_is_closed_and_one_with_some_errors_is_not() {
    let service = Switch::new();
    let proxy = alone(&service, "");
    for n in 0..120 {
        service.answer("/", if n % 3 == 0 { 500 } else { 200 }, "");
        let answer = get(proxy.public(), "/").await;
        assert!(!is_refused(&answer), "after {n}");
    }
    let other = Switch::new();
    other.answer("/", 500, "");
    let proxy = alone(&other, "");
    let statuses = async {
        let mut failed = 0;
        loop {
            let answer = get(proxy.public(), "/").await;
            if is_refused(&answer) {
                return failed;
            }
            assert_eq!(answer.status, 500);
            failed += 1;
        }
    };
    assert_eq!(statuses.await, 50);
    assert!(proxy.metric("headworks_upstream_breaker_state", &[("state", "open")]) > 0.5);
}

#[tokio::test]
async fn retry_after_of_an_endpoint_takes_its_credits_until_then() {
    let service = Switch::new();
    let proxy = alone(&service, "limit.in_flight = 20");
    let credits = || proxy.metric("headworks_endpoint_credits", &[]) as usize;
    assert_eq!((get(proxy.public(), "/").await.status.as_u16(), credits()), (200, 20));
    for (status, fields) in [(503, "retry-after: 1\r\n"), (429, "retry-after-ms: 900\r\n")] {
        service.answer("/", status, fields);
        service.hold(true);
        let before = service.seen("/");
        let mut clients = JoinSet::new();
        for _ in 0..16 {
            let addr = proxy.public();
            clients.spawn(async move { get(addr, "/").await });
        }
        assert!(eventually(|| service.seen("/") == before + 16, SOON).await);
        service.hold(false);
        for answer in clients.join_all().await {
            assert_eq!(answer.status, status, "{}", answer.text());
        }
        // Of the last 17 answers one was good, and of the last 32 half were, so much of 16 is left.
        assert!((1..=10).contains(&credits()), "{}", credits());
        assert!(proxy.metric("headworks_endpoint_credits_set_by", &[("by", "rest")]) > 0.5);
        assert!(is_in(&proxy, &service.url(), "closed"), "that is no illness");
        assert!(eventually(|| credits() == 20, SOON).await, "the rest is over");
        service.answer("/", 200, "");
        for _ in 0..32 {
            get(proxy.public(), "/").await;
        }
    }
}

fn grpc(fields: &[(&'static str, &'static str)]) -> HeaderMap {
    fields.iter().map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap())).collect()
}

#[tokio::test]
async fn a_grpc_service_that_is_exhausted_gets_a_rest_too() {
    const EXHAUSTED: &[(&str, &str)] = &[("grpc-status", "8"), ("grpc-retry-pushback-ms", "20000")];
    for has_trailers in [true, false] {
        let origin = Origin::scripted_h2c(move |_, scene| async move {
            let frames = if has_trailers {
                vec![Ok(Frame::data(Bytes::from_static(b"\0\0\0\0\0"))), Ok(Frame::trailers(grpc(EXHAUSTED)))]
            } else {
                Vec::new()
            };
            let mut response = scene.stream("application/grpc", stream::iter(frames));
            if !has_trailers {
                response.headers_mut().extend(grpc(EXHAUSTED));
            }
            response
        });
        let proxy = Proxy::from_toml(&config(&[origin.url()], "limit.in_flight = 20\nlimit.streams = 20"));
        for _ in 0..10 {
            get(proxy.public(), "/Service/Call").await;
        }
        assert!(eventually(|| attempts(&proxy, "overloaded") == 10, SOON).await, "{}", proxy.metrics().text());
        assert_eq!(proxy.metric("headworks_endpoint_credits", &[]) as usize, 1);
        assert!(proxy.metric("headworks_endpoint_credits_set_by", &[("by", "rest")]) > 0.5);
    }
}

#[tokio::test]
async fn a_reload_keeps_a_breaker_whose_settings_are_equal() {
    let service = Switch::new();
    let settings = "breaker.open = \"60s\"";
    let proxy = alone(&service, settings);
    service.kill().await;
    until_refused(&proxy).await;
    service.start();
    proxy.reload(&config(&[service.url()], &format!("{settings}\nqueue.max = 7"))).await;
    assert!(is_refused(&get(proxy.public(), "/").await));
    proxy.reload(&config(&[service.url()], "breaker.open = \"30s\"")).await;
    assert_eq!(get(proxy.public(), "/").await.status, 200);
    service.kill().await;
    until_refused(&proxy).await;
    proxy.reload(&config(&[service.url()], "breaker = \"off\"")).await;
    for _ in 0..20 {
        assert!(!is_refused(&get(proxy.public(), "/").await));
    }
    service.start();
    assert_eq!(get(proxy.public(), "/").await.status, 200);
}
