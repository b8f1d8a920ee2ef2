use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use http_body_util::channel::Channel;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

use crate::body::Body;
use crate::error::Reason;
use crate::tasks;
use crate::upstream::testing::*;
use crate::upstream::*;

const ONE: std::num::NonZeroUsize = std::num::NonZeroUsize::MIN;

/// A client with one connection at most.
fn narrow(peer: &Peer, connect: Duration) -> Arc<Client> {
    let mut settings = peer.settings(Scheme::Http);
    settings.pool.max_connections = Some(ONE);
    settings.timeout.connect = connect;
    client(&settings)
}

/// A call as a task of its own; the answer comes by the handle.
fn start(client: &Arc<Client>, path: &str) -> tokio::task::JoinHandle<Result<String, Reason>> {
    let (client, request) = (Arc::clone(client), get(path));
    tasks::run(async move { call(&client, request).await.map_err(|error| error.reason) })
}

#[tokio::test]
async fn a_connection_is_used_again_after_the_body_has_ended() {
    let peer = Peer::new().await;
    let client = peer.client();
    let first = start(&client, "/1");
    let mut line = peer.accept().await;
    assert_eq!(line.request().await.expect("a request"), "GET /1 HTTP/1.1\r\nhost: service.test\r\n\r\n");
    line.say(OK).await;
    assert_eq!(first.await.expect("no panic").expect("an answer"), "ok");
    until(|| client.stats().idle == 1).await;

    let second = start(&client, "/2");
    assert!(line.request().await.expect("the same connection").starts_with("GET /2 "));
    line.say("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(second.await.expect("no panic").expect("an answer"), "");
    until(|| client.stats().idle == 1).await;
    let stats = client.stats();
    assert_eq!((stats.connects, stats.reuses, stats.in_flight, stats.cancelled), (1, 1, 0, 0));
}

#[tokio::test]
async fn the_youngest_idle_connection_is_taken() {
    let peer = Peer::new().await;
    let client = peer.client();
    let (first, second) = (start(&client, "/1"), start(&client, "/2"));
    let mut lines = [peer.accept().await, peer.accept().await];
    for line in &mut lines {
        line.request().await.expect("a request");
    }
    // The second line answers last, and so is the youngest.
    lines[0].say(OK).await;
    until(|| client.stats().idle == 1).await;
    lines[1].say(OK).await;
    until(|| client.stats().idle == 2).await;
    let third = start(&client, "/3");
    assert!(lines[1].request().await.expect("the youngest").starts_with("GET /3 "));
    lines[1].say(OK).await;
    for call in [first, second, third] {
        call.await.expect("no panic").expect("an answer");
    }
}

#[tokio::test]
async fn a_connection_is_not_shared_before_the_body_has_ended_and_is_lost_with_a_dropped_one() {
    let peer = Peer::new().await;
    let client = peer.client();
    let (response, mut line) = tokio::join!(client.ask(get("/stream"), None), async {
        let mut line = peer.accept().await;
        line.request().await.expect("a request");
        line.say("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n").await;
        line
    });
    let mut body = response.expect("a head").into_body();
    soon(body.frame()).await.expect("a frame").expect("data");
    let other = start(&client, "/other");
    let mut second = peer.accept().await;
    second.request().await.expect("another connection");
    second.say(OK).await;
    other.await.expect("no panic").expect("an answer");

    let dropped = Instant::now();
    drop(body);
    line.closed().await;
    assert!(dropped.elapsed() < PROMPT, "{:?}", dropped.elapsed());
    until(|| client.stats().connections == 1).await;
    assert_eq!(client.stats().cancelled, 1);
    assert_eq!(client.stats().in_flight, 0);
}

#[tokio::test]
async fn dropping_the_call_closes_the_connection_while_the_upstream_is_silent() {
    let peer = Peer::new().await;
    let client = peer.client();
    let call = start(&client, "/silent");
    let mut line = peer.accept().await;
    line.request().await.expect("a request");
    assert_eq!(client.stats().in_flight, 1);
    let dropped = Instant::now();
    call.abort();
    line.closed().await;
    assert!(dropped.elapsed() < PROMPT, "{:?}", dropped.elapsed());
    until(|| client.stats().connections == 0).await;
    assert_eq!((client.stats().in_flight, client.stats().cancelled), (0, 1));
}

/// The root future of a current-thread runtime is polled before the tasks that the same look at the sockets woke. So
/// the call below takes the connection although its end is known, as on a busy machine, and hyper hands it back.
#[tokio::test]
async fn a_request_that_meets_a_stale_connection_goes_to_a_new_one_whatever_its_method() {
    let peer = Peer::new().await;
    let client = peer.client();
    let (mut bell, mut ring) = tokio::net::UnixStream::pair().expect("a pair");
    let (first, mut line) = tokio::join!(call(&client, get("/1")), async {
        let mut line = peer.accept().await;
        line.request().await.expect("a request");
        line.say(OK).await;
        line
    });
    first.expect("an answer");
    until(|| client.stats().idle == 1).await;

    ring.write_all(b"x").await.expect("room");
    line.stream.shutdown().await.expect("open");
    drop(line);
    bell.read_u8().await.expect("the bell");
    let (second, request) = tokio::join!(call(&client, post("/2", Body::full("order"))), async {
        let mut line = peer.accept().await;
        let request = line.request().await.expect("a request");
        line.say(OK).await;
        request
    });
    assert_eq!(second.expect("an answer"), "ok");
    assert!(request.starts_with("POST /2 ") && request.ends_with("\r\n\r\norder"), "{request}");
    let stats = client.stats();
    assert_eq!((stats.connects, stats.reuses), (2, 1), "the stale connection was tried");
}

#[tokio::test]
async fn a_peer_that_closes_new_connections_is_not_asked_again_and_again() {
    let peer = Peer::new().await;
    let client = peer.client();
    let mut call = start(&client, "/");
    let mut accepted = 0;
    let reason = loop {
        tokio::select! {
            line = peer.accept() => {
                accepted += 1;
                drop(line);
            }
            answer = &mut call => break answer.expect("no panic").expect_err("no answer"),
        }
    };
    assert!(matches!(reason, Reason::ConnectFailed | Reason::UpstreamClosed), "{reason}");
    assert_eq!(accepted, 1);
}

#[tokio::test]
async fn beyond_the_cap_requests_wait_in_their_order() {
    let peer = Peer::new().await;
    let client = narrow(&peer, Duration::from_secs(5));
    let mut calls = vec![start(&client, "/1")];
    let mut line = peer.accept().await;
    for (waiting, path) in ["/2", "/3", "/4"].iter().enumerate() {
        calls.push(start(&client, path));
        until(|| client.stats().waiting == waiting + 1).await;
    }
    for path in ["/1", "/2", "/3", "/4"] {
        assert!(line.request().await.expect("a request").starts_with(&format!("GET {path} ")), "{path}");
        line.say(OK).await;
    }
    for call in calls {
        call.await.expect("no panic").expect("an answer");
    }
    assert_eq!(client.stats().connects, 1);
}

#[tokio::test]
async fn a_connection_lost_under_the_cap_is_replaced_for_those_who_wait() {
    let peer = Peer::new().await;
    let client = narrow(&peer, Duration::from_secs(5));
    let first = start(&client, "/1");
    let mut line = peer.accept().await;
    line.request().await.expect("a request");
    let second = start(&client, "/2");
    until(|| client.stats().waiting == 1).await;
    drop(line);
    assert_eq!(first.await.expect("no panic"), Err(Reason::UpstreamClosed));
    let mut line = peer.accept().await;
    assert!(line.request().await.expect("a request").starts_with("GET /2 "));
    line.say(OK).await;
    second.await.expect("no panic").expect("an answer");
}

#[tokio::test]
async fn the_wait_ends_with_the_connect_time() {
    let peer = Peer::new().await;
    let client = narrow(&peer, Duration::from_millis(200));
    let _first = start(&client, "/1");
    let mut line = peer.accept().await;
    line.request().await.expect("a request");
    let began = Instant::now();
    let error = soon(client.ask(get("/2"), None)).await.expect_err("no connection");
    assert_eq!(error.reason, Reason::PoolExhausted);
    assert!(began.elapsed() >= Duration::from_millis(200));
    assert_eq!(client.stats().waiting, 0);
}

#[tokio::test]
async fn a_waiter_that_leaves_frees_its_place() {
    let peer = Peer::new().await;
    let client = narrow(&peer, Duration::from_secs(5));
    let first = start(&client, "/1");
    let mut line = peer.accept().await;
    line.request().await.expect("a request");
    let leaver = start(&client, "/2");
    until(|| client.stats().waiting == 1).await;
    let stayer = start(&client, "/3");
    until(|| client.stats().waiting == 2).await;
    leaver.abort();
    until(|| client.stats().waiting == 1).await;
    line.say(OK).await;
    first.await.expect("no panic").expect("an answer");
    assert!(line.request().await.expect("a request").starts_with("GET /3 "));
    line.say(OK).await;
    stayer.await.expect("no panic").expect("an answer");
}

#[tokio::test]
async fn a_full_line_of_waiters_refuses_at_once() {
    let peer = Peer::new().await;
    let client = narrow(&peer, Duration::from_secs(60));
    let _first = start(&client, "/1");
    let mut line = peer.accept().await;
    line.request().await.expect("a request");
    let _waiting: Vec<_> = (0..super::MOST_WAITERS).map(|_| start(&client, "/w")).collect();
    until(|| client.stats().waiting == super::MOST_WAITERS).await;
    let error = soon(client.ask(get("/late"), None)).await.expect_err("no place");
    assert_eq!(error.reason, Reason::PoolExhausted);
}

#[tokio::test]
async fn an_idle_connection_is_closed_in_time_and_others_stay() {
    let peer = Peer::new().await;
    let mut settings = peer.settings(Scheme::Http);
    settings.pool.idle_timeout = Duration::from_millis(100);
    let client = client(&settings);
    for _ in 0..2 {
        let call = start(&client, "/");
        let mut line = peer.accept().await;
        line.request().await.expect("a request");
        line.say(OK).await;
        call.await.expect("no panic").expect("an answer");
        let idle = Instant::now();
        line.closed().await;
        let after = idle.elapsed();
        assert!(after >= Duration::from_millis(90) && after < Duration::from_secs(2), "{after:?}");
        until(|| client.stats().connections == 0).await;
    }
}

#[tokio::test]
async fn no_more_idle_connections_are_kept_than_allowed() {
    let peer = Peer::new().await;
    let mut settings = peer.settings(Scheme::Http);
    settings.pool.max_idle = 1;
    let client = client(&settings);
    let calls = [start(&client, "/1"), start(&client, "/2")];
    let mut lines = [peer.accept().await, peer.accept().await];
    for line in &mut lines {
        line.request().await.expect("a request");
        line.say(OK).await;
    }
    for call in calls {
        call.await.expect("no panic").expect("an answer");
    }
    until(|| client.stats().connections == 1).await;
    assert_eq!(client.stats().idle, 1);
}

#[tokio::test]
async fn a_connection_whose_upload_outlasts_the_answer_is_not_used_again_before_the_uploads_end() {
    let peer = Peer::new().await;
    let client = peer.client();
    let (mut upload, body) = Channel::<Bytes, std::io::Error>::new(1);
    let request = post("/upload", Body::boxed(body));
    let (response, mut line) = tokio::join!(call(&client, request), async {
        let mut line = peer.accept().await;
        line.request().await.expect("a head");
        line.say(OK).await;
        line
    });
    response.expect("an answer");
    let other = start(&client, "/other");
    let mut second = peer.accept().await;
    second.request().await.expect("another connection");
    assert_eq!(client.stats().idle, 0);
    second.say(OK).await;
    other.await.expect("no panic").expect("an answer");
    until(|| client.stats().idle == 1).await;
    upload.send_data(Bytes::from_static(b"end")).await.expect("read");
    drop(upload);
    until(|| client.stats().idle == 2).await;
    drop(client);
    line.closed().await;
}

#[tokio::test]
async fn the_pool_ends_with_its_client() {
    let peer = Peer::new().await;
    let client = peer.client();
    let first = start(&client, "/1");
    let mut line = peer.accept().await;
    line.request().await.expect("a request");
    line.say(OK).await;
    first.await.expect("no panic").expect("an answer");
    let pool = Arc::downgrade(&client.pool);
    drop(client);
    line.closed().await;
    assert!(pool.upgrade().is_none());
}
