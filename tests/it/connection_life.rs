//! How long a client's connection lives, and how it is told of its end.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::support::h2_raw::{Frame, H2Raw, PREFACE, code, flag, frame, headers, kind, ping, request, settings};
use crate::support::{Origin, Proxy, Raw, eventually};

const SOON: Duration = Duration::from_secs(5);

fn proxy(origin: &Origin, server: &str) -> Proxy {
    Proxy::from_toml(&format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\n{server}\n[log]\naccess = \"json\"\n\
         [upstream.app]\nendpoints = [\"{}\"]\n[[route]]\nupstream = \"app\"\n",
        origin.url()
    ))
}

fn get(stream: u32, path: &str) -> Vec<u8> {
    headers(stream, true, &request("GET", path, &[]))
}

/// The last stream and the code of each goodbye.
fn goodbyes(frames: &[Frame]) -> Vec<(u32, u32)> {
    let goodbyes = frames.iter().filter(|frame| frame.kind == kind::GOAWAY);
    goodbyes.map(|frame| (u32::from_be_bytes(frame.payload[..4].try_into().unwrap()), frame.code())).collect()
}

fn has_data(frames: &[Frame], stream: u32, text: &[u8]) -> bool {
    frames.iter().any(|frame| frame.kind == kind::DATA && frame.stream == stream && frame.payload == text)
}

#[tokio::test]
async fn the_last_answer_says_that_it_is_the_last() {
    let origin = Origin::h1();
    let proxy = proxy(&origin, "max_requests = 3");
    let mut client = Raw::connect(proxy.public()).await;
    for last in [false, false, true] {
        client.get("/delay/0").await;
        let (status, fields) = client.head().await;
        assert_eq!(status, 200);
        assert_eq!(fields.get("connection").is_some_and(|value| value == "close"), last);
        client.until("ok").await;
    }
    assert!(client.read_to_end().await.expect("closed, not reset").is_empty());
}

#[tokio::test]
async fn a_used_up_h2_connection_ends_with_its_streams() {
    let origin = Origin::h1();
    let proxy = proxy(&origin, "max_requests = 2");
    let mut client = H2Raw::connect(proxy.public()).await;
    client.send([get(1, "/delay/0"), get(3, "/delay/700")].concat()).await;
    let seen = client.rest().await;
    assert!(has_data(&seen, 1, b"ok") && has_data(&seen, 3, b"ok"), "{seen:?}");
    assert_eq!(goodbyes(&seen).last(), Some(&(3, code::NO_ERROR)), "{seen:?}");
    assert_eq!((origin.seen().len(), origin.cancelled()), (2, 0));
}

#[tokio::test]
async fn an_old_connection_serves_what_it_has_begun_and_no_more() {
    let origin = Origin::h1();
    let proxy = proxy(&origin, "timeout.age = \"300ms\"");
    let start = Instant::now();
    let mut h2 = H2Raw::connect(proxy.public()).await;
    h2.send(get(1, "/delay/900")).await;
    let mut h1 = Raw::connect(proxy.public()).await;
    h1.get("/delay/900").await;
    let mut idle = Raw::connect(proxy.public()).await;
    idle.get("/delay/0").await;
    idle.until("ok").await;

    assert!(idle.read_to_end().await.expect("closed, not reset").is_empty());
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    let (status, fields) = h1.head().await;
    assert_eq!((status, fields["connection"].to_str().unwrap()), (200, "close"));
    assert_eq!(h1.read_to_end().await.expect("closed, not reset"), b"ok");
    let seen = h2.rest().await;
    assert!(has_data(&seen, 1, b"ok"), "{seen:?}");
    assert_eq!(goodbyes(&seen).last(), Some(&(1, code::NO_ERROR)), "{seen:?}");
    assert_eq!(origin.cancelled(), 0);
}

#[tokio::test]
async fn who_opens_http2_must_also_ask_for_something() {
    let origin = Origin::h1();
    let proxy = proxy(&origin, "timeout.header = \"300ms\"");
    let start = Instant::now();
    let opening = [PREFACE, settings(&[]).as_slice()].concat();
    for said in [&PREFACE[..3], PREFACE, opening.as_slice()] {
        let mut client = H2Raw::silent(proxy.public()).await;
        client.send(said).await;
        assert!(goodbyes(&client.rest().await).iter().all(|(_, code)| *code == code::NO_ERROR));
    }
    assert!(start.elapsed() < 2 * SOON, "the idle time is none of theirs: {:?}", start.elapsed());
    // Once it has asked, it may rest as long as any other.
    let mut client = H2Raw::connect(proxy.public()).await;
    client.send(get(1, "/delay/0")).await;
    assert_eq!(client.status(1).await, 200);
    sleep(Duration::from_millis(900)).await;
    client.send(get(3, "/delay/0")).await;
    assert_eq!(client.status(3).await, 200);
}

#[tokio::test]
async fn pings_are_no_use_of_a_connection() {
    let origin = Origin::h1();
    let proxy = proxy(&origin, "timeout.idle = \"400ms\"");
    let mut client = H2Raw::connect(proxy.public()).await;
    client.send(get(1, "/delay/0")).await;
    assert_eq!(client.status(1).await, 200);
    let mut pings = 0;
    while client.try_send(ping([1; 8])).await.is_ok() && pings < 1000 {
        pings += 1;
        sleep(Duration::from_millis(20)).await;
    }
    assert!(pings < 1000, "it lives on");
    let open = || proxy.metric("headworks_connections", &[("listener", "listen-1")]);
    assert!(eventually(|| open() < 0.5, SOON).await);
}

#[tokio::test]
async fn a_field_block_must_end_in_the_time_of_a_head() {
    let origin = Origin::h1();
    let proxy = proxy(&origin, "timeout.header = \"300ms\"");
    let mut client = H2Raw::connect(proxy.public()).await;
    client.send(get(1, "/hang")).await;
    // Beside a request that is under way, so that nothing else could end the connection.
    client.send(frame(kind::HEADERS, flag::END_STREAM, 3, &request("GET", "/", &[]))).await;
    client.rest().await;
    assert!(eventually(|| origin.in_flight() == 0, SOON).await);
    let slow = || proxy.metric("headworks_connections_ended_total", &[("reason", "slow_head")]);
    assert!(eventually(|| slow() > 0.5, SOON).await);
    assert!(origin.seen().len() <= 1);
}
