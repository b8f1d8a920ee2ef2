//! Bodies pass as they come, and a client that leaves takes everything of its own with it.

use std::time::Duration;

use http_body_util::BodyExt as _;
use tokio::time::{Instant, timeout};

use crate::support::{Answer, Origin, Proxy, Raw, channel, empty, eventually, get, h2, request};

const SOON: Duration = Duration::from_secs(5);
/// The promise.
const GONE: Duration = Duration::from_millis(100);

fn proxy(origin: &Origin) -> Proxy {
    Proxy::from_toml(&format!(
        "[upstream.app]\nendpoints = [\"{}\"]\nlimit = {{ in_flight = 1 }}\nqueue = {{ max = 4, timeout = \"30s\" }}\n\
         [[route]]\nupstream = \"app\"\n",
        origin.url()
    ))
}

fn waiting(proxy: &Proxy) -> f64 {
    proxy.metric("headworks_queue_depth", &[("upstream", "app")])
}

/// How a client asks, and how much of its request body it leaves unread.
#[derive(Clone, Copy, Debug)]
enum Ask {
    Get,
    PostUnread,
}

async fn ask_h1(proxy: &Proxy, how: Ask, path: &str) -> Raw {
    let mut client = Raw::connect(proxy.public()).await;
    match how {
        Ask::Get => client.get(path).await,
        Ask::PostUnread => {
            // More is announced than is sent: the body is still under way when its sender leaves.
            let head = format!("POST {path} HTTP/1.1\r\nhost: test.local\r\ncontent-length: 100000\r\n\r\n");
            client.send(head).await;
            client.send(vec![b'x'; 20_000]).await;
        }
    }
    client
}

#[tokio::test]
async fn events_pass_one_by_one() {
    for origin in [Origin::h1(), Origin::h2c()] {
        let proxy = proxy(&origin);
        let mut client = Raw::connect(proxy.public()).await;
        let start = Instant::now();
        client.get("/sse/20/50").await;
        assert_eq!(client.head().await.0, 200);
        for at in 0..20_u32 {
            client.until(&format!("data: {at}\n\n")).await;
            let late = start.elapsed().saturating_sub(Duration::from_millis(50) * at);
            assert!(late < Duration::from_millis(150), "event {at} was {late:?} late");
        }
        client.until("[DONE]").await;

        let mut client = h2(proxy.public(), 1 << 16).await;
        let start = Instant::now();
        let request = request("GET", proxy.public(), "/sse/20/50", empty());
        let mut response = client.send_request(request).await.unwrap();
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        for at in 0..20_u32 {
            let frame = timeout(SOON, response.body_mut().frame()).await.unwrap().unwrap().unwrap();
            let late = start.elapsed().saturating_sub(Duration::from_millis(50) * at);
            assert_eq!(frame.into_data().unwrap(), format!("data: {at}\n\n"), "one frame, one event");
            assert!(late < Duration::from_millis(150), "event {at} was {late:?} late");
        }
    }
}

#[tokio::test]
async fn request_bodies_pass_as_they_come() {
    let origin = Origin::h1();
    let proxy = proxy(&origin);
    let (mut body, payload) = channel();
    let mut client = h2(proxy.public(), 1 << 16).await;
    let mut response = client.send_request(request("POST", proxy.public(), "/echo", payload)).await.unwrap();
    for part in ["one", "two", "three"] {
        body.send_data(part.into()).await.unwrap();
        let frame = timeout(SOON, response.body_mut().frame()).await.expect("it comes back").unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), part);
    }
    drop(body);
    let rest = timeout(SOON, response.into_body().collect()).await.expect("it ends").unwrap();
    assert!(rest.to_bytes().is_empty());
}

#[tokio::test]
async fn large_bodies_pass_whole_both_ways() {
    for origin in [Origin::h1(), Origin::h2c()] {
        let proxy = proxy(&origin);
        assert_eq!(get(proxy.public(), "/bytes/8000000").await.body.len(), 8_000_000);
        let mut client = h2(proxy.public(), 1 << 20).await;
        let (mut body, payload) = channel();
        let response = client.send_request(request("POST", proxy.public(), "/discard", payload));
        let sending = tokio::spawn(async move {
            for _ in 0..500 {
                body.send_data(vec![b'x'; 16_000].into()).await.unwrap();
            }
        });
        assert_eq!(Answer::of(response.await.unwrap()).await.unwrap().text(), "8000000");
        sending.await.unwrap();
    }
}

#[tokio::test]
async fn a_client_that_leaves_the_queue_frees_its_place() {
    for how in [Ask::Get, Ask::PostUnread] {
        let origin = Origin::h1();
        let proxy = proxy(&origin);
        let mut holder = Raw::connect(proxy.public()).await;
        holder.get("/hold").await;
        holder.head().await;
        let client = ask_h1(&proxy, how, "/").await;
        assert!(eventually(|| waiting(&proxy) > 0.5, SOON).await, "{how:?} waits");
        drop(client);
        assert!(eventually(|| waiting(&proxy) < 0.5, GONE).await, "{how:?} still has its place after {GONE:?}");
        assert_eq!(origin.seen().len(), 1, "{how:?} never reached the upstream");
    }
}

#[tokio::test]
async fn a_client_that_leaves_frees_credit_and_call() {
    for how in [Ask::Get, Ask::PostUnread] {
        for path in ["/hang", "/hold"] {
            for origin in [Origin::h1(), Origin::h2c()] {
                let proxy = proxy(&origin);
                let mut client = ask_h1(&proxy, how, path).await;
                assert!(eventually(|| origin.in_flight() == 1, SOON).await, "{how:?} {path} is in flight");
                if path == "/hold" {
                    client.head().await;
                    client.until("data: open\n\n").await;
                }
                drop(client);
                let start = Instant::now();
                assert!(eventually(|| origin.in_flight() == 0, GONE).await, "{how:?} {path} {origin:?} goes on");
                // The credit is back: the next one does not wait.
                assert_eq!(get(proxy.public(), "/status/204").await.status, 204);
                assert!(start.elapsed() < SOON);
                assert_eq!(origin.cancelled(), 1);
            }
        }
    }
}

#[tokio::test]
async fn an_h2_stream_that_is_reset_frees_credit_and_call() {
    let origin = Origin::h1();
    let proxy = proxy(&origin);
    let client = h2(proxy.public(), 1 << 16).await;
    for (method, path) in [("GET", "/hang"), ("POST", "/hang"), ("GET", "/hold"), ("POST", "/hold")] {
        let before = origin.cancelled();
        let (sender, payload) = channel();
        let payload = if method == "GET" { empty() } else { payload };
        let mut stream = client.clone();
        let request = request(method, proxy.public(), path, payload);
        let asked = tokio::spawn(async move {
            let response = stream.send_request(request).await.unwrap();
            let _body = response.into_body();
            std::future::pending::<()>().await;
        });
        assert!(eventually(|| origin.in_flight() == 1, SOON).await, "{method} {path} is in flight");
        asked.abort();
        drop(sender);
        assert!(eventually(|| origin.in_flight() == 0, GONE).await, "{method} {path} goes on");
        assert_eq!(origin.cancelled(), before + 1);
    }
    // A reset while queued, too. The connection itself is still good.
    let mut holder = Raw::connect(proxy.public()).await;
    holder.get("/hold").await;
    holder.head().await;
    let (mut stream, queued) = (client.clone(), request("GET", proxy.public(), "/", empty()));
    let queued = tokio::spawn(async move { stream.send_request(queued).await.map(|_| ()) });
    assert!(eventually(|| waiting(&proxy) > 0.5, SOON).await);
    queued.abort();
    assert!(eventually(|| waiting(&proxy) < 0.5, GONE).await, "its place is still taken");
    drop(holder);
    let mut client = client;
    let answer = client.send_request(request("GET", proxy.public(), "/status/204", empty())).await.unwrap();
    assert_eq!(answer.status(), 204);
}

#[tokio::test]
async fn an_upstream_that_breaks_off_never_looks_complete() {
    for origin in [Origin::h1(), Origin::h2c()] {
        let proxy = proxy(&origin);
        let mut client = Raw::connect(proxy.public()).await;
        client.get("/reset/1000").await;
        let (status, headers) = client.head().await;
        assert_eq!((status, headers.get("transfer-encoding").map(|v| v.to_str().unwrap())), (200, Some("chunked")));
        let rest = client.read_to_end().await.unwrap_or_default();
        assert!(!rest.ends_with(b"0\r\n\r\n"), "the end of a cut body was forged");

        let mut client = h2(proxy.public(), 1 << 16).await;
        let response = client.send_request(request("GET", proxy.public(), "/reset/1000", empty())).await.unwrap();
        assert!(Answer::of(response).await.is_err(), "the end of a cut body was forged");
    }
}
