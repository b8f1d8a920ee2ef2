//! Attempts beyond the first: where they help, where there must be none, and how many there are at most.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::support::{Answer, Certs, Origin, Proxy, Raw, Wire, empty, eventually, get, h1, h2, request};

const SOON: Duration = Duration::from_secs(10);
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const BUSY: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy";

fn proxy(urls: &[String], retry: &str) -> Proxy {
    let endpoints = urls.iter().map(|url| format!("\"{url}\"")).collect::<Vec<_>>().join(", ");
    Proxy::from_toml(&format!(
        "[log]\naccess = \"json\"\n[upstream.app]\nendpoints = [{endpoints}]\nretry = {{ {retry} }}\n\
         [[route]]\nupstream = \"app\"\n"
    ))
}

fn retries(proxy: &Proxy, after: &str) -> f64 {
    proxy.metric("headworks_retries_total", &[("upstream", "app"), ("after", after)])
}

/// All is as if there had been no request: whatever was taken is back.
async fn assert_at_rest(proxy: &Proxy) {
    let is_at_rest = || {
        let metrics = proxy.metrics();
        let is_zero = |name| metrics.get(name, &[]) < 0.5;
        is_zero("headworks_credits_used") && is_zero("headworks_queue_depth") && is_zero("headworks_requests_in_flight")
    };
    assert!(eventually(is_at_rest, SOON).await, "{}", proxy.metrics().text());
}

/// Answers 503 to the first of each path, and afterwards with what came.
fn first_busy() -> impl Fn(hyper::Request<hyper::body::Incoming>, crate::support::Scene) -> crate::support::ScriptFuture
{
    let seen = Arc::new(std::sync::Mutex::new(std::collections::HashSet::new()));
    move |request, scene| {
        let is_first = seen.lock().unwrap().insert(request.uri().path().to_owned());
        Box::pin(async move {
            let count =
                request.headers().get("x-retry-count").map_or("none".to_owned(), |n| n.to_str().unwrap().into());
            let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            if is_first {
                return scene.full(503, "text/plain", "busy");
            }
            let mut answer = scene.full(200, "application/octet-stream", body);
            answer.headers_mut().insert("x-count", count.parse().unwrap());
            answer
        })
    }
}

#[tokio::test]
async fn a_service_that_was_busy_is_asked_again_over_every_protocol() {
    let certs = Certs::new();
    let tls = |alpn| Origin::scripted_tls(certs.server("server", &[alpn], false), first_busy());
    let origins = [Origin::scripted(first_busy()), Origin::scripted_h2c(first_busy()), tls("http/1.1"), tls("h2")];
    for origin in &origins {
        let ca = if origin.url().starts_with("https") {
            format!("tls.ca = \"{}\"\n", certs.name("ca.pem"))
        } else {
            String::new()
        };
        let proxy = Proxy::from_toml(&format!(
            "[log]\naccess = \"json\"\n[upstream.app]\nendpoints = \"{}\"\n{ca}[[route]]\nupstream = \"app\"\n",
            origin.url()
        ));
        let answer = get(proxy.public(), "/get").await;
        assert_eq!((answer.status.as_u16(), answer.header("x-count")), (200, "1"), "{}: {answer:?}", origin.url());
        let put = request("PUT", proxy.public(), "/put", full(vec![7; 40_000]));
        let answer = Answer::of(h2(proxy.public(), 1 << 16).await.send_request(put).await.unwrap()).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.body), (200, vec![7; 40_000].into()));
        assert_eq!(origin.seen().len(), 4);
        assert!((retries(&proxy, "status") - 2.0).abs() < 0.1);
        let line = proxy.logged("/get").await;
        assert_eq!((&line["status"], &line["attempts"]), (&200.into(), &2.into()));
        assert_eq!(line["tried"], serde_json::json!([origin.url(), origin.url()]));
        // Answers that were thrown away have cost no connection.
        let expected = if origin.url().starts_with("http://") { 2 } else { 1 };
        assert!(origin.connections() <= expected, "{} to {}", origin.connections(), origin.url());
        assert_at_rest(&proxy).await;
    }
}

fn full(bytes: Vec<u8>) -> crate::support::Payload {
    http_body_util::Full::new(Bytes::from(bytes))
        .map_err(|never: std::convert::Infallible| match never {})
        .boxed_unsync()
}

#[tokio::test]
async fn another_endpoint_is_asked_where_there_is_one() {
    let (bad, good) = (Origin::scripted(|_, scene| async { scene.full(502, "text/plain", "bad") }), Origin::h1());
    let proxy = proxy(&[bad.url(), good.url()], "");
    for _ in 0..8 {
        assert_eq!(get(proxy.public(), "/x").await.status, 200);
    }
    let line = proxy.access_log().into_iter().find(|line| line.contains("attempts")).expect("one was tried twice");
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["endpoint"], good.url());
    assert_eq!(line["tried"], serde_json::json!([bad.url(), good.url()]));
    assert_at_rest(&proxy).await;
}

#[tokio::test]
async fn what_reached_no_service_is_sent_again_whatever_its_method() {
    let closed = Wire::new().await.url();
    let good = Origin::h1();
    let proxy = proxy(&[closed, good.url()], "");
    for number in 0..4 {
        let body = format!("POST {number}");
        let post = request("POST", proxy.public(), "/echo", full(body.clone().into_bytes()));
        let answer = Answer::of(h2(proxy.public(), 1 << 16).await.send_request(post).await.unwrap()).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.text()), (200, body));
    }
    assert!(retries(&proxy, "connect") > 0.5);
    // A switch of protocols, too.
    for _ in 0..4 {
        let mut tunnel = Raw::tunnel(proxy.public()).await;
        tunnel.send("through").await;
        assert_eq!(tunnel.read_n(7).await, b"through");
    }
    assert_at_rest(&proxy).await;
}

#[tokio::test]
async fn what_may_have_been_done_is_not_done_twice() {
    let wire = Wire::new().await;
    let proxy = proxy(&[wire.url()], "backoff = \"1ms\"");
    // POST: the service may have done its work before it closed.
    let mut client = Raw::connect(proxy.public()).await;
    client.send("POST /once HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody").await;
    let (mut upstream, _) = wire.request().await;
    assert_eq!(upstream.read_n(4).await, b"body");
    drop(upstream);
    assert_eq!(client.head().await.0, 502);
    // With a key by which the service knows it again.
    let mut client = Raw::connect(proxy.public()).await;
    let head = "POST /keyed HTTP/1.1\r\nhost: a\r\nidempotency-key: \"k\"\r\ncontent-length: 4\r\n\r\n";
    client.send(format!("{head}body")).await;
    for attempt in 0..2 {
        let (mut upstream, head) = wire.request().await;
        assert!(head.starts_with("post /keyed ") && head.contains("idempotency-key: \"k\""), "{head}");
        assert_eq!(head.contains("x-retry-count: 1"), attempt == 1, "{head}");
        assert_eq!(upstream.read_n(4).await, b"body");
        if attempt == 1 {
            upstream.send(OK).await;
        }
    }
    assert_eq!(client.head().await.0, 200);
    // Half an answer is an answer.
    let mut client = Raw::connect(proxy.public()).await;
    client.get("/half").await;
    let (mut upstream, _) = wire.request().await;
    upstream.send("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf").await;
    assert_eq!(client.head().await.0, 200);
    drop(upstream);
    assert!(client.read_to_end().await.is_ok_and(|body| body == b"half") || client.is_silent(Duration::ZERO).await);
    assert!((retries(&proxy, "reset") - 1.0).abs() < 0.1);
    assert_at_rest(&proxy).await;
}

#[tokio::test]
async fn a_body_is_repeated_byte_by_byte_or_not_at_all() {
    let wire = Wire::new().await;
    let proxy = proxy(&[wire.url()], "max_body = \"64KiB\", backoff = \"1ms\"");
    let bytes: Vec<u8> = (0..65_536_u32).map(|n| (n * 31 % 251) as u8).collect();
    let mut client = Raw::connect(proxy.public()).await;
    client.send(format!("PUT /fits HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", bytes.len())).await;
    client.send(&bytes[..30_000]).await;
    // The first attempt ends in the middle of the upload, the second gets it whole.
    let (mut upstream, _) = wire.request().await;
    assert_eq!(upstream.read_n(30_000).await, &bytes[..30_000]);
    drop(upstream);
    let (mut upstream, _) = wire.request().await;
    client.send(&bytes[30_000..]).await;
    assert_eq!(upstream.read_n(bytes.len()).await, bytes);
    upstream.send("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await;
    assert_eq!(client.head().await.0, 200);
    // One byte more is too long; it goes through once.
    for is_chunked in [false, true] {
        let mut client = Raw::connect(proxy.public()).await;
        let length = bytes.len() + 1;
        if is_chunked {
            client.send("PUT /long HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n").await;
            client.send(format!("{length:x}\r\n")).await;
        } else {
            client.send(format!("PUT /long HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n")).await;
        }
        client.send(&bytes).await;
        client.send(if is_chunked { "x\r\n0\r\n\r\n" } else { "x" }).await;
        let (mut upstream, _) = wire.request().await;
        if is_chunked {
            upstream.until("\r\n0\r\n\r\n").await;
        } else {
            assert_eq!(upstream.read_n(length).await, [&bytes[..], b"x"].concat());
        }
        drop(upstream);
        assert_eq!(client.head().await.0, 502);
    }
    let denied = proxy.metric("headworks_retries_denied_total", &[("upstream", "app"), ("by", "body")]);
    assert!((denied - 2.0).abs() < 0.1, "{denied}");
    assert_at_rest(&proxy).await;
}

#[tokio::test]
async fn a_body_that_nobody_asked_for_is_still_with_its_client() {
    let wire = Wire::new().await;
    let proxy = proxy(&[wire.url()], "backoff = \"1ms\"");
    let mut client = Raw::connect(proxy.public()).await;
    client.send("PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\nexpect: 100-continue\r\n\r\n").await;
    let (mut upstream, _) = wire.request().await;
    upstream.send(BUSY).await;
    let (mut upstream, head) = wire.request().await;
    assert!(head.contains("expect: 100-continue") && head.contains("x-retry-count: 1"), "{head}");
    upstream.send("HTTP/1.1 100 Continue\r\n\r\n").await;
    assert_eq!(client.until("\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.send("body").await;
    assert_eq!(upstream.read_n(4).await, b"body");
    upstream.send(OK).await;
    assert_eq!(client.head().await.0, 200);
    assert_at_rest(&proxy).await;
}

#[tokio::test]
async fn a_service_that_only_fails_gets_a_tenth_more() {
    const REQUESTS: usize = 1000;
    let origin = Origin::scripted(|_, scene| async { scene.full(503, "text/plain", "busy") });
    let proxy = proxy(&[origin.url()], "attempts = 3, floor = 0, backoff = \"0s\"");
    let mut clients = JoinSet::new();
    for _ in 0..4 {
        let addr = proxy.public();
        clients.spawn(async move {
            let mut client = h1(addr).await;
            for _ in 0..REQUESTS / 4 {
                client.ready().await.unwrap();
                let answer = client.send_request(request("GET", addr, "/", empty())).await.unwrap();
                assert_eq!(Answer::of(answer).await.unwrap().status, 503);
            }
        });
    }
    clients.join_all().await;
    let attempts = origin.seen().len();
    assert!((REQUESTS * 105 / 100..=REQUESTS * 111 / 100).contains(&attempts), "{attempts}");
    let made = retries(&proxy, "status") as usize;
    assert_eq!(attempts, REQUESTS + made);
    assert!(proxy.metric("headworks_retries_denied_total", &[("by", "budget")]) > 100.0);
    assert!(proxy.metric("headworks_retry_budget", &[("upstream", "app")]) < 1.5);
    assert_at_rest(&proxy).await;
}

#[tokio::test]
async fn retry_after_is_a_floor_and_a_long_one_is_the_clients_business() {
    let wire = Wire::new().await;
    let proxy = Proxy::from_toml(&format!(
        "[upstream.app]\nendpoints = \"{}\"\n[[route]]\nmatch.path = \"/short\"\nupstream = \"app\"\n\
         timeout.total = \"900ms\"\n[[route]]\nupstream = \"app\"\n",
        wire.url()
    ));
    let busy = |after: &str| format!("HTTP/1.1 503 Busy\r\nretry-after: {after}\r\ncontent-length: 0\r\n\r\n");
    let mut client = Raw::connect(proxy.public()).await;
    client.get("/soon").await;
    let (mut upstream, _) = wire.request().await;
    let told = Instant::now();
    upstream.send(busy("1")).await;
    upstream.until("GET /soon ").await;
    assert!(told.elapsed() >= Duration::from_secs(1), "{:?}", told.elapsed());
    upstream.until("\r\n\r\n").await;
    upstream.send(OK).await;
    assert_eq!(client.head().await.0, 200);
    assert_eq!(client.read_n(2).await, b"ok");
    for (path, after, by) in [("/later", "30", "retry_after"), ("/short", "1", "deadline")] {
        client.get(path).await;
        upstream.until("\r\n\r\n").await;
        upstream.send(busy(after)).await;
        let (status, headers) = client.head().await;
        assert_eq!((status, headers["retry-after"].to_str().unwrap()), (503, after));
        let denied = proxy.metric("headworks_retries_denied_total", &[("by", by)]);
        assert!((denied - 1.0).abs() < 0.1, "{by}");
    }
    assert_at_rest(&proxy).await;
}

#[tokio::test]
async fn there_is_no_other_attempt_where_one_is_not_wanted() {
    let busy = || Origin::scripted(|_, scene| async { scene.full(503, "text/plain", "busy") });
    let (off, on, full) = (busy(), busy(), Origin::h1());
    let proxy = Proxy::from_toml(&format!(
        "[upstream.off]\nendpoints = \"{}\"\nretry.attempts = 0\n[upstream.on]\nendpoints = \"{}\"\n\
         [upstream.full]\nendpoints = \"{}\"\nlimit.in_flight = 1\nqueue.max = 0\nretry.on = 503\n\
         [[route]]\nmatch.path = \"/off\"\nupstream = \"off\"\n[[route]]\nmatch.path = \"/gate\"\nupstream = \"full\"\n\
         [[route]]\nmatch.path = \"/here\"\nupstream = \"on\"\nretry.attempts = 0\n\
         [[route]]\nupstream = \"on\"\n",
        off.url(),
        on.url(),
        full.url()
    ));
    let ask = |path: &'static str, fields: &'static str| {
        let addr = proxy.public();
        async move {
            let mut client = Raw::connect(addr).await;
            client.send(format!("GET {path} HTTP/1.1\r\nhost: a\r\n{fields}\r\n")).await;
            client.head().await.0
        }
    };
    assert_eq!(ask("/off", "").await, 503);
    assert_eq!(off.seen().len(), 1);
    assert_eq!(ask("/here", "").await, 503);
    assert_eq!(on.seen().len(), 1);
    // A client, or a proxy, that has tried twice before.
    for field in ["x-retry-count: 2\r\n", "x-stainless-retry-count: 2\r\n", "x-envoy-attempt-count: 3\r\n"] {
        let before = on.seen().len();
        assert_eq!(ask("/", field).await, 503);
        assert_eq!(on.seen().len(), before + 1, "{field}");
    }
    let before = on.seen().len();
    assert_eq!(ask("/", "x-retry-count: 1\r\n").await, 503);
    assert_eq!(on.seen().len(), before + 2);
    assert_eq!(on.last().headers["x-retry-count"], "2");
    // The proxy's own refusals are no failures of the service.
    let mut held = Raw::connect(proxy.public()).await;
    held.get("/gate").await;
    assert!(eventually(|| full.in_flight() == 1, SOON).await);
    assert_eq!(ask("/gate", "").await, 503);
    full.open_gate(1);
    assert_eq!((held.head().await.0, full.seen().len()), (200, 1));
    drop(held);
    assert!(proxy.metric("headworks_retries_total", &[("upstream", "full")]) < 0.5);
    assert_at_rest(&proxy).await;
}

#[tokio::test]
async fn a_reading_that_takes_long_is_asked_of_another_and_the_slower_is_cancelled() {
    let slow = Arc::new(AtomicUsize::new(0));
    let origin = || {
        let slow = Arc::clone(&slow);
        Origin::scripted(move |request, scene| {
            // The first to be asked never answers.
            let hangs = request.uri().path() == "/slow" && slow.fetch_add(1, SeqCst) == 0;
            async move {
                if hangs {
                    scene.gate().await;
                }
                scene.full(200, "text/plain", "ok")
            }
        })
    };
    let origins = [origin(), origin()];
    let proxy = proxy(&[origins[0].url(), origins[1].url()], "hedge = \"100ms\"");
    // One request in fifty may be hedged.
    let mut client = h1(proxy.public()).await;
    for _ in 0..50 {
        client.ready().await.unwrap();
        let answer = client.send_request(request("GET", proxy.public(), "/", empty())).await.unwrap();
        assert_eq!(Answer::of(answer).await.unwrap().status, 200);
    }
    let answer = get(proxy.public(), "/slow").await;
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "ok"));
    assert!(eventually(|| origins.iter().map(Origin::cancelled).sum::<usize>() == 1, SOON).await, "the slower goes on");
    let metrics = proxy.metrics();
    assert!((metrics.get("headworks_hedges_total", &[("result", "won")]) - 1.0).abs() < 0.1);
    let line = proxy.logged("/slow").await;
    let winner = origins.iter().find(|origin| origin.cancelled() == 0).expect("one has answered");
    assert_eq!((&line["endpoint"], &line["attempts"]), (&winner.url().into(), &2.into()));
    assert_eq!(winner.last().headers["x-retry-count"], "1");
    assert_at_rest(&proxy).await;
    // The budget of hedges is used up, and a POST has none.
    slow.store(0, SeqCst);
    let mut waits = Raw::connect(proxy.public()).await;
    waits.get("/slow").await;
    assert!(eventually(|| slow.load(SeqCst) == 1, SOON).await);
    assert!(waits.is_silent(Duration::from_millis(300)).await);
    assert_eq!(slow.load(SeqCst), 1);
}

#[tokio::test]
async fn a_client_that_leaves_between_two_attempts_takes_nothing_along() {
    let wire = Wire::new().await;
    let proxy = proxy(&[wire.url()], "");
    for _ in 0..3 {
        let mut client = Raw::connect(proxy.public()).await;
        client.get("/").await;
        let (mut upstream, _) = wire.request().await;
        upstream.send("HTTP/1.1 503 Busy\r\nretry-after: 1\r\ncontent-length: 4\r\n\r\nbu").await;
        let is_free = || proxy.metric("headworks_credits_used", &[]) < 0.5 && retries(&proxy, "status") > 0.5;
        assert!(eventually(is_free, SOON).await, "the credit is kept during the pause");
        client.abort();
        assert_at_rest(&proxy).await;
    }
}
