//! Floods: frames and bytes whose only use is to cost. Each ends its own connection, and nobody else notices.

use crate::support::h2_raw::{H2Raw, block, code, flag, frame, headers, kind, request, write_integer};
use crate::support::{Origin, Proxy, get};

fn proxy(origin: &Origin, server: &str) -> Proxy {
    Proxy::from_toml(&format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\n{server}\n[log]\naccess = \"json\"\n\
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
    assert!(crate::support::eventually(|| origin.in_flight() == 4, std::time::Duration::from_secs(5)).await);
    assert_eq!(origin.seen().len(), 4);
}
