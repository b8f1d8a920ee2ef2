//! The bodies of requests: how large, how slow, and who is blamed.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use tokio::time::Instant;

use crate::support::{Answer, Origin, Proxy, Raw, Wire, channel, eventually, get, h1, h2, request};

const SOON: Duration = Duration::from_secs(5);

fn proxy(upstream: &str, route: &str) -> Proxy {
    Proxy::from_toml(&format!(
        "[log]\naccess = \"json\"\n[upstream.app]\nendpoints = [\"{upstream}\"]\nlimit = {{ in_flight = 1 }}\n\
         [[route]]\nupstream = \"app\"\n{route}\n"
    ))
}

fn post(path: &str, fields: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nhost: a\r\n{fields}\r\n")
}

#[tokio::test]
async fn a_body_of_known_length_is_refused_at_once() {
    let origin = Origin::h1();
    let proxy = proxy(&origin.url(), "max_body_size = 1000");
    let mut client = Raw::connect(proxy.public()).await;
    client.send(post("/discard", "content-length: 1001\r\n")).await;
    let (status, headers) = client.head().await;
    assert_eq!(status, 413);
    assert!(headers["proxy-status"].to_str().unwrap().contains("body_too_large"), "{headers:?}");
    let mut client = Raw::connect(proxy.public()).await;
    client.send(post("/discard", "content-length: 1001\r\nexpect: 100-continue\r\n")).await;
    assert_eq!(client.head().await.0, 413, "it is not asked to go on");
    let (_sender, body) = channel();
    let mut large = request("POST", proxy.public(), "/discard", body);
    large.headers_mut().insert("content-length", 1001.into());
    let answer = Answer::of(h2(proxy.public(), 1 << 20).await.send_request(large).await.unwrap()).await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.json()["reason"].as_str()), (413, Some("body_too_large")));
    assert_eq!(origin.seen().len(), 0, "the upstream has seen nothing");
    assert!((proxy.metric("headworks_credits_used", &[]) - 0.0).abs() < 0.1);

    let mut client = Raw::connect(proxy.public()).await;
    client.send(post("/discard", "content-length: 1000\r\n") + &"x".repeat(1000)).await;
    assert_eq!(client.head().await.0, 200, "what fits, passes");
}

#[tokio::test]
async fn a_body_of_unknown_length_is_cut_at_the_limit() {
    for origin in [Origin::h1(), Origin::h2c()] {
        let proxy = proxy(&origin.url(), "max_body_size = \"10KiB\"");
        let (mut sender, body) = channel();
        let feeding =
            tokio::spawn(async move { while sender.send_data(Bytes::from(vec![b'x'; 4096])).await.is_ok() {} });
        let large = request("POST", proxy.public(), "/discard", body);
        let answer = Answer::of(h2(proxy.public(), 1 << 20).await.send_request(large).await.unwrap()).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.json()["reason"].as_str()), (413, Some("body_too_large")));
        feeding.abort();
        let line = proxy.logged("/discard").await;
        assert_eq!((&line["status"], &line["reason"]), (&413.into(), &"body_too_large".into()), "{line}");
        assert!(eventually(|| origin.in_flight() == 0, SOON).await, "the call goes on");
        assert_eq!(get(proxy.public(), "/delay/1").await.status, 200, "the credit is back");
    }
}

#[tokio::test]
async fn a_body_cut_after_the_head_cuts_the_answer() {
    let origin = Origin::h1();
    let proxy = proxy(&origin.url(), "max_body_size = \"10KiB\"");
    let mut client = Raw::connect(proxy.public()).await;
    client.send(post("/echo", "transfer-encoding: chunked\r\n") + "5\r\nhello\r\n").await;
    assert_eq!(client.head().await.0, 200);
    client.until("hello").await;
    client.send(format!("2800\r\n{}\r\n", "x".repeat(0x2800))).await;
    let rest = client.read_to_end().await.unwrap_or_default();
    assert!(!rest.ends_with(b"0\r\n\r\n"), "a clean end");
    let line = proxy.logged("/echo").await;
    assert_eq!((&line["status"], &line["reason"]), (&200.into(), &"body_too_large".into()), "{line}");
}

#[tokio::test]
async fn a_grpc_call_is_told_in_its_own_words() {
    let origin = Origin::h2c();
    let proxy = proxy(&origin.url(), "max_body_size = 10");
    let (mut sender, body) = channel();
    let mut call = request("POST", proxy.public(), "/discard", body);
    call.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    tokio::spawn(async move { while sender.send_data(Bytes::from(vec![b'x'; 8])).await.is_ok() {} });
    let answer = Answer::of(h2(proxy.public(), 1 << 20).await.send_request(call).await.unwrap()).await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.header("grpc-status")), (200, "8"), "{answer:?}");
}

#[tokio::test]
async fn a_client_that_stops_sending_is_told_and_the_upstream_is_not_blamed() {
    for origin in [Origin::h1(), Origin::h2c()] {
        let proxy = proxy(&origin.url(), "stream.upload_timeout = \"500ms\"");
        let start = Instant::now();
        let mut client = Raw::connect(proxy.public()).await;
        client.send(post("/discard", "content-length: 100\r\n") + "part").await;
        let (status, headers) = client.head().await;
        assert!(start.elapsed() >= Duration::from_millis(500), "{:?}", start.elapsed());
        assert_eq!(status, 408);
        assert!(headers["proxy-status"].to_str().unwrap().contains("upload_stalled"), "{headers:?}");
        assert_eq!(proxy.logged("/discard").await["reason"], "upload_stalled");
        assert!(eventually(|| origin.in_flight() == 0, SOON).await, "the call goes on");
        // After the head there is nobody to tell but by a reset.
        let mut client = Raw::connect(proxy.public()).await;
        client.send(post("/echo", "transfer-encoding: chunked\r\n") + "5\r\nhello\r\n").await;
        assert_eq!(client.head().await.0, 200);
        let rest = client.read_to_end().await.unwrap_or_default();
        assert!(!rest.ends_with(b"0\r\n\r\n"), "a clean end");
        let line = proxy.logged("/echo").await;
        assert_eq!((&line["status"], &line["reason"]), (&200.into(), &"upload_stalled".into()), "{line}");
        assert!(eventually(|| origin.in_flight() == 0, SOON).await, "the call goes on");
    }
}

#[tokio::test]
async fn a_slow_upstream_does_not_count_against_its_client() {
    let wire = Wire::new().await;
    let proxy = proxy(&wire.url(), "stream = { upload_timeout = \"400ms\", upload_rate = \"1MiB\" }");
    // More than fits between the two.
    let body = vec![b'x'; 24 << 20];
    let length = body.len();
    let mut client = Raw::connect(proxy.public()).await;
    client.send(post("/", &format!("content-length: {length}\r\n"))).await;
    let sending = tokio::spawn(async move {
        client.send(&body).await;
        client
    });
    let (mut upstream, _) = wire.request().await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(upstream.read_n(length).await.len(), length);
    upstream.send("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(sending.await.unwrap().head().await.0, 204);
}

#[tokio::test]
async fn a_call_whose_client_still_speaks_is_not_silent() {
    let origin = Origin::h2c();
    let proxy =
        proxy(&origin.url(), "timeout = { idle = \"600ms\", first_byte = \"5s\" }\nstream.upload_timeout = \"200ms\"");
    let mut client = h2(proxy.public(), 1 << 20).await;
    let (mut sender, body) = channel();
    let mut call = request("POST", proxy.public(), "/hold", body);
    call.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    let mut response = client.send_request(call).await.unwrap();
    response.body_mut().frame().await.unwrap().unwrap();
    let mut end = Box::pin(response.body_mut().frame());
    for _ in 0..6 {
        let spoken = tokio::time::timeout(Duration::from_millis(250), &mut end).await;
        assert!(spoken.is_err(), "cut although the client speaks: {spoken:?}");
        sender.send_data(Bytes::from_static(b"message")).await.expect("open");
    }
    let silent_since = Instant::now();
    end.await.expect("an error").expect_err("both are silent");
    assert!(silent_since.elapsed() >= Duration::from_millis(500), "{:?}", silent_since.elapsed());
    assert_eq!(proxy.logged("/hold").await["reason"], "upstream_stalled");
}

#[tokio::test]
async fn an_upload_that_goes_on_is_not_cut() {
    let origin = Origin::h1();
    let proxy = proxy(&origin.url(), "stream = { upload_timeout = \"500ms\", upload_rate = \"off\" }");
    let (mut sender, body) = channel();
    let upload = request("POST", proxy.public(), "/discard", body);
    let mut client = h1(proxy.public()).await;
    let feeding = async move {
        for _ in 0..8 {
            sender.send_data(Bytes::from_static(b"x")).await.unwrap();
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let (answer, ()) = tokio::join!(client.send_request(upload), feeding);
    assert_eq!(Answer::of(answer.unwrap()).await.unwrap().text(), "8");
}

#[tokio::test]
async fn a_body_that_was_held_back_is_cut_for_the_same_reasons() {
    let origin = Origin::h1();
    let proxy = proxy(&origin.url(), "max_body_size = 10");
    for (chunk, status, reason) in
        [("b\r\nhello world\r\n", 413, "body_too_large"), ("5;\0\r\nhello\r\n", 400, "malformed_body")]
    {
        let mut client = Raw::connect(proxy.public()).await;
        let head = post("/discard", "transfer-encoding: chunked\r\nexpect: 100-continue\r\n");
        client.send(head + chunk).await;
        let mut answer = client.head().await;
        if answer.0 == 100 {
            answer = client.head().await;
        }
        assert_eq!(answer.0, status, "{reason}");
        assert!(answer.1["proxy-status"].to_str().unwrap().contains(reason), "{:?}", answer.1);
    }
}

#[tokio::test]
async fn nobody_gets_time_by_the_name_of_grpc() {
    let origin = Origin::h1();
    let proxy = proxy(&origin.url(), "stream.upload_timeout = \"300ms\"");
    let mut client = Raw::connect(proxy.public()).await;
    client.send(post("/discard", "content-length: 100\r\ncontent-type: application/grpc\r\n") + "part").await;
    assert_eq!(client.head().await.1["grpc-status"], "14");
    assert_eq!(proxy.logged("/discard").await["reason"], "upload_stalled");
}
