//! A reader that takes nothing costs little and not for long.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::support::{Flood, Origin, Proxy, Raw, Record, empty, eventually, get, h2, request};

/// User memory of the proxy per stalled stream, as the README states it: two HTTP/1.1 connections, or two h2 streams.
const MEMORY_H1: u64 = 112 * 1024;
const MEMORY_H2: u64 = 64 * 1024;
/// Bytes taken from the upstream beyond what the reader took, per stream.
const AHEAD: u64 = 200 * 1024;

fn proxy(upstream: &str, stall: Duration) -> Proxy {
    Proxy::from_toml(&format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\n[stream]\nstall_timeout = \"{}ms\"\n\
         [upstream.app]\nendpoints = [\"{upstream}\"]\nlimit = {{ in_flight = 2000 }}\n\
         pool = {{ max_connections = 2000 }}\n[[route]]\nupstream = \"app\"\n",
        stall.as_millis()
    ))
}

/// Cut when its time was up: not before, and at most a tenth late. The time begins when the reader stops, since what
/// lies between it and the upstream is full within milliseconds. The upstream's own last write says less: kernels
/// still move bytes between each other's buffers when their probes find room.
fn assert_cut_in_time(record: &Record, stopped: Instant, stall: Duration) {
    let patience = record.ended_at().expect("it ended").duration_since(stopped);
    assert!(record.cancelled(), "{} was not cancelled", record.path);
    assert!(patience >= stall.mul_f64(0.9) && patience <= stall.mul_f64(1.1), "{} cut after {patience:?}", record.path);
}

#[tokio::test]
async fn a_stalled_h1_reader_is_cut_and_the_upstream_learns_of_it() {
    let stall = Duration::from_secs(2);
    let flood = Flood::new();
    let proxy = proxy(&flood.url(), stall);
    let mut client = Raw::connect_small(proxy.public(), 4096).await;
    client.get("/one").await;
    assert_eq!(client.head().await.0, 200);
    client.read_n(300_000).await;
    let stopped = Instant::now();
    assert!(eventually(|| flood.records()[0].ended(), stall * 2).await, "never cut");
    assert_cut_in_time(&flood.records()[0], stopped, stall);
    // The client learns of it, too: what it had not taken does not end cleanly.
    assert!(client.read_to_end().await.map_or(0, |rest| rest.len()) < 1 << 20);
    let cut = || proxy.metrics().text().lines().any(|line| line.contains("client_stalled") && !line.ends_with(" 0"));
    assert!(eventually(cut, Duration::from_secs(2)).await, "the reason is not counted");
}

#[tokio::test]
async fn a_stalled_h2_reader_is_cut_and_its_siblings_are_not() {
    let stall = Duration::from_secs(2);
    let origin = Origin::h1();
    let proxy = proxy(&origin.url(), stall);
    let client = h2(proxy.public(), 32 * 1024).await;
    let mut stalled =
        client.clone().send_request(request("GET", proxy.public(), "/flood/4096", empty())).await.unwrap();
    assert!(stalled.body_mut().frame().await.unwrap().is_ok());
    let stopped = Instant::now();
    let mut live = client.clone().send_request(request("GET", proxy.public(), "/sse/100/50", empty())).await.unwrap();
    let reading = tokio::spawn(async move {
        let mut events = 0;
        while let Some(frame) = live.body_mut().frame().await {
            // The end of an h2 stream may come as an empty frame of its own.
            let frame = frame.expect("the sibling is not cut");
            events += usize::from(frame.data_ref().is_some_and(|data| !data.is_empty()));
        }
        events
    });
    let record = origin.records().iter().find(|record| record.path == "/flood/4096").unwrap().clone();
    assert!(eventually(|| record.ended(), stall * 2).await, "never cut");
    assert_cut_in_time(&record, stopped, stall);
    assert!(stalled.into_body().collect().await.is_err(), "a cut stream is reset");
    assert_eq!(reading.await.unwrap(), 101);
}

#[tokio::test]
async fn a_route_may_be_more_or_less_patient_than_the_rest() {
    let flood = Flood::new();
    let proxy = Proxy::from_toml(&format!(
        "[stream]\nstall_timeout = \"700ms\"\n[upstream.app]\nendpoints = [\"{}\"]\n[[route]]\nupstream = \"app\"\n\
         [[route]]\nmatch = {{ path = \"/patient\" }}\nupstream = \"app\"\nstream = {{ stall_timeout = \"1800ms\" }}\n\
         [[route]]\nmatch = {{ path = \"/hasty\" }}\nupstream = \"app\"\nstream = {{ stall_timeout = \"300ms\" }}\n",
        flood.url()
    ));
    let cases = [("/patient", 1800), ("/hasty", 300), ("/", 700)];
    let mut readers = JoinSet::new();
    for (path, stall) in cases {
        let addr = proxy.public();
        readers.spawn(async move {
            let mut raw = Raw::connect_small(addr, 4096).await;
            raw.get(path).await;
            raw.read_n(100_000).await;
            let mut stream = h2(addr, 32 * 1024).await;
            let mut answer = stream.send_request(request("GET", addr, path, empty())).await.unwrap();
            assert!(answer.body_mut().frame().await.unwrap().is_ok());
            (path, Duration::from_millis(stall), Instant::now(), raw, answer)
        });
    }
    for (path, stall, stopped, raw, answer) in readers.join_all().await {
        let records: Vec<_> = flood.records().into_iter().filter(|record| record.path == path).collect();
        assert_eq!(records.len(), 2);
        assert!(eventually(|| records.iter().all(|record| record.ended()), 2 * stall).await, "{path} is never cut");
        for record in &records {
            let patience = record.ended_at().unwrap().duration_since(stopped);
            // The first has stopped a moment before the second.
            assert!(patience + Duration::from_millis(100) >= stall, "{path} was cut after {patience:?}");
            assert!(patience < stall + Duration::from_millis(300), "{path} was cut after {patience:?}");
        }
        drop(raw);
        assert!(answer.into_body().collect().await.is_err(), "a cut stream is reset");
    }
}

#[tokio::test]
async fn a_slow_reader_is_not_a_stalled_one() {
    let flood = Flood::new();
    let proxy = proxy(&flood.url(), Duration::from_secs(1));
    let mut client = Raw::connect_small(proxy.public(), 4096).await;
    client.get("/slow").await;
    client.head().await;
    let mut pace = tokio::time::interval(Duration::from_millis(200));
    for _ in 0..20 {
        pace.tick().await;
        client.read_n(20_000).await;
    }
    assert!(!flood.records()[0].ended(), "cut although it reads");
}

#[tokio::test]
async fn a_silent_upstream_is_not_a_stalled_reader() {
    let origin = Origin::h1();
    let proxy = proxy(&origin.url(), Duration::from_millis(300));
    let mut client = Raw::connect(proxy.public()).await;
    client.get("/sse-gate").await;
    client.head().await;
    client.until("data: open\n\n").await;
    tokio::time::sleep(Duration::from_millis(900)).await;
    origin.open_gate(1);
    client.until("[DONE]").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_thousand_stalled_h1_readers_hold_little() {
    const READERS: usize = 1000;
    let stall = Duration::from_secs(15);
    let flood = Flood::new();
    let proxy = proxy(&flood.url(), stall);
    // What the first connection of a process costs is not what a stream costs.
    let mut first = Raw::connect_small(proxy.public(), 4096).await;
    first.get("/warm-up").await;
    first.read_n(500_000).await;
    drop(first);
    assert!(eventually(|| flood.records()[0].ended(), Duration::from_secs(1)).await);
    let before = proxy.resident();

    let mut readers = JoinSet::new();
    for at in 0..READERS {
        let addr = proxy.public();
        readers.spawn(async move {
            let mut client = Raw::connect_small(addr, 4096).await;
            let path = format!("/{at}");
            client.get(&path).await;
            client.read_n(20_000).await;
            (path, client, Instant::now())
        });
    }
    let readers = readers.join_all().await;
    let of_readers = || flood.records().into_iter().filter(|record| record.path != "/warm-up").collect::<Vec<_>>();
    let quiet = || of_readers().iter().all(|record| record.silence() > Duration::from_millis(300));
    assert!(eventually(quiet, Duration::from_secs(20)).await, "bytes still move");
    let grown = proxy.resident().saturating_sub(before);
    let taken = flood.taken();
    let ahead = readers.iter().map(|(path, client, _)| taken[path].saturating_sub(client.taken)).collect::<Vec<_>>();
    let most = ahead.iter().copied().max().unwrap_or(0);
    let mean = ahead.iter().sum::<u64>() / READERS as u64;
    println!(
        "stalled h1 readers: {} B of user memory each; taken ahead of the reader: mean {mean} B, most {most} B",
        grown / READERS as u64
    );
    let open = of_readers().iter().filter(|record| !record.ended()).count();
    assert_eq!(open, READERS, "all are measured before the first is cut");

    let records = of_readers();
    assert!(eventually(|| records.iter().all(|record| record.ended()), stall * 2).await, "some are never cut");
    for record in &records {
        let (_, _, stopped) = readers.iter().find(|(path, ..)| *path == record.path).unwrap();
        assert_cut_in_time(record, *stopped, stall);
    }
    assert!(grown / READERS as u64 <= MEMORY_H1, "{} B of user memory a stream", grown / READERS as u64);
    assert!(most <= AHEAD, "{most} B taken ahead of a reader");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_thousand_stalled_h2_readers_hold_little() {
    const CONNECTIONS: usize = 20;
    const STREAMS: usize = 50;
    const WINDOW: u32 = 16 * 1024;
    let stall = Duration::from_secs(15);
    let origin = Origin::h2c();
    let proxy = proxy(&origin.url(), stall);
    assert_eq!(get(proxy.public(), "/bytes/500000").await.body.len(), 500_000);
    let before = proxy.resident();

    let mut bodies = Vec::new();
    for _ in 0..CONNECTIONS {
        let client = h2(proxy.public(), WINDOW).await;
        for _ in 0..STREAMS {
            let request = request("GET", proxy.public(), "/flood/4096", empty());
            let mut response = client.clone().send_request(request).await.unwrap();
            assert!(response.body_mut().frame().await.unwrap().unwrap().data_ref().map_or(0, Bytes::len) > 0);
            bodies.push((response, Instant::now()));
        }
    }
    let floods = || origin.records().into_iter().filter(|record| record.path == "/flood/4096").collect::<Vec<_>>();
    let quiet = || floods().iter().all(|record| record.silence() > Duration::from_millis(300));
    assert!(eventually(quiet, Duration::from_secs(20)).await, "bytes still move");
    let records = floods();
    assert_eq!(records.iter().filter(|record| !record.ended()).count(), CONNECTIONS * STREAMS);
    let grown = proxy.resident().saturating_sub(before) / bodies.len() as u64;
    // The reader's side of the connection has taken one window; the origin's library may hold one frame and its buffer.
    let most = records.iter().map(|record| record.taken().saturating_sub(u64::from(WINDOW))).max().unwrap_or(0);
    println!("stalled h2 readers: {grown} B of user memory each; taken ahead of the reader: most {most} B");

    assert!(eventually(|| records.iter().all(|record| record.ended()), stall * 2).await, "some are never cut");
    // The upstream saw them in the order in which they were asked for, one by one.
    for (record, (_, stopped)) in records.iter().zip(&bodies) {
        assert_cut_in_time(record, *stopped, stall);
    }
    assert!(grown <= MEMORY_H2, "{grown} B of user memory a stream");
    assert!(most <= AHEAD, "{most} B taken ahead of a reader");
}
