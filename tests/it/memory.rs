//! One budget of bytes over all that is buffered.

use std::time::Duration;

use crate::support::h2_raw::{H2Raw, code, headers, request, reset};
use crate::support::{Flood, Origin, Proxy, Raw, eventually};

const SOON: Duration = Duration::from_secs(5);
const KIB: u64 = 1 << 10;
/// As the manual says, with the default buffers.
const CONNECTION: u64 = 64 * KIB;
const REQUEST: u64 = 96 * KIB;
const UPLOAD: u64 = 96 * KIB;

fn proxy(upstream: &str) -> Proxy {
    Proxy::from_toml(&format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\nmemory = \"4MiB\"\noverload.memory = \"off\"\n[log]\naccess = \"off\"\n[stream]\n\
         stall_timeout = \"10m\"\n[upstream.app]\nendpoints = [\"{upstream}\"]\nlimit.in_flight = 10000\n\
         [[route]]\nupstream = \"app\"\n"
    ))
}

fn reserved(proxy: &Proxy) -> u64 {
    proxy.metric("headworks_memory_reserved_bytes", &[]) as u64
}

fn ask(stream: u32, path: &str) -> Vec<u8> {
    headers(stream, true, &request("GET", path, &[]))
}

#[tokio::test]
async fn a_request_without_room_is_told_when_to_come_back() {
    let origin = Origin::h1();
    let proxy = proxy(&origin.url());
    let room = (4096 * KIB - CONNECTION) / REQUEST;
    let mut client = H2Raw::connect(proxy.public()).await;
    for n in 0..room {
        client.send(ask(2 * n as u32 + 1, "/hang")).await;
    }
    assert!(eventually(|| origin.in_flight() == room as usize, SOON).await, "{}", origin.in_flight());
    assert_eq!(reserved(&proxy), CONNECTION + room * REQUEST);

    client.send(ask(1001, "/delay/0")).await;
    let refusal = client.stream(1001).await;
    let fields = refusal[0].fields();
    let field = |name: &str| fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
    assert_eq!(field(":status").as_deref(), Some("503"));
    assert!(field("retry-after").is_some_and(|value| ["1", "2", "3"].contains(&&*value)), "{fields:?}");
    assert!(field("proxy-status").is_some_and(|value| value.contains("memory_exhausted")), "{fields:?}");
    assert_eq!(origin.seen().len(), room as usize);

    client.send(reset(1, code::CANCEL)).await;
    assert!(eventually(|| origin.in_flight() == room as usize - 1, SOON).await);
    assert!(eventually(|| reserved(&proxy) == CONNECTION + (room - 1) * REQUEST, SOON).await);
    client.send(ask(1003, "/delay/0")).await;
    assert_eq!(client.status(1003).await, 200, "there is room again");
    drop(client);
    assert!(eventually(|| reserved(&proxy) == 0, SOON).await, "{} are never given back", reserved(&proxy));
}

#[tokio::test]
async fn a_body_is_part_of_what_a_request_reserves() {
    let origin = Origin::h1();
    let proxy = proxy(&origin.url());
    let mut client = H2Raw::connect(proxy.public()).await;
    client.send(headers(1, false, &request("POST", "/hang", &[]))).await;
    assert!(eventually(|| origin.in_flight() == 1, SOON).await);
    assert_eq!(reserved(&proxy), CONNECTION + REQUEST + UPLOAD);
}

#[tokio::test]
async fn connections_without_room_wait_in_the_backlog() {
    let origin = Origin::h1();
    let proxy = proxy(&origin.url());
    let mut clients = Vec::new();
    for _ in 0..48 {
        let mut client = Raw::connect(proxy.public()).await;
        client.get("/delay/0").await;
        client.until("ok").await;
        clients.push(client);
    }
    // They have three quarters; the rest is for requests.
    assert!(eventually(|| reserved(&proxy) == 48 * CONNECTION, SOON).await, "{}", reserved(&proxy));
    let mut late = Raw::connect(proxy.public()).await;
    late.get("/delay/0").await;
    assert!(late.is_silent(Duration::from_millis(200)).await);
    clients[7].get("/delay/0").await;
    clients[7].until("ok").await;
    clients.pop();
    late.until("ok").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_is_held_stays_below_what_is_reserved() {
    let flood = Flood::new();
    let proxy = proxy(&flood.url());
    // The first stream makes what is made once.
    let mut clients = vec![H2Raw::with_settings(proxy.public(), &[(4, 64 << 10)]).await];
    clients[0].send(ask(1, "/warm")).await;
    assert!(eventually(|| flood.records().len() == 1, SOON).await);
    let before = proxy.resident();
    for round in 0..3 {
        // Windows that are far larger than the socket takes, and a client that reads nothing.
        let mut client = H2Raw::with_settings(proxy.public(), &[(4, 1 << 20)]).await;
        for n in 0..11 {
            client.send(ask(2 * n + 1, &format!("/{round}/{n}"))).await;
        }
        clients.push(client);
    }
    assert!(eventually(|| flood.records().len() == 34, SOON).await, "{}", flood.records().len());
    let silent = || flood.records().iter().all(|record| record.silence() > Duration::from_millis(200));
    assert!(eventually(silent, 4 * SOON).await);
    let grown = proxy.resident().saturating_sub(before);
    println!("held by 33 stalled streams: {} KiB of {} KiB reserved", grown / KIB, reserved(&proxy) / KIB);
    assert!(grown < 6 << 20, "{grown} bytes where 4 MiB may be reserved");
    clients.clear();
    assert!(eventually(|| reserved(&proxy) == 0, SOON).await);
}
