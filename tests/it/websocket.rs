//! A tunnel is a stream like any other: it holds a credit until both ends are done.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::support::{Origin, Proxy, Raw, Wire, eventually, get};

const SOON: Duration = Duration::from_secs(5);

fn proxy(origin: &Origin) -> Proxy {
    Proxy::from_toml(&format!(
        "[upstream.app]\nendpoints = [\"{}\"]\nlimit = {{ in_flight = 1 }}\nqueue = {{ max = 4, timeout = \"300ms\" }}\n\
         [[route]]\nupstream = \"app\"\n",
        origin.url()
    ))
}

#[tokio::test]
async fn messages_come_back_and_the_close_too() {
    let origin = Origin::h1();
    let proxy = proxy(&origin);
    let (mut socket, response) = connect_async(format!("ws://{}/ws", proxy.public())).await.expect("a 101");
    assert_eq!(response.status(), 101);
    let large = Message::binary(vec![7; 300_000]);
    for message in [Message::text("hello"), Message::binary(vec![1, 2, 3]), large] {
        socket.send(message.clone()).await.unwrap();
        let back = timeout(SOON, socket.next()).await.expect("it comes back").unwrap().unwrap();
        assert_eq!(back, message);
    }
    let frame = CloseFrame { code: CloseCode::Normal, reason: "done".into() };
    socket.close(Some(frame)).await.unwrap();
    let back = timeout(SOON, socket.next()).await.expect("the close comes back").unwrap().unwrap();
    let Message::Close(Some(back)) = back else { panic!("{back:?}") };
    assert_eq!(back.code, CloseCode::Normal);
    assert!(timeout(SOON, socket.next()).await.expect("and then the end").is_none());
    assert!(eventually(|| origin.in_flight() == 0, SOON).await);
}

#[tokio::test]
async fn a_tunnel_holds_its_credit_until_it_ends() {
    let origin = Origin::h1();
    let proxy = proxy(&origin);
    let (mut socket, _) = connect_async(format!("ws://{}/ws", proxy.public())).await.expect("a 101");
    socket.send(Message::text("here")).await.unwrap();
    socket.next().await.unwrap().unwrap();
    let refused = connect_async(format!("ws://{}/ws", proxy.public())).await;
    let Err(Error::Http(refused)) = refused else { panic!("{refused:?}") };
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after"));
    // The client is gone without a word: the upstream learns of it, and the credit is back.
    drop(socket);
    assert!(eventually(|| origin.in_flight() == 0, Duration::from_millis(200)).await, "the tunnel stays open");
    assert_eq!(get(proxy.public(), "/delay/1").await.status, 200);
}

#[tokio::test]
async fn bytes_around_the_switch_belong_to_the_tunnel() {
    let origin = Origin::h1();
    let proxy = proxy(&origin);
    let mut client = Raw::connect(proxy.public()).await;
    // Bytes behind the head belong to the tunnel.
    client.send("GET /tunnel HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nearly").await;
    let (status, headers) = client.head().await;
    assert_eq!((status, headers["upgrade"].to_str().unwrap()), (101, "websocket"));
    assert_eq!(client.read_n(5).await, b"early");
    client.send("later").await;
    assert_eq!(client.read_n(5).await, b"later");
    // Half a close: what is still under way arrives.
    client.send("last").await;
    client.finish().await;
    assert_eq!(client.read_to_end().await.unwrap(), b"last");
}

#[tokio::test]
async fn an_upstream_that_has_said_all_still_hears_all() {
    const BYTES: usize = 100_000;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let proxy = Proxy::from_toml(&format!(
        "[log]\naccess = \"json\"\n[upstream.app]\nendpoints = [\"{url}\"]\n[[route]]\nupstream = \"app\"\n"
    ));
    let upstream = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(stream.read_u8().await.unwrap());
        }
        let switch = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nbye";
        stream.write_all(switch.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).await.expect("the client's end is a clean one");
        heard
    });
    let mut client = Raw::tunnel(proxy.public()).await;
    assert_eq!(client.read_to_end().await.unwrap(), b"bye", "half a close, not a whole one");
    let said: Vec<u8> = (0..BYTES).map(|at| (at % 251) as u8).collect();
    for part in said.chunks(10_000) {
        client.send(part).await;
    }
    client.finish().await;
    let heard = timeout(SOON, upstream).await.expect("the tunnel ends").unwrap();
    assert!(heard == said, "{} of {BYTES} bytes came through", heard.len());
    let line = proxy.logged("/tunnel").await;
    assert_eq!((&line["status"], &line["reason"]), (&json!(101), &json!(null)), "{line}");
}

#[tokio::test]
async fn no_other_protocol_is_asked_for() {
    let origin = Origin::h1();
    let proxy = proxy(&origin);
    let mut client = Raw::connect(proxy.public()).await;
    client.send("GET /head HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n").await;
    assert_eq!(client.head().await.0, 200);
    assert!(!origin.last().headers.contains_key("upgrade"));
}

#[tokio::test]
async fn a_route_says_which_protocols_may_be_asked_for() {
    let wire = Wire::new().await;
    let proxy = Proxy::from_toml(&format!(
        "[upstream.app]\nendpoints = [\"{0}\"]\n[[route]]\nupstream = \"app\"\nupgrade = [\"x-lines\", \"websocket\"]\n\
         [[route]]\nupstream = \"app\"\nmatch.path = \"/none\"\nupgrade = []\n",
        wire.url()
    ));
    let offer = |path: &str| {
        format!(
            "GET {path} HTTP/1.1\r\nhost: a\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c, X-Lines\r\n\
             upgrade: irc, websocket\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\n"
        )
    };
    let mut client = Raw::connect(proxy.public()).await;
    client.send(offer("/none")).await;
    let (mut upstream, head) = wire.request().await;
    assert!(!head.contains("upgrade") && !head.contains("http2-settings"), "{head}");
    upstream.send("HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n").await;
    assert_eq!(client.head().await.0, 204);
    for (chosen, status) in [("X-Lines", 101), ("irc", 502), ("h2c", 502), ("", 502), ("x-lines, websocket", 502)] {
        let mut client = Raw::connect(proxy.public()).await;
        client.send(offer("/")).await;
        let (mut upstream, head) = wire.request().await;
        assert!(head.contains("\r\nupgrade: x-lines, websocket\r\n"), "{head}");
        assert!(head.contains("\r\nconnection: upgrade\r\n") && !head.contains("http2-settings"), "{head}");
        let field = if chosen.is_empty() { String::new() } else { format!("upgrade: {chosen}\r\n") };
        upstream.send(format!("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n{field}\r\n")).await;
        assert_eq!(client.head().await.0, status, "{chosen}");
        if status == 101 {
            client.send("up").await;
            assert_eq!(upstream.read_n(2).await, b"up");
        } else {
            assert_eq!(upstream.read_to_end().await.unwrap(), b"", "{chosen}");
        }
    }
}

#[tokio::test]
async fn an_upstream_that_does_not_switch_answers_as_usual() {
    let origin = Origin::h1();
    let proxy = proxy(&origin);
    let refused = connect_async(format!("ws://{}/status/404", proxy.public())).await;
    let Err(Error::Http(refused)) = refused else { panic!("{refused:?}") };
    assert_eq!(refused.status(), 404);
    assert_eq!(get(proxy.public(), "/delay/1").await.status, 200, "and its credit is back");
}
