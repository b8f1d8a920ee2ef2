//! `Expect: 100-continue`, through the proxy: the client keeps its body until the upstream wants it.

use std::time::Duration;

use tokio::time::Instant;

use crate::support::{Origin, Proxy, Raw, Wire};

/// Long enough to show that nothing comes, and shorter than the time after which a body comes unasked.
const A_WHILE: Duration = Duration::from_millis(200);

fn proxy(upstream: &str) -> Proxy {
    Proxy::from_toml(&format!(
        "[log]\naccess = \"json\"\n[upstream.app]\nendpoints = [\"{upstream}\"]\n[[route]]\nupstream = \"app\"\n"
    ))
}

const HEAD: &str = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\nexpect: 100-Continue\r\n\r\n";

#[tokio::test]
async fn the_clients_body_waits_for_the_upstreams_word() {
    let wire = Wire::new().await;
    let proxy = proxy(&wire.url());
    let mut client = Raw::connect(proxy.public()).await;
    client.send(HEAD).await;
    let (mut upstream, head) = wire.request().await;
    assert!(head.contains("\r\nexpect: 100-continue\r\n"), "{head}");
    assert!(client.is_silent(A_WHILE).await, "asked before the upstream has asked");
    upstream.send("HTTP/1.1 100 Continue\r\n\r\n").await;
    assert_eq!(client.until("\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.send("body").await;
    assert_eq!(upstream.read_n(4).await, b"body");
    upstream.send("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(client.head().await.0, 204);
    // Both connections live on.
    client.get("/next").await;
    assert!(upstream.until("\r\n\r\n").await.starts_with("GET /next "));
}

#[tokio::test]
async fn a_body_that_comes_unasked_is_held_back() {
    let wire = Wire::new().await;
    let proxy = proxy(&wire.url());
    let mut client = Raw::connect(proxy.public()).await;
    client.send(format!("{HEAD}body")).await;
    let (mut upstream, _) = wire.request().await;
    assert!(upstream.is_silent(A_WHILE).await, "the body came before it was asked for");
    // Other words than 100 ask for nothing.
    upstream.send("HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n").await;
    assert!(upstream.is_silent(A_WHILE).await, "the body came before it was asked for");
    upstream.send("HTTP/1.1 100 Continue\r\n\r\n").await;
    assert_eq!(upstream.read_n(4).await, b"body");
    upstream.send("HTTP/1.1 204 No Content\r\n\r\n").await;
    client.until("HTTP/1.1 204 ").await;
}

#[tokio::test]
async fn an_upstream_that_knows_nothing_of_it_gets_the_body_after_a_second() {
    let wire = Wire::new().await;
    let proxy = proxy(&wire.url());
    let mut client = Raw::connect(proxy.public()).await;
    let start = Instant::now();
    client.send(format!("{HEAD}body")).await;
    let (mut upstream, _) = wire.request().await;
    assert_eq!(upstream.read_n(4).await, b"body");
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
}

#[tokio::test]
async fn an_answer_instead_leaves_the_body_with_its_client() {
    let wire = Wire::new().await;
    let proxy = proxy(&wire.url());
    let mut client = Raw::connect(proxy.public()).await;
    client.send(HEAD).await;
    let (mut upstream, _) = wire.request().await;
    let body = "x".repeat(200_000);
    upstream.send(format!("HTTP/1.1 401 Unauthorized\r\ncontent-length: {}\r\n\r\n", body.len())).await;
    assert_eq!(client.head().await.0, 401, "and no 100 before it");
    upstream.send(&body).await;
    assert_eq!(client.read_n(body.len()).await.len(), body.len());
    assert_eq!(upstream.read_to_end().await.unwrap_or_default(), b"", "not a byte of the body");
    let line = proxy.logged("/").await;
    assert_eq!((&line["status"], &line["reason"]), (&401.into(), &serde_json::Value::Null), "{line}");
    // Nothing can follow on a connection that still owes a body.
    let mut client = Raw::connect(proxy.public()).await;
    client.get("/next").await;
    let (_upstream, head) = wire.request().await;
    assert!(head.starts_with("get /next "), "{head}");
}

#[tokio::test]
async fn no_other_expectation_is_met() {
    let origin = Origin::h1();
    let proxy = proxy(&origin.url());
    for wish in ["a-miracle", "100-continue, a-miracle", "100-continue=yes"] {
        let mut client = Raw::connect(proxy.public()).await;
        client.send(format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\nexpect: {wish}\r\n\r\nbody")).await;
        let (status, headers) = client.head().await;
        assert_eq!(status, 417, "{wish}");
        assert!(headers["proxy-status"].to_str().unwrap().contains("expectation_failed"), "{headers:?}");
    }
    assert_eq!(origin.seen().len(), 0);
}

#[tokio::test]
async fn an_old_client_is_told_nothing_beforehand() {
    let origin = Origin::h1();
    let proxy = proxy(&origin.url());
    let mut client = Raw::connect(proxy.public()).await;
    client.send("POST /discard HTTP/1.0\r\nhost: a\r\ncontent-length: 4\r\nexpect: 100-continue\r\n\r\n").await;
    assert!(client.is_silent(A_WHILE).await, "HTTP/1.0 knows no 100");
    client.send("body").await;
    assert_eq!(client.head().await.0, 200);
    assert!(!origin.last().headers.contains_key("expect"));
    // Nor where there is nothing to wait for.
    let mut client = Raw::connect(proxy.public()).await;
    client.send("GET /head HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\n\r\n").await;
    assert_eq!(client.head().await.0, 200);
    assert!(!origin.last().headers.contains_key("expect"));
}

#[tokio::test]
async fn over_http2_the_body_goes_at_once() {
    let origin = Origin::h2c();
    let proxy = proxy(&origin.url());
    let mut client = Raw::connect(proxy.public()).await;
    let start = Instant::now();
    client.send("POST /discard HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\nexpect: 100-continue\r\n\r\nbody").await;
    client.until("HTTP/1.1 200 ").await;
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}
