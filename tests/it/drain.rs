//! The end of the proxy: what is under way completes or is told, and nothing goes without a line in the log.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::support::{Answer, Origin, Proxy, Raw, empty, eventually, get, h1, h2, request};

const SOON: Duration = Duration::from_secs(10);

/// A proxy with these keys under `[server]`.
fn proxy(origin: &Origin, server: &str) -> Proxy {
    Proxy::from_toml(&format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\n{server}\n[log]\naccess = \"json\"\n\
         [upstream.app]\nendpoints = [\"{}\"]\n[[route]]\nupstream = \"app\"\n",
        origin.url()
    ))
}

fn lines(proxy: &Proxy) -> Vec<serde_json::Value> {
    proxy.access_log().iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[tokio::test]
async fn streams_may_be_given_longer_than_requests() {
    let origin = Origin::h1();
    let mut proxy = proxy(&origin, "grace = \"300ms\"\nstream_grace = \"30s\"");
    let mut waits = Raw::connect(proxy.public()).await;
    waits.get("/hang").await;
    let mut begun = Raw::connect(proxy.public()).await;
    begun.get("/flood/1000").await;
    assert_eq!(begun.head().await.0, 200);
    // A stream and a request on one connection.
    let multiplexed = h2(proxy.public(), 1 << 16).await;
    let ask = |path: &str| multiplexed.clone().send_request(request("GET", proxy.public(), path, empty()));
    let stream = ask("/sse-gate").await.unwrap();
    let hangs = tokio::spawn(ask("/hang?h2"));
    let mut tunnel = Raw::tunnel(proxy.public()).await;
    assert!(eventually(|| origin.in_flight() == 5, SOON).await);
    proxy.signal("TERM");
    let (status, _) = waits.head().await;
    assert_eq!(status, 503, "without a head there is an answer");
    waits.until("drained").await;
    let answer = Answer::of(hangs.await.unwrap().unwrap()).await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.json()["reason"].as_str()), (503, Some("drained")));
    assert!(begun.read_to_end().await.is_err(), "after the head there is a reset");
    tunnel.send("ping").await;
    assert_eq!(tunnel.read_n(4).await, b"ping", "a tunnel is a stream");
    origin.open_gate(1);
    assert!(Answer::of(stream).await.unwrap().text().contains("[DONE]"));
    drop((tunnel, multiplexed));
    assert_eq!(proxy.wait(SOON).expect("it ends with the last stream").code(), Some(0));
    let reasons: Vec<_> = lines(&proxy).iter().filter(|line| line["reason"] == "drained").cloned().collect();
    assert_eq!(reasons.len(), 3, "{reasons:?}");
    assert!(proxy.log().contains("requests=3 streams=0"), "{}", proxy.log());
}

#[tokio::test]
async fn streams_may_be_given_less_than_requests() {
    let origin = Origin::h1();
    let mut proxy = proxy(&origin, "grace = \"30s\"\nstream_grace = \"200ms\"");
    let mut stream = Raw::connect(proxy.public()).await;
    stream.get("/hold").await;
    assert_eq!(stream.head().await.0, 200);
    let mut waits = Raw::connect(proxy.public()).await;
    waits.get("/gate").await;
    assert!(eventually(|| origin.in_flight() == 2, SOON).await);
    proxy.signal("TERM");
    assert!(stream.read_to_end().await.map_or(true, |rest| !rest.ends_with(b"0\r\n\r\n")), "a cut is no end");
    assert_eq!(proxy.logged("/hold").await["reason"], "drained");
    assert!(proxy.wait(Duration::ZERO).is_none(), "the request has its time");
    origin.open_gate(1);
    let (status, fields) = waits.head().await;
    assert_eq!((status, fields["connection"].as_bytes()), (200, b"close".as_slice()));
    assert_eq!(proxy.wait(SOON).expect("it ends with the request").code(), Some(0));
    assert!(proxy.log().contains("requests=0 streams=1"), "{}", proxy.log());
}

#[tokio::test]
async fn balancers_are_given_time_to_look_elsewhere() {
    let origin = Origin::h1();
    let mut proxy = proxy(&origin, "drain_delay = \"30s\"");
    let addr = proxy.public();
    assert_eq!(proxy.page("/ready").0, 200);
    proxy.signal("TERM");
    assert!(eventually(|| proxy.page("/ready").0 == 503, SOON).await);
    assert_eq!(get(addr, "/delay/1").await.text(), "ok", "it still serves who comes");
    assert_eq!(proxy.page("/live").0, 200);
    proxy.signal("TERM");
    assert_eq!(proxy.wait(SOON).expect("the second ends at once").code(), Some(0));
    let mut proxy = self::proxy(&origin, "drain_delay = \"100ms\"");
    proxy.signal("TERM");
    assert_eq!(proxy.wait(SOON).expect("it ends after the delay").code(), Some(0));
}

#[tokio::test]
async fn a_client_that_answers_no_ping_does_not_hold_up_the_end() {
    let origin = Origin::h1();
    let mut proxy = proxy(&origin, "grace = \"30s\"");
    let mut mute = Raw::connect(proxy.public()).await;
    mute.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
    let open = || proxy.metric("headworks_connections", &[]) > 0.5;
    assert!(eventually(open, SOON).await);
    mute.read_n(9).await;
    let began = Instant::now();
    proxy.signal("TERM");
    assert!(proxy.wait(SOON).is_some_and(|status| status.success()), "{:?}: {}", began.elapsed(), proxy.log());
}

/// Asks on new connections until nobody listens; every answer must be whole.
async fn on_new_connections(addr: SocketAddr, answers: Arc<AtomicUsize>) {
    while let Ok(stream) = TcpStream::connect(addr).await {
        drop(stream);
        // Between the two the listener may have gone, and only this may fail.
        let Ok(mut stream) = TcpStream::connect(addr).await else { return };
        let ask = b"GET /delay/1 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        let mut answer = Vec::new();
        let sent = tokio::io::AsyncWriteExt::write_all(&mut stream, ask).await;
        let read = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut answer).await;
        if answer.is_empty() && (sent.is_err() || read.is_err()) {
            return; // It stood in the kernel's queue when the listener was closed, and nobody has read it.
        }
        assert!(answer.starts_with(b"HTTP/1.1 200") && answer.ends_with(b"ok"), "{}", String::from_utf8_lossy(&answer));
        answers.fetch_add(1, SeqCst);
    }
}

/// Asks on one connection until it is closed.
async fn on_one_connection(addr: SocketAddr, answers: Arc<AtomicUsize>) {
    let mut sender = h1(addr).await;
    while sender.ready().await.is_ok() {
        let ask = http::Request::get("/delay/1").header("host", "a").body(empty()).unwrap();
        // Who asks while the goodbye is on its way gets no answer, and no part of one.
        let Ok(answer) = sender.send_request(ask).await else { return };
        assert_eq!(Answer::of(answer).await.expect("a whole answer").text(), "ok");
        answers.fetch_add(1, SeqCst);
    }
}

/// The same with several streams at a time.
async fn on_streams(addr: SocketAddr, answers: Arc<AtomicUsize>) {
    let sender = h2(addr, 1 << 16).await;
    loop {
        let ask = || sender.clone().send_request(request("GET", addr, "/delay/1", empty()));
        let (one, two) = tokio::join!(ask(), ask());
        for answer in [one, two] {
            let Ok(answer) = answer else { return };
            assert_eq!(Answer::of(answer).await.expect("a whole answer").text(), "ok");
            answers.fetch_add(1, SeqCst);
        }
    }
}

#[tokio::test]
async fn under_load_every_request_is_answered_and_every_cut_has_its_line() {
    let origin = Origin::h1();
    let mut proxy = proxy(&origin, "grace = \"20s\"\nstream_grace = \"1s\"");
    let addr = proxy.public();
    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut stream = Raw::connect(addr).await;
        stream.get("/hold").await;
        assert_eq!(stream.head().await.0, 200);
        streams.push(stream);
    }
    let answers = Arc::new(AtomicUsize::new(0));
    let mut load = Vec::new();
    for _ in 0..4 {
        load.push(tokio::spawn(on_new_connections(addr, Arc::clone(&answers))));
        load.push(tokio::spawn(on_one_connection(addr, Arc::clone(&answers))));
        load.push(tokio::spawn(on_streams(addr, Arc::clone(&answers))));
    }
    assert!(eventually(|| answers.load(SeqCst) > 100, SOON).await);
    proxy.signal("TERM");
    for asker in load {
        tokio::time::timeout(SOON, asker).await.expect("an end").expect("every answer was whole");
    }
    assert_eq!(proxy.wait(SOON).expect("it ends").code(), Some(0));
    let lines = lines(&proxy);
    let drained = lines.iter().filter(|line| line["reason"] == "drained");
    assert!(drained.clone().all(|line| line["path"] == "/hold"), "{:?}", drained.collect::<Vec<_>>());
    assert_eq!(drained.count(), 3);
    let good = lines.iter().filter(|line| line["path"] == "/delay/1" && line["reason"].is_null()).count();
    assert_eq!(good, answers.load(SeqCst), "what was served was also received");
    assert_eq!(good + 3, lines.len(), "nothing else happened");
}

#[tokio::test]
async fn a_reload_that_hangs_does_not_hold_up_the_end_and_opens_nothing_afterwards() {
    let origin = Origin::h1();
    let server = "stream_grace = \"60s\"\nwatch = \"off\"";
    let mut proxy = proxy(&origin, server);
    let mut stream = Raw::connect(proxy.public()).await;
    stream.get("/sse-gate").await;
    assert_eq!(stream.head().await.0, 200);
    let file = proxy.config_file();
    std::fs::remove_file(&file).unwrap();
    assert!(Command::new("mkfifo").arg(&file).status().unwrap().success());
    proxy.signal("HUP");
    // Opens as soon as somebody reads, who then waits for what is written.
    let pipe = tokio::task::spawn_blocking({
        let file = file.clone();
        move || std::fs::OpenOptions::new().write(true).open(file).unwrap()
    });
    let pipe = pipe.await.unwrap();
    proxy.signal("TERM");
    assert!(eventually(|| proxy.log().contains("draining"), SOON).await, "{}", proxy.log());
    let late = file.with_file_name("late.sock");
    proxy.rewrite(&format!(
        "[server]\nlisten = [\"127.0.0.1:0\", \"unix:{}\"]\n{server}\n[[route]]\nrespond.status = 204\n",
        late.display()
    ));
    drop(pipe);
    assert!(eventually(|| proxy.log().contains("generation=2"), SOON).await, "{}", proxy.log());
    assert!(eventually(|| !late.exists(), SOON).await, "nobody would be served there: {}", proxy.log());
    origin.open_gate(1);
    stream.until("data: [DONE]").await;
    assert_eq!(proxy.wait(SOON).expect("nothing is left to do").code(), Some(0));
}
