use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body::Frame;
use http_body_util::channel::Channel;
use http_body_util::{BodyExt as _, StreamBody};
use tokio::time::Instant;

use crate::body::Body;
use crate::error::Reason;
use crate::tasks;
use crate::upstream::testing::*;
use crate::upstream::*;

const CANCEL: u32 = 8;
const REFUSED_STREAM: u32 = 7;

type Call = tokio::task::JoinHandle<Result<String, Reason>>;

fn start(client: &Arc<Client>, path: &str) -> Call {
    let (client, request) = (Arc::clone(client), get(path));
    tasks::run(async move { call(&client, request).await.map_err(|error| error.reason) })
}

async fn done(call: Call) -> Result<String, Reason> {
    soon(call).await.expect("no panic")
}

async fn accept(peer: &Peer, streams: u32) -> Frames {
    Frames::new(peer.accept_stream().await, streams).await
}

fn multiplexing(peer: &Peer) -> Arc<Client> {
    client(&peer.settings(Scheme::H2c))
}

#[tokio::test]
async fn a_burst_on_a_cold_pool_opens_no_more_connections_than_its_streams_need() {
    let peer = Peer::new().await;
    let client = multiplexing(&peer);
    let calls: Vec<_> = (0..250).map(|_| start(&client, "/")).collect();
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut frames = accept(&peer, 100).await;
        let first = frames.request().await.expect("a request");
        open.push((frames, vec![first]));
    }
    // Nothing is answered before all have arrived, so what a connection has taken by then was open at once.
    until(|| client.stats().streams == 250).await;
    assert_eq!((client.stats().connects, client.stats().waiting), (3, 0));
    for (frames, streams) in &mut open {
        while let Ok(Some(frame)) = tokio::time::timeout(Duration::from_millis(200), frames.next(HEADERS)).await {
            streams.push(frame.stream);
        }
    }
    let counts: Vec<_> = open.iter().map(|(_, streams)| streams.len()).collect();
    assert!(counts.iter().all(|count| *count <= 100), "{counts:?}");
    assert_eq!(counts.iter().sum::<usize>(), 250);
    for (frames, streams) in &mut open {
        for stream in streams {
            frames.answer(*stream).await;
        }
    }
    for call in calls {
        done(call).await.expect("an answer");
    }
    until(|| client.stats().streams == 0).await;
    assert_eq!(client.stats().idle, 3);
}

#[tokio::test]
async fn no_stream_is_sent_before_the_peer_has_said_how_many_it_takes() {
    let peer = Peer::new().await;
    let mut settings = peer.settings(Scheme::H2c);
    settings.pool.max_connections = Some(std::num::NonZeroUsize::MIN);
    let client = client(&settings);
    let calls: Vec<_> = (0..5).map(|_| start(&client, "/")).collect();
    let mut frames = accept(&peer, 2).await;
    for _ in 0..5 {
        let stream = frames.request().await.expect("a request");
        assert!(client.stats().streams <= 2);
        frames.answer(stream).await;
    }
    for call in calls {
        done(call).await.expect("an answer");
    }
}

#[tokio::test]
async fn a_peer_that_takes_fewer_streams_than_before_gets_fewer() {
    let peer = Peer::new().await;
    let client = multiplexing(&peer);
    let first = start(&client, "/");
    let mut frames = accept(&peer, 100).await;
    let stream = frames.request().await.expect("a request");
    frames.allow(1).await;
    frames.answer(stream).await;
    done(first).await.expect("an answer");
    // The first request after the change makes it known.
    let held = start(&client, "/held");
    let held_stream = frames.request().await.expect("a request");
    let next = start(&client, "/next");
    let mut other = accept(&peer, 100).await;
    let stream = other.request().await.expect("a request on another connection");
    other.answer(stream).await;
    done(next).await.expect("an answer");
    frames.answer(held_stream).await;
    done(held).await.expect("an answer");
}

#[tokio::test]
async fn after_goaway_requests_move_on_and_open_streams_end_in_peace() {
    let peer = Peer::new().await;
    let client = multiplexing(&peer);
    let (served, unserved) = (start(&client, "/served"), start(&client, "/unserved"));
    let mut frames = accept(&peer, 100).await;
    let first = frames.request().await.expect("a request");
    let second = frames.request().await.expect("a request");
    assert!(first < second);
    frames.go_away(first, 0).await;
    let mut next = accept(&peer, 100).await;
    let stream = next.request().await.expect("the unserved request, again");
    next.answer(stream).await;
    frames.answer(first).await;
    done(served).await.expect("an answer");
    done(unserved).await.expect("an answer");
    let third = start(&client, "/third");
    let stream = next.request().await.expect("a request");
    next.answer(stream).await;
    done(third).await.expect("an answer");
    drop(frames);
    until(|| client.stats().connections == 1).await;
}

#[tokio::test]
async fn an_idle_connection_that_said_goaway_costs_no_request() {
    let peer = Peer::new().await;
    let client = multiplexing(&peer);
    let first = start(&client, "/1");
    let mut frames = accept(&peer, 100).await;
    let stream = frames.request().await.expect("a request");
    frames.answer(stream).await;
    done(first).await.expect("an answer");
    frames.go_away(stream, 0).await;
    let calls: Vec<_> = (0..10).map(|_| start(&client, "/2")).collect();
    let mut next = accept(&peer, 100).await;
    for _ in 0..10 {
        let stream = next.request().await.expect("a request");
        next.answer(stream).await;
    }
    for call in calls {
        done(call).await.expect("an answer");
    }
}

#[tokio::test]
async fn a_refused_stream_is_sent_again() {
    let peer = Peer::new().await;
    let client = multiplexing(&peer);
    let mut refused = start(&client, "/");
    let mut frames = accept(&peer, 100).await;
    for _ in 0..2 {
        let stream = frames.request().await.expect("a request");
        frames.reset(stream, REFUSED_STREAM).await;
        let stream = frames.request().await.expect("the request, again");
        frames.answer(stream).await;
        done(std::mem::replace(&mut refused, start(&client, "/"))).await.expect("an answer");
    }
}

#[tokio::test]
async fn a_peer_that_refuses_every_stream_is_not_asked_for_ever() {
    let peer = Peer::new().await;
    let client = multiplexing(&peer);
    let refused = start(&client, "/");
    let mut frames = accept(&peer, 100).await;
    for _ in 0..4 {
        let stream = frames.request().await.expect("a request");
        frames.reset(stream, REFUSED_STREAM).await;
    }
    assert_eq!(done(refused).await, Err(Reason::ConnectFailed));
}

#[tokio::test]
async fn cancelling_resets_the_stream_and_leaves_the_connection_alone() {
    let peer = Peer::new().await;
    let client = multiplexing(&peer);
    let silent = start(&client, "/silent");
    let mut frames = accept(&peer, 100).await;
    let stream = frames.request().await.expect("a request");
    let dropped = Instant::now();
    silent.abort();
    let reset = frames.next(RST_STREAM).await.expect("a reset");
    assert_eq!((reset.stream, reset.payload), (stream, CANCEL.to_be_bytes().to_vec()));
    assert!(dropped.elapsed() < PROMPT, "{:?}", dropped.elapsed());

    let (response, stream) = tokio::join!(client.ask(get("/stream"), None), async {
        let stream = frames.request().await.expect("a request");
        frames.begin(stream).await;
        stream
    });
    assert_eq!(client.stats().streams, 1);
    drop(response.expect("a head"));
    let reset = frames.next(RST_STREAM).await.expect("a reset");
    assert_eq!(reset.stream, stream);
    until(|| client.stats().streams == 0).await;
    let stats = client.stats();
    assert_eq!((stats.connects, stats.idle, stats.in_flight, stats.cancelled), (1, 1, 0, 2));
}

#[tokio::test]
async fn a_stream_is_counted_until_both_directions_have_ended() {
    let peer = Peer::new().await;
    let client = multiplexing(&peer);
    let (mut upload, body) = Channel::<Bytes, std::io::Error>::new(1);
    let mut frames = None;
    let (response, ()) = tokio::join!(call(&client, post("/", Body::boxed(body))), async {
        let frames = frames.insert(accept(&peer, 100).await);
        let stream = frames.request().await.expect("a request");
        frames.answer(stream).await;
    });
    response.expect("an answer");
    assert_eq!(client.stats().in_flight, 0);
    assert_eq!(client.stats().streams, 1, "the upload goes on");
    upload.send_data(Bytes::from_static(b"end")).await.expect("read");
    drop(upload);
    let mut frames = frames.expect("a connection");
    while !frames.next(DATA).await.expect("the upload").ends_stream() {}
    until(|| client.stats().streams == 0).await;
}

#[tokio::test]
async fn no_upload_begins_where_one_stands_still_unless_there_is_nowhere_else() {
    let peer = Peer::new().await;
    let mut settings = peer.settings(Scheme::H2c);
    settings.pool.max_connections = Some(std::num::NonZeroUsize::new(2).expect("not zero"));
    let client = client(&settings);
    let upload = |client: &Arc<Client>| {
        let client = Arc::clone(client);
        let endless =
            futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>(Frame::data(Bytes::from(vec![0; 9000]))));
        let body = Body::boxed(StreamBody::new(endless));
        tasks::run(async move { drop(client.ask(post("/", body), None).await) })
    };
    let (mut uploads, mut open) = (Vec::new(), Vec::new());
    // The second gets a connection of its own, the third shares one for want of another.
    for (connections, streams) in [(1, 1), (2, 2), (2, 3)] {
        uploads.push(upload(&client));
        if open.len() < connections {
            let mut frames = accept(&peer, 100).await;
            frames.next(DATA).await.expect("some of the body");
            open.push(frames);
        }
        until(|| client.stats().streams == streams).await;
        assert_eq!((client.stats().connections, client.stats().waiting), (connections, 0));
        // Nobody reads any further.
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    // Without a body there is nothing to wait for.
    let _get = start(&client, "/");
    until(|| client.stats().streams == 4).await;
    assert_eq!(client.stats().connections, 2);
}

#[tokio::test]
async fn an_upload_that_breaks_off_is_the_clients_fault() {
    let peer = Peer::new().await;
    let client = multiplexing(&peer);
    let (mut upload, body) = Channel::<Bytes, std::io::Error>::new(1);
    upload.send_data(Bytes::from_static(b"half")).await.expect("room");
    let request = client.ask(post("/", Body::boxed(body)), None);
    let (response, _frames) = tokio::join!(request, async {
        let mut frames = accept(&peer, 100).await;
        frames.next(DATA).await.expect("half of the body");
        upload.abort(std::io::Error::other("the client is gone"));
        frames.next(RST_STREAM).await.expect("a reset");
        frames
    });
    assert_eq!(response.expect_err("no answer").reason, Reason::RequestIncomplete);
}

#[tokio::test]
async fn a_stalled_stream_of_tiny_frames_does_not_hold_up_its_siblings() {
    let peer = Peer::new().await;
    let client = multiplexing(&peer);
    let (stalled, mut frames) = tokio::join!(client.ask(get("/tokens"), None), async {
        let mut frames = accept(&peer, 100).await;
        let stream = frames.request().await.expect("a request");
        frames.begin(stream).await;
        // As many tokens as the stream's window takes.
        for _ in 0..64 * 1024 / 20 {
            frames.write(DATA, 0, stream, &[b't'; 20]).await;
        }
        frames
    });
    let stalled = stalled.expect("a head");
    for _ in 0..100 {
        let sibling = start(&client, "/sibling");
        let stream = frames.request().await.expect("a request on the same connection");
        frames.begin(stream).await;
        frames.write(DATA, 1, stream, b"ok").await;
        assert_eq!(done(sibling).await.expect("an answer"), "ok");
    }
    let mut body = stalled.into_body();
    soon(body.frame()).await.expect("a frame").expect("still whole");
    assert_eq!(client.stats().connects, 1);
}

#[tokio::test]
async fn a_connection_without_streams_is_closed_in_time() {
    let peer = Peer::new().await;
    let mut settings = peer.settings(Scheme::H2c);
    settings.pool.idle_timeout = Duration::from_millis(100);
    let client = client(&settings);
    let first = start(&client, "/");
    let mut frames = accept(&peer, 100).await;
    let stream = frames.request().await.expect("a request");
    tokio::time::sleep(Duration::from_millis(300)).await;
    frames.answer(stream).await;
    done(first).await.expect("an open stream is not idle");
    soon(async { while frames.frame().await.is_some() {} }).await;
    until(|| client.stats().connections == 0).await;
}

#[tokio::test]
async fn a_connection_that_cannot_be_opened_fails_all_who_hoped_for_it() {
    let peer = Peer::new().await;
    let client = multiplexing(&peer);
    let calls: Vec<_> = (0..50).map(|_| start(&client, "/")).collect();
    until(|| client.stats().waiting == 50).await;
    drop(peer.accept_stream().await);
    for call in calls {
        assert_eq!(done(call).await, Err(Reason::ConnectFailed));
    }
    assert_eq!(client.stats().connects, 0);
}

#[tokio::test]
async fn a_lost_connection_fails_its_streams_and_frees_their_places() {
    let peer = Peer::new().await;
    let client = multiplexing(&peer);
    let calls: Vec<_> = (0..3).map(|_| start(&client, "/")).collect();
    let mut frames = accept(&peer, 100).await;
    for _ in 0..3 {
        frames.request().await.expect("a request");
    }
    drop(frames);
    for call in calls {
        assert_eq!(done(call).await, Err(Reason::UpstreamClosed));
    }
    until(|| client.stats().connections == 0).await;
    assert_eq!((client.stats().streams, client.stats().in_flight, client.stats().cancelled), (0, 0, 0));
}
