//! One stalled stream never slows another on the same upstream connection.

use std::time::Duration;

use http_body_util::BodyExt as _;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::support::{Origin, Proxy, Raw, empty, eventually, h2, request};

/// `HEADWORKS_SOAK_SECONDS=60` is the promise; the default keeps a test run short and is past the time at which the
/// known faults (a connection window used up, a budget of small frames used up) strike.
fn duration() -> Duration {
    let seconds = std::env::var("HEADWORKS_SOAK_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(8))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn ninety_nine_live_streams_beside_a_stalled_one() {
    const LIVE: u64 = 99;
    const PACE: Duration = Duration::from_millis(20);
    let origin = Origin::h2c();
    let proxy = Proxy::from_toml(&format!(
        "[stream]\nstall_timeout = \"10m\"\n[upstream.app]\nendpoints = [\"{}\"]\nlimit = {{ in_flight = 200 }}\n\
         pool = {{ max_connections = 1, max_streams = 100 }}\n[[route]]\nupstream = \"app\"\n",
        origin.url()
    ));
    let mut stalled = Raw::connect_small(proxy.public(), 4096).await;
    stalled.get("/flood/20").await;
    assert_eq!(stalled.head().await.0, 200);

    let client = h2(proxy.public(), 1 << 20).await;
    let end = Instant::now() + duration();
    let mut live = JoinSet::new();
    for _ in 0..LIVE {
        let (mut client, request) = (client.clone(), request("GET", proxy.public(), "/ticks/20/20", empty()));
        live.spawn(async move {
            let mut response = client.send_request(request).await.expect("a head");
            let (mut bytes, mut longest, mut last) = (0, Duration::ZERO, Instant::now());
            let start = Instant::now();
            while Instant::now() < end {
                let frame = timeout(Duration::from_secs(5), response.body_mut().frame()).await;
                let frame = frame.expect("a frame within 5 s").expect("no end").expect("no reset");
                bytes += frame.data_ref().map_or(0, bytes::Bytes::len);
                longest = longest.max(last.elapsed());
                last = Instant::now();
            }
            (bytes / 20, start.elapsed(), longest)
        });
    }
    let results = live.join_all().await;
    let worst = results.iter().map(|(_, _, gap)| *gap).max().unwrap();
    println!("longest gap between frames of {LIVE} live streams in {:?}: {worst:?}", duration());
    for (frames, took, gap) in results {
        let due = took.as_millis() / PACE.as_millis();
        assert!(frames as u128 * 100 >= due * 95, "{frames} of {due} frames");
        assert!(gap < Duration::from_millis(500), "a gap of {gap:?}");
    }
    assert_eq!(origin.connections(), 1, "all streams share one upstream connection");
    let stalled = &origin.records()[0];
    assert!(!stalled.ended() && stalled.silence() > Duration::from_secs(1), "the stalled one is there, and stalled");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_stalled_flood_of_tiny_frames_leaves_the_connection_whole() {
    let origin = Origin::h2c();
    let proxy = Proxy::from_toml(&format!(
        "[stream]\nstall_timeout = \"10m\"\n[upstream.app]\nendpoints = [\"{}\"]\n\
         pool = {{ max_connections = 1, max_streams = 100 }}\n[[route]]\nupstream = \"app\"\n",
        origin.url()
    ));
    let mut stalled = Vec::new();
    for _ in 0..4 {
        let mut client = Raw::connect_small(proxy.public(), 4096).await;
        client.get("/flood/20").await;
        client.head().await;
        stalled.push(client);
    }
    let silent = || origin.records().iter().all(|record| record.silence() > Duration::from_millis(200));
    assert!(eventually(silent, Duration::from_secs(20)).await, "the floods never stop");
    let mut client = h2(proxy.public(), 1 << 20).await;
    for _ in 0..20 {
        let response = client.send_request(request("GET", proxy.public(), "/bytes/200000", empty())).await.unwrap();
        let body = timeout(Duration::from_secs(5), response.into_body().collect()).await.expect("not slowed");
        assert_eq!(body.expect("not reset").to_bytes().len(), 200_000);
    }
    assert_eq!(origin.connections(), 1);
    assert_eq!(origin.cancelled(), 0);
}

#[tokio::test]
async fn a_queued_upload_does_not_slow_its_siblings() {
    let origin = Origin::h1();
    let proxy = Proxy::from_toml(&format!(
        "[upstream.app]\nendpoints = [\"{0}\"]\nlimit = {{ in_flight = 1 }}\nqueue = {{ max = 4, timeout = \"60s\" }}\n\
         [upstream.free]\nendpoints = [\"{0}\"]\n\
         [[route]]\nmatch = {{ path = \"/free/*\" }}\nupstream = \"free\"\n[[route]]\nupstream = \"app\"\n",
        origin.url()
    ));
    let mut holder = Raw::connect(proxy.public()).await;
    holder.get("/hold").await;
    holder.head().await;
    let client = h2(proxy.public(), 1 << 16).await;
    let (mut body, payload) = crate::support::channel();
    let mut uploader = client.clone();
    let upload = request("POST", proxy.public(), "/discard", payload);
    let upload = tokio::spawn(async move { uploader.send_request(upload).await });
    // Small frames of a request that has no credit: nobody reads them.
    let feeding = tokio::spawn(async move {
        for _ in 0..6000 {
            if body.send_data(vec![b'x'; 20].into()).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    let end = Instant::now() + Duration::from_secs(6);
    while Instant::now() < end {
        let mut sibling = client.clone();
        let asked = sibling.send_request(request("GET", proxy.public(), "/free/x", empty()));
        let response = timeout(Duration::from_secs(1), asked).await.expect("not slowed").expect("not cut");
        assert_eq!(response.status(), 200);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    upload.abort();
    feeding.abort();
}
