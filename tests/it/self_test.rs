//! The harness itself, without a proxy between: a test can only be trusted as far as its tools.

use std::time::Duration;

use crate::support::{Answer, Certs, Flood, Origin, Raw, channel, empty, eventually, get, h1, h2, h2_tls, request};

#[tokio::test]
async fn the_origin_answers_in_every_version() {
    let origin = Origin::h1();
    assert_eq!(get(origin.addr(), "/delay/1").await.text(), "ok");
    let trailers = get(origin.addr(), "/trailers").await;
    assert_eq!(trailers.text(), "body");

    let origin = Origin::h2c();
    let mut client = h2(origin.addr(), 1 << 16).await;
    let answer = client.send_request(request("GET", origin.addr(), "/trailers", empty())).await.unwrap();
    let answer = Answer::of(answer).await.unwrap();
    assert_eq!(answer.trailers.get("x-checksum").unwrap(), "abc");

    let certs = Certs::new();
    let origin = Origin::tls(certs.server("server", &["h2"], false));
    let mut client = h2_tls(origin.addr(), certs.client(&["h2"])).await;
    let answer = client.send_request(request("GET", origin.addr(), "/head", empty())).await.unwrap();
    assert_eq!(Answer::of(answer).await.unwrap().json()["version"], "HTTP/2.0");
}

#[tokio::test]
async fn the_origin_sees_who_leaves() {
    let origin = Origin::h1();
    let mut client = Raw::connect(origin.addr()).await;
    client.get("/hold").await;
    assert_eq!(client.head().await.0, 200);
    client.until("data: open\n\n").await;
    assert_eq!((origin.in_flight(), origin.cancelled()), (1, 0));
    drop(client);
    assert!(eventually(|| origin.in_flight() == 0, Duration::from_secs(1)).await);
    assert_eq!(origin.cancelled(), 1);
    assert!(origin.records()[0].cancelled());
}

#[tokio::test]
async fn an_echo_gives_back_what_it_gets_at_once() {
    let origin = Origin::h1();
    let (mut body, payload) = channel();
    let mut client = h1(origin.addr()).await;
    let response = client.send_request(request("POST", origin.addr(), "/echo", payload));
    body.send_data("one".into()).await.unwrap();
    let mut response = response.await.unwrap();
    let frame = http_body_util::BodyExt::frame(response.body_mut()).await.unwrap().unwrap();
    assert_eq!(frame.data_ref().unwrap(), "one");
    drop(body);
    assert_eq!(Answer::of(response).await.unwrap().text(), "");
    assert!(eventually(|| origin.in_flight() == 0, Duration::from_secs(1)).await);
    assert_eq!(origin.cancelled(), 0);
}

#[tokio::test]
async fn a_flood_stops_when_nobody_reads() {
    let flood = Flood::new();
    let mut client = Raw::connect_small(flood.addr(), 4096).await;
    client.get("/one").await;
    client.head().await;
    client.read_n(100_000).await;
    let silent = || flood.records().first().is_some_and(|record| record.silence() > Duration::from_millis(100));
    assert!(eventually(silent, Duration::from_secs(5)).await);
    let beyond = flood.taken()["/one"].saturating_sub(client.taken);
    assert!(beyond < 64 * 1024, "{beyond} bytes beyond what was read");
    drop(client);
    assert!(eventually(|| flood.records()[0].cancelled(), Duration::from_secs(1)).await);
}
