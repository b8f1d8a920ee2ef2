//! WebSocket by extended CONNECT (RFC 8441): one stream of an HTTP/2 client is a tunnel like any other.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use h2::Reason;
use http::Method;
use hyper::ext::Protocol;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::support::{Answer, Origin, Proxy, Raw, Streams, Wire, empty, eventually, get, h2, request};

const SOON: Duration = Duration::from_secs(5);
const WINDOW: u32 = 16 * 1024;

fn proxy(upstream: &str, more: &str) -> Proxy {
    Proxy::from_toml(&format!(
        "[log]\naccess = \"json\"\n[upstream.app]\nendpoints = [\"{upstream}\"]\n\
         limit = {{ in_flight = 2 }}\nqueue = {{ max = 0 }}\n[[route]]\nupstream = \"app\"\n{more}"
    ))
}

/// Answers the handshake in `head` as a server of WebSocket does.
async fn accept(upstream: &mut Raw, head: &str) {
    let key = field(head, "sec-websocket-key");
    assert_eq!(key.len(), 24, "{head}");
    upstream.send(switch(&derive_accept_key(key.as_bytes()))).await;
}

/// The value of a field. Keys are cased, so this head must not be in lower case.
fn field<'a>(head: &'a str, name: &str) -> &'a str {
    let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with(&format!("{name}:")));
    line.and_then(|line| Some(line.split_once(':')?.1.trim())).unwrap_or_else(|| panic!("no {name} in {head}"))
}

fn switch(accept: &str) -> String {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-accept: {accept}\r\nsec-websocket-protocol: chat\r\n\r\n"
    )
}

#[tokio::test]
async fn messages_come_back_and_the_close_too() {
    let origin = Origin::h1();
    let proxy = proxy(&origin.url(), "");
    let mut client = h2(proxy.public(), WINDOW).await;
    assert_eq!(client.send_request(request("GET", proxy.public(), "/", empty())).await.unwrap().status(), 200);
    let mut connect = request("CONNECT", proxy.public(), "/ws", empty());
    connect.extensions_mut().insert(Protocol::from_static("websocket"));
    let mut response = client.send_request(connect).await.unwrap();
    assert_eq!(response.status(), 200);
    for name in ["connection", "upgrade", "sec-websocket-accept"] {
        assert!(!response.headers().contains_key(name), "{name}");
    }
    let upgraded = hyper::upgrade::on(&mut response).await.expect("a tunnel");
    let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await;
    for message in [Message::text("hello"), Message::binary(vec![7; 300_000])] {
        socket.send(message.clone()).await.unwrap();
        let back = timeout(SOON, socket.next()).await.expect("it comes back").unwrap().unwrap();
        assert_eq!(back, message);
    }
    socket.close(None).await.unwrap();
    let back = timeout(SOON, socket.next()).await.expect("the close comes back").unwrap().unwrap();
    assert!(back.is_close(), "{back:?}");
    assert!(timeout(SOON, socket.next()).await.expect("and then the end").is_none());
    drop(socket);
    let line = proxy.logged("/ws").await;
    assert_eq!((&line["status"], &line["reason"]), (&101.into(), &serde_json::Value::Null), "{line}");
    assert!(eventually(|| origin.in_flight() == 0, SOON).await);
    // The connection is still one of HTTP.
    assert_eq!(client.send_request(request("GET", proxy.public(), "/", empty())).await.unwrap().status(), 200);
}

#[tokio::test]
async fn the_upstream_sees_the_handshake_of_http_1() {
    let wire = Wire::new().await;
    let proxy = proxy(&wire.url(), "");
    let streams = Streams::connect(proxy.public(), WINDOW).await;
    let fields = [("sec-websocket-protocol", "chat"), ("sec-websocket-version", "13"), ("origin", "http://a")];
    let (mut tunnel, mut upstream) = tokio::join!(streams.ask("/chat?room=1", "websocket", &fields), async {
        let mut upstream = wire.accept().await;
        let head = upstream.until("\r\n\r\n").await;
        assert!(head.starts_with("GET /chat?room=1 HTTP/1.1\r\n"), "{head}");
        for (name, value) in [("upgrade", "websocket"), ("connection", "upgrade"), ("via", "2 headworks")] {
            assert_eq!(field(&head, name), value, "{head}");
        }
        for (name, value) in fields {
            assert_eq!(field(&head, name), value, "{head}");
        }
        assert!(!head.to_ascii_lowercase().contains("transfer-encoding"), "{head}");
        accept(&mut upstream, &head).await;
        upstream
    });
    assert_eq!((tunnel.status, tunnel.headers["sec-websocket-protocol"].as_bytes()), (200, &b"chat"[..]));
    tunnel.send(b"up").await;
    assert_eq!(upstream.read_n(2).await, b"up", "nothing but the client's bytes");
    upstream.send("down").await;
    assert_eq!(tunnel.read_n(4).await, b"down");
    // Half a close, each way.
    tunnel.finish();
    assert_eq!(upstream.read_to_end().await.unwrap(), b"");
    upstream.send("last").await;
    drop(upstream);
    assert_eq!(tunnel.end().await.expect("a clean end"), b"last");
    assert_eq!(proxy.logged("/chat").await["reason"], serde_json::Value::Null);
}

#[tokio::test]
async fn what_is_no_tunnel_is_told_so() {
    let origin = Origin::h1();
    let proxy = proxy(
        &origin.url(),
        "match.path = \"/app/*\"\nstrip_prefix = \"/app\"\n\
         [[route]]\nupstream = \"app\"\nmatch.path = \"/plain/*\"\nupgrade = []\n\
         [[route]]\nmatch.path = \"/fixed\"\nrespond.status = 200\n\
         [[route]]\nmatch.path = \"/moved\"\nredirect.to = \"https://a/\"\n",
    );
    let streams = Streams::connect(proxy.public(), WINDOW).await;
    for (path, protocol, status, reason) in [
        ("/app/tunnel", "connect-udp", 501, "upgrade_refused"),
        ("/plain/tunnel", "websocket", 501, "upgrade_refused"),
        ("/fixed", "websocket", 501, "upgrade_refused"),
        ("/moved", "websocket", 308, ""),
        ("/nowhere", "websocket", 404, "no_route"),
        ("/app/status/403", "websocket", 403, ""),
        // Success without a switch would look like a tunnel.
        ("/app/status/200", "websocket", 502, "upgrade_failed"),
    ] {
        let mut tunnel = streams.ask(path, protocol, &[]).await;
        let status_field = tunnel.headers.get("proxy-status").map_or("", |value| value.to_str().unwrap());
        assert_eq!(tunnel.status, status, "{path} {status_field}");
        assert!(reason.is_empty() || status_field.contains(reason), "{path} {status_field}");
        tunnel.end().await.expect("a whole answer");
    }
    let seen: Vec<_> = origin.seen().iter().map(|seen| seen.uri.path().to_owned()).collect();
    assert_eq!(seen, ["/status/403", "/status/200"]);
    // CONNECT as such is a tunnel to anywhere.
    let mut client = h2(proxy.public(), WINDOW).await;
    let connect = http::Request::builder().method(Method::CONNECT).uri("a.example:443").body(empty()).unwrap();
    let answer = Answer::of(client.send_request(connect).await.unwrap()).await.unwrap();
    assert_eq!((answer.status.as_u16(), origin.seen().len()), (405, 2));
}

#[tokio::test]
async fn a_switch_that_proves_nothing_is_none() {
    let wire = Wire::new().await;
    let proxy = proxy(&wire.url(), "");
    let streams = Streams::connect(proxy.public(), WINDOW).await;
    let other = switch(&derive_accept_key(b"another key")).replace("websocket\r\n", "irc\r\n");
    for answer in [switch(&derive_accept_key(b"another key")), other] {
        let (tunnel, ()) = tokio::join!(streams.ask("/", "websocket", &[]), async {
            let (mut upstream, _) = wire.request().await;
            upstream.send(&answer).await;
            assert_eq!(upstream.read_to_end().await.unwrap(), b"", "and the connection is closed");
        });
        assert_eq!(tunnel.status, 502);
        assert!(tunnel.headers["proxy-status"].to_str().unwrap().contains("upgrade_failed"));
    }
}

#[tokio::test]
async fn a_tunnel_holds_its_credit_until_it_ends() {
    let origin = Origin::h1();
    let proxy = proxy(&origin.url(), "");
    let streams = Streams::connect(proxy.public(), WINDOW).await;
    let mut one = streams.ask("/tunnel", "websocket", &[]).await;
    let other = streams.ask("/tunnel", "websocket", &[]).await;
    assert_eq!((one.status, other.status), (200, 200));
    assert_eq!(streams.ask("/tunnel/third", "websocket", &[]).await.status, 503);
    one.send(b"here").await;
    assert_eq!(one.read_n(4).await, b"here");
    // The client cancels: the upstream learns of it although it is silent, and the credit is back.
    one.reset(Reason::CANCEL);
    assert!(eventually(|| origin.in_flight() == 1, SOON).await, "the tunnel stays open");
    assert_eq!(get(proxy.public(), "/delay/1").await.status, 200);
    let line = proxy.logged("/tunnel").await;
    assert_eq!(line["reason"], "client_gone", "{line}");
    // And so it does when the whole connection is lost.
    drop((one, other, streams));
    assert!(eventually(|| origin.in_flight() == 0, SOON).await, "the tunnel stays open");
}

#[tokio::test]
async fn an_upstream_that_breaks_off_is_no_clean_end() {
    let wire = Wire::new().await;
    let proxy = proxy(&wire.url(), "");
    let streams = Streams::connect(proxy.public(), WINDOW).await;
    let (mut tunnel, upstream) = tokio::join!(streams.ask("/", "websocket", &[]), async {
        let mut upstream = wire.accept().await;
        let head = upstream.until("\r\n\r\n").await;
        accept(&mut upstream, &head).await;
        upstream.send("part").await;
        upstream
    });
    assert_eq!(tunnel.read_n(4).await, b"part");
    upstream.abort();
    assert_eq!(tunnel.end().await, Err(Reason::CANCEL));
    assert_eq!(proxy.logged("/").await["reason"], "upstream_reset");
}

#[tokio::test]
async fn a_client_that_takes_nothing_loses_its_stream_and_no_other() {
    let stall = Duration::from_secs(1);
    let wire = Wire::new().await;
    let proxy = proxy(&wire.url(), "stream.stall_timeout = \"1s\"\n");
    let streams = Streams::connect(proxy.public(), WINDOW).await;
    let open = || async {
        tokio::join!(streams.ask("/", "websocket", &[]), async {
            let mut upstream = wire.accept().await;
            let head = upstream.until("\r\n\r\n").await;
            accept(&mut upstream, &head).await;
            upstream
        })
    };
    let (mut stalled, mut flooding) = open().await;
    let (mut lively, mut echo) = open().await;
    // As much as is taken, which ends while the client's window is closed.
    let part = vec![b'x'; 64 * 1024];
    let (mut poured, began) = (0, tokio::time::Instant::now());
    while let Ok(count) = timeout(Duration::from_millis(300), flooding.send_some(&part)).await {
        poured += count.expect("not cut while it still moves");
    }
    assert!(poured < 4 << 20, "{poured} bytes went into a tunnel that nobody reads");
    for _ in 0..3 {
        lively.send(b"ping").await;
        assert_eq!(echo.read_n(4).await, b"ping");
        echo.send("pong").await;
        assert_eq!(lively.read_n(4).await, b"pong");
    }
    // What had come before is not lost to it, and then there is no clean end.
    let held = stalled.held().await;
    assert_eq!(held, Some(Reason::CANCEL));
    assert!(began.elapsed() >= stall);
    assert_eq!(proxy.logged("/").await["reason"], "client_stalled");
    assert_eq!(flooding.read_to_end().await.unwrap_or_default(), b"");
    lively.send(b"ping").await;
    assert_eq!(echo.read_n(4).await, b"ping", "the connection stands");
}

#[tokio::test]
async fn an_upstream_that_takes_nothing_closes_the_window_of_its_client() {
    let wire = Wire::new().await;
    let proxy = proxy(&wire.url(), "");
    let streams = Streams::connect(proxy.public(), WINDOW).await;
    let (mut tunnel, _upstream) = tokio::join!(streams.ask("/", "websocket", &[]), async {
        let mut upstream = wire.accept().await;
        let head = upstream.until("\r\n\r\n").await;
        accept(&mut upstream, &head).await;
        upstream
    });
    let part = vec![b'x'; 8 * 1024];
    let mut sent = 0;
    while timeout(Duration::from_millis(300), tunnel.room(part.len())).await.is_ok() {
        tunnel.sender.send_data(part.clone().into(), false).unwrap();
        sent += part.len();
    }
    // Two kernels' buffers and one window.
    assert!(sent < 16 << 20, "{sent} bytes went to an upstream that reads nothing");
    tunnel.reset(Reason::CANCEL);
    assert_eq!(proxy.logged("/").await["reason"], "client_gone");
}

#[tokio::test]
async fn a_drain_cuts_it_at_the_end_of_the_grace() {
    let origin = Origin::h1();
    let mut proxy = Proxy::from_toml(&format!(
        "[server]\nlisten = \"127.0.0.1:0\"\ngrace = \"300ms\"\n[log]\naccess = \"json\"\n\
         [upstream.app]\nendpoints = \"{}\"\n",
        origin.url()
    ));
    let streams = Streams::connect(proxy.public(), WINDOW).await;
    let mut tunnel = streams.ask("/tunnel", "websocket", &[]).await;
    proxy.signal("TERM");
    tunnel.send(b"still").await;
    assert_eq!(tunnel.read_n(5).await, b"still", "the grace is for it as well");
    assert!(proxy.wait(SOON).is_some(), "the proxy ends");
    assert_eq!(proxy.logged("/tunnel").await["reason"], "drained");
}
