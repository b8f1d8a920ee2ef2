//! Where clients come in: unix sockets.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use crate::support::{Answer, Flood, Origin, Proxy, Raw, empty, eventually, h2_over, request};

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
