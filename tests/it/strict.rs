//! What the proxy refuses of a client's messages, in which order, and that log and metrics know of it.

use std::time::Duration;

use tokio::time::Instant;

use crate::support::{Origin, Proxy, Raw, eventually};

const SOON: Duration = Duration::from_secs(5);
const GET: &str = "GET /head HTTP/1.1\r\nhost: a\r\n\r\n";

fn proxy(origin: &Origin, server: &str) -> Proxy {
    Proxy::from_toml(&format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\n{server}\n[log]\naccess = \"json\"\n[upstream.app]\n\
         endpoints = [\"{}\"]\n[[route]]\nupstream = \"app\"\n",
        origin.url()
    ))
}

/// Sends bytes, and expects a refusal with this status and reason, and then the end of the connection.
async fn refused(proxy: &Proxy, bytes: impl AsRef<[u8]>, status: u16, reason: &str) {
    let mut client = Raw::connect(proxy.public()).await;
    let text = String::from_utf8_lossy(bytes.as_ref()).into_owned();
    client.send(bytes).await;
    let (got, headers) = client.head().await;
    assert_eq!(got, status, "{text:?}");
    assert!(headers["proxy-status"].to_str().unwrap().ends_with(&format!("details=\"{reason}\"")), "{headers:?}");
    assert_eq!(headers["connection"], "close");
    let body = client.read_to_end().await.expect("a clean end");
    assert_eq!(body.is_empty(), text.starts_with("HEAD "), "{text:?}");
}

#[tokio::test]
async fn a_refusal_has_a_reason_a_line_and_a_count() {
    let origin = Origin::h1();
    let proxy = proxy(&origin, "max_header_size = \"8KiB\"\nmax_headers = 10\ntimeout.header = \"300ms\"");
    let fields = "x: y\r\n".repeat(10);
    let long = "y".repeat(9000);
    for (path, request, status, reason) in [
        ("/1", "GET /1 HTTP/1.1\r\nhost: a\r\nx : y\r\n\r\n".to_owned(), 400, "bad_request"),
        ("/2", "HEAD /2 HTTP/1.1\nhost: a\n\n".to_owned(), 400, "bad_request"),
        ("/3", "GET /3 HTTP/3.0\r\nhost: a\r\n\r\n".to_owned(), 505, "version_refused"),
        ("/4", format!("GET /4 HTTP/1.1\r\nhost: a\r\n{fields}\r\n"), 431, "header_too_large"),
        ("/5", format!("GET /5 HTTP/1.1\r\nhost: a\r\nx: {long}\r\n\r\n"), 431, "header_too_large"),
        ("*", "CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n".to_owned(), 405, "method_refused"),
    ] {
        refused(&proxy, request, status, reason).await;
        if path == "/2" || path == "*" {
            continue; // what the log shows of these is no path
        }
        let line = proxy.logged(path).await;
        assert_eq!((&line["status"], &line["reason"], &line["route"]), (&status.into(), &reason.into(), &"-".into()));
    }
    refused(&proxy, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", 400, "bad_request").await;
    refused(&proxy, "GET /7 HT", 408, "header_timeout").await;
    let classes = [("bad_request", 3.0), ("header_too_large", 2.0), ("header_timeout", 1.0), ("version_refused", 1.0)];
    for (reason, count) in classes {
        let metric = || proxy.metric("headworks_requests_total", &[("route", "-"), ("reason", reason)]);
        assert!(eventually(|| (metric() - count).abs() < 0.1, SOON).await, "{reason}: {}", metric());
    }
    assert_eq!((origin.connections(), origin.seen().len()), (0, 0));
}

#[tokio::test]
async fn answers_keep_their_order_and_nothing_behind_a_refusal_is_read() {
    let origin = Origin::h1();
    let proxy = proxy(&origin, "");
    let slow = GET.replace("/head", "/delay/200");
    for torn in [false, true] {
        let mut client = Raw::connect(proxy.public()).await;
        let bad = GET.replace("host: a", "host: a\r\ncontent-length: 1\r\ncontent-length: 1").replace("GET", "HEAD");
        let all = [slow.as_str(), GET, &bad, GET].concat();
        if torn {
            for byte in all.as_bytes() {
                client.send([*byte]).await;
            }
        } else {
            client.send(all).await;
        }
        for length in [2, 0] {
            let (status, headers) = client.head().await;
            assert_eq!(status, 200);
            let told = headers["content-length"].to_str().unwrap().parse().unwrap();
            assert!(length == 0 || told == length, "{headers:?}");
            client.read_n(told).await;
        }
        let (status, headers) = client.head().await;
        assert_eq!((status, headers["connection"].as_bytes()), (400, b"close".as_slice()));
        assert_eq!(client.read_to_end().await.unwrap(), b"", "HEAD has no body, and the last request no answer");
    }
    assert_eq!(origin.seen().len(), 4);
}

#[tokio::test]
async fn a_head_may_come_in_pieces_and_a_client_that_says_nothing_is_told_nothing() {
    let origin = Origin::h1();
    let proxy = proxy(&origin, "timeout.header = \"10s\"\ntimeout.idle = \"300ms\"");
    let mut client = Raw::connect(proxy.public()).await;
    for _ in 0..2 {
        for byte in GET.replace("GET", "HEAD").as_bytes() {
            client.send([*byte]).await;
            tokio::task::yield_now().await;
        }
        assert_eq!(client.head().await.0, 200);
    }
    assert_eq!(client.read_to_end().await.unwrap(), b"", "an idle connection ends without a word");
    // The head's own time runs from its first byte, also behind another request.
    let proxy = self::proxy(&origin, "timeout.header = \"300ms\"\ntimeout.idle = \"20s\"");
    let mut client = Raw::connect(proxy.public()).await;
    client.send(format!("{}GET / HT", GET.replace("GET", "HEAD"))).await;
    assert_eq!(client.head().await.0, 200);
    assert_eq!(client.head().await.0, 408);
    assert_eq!(proxy.logged("*").await["method"], "-");
}

#[tokio::test]
async fn a_head_under_way_is_waited_for_when_the_proxy_drains_and_told_at_the_end() {
    let origin = Origin::h1();
    let mut proxy = proxy(&origin, "grace = \"1s\"");
    let mut ends = Raw::connect(proxy.public()).await;
    let mut stays = Raw::connect(proxy.public()).await;
    for client in [&mut ends, &mut stays] {
        client.get("/head").await;
        let (_, headers) = client.head().await;
        client.read_n(headers["content-length"].to_str().unwrap().parse().unwrap()).await;
        client.send("GET /head HTTP/1.1\r\nho").await;
    }
    // Nothing tells that half a head has arrived.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let start = Instant::now();
    proxy.signal("TERM");
    // Once nobody is let in any more, every connection has been told.
    assert!(eventually(|| std::net::TcpStream::connect(proxy.public()).is_err(), SOON).await);
    ends.send("st: a\r\n\r\n").await;
    let (status, headers) = ends.head().await;
    assert_eq!((status, headers["connection"].as_bytes()), (200, b"close".as_slice()));
    let (status, headers) = stays.head().await;
    assert_eq!(status, 503);
    assert!(headers["proxy-status"].to_str().unwrap().contains("drained"), "{headers:?}");
    assert!(start.elapsed() >= Duration::from_millis(900), "{:?}", start.elapsed());
    drop((ends, stays));
    assert!(proxy.wait(SOON).is_some());
}

#[tokio::test]
async fn a_malformed_body_never_ends_cleanly() {
    for origin in [Origin::h1(), Origin::h2c()] {
        let proxy = proxy(&origin, "");
        for (number, chunks) in
            ["5\r\nhello\r\n0x0\r\n\r\n", "5\r\nhello\r\n0\r\nhost: b\r\n\r\n", "5\r\nhelloo"].iter().enumerate()
        {
            let mut client = Raw::connect(proxy.public()).await;
            let path = format!("/discard?{number}");
            client
                .send(format!("POST {path} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{chunks}{GET}"))
                .await;
            let (status, headers) = client.head().await;
            assert_eq!(status, 400, "{chunks:?}");
            assert!(headers["proxy-status"].to_str().unwrap().contains("malformed_body"), "{headers:?}");
            let rest = client.read_to_end().await.expect("a clean end");
            assert!(!String::from_utf8_lossy(&rest).contains("HTTP/1.1"), "nothing else is answered");
        }
        assert!(origin.seen().iter().all(|seen| seen.uri.path() == "/discard"), "{:?}", origin.seen());
        assert!(eventually(|| origin.in_flight() == 0, SOON).await);
        let count = || proxy.metric("headworks_requests_total", &[("reason", "malformed_body")]);
        assert!(eventually(|| (count() - 3.0).abs() < 0.1, SOON).await, "{}", count());
    }
}

#[tokio::test]
async fn what_follows_a_request_to_switch_waits_for_its_answer() {
    let origin = Origin::h1();
    let proxy = proxy(&origin, "");
    let mut client = Raw::connect(proxy.public()).await;
    // Not switched: what follows is the next request. It asks for more than it gets.
    let ask = "GET /delay/100 HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: other\r\n\r\n";
    client.send(format!("{ask}{GET}")).await;
    assert_eq!(client.head().await.0, 200);
    assert_eq!(client.read_n(2).await, b"ok");
    let (status, headers) = client.head().await;
    assert_eq!(status, 200);
    client.read_n(headers["content-length"].to_str().unwrap().parse().unwrap()).await;
    // Switched: what follows belongs to the tunnel, whatever it looks like.
    client.send("GET /tunnel HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
    client.send("GET / HTTP/1.1\r\n\r\n\0").await;
    assert_eq!(client.head().await.0, 101);
    assert_eq!(client.read_n(19).await, b"GET / HTTP/1.1\r\n\r\n\0");
    assert_eq!(origin.seen().iter().filter(|seen| seen.uri.path() == "/").count(), 0);
}

#[tokio::test]
async fn routes_see_through_escapes_that_need_not_be() {
    let origin = Origin::h1();
    let proxy = Proxy::from_toml(&format!(
        "[upstream.app]\nendpoints = [\"{}\"]\n[[route]]\nmatch = {{ path = \"/admin/*\" }}\nrespond.status = 403\n\
         [[route]]\nupstream = \"app\"\n",
        origin.url()
    ));
    for (path, status) in
        [("/admin/x", 403), ("/%61dmin/x", 403), ("/a%64%6Din", 403), ("/%41dmin", 200), ("/a%2f..", 400)]
    {
        let mut client = Raw::connect(proxy.public()).await;
        client.get(path).await;
        assert_eq!(client.head().await.0, status, "{path}");
    }
    let seen: Vec<_> = origin.seen().iter().map(|seen| seen.uri.path().to_owned()).collect();
    assert_eq!(seen, ["/%41dmin"], "as it came");
}
