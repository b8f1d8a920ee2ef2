use std::pin::pin;

use bytes::Bytes;
use http_body_util::channel::Channel;

use super::*;
use crate::metrics::Registry;
use crate::upstream::settings::{Limit, Scheme, Settings};
use crate::upstream::testing::*;

const BUSY: &str = "HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 4\r\n\r\nbusy";
const REFUSED_STREAM: u32 = 7;

/// An upstream with these peers, and the service of a route that leads there.
fn calls(peers: &[&Peer], scheme: Scheme, retry: Retry, limit: usize) -> (Arc<Upstream>, Calls) {
    let endpoints = peers.iter().map(|peer| {
        let mut endpoint = peer.settings(scheme).endpoints.remove(0);
        endpoint.label = peer.address.to_string().into();
        endpoint
    });
    let settings = Settings { endpoints: endpoints.collect(), limit: Limit::fixed(limit), ..peers[0].settings(scheme) };
    let settings = Settings { retry: retry.clone(), ..settings };
    let upstream = Arc::new(Upstream::new(&settings, &Registry::new()).expect("usable settings"));
    let calls = Calls::new(Arc::clone(&upstream), settings.timeout, retry);
    (upstream, calls)
}

/// Nothing is taken: no credit, no place, no retry.
fn is_at_rest(upstream: &Upstream) -> bool {
    let retries = upstream.admission.shared().books().retries.in_flight();
    upstream.endpoints().iter().all(|state| state.in_flight == 0) && upstream.waiting() == 0 && retries == 0
}

fn in_flight(upstream: &Upstream) -> usize {
    upstream.endpoints().iter().map(|state| state.in_flight).sum()
}

/// Drives a call until `then` has happened, and drops it.
async fn dropped_when<T>(calls: &mut Calls, request: Request, then: impl Future<Output = T>) -> T {
    let call = pin!(calls.call(request));
    tokio::select! {
        biased;
        _ = call => panic!("it has an outcome"),
        then = soon(then) => then,
    }
}

#[tokio::test]
async fn a_call_that_is_dropped_between_two_attempts_leaves_nothing_behind() {
    let peer = Peer::new().await;
    let (upstream, mut calls) = calls(&[&peer], Scheme::Http, Retry::default(), 1);
    dropped_when(&mut calls, get("/"), async {
        let mut line = peer.accept().await;
        line.request().await.expect("a request");
        line.say(BUSY).await;
        let is_pausing = || in_flight(&upstream) == 0 && !is_at_rest(&upstream);
        until(is_pausing).await;
    })
    .await;
    assert!(is_at_rest(&upstream));
}

#[tokio::test]
async fn a_call_that_is_dropped_while_it_reads_what_it_throws_away_leaves_nothing_behind() {
    let peer = Peer::new().await;
    let (upstream, mut calls) = calls(&[&peer], Scheme::Http, Retry::default(), 1);
    dropped_when(&mut calls, get("/"), async {
        let mut line = peer.accept().await;
        line.request().await.expect("a request");
        line.say("HTTP/1.1 503 Busy\r\nretry-after: 2\r\ncontent-length: 9\r\n\r\nhalf").await;
        until(|| upstream.admission.shared().books().retries.in_flight() == 1).await;
    })
    .await;
    assert!(is_at_rest(&upstream));
    until(|| upstream.endpoints()[0].endpoint.client().stats().connections == 0).await;
}

#[tokio::test]
async fn a_call_that_is_dropped_in_its_second_wait_for_a_credit_leaves_nothing_behind() {
    let peer = Peer::new().await;
    let (upstream, mut calls) = calls(&[&peer], Scheme::Http, Retry::default(), 1);
    let mut other = calls.clone();
    let held = dropped_when(&mut calls, get("/"), async {
        let mut line = peer.accept().await;
        line.request().await.expect("a request");
        line.say(BUSY).await;
        until(|| in_flight(&upstream) == 0).await;
        // Another takes the credit meanwhile.
        let (held, ()) = tokio::join!(other.call(get("/other")), async {
            line.request().await.expect("a request");
            line.say("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n").await;
        });
        until(|| upstream.waiting() == 1).await;
        held
    })
    .await;
    assert_eq!((in_flight(&upstream), upstream.waiting()), (1, 0));
    drop(held);
    assert!(is_at_rest(&upstream));
}

#[tokio::test]
async fn a_call_that_is_dropped_in_a_hedge_leaves_nothing_behind() {
    let peers = [Peer::new().await, Peer::new().await];
    let retry = Retry { hedge: Hedge::After(Duration::from_millis(20)), ..Retry::default() };
    let (upstream, mut calls) = calls(&[&peers[0], &peers[1]], Scheme::Http, retry, 1);
    let now = Instant::now();
    for _ in 0..50 {
        upstream.admission.shared().books().retries.on_first(now);
    }
    dropped_when(&mut calls, get("/"), async {
        let (mut first, mut second) = tokio::join!(peers[0].accept(), peers[1].accept());
        first.request().await.expect("a request");
        second.request().await.expect("a request");
        assert_eq!(in_flight(&upstream), 2);
    })
    .await;
    assert!(is_at_rest(&upstream));
}

#[tokio::test]
async fn the_slower_of_two_is_cancelled_and_a_failure_does_not_win() {
    let peers = [Peer::new().await, Peer::new().await];
    let retry = Retry { hedge: Hedge::After(Duration::from_millis(20)), ..Retry::default() };
    let (upstream, mut calls) = calls(&[&peers[0], &peers[1]], Scheme::Http, retry, 1);
    let now = Instant::now();
    for _ in 0..100 {
        upstream.admission.shared().books().retries.on_first(now);
    }
    for winner in [OK, BUSY] {
        let (response, ()) = tokio::join!(calls.call(get("/")), async {
            let lines = tokio::join!(peers[0].accept(), peers[1].accept());
            let (mut one, mut other) = lines;
            let heads = (one.request().await.expect("a request"), other.request().await.expect("a request"));
            // The second attempt says that it is one.
            let is_second = heads.1.contains("x-retry-count: 1");
            assert_ne!(is_second, heads.0.contains("x-retry-count: 1"));
            let (first, second) = if is_second { (&mut one, &mut other) } else { (&mut other, &mut one) };
            second.say(winner).await;
            if winner == BUSY {
                first.say(OK).await;
            } else {
                first.closed().await;
            }
        });
        let response = response.expect("an answer");
        assert_eq!(response.status(), 200);
        assert_eq!(read(response).await, "ok");
        until(|| is_at_rest(&upstream)).await;
        for state in upstream.endpoints() {
            state.endpoint.client().set_closing(true);
            state.endpoint.client().set_closing(false);
        }
    }
}

#[tokio::test]
async fn a_refused_stream_is_repeated_with_its_body_whatever_its_method() {
    let peer = Peer::new().await;
    let (upstream, mut calls) = calls(&[&peer], Scheme::H2c, Retry::default(), 4);
    let (mut sender, body) = Channel::<Bytes, std::io::Error>::new(4);
    sender.send_data(Bytes::from_static(b"half ")).await.expect("room");
    let (response, ()) = tokio::join!(calls.call(post("/", Body::boxed(body))), async {
        let mut frames = Frames::new(peer.accept_stream().await, 9).await;
        let first = frames.request().await.expect("a request");
        assert_eq!(frames.next(DATA).await.expect("data").payload, b"half ");
        frames.reset(first, REFUSED_STREAM).await;
        let second = frames.request().await.expect("another");
        assert_ne!(first, second);
        sender.send_data(Bytes::from_static(b"whole")).await.expect("room");
        drop(sender);
        let mut whole = Vec::new();
        loop {
            let data = frames.next(DATA).await.expect("data");
            whole.extend_from_slice(&data.payload);
            if data.ends_stream() {
                break;
            }
        }
        assert_eq!(whole, b"half whole");
        frames.answer(second).await;
    });
    assert_eq!(soon(async { response }).await.expect("an answer").status(), 200);
    until(|| is_at_rest(&upstream)).await;
}

#[tokio::test]
async fn a_post_that_a_service_has_begun_to_read_is_not_repeated() {
    let peer = Peer::new().await;
    let (upstream, mut calls) = calls(&[&peer], Scheme::H2c, Retry::default(), 4);
    let (response, ()) = tokio::join!(calls.call(post("/", Body::full("body"))), async {
        let mut frames = Frames::new(peer.accept_stream().await, 9).await;
        let stream = frames.request().await.expect("a request");
        frames.next(DATA).await.expect("data");
        frames.reset(stream, 2).await;
    });
    assert_eq!(response.expect_err("no answer").reason, crate::error::Reason::UpstreamClosed);
    until(|| is_at_rest(&upstream)).await;
}

/// The status of an answer, which is then let go of.
async fn status(answer: Answer) -> u16 {
    answer.await.expect("an answer").status().as_u16()
}

#[tokio::test]
async fn while_others_wait_nothing_is_tried_again() {
    let peer = Peer::new().await;
    let (upstream, calls) = calls(&[&peer], Scheme::Http, Retry::default(), 1);
    let (mut one, mut other) = (calls.clone(), calls);
    let (first, second, ()) = tokio::join!(status(one.call(get("/one"))), status(other.call(get("/two"))), async {
        let mut line = peer.accept().await;
        let head = line.request().await.expect("a request");
        assert!(head.starts_with("GET /one "), "{head}");
        until(|| upstream.waiting() == 1).await;
        line.say("HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n").await;
        let head = line.request().await.expect("a request");
        assert!(head.starts_with("GET /two "), "{head}");
        line.say(OK).await;
    });
    assert_eq!((first, second), (503, 200));
}
