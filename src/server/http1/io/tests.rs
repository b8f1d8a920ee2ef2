use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::time::timeout;

use super::*;

const BOUNDS: Bounds = Bounds { bytes: 1024, fields: 8 };
const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";

fn gate() -> (DuplexStream, GateIo<DuplexStream>, Arc<Connection>) {
    let (client, server) = duplex(64 * 1024);
    let connection = Arc::new(Connection::new("-".into(), None, None, false, Duration::from_secs(9)));
    (client, GateIo::new(server, BOUNDS, Arc::clone(&connection)), connection)
}

/// What passes until nothing more does.
async fn passed(gate: &mut GateIo<DuplexStream>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(8 * 1024);
    while let Ok(Ok(1..)) = timeout(Duration::from_millis(1), gate.read_buf(&mut bytes)).await {}
    bytes
}

#[tokio::test(start_paused = true)]
async fn a_whole_head_passes_and_a_torn_one_waits() {
    let (mut client, mut gate, connection) = gate();
    client.write_all(GET).await.unwrap();
    assert_eq!(passed(&mut gate).await, GET);
    assert_eq!(gate.held.bytes.capacity(), 0, "what passes at once is not copied");
    for (at, byte) in GET.iter().enumerate() {
        client.write_all(&[*byte]).await.unwrap();
        let expected: &[u8] = match at {
            _ if at + 1 == GET.len() => GET,
            _ => b"",
        };
        assert_eq!(passed(&mut gate).await, expected, "after byte {at}");
        assert_eq!(connection.holds_head(), at + 1 < GET.len(), "after byte {at}");
    }
    assert_eq!(gate.held.bytes.capacity(), 0, "nothing is kept behind it");
    client.write_all(b"\r\n").await.unwrap();
    assert_eq!(passed(&mut gate).await, b"", "an empty line alone begins nothing");
    client.write_all(GET).await.unwrap();
    assert_eq!(passed(&mut gate).await, [b"\r\n", GET].concat());
}

#[tokio::test(start_paused = true)]
async fn what_is_held_is_bounded() {
    let (mut client, mut gate, connection) = gate();
    client.write_all(b"GET / HTTP/1.1\r\na: ").await.unwrap();
    passed(&mut gate).await;
    client.write_all(&vec![b'a'; 20_000]).await.unwrap();
    assert!(passed(&mut gate).await.starts_with(b"GET / HTTP/1.1\r\nhost:\r\nconnection: close"));
    assert_eq!(connection.refuses(), Some((0, Reason::HeaderTooLarge)));
    assert!(gate.held.bytes.capacity() <= BOUNDS.bytes + 2 * PIECE);
}

#[tokio::test(start_paused = true)]
async fn a_malformed_body_is_an_error_behind_its_good_bytes() {
    let (mut client, mut gate, connection) = gate();
    let good = b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n";
    client.write_all(good).await.unwrap();
    client.write_all(b"\r\nGET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert_eq!(passed(&mut gate).await, good);
    let error = gate.read(&mut [0; 9]).await.unwrap_err();
    assert!(matches!(error.get_ref(), Some(cause) if cause.is::<Malformed>()), "{error:?}");
    assert_eq!(connection.refuses(), None);
}

#[tokio::test(start_paused = true)]
async fn what_follows_an_upgrade_waits_for_its_answer() {
    let ask = b"GET / HTTP/1.1\r\nupgrade: websocket\r\n\r\n";
    for switched in [true, false] {
        let (mut client, mut gate, connection) = gate();
        client.write_all(&[ask, GET, b"\0"].concat()).await.unwrap();
        assert_eq!(passed(&mut gate).await, ask);
        if switched {
            connection.become_tunnel();
            assert_eq!(passed(&mut gate).await, [GET, b"\0"].concat(), "bytes of a tunnel are anybody's");
            client.write_all(b"\0").await.unwrap();
            assert_eq!(passed(&mut gate).await, b"\0");
        } else {
            // Who waits is woken by the answer that goes out.
            let (mut read, mut write) = tokio::io::split(gate);
            let mut bytes = [0; 128];
            let mut reading = Box::pin(read.read(&mut bytes));
            assert!(timeout(Duration::from_millis(1), &mut reading).await.is_err());
            connection.refuse_switch();
            write.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            let count = timeout(Duration::from_millis(1), reading).await.expect("it was woken").unwrap();
            assert!(bytes[..count].starts_with(GET));
            assert!(!connection.has_refused_switch());
            assert_eq!(connection.refuses(), Some((2, Reason::BadRequest)));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_that_is_not_waited_for_is_refused_and_an_idle_client_is_not() {
    let (mut client, mut gate, connection) = gate();
    client.write_all(b"GET /").await.unwrap();
    assert_eq!(passed(&mut gate).await, b"");
    assert!(connection.head_since().is_some());
    connection.end_head(Reason::HeaderTimeout);
    assert!(passed(&mut gate).await.starts_with(b"- * HTTP/1.1\r\n"));
    assert_eq!(connection.refuses(), Some((0, Reason::HeaderTimeout)));

    let (_client, mut gate, connection) = self::gate();
    connection.end_head(Reason::HeaderTimeout);
    assert_eq!(gate.read(&mut [0; 9]).await.unwrap(), 0);
    assert_eq!(connection.refuses(), None);
}
