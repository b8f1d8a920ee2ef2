//! The command line: what it prints, and how it ends.

use std::process::Output;
use std::time::Duration;

use tokio::time::Instant;

use crate::support::{Answer, Origin, Proxy, Raw, empty, eventually, get, h2, request, run};

const SOON: Duration = Duration::from_secs(5);

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn check(config: &str) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("headworks.toml");
    std::fs::write(&file, config).unwrap();
    run(&["check", "--config", file.to_str().unwrap()])
}

#[test]
fn version_and_help_are_there() {
    let version = run(&["--version"]);
    assert_eq!(version.status.code(), Some(0));
    assert!(text(&version.stdout).contains(env!("CARGO_PKG_VERSION")));
    let help = run(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    for command in ["run", "check", "explain", "schema", "demo"] {
        assert!(text(&help.stdout).contains(command), "{command} is not in the help");
        let help = run(&[command, "--help"]);
        assert_eq!(help.status.code(), Some(0));
        assert!(text(&help.stdout).contains("Example"), "the help of `{command}` has no example");
    }
}

#[test]
fn bad_usage_ends_with_2() {
    for args in [&["--no-such-option"][..], &["no-such-command"], &["run"], &["--upstream", "not a url"]] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", text(&output.stderr));
        assert!(!output.stderr.is_empty());
    }
}

#[test]
fn a_good_file_passes_the_check() {
    let output = check("[upstream.app]\nendpoints = [\"http://127.0.0.1:1\"]\n[[route]]\nupstream = \"app\"\n");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/config.example.toml");
    let output = run(&["check", "--config", example]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

#[test]
fn all_faults_of_a_file_are_told_at_once() {
    let output = check(
        "[upstream.app]\nendpoints = [\"http://127.0.0.1:1\"]\nqueue = { mx = 3, timeout = \"soon\" }\n\
         [[route]]\nupstream = \"ap\"\n",
    );
    assert_eq!(output.status.code(), Some(2));
    let told = text(&output.stderr);
    for part in ["headworks.toml", "mx", "max", "soon", "app", "^"] {
        assert!(told.contains(part), "no {part:?} in:\n{told}");
    }
    for line in [":3:", ":5:"] {
        assert!(told.contains(line), "no line number {line} in:\n{told}");
    }
}

#[test]
fn a_missing_file_is_told_plainly() {
    let output = run(&["run", "--config", "/no/such/file.toml"]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("/no/such/file.toml"));
}

#[test]
fn a_taken_address_ends_with_1() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("headworks.toml");
    let address = taken.local_addr().unwrap().to_string();
    let route = "[[route]]\nrespond = { status = 204 }\n";
    std::fs::write(&file, format!("[server]\nlisten = [\"{address}\"]\n{route}")).unwrap();
    let output = run(&["run", "--config", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains(&address), "{}", text(&output.stderr));
}

#[test]
fn explain_shows_the_layers_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("headworks.toml");
    std::fs::write(
        &file,
        "[upstream.app]\nendpoints = [\"http://127.0.0.1:1\"]\nlimit = { in_flight = 7 }\n\
         [[route]]\nname = \"chat\"\nupstream = \"app\"\n\
         rate_limit = [{ name = \"r\", by = \"client\", rate = \"3/min\" }]\n\
         [[route]]\nname = \"other\"\nmatch = { path = \"/other\" }\nrespond = { status = 204 }\n",
    )
    .unwrap();
    let file = file.to_str().unwrap();
    let output = run(&["explain", "--config", file, "--route", "chat"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let told = text(&output.stdout);
    let places = ["rate_limit", "admission"].map(|layer| told.find(layer).unwrap_or_else(|| panic!("{layer}: {told}")));
    assert!(places[0] < places[1], "a rate limit stands above admission:\n{told}");
    assert!(told.contains('7') && !told.contains("other"), "{told}");
    let all = run(&["explain", "--config", file]);
    assert!(text(&all.stdout).contains("chat") && text(&all.stdout).contains("other"));
    let none = run(&["explain", "--config", file, "--route", "chta"]);
    assert_eq!(none.status.code(), Some(2));
    assert!(text(&none.stderr).contains("chat"), "the nearest name is told: {}", text(&none.stderr));
}

#[test]
fn the_schema_is_a_json_schema() {
    let output = run(&["schema"]);
    assert_eq!(output.status.code(), Some(0));
    let schema: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    for key in ["server", "admin", "log", "stream", "upstream", "route"] {
        assert!(schema["properties"].get(key).is_some(), "{key} is not in the schema");
    }
}

#[tokio::test]
async fn one_address_is_a_whole_configuration() {
    let origin = Origin::h1();
    let proxy = Proxy::with_args(&["--upstream", &origin.url(), "--listen", "127.0.0.1:0"], 1);
    assert_eq!(get(proxy.public(), "/delay/1").await.text(), "ok");
}

#[tokio::test]
async fn the_demo_streams_tokens_and_says_how_to_see_them() {
    let proxy = Proxy::with_args(&["demo", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"], 2);
    let said = || proxy.access_log().join("\n") + &proxy.log();
    assert!(said().matches("curl ").count() >= 3, "{}", said());
    let mut client = Raw::connect(proxy.public()).await;
    let body = r#"{"model":"demo","stream":true,"messages":[{"role":"user","content":"hi"}]}"#;
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: ";
    client.send(format!("{head}{}\r\n\r\n{body}", body.len())).await;
    let (status, headers) = client.head().await;
    assert_eq!(status, 200);
    assert!(headers["content-type"].to_str().unwrap().starts_with("text/event-stream"));
    client.until("data: [DONE]").await;
}

#[tokio::test]
async fn health_asks_the_admin_port() {
    let proxy = Proxy::from_toml("[[route]]\nrespond = { status = 204 }\n");
    let admin = proxy.admin().to_string();
    assert_eq!(run(&["health", "--admin", &admin]).status.code(), Some(0));
    drop(proxy);
    assert_eq!(run(&["health", "--admin", &admin]).status.code(), Some(1));
}

#[tokio::test]
async fn a_drain_lets_requests_finish_and_ends_with_0() {
    let origin = Origin::h1();
    let mut proxy = Proxy::from_toml(&format!(
        "[upstream.app]\nendpoints = [\"{}\"]\n[[route]]\nupstream = \"app\"\n",
        origin.url()
    ));
    let mut client = Raw::connect(proxy.public()).await;
    client.get("/sse-gate").await;
    assert_eq!(client.head().await.0, 200);
    proxy.signal("TERM");
    let log = || proxy.log().contains("drain");
    assert!(eventually(log, Duration::from_secs(2)).await, "{}", proxy.log());
    origin.open_gate(1);
    client.until("data: [DONE]").await;
    let status = proxy.wait(Duration::from_secs(5)).expect("it ends once the last request has");
    assert_eq!(status.code(), Some(0));
}

/// A proxy that drains for so long, its upstream the origin.
fn draining(origin: &Origin, grace: &str) -> Proxy {
    Proxy::from_toml(&format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\ngrace = \"{grace}\"\n[log]\naccess = \"json\"\n\
         [upstream.app]\nendpoints = [\"{}\"]\n[[route]]\nupstream = \"app\"\n",
        origin.url()
    ))
}

async fn drains(proxy: &Proxy) {
    assert!(eventually(|| proxy.log().contains("draining"), SOON).await, "{}", proxy.log());
}

/// An open tunnel, which has been used.
async fn tunnel(proxy: &Proxy) -> Raw {
    let mut tunnel = Raw::tunnel(proxy.public()).await;
    tunnel.send("ping").await;
    assert_eq!(tunnel.read_n(4).await, b"ping");
    tunnel
}

/// The tunnel is over for both sides, and the log says why.
async fn assert_drained(proxy: &Proxy, tunnel: &mut Raw, origin: &Origin) {
    assert!(tunnel.read_to_end().await.map_or(true, |rest| rest.is_empty()), "nothing comes after the cut");
    assert!(eventually(|| origin.in_flight() == 0, SOON).await, "the upstream does not learn of the end");
    let line = proxy.logged("/tunnel").await;
    assert_eq!((&line["status"], &line["reason"]), (&101.into(), &"drained".into()), "{line}");
}

#[tokio::test]
async fn a_tunnel_is_cut_when_the_grace_is_over() {
    const GRACE: Duration = Duration::from_millis(500);
    let origin = Origin::h1();
    let mut proxy = draining(&origin, "500ms");
    let mut tunnel = tunnel(&proxy).await;
    let start = Instant::now();
    proxy.signal("TERM");
    drains(&proxy).await;
    tunnel.send("pong").await;
    assert_eq!(tunnel.read_n(4).await, b"pong", "it stands through the grace");
    let status = proxy.wait(SOON).expect("it ends after the grace");
    let took = start.elapsed();
    assert!(took >= GRACE && took < GRACE + Duration::from_secs(1), "{took:?}");
    assert_eq!(status.code(), Some(0));
    assert_drained(&proxy, &mut tunnel, &origin).await;
}

#[tokio::test]
async fn a_stream_is_cut_when_the_grace_is_over() {
    let origin = Origin::h1();
    let mut proxy = draining(&origin, "300ms");
    let mut client = Raw::connect(proxy.public()).await;
    client.get("/sse-gate").await;
    client.head().await;
    client.until("data: open\n\n").await;
    let multiplexed = h2(proxy.public(), 1 << 16).await;
    let ask = request("GET", proxy.public(), "/hold", empty());
    let answer = multiplexed.clone().send_request(ask).await.unwrap();
    proxy.signal("TERM");
    let rest = client.read_to_end().await.unwrap_or_default();
    assert!(!rest.ends_with(b"0\r\n\r\n"), "the end of a cut body was forged");
    assert!(Answer::of(answer).await.is_err(), "the end of a cut body was forged");
    assert_eq!(proxy.wait(SOON).expect("it ends after the grace").code(), Some(0));
    for path in ["/sse-gate", "/hold"] {
        let line = proxy.logged(path).await;
        assert_eq!(line["reason"], "drained", "{line}");
    }
    assert!(eventually(|| origin.in_flight() == 0, SOON).await);
}

#[tokio::test]
async fn a_connection_without_a_request_does_not_hold_up_the_end() {
    let origin = Origin::h1();
    let mut proxy = draining(&origin, "30s");
    let mut silent = Raw::connect(proxy.public()).await;
    let mut torn = Raw::connect(proxy.public()).await;
    torn.send("PRI * HT").await;
    let mut used = Raw::connect(proxy.public()).await;
    used.get("/status/204").await;
    assert_eq!(used.head().await.0, 204);
    let mut multiplexed = h2(proxy.public(), 1 << 16).await;
    let ask = request("GET", proxy.public(), "/status/204", empty());
    assert_eq!(multiplexed.send_request(ask).await.unwrap().status(), 204);
    let open = || proxy.metric("headworks_connections", &[]) > 3.5;
    assert!(eventually(open, SOON).await, "all four are accepted");
    let start = Instant::now();
    proxy.signal("TERM");
    // The bytes of a torn head lie unread, so that one may see a reset.
    assert!(silent.read_to_end().await.unwrap().is_empty() && used.read_to_end().await.unwrap().is_empty());
    drop(used);
    // The h2 client has a word in this, so nothing may block here.
    let ended = eventually(|| proxy.wait(Duration::ZERO).is_some(), Duration::from_secs(2)).await;
    let took = start.elapsed();
    assert!(ended && took < Duration::from_secs(2), "it waits {took:?} for those who have nothing to say");
    assert_eq!(proxy.wait(Duration::ZERO).unwrap().code(), Some(0));
    assert!(!proxy.log().contains("cut at the end"), "{}", proxy.log());
    assert_eq!(origin.seen().len(), 2);
}

#[tokio::test]
async fn a_second_signal_ends_the_grace() {
    for second in ["TERM", "INT"] {
        let origin = Origin::h1();
        let mut proxy = draining(&origin, "30s");
        let mut tunnel = tunnel(&proxy).await;
        proxy.signal("TERM");
        drains(&proxy).await;
        tunnel.send("pong").await;
        assert_eq!(tunnel.read_n(4).await, b"pong", "it stands through the grace");
        proxy.signal(second);
        let status = proxy.wait(Duration::from_secs(3)).expect("it ends at once");
        assert_eq!(status.code(), Some(0));
        assert_drained(&proxy, &mut tunnel, &origin).await;
    }
}

#[tokio::test]
async fn values_may_come_from_the_environment_or_a_file() {
    let origin = Origin::h1();
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "from-file\n").unwrap();
    let config = format!(
        "[upstream.app]\nendpoints = [\"{}\"]\n[[route]]\nupstream = \"app\"\n\
         headers = {{ request = {{ set = {{ x-env = {{ env = \"TEST_SECRET\" }}, x-file = {{ file = \"{}\" }} }} }} }}\n",
        origin.url(),
        secret.display()
    );
    let proxy = Proxy::with_env(&config, &[("TEST_SECRET", "from-env")]);
    get(proxy.public(), "/").await;
    let seen = origin.last().headers;
    assert_eq!((seen["x-env"].to_str().unwrap(), seen["x-file"].to_str().unwrap()), ("from-env", "from-file"));
}
