//! What is open can be seen on the admin port, and ended there.

use std::time::Duration;

use http_body_util::BodyExt as _;
use serde_json::Value;

use crate::support::{Flood, Origin, Proxy, Raw, Streams, empty, eventually, get, h2, request};

const SOON: Duration = Duration::from_secs(10);

fn proxy(upstream: &str) -> Proxy {
    Proxy::from_toml(&format!(
        "[log]\naccess = \"json\"\n[upstream.app]\nendpoints = [\"{upstream}\"]\n\
         limit = {{ in_flight = 2, streams = 4 }}\nqueue = {{ max = 4, timeout = \"30s\" }}\n\
         [[route]]\nname = \"all\"\nupstream = \"app\"\n"
    ))
}

/// The rows of a page.
fn rows(proxy: &Proxy, page: &str) -> Vec<Value> {
    let (status, text) = proxy.ask_admin("GET", page, "accept: application/json\r\n");
    assert_eq!(status, 200, "{text}");
    let mut page: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"));
    let object = page.as_object_mut().unwrap();
    object.values_mut().find_map(|value| value.as_array_mut().map(std::mem::take)).unwrap()
}

/// The row of the exchange for this path, as soon as it is there and `like` what is wanted.
async fn stream(proxy: &Proxy, path: &str, like: impl Fn(&Value) -> bool) -> Value {
    let find = || rows(proxy, "/streams").into_iter().find(|row| row["path"] == path && like(row));
    assert!(eventually(|| find().is_some(), SOON).await, "no such row for {path}: {:?}", rows(proxy, "/streams"));
    find().unwrap()
}

fn cancel(proxy: &Proxy, row: &Value) {
    let (status, text) = proxy.ask_admin("DELETE", &format!("/streams/{}", row["id"].as_str().unwrap()), "");
    assert_eq!(status, 200, "{text}");
}

#[tokio::test]
async fn exchanges_are_shown_as_far_as_they_have_come() {
    let origin = Origin::h1();
    let proxy = proxy(&origin.url());
    let mut one = Raw::connect(proxy.public()).await;
    one.get("/hang?secret=1").await;
    let asked = stream(&proxy, "/hang", |row| row["state"] == "asked").await;
    assert_eq!((&asked["route"], &asked["upstream"], &asked["kind"]), (&"all".into(), &"app".into(), &"unary".into()));
    assert_eq!(
        (&asked["method"], &asked["client"], &asked["status"]),
        (&"GET".into(), &"127.0.0.1".into(), &Value::Null)
    );
    assert_eq!(asked["endpoint"], origin.url());

    let mut events = Raw::connect(proxy.public()).await;
    events.send("GET /hold HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\n\r\n").await;
    events.until("\n\n").await;
    let held = stream(&proxy, "/hold", |row| row["silent_s"].as_f64().is_some_and(|silent| silent > 0.0)).await;
    assert_eq!((&held["kind"], &held["state"], &held["status"]), (&"stream".into(), &"answering".into(), &200.into()));
    assert!(held["bytes_out"].as_u64().is_some_and(|bytes| bytes > 0), "{held}");
    assert_eq!(held["stalled_s"], Value::Null);

    let (_, page) = proxy.page("/streams");
    assert!(page.starts_with("id ") && page.contains("/hold") && !page.contains("secret"), "{page}");
    let (_, cut) = proxy.page("/streams?limit=1");
    assert_eq!((cut.lines().count(), cut.contains("?limit= shows more")), (3, true), "{cut}");
    assert_eq!(rows(&proxy, "/streams?sort=bytes&limit=1")[0]["path"], "/hold");
    assert_eq!(proxy.page("/streams?sort=x").0, 400);
}

#[tokio::test]
async fn one_that_waits_is_cancelled_with_an_answer() {
    let origin = Origin::h1();
    let proxy = proxy(&origin.url());
    let mut holders = Vec::new();
    for _ in 0..2 {
        let mut client = Raw::connect(proxy.public()).await;
        client.get("/hang").await;
        holders.push(client);
    }
    assert!(eventually(|| origin.in_flight() == 2, SOON).await);
    let mut client = Raw::connect(proxy.public()).await;
    client.get("/queued").await;
    let queued = stream(&proxy, "/queued", |row| row["state"] == "queued").await;
    cancel(&proxy, &queued);
    assert_eq!(client.head().await.0, 503);
    client.until("\"reason\":\"cancelled_by_operator\"").await;
    let line = proxy.logged("/queued").await;
    assert_eq!(
        (&line["reason"], &line["status"], &line["id"]),
        (&"cancelled_by_operator".into(), &503.into(), &queued["id"])
    );
    // The connection lives on, and the one that was asked gives its call and its credit back.
    let asked = stream(&proxy, "/hang", |row| row["state"] == "asked").await;
    cancel(&proxy, &asked);
    assert!(eventually(|| origin.in_flight() == 1, SOON).await);
    client.until("}").await;
    client.get("/delay/1").await;
    client.until("200 OK").await;
    assert_eq!(proxy.ask_admin("DELETE", &format!("/streams/{}", queued["id"].as_str().unwrap()), "").0, 404);
    assert_eq!(proxy.ask_admin("DELETE", "/streams/x", "").0, 404);
}

#[tokio::test]
async fn an_answer_under_way_is_reset_on_http1() {
    let origin = Origin::h1();
    let proxy = proxy(&origin.url());
    let mut client = Raw::connect(proxy.public()).await;
    client.get("/hold").await;
    client.until("\n\n").await;
    cancel(&proxy, &stream(&proxy, "/hold", |row| row["state"] == "answering").await);
    client.read_to_end().await.expect_err("no clean end");
    assert!(eventually(|| origin.in_flight() == 0, SOON).await, "the upstream's call goes on");
    assert_eq!(proxy.logged("/hold").await["reason"], "cancelled_by_operator");
    assert!(proxy.metric("headworks_streams_ended_total", &[("reason", "cancelled_by_operator")]) > 0.0);
}

#[tokio::test]
async fn on_http2_the_neighbours_do_not_notice() {
    let origin = Origin::h1();
    let proxy = proxy(&origin.url());
    let client = h2(proxy.public(), 65_535).await;
    let open = async |path| {
        let answer = client.clone().send_request(request("GET", proxy.public(), path, empty())).await.unwrap();
        let mut body = answer.into_body();
        body.frame().await.unwrap().unwrap();
        body
    };
    let (mut cut, mut kept) = (open("/hold").await, open("/sse-gate").await);
    cancel(&proxy, &stream(&proxy, "/hold", |row| row["state"] == "answering").await);
    let error = cut.frame().await.expect("a reset").expect_err("no clean end");
    assert!(!format!("{error:?}").contains("GoAway"), "{error:?}");
    assert!(eventually(|| origin.in_flight() == 1, SOON).await, "the upstream's call goes on");
    origin.open_gate(1);
    while let Some(frame) = kept.frame().await {
        frame.expect("the neighbour ends well");
    }
    assert_eq!(proxy.logged("/hold").await["reason"], "cancelled_by_operator");
    assert!(proxy.logged("/sse-gate").await.get("reason").is_none());
}

#[tokio::test]
async fn a_stalled_reader_shows_and_can_be_cut() {
    let flood = Flood::new();
    let proxy = proxy(&flood.url());
    let mut h1 = Raw::connect_small(proxy.public(), 4096).await;
    h1.get("/h1").await;
    h1.head().await;
    let client = h2(proxy.public(), 16 * 1024).await;
    let _unread = client.clone().send_request(request("GET", proxy.public(), "/h2", empty())).await.unwrap();
    for path in ["/h1", "/h2"] {
        let row = stream(&proxy, path, |row| row["stalled_s"].as_f64().is_some_and(|stalled| stalled > 0.0)).await;
        cancel(&proxy, &row);
        let ended = || flood.records().iter().any(|record| record.path == path && record.ended());
        assert!(eventually(ended, SOON).await, "{path} is not cut");
        assert_eq!(proxy.logged(path).await["reason"], "cancelled_by_operator");
    }
    assert_eq!(rows(&proxy, "/connections").len(), 1, "of the two only the one of HTTP/1 ended");
}

#[tokio::test]
async fn a_tunnel_is_cancelled() {
    let origin = Origin::h1();
    let proxy = proxy(&origin.url());
    let mut client = Raw::tunnel(proxy.public()).await;
    client.send("hello").await;
    client.until("hello").await;
    // Bytes are counted once they are written, which may be a moment after their reader has them.
    let counted = |row: &Value| row["bytes_in"] == 5 && row["bytes_out"] == 5;
    let is_tunnel = |row: &Value| row["kind"] == "tunnel" && row["state"] == "answering";
    let row = stream(&proxy, "/tunnel", |row| is_tunnel(row) && counted(row)).await;
    assert_eq!(rows(&proxy, "/connections")[0]["tunnel"], true);
    cancel(&proxy, &row);
    let _ = client.read_to_end().await;
    let line = proxy.logged("/tunnel").await;
    assert_eq!(line["reason"], "cancelled_by_operator");
    assert_eq!((&line["bytes_in"], &line["bytes_out"]), (&5.into(), &5.into()));
    assert!((proxy.metric("headworks_request_bytes_total", &[("route", "all")]) - 5.0).abs() < 0.1);
    assert!(eventually(|| rows(&proxy, "/connections").is_empty(), SOON).await);
}

#[tokio::test]
async fn a_tunnel_over_http2_is_cancelled_by_itself() {
    let origin = Origin::h1();
    let proxy = proxy(&origin.url());
    let streams = Streams::connect(proxy.public(), 16 * 1024).await;
    let (mut cut, kept) = (streams.ask("/ws", "websocket", &[]).await, streams.ask("/ws", "websocket", &[]).await);
    assert_eq!((cut.status, kept.status), (200, 200));
    // The oldest is shown first.
    cancel(&proxy, &stream(&proxy, "/ws", |row| row["kind"] == "tunnel" && row["state"] == "answering").await);
    cut.end().await.expect_err("no clean end");
    assert_eq!(proxy.logged("/ws").await["reason"], "cancelled_by_operator");
    assert!(eventually(|| origin.in_flight() == 1, SOON).await, "one call ends, and only one");
    assert_eq!(rows(&proxy, "/streams").len(), 1);
    drop(kept);
}

#[tokio::test]
async fn connections_are_shown_and_ended() {
    let origin = Origin::h1();
    let proxy = proxy(&origin.url());
    let mut idle = Raw::connect(proxy.public()).await;
    idle.get("/bytes/1000").await;
    idle.until("200 OK").await;
    let mut busy = Raw::connect(proxy.public()).await;
    busy.get("/hold").await;
    busy.until("\n\n").await;
    let find = |active: u64| rows(&proxy, "/connections").into_iter().find(|row| row["active"] == active);
    assert!(eventually(|| find(0).is_some() && find(1).is_some(), SOON).await);
    let row = find(0).unwrap();
    assert_eq!((&row["protocol"], &row["requests"], &row["tls"]), (&"HTTP/1".into(), &1.into(), &Value::Null));
    assert!(row["bytes_in"].as_u64() > Some(20) && row["bytes_out"].as_u64() > Some(1000), "{row}");
    assert!(row["idle_s"].is_number() && row["peer"].as_str().unwrap().starts_with("127.0.0.1:"), "{row}");
    for row in rows(&proxy, "/connections") {
        let (status, text) = proxy.ask_admin("DELETE", &format!("/connections/{}", row["id"]), "");
        assert_eq!(status, 200, "{text}");
    }
    let _ = idle.read_to_end().await;
    let _ = busy.read_to_end().await;
    assert!(eventually(|| rows(&proxy, "/connections").is_empty() && origin.in_flight() == 0, SOON).await);
    assert_eq!(proxy.logged("/hold").await["reason"], "cancelled_by_operator");
    assert_eq!(proxy.ask_admin("DELETE", "/connections/0", "").0, 404);
    assert_eq!(get(proxy.public(), "/delay/1").await.status, 200);
}

#[tokio::test]
async fn upstreams_show_credits_queue_and_connections() {
    let origin = Origin::h1();
    let proxy = proxy(&origin.url());
    let mut clients = Vec::new();
    for (path, asked) in [("/hang", 1), ("/hang", 2), ("/queued", 2)] {
        let mut client = Raw::connect(proxy.public()).await;
        client.get(path).await;
        assert!(eventually(|| origin.in_flight() == asked, SOON).await);
        clients.push(client);
    }
    let row = || rows(&proxy, "/upstreams").remove(0);
    assert!(eventually(|| row()["queued"] == 1 && row()["connections"] == 2, SOON).await, "{}", row());
    let row = row();
    assert_eq!(
        (&row["upstream"], &row["endpoint"], &row["state"]),
        (&"app".into(), &origin.url().into(), &"serving".into())
    );
    assert_eq!((&row["credits_used"], &row["credits_limit"]), (&2.into(), &2.into()));
    assert_eq!((&row["streams_used"], &row["streams_limit"]), (&0.into(), &4.into()));
    let endpoint = origin.url();
    let labels = [("upstream", "app"), ("endpoint", endpoint.as_str())];
    assert!((proxy.metric("headworks_pool_connections", &labels) - 2.0).abs() < 0.1);
    drop(clients);
    let idle = || proxy.metric("headworks_pool_cancelled_total", &labels) >= 2.0;
    assert!(eventually(idle, SOON).await, "those who left are not counted");
}
