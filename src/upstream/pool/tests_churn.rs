use std::convert::Infallible;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use http_body_util::channel::Channel;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

use crate::body::Body;
use crate::tasks;
use crate::upstream::testing::*;
use crate::upstream::*;

/// Numbers without a pattern, the same in every run.
fn next(seed: &AtomicU64) -> u64 {
    let mut x = seed.fetch_add(0x9e37_79b9_7f4a_7c15, Relaxed);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Answers at once, late, in parts, or with half a body, and reads uploads or does not.
async fn serve(request: hyper::Request<hyper::body::Incoming>, roll: u64) -> Result<hyper::Response<Body>, Infallible> {
    if roll & 1 == 0 {
        let _ = request.into_body().collect().await;
    }
    tokio::time::sleep(Duration::from_micros(roll >> 8 & 0xfff)).await;
    let body = match roll >> 1 & 3 {
        0 => Body::empty(),
        1 => Body::full(vec![b'x'; 100_000]),
        kind => {
            let (mut sender, body) = Channel::<Bytes, std::io::Error>::new(1);
            tasks::detach(async move {
                for _ in 0..5 {
                    tokio::time::sleep(Duration::from_micros(300)).await;
                    if sender.send_data(Bytes::from_static(b"part")).await.is_err() {
                        return;
                    }
                }
                if kind == 3 {
                    sender.abort(std::io::Error::other("broken off"));
                }
            });
            Body::boxed(body)
        }
    };
    Ok(hyper::Response::new(body))
}

async fn accept(listener: TcpListener, scheme: Scheme, seed: Arc<AtomicU64>) {
    while let Ok((stream, _)) = listener.accept().await {
        let seed = Arc::clone(&seed);
        let service = service_fn(move |request| serve(request, next(&seed)));
        tasks::detach(async move {
            let io = TokioIo::new(stream);
            if scheme == Scheme::H2c {
                let mut builder = http2::Builder::new(tasks::Executor);
                let _ = builder.timer(TokioTimer::new()).max_concurrent_streams(7).serve_connection(io, service).await;
            } else {
                let _ = http1::Builder::new().timer(TokioTimer::new()).serve_connection(io, service).await;
            }
        });
    }
}

/// Calls of every kind, half of them given up at some moment, leave nothing behind.
async fn churn(scheme: Scheme) {
    let seed = Arc::new(AtomicU64::new(7));
    let peer = Peer::new().await;
    let mut settings = peer.settings(scheme);
    settings.pool.max_connections = Some(NonZeroUsize::new(6).expect("not zero"));
    settings.pool.max_idle = 4;
    let client = client(&settings);
    let _server = tasks::spawn(accept(peer.listener, scheme, Arc::clone(&seed)));
    let callers: Vec<_> = (0..16)
        .map(|_| {
            let (client, seed) = (Arc::clone(&client), Arc::clone(&seed));
            tasks::run(async move {
                for _ in 0..100 {
                    let roll = next(&seed);
                    let request = if roll & 1 == 0 { get("/") } else { post("/", Body::full(vec![b'y'; 50_000])) };
                    let call = async {
                        if let Ok(response) = client.ask(request, Some(Duration::from_millis(20))).await {
                            let _ = response.into_body().collect().await;
                        }
                    };
                    let patience = if roll & 2 == 0 { roll >> 8 & 0xfff } else { 10_000_000 };
                    let _ = tokio::time::timeout(Duration::from_micros(patience), call).await;
                    assert!(client.stats().connections <= 6);
                }
            })
        })
        .collect();
    for caller in callers {
        tokio::time::timeout(Duration::from_secs(60), caller).await.expect("no caller hangs").expect("no panic");
    }
    until(|| {
        let stats = client.stats();
        (stats.in_flight, stats.streams, stats.waiting) == (0, 0, 0) && stats.connections == stats.idle
    })
    .await;
    assert!(client.stats().cancelled > 0, "{:?}", client.stats());
    assert!(client.stats().reuses > 0, "{:?}", client.stats());
    let pool = Arc::downgrade(&client.pool);
    drop(client);
    until(|| pool.strong_count() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_behind_on_http1() {
    churn(Scheme::Http).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_behind_on_http2() {
    churn(Scheme::H2c).await;
}
