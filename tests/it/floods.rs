//! Floods: frames and bytes whose only use is to cost. Each ends its own connection, and nobody else notices.

use std::time::Duration;

use crate::support::h2_raw::{
    H2Raw, block, code, data, flag, frame, headers, kind, ping, priority, request, reset, settings, window_update,
    write_integer,
};
use crate::support::{Origin, Proxy, eventually, get};

const SOON: Duration = Duration::from_secs(5);

fn proxy(origin: &Origin, server: &str) -> Proxy {
    Proxy::from_toml(&format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\n{server}\n[log]\naccess = \"off\"\n\
         [upstream.app]\nendpoints = [\"{}\"]\n[[route]]\nupstream = \"app\"\n",
        origin.url()
    ))
}

#[tokio::test]
async fn a_field_block_without_end_is_told_to_calm_down() {
    let origin = Origin::h1();
    let proxy = proxy(&origin, "");
    let mut client = H2Raw::connect(proxy.public()).await;
    client.send(frame(kind::HEADERS, flag::END_STREAM, 1, &request("GET", "/delay/0", &[]))).await;
    for _ in 0..10_000 {
        if client.try_send(frame(kind::CONTINUATION, 0, 1, &[])).await.is_err() {
            break;
        }
    }
    assert_eq!(client.goodbye().await, Some(code::ENHANCE_YOUR_CALM));
    assert!(origin.seen().is_empty());
    assert_eq!(get(proxy.public(), "/delay/0").await.status, 200);
}

/// One field of 3900 bytes that goes into the table of this direction, and is then named by one byte each.
fn bomb(times: usize) -> Vec<u8> {
    let mut bomb = request("GET", "/delay/0", &[]);
    bomb.extend_from_slice(&[0x40, 1, b'a']);
    write_integer(&mut bomb, 7, 0, 3900);
    bomb.extend_from_slice(&[b'x'; 3900]);
    bomb.resize(bomb.len() + times, 0xbe);
    bomb
}

#[tokio::test]
async fn a_small_block_that_unpacks_to_a_large_one_is_refused() {
    let origin = Origin::h1();
    let proxy = proxy(&origin, "");
    let mut client = H2Raw::connect(proxy.public()).await;
    client.send(headers(1, true, &bomb(8))).await;
    assert_eq!(client.status(1).await, 431);
    client.send(headers(3, true, &request("GET", "/delay/0", &[]))).await;
    assert_eq!(client.status(3).await, 200, "the connection lives on");
    client.send(headers(5, true, &bomb(4000))).await;
    assert_eq!(client.goodbye().await, Some(code::ENHANCE_YOUR_CALM));
    assert_eq!(origin.seen().len(), 1);
}

#[tokio::test]
async fn streams_beyond_the_bound_are_refused_one_by_one() {
    let origin = Origin::h1();
    let proxy = proxy(&origin, "max_streams = 4");
    let mut client = H2Raw::connect(proxy.public()).await;
    let hang = block(&[(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/hang")]);
    let burst: Vec<u8> = (0..12).flat_map(|n| headers(2 * n + 1, true, &hang)).collect();
    client.send(&burst).await;
    for n in 4..12 {
        let refused = client.next().await.expect("an answer");
        assert_eq!((refused.kind, refused.stream, refused.code()), (kind::RST_STREAM, 2 * n + 1, 7));
    }
    assert!(eventually(|| origin.in_flight() == 4, SOON).await);
    assert_eq!(origin.seen().len(), 4);
}

/// Waits until so many connections ended so.
async fn ended(proxy: &Proxy, reason: &str, count: u32) -> bool {
    let counted = || proxy.metric("headworks_connections_ended_total", &[("reason", reason)]);
    eventually(|| (counted() - f64::from(count)).abs() < 0.1, SOON).await
}

/// Sends `bytes` again and again until the proxy has had enough, and gives what it said.
async fn flood(client: &mut H2Raw, bytes: &[u8], most: usize) -> Option<u32> {
    for _ in 0..most {
        if client.try_send(bytes).await.is_err() {
            break;
        }
    }
    client.goodbye().await
}

#[tokio::test]
async fn frames_that_carry_nothing_end_their_connection() {
    let origin = Origin::h1();
    let proxy = proxy(&origin, "");
    let upload = headers(1, false, &request("POST", "/hang", &[]));
    let floods: [(&str, Vec<u8>, Vec<u8>); 7] = [
        ("settings", Vec::new(), settings(&[(4, 65_535)])),
        ("pings", Vec::new(), ping([7; 8])),
        ("priorities", Vec::new(), priority(3, 0)),
        ("window updates", Vec::new(), window_update(0, 1)),
        ("resets of a stream that is over", [upload.clone(), reset(1, code::CANCEL)].concat(), reset(1, code::CANCEL)),
        ("empty data", upload.clone(), data(1, false, &[])),
        ("frames of no known type", Vec::new(), frame(0xbe, 0, 0, &[])),
    ];
    for (what, first, again) in floods {
        let mut client = H2Raw::connect(proxy.public()).await;
        client.send(first).await;
        let said = flood(&mut client, &again.repeat(50), 200).await;
        assert_eq!(said, Some(code::ENHANCE_YOUR_CALM), "after {what}");
        assert_eq!(get(proxy.public(), "/delay/0").await.status, 200);
    }
    assert!(ended(&proxy, "client_flood", 6).await, "empty data are bounded by h2 itself");
    assert!(ended(&proxy, "h2_enhance_your_calm", 1).await);
    assert!(eventually(|| origin.in_flight() == 0, SOON).await);
}

#[tokio::test]
async fn a_stream_reset_in_the_breath_that_opened_it_reaches_no_upstream() {
    let origin = Origin::h1();
    let proxy = proxy(&origin, "");
    let mut client = H2Raw::connect(proxy.public()).await;
    let pair = |n: u32| [headers(n, true, &request("GET", "/hang", &[])), reset(n, code::CANCEL)].concat();
    client.send((0..60).flat_map(|n| pair(2 * n + 1)).collect::<Vec<u8>>()).await;
    client.send(headers(201, true, &request("GET", "/delay/0", &[]))).await;
    assert_eq!(client.status(201).await, 200, "sixty are within the budget");
    assert_eq!(origin.seen().len(), 1, "and cost the upstream nothing");
}

#[tokio::test]
async fn rapid_reset_ends_when_the_budget_does() {
    let origin = Origin::h1();
    let proxy = Proxy::from_toml(&format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\n[log]\naccess = \"off\"\n[upstream.app]\nendpoints = [\"{}\"]\n\
         limit.in_flight = 4\n[[route]]\nupstream = \"app\"\n",
        origin.url()
    ));
    let mut client = H2Raw::connect(proxy.public()).await;
    for n in 0..130 {
        let stream = 2 * n + 1;
        if client.try_send(headers(stream, true, &request("GET", "/hang", &[]))).await.is_err() {
            break;
        }
        // The reset comes by itself, when the request may be under way.
        tokio::time::sleep(Duration::from_millis(1)).await;
        if client.try_send(reset(stream, code::CANCEL)).await.is_err() {
            break;
        }
    }
    assert_eq!(client.goodbye().await, Some(code::ENHANCE_YOUR_CALM));
    assert!(origin.max_in_flight() <= 4, "{}", origin.max_in_flight());
    assert!(origin.seen().len() <= 110, "{} calls began for a budget of 100", origin.seen().len());
    drop(client);
    assert!(ended(&proxy, "cancel_budget", 1).await);
    assert!(proxy.log().contains("reason=cancel_budget"), "{}", proxy.log());
    assert!(eventually(|| origin.in_flight() == 0, SOON).await, "every call was cancelled");
    assert_eq!(get(proxy.public(), "/delay/0").await.status, 200);
}

#[tokio::test]
async fn who_takes_its_answers_may_cancel_for_ever() {
    let origin = Origin::h1();
    let proxy = proxy(&origin, "cancel_budget = 5");
    let mut client = H2Raw::connect(proxy.public()).await;
    for n in 0..60 {
        let stream = 6 * n + 1;
        client.send(headers(stream, true, &request("GET", "/hang", &[]))).await;
        client.send(headers(stream + 2, true, &request("GET", "/delay/0", &[]))).await;
        client.send(headers(stream + 4, true, &request("GET", "/delay/0", &[]))).await;
        client.status(stream + 2).await;
        client.send(reset(stream, code::CANCEL)).await;
    }
    client.send(headers(1001, true, &request("GET", "/delay/0", &[]))).await;
    assert_eq!(client.status(1001).await, 200);
}

/// The frames that open a stream and have it reset.
type Trick = Box<dyn Fn(u32) -> [Vec<u8>; 2]>;

/// What a client can do to make the proxy reset its stream (CVE-2025-8671), after the request has begun.
#[tokio::test]
async fn made_you_reset_is_paid_for_like_a_reset() {
    let hang = |stream| headers(stream, true, &request("GET", "/hang", &[]));
    let upload = |stream| headers(stream, false, &request("POST", "/hang", &[("content-length", "5")]));
    let tricks: [(&str, Trick); 4] = [
        ("a window beyond the largest", Box::new(move |n| [hang(n), window_update(n, 0x7fff_ffff)])),
        ("a body longer than its length", Box::new(move |n| [upload(n), data(n, false, &[0; 10])])),
        ("a body shorter than its length", Box::new(move |n| [upload(n), data(n, true, &[0; 2])])),
        ("trailers that end nothing", Box::new(move |n| [upload(n), headers(n, false, &block(&[("x", "y")]))])),
    ];
    for (what, trick) in tricks {
        let origin = Origin::h1();
        let proxy = proxy(&origin, "cancel_budget = 20");
        let mut client = H2Raw::connect(proxy.public()).await;
        'flood: for n in 0..40 {
            for bytes in trick(2 * n + 1) {
                if client.try_send(bytes).await.is_err() {
                    break 'flood;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        assert_eq!(client.goodbye().await, Some(code::ENHANCE_YOUR_CALM), "{what}");
        assert!(origin.seen().len() <= 30, "{what}: {} calls began", origin.seen().len());
        drop(client);
        assert!(ended(&proxy, "cancel_budget", 1).await, "{what}");
        assert!(eventually(|| origin.in_flight() == 0, SOON).await, "{what}: every call was cancelled");
    }
}
