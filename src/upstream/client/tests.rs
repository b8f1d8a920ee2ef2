use std::io;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::channel::Channel;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;
use tokio::time::Instant;

use super::*;
use crate::tasks;
use crate::upstream::settings::{Address, Protocol, Scheme};
use crate::upstream::testing::*;

const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";

fn websocket() -> Request {
    let request = http::Request::get("/ws").header("host", "service.test");
    let request = request.header("connection", "upgrade").header("upgrade", "websocket");
    request.body(Body::empty()).expect("a request")
}

/// The reason a GET fails for.
async fn failure(client: &Arc<Client>) -> Reason {
    soon(client.ask(get("/"), None)).await.expect_err("no answer").reason
}

/// The reason a GET fails for when the peer says `answer` and closes.
async fn failure_on(answer: &str) -> Reason {
    let peer = Peer::new().await;
    let client = peer.client();
    let (reason, ()) = tokio::join!(failure(&client), async {
        let mut line = peer.accept().await;
        line.request().await.expect("a request");
        line.say(answer).await;
    });
    until(|| client.stats().connections == 0).await;
    assert_eq!(client.stats().in_flight, 0);
    reason
}

#[tokio::test]
async fn an_exchange_that_fails_says_why() {
    assert_eq!(failure_on("").await, Reason::UpstreamClosed);
    assert_eq!(failure_on("HTTP/1.1 200 OK\r\ncontent-le").await, Reason::UpstreamClosed);
    assert_eq!(failure_on("220 mail.test ESMTP\r\n\r\n").await, Reason::UpstreamProtocol);
    assert_eq!(failure_on("HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n").await, Reason::UpstreamProtocol);
    assert_eq!(failure_on(SWITCH).await, Reason::UpstreamProtocol);
    let endless = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "a".repeat(80 * 1024));
    assert_eq!(failure_on(&endless).await, Reason::UpstreamProtocol);
}

#[tokio::test]
async fn a_connection_that_fails_says_why() {
    let peer = Peer::new().await;
    let client = peer.client();
    drop(peer);
    assert_eq!(failure(&client).await, Reason::ConnectFailed);

    let unknown = Address::Tcp { authority: "no-such-name.invalid".parse().expect("a name"), scheme: Scheme::Http };
    assert_eq!(failure(&crate::upstream::testing::client(&settings(unknown))).await, Reason::DnsFailed);

    let missing = Address::Unix("/nowhere/socket".into());
    assert_eq!(failure(&crate::upstream::testing::client(&settings(missing))).await, Reason::ConnectFailed);
}

#[tokio::test]
async fn a_peer_that_never_says_how_many_streams_it_takes_is_a_slow_connect() {
    let peer = Peer::new().await;
    let mut settings = peer.settings(Scheme::H2c);
    settings.timeout.connect = Duration::from_millis(100);
    let client = client(&settings);
    assert_eq!(failure(&client).await, Reason::ConnectTimeout);
    until(|| client.stats().connections == 0).await;
}

#[tokio::test]
async fn silence_before_the_head_ends_the_call_and_its_connection() {
    let peer = Peer::new().await;
    let client = peer.client();
    let limit = Some(Duration::from_millis(50));
    let (result, mut line) = tokio::join!(client.ask(get("/"), limit), peer.accept());
    assert_eq!(result.expect_err("no answer").reason, Reason::FirstByteTimeout);
    line.closed().await;
}

#[tokio::test]
async fn a_body_that_breaks_off_is_an_error_and_no_end() {
    use http_body_util::BodyExt as _;
    let peer = Peer::new().await;
    let client = peer.client();
    let (response, ()) = tokio::join!(client.ask(get("/"), None), async {
        let mut line = peer.accept().await;
        line.request().await.expect("a request");
        line.say("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await;
    });
    let body = response.expect("a head").into_body();
    let error = soon(body.collect()).await.expect_err("cut");
    assert_eq!(error.reason, Reason::UpstreamReset);
    until(|| client.stats().connections == 0).await;
    assert_eq!(client.stats().cancelled, 0, "not our doing");
}

#[tokio::test]
async fn an_upload_that_breaks_off_is_the_clients_fault() {
    let peer = Peer::new().await;
    let client = peer.client();
    let (upload, body) = Channel::<Bytes, io::Error>::new(1);
    let (result, mut line) = tokio::join!(client.ask(post("/", Body::boxed(body)), None), async {
        let mut line = peer.accept().await;
        line.request().await.expect("a head");
        upload.abort(io::Error::other("the client is gone"));
        line
    });
    assert_eq!(result.expect_err("no answer").reason, Reason::RequestIncomplete);
    line.closed().await;
}

#[tokio::test]
async fn an_upload_that_the_upstream_does_not_take_is_cancelled_all_the_same() {
    for answer in ["", "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf"] {
        let peer = Peer::new().await;
        let client = peer.client();
        // More than the sockets between the two hold.
        let upload = post("/", Body::full(vec![b'x'; 64 << 20]));
        let call = tasks::run({
            let client = Arc::clone(&client);
            async move {
                let _response = client.ask(upload, None).await;
                std::future::pending::<()>().await;
            }
        });
        let mut line = peer.accept().await;
        line.say(answer).await;
        until(|| client.stats().in_flight == 1).await;
        let mut some = [0; 1024];
        soon(line.stream.read_exact(&mut some)).await.expect("the upload has begun");
        call.abort();
        let dropped = Instant::now();
        until(|| client.stats().connections == 0).await;
        assert!(dropped.elapsed() < PROMPT, "{:?}", dropped.elapsed());
    }
}

#[tokio::test]
async fn an_early_refusal_of_an_upload_is_not_lost() {
    for _ in 0..20 {
        let peer = Peer::new().await;
        let client = peer.client();
        let upload = post("/", Body::full(vec![b'x'; 4 << 20]));
        let (result, ()) = tokio::join!(client.ask(upload, None), async {
            let mut line = Line::new(peer.accept_stream().await);
            let mut some = [0; 1024];
            line.stream.read_exact(&mut some).await.expect("the head");
            line.say("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy").await;
            // Closed with the upload unread: the kernel resets the connection.
        });
        let response = result.expect("the refusal");
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(read(response).await, "busy");
    }
}

#[tokio::test]
async fn an_upgrade_holds_its_place_until_the_tunnel_ends() {
    let peer = Peer::new().await;
    let client = peer.client();
    let (response, mut line) = tokio::join!(client.ask(websocket(), None), async {
        let mut line = peer.accept().await;
        assert!(line.request().await.expect("a request").contains("upgrade: websocket"));
        line.say(SWITCH).await;
        line
    });
    let mut response = response.expect("an answer");
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    let lease = response.extensions_mut().remove::<UpgradeLease>().expect("a lease");
    let mut tunnel = TokioIo::new(soon(hyper::upgrade::on(&mut response)).await.expect("a tunnel"));
    drop(response);
    line.say("frame").await;
    let mut read = [0; 5];
    soon(tunnel.read_exact(&mut read)).await.expect("bytes");
    tunnel.write_all(b"answer").await.expect("bytes");
    let mut read = [0; 6];
    soon(line.stream.read_exact(&mut read)).await.expect("bytes");
    let stats = client.stats();
    assert_eq!((stats.connections, stats.in_flight, stats.idle), (1, 1, 0));
    drop(tunnel);
    assert_eq!(client.stats().connections, 1);
    drop(lease);
    let stats = client.stats();
    assert_eq!((stats.connections, stats.in_flight, stats.cancelled), (0, 0, 0));
}

#[tokio::test]
async fn h2_cannot_switch_protocols() {
    let peer = Peer::new().await;
    let client = client(&peer.settings(Scheme::H2c));
    let error = soon(client.ask(websocket(), None)).await.expect_err("no answer");
    assert_eq!(error.reason, Reason::UpgradeFailed);
    assert_eq!(client.stats().connections, 0, "nothing to connect for");
}

#[tokio::test]
async fn a_unix_socket_is_an_endpoint_like_any_other() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("service.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    let mut settings = settings(Address::Unix(path));
    let client = client(&settings);
    let (answer, request) = tokio::join!(call(&client, get("/")), async {
        let mut line = Line::new(listener.accept().await.expect("a connection").0);
        let request = line.request().await.expect("a request");
        line.say(OK).await;
        request
    });
    assert_eq!(answer.expect("an answer"), "ok");
    assert_eq!(request, "GET / HTTP/1.1\r\nhost: service.test\r\n\r\n");

    settings.protocol = Protocol::Http2;
    let client = crate::upstream::testing::client(&settings);
    let (answer, ()) = tokio::join!(call(&client, get("/")), async {
        let mut frames = Frames::new(listener.accept().await.expect("a connection").0, 100).await;
        let stream = frames.request().await.expect("a request");
        frames.answer(stream).await;
    });
    assert_eq!(answer.expect("an answer"), "");
}
