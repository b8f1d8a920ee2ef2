//! Where clients come in: unix sockets, balancers that speak for their clients, and how many may come.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use crate::support::{Answer, Certs, Flood, Origin, Proxy, Raw, empty, eventually, h2_over, request};

const SOON: Duration = Duration::from_secs(5);

/// A proxy on a unix socket, and the socket's path. The folder goes with the first value.
fn local(upstream: &str, server: &str, listener: &str) -> (tempfile::TempDir, PathBuf, Proxy) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("front.sock");
    let proxy = at(&path, upstream, server, listener);
    (dir, path, proxy)
}

fn at(path: &Path, upstream: &str, server: &str, listener: &str) -> Proxy {
    Proxy::from_toml(&format!(
        "[server]\n{server}\n[[server.listener]]\nname = \"local\"\naddress = \"unix:{}\"\n{listener}\n\
         [log]\naccess = \"json\"\n[stream]\nstall_timeout = \"1s\"\n\
         [upstream.app]\nendpoints = [\"{upstream}\"]\n[[route]]\nupstream = \"app\"\n",
        path.display()
    ))
}

async fn connect(path: &Path) -> Raw<UnixStream> {
    Raw::over(UnixStream::connect(path).await.unwrap())
}

async fn status(path: &Path) -> u16 {
    let mut client = connect(path).await;
    client.get("/").await;
    client.head().await.0
}

#[tokio::test]
async fn a_unix_socket_is_a_listener_like_any_other() {
    let origin = Origin::h1();
    let (_dir, path, mut proxy) = local(&origin.url(), "grace = \"1s\"", "mode = \"0600\"");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let mut client = connect(&path).await;
    for _ in 0..2 {
        client.send("GET /head HTTP/1.1\r\nhost: a\r\nx-forwarded-for: 192.0.2.9\r\n\r\n").await;
        let (status, fields) = client.head().await;
        let body = client.read_n(fields["content-length"].to_str().unwrap().parse().unwrap()).await;
        let seen: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((status, seen["headers"].get("x-forwarded-for")), (200, None), "{seen}");
        assert!(seen["headers"].to_string().contains("for=unknown;proto=http"), "{seen}");
    }
    assert_eq!(proxy.logged("/head").await["client"], "unix");

    // HTTP/2 by its preface, which comes in parts.
    let stream = UnixStream::connect(&path).await.unwrap();
    let mut client = h2_over(TokioIo::new(stream), 1 << 16).await;
    let answer = client.send_request(request("GET", "127.0.0.1:1".parse().unwrap(), "/h2", empty())).await.unwrap();
    assert_eq!(Answer::of(answer).await.unwrap().status, 200);
    assert_eq!(proxy.logged("/h2").await["protocol"], "HTTP/2.0");

    proxy.signal("TERM");
    assert!(proxy.wait(SOON).is_some(), "the end of the drain");
    assert!(!path.exists(), "the socket's file is left behind");
}

#[tokio::test]
async fn the_word_of_a_local_proxy_is_believed_where_unix_is_trusted() {
    let origin = Origin::h1();
    let (_dir, path, proxy) = local(&origin.url(), "trusted_proxies = [\"unix\"]", "");
    let mut client = connect(&path).await;
    client.send("GET /head HTTP/1.1\r\nhost: a\r\nx-forwarded-for: 192.0.2.9\r\n\r\n").await;
    assert_eq!(client.head().await.0, 200);
    assert_eq!(proxy.logged("/head").await["client"], "192.0.2.9");
}

#[tokio::test]
async fn a_socket_file_is_replaced_only_when_nobody_answers_on_it() {
    let origin = Origin::h1();
    let (_dir, path, mut first) = local(&origin.url(), "", "");
    let config = format!("[server]\nlisten = \"unix:{}\"\n[[route]]\nrespond = {{}}\n", path.display());
    let file = path.with_file_name("second.toml");
    std::fs::write(&file, config).unwrap();
    let second = crate::support::run(&["run", "--config", file.to_str().unwrap()]);
    let said = String::from_utf8(second.stderr).unwrap();
    assert!(!second.status.success() && said.contains("cannot listen on unix:"), "{said}");
    assert_eq!(status(&path).await, 200, "the first is still there");

    first.signal("KILL");
    assert!(first.wait(SOON).is_some());
    assert!(path.exists(), "a killed process leaves its file");
    let _third = at(&path, &origin.url(), "", "");
    assert_eq!(status(&path).await, 200);
}

#[tokio::test]
async fn a_stalled_local_reader_is_cut_and_one_that_leaves_is_noticed() {
    let flood = Flood::new();
    let (_dir, path, proxy) = local(&flood.url(), "", "");
    let mut client = connect(&path).await;
    client.get("/stalled").await;
    client.read_n(100_000).await;
    assert!(eventually(|| flood.records()[0].ended(), SOON).await, "never cut");
    assert_eq!(proxy.logged("/stalled").await["reason"], "client_stalled");

    // An upload that nobody reads, and a client that does not wait for it.
    let origin = Origin::h1();
    let (_dir, path, proxy) = local(&origin.url(), "", "");
    let mut client = connect(&path).await;
    client.send("POST /delay/60000 HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nhalf").await;
    assert!(eventually(|| origin.in_flight() == 1, SOON).await);
    drop(client);
    assert_eq!(proxy.logged("/delay/60000").await["reason"], "client_gone");
}

/// A proxy whose one listener wants headers from these peers.
/// `header` is the time for the header and all before the first request.
fn behind_balancers(upstream: &str, peers: &str, header: &str, more: &str) -> Proxy {
    Proxy::from_toml(&format!(
        "[server]\ntrusted_proxies = [\"192.0.2.200\"]\ntimeout.header = \"{header}\"\n\
         [[server.listener]]\nname = \"front\"\naddress = \"127.0.0.1:0\"\nproxy_protocol = {peers}\n{more}\n\
         [log]\naccess = \"json\"\n[upstream.app]\nendpoints = [\"{upstream}\"]\n[[route]]\nupstream = \"app\"\n\
         rate_limit = [{{ by = \"client\", rate = \"2/hour\" }}]\n"
    ))
}

/// A header of version 2 for TCP over IPv4, with a part that nobody knows.
fn v2(command: u8, source: [u8; 4]) -> Vec<u8> {
    let addresses = [&source[..], &[198, 51, 100, 9], &[0x12, 0x34], &[1, 0xbb]].concat();
    let part = [0xe0, 0, 2, b'h', b'i'];
    let length = u8::try_from(addresses.len() + part.len()).unwrap();
    [b"\r\n\r\n\0\r\nQUIT\n", &[command, 0x11, 0, length][..], &addresses, &part].concat()
}

fn refused(proxy: &Proxy, reason: &str) -> f64 {
    proxy.metric("headworks_connections_refused_total", &[("listener", "front"), ("reason", reason)])
}

#[tokio::test]
async fn a_balancer_speaks_for_its_client() {
    let origin = Origin::h1();
    let proxy = behind_balancers(&origin.url(), "[\"127.0.0.1\"]", "10s", "");
    let v1 = b"PROXY TCP4 192.0.2.1 198.51.100.9 56324 443\r\n".to_vec();
    for (number, (header, client)) in
        [(v1, "192.0.2.1"), (v2(0x21, [192, 0, 2, 2]), "192.0.2.2"), (v2(0x20, [192, 0, 2, 3]), "127.0.0.1")]
            .into_iter()
            .enumerate()
    {
        let path = format!("/head?{number}");
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nx-forwarded-for: 203.0.113.1\r\n\r\n");
        // In one piece with the request, and byte by byte.
        let mut whole = Raw::connect(proxy.public()).await;
        whole.send([&header[..], request.as_bytes()].concat()).await;
        let mut torn = Raw::connect(proxy.public()).await;
        for byte in [&header[..], request.as_bytes()].concat() {
            torn.send([byte]).await;
        }
        for mut connection in [whole, torn] {
            let (status, fields) = connection.head().await;
            let body = connection.read_n(fields["content-length"].to_str().unwrap().parse().unwrap()).await;
            let seen: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(status, 200);
            assert!(seen["headers"].to_string().contains(&format!("for={client};")), "{client}: {seen}");
            assert!(!seen.to_string().contains("203.0.113.1"), "a client is not a trusted proxy: {seen}");
        }
        // Its rate is its own: two were allowed, whoever went before.
        let mut third = Raw::connect(proxy.public()).await;
        third.send([&header[..], request.as_bytes()].concat()).await;
        assert_eq!(third.head().await.0, 429, "{client}");
    }
    assert!(eventually(|| proxy.access_log().len() == 9, SOON).await);
    let clients: Vec<_> = proxy.access_log().iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let of = |name: &str| clients.iter().filter(|line: &&serde_json::Value| line["client"] == name).count();
    assert!(of("192.0.2.1") >= 2 && of("192.0.2.2") >= 2, "{clients:?}");

    // Trust goes by the address that the header tells.
    let mut trusted = Raw::connect(proxy.public()).await;
    trusted.send(v2(0x21, [192, 0, 2, 200])).await;
    trusted.send("GET /trusted HTTP/1.1\r\nhost: a\r\nx-forwarded-for: 203.0.113.1\r\n\r\n").await;
    assert_eq!(trusted.head().await.0, 200);
    assert_eq!(proxy.logged("/trusted").await["client"], "203.0.113.1");
}

#[tokio::test]
async fn a_header_comes_before_tls_and_before_h2() {
    let (origin, certs) = (Origin::h1(), Certs::new());
    let tls = format!("tls = [{{ cert = \"{}\", key = \"{}\" }}]", certs.name("server.pem"), certs.name("server.key"));
    for (tls, path) in [(tls.as_str(), "/tls"), ("", "/plain")] {
        let proxy = behind_balancers(&origin.url(), "[\"127.0.0.0/8\"]", "10s", tls);
        let mut stream = TcpStream::connect(proxy.public()).await.unwrap();
        stream.write_all(&v2(0x21, [192, 0, 2, 2])).await.unwrap();
        let request = request("GET", "127.0.0.1:1".parse().unwrap(), path, empty());
        let answer = if tls.is_empty() {
            h2_over(TokioIo::new(stream), 1 << 16).await.send_request(request).await
        } else {
            let name = ServerName::try_from("localhost").unwrap();
            let connector = TlsConnector::from(Arc::new(certs.client(&["h2"])));
            let stream = connector.connect(name, stream).await.unwrap();
            h2_over(TokioIo::new(stream), 1 << 16).await.send_request(request).await
        };
        assert_eq!(Answer::of(answer.unwrap()).await.unwrap().status, 200);
        assert_eq!(proxy.logged(path).await["client"], "192.0.2.2");
    }
}

#[tokio::test]
async fn who_must_send_a_header_and_does_not_is_closed() {
    let origin = Origin::h1();
    let proxy = behind_balancers(&origin.url(), "\"127.0.0.1\"", "1s", "");
    for (number, wrong) in
        ["GET / HTTP/1.1\r\nhost: a\r\n\r\n", "PROXY TCP4 1.2.3.4\r\n", "PROXY TCP4 192."].into_iter().enumerate()
    {
        let mut client = Raw::connect(proxy.public()).await;
        client.send(wrong).await;
        // The last one is cut when its time is up.
        assert!(client.read_to_end().await.map_or(0, |said| said.len()) == 0, "{wrong:?}");
        let expected = number as f64 + 1.0;
        assert!(eventually(|| refused(&proxy, "proxy_protocol_malformed") >= expected, SOON).await, "{wrong:?}");
    }
    // Somebody looks whether the port is open: no fault.
    drop(Raw::connect(proxy.public()).await);
    let gone = || proxy.metric("headworks_connections", &[("listener", "front")]) < 0.1;
    assert!(eventually(gone, SOON).await);
    assert!((refused(&proxy, "proxy_protocol_malformed") - 3.0).abs() < 0.1);

    let proxy = behind_balancers(&origin.url(), "[\"10.0.0.0/8\", \"unix\"]", "1s", "");
    let mut stranger = Raw::connect(proxy.public()).await;
    assert!(stranger.read_to_end().await.map_or(0, |said| said.len()) == 0, "a word from whom nobody knows");
    assert!((refused(&proxy, "proxy_protocol_stranger") - 1.0).abs() < 0.1);
    assert!(origin.seen().is_empty());
}

/// Whether a connection is closed before it has said a word.
async fn is_turned_away(client: &mut Raw) -> bool {
    !client.is_silent(Duration::from_millis(200)).await
}

#[tokio::test]
async fn a_client_has_only_so_many_connections() {
    let origin = Origin::h1();
    let proxy = Proxy::from_toml(&format!(
        "[server]\nmax_connections_per_client = 2\ntrusted_proxies = [\"192.0.2.200\"]\n\
         [[server.listener]]\nname = \"front\"\naddress = \"127.0.0.1:0\"\nproxy_protocol = \"127.0.0.1\"\n\
         [[server.listener]]\nname = \"plain\"\naddress = \"127.0.0.1:0\"\n\
         [upstream.app]\nendpoints = [\"{}\"]\n[[route]]\nupstream = \"app\"\n",
        origin.url()
    ));
    let enter = async |header: &str| {
        let mut client = Raw::connect(proxy.addr("front")).await;
        client.send(format!("{header}\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n")).await;
        let begins = client.read_n_or_reset(12).await;
        (begins == b"HTTP/1.1 200").then_some(client)
    };
    let v6 = |source: &str| format!("PROXY TCP6 {source} ::1 1 2");
    let v4 = |source: &str| format!("PROXY TCP4 {source} 127.0.0.1 1 2");
    let [one, other] = [v6("2001:db8::1"), v6("2001:db8::2")];
    let first = enter(&one).await.expect("the first");
    let _second = enter(&other).await.expect("the second");
    assert!(enter(&one).await.is_none(), "a third of one /64");
    let _stranger = enter(&v6("2001:db8:0:1::1")).await.expect("another /64");
    let _stranger = enter(&v4("192.0.2.1")).await.expect("another address");
    let mut trusted = Vec::new();
    for _ in 0..4 {
        trusted.push(enter(&v4("192.0.2.200")).await.expect("a trusted proxy"));
    }
    assert!((refused(&proxy, "client_connections") - 1.0).abs() < 0.1);
    drop(first);
    let open = || proxy.metric("headworks_connections", &[("listener", "front")]);
    assert!(eventually(|| open() < 7.5, SOON).await);
    let _third = enter(&one).await.expect("the first one's place");

    // Over all listeners together, and before the client has said anything.
    let _plain = [Raw::connect(proxy.addr("plain")).await, Raw::connect(proxy.addr("plain")).await];
    let count = || proxy.metric("headworks_connections", &[("listener", "plain")]);
    assert!(eventually(|| count() > 1.5, SOON).await);
    let mut late = Raw::connect(proxy.addr("plain")).await;
    assert!(is_turned_away(&mut late).await);
    assert!(enter(&v4("127.0.0.1")).await.is_none(), "the same client by another door");
}

#[tokio::test]
async fn a_listener_has_only_so_many_connections() {
    let origin = Origin::h1();
    let proxy = Proxy::from_toml(&format!(
        "[[server.listener]]\nname = \"a\"\naddress = \"127.0.0.1:0\"\nmax_connections = 1\n\
         [[server.listener]]\nname = \"b\"\naddress = \"127.0.0.1:0\"\n\
         [upstream.app]\nendpoints = [\"{}\"]\n[[route]]\nupstream = \"app\"\n",
        origin.url()
    ));
    let mut first = Raw::connect(proxy.addr("a")).await;
    first.get("/").await;
    assert_eq!(first.head().await.0, 200);
    let mut second = Raw::connect(proxy.addr("a")).await;
    second.get("/").await;
    assert!(second.is_silent(Duration::from_millis(200)).await, "two where there is one place");
    let mut elsewhere = Raw::connect(proxy.addr("b")).await;
    elsewhere.get("/").await;
    assert_eq!(elsewhere.head().await.0, 200);
    drop(first);
    assert_eq!(second.head().await.0, 200, "it waited its turn");
}

#[tokio::test]
async fn a_shortage_of_descriptors_is_outlived() {
    let origin = Origin::h1();
    let proxy = Proxy::with_descriptors(
        &format!(
            "[server]\nlisten = \"127.0.0.1:0\"\n[upstream.app]\nendpoints = [\"{}\"]\n[[route]]\nupstream = \"app\"\n",
            origin.url()
        ),
        48,
    );
    let mut served = Raw::connect(proxy.public()).await;
    served.get("/").await;
    assert_eq!(served.head().await.0, 200);
    let mut flood = Vec::new();
    for _ in 0..60 {
        flood.push(Raw::connect(proxy.public()).await);
    }
    // The last to come is still told, for none of the others leaves.
    let mut last = flood.pop().unwrap();
    assert!(last.read_n_or_reset(1).await.is_empty(), "nobody serves it");
    served.read_n(2).await;
    served.get("/").await;
    assert_eq!(served.head().await.0, 200, "who is in is served on");
    drop((flood, last));
    let errors = || proxy.metric("headworks_accept_errors_total", &[]);
    let open = || proxy.metric("headworks_connections", &[]);
    assert!(eventually(|| open() < 1.5, SOON).await);
    assert!(
        errors() > 0.5 && proxy.metric("headworks_connections_refused_total", &[("reason", "no_descriptor")]) > 0.5
    );
    let said = proxy.log().lines().filter(|line| line.contains("cannot accept: clients wait")).count();
    assert!((1..=2).contains(&said), "{}", proxy.log());
    let mut next = Raw::connect(proxy.public()).await;
    next.get("/").await;
    assert_eq!(next.head().await.0, 200, "and life goes on");
}

#[tokio::test]
async fn a_port_is_shared_only_by_those_who_agree() {
    let listener = |address: &str, keys: &str| {
        format!("[[server.listener]]\nname = \"front\"\naddress = \"{address}\"\n{keys}\n[[route]]\nrespond = {{}}\n")
    };
    let mut first = Proxy::from_toml(&listener("127.0.0.1:0", "reuse_port = true"));
    let address = first.addr("front").to_string();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("alone.toml");
    std::fs::write(&file, listener(&address, "")).unwrap();
    let alone = crate::support::run(&["run", "--config", file.to_str().unwrap()]);
    assert!(!alone.status.success(), "{}", String::from_utf8_lossy(&alone.stderr));

    let second = Proxy::from_toml(&listener(&address, "reuse_port = true"));
    first.signal("KILL");
    assert!(first.wait(SOON).is_some());
    let mut client = Raw::connect(second.addr("front")).await;
    client.get("/").await;
    assert_eq!(client.head().await.0, 200);
}
