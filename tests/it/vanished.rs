//! Clients that leave, each in its own way, plain and over TLS: whatever they had is free at once.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::support::{Certs, Origin, Proxy, Raw, channel, empty, eventually, get, h2, python, request};

const SOON: Duration = Duration::from_secs(5);
/// Long enough to show that nothing happens.
const A_WHILE: Duration = Duration::from_millis(200);

trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

type Client = Raw<Box<dyn Io>>;

/// How a client leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaves {
    /// It closes its sending half, and is taken for gone.
    Half,
    Closes,
    Resets,
}

const ALL: [Leaves; 3] = [Leaves::Half, Leaves::Closes, Leaves::Resets];

/// A proxy with a plain and a TLS listener.
struct Scene {
    proxy: Proxy,
    certs: Certs,
    origin: Origin,
}

impl Scene {
    fn new(upstream: &str, route: &str) -> Self {
        let (origin, certs) = (Origin::h1(), Certs::new());
        let proxy = Proxy::from_toml(&format!(
            "[server]\nlisten = \"127.0.0.1:0\"\n[[server.listener]]\nname = \"tls\"\naddress = \"127.0.0.1:0\"\n\
             tls = [{{ cert = \"{}\", key = \"{}\" }}]\n[log]\naccess = \"json\"\n\
             [upstream.app]\nendpoints = [\"{}\"]\n{upstream}\n[[route]]\nupstream = \"app\"\n{route}\n",
            certs.name("server.pem"),
            certs.name("server.key"),
            origin.url()
        ));
        Self { proxy, certs, origin }
    }

    async fn connect(&self, is_tls: bool, leaves: Leaves) -> Client {
        let addr = self.proxy.addr(if is_tls { "tls" } else { "listen-1" });
        let stream = TcpStream::connect(addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        if leaves == Leaves::Resets {
            stream.set_zero_linger().unwrap();
        }
        if !is_tls {
            return Raw::over(Box::new(stream));
        }
        let connector = TlsConnector::from(Arc::new(self.certs.client(&["http/1.1"])));
        let name = ServerName::try_from("localhost").unwrap();
        Raw::over(Box::new(connector.connect(name, stream).await.unwrap()))
    }

    /// Each kind of connection with each way to leave it.
    async fn each(&self, leave: impl AsyncFn(&str, Client) -> Client) {
        for is_tls in [false, true] {
            for leaves in ALL {
                let case = format!("{leaves:?}{}", if is_tls { " over TLS" } else { "" });
                let mut client = leave(&case, self.connect(is_tls, leaves).await).await;
                match leaves {
                    Leaves::Half => client.finish().await,
                    Leaves::Closes | Leaves::Resets => drop(client),
                }
                let is_free = || self.origin.in_flight() == 0 && self.waiting() == 0;
                assert!(eventually(is_free, SOON).await, "{case}: something is still held");
            }
        }
    }

    /// Requests in the queue.
    fn waiting(&self) -> usize {
        self.proxy.metric("headworks_queue_depth", &[("upstream", "app")]) as usize
    }

    async fn is_in_flight(&self, case: &str) {
        assert!(eventually(|| self.origin.in_flight() == 1, SOON).await, "{case}: the request did not arrive");
    }
}

fn post(path: &str, length: usize, more: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n{more}\r\n")
}

#[tokio::test]
async fn while_the_upstream_is_silent() {
    let scene = Scene::new("", "");
    scene
        .each(async |case, mut client| {
            client.get("/hang").await;
            scene.is_in_flight(case).await;
            client
        })
        .await;
    assert_eq!(scene.proxy.logged("/hang").await["reason"], "client_gone");
}

#[tokio::test]
async fn after_its_body_was_read() {
    let scene = Scene::new("", "");
    scene
        .each(async |case, mut client| {
            client.send(post("/hang", 5, "") + "whole").await;
            scene.is_in_flight(case).await;
            client
        })
        .await;
}

#[tokio::test]
async fn between_two_chunks_of_its_answer() {
    let scene = Scene::new("", "");
    scene
        .each(async |_, mut client| {
            client.get("/hold").await;
            client.until("data: open").await;
            client
        })
        .await;
}

#[tokio::test]
async fn with_a_second_request_waiting() {
    let scene = Scene::new("", "");
    scene
        .each(async |case, mut client| {
            client.send("GET /hang HTTP/1.1\r\nhost: a\r\n\r\nGET /next HTTP/1.1\r\nhost: a\r\n\r\n").await;
            scene.is_in_flight(case).await;
            client
        })
        .await;
    assert!(scene.origin.seen().iter().all(|seen| seen.uri.path() == "/hang"), "the second was served");
}

#[tokio::test]
async fn in_the_queue_with_its_body_unread() {
    let scene = Scene::new("limit = { in_flight = 1 }\nqueue = { max = 1, timeout = \"20s\" }", "");
    for (sent, expectation) in [(0, ""), (0, "expect: 100-continue\r\n"), (30_000, ""), (60_000, ""), (120_000, "")] {
        for is_tls in [false, true] {
            for leaves in ALL {
                let case = format!("{leaves:?} after {sent} B of its body {expectation:?}, TLS: {is_tls}");
                let mut busy = Raw::connect(scene.proxy.addr("listen-1")).await;
                busy.get("/hang").await;
                scene.is_in_flight(&case).await;
                let mut client = scene.connect(is_tls, leaves).await;
                client.send(post("/queued", 1 << 20, expectation)).await;
                assert!(eventually(|| scene.waiting() == 1, SOON).await, "{case}: it does not wait");
                client.send(vec![b'x'; sent]).await;
                match leaves {
                    Leaves::Half => client.finish().await,
                    Leaves::Closes | Leaves::Resets => drop(client),
                }
                assert!(eventually(|| scene.waiting() == 0, SOON).await, "{case}: its place is still taken");
                drop(busy);
                assert!(eventually(|| scene.origin.in_flight() == 0, SOON).await);
            }
        }
    }
    assert!(scene.origin.seen().iter().all(|seen| seen.uri.path() == "/hang"), "a queued one was served");
}

#[tokio::test]
async fn in_the_queue_with_more_than_anybody_takes() {
    // A FIN behind a full window is seen by nobody: the queue's time ends it. A reset is seen.
    let scene = Scene::new("limit = { in_flight = 1 }\nqueue = { max = 1, timeout = \"20s\" }", "");
    for is_tls in [false, true] {
        let mut busy = Raw::connect(scene.proxy.addr("listen-1")).await;
        busy.get("/hang").await;
        scene.is_in_flight("busy").await;
        let mut client = scene.connect(is_tls, Leaves::Resets).await;
        client.send(post("/queued", 1 << 30, "")).await;
        assert!(eventually(|| scene.waiting() == 1, SOON).await, "it does not wait");
        let part = vec![b'x'; 64 * 1024];
        while tokio::time::timeout(A_WHILE, client.send_some(&part)).await.is_ok() {}
        drop(client);
        assert!(eventually(|| scene.waiting() == 0, SOON).await, "its place is still taken");
        drop(busy);
        assert!(eventually(|| scene.origin.in_flight() == 0, SOON).await);
    }
}

#[tokio::test]
async fn with_its_answer_under_way_and_its_body_unread() {
    let scene = Scene::new("", "");
    scene
        .each(async |_, mut client| {
            client.send(post("/ticks/10/20", 100_000, "") + &"x".repeat(50_000)).await;
            assert_eq!(client.head().await.0, 200);
            client
        })
        .await;
}

#[tokio::test]
async fn while_its_body_is_being_read() {
    let scene = Scene::new("", "");
    scene
        .each(async |case, mut client| {
            client.send(post("/discard", 100, "") + "part").await;
            scene.is_in_flight(case).await;
            client
        })
        .await;
    let line = scene.proxy.logged("/discard").await;
    assert_ne!(line["status"], 200, "an upload that broke off looked whole: {line}");
}

#[tokio::test]
async fn over_http2_by_stream_or_by_connection() {
    let scene = Scene::new("", "");
    for with_body in [false, true] {
        let mut client = h2(scene.proxy.addr("listen-1"), 1 << 20).await;
        let (sender, body) = channel();
        let body = if with_body { body } else { empty() };
        let call = client.send_request(request("POST", scene.proxy.public(), "/hang", body));
        let held = tokio::time::timeout(A_WHILE, call).await;
        assert!(held.is_err(), "it was answered");
        // The future is dropped: RST_STREAM.
        assert!(eventually(|| scene.origin.in_flight() == 0, SOON).await, "body: {with_body}");
        assert_eq!(
            client.send_request(request("GET", scene.proxy.public(), "/", empty())).await.unwrap().status(),
            200
        );
        drop((sender, client));
    }
}

#[tokio::test]
async fn half_a_close_is_none_where_the_route_says_so() {
    let scene = Scene::new("", "allow_half_close = true\n[[route]]\nupstream = \"app\"\nmatch.path = \"/hang\"\n");
    for is_tls in [false, true] {
        for request in ["GET /gate HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), post("/gate", 4, "") + "body"] {
            let mut client = scene.connect(is_tls, Leaves::Half).await;
            client.send(&request).await;
            scene.is_in_flight("half").await;
            client.finish().await;
            tokio::time::sleep(A_WHILE).await;
            assert_eq!((scene.origin.in_flight(), scene.origin.cancelled()), (1, 0), "cut although it waits");
            scene.origin.open_gate(1);
            assert_eq!(client.head().await.0, 200);
            assert_eq!(client.read_to_end().await.unwrap(), b"ok", "TLS: {is_tls}");
        }
        // Sent and closed in one go.
        let mut client = scene.connect(is_tls, Leaves::Half).await;
        client.get("/delay/50").await;
        client.finish().await;
        assert_eq!(client.head().await.0, 200);
    }
    // A reset after it is the end all the same, and so is half a close on any other route.
    let mut client = scene.connect(false, Leaves::Resets).await;
    client.get("/gate").await;
    scene.is_in_flight("reset").await;
    client.finish().await;
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(scene.origin.in_flight(), 1);
    drop(client);
    assert!(eventually(|| scene.origin.in_flight() == 0, SOON).await, "a reset was not seen");
    let mut client = scene.connect(false, Leaves::Half).await;
    client.get("/hang").await;
    scene.is_in_flight("other").await;
    client.finish().await;
    assert!(eventually(|| scene.origin.in_flight() == 0, SOON).await, "half a close was not seen");
}

#[tokio::test]
async fn an_early_refusal_arrives_every_time() {
    let scene = Scene::new("limit = { in_flight = 1 }\nqueue = { max = 0 }", "");
    let mut busy = Raw::connect(scene.proxy.addr("listen-1")).await;
    busy.get("/hang").await;
    scene.is_in_flight("busy").await;
    let plain = scene.proxy.addr("listen-1").to_string();
    let tls = scene.proxy.addr("tls").to_string();
    for args in [vec![plain.as_str(), "100"], vec![tls.as_str(), "100", &scene.certs.name("ca.pem")]] {
        let output = python("early.py").args(&args).output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(out.trim(), "100", "{args:?}: {err}");
    }
    drop(busy);
    let used = || scene.proxy.metric("headworks_credits_used", &[("class", "unary")]);
    assert!(eventually(|| used() < 0.5, SOON).await, "the credit did not come back");
    assert_eq!(get(scene.proxy.addr("listen-1"), "/delay/1").await.status, 200);
}
