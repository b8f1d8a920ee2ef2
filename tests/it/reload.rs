//! Another configuration is taken up while requests run: whole or not at all, without a request that fails, and
//! without forgetting what was learned.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use tokio::net::TcpStream;

use crate::support::{Certs, Origin, Proxy, Raw, empty, eventually, get, h1, h2, h2_tls, request};

const SOON: Duration = Duration::from_secs(10);

/// A route that answers with this text.
fn says(text: &str) -> String {
    format!("[[route]]\nname = \"fixed\"\nrespond.body = \"{text}\"\n")
}

fn forwards(origin: &Origin, more: &str) -> String {
    format!(
        "[upstream.app]\nendpoints = [\"{}\"]\n{more}\n[[route]]\nname = \"app\"\nupstream = \"app\"\n",
        origin.url()
    )
}

async fn eventually_says(addr: SocketAddr, text: &str) {
    for _ in 0..1000 {
        if get(addr, "/").await.text() == text {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it never says {text}");
}

#[tokio::test]
async fn a_signal_brings_another_file_in_force_and_a_bad_one_changes_nothing() {
    let proxy = Proxy::from_toml(&says("one"));
    assert_eq!(get(proxy.public(), "/").await.text(), "one");
    proxy.reload(&says("two")).await;
    assert_eq!(get(proxy.public(), "/").await.text(), "two");
    assert!(proxy.page("/stack").1.contains("route fixed"));

    proxy.rewrite(&says("three").replace("respond", "repsond"));
    proxy.signal("HUP");
    let refused = || proxy.metric("headworks_reloads_total", &[("result", "refused")]) > 0.5;
    assert!(eventually(refused, SOON).await, "{}", proxy.log());
    assert_eq!((get(proxy.public(), "/").await.text().as_str(), proxy.generation()), ("two", 2));
    let log = proxy.log();
    assert!(log.contains("did you mean `respond`?") && log.contains("headworks.toml:"), "{log}");
    let (status, page) = proxy.page("/reload");
    assert!(status == 200 && page.contains("refused") && page.contains("did you mean `respond`?"), "{page}");

    let (status, why) = proxy.ask_admin("POST", "/reload", "");
    assert!(status == 422 && why.contains("did you mean `respond`?"), "{status} {why}");
    proxy.rewrite(&says("four"));
    let (status, told) = proxy.ask_admin("POST", "/reload", "");
    assert!(status == 200 && told.contains("applied"), "{status} {told}");
    assert_eq!((get(proxy.public(), "/").await.text().as_str(), proxy.generation()), ("four", 3));
    let applied = proxy.metric("headworks_reloads_total", &[("result", "applied")]);
    assert!((applied - 2.0).abs() < 0.1 && proxy.metric("headworks_config_loaded_timestamp_seconds", &[]) > 1e9);
}

#[tokio::test]
async fn without_a_file_there_is_nothing_to_read_again() {
    let origin = Origin::h1();
    let proxy = Proxy::with_args(&["--upstream", &origin.url(), "--listen", "127.0.0.1:0"], 1);
    proxy.signal("HUP");
    assert!(eventually(|| proxy.log().contains("there is no file to read"), SOON).await, "{}", proxy.log());
    assert_eq!(get(proxy.public(), "/delay/1").await.text(), "ok");
}

#[tokio::test]
async fn a_change_of_content_is_noticed_in_every_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("a"), "one\n").unwrap();
    std::os::unix::fs::symlink(path("a"), path("link")).unwrap();
    let body = format!("{{ file = \"{}\" }}", path("link").display());
    let text = says("").replace("\"\"", &body) + "[server]\nlisten = [\"127.0.0.1:0\"]\nwatch = \"50ms\"\n";
    let proxy = Proxy::from_toml(&text);
    assert_eq!(get(proxy.public(), "/").await.text(), "one");
    // As Kubernetes does it.
    std::fs::write(path("b"), "two\n").unwrap();
    std::os::unix::fs::symlink(path("b"), path("new")).unwrap();
    std::fs::rename(path("new"), path("link")).unwrap();
    eventually_says(proxy.public(), "two").await;
    // In place, as `echo` does it.
    std::fs::write(path("b"), "three\n").unwrap();
    eventually_says(proxy.public(), "three").await;
    // As editors do it.
    proxy.rewrite(&(says("four") + "[server]\nlisten = [\"127.0.0.1:0\"]\nwatch = \"off\"\n"));
    eventually_says(proxy.public(), "four").await;
    // Nobody looks any more.
    let generation = proxy.generation();
    proxy.rewrite(&(says("five") + "[server]\nlisten = [\"127.0.0.1:0\"]\nwatch = \"50ms\"\n"));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(proxy.generation(), generation);
    proxy.signal("HUP");
    eventually_says(proxy.public(), "five").await;
    // What is wrong in a file that is new to the configuration is put right there.
    let broken = format!("{{ file = \"{}\" }}", path("late").display());
    proxy.rewrite(&(says("").replace("\"\"", &broken) + "[server]\nlisten = [\"127.0.0.1:0\"]\nwatch = \"50ms\"\n"));
    assert!(eventually(|| proxy.log().contains("not taken up"), SOON).await, "{}", proxy.log());
    std::fs::write(path("late"), "six").unwrap();
    eventually_says(proxy.public(), "six").await;
}

#[tokio::test]
async fn another_certificate_needs_no_other_socket() {
    let (old, new) = (Certs::new(), Certs::new());
    let text = format!(
        "{}[server]\nwatch = \"50ms\"\n[[server.listener]]\nname = \"tls\"\naddress = \"127.0.0.1:0\"\n\
         tls = [{{ cert = \"{}\", key = \"{}\" }}]\n",
        says("ok"),
        old.name("server.pem"),
        old.name("server.key")
    );
    let proxy = Proxy::from_toml(&text);
    let addr = proxy.addr("tls");
    let mut before = h2_tls(addr, old.client(&["h2"])).await;
    // Half of a pair fits to nothing.
    std::fs::copy(new.path("server.pem"), old.path("server.pem")).unwrap();
    assert!(eventually(|| proxy.log().contains("not taken up"), SOON).await, "{}", proxy.log());
    assert_eq!(proxy.generation(), 1);
    drop(h2_tls(addr, old.client(&["h2"])).await);
    std::fs::copy(new.path("server.key"), old.path("server.key")).unwrap();
    assert!(eventually(|| proxy.generation() == 2, SOON).await, "{}", proxy.log());
    let mut after = h2_tls(addr, new.client(&["h2"])).await;
    for sender in [&mut before, &mut after] {
        assert_eq!(sender.send_request(request("GET", addr, "/", empty())).await.unwrap().status(), 200);
    }
}

#[tokio::test]
async fn what_was_learned_is_kept() {
    let origin = Origin::h1();
    let limited = "[[route]]\nname = \"limited\"\nmatch.path = \"/limited\"\nrespond.status = 204\n\
                   rate_limit = [{ name = \"r\", by = \"all\", rate = \"1/hour\" }]\n";
    let app = |limit: &str| forwards(&origin, &format!("{limit}\npool.idle_timeout = \"60s\"")) + limited;
    let proxy = Proxy::from_toml(&app("limit.in_flight = 1"));
    let statuses = [get(proxy.public(), "/limited").await.status, get(proxy.public(), "/limited").await.status];
    assert_eq!(statuses, [204, 429]);
    assert_eq!(get(proxy.public(), "/delay/0").await.status, 200);
    assert_eq!(origin.connections(), 1);

    // One has the credit, one waits.
    let mut holder = Raw::connect(proxy.public()).await;
    holder.get("/gate").await;
    assert!(eventually(|| origin.in_flight() == 1, SOON).await);
    let mut waiter = Raw::connect(proxy.public()).await;
    waiter.get("/delay/1").await;
    let waits = || proxy.metric("headworks_queue_depth", &[]) > 0.5;
    assert!(eventually(waits, SOON).await);

    proxy.reload(&app("limit.in_flight = 1\nqueue.timeout = \"30s\"")).await;
    assert!(waits(), "it keeps its place");
    assert_eq!(get(proxy.public(), "/limited").await.status, 429, "the bucket is as empty as it was");
    assert!(proxy.metric("headworks_requests_total", &[("route", "limited")]) > 2.5, "counts go on");
    proxy.reload(&app("limit.in_flight = 2")).await;
    assert_eq!(waiter.head().await.0, 200, "one credit more is there for whoever waits");
    assert_eq!(origin.max_in_flight(), 2);

    proxy.reload(&app("limit.in_flight = 1")).await;
    let mut third = Raw::connect(proxy.public()).await;
    third.get("/delay/1").await;
    assert!(eventually(waits, SOON).await, "the old credit counts");
    origin.open_gate(1);
    assert_eq!((holder.head().await.0, third.head().await.0), (200, 200));
    let connections = origin.connections();
    proxy.reload(&app("limit.in_flight = 3")).await;
    assert_eq!(get(proxy.public(), "/delay/0").await.status, 200);
    assert_eq!(origin.connections(), connections, "the pool is the same");
    proxy.reload(&app("limit.in_flight = 3\ntimeout.connect = \"3s\"")).await;
    assert_eq!(get(proxy.public(), "/delay/0").await.status, 200);
    assert_eq!(origin.connections(), connections + 1, "connections that would be made otherwise are made anew");
}

#[tokio::test]
async fn listeners_are_opened_and_closed_and_the_rest_is_not_touched() {
    let origin = Origin::h1();
    let listener =
        |name: &str, address: &str| format!("[[server.listener]]\nname = \"{name}\"\naddress = \"{address}\"\n");
    let any = "127.0.0.1:0";
    let app = forwards(&origin, "");
    let proxy = Proxy::from_toml(&(app.clone() + &listener("stays", any) + &listener("goes", any)));
    let (stays, goes) = (proxy.addr("stays"), proxy.addr("goes"));
    let mut kept = h1(stays).await;
    let mut stream = Raw::connect(goes).await;
    stream.get("/sse-gate").await;
    assert_eq!(stream.head().await.0, 200);
    let mut idle = Raw::connect(goes).await;
    idle.get("/delay/1").await;
    idle.until("ok").await;

    proxy.reload(&(app.clone() + &listener("stays", any) + &listener("comes", any))).await;
    assert_eq!(get(proxy.opened("comes"), "/delay/1").await.text(), "ok");
    assert!(idle.read_to_end().await.unwrap().is_empty(), "who idles is told to go");
    assert!(TcpStream::connect(goes).await.is_err(), "nobody listens there");
    assert_eq!(proxy.opened("stays"), stays, "it was not opened again");
    let asked = http::Request::get("/delay/1").header("host", "a").body(empty()).unwrap();
    assert_eq!(kept.send_request(asked).await.unwrap().status(), 200, "its connections neither");
    origin.open_gate(1);
    stream.until("data: [DONE]").await;
    assert!(stream.read_to_end().await.is_ok(), "the stream was served to its end, and then goodbye");

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    proxy.rewrite(&(app + &listener("stays", any) + &listener("cannot", &address)));
    let (status, why) = proxy.ask_admin("POST", "/reload", "");
    assert!(status == 422 && why.contains(&address), "{status} {why}");
    assert_eq!(get(proxy.opened("comes"), "/delay/1").await.text(), "ok", "nothing was closed");
}

#[tokio::test]
async fn what_needs_a_restart_is_said() {
    let proxy = Proxy::from_toml(&(says("one") + "[server]\nlisten = \"127.0.0.1:0\"\nthreads = 1\n"));
    proxy
        .reload(
            &(says("two")
                + "[server]\nlisten = \"127.0.0.1:0\"\nthreads = 2\n[log]\naccess = \"off\"\nlevel = \"debug\"\n"),
        )
        .await;
    let page = proxy.page("/reload").1;
    assert!(page.contains("server.threads has changed") && page.contains("log.access has changed"), "{page}");
    assert_eq!(get(proxy.public(), "/").await.text(), "two", "the rest is in force");
    assert!(proxy.log().contains("next start only"), "{}", proxy.log());
}

/// Asks until told to stop, on connections that are kept and on new ones. Counts the answers; any fault fails.
async fn ask_on(addr: SocketAddr, over: Arc<AtomicBool>, answers: Arc<AtomicUsize>) {
    let mut kept = h1(addr).await;
    let mut multiplexed = h2(addr, 1 << 16).await;
    while !over.load(SeqCst) {
        let ask = http::Request::get("/delay/1").header("host", "a").body(empty()).unwrap();
        assert_eq!(kept.send_request(ask).await.expect("an answer").status(), 200);
        kept.ready().await.expect("the connection is kept");
        let ask = request("GET", addr, "/delay/1", empty());
        assert_eq!(multiplexed.send_request(ask).await.expect("an answer").status(), 200);
        assert_eq!(get(addr, "/delay/1").await.status, 200);
        answers.fetch_add(3, SeqCst);
    }
}

#[tokio::test]
async fn twenty_reloads_under_load_fail_nothing_and_cut_no_stream() {
    let origin = Origin::h1();
    let text = |n: usize| {
        let more = format!("limit.in_flight = {}\nqueue.max = {}\npool.max_idle = {}", 60 + n, 100 + n, 100 + n / 5);
        let extra = if n.is_multiple_of(2) { ", \"127.0.0.1:0\"" } else { "" };
        let listen = format!("[server]\nlisten = [\"127.0.0.1:0\"{extra}]\nmax_connections = {}\n", 1000 + n);
        forwards(&origin, &more).replace("[[route]]", &format!("[[route]]\ntimeout.idle = \"{}s\"", 60 + n)) + &listen
    };
    let proxy = Proxy::from_toml(&text(1));
    let addr = proxy.public();
    let mut streams = Vec::new();
    for _ in 0..5 {
        let mut stream = Raw::connect(addr).await;
        stream.get("/sse-gate").await;
        assert_eq!(stream.head().await.0, 200);
        streams.push(stream);
    }
    let mut tunnel = Raw::tunnel(addr).await;
    let (over, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let load: Vec<_> = (0..4).map(|_| tokio::spawn(ask_on(addr, Arc::clone(&over), Arc::clone(&answers)))).collect();
    for n in 2..22 {
        let before = answers.load(SeqCst);
        proxy.reload(&text(n)).await;
        assert!(eventually(|| answers.load(SeqCst) > before, SOON).await, "the load goes on");
    }
    over.store(true, SeqCst);
    for asker in load {
        asker.await.expect("no request failed");
    }
    tunnel.send("ping").await;
    assert_eq!(tunnel.read_n(4).await, b"ping");
    origin.open_gate(5);
    for mut stream in streams {
        stream.until("data: [DONE]").await;
    }
    assert_eq!(proxy.generation(), 21);
    assert!(proxy.metric("headworks_requests_total", &[("class", "5xx")]) < 0.5);
    assert!(!proxy.log().contains("ERROR") && !proxy.log().contains("WARN"), "{}", proxy.log());
}

#[tokio::test]
async fn an_endpoint_is_drained_and_let_back() {
    let (one, two) = (Origin::h1(), Origin::h1());
    let text = format!(
        "[upstream.app]\nendpoints = [\"{}\", \"{}\"]\n[[route]]\nname = \"app\"\nupstream = \"app\"\n",
        one.url(),
        two.url()
    );
    let proxy = Proxy::from_toml(&text);
    let mut stream = Raw::connect(proxy.public()).await;
    stream.get("/sse-gate").await;
    stream.head().await;
    let (busy, other) = if one.in_flight() == 1 { (&one, &two) } else { (&two, &one) };
    let path = format!("/drain/app/{}", busy.addr());
    let (status, told) = proxy.ask_admin("POST", &path, "");
    assert!(status == 200 && told.contains("in_flight    1"), "{status} {told}");
    assert!(proxy.page("/drain").1.contains(&busy.url()));
    let seen = busy.seen().len();
    for _ in 0..4 {
        assert_eq!(get(proxy.public(), "/delay/0").await.status, 200);
    }
    assert_eq!((busy.seen().len(), other.seen().len()), (seen, 4), "it gets no more");
    // It outlives a reload.
    proxy.reload(&(text.clone() + "timeout.idle = \"50s\"\n")).await;
    let draining = |origin: &Origin| proxy.metric("headworks_endpoint_draining", &[("endpoint", &origin.url())]);
    assert!(draining(busy) > 0.5 && draining(other) < 0.5);
    busy.open_gate(1);
    stream.until("data: [DONE]").await;
    let idle = || proxy.ask_admin("POST", &path, "").1;
    assert!(
        eventually(|| idle().contains("in_flight    0") && idle().contains("connections  0"), SOON).await,
        "{}",
        idle()
    );

    let all = format!("/drain/app/{}", other.addr());
    assert_eq!(proxy.ask_admin("POST", &all, "").0, 200);
    let refused = get(proxy.public(), "/delay/0").await;
    assert_eq!((refused.status.as_u16(), refused.json()["reason"].as_str()), (503, Some("no_endpoint")));
    assert_eq!(proxy.ask_admin("DELETE", &path, "").0, 200);
    assert_eq!(get(proxy.public(), "/delay/0").await.status, 200);
    assert_eq!(proxy.ask_admin("POST", "/drain/app/nobody", "").0, 404);
    assert_eq!(proxy.ask_admin("POST", "/drain/nobody/0", "").0, 404);
}

#[tokio::test]
async fn what_was_built_in_vain_leaves_no_metrics() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = Proxy::from_toml(&says("one"));
    let listen = format!("[server]\nlisten = [\"127.0.0.1:0\", \"{}\"]\n", taken.local_addr().unwrap());
    proxy.rewrite(&format!("{listen}[upstream.vain]\nendpoints = [\"http://127.0.0.1:1\"]\n{}", says("two")));
    let (status, why) = proxy.ask_admin("POST", "/reload", "");
    assert!(status == 422 && why.contains("cannot listen on"), "{status} {why}");
    let page = proxy.page("/metrics").1;
    assert!(!page.contains("vain"), "{page}");
}

#[tokio::test]
async fn a_listener_that_was_closed_a_moment_ago_is_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("b.sock");
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let without = says("one") + "[server]\nlisten = [\"127.0.0.1:0\"]\n";
    let with =
        says("one") + &format!("[server]\nlisten = [\"127.0.0.1:0\", \"{free}\", \"unix:{}\"]\n", path.display());
    let proxy = Proxy::from_toml(&without);
    for _ in 0..10 {
        for text in [&with, &without, &with] {
            proxy.rewrite(text);
            let (status, told) = proxy.ask_admin("POST", "/reload", "");
            assert_eq!(status, 200, "{told}");
        }
    }
    assert_eq!(get(free, "/").await.text(), "one");
    assert!(tokio::net::UnixStream::connect(&path).await.is_ok());
    proxy.reload(&without).await;
    let closed = || std::net::TcpStream::connect(free).is_err() && !path.exists();
    assert!(eventually(closed, SOON).await, "and closed in the end");
}

#[tokio::test]
async fn a_connection_by_a_balancer_does_not_keep_its_listener_open() {
    let origin = Origin::h1();
    let listener =
        "[[server.listener]]\nname = \"balanced\"\naddress = \"127.0.0.1:0\"\nproxy_protocol = \"127.0.0.1\"\n";
    let stays = "[[server.listener]]\nname = \"stays\"\naddress = \"127.0.0.1:0\"\n";
    let proxy = Proxy::from_toml(&(forwards(&origin, "") + listener + stays));
    let balanced = proxy.addr("balanced");
    let mut stream = Raw::connect(balanced).await;
    stream.send("PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n").await;
    stream.get("/sse-gate").await;
    assert_eq!(stream.head().await.0, 200);
    proxy.reload(&(forwards(&origin, "") + stays)).await;
    let refused = || std::net::TcpStream::connect(balanced).is_err();
    assert!(eventually(refused, SOON).await, "nobody would be served there");
    origin.open_gate(1);
    stream.until("data: [DONE]").await;
}
