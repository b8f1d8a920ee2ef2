//! The core promise: as much as the upstream can carry, a bounded wait for the rest, an honest answer beyond.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::support::{Answer, Origin, Proxy, Raw, empty, eventually, get, h2, request};

const SOON: Duration = Duration::from_secs(5);

fn proxy(origin: &Origin, limit: &str, queue: &str) -> Proxy {
    Proxy::from_toml(&format!(
        "[upstream.app]\nendpoints = [\"{}\"]\nlimit = {limit}\nqueue = {queue}\n[[route]]\nupstream = \"app\"\n",
        origin.url()
    ))
}

fn send(proxy: &Proxy, path: &'static str, count: usize) -> JoinSet<Answer> {
    let addr = proxy.public();
    let mut answers = JoinSet::new();
    for _ in 0..count {
        answers.spawn(get(addr, path));
    }
    answers
}

/// Everything a refusal owes its reader.
fn assert_refusal(answer: &Answer, reason: &str) {
    assert_eq!(answer.status, 503, "{answer:?}");
    let wait = answer.header("retry-after").parse::<u64>().expect("Retry-After in whole seconds");
    assert!(wait >= 1, "{answer:?}");
    assert_eq!(answer.header("content-type"), "application/problem+json");
    assert!(answer.header("proxy-status").contains(reason), "{answer:?}");
    let length = answer.header("content-length").parse::<usize>().expect("Content-Length");
    assert_eq!(length, answer.body.len());
    let problem = answer.json();
    assert_eq!(problem["status"], 503, "{problem}");
    assert!(problem["title"].is_string() || problem["detail"].is_string(), "{problem}");
}

#[tokio::test]
async fn two_hundred_at_once_meet_eight_credits_and_sixteen_places() {
    let origin = Origin::h1();
    let proxy = proxy(&origin, "{ in_flight = 8 }", "{ max = 16, timeout = \"500ms\" }");
    let mut pending = send(&proxy, "/gate", 200);

    // The gate is closed: 8 are in flight, 16 wait, and the other 176 are refused at once.
    let mut full = 0;
    let mut deepest = 0.0_f64;
    while full < 176 {
        let answer = timeout(SOON, pending.join_next()).await.expect("a refusal does not wait").unwrap().unwrap();
        if answer.header("proxy-status").contains("queue_timeout") {
            // A slow machine may let the first wait run out while the last requests arrive; their places are used again.
            assert_refusal(&answer, "queue_timeout");
        } else {
            assert_refusal(&answer, "queue_full");
        }
        full += 1;
        if full % 25 == 0 {
            deepest = deepest.max(proxy.metric("headworks_queue_depth", &[("upstream", "app")]));
        }
    }
    deepest = deepest.max(proxy.metric("headworks_queue_depth", &[("upstream", "app")]));
    assert!(deepest > 0.0 && deepest <= 16.0, "{deepest} were waiting");
    assert_eq!((origin.in_flight(), origin.max_in_flight()), (8, 8));

    // Those that wait are told when their time is up.
    for _ in 0..16 {
        let answer = timeout(SOON, pending.join_next()).await.expect("a wait ends").unwrap().unwrap();
        assert_refusal(&answer, "queue_timeout");
    }
    assert_eq!(proxy.metric("headworks_queue_depth", &[("upstream", "app")]).to_bits(), 0.0_f64.to_bits());

    // And those in flight are served.
    origin.open_gate(8);
    for _ in 0..8 {
        let answer = timeout(SOON, pending.join_next()).await.expect("an answer").unwrap().unwrap();
        assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "ok"));
    }
    assert!(pending.is_empty());
    assert_eq!((origin.max_in_flight(), origin.seen().len()), (8, 8));
}

#[tokio::test]
async fn an_upstream_that_works_never_sees_more_than_its_credits() {
    let origin = Origin::h1();
    let proxy = proxy(&origin, "{ in_flight = 8 }", "{ max = 16, timeout = \"500ms\" }");
    let mut pending = send(&proxy, "/delay/50", 200);
    let (mut served, mut refused) = (0, 0);
    while let Some(answer) = timeout(SOON, pending.join_next()).await.expect("every request is answered") {
        let answer = answer.unwrap();
        if answer.status == 200 {
            served += 1;
        } else {
            assert_refusal(&answer, "queue_");
            refused += 1;
        }
    }
    assert_eq!(served + refused, 200);
    assert!(served >= 24, "{served} were served: 8 at once and 16 after them is the least");
    assert!(origin.max_in_flight() <= 8, "{} were in flight at once", origin.max_in_flight());
    assert_eq!(origin.seen().len(), served);
}

#[tokio::test]
async fn the_wait_is_as_long_as_configured() {
    let origin = Origin::h1();
    let proxy = proxy(&origin, "{ in_flight = 1 }", "{ max = 1, timeout = \"400ms\" }");
    let _held = send(&proxy, "/hang", 1);
    assert!(eventually(|| origin.in_flight() == 1, SOON).await);
    let start = Instant::now();
    assert_refusal(&get(proxy.public(), "/").await, "queue_timeout");
    let waited = start.elapsed();
    assert!(waited >= Duration::from_millis(400) && waited < Duration::from_millis(800), "{waited:?}");
}

#[tokio::test]
async fn a_queue_without_places_refuses_at_once() {
    let origin = Origin::h1();
    let proxy = proxy(&origin, "{ in_flight = 1 }", "{ max = 0, timeout = \"5s\" }");
    let _held = send(&proxy, "/hang", 1);
    assert!(eventually(|| origin.in_flight() == 1, SOON).await);
    let start = Instant::now();
    assert_refusal(&get(proxy.public(), "/").await, "queue_full");
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_ninth_stream_waits_until_one_ends() {
    let origin = Origin::h1();
    let proxy = proxy(&origin, "{ in_flight = 8 }", "{ max = 16, timeout = \"30s\" }");
    let mut streams = Vec::new();
    for _ in 0..8 {
        let mut stream = Raw::connect(proxy.public()).await;
        stream.get("/sse-gate").await;
        assert_eq!(stream.head().await.0, 200);
        stream.until("data: open\n\n").await;
        streams.push(stream);
    }
    let mut ninth = Raw::connect(proxy.public()).await;
    ninth.get("/sse-gate").await;
    let waiting = || proxy.metric("headworks_queue_depth", &[("upstream", "app")]) > 0.5;
    assert!(eventually(waiting, SOON).await, "the ninth waits");
    assert_eq!(origin.in_flight(), 8);
    // All eight heads are out, and events too: only an end makes room.
    assert!(timeout(Duration::from_millis(300), ninth.head()).await.is_err(), "the ninth has no credit yet");

    origin.open_gate(1);
    assert_eq!(timeout(SOON, ninth.head()).await.expect("its turn has come").0, 200);
    ninth.until("data: open\n\n").await;
    assert_eq!(origin.max_in_flight(), 8);

    // One that is cut makes room as well.
    let mut tenth = Raw::connect(proxy.public()).await;
    tenth.get("/sse-gate").await;
    assert!(eventually(waiting, SOON).await, "the tenth waits");
    drop(ninth);
    assert_eq!(timeout(SOON, tenth.head()).await.expect("its turn has come").0, 200);
    assert!(origin.max_in_flight() <= 9, "the cut one may still be leaving");
}

#[tokio::test]
async fn streams_have_slots_of_their_own() {
    let origin = Origin::h1();
    let proxy = proxy(&origin, "{ in_flight = 2, streams = 4 }", "{ max = 16, timeout = \"300ms\" }");
    let mut streams = Vec::new();
    for _ in 0..4 {
        let mut stream = Raw::connect(proxy.public()).await;
        stream.send("GET /hold HTTP/1.1\r\nhost: test.local\r\naccept: text/event-stream\r\n\r\n").await;
        assert_eq!(stream.head().await.0, 200);
        stream.until("data: open\n\n").await;
        streams.push(stream);
    }
    // Four streams leave both credits for plain requests.
    let pending = send(&proxy, "/gate", 2);
    assert!(eventually(|| origin.in_flight() == 6, SOON).await, "{} in flight", origin.in_flight());
    origin.open_gate(2);
    for answer in pending.join_all().await {
        assert_eq!(answer.status, 200);
    }
    // A fifth stream finds no slot.
    let mut fifth = Raw::connect(proxy.public()).await;
    fifth.send("GET /hold HTTP/1.1\r\nhost: test.local\r\naccept: text/event-stream\r\n\r\n").await;
    let (status, headers) = fifth.head().await;
    assert_eq!(status, 503, "{headers:?}");
    assert!(headers.contains_key("retry-after"));
    drop(fifth);
    // Until one ends.
    streams.pop();
    assert!(eventually(|| origin.in_flight() == 3, SOON).await);
    let mut next = Raw::connect(proxy.public()).await;
    next.send("GET /hold HTTP/1.1\r\nhost: test.local\r\naccept: text/event-stream\r\n\r\n").await;
    assert_eq!(next.head().await.0, 200);
}

#[tokio::test]
async fn the_queue_stands_in_front_of_all_endpoints() {
    let (left, right) = (Origin::h1(), Origin::h1());
    let proxy = Proxy::from_toml(&format!(
        "[upstream.app]\nendpoints = [\"{}\", \"{}\"]\nlimit = {{ in_flight = 1 }}\n\
         queue = {{ max = 8, timeout = \"10s\" }}\n[[route]]\nupstream = \"app\"\n",
        left.url(),
        right.url()
    ));
    let mut pending = send(&proxy, "/gate", 3);
    assert!(eventually(|| left.in_flight() == 1 && right.in_flight() == 1, SOON).await);
    // Whichever comes free serves the one that waits.
    right.open_gate(2);
    for _ in 0..2 {
        assert_eq!(timeout(SOON, pending.join_next()).await.unwrap().unwrap().unwrap().status, 200);
    }
    assert_eq!((left.seen().len(), right.seen().len()), (1, 2));
    left.open_gate(1);
    assert_eq!(timeout(SOON, pending.join_next()).await.unwrap().unwrap().unwrap().status, 200);
}

#[tokio::test]
async fn streams_of_one_connection_are_admitted_one_by_one() {
    let origin = Origin::h1();
    let proxy = proxy(&origin, "{ in_flight = 2 }", "{ max = 1, timeout = \"10s\" }");
    let client = h2(proxy.public(), 1 << 16).await;
    let mut pending = JoinSet::new();
    for _ in 0..10 {
        let (mut client, request) = (client.clone(), request("GET", proxy.public(), "/gate", empty()));
        pending.spawn(async move { Answer::of(client.send_request(request).await.unwrap()).await.unwrap() });
    }
    for _ in 0..7 {
        let answer = timeout(SOON, pending.join_next()).await.expect("refused at once").unwrap().unwrap();
        assert_refusal(&answer, "queue_full");
    }
    assert!(eventually(|| origin.in_flight() == 2, SOON).await);
    origin.open_gate(3);
    for answer in pending.join_all().await {
        assert_eq!(answer.status, 200);
    }
    assert_eq!(origin.max_in_flight(), 2);
}

#[tokio::test]
async fn a_rate_limit_refuses_with_the_exact_time_and_takes_no_credit() {
    let origin = Origin::h1();
    let proxy = Proxy::from_toml(&format!(
        "[upstream.app]\nendpoints = [\"{}\"]\n[[route]]\nupstream = \"app\"\n\
         rate_limit = [{{ name = \"per-key\", by = \"header:x-key\", rate = \"2/min\", burst = 2 }}]\n",
        origin.url()
    ));
    let mut client = h2(proxy.public(), 1 << 16).await;
    let mut ask = async |key: &str| {
        let mut request = request("GET", proxy.public(), "/", empty());
        request.headers_mut().insert("x-key", key.parse().unwrap());
        Answer::of(client.send_request(request).await.unwrap()).await.unwrap()
    };
    assert_eq!(ask("a").await.status, 200);
    assert_eq!(ask("a").await.status, 200);
    let refused = ask("a").await;
    assert_eq!(refused.status, 429, "{refused:?}");
    let wait = refused.header("retry-after").parse::<u64>().unwrap();
    assert!((28..=33).contains(&wait), "two a minute is one every 30 s, and up to a tenth more, not {wait}");
    assert!(refused.header("ratelimit").contains("per-key"), "{refused:?}");
    assert!(refused.header("ratelimit-policy").contains("per-key"), "{refused:?}");
    assert_eq!(refused.header("content-type"), "application/problem+json");
    assert_eq!(refused.json()["status"], 429);
    // Another key has its own burst, and the upstream saw only what was let through.
    assert_eq!(ask("b").await.status, 200);
    assert_eq!(origin.seen().len(), 3);
}
