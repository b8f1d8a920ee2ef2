//! Each clock of a call ends it with a reason of its own.

use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use tokio::time::Instant;

use crate::support::{Answer, Origin, Proxy, Raw, channel, eventually, get, h2, request};

const SOON: Duration = Duration::from_secs(5);

fn proxy(upstream: &str, timeout: &str) -> Proxy {
    Proxy::from_toml(&format!(
        "[upstream.app]\nendpoints = [\"{upstream}\"]\ntimeout = {timeout}\n[[route]]\nupstream = \"app\"\n"
    ))
}

fn assert_about(start: Instant, due: Duration) {
    let took = start.elapsed();
    assert!(took >= due && took < due + Duration::from_millis(500), "{took:?} instead of {due:?}");
}

#[tokio::test]
async fn a_connection_that_is_refused_is_a_502() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let proxy = proxy(&format!("http://{port}"), "{ connect = \"1s\" }");
    let answer = get(proxy.public(), "/").await;
    assert_eq!(answer.status, 502, "{answer:?}");
    assert!(answer.header("proxy-status").contains("connect_failed"), "{answer:?}");
    assert_eq!(answer.header("content-type"), "application/problem+json");
}

#[tokio::test]
async fn a_handshake_that_hangs_is_cut_at_the_connect_time() {
    // Accepted by the kernel, answered by nobody: the TLS handshake belongs to the connect time.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", silent.local_addr().unwrap());
    let proxy = proxy(&url, "{ connect = \"300ms\" }");
    let start = Instant::now();
    let answer = get(proxy.public(), "/").await;
    assert_about(start, Duration::from_millis(300));
    assert_eq!(answer.status, 504, "{answer:?}");
    assert!(answer.header("proxy-status").contains("connect_timeout"), "{answer:?}");
}

#[tokio::test]
async fn a_late_head_is_a_504() {
    for origin in [Origin::h1(), Origin::h2c()] {
        let proxy = proxy(&origin.url(), "{ first_byte = \"300ms\" }");
        let start = Instant::now();
        let answer = get(proxy.public(), "/hang").await;
        assert_about(start, Duration::from_millis(300));
        assert_eq!(answer.status, 504, "{answer:?}");
        assert!(answer.header("proxy-status").contains("first_byte_timeout"), "{answer:?}");
        assert!(eventually(|| origin.cancelled() == 1, Duration::from_secs(1)).await, "the call goes on");
    }
}

#[tokio::test]
async fn a_silent_body_is_cut_and_never_looks_complete() {
    for origin in [Origin::h1(), Origin::h2c()] {
        let proxy = proxy(&origin.url(), "{ idle = \"300ms\" }");
        let mut client = Raw::connect(proxy.public()).await;
        client.get("/hold").await;
        assert_eq!(client.head().await.0, 200);
        client.until("data: open\n\n").await;
        let start = Instant::now();
        let rest = client.read_to_end().await.unwrap_or_default();
        assert_about(start, Duration::from_millis(250));
        assert!(!rest.ends_with(b"0\r\n\r\n"), "the end of a cut body was forged");
        assert!(eventually(|| origin.cancelled() == 1, Duration::from_secs(1)).await, "the call goes on");
    }
}

#[tokio::test]
async fn a_body_that_speaks_in_time_is_not_idle() {
    let origin = Origin::h1();
    let proxy = proxy(&origin.url(), "{ idle = \"400ms\", first_byte = \"400ms\" }");
    let answer = get(proxy.public(), "/sse/10/150").await;
    assert!(answer.text().ends_with("[DONE]\n\n"), "{answer:?}");
}

#[tokio::test]
async fn the_total_time_ends_head_and_body_alike() {
    let origin = Origin::h1();
    let proxy = proxy(&origin.url(), "{ total = \"500ms\" }");
    let start = Instant::now();
    let answer = get(proxy.public(), "/hang").await;
    assert_about(start, Duration::from_millis(500));
    assert_eq!(answer.status, 504, "{answer:?}");
    assert!(answer.header("proxy-status").contains("total_timeout"), "{answer:?}");

    let mut client = Raw::connect(proxy.public()).await;
    let start = Instant::now();
    client.get("/ticks/10/50").await;
    assert_eq!(client.head().await.0, 200);
    let rest = client.read_to_end().await.unwrap_or_default();
    assert_about(start, Duration::from_millis(500));
    assert!(!rest.ends_with(b"0\r\n\r\n"), "the end of a cut body was forged");
    // A stream ends by silence or stall, not by age.
    assert!(get(proxy.public(), "/sse/20/50").await.text().ends_with("[DONE]\n\n"));
}

#[tokio::test]
async fn a_route_has_the_last_word_on_its_times() {
    let origin = Origin::h1();
    let proxy = Proxy::from_toml(&format!(
        "[upstream.app]\nendpoints = [\"{}\"]\ntimeout = {{ first_byte = \"30s\" }}\n\
         [[route]]\nupstream = \"app\"\ntimeout = {{ first_byte = \"200ms\" }}\n",
        origin.url()
    ));
    assert_eq!(get(proxy.public(), "/hang").await.status, 504);
}

#[tokio::test]
async fn an_upstream_that_closes_without_an_answer_is_a_502() {
    let closing = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", closing.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = closing.accept().await {
            let mut part = [0; 1024];
            let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut part).await;
        }
    });
    let proxy = proxy(&url, "{ first_byte = \"5s\" }");
    let answer = get(proxy.public(), "/").await;
    assert_eq!(answer.status, 502, "{answer:?}");
    assert!(answer.header("proxy-status").contains("upstream_closed"), "{answer:?}");
}

/// What an upstream that reads its request to the end has read.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Heard {
    bytes: usize,
    broken: bool,
}

fn hearing() -> (Origin, Arc<Mutex<Option<Heard>>>) {
    let heard = Arc::new(Mutex::new(None));
    let noted = Arc::clone(&heard);
    let origin = Origin::scripted(move |mut request, scene| {
        let noted = Arc::clone(&noted);
        async move {
            let mut heard = Heard::default();
            while let Some(frame) = request.body_mut().frame().await {
                match frame {
                    Ok(frame) => heard.bytes += frame.data_ref().map_or(0, Bytes::len),
                    Err(_) => heard.broken = true,
                }
            }
            *noted.lock().unwrap() = Some(heard);
            scene.full(200, "text/plain", heard.bytes.to_string())
        }
    });
    (origin, heard)
}

#[tokio::test]
async fn an_upload_that_stops_is_the_clients_fault() {
    let (origin, heard) = hearing();
    let proxy = proxy(&origin.url(), "{ first_byte = \"300ms\" }");
    let start = Instant::now();
    let mut client = Raw::connect(proxy.public()).await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n").await;
    client.send([b'x'; 10]).await;
    let (status, headers) = client.head().await;
    assert_about(start, Duration::from_millis(300));
    assert_eq!(status, 400, "{headers:?}");
    assert!(headers["proxy-status"].to_str().unwrap().contains("request_incomplete"), "{headers:?}");
    assert!(eventually(|| heard.lock().unwrap().is_some(), SOON).await, "the call goes on");
    assert_eq!(heard.lock().unwrap().take(), Some(Heard { bytes: 10, broken: true }));

    // An h2 stream that stops, to both kinds of upstream.
    for origin in [Origin::h1(), Origin::h2c()] {
        let proxy = self::proxy(&origin.url(), "{ first_byte = \"300ms\" }");
        let mut client = h2(proxy.public(), 1 << 16).await;
        let (mut sender, payload) = channel();
        let answer = client.send_request(request("POST", proxy.public(), "/hang", payload));
        sender.send_data("part".into()).await.unwrap();
        let answer = Answer::of(answer.await.unwrap()).await.unwrap();
        assert_eq!(answer.status, 400, "{answer:?}");
        assert!(answer.header("proxy-status").contains("request_incomplete"), "{answer:?}");
        assert!(eventually(|| origin.cancelled() == 1, SOON).await, "the call goes on");
        drop(sender);
    }
}

#[tokio::test]
async fn a_slow_upload_that_goes_on_is_nobodys_fault() {
    let (origin, heard) = hearing();
    let proxy = proxy(&origin.url(), "{ first_byte = \"400ms\" }");
    let mut client = Raw::connect(proxy.public()).await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n").await;
    let mut pace = tokio::time::interval(Duration::from_millis(100));
    for _ in 0..10 {
        pace.tick().await;
        client.send([b'x'; 10]).await;
    }
    assert_eq!(client.head().await.0, 200);
    assert_eq!(client.read_n(3).await, b"100");
    assert_eq!(heard.lock().unwrap().take(), Some(Heard { bytes: 100, broken: false }));
}

#[tokio::test]
async fn a_late_head_after_a_whole_upload_is_the_upstreams_fault() {
    for origin in [Origin::h1(), Origin::h2c()] {
        let proxy = proxy(&origin.url(), "{ first_byte = \"300ms\" }");
        for upload in ["content-length: 4\r\n\r\nbody", "transfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"] {
            let mut client = Raw::connect(proxy.public()).await;
            let start = Instant::now();
            client.send(format!("POST /hang HTTP/1.1\r\nhost: a\r\n{upload}")).await;
            let (status, headers) = client.head().await;
            assert_about(start, Duration::from_millis(300));
            assert_eq!(status, 504, "{headers:?}");
            assert!(headers["proxy-status"].to_str().unwrap().contains("first_byte_timeout"), "{headers:?}");
        }
        assert!(eventually(|| origin.cancelled() == 2, SOON).await, "the call goes on");
    }
}

#[tokio::test]
async fn an_upstream_that_takes_no_upload_is_late_itself() {
    // Accepted by the kernel and read by nobody: the client would send more if it could.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    // The same on h2: its windows close.
    let unread = Origin::h2c();
    for (url, path) in [(format!("http://{}", silent.local_addr().unwrap()), "/"), (unread.url(), "/delay/5000")] {
        let proxy = proxy(&url, "{ first_byte = \"500ms\" }");
        let mut client = h2(proxy.public(), 1 << 16).await;
        let (mut sender, payload) = channel();
        let sending = tokio::spawn(async move { while sender.send_data(vec![b'x'; 100_000].into()).await.is_ok() {} });
        let answer = client.send_request(request("POST", proxy.public(), path, payload)).await.unwrap();
        let answer = Answer::of(answer).await.unwrap();
        assert_eq!(answer.status, 504, "{answer:?}");
        assert!(answer.header("proxy-status").contains("first_byte_timeout"), "{answer:?}");
        sending.abort();
    }
}
