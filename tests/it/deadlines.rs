//! How long a client says that it waits: one budget for the queue, the call and the head, and what is left of it goes on.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use crate::support::{Answer, Origin, Payload, Proxy, Raw, empty, eventually, get, h1, h2, request};

const SOON: Duration = Duration::from_secs(5);

fn proxy(origin: &Origin, upstream: &str, route: &str) -> Proxy {
    Proxy::from_toml(&format!(
        "[upstream.app]\nendpoints = [\"{}\"]\n{upstream}\n[[route]]\nupstream = \"app\"\n{route}\n",
        origin.url()
    ))
}

fn asking(addr: SocketAddr, path: &str, fields: &[(&'static str, &str)]) -> http::Request<Payload> {
    let mut request = request("GET", addr, path, empty());
    for (name, value) in fields {
        request.headers_mut().append(*name, value.parse().unwrap());
    }
    request
}

async fn ask(proxy: &Proxy, path: &str, fields: &[(&'static str, &str)]) -> Answer {
    let answer = h1(proxy.public()).await.send_request(asking(proxy.public(), path, fields)).await.unwrap();
    Answer::of(answer).await.unwrap()
}

async fn ask_h2(proxy: &Proxy, path: &str, fields: &[(&'static str, &str)]) -> Answer {
    let answer = h2(proxy.public(), 1 << 16).await.send_request(asking(proxy.public(), path, fields)).await.unwrap();
    Answer::of(answer).await.unwrap()
}

fn reason(answer: &Answer) -> &str {
    answer.header("proxy-status").split("details=").nth(1).unwrap_or_default().trim_matches('"')
}

#[tokio::test]
async fn each_field_ends_the_wait_for_a_head() {
    let origin = Origin::h1();
    let proxy = proxy(&origin, "", "");
    let fields = [
        ("grpc-timeout", "300m"),
        ("connect-timeout-ms", "300"),
        ("x-request-timeout", "0.3"),
        ("request-timeout", "300ms"),
        ("x-envoy-expected-rq-timeout-ms", "300"),
        ("x-stainless-timeout", "0.3"),
        ("x-stainless-read-timeout", "0.3"),
    ];
    for (count, field) in fields.into_iter().enumerate() {
        let start = Instant::now();
        let answer = ask(&proxy, "/hang", &[field]).await;
        assert!(start.elapsed() >= Duration::from_millis(300), "{field:?}: {:?}", start.elapsed());
        assert_eq!((answer.status.as_u16(), reason(&answer)), (504, "deadline_exceeded"), "{field:?}: {answer:?}");
        assert!(eventually(|| origin.cancelled() == count + 1, SOON).await, "{field:?}: the call goes on");
    }
    // The same over HTTP/2, and the shortest of several.
    let answer = ask_h2(&proxy, "/hang", &[("x-request-timeout", "60"), ("x-stainless-timeout", "0.3")]).await;
    assert_eq!((answer.status.as_u16(), reason(&answer)), (504, "deadline_exceeded"), "{answer:?}");
}

#[tokio::test]
async fn a_grpc_call_gets_its_own_status() {
    let origin = Origin::h2c();
    let proxy = proxy(&origin, "", "");
    let call = [("content-type", "application/grpc"), ("te", "trailers")];
    let answer = ask_h2(&proxy, "/hang", &[call[0], call[1], ("grpc-timeout", "300m")]).await;
    assert_eq!((answer.status.as_u16(), answer.header("grpc-status")), (200, "4"), "{answer:?}");
    assert!(eventually(|| origin.cancelled() == 1, SOON).await, "the call goes on");
    // A time that was over on arrival reaches nobody.
    let answer = ask_h2(&proxy, "/hang", &[call[0], call[1], ("grpc-timeout", "0n")]).await;
    assert_eq!((answer.header("grpc-status"), reason(&answer)), ("4", "deadline_passed"), "{answer:?}");
    assert_eq!(origin.seen().len(), 1);
}

#[tokio::test]
async fn the_service_is_told_what_the_queue_has_left() {
    for (origin, speaks) in [(Origin::h1(), "h1"), (Origin::h2c(), "h2")] {
        let proxy = proxy(&origin, "limit.in_flight = 1\nqueue.timeout = \"30s\"", "");
        let held = tokio::spawn(get(proxy.public(), "/gate"));
        assert!(eventually(|| origin.in_flight() == 1, SOON).await);
        let addr = proxy.public();
        let waiting = tokio::spawn(async move {
            let fields =
                [("grpc-timeout", "60S"), ("x-request-timeout", "60.0"), ("x-envoy-expected-rq-timeout-ms", "60000")];
            let answer = h1(addr).await.send_request(asking(addr, "/gate", &fields)).await.unwrap();
            Answer::of(answer).await.unwrap()
        });
        let is_queued = || proxy.metric("headworks_queue_depth", &[("upstream", "app")]) > 0.5;
        assert!(eventually(is_queued, SOON).await, "it waits");
        tokio::time::sleep(Duration::from_millis(300)).await;
        origin.open_gate(2);
        assert_eq!(
            (held.await.unwrap().status, waiting.await.unwrap().status),
            (http::StatusCode::OK, http::StatusCode::OK)
        );
        let seen = origin.last();
        let field = |name: &str| seen.headers[name].to_str().unwrap().to_owned();
        let micros: u64 = field("grpc-timeout").strip_suffix('u').expect("microseconds").parse().unwrap();
        let seconds: f64 = field("x-request-timeout").parse().unwrap();
        let millis: u64 = field("x-envoy-expected-rq-timeout-ms").parse().unwrap();
        for left in [micros as f64 / 1e6, seconds, millis as f64 / 1e3] {
            assert!(left < 59.71 && left > 50.0, "{speaks}: {left} s are left: {seen:?}");
        }
    }
}

#[tokio::test]
async fn a_time_that_ends_in_the_queue_reaches_no_service() {
    let origin = Origin::h1();
    let proxy = proxy(&origin, "limit.in_flight = 1\nqueue.timeout = \"30s\"", "");
    let _held = tokio::spawn(get(proxy.public(), "/hang"));
    assert!(eventually(|| origin.in_flight() == 1, SOON).await);
    let answer = ask(&proxy, "/", &[("x-request-timeout", "0.3")]).await;
    assert_eq!(answer.status, 504, "{answer:?}");
    assert!(reason(&answer).starts_with("deadline_"), "{answer:?}");
    let is_empty = || proxy.metric("headworks_queue_depth", &[("upstream", "app")]) < 0.5;
    assert!(eventually(is_empty, SOON).await, "its place is free");
    assert_eq!(origin.seen().len(), 1);
}

#[tokio::test]
async fn streams_and_times_for_the_head_cut_no_body() {
    let origin = Origin::h1();
    let proxy = proxy(&origin, "", "");
    let answer = ask(&proxy, "/sse/15/100", &[("x-request-timeout", "1"), ("grpc-timeout", "1S")]).await;
    assert!(answer.text().ends_with("[DONE]\n\n"), "{answer:?}");
    for (field, is_cut) in [("x-stainless-timeout", false), ("x-request-timeout", true)] {
        let mut client = Raw::connect(proxy.public()).await;
        client.send(format!("GET /ticks/100/20 HTTP/1.1\r\nhost: a\r\n{field}: 1\r\n\r\n")).await;
        assert_eq!(client.head().await.0, 200);
        let read = client.read_n_or_reset(10_000).await;
        assert_eq!(read.len() < 10_000, is_cut, "{field}: {} bytes", read.len());
        assert!(!read.ends_with(b"0\r\n\r\n"), "the end of a cut body was forged");
    }
}

#[tokio::test]
async fn a_body_that_is_always_ready_ends_with_its_time() {
    let origin = Origin::h1();
    let proxy = proxy(&origin, "", "timeout.total = \"400ms\"");
    let mut client = Raw::connect(proxy.public()).await;
    client.get("/flood/16384").await;
    assert_eq!(client.head().await.0, 200);
    let rest = tokio::time::timeout(SOON, client.read_to_end()).await.expect("it is cut").unwrap_or_default();
    assert!(!rest.ends_with(b"0\r\n\r\n"), "the end of a cut body was forged");
    assert!(eventually(|| origin.cancelled() == 1, SOON).await, "the call goes on");
}

#[tokio::test]
async fn what_cannot_be_read_is_passed_on_as_it_is() {
    let origin = Origin::h1();
    let proxy = proxy(&origin, "", "");
    for (name, value) in [
        ("grpc-timeout", "soon"),
        ("grpc-timeout", "123456789S"),
        ("x-request-timeout", "0"),
        ("x-request-timeout", "1 fortnight"),
        ("x-stainless-read-timeout", "NOT_GIVEN"),
        ("x-envoy-expected-rq-timeout-ms", "-1"),
    ] {
        assert_eq!(ask(&proxy, "/delay/10", &[(name, value)]).await.status, 200, "{name}: {value}");
        assert_eq!(origin.last().headers[name], value);
    }
    // Two of a kind are none.
    assert_eq!(ask(&proxy, "/delay/200", &[("grpc-timeout", "1m"), ("grpc-timeout", "1m")]).await.status, 200);
}

#[tokio::test]
async fn a_route_says_whom_it_believes_how_far_and_what_it_tells() {
    let origin = Origin::h1();
    let nobody = proxy(&origin, "", "deadline.from = []");
    assert_eq!(ask(&nobody, "/delay/100", &[("x-request-timeout", "0.01")]).await.status, 200);
    assert_eq!(origin.last().headers["x-request-timeout"], "0.01");

    let most = proxy(&origin, "", "deadline.max = \"300ms\"");
    let answer = ask(&most, "/hang", &[("x-request-timeout", "60")]).await;
    assert_eq!((answer.status.as_u16(), reason(&answer)), (504, "deadline_exceeded"), "{answer:?}");

    let route = "timeout.total = \"10s\"\ndeadline.send = [\"x-request-timeout\", \"grpc-timeout\"]";
    let telling = proxy(&origin, "", route);
    for (fields, at_most) in
        [(vec![], 10.0), (vec![("x-request-timeout", "60.0")], 10.0), (vec![("x-request-timeout", "5.0")], 5.0)]
    {
        assert_eq!(ask(&telling, "/", &fields).await.status, 200);
        let seen = origin.last();
        let told: f64 = seen.headers["x-request-timeout"].to_str().unwrap().parse().unwrap();
        assert!(told <= at_most && told > at_most - 5.0, "{told} of {at_most}");
        assert!(!seen.headers.contains_key("grpc-timeout"), "{seen:?}");
    }
    // An edit has the last word.
    let edited = proxy(&origin, "", "headers.request.set.x-request-timeout = \"7\"");
    assert_eq!(ask(&edited, "/", &[("x-request-timeout", "60.0")]).await.status, 200);
    assert_eq!(origin.last().headers["x-request-timeout"], "7");
}
