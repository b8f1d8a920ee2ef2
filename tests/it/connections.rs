//! A client's connection: how many there may be, how each ends, and what the version of HTTP makes of its end.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout};

use crate::support::{Origin, Proxy, Raw, eventually, get};

const SOON: Duration = Duration::from_secs(5);
/// Long enough to show that nothing comes.
const A_WHILE: Duration = Duration::from_millis(200);

fn proxy(upstream: &str, server: &str) -> Proxy {
    Proxy::from_toml(&format!(
        "[server]\n{server}\n[log]\naccess = \"json\"\n[upstream.app]\nendpoints = [\"{upstream}\"]\n\
         [[route]]\nupstream = \"app\"\n"
    ))
}

const LISTEN: &str = "listen = [\"127.0.0.1:0\"]";

#[tokio::test]
async fn an_old_client_takes_no_part_for_the_whole() {
    for origin in [Origin::h1(), Origin::h2c()] {
        let proxy = proxy(&origin.url(), LISTEN);
        let mut client = Raw::connect(proxy.public()).await;
        client.send("GET /reset/1000 HTTP/1.0\r\nhost: a\r\n\r\n").await;
        let (status, headers) = client.head().await;
        assert_eq!((status, headers.get("transfer-encoding")), (200, None), "HTTP/1.0 has no chunks");
        let end = client.read_to_end().await.expect_err("a clean end, which is that of a whole answer");
        assert_eq!(end.kind(), ErrorKind::ConnectionReset);
        assert_eq!(proxy.logged("/reset/1000").await["reason"], "upstream_reset");

        let mut client = Raw::connect(proxy.public()).await;
        client.send("GET /sse/3/10 HTTP/1.0\r\nhost: a\r\n\r\n").await;
        assert_eq!(client.head().await.0, 200);
        let body = client.read_to_end().await.expect("a clean end");
        assert_eq!(String::from_utf8(body).unwrap(), "data: 0\n\ndata: 1\n\ndata: 2\n\ndata: [DONE]\n\n");
        drop(client);
        assert_eq!(proxy.logged("/sse/3/10").await["reason"], serde_json::Value::Null);
        assert!(eventually(|| origin.in_flight() == 0, SOON).await);
    }
}

/// An upstream that gives each connection this answer and closes it.
async fn saying(answer: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            assert!(String::from_utf8(head).unwrap().contains(" HTTP/1.1\r\n"));
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    address
}

#[tokio::test]
async fn an_old_upstream_is_no_matter_of_the_client() {
    let upstream = saying("HTTP/1.0 200 OK\r\ncontent-type: text/plain\r\n\r\nold").await;
    let proxy = proxy(&format!("http://{upstream}"), LISTEN);
    let mut client = Raw::connect(proxy.public()).await;
    // The connection to the client lives on, whatever became of the other one.
    for _ in 0..3 {
        client.get("/").await;
        assert_eq!(client.until(" ").await, "HTTP/1.1 ");
        let head = client.until("\r\n\r\n").await.to_ascii_lowercase();
        assert!(head.starts_with("200 ok\r\n") && head.contains("transfer-encoding: chunked"), "{head}");
        assert!(!head.contains("connection: close") && head.contains("via: 1.0 headworks"), "{head}");
        assert_eq!(client.until("0\r\n\r\n").await, "3\r\nold\r\n0\r\n\r\n");
    }
}

fn connections(proxy: &Proxy) -> f64 {
    proxy.metric("headworks_connections", &[("listener", "listen-1")])
}

#[tokio::test]
async fn a_tunnel_is_a_connection_like_any_other() {
    let origin = Origin::h1();
    let proxy = proxy(&origin.url(), &format!("{LISTEN}\nmax_connections = 1"));
    let mut tunnel = Raw::tunnel(proxy.public()).await;
    tunnel.send("ping").await;
    assert_eq!(tunnel.read_n(4).await, b"ping");
    assert!((connections(&proxy) - 1.0).abs() < 0.1, "{}", connections(&proxy));

    let mut second = Raw::connect(proxy.public()).await;
    second.get("/delay/1").await;
    assert!(second.is_silent(A_WHILE).await, "a second connection beside the tunnel");
    assert!((connections(&proxy) - 1.0).abs() < 0.1, "{}", connections(&proxy));
    assert_eq!(origin.seen().len(), 1, "the upstream knows of the tunnel only");

    tunnel.send("pong").await;
    assert_eq!(tunnel.read_n(4).await, b"pong");
    drop(tunnel);
    assert_eq!(second.head().await.0, 200, "the tunnel's place is free");
    drop(second);
    assert!(eventually(|| connections(&proxy) < 0.1, SOON).await, "{}", connections(&proxy));
}

#[tokio::test]
async fn a_listener_without_clients_takes_no_place() {
    let origin = Origin::h1();
    let listen = "listen = [\"127.0.0.1:0\", \"127.0.0.1:0\"]";
    let proxy = proxy(&origin.url(), &format!("{listen}\nmax_connections = 1"));
    for listener in ["listen-1", "listen-2", "listen-2", "listen-1", "listen-1"] {
        let answer = timeout(SOON, get(proxy.addr(listener), "/delay/1")).await;
        assert_eq!(answer.expect("the other listener holds the place").text(), "ok", "on {listener}");
    }
    assert_eq!(origin.seen().len(), 5);
    // Both listeners want the one place: who waits gets it when it is free.
    let mut first = Raw::connect(proxy.addr("listen-1")).await;
    first.get("/delay/1").await;
    assert_eq!(first.head().await.0, 200);
    let mut second = Raw::connect(proxy.addr("listen-2")).await;
    second.get("/delay/1").await;
    assert!(second.is_silent(A_WHILE).await, "two connections where there is one place");
    assert_eq!(origin.seen().len(), 6);
    drop(first);
    assert_eq!(second.head().await.0, 200);
    drop(second);
    assert_eq!(get(proxy.addr("listen-1"), "/delay/1").await.text(), "ok");
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const ACK: u8 = 1;

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).unwrap();
    [&[0, 0, length, kind, flags, 0, 0, 0, stream], payload].concat()
}

/// Reads frames to the end of the connection, answers as a client must, and gives them with their flags.
async fn frames(client: &mut Raw) -> Vec<(u8, u8, Vec<u8>)> {
    let mut frames = Vec::new();
    while let Some(head) = client.read_n_or_end(9).await {
        let length = usize::from(head[1]) << 8 | usize::from(head[2]);
        let (kind, flags, payload) = (head[3], head[4], client.read_n(length).await);
        if kind == SETTINGS && flags & ACK == 0 {
            client.send(frame(SETTINGS, ACK, 0, &[])).await;
        }
        if kind == PING && flags & ACK == 0 {
            client.send(frame(PING, ACK, 0, &payload)).await;
        }
        frames.push((kind, flags, payload));
    }
    frames
}

#[tokio::test]
async fn an_idle_h2_connection_is_told_before_it_is_closed() {
    const IDLE: Duration = Duration::from_millis(400);
    let origin = Origin::h1();
    let proxy = proxy(&origin.url(), &format!("{LISTEN}\ntimeout.idle = \"{}ms\"", IDLE.as_millis()));
    // GET http://a/ in HPACK, without a body: three indexed fields and the authority as it is.
    let request = frame(1, 0b101, 1, &[0x82, 0x86, 0x84, 0x41, 1, b'a']);
    for (sent, last) in [(&[][..], 0), (&request, 1)] {
        let mut client = Raw::connect(proxy.public()).await;
        let start = Instant::now();
        client.send(PREFACE).await;
        client.send(frame(SETTINGS, 0, 0, &[])).await;
        client.send(sent).await;
        let seen = frames(&mut client).await;
        let took = start.elapsed();
        let goodbyes: Vec<_> = seen.iter().filter(|(kind, ..)| *kind == GOAWAY).map(|(.., text)| &text[..8]).collect();
        let goodbye = *goodbyes.last().unwrap_or_else(|| panic!("closed without a word: {seen:?}"));
        assert_eq!(goodbye, [0, 0, 0, last, 0, 0, 0, 0], "the last stream that was served, and no error");
        assert!(took >= IDLE && took < IDLE + Duration::from_secs(1), "{took:?}");
        assert_eq!(origin.seen().len(), usize::from(last));
    }
}

#[tokio::test]
async fn a_request_that_crosses_the_goodbye_is_served() {
    let origin = Origin::h1();
    let proxy = proxy(&origin.url(), &format!("{LISTEN}\ntimeout.idle = \"200ms\""));
    let mut client = Raw::connect(proxy.public()).await;
    client.send(PREFACE).await;
    client.send(frame(SETTINGS, 0, 0, &[])).await;
    let goodbye = String::from_utf8(frame(GOAWAY, 0, 0, &[0; 8])[..5].to_vec()).unwrap();
    client.until(&goodbye).await;
    // It knows not yet: its request was under way. The answer takes longer than a goodbye may.
    let path = [&[0x04, 11], b"/delay/1200".as_slice()].concat();
    client.send(frame(1, 0b101, 1, &[&[0x82, 0x86], path.as_slice(), &[0x41, 1, b'a']].concat())).await;
    client.read_n(12).await; // the rest of the GOAWAY
    let seen = frames(&mut client).await;
    assert!(seen.iter().any(|(kind, _, data)| *kind == 0 && data == b"ok"), "the request was not served: {seen:?}");
    let last = seen.iter().find(|(kind, ..)| *kind == GOAWAY).map(|(.., text)| &text[..]);
    assert_eq!(last, Some(&[0, 0, 0, 1, 0, 0, 0, 0][..]), "and the client is told so: {seen:?}");
    assert_eq!(origin.seen().len(), 1);
    assert_eq!(origin.cancelled(), 0);
}

#[tokio::test]
async fn who_does_not_answer_the_goodbye_is_closed_all_the_same() {
    let origin = Origin::h1();
    let proxy = proxy(&origin.url(), &format!("{LISTEN}\ntimeout.idle = \"200ms\""));
    let mut client = Raw::connect(proxy.public()).await;
    let start = Instant::now();
    client.send(PREFACE).await;
    client.send(frame(SETTINGS, 0, 0, &[])).await;
    let said = client.read_to_end().await.expect("closed, not reset");
    assert!(said.windows(9).any(|w| w == [0, 0, 8, GOAWAY, 0, 0, 0, 0, 0]), "{said:?}");
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert!(eventually(|| connections(&proxy) < 0.1, SOON).await);
}
