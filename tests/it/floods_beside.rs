//! A good client beside floods: it is served, and memory stays flat.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::support::h2_raw::{H2Raw, code, data, frame, headers, kind, ping, request, reset, settings, window_update};
use crate::support::{Origin, Proxy, Raw, channel, empty, eventually, get, h2, request as typed};

const SOON: Duration = Duration::from_secs(5);
const MIB: u64 = 1 << 20;

fn proxy(origin: &Origin, server: &str) -> Proxy {
    Proxy::from_toml(&format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\n{server}\n[log]\naccess = \"off\"\n[upstream.app]\nendpoints = [\"{}\"]\n\
         limit.in_flight = 8\nqueue = {{ max = 100, timeout = \"60s\" }}\n\
         [upstream.free]\nendpoints = [\"{0}\"]\n[[route]]\nmatch.path = \"/free/*\"\nupstream = \"free\"\n\
         strip_prefix = \"/free\"\n[[route]]\nupstream = \"app\"\n",
        origin.url()
    ))
}

/// Asks again and again while `flood` runs; gives how often, and the longest wait.
async fn beside(addr: SocketAddr, flood: impl Future<Output = ()>) -> (usize, Duration) {
    let over = Arc::new(AtomicBool::new(false));
    let ends = Arc::clone(&over);
    let good = async move {
        let (mut served, mut longest) = (0, Duration::ZERO);
        let mut client = Raw::connect(addr).await;
        while !ends.load(SeqCst) || served < 10 {
            let asked = Instant::now();
            client.get("/free/delay/0").await;
            assert_eq!(client.head().await.0, 200);
            client.until("ok").await;
            (served, longest) = (served + 1, longest.max(asked.elapsed()));
            sleep(Duration::from_millis(5)).await;
        }
        (served, longest)
    };
    let flood = async {
        flood.await;
        over.store(true, SeqCst);
    };
    tokio::join!(good, flood).0
}

/// What one client sends, over and over, on one connection after the other.
type Flood = fn(u32) -> Vec<u8>;

const FLOODS: [(&str, Flood); 6] = [
    ("pings", |_| ping([0; 8])),
    ("settings", |_| settings(&[(4, 1)])),
    ("window updates", |_| window_update(0, 1)),
    ("rapid reset", |n| [headers(2 * n + 1, true, &request("GET", "/hang", &[])), reset(2 * n + 1, 8)].concat()),
    ("made you reset", |n| {
        [headers(2 * n + 1, true, &request("GET", "/hang", &[])), window_update(2 * n + 1, 0)].concat()
    }),
    ("continuations", |n| {
        if n == 0 {
            frame(kind::HEADERS, 0, 1, &request("GET", "/", &[]))
        } else {
            frame(kind::CONTINUATION, 0, 1, &[])
        }
    }),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_good_client_is_served_while_floods_run() {
    let origin = Origin::h1();
    let proxy = proxy(&origin, "");
    let addr = proxy.public();
    get(addr, "/free/delay/0").await;
    let before = proxy.resident();
    let connections = Arc::new(AtomicUsize::new(0));
    let flood = async {
        let end = Instant::now() + Duration::from_millis(1500);
        let mut floods = JoinSet::new();
        for (_, bytes) in FLOODS {
            let connections = Arc::clone(&connections);
            floods.spawn(async move {
                while Instant::now() < end {
                    let mut client = H2Raw::connect(addr).await;
                    connections.fetch_add(1, SeqCst);
                    for n in (0..6000).step_by(20) {
                        let burst: Vec<u8> = (n..n + 20).flat_map(bytes).collect();
                        if Instant::now() >= end || client.try_send(burst).await.is_err() {
                            break;
                        }
                    }
                }
            });
        }
        floods.join_all().await;
    };
    let (served, longest) = beside(addr, flood).await;
    let grown = proxy.resident().saturating_sub(before);
    println!(
        "{served} answers, the slowest after {longest:?}, beside {connections:?} floods; {} KiB more",
        grown >> 10
    );
    assert!(longest < Duration::from_secs(2), "{longest:?}");
    assert!(grown < 48 * MIB, "{grown} bytes more than before");
    assert!(origin.max_in_flight() <= 8 + 1, "{} calls at once for 8 credits", origin.max_in_flight());
    assert!(eventually(|| origin.in_flight() == 0, SOON).await);
}

#[tokio::test]
async fn unread_frames_of_one_byte_are_bounded() {
    let origin = Origin::h1();
    let proxy = proxy(&origin, "");
    let mut holder = H2Raw::connect(proxy.public()).await;
    for n in 0..8 {
        holder.send(headers(2 * n + 1, true, &request("GET", "/hang", &[]))).await;
    }
    assert!(eventually(|| origin.in_flight() == 8, SOON).await);
    let before = proxy.resident();
    // Uploads that wait in the queue: nobody reads them.
    let mut client = H2Raw::connect(proxy.public()).await;
    let burst = data(1, false, b"x").repeat(500);
    client.send(headers(1, false, &request("POST", "/discard", &[]))).await;
    client.send(headers(3, false, &request("POST", "/discard", &[]))).await;
    let other = data(3, false, b"x").repeat(500);
    for _ in 0..60 {
        if client.try_send(&burst).await.is_err() || client.try_send(&other).await.is_err() {
            break;
        }
    }
    assert_eq!(client.goodbye().await, Some(code::ENHANCE_YOUR_CALM));
    let grown = proxy.resident().saturating_sub(before);
    println!("{} KiB more", grown >> 10);
    assert!(grown < 40 * MIB, "{grown} bytes more than before");
}

#[tokio::test]
async fn a_pipeline_is_served_one_by_one() {
    let origin = Origin::h1();
    let proxy = proxy(&origin, "");
    let mut client = Raw::connect(proxy.public()).await;
    let before = proxy.resident();
    // More than the connection's buffers take: the rest waits with the client.
    let requests = "GET /delay/0 HTTP/1.1\r\nhost: a\r\n\r\n".repeat(200);
    let (served, _) = beside(proxy.public(), async {
        for _ in 0..20 {
            client.send(&requests).await;
        }
    })
    .await;
    assert!(served >= 10);
    for _ in 0..50 {
        client.until("\r\n\r\nok").await;
    }
    assert!(origin.max_in_flight() <= 2, "{}", origin.max_in_flight());
    assert!(proxy.resident().saturating_sub(before) < 16 * MIB);
}

#[tokio::test]
async fn heads_that_drip_and_connections_that_idle_cost_little() {
    let origin = Origin::h1();
    let proxy = proxy(&origin, "timeout.header = \"1s\"");
    get(proxy.public(), "/free/delay/0").await;
    let before = proxy.resident();
    let mut dripping = Vec::new();
    for n in 0..300 {
        let mut client = Raw::connect(proxy.public()).await;
        client.send(if n % 2 == 0 { "GET / HTTP/1.1\r\nx: " } else { "" }).await;
        dripping.push(client);
    }
    let open = || proxy.metric("headworks_connections", &[("listener", "listen-1")]);
    assert!(eventually(|| open() > 299.5, SOON).await);
    let grown = proxy.resident().saturating_sub(before);
    let (_, longest) = beside(proxy.public(), async {
        for _ in 0..5 {
            for client in dripping.iter_mut().step_by(2) {
                client.send("a").await;
            }
            sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    println!("{} bytes for each, and the slowest answer after {longest:?}", grown / 300);
    assert!(grown / 300 < 64 * 1024, "{} bytes for each", grown / 300);
    // A drop now and then buys no time.
    assert!(eventually(|| open() < 1.5, SOON).await, "{}", open());
}

#[tokio::test]
async fn a_stuck_upload_stops_no_other_on_its_connection() {
    let stuck = [Origin::h1(), Origin::h2c()];
    let free = Origin::h2c();
    let proxy = Proxy::from_toml(&format!(
        "[upstream.h1]\nendpoints = [\"{}\"]\n[upstream.h2]\nendpoints = [\"{}\"]\n[upstream.free]\nendpoints = [\"{}\"]\n\
         [[route]]\nmatch.path = \"/h1/*\"\nupstream = \"h1\"\nstrip_prefix = \"/h1\"\n\
         [[route]]\nmatch.path = \"/h2/*\"\nupstream = \"h2\"\nstrip_prefix = \"/h2\"\n[[route]]\nupstream = \"free\"\n",
        stuck[0].url(),
        stuck[1].url(),
        free.url()
    ));
    let client = h2(proxy.public(), 1 << 16).await;
    let mut held = JoinSet::new();
    for path in ["/h1/gate", "/h2/gate"] {
        let (mut body, payload) = channel();
        let mut uploader = client.clone();
        let upload = typed("POST", proxy.public(), path, payload);
        held.spawn(async move { drop(uploader.send_request(upload).await) });
        held.spawn(async move { while body.send_data(vec![b'x'; 16 << 10].into()).await.is_ok() {} });
    }
    let is_stuck = |origin: &Origin| origin.in_flight() == 1;
    assert!(eventually(|| stuck.iter().all(is_stuck), SOON).await);
    sleep(Duration::from_millis(500)).await; // as much goes up as ever will
    // Also to the service that does not read the stuck one, over HTTP/2 too, where both would share one window.
    for (path, size) in
        [("/discard", 100_000), ("/discard", 1_000_000), ("/h1/discard", 100_000), ("/h2/discard", 1_000_000)]
    {
        let (mut body, payload) = channel();
        let mut sibling = client.clone();
        let upload = typed("POST", proxy.public(), path, payload);
        let answer = tokio::spawn(async move { sibling.send_request(upload).await });
        for _ in 0..size / 10_000 {
            timeout(SOON, body.send_data(vec![b'x'; 10_000].into())).await.expect("not slowed").expect("not cut");
        }
        drop(body);
        let answer = timeout(SOON, answer).await.expect("not slowed").unwrap().expect("an answer");
        let answer = crate::support::Answer::of(answer).await.expect("whole");
        assert_eq!(answer.text(), size.to_string());
    }
    let mut sibling = client.clone();
    let asked = sibling.send_request(typed("GET", proxy.public(), "/h1/delay/0", empty()));
    let answer = timeout(SOON, asked).await.expect("not slowed").expect("not cut");
    assert_eq!(answer.status(), 200, "also where the stuck one goes to");
    held.abort_all();
}
