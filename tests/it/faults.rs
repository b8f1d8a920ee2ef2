//! Faults made on purpose: each kind on the wire, by configuration and by order, and that they end.

use std::time::Duration;

use tokio::time::Instant;

use crate::support::h2_raw::{self, H2Raw, headers, kind};
use crate::support::{Answer, Flood, Origin, Proxy, Raw, empty, eventually, get, h2, request};

const SOON: Duration = Duration::from_secs(5);

/// A route `app` with this fault, and beside it one without, both to `upstream`; the access log is JSON.
fn config(upstream: &str, fault: &str) -> String {
    format!(
        "[log]\naccess = \"json\"\n[upstream.app]\nendpoints = [\"{upstream}\"]\n\
         [[route]]\nname = \"well\"\nmatch.path = \"/status/*\"\nupstream = \"app\"\n\
         [[route]]\nname = \"app\"\nupstream = \"app\"\n{fault}\n"
    )
}

fn counted(proxy: &Proxy, kind: &str) -> f64 {
    proxy.metric("headworks_faults_total", &[("route", "app"), ("kind", kind)])
}

#[tokio::test]
async fn an_abort_is_a_whole_answer_that_says_so() {
    let origin = Origin::h1();
    let proxy = Proxy::from_toml(&config(&origin.url(), "fault = { abort = 429 }"));
    let answer = get(proxy.public(), "/head").await;
    assert_eq!((answer.status.as_u16(), answer.json()["reason"].as_str()), (429, Some("fault_injected")));
    let said = "headworks; error=proxy_internal_response; details=\"fault_injected\"";
    assert_eq!(answer.header("proxy-status"), said);
    let line = proxy.logged("/head").await;
    assert_eq!((&line["status"], &line["reason"]), (&429.into(), &"fault_injected".into()));
    assert_eq!((&line["fault"], line.get("upstream")), (&"abort".into(), None));
    assert_eq!(counted(&proxy, "abort") as u64, 1);
    assert_eq!(get(proxy.public(), "/status/200").await.status, 200, "the other route is well");
    assert_eq!(origin.seen().len(), 1, "what is aborted reaches nobody");
}

#[tokio::test]
async fn a_delayed_request_is_served_and_says_so() {
    let origin = Origin::h1();
    let proxy = Proxy::from_toml(&config(&origin.url(), "fault.delay = \"200ms\""));
    let began = Instant::now();
    let answer = get(proxy.public(), "/bytes/10").await;
    assert!(began.elapsed() >= Duration::from_millis(200));
    assert_eq!((answer.status.as_u16(), answer.body.len()), (200, 10));
    assert_eq!(answer.header("proxy-status"), "headworks; details=\"fault_injected: delay\"");
    let line = proxy.logged("/bytes/10").await;
    assert_eq!((&line["fault"], line.get("reason")), (&"delay".into(), None));
}

#[tokio::test]
async fn a_client_that_leaves_while_it_is_delayed_is_gone_at_once() {
    let origin = Origin::h1();
    let proxy = Proxy::from_toml(&config(&origin.url(), "fault.delay = \"60s\""));
    let mut client = Raw::connect(proxy.public()).await;
    client.get("/head").await;
    let in_flight = || proxy.metric("headworks_requests_in_flight", &[("route", "app")]) as u64;
    assert!(eventually(|| in_flight() == 1 && counted(&proxy, "delay") > 0.0, SOON).await);
    drop(client);
    assert!(eventually(|| in_flight() == 0, SOON).await);
    assert_eq!(proxy.logged("/head").await["reason"], "client_gone");
    assert!(origin.seen().is_empty());
}

#[tokio::test]
async fn a_reset_ends_the_connection_of_http_1_and_the_stream_of_http_2() {
    let origin = Origin::h1();
    let proxy = Proxy::from_toml(&config(&origin.url(), "fault.abort = \"reset\""));
    let mut client = Raw::connect(proxy.public()).await;
    client.get("/one").await;
    assert!(client.read_to_end().await.is_err(), "a reset, and not an end");
    let line = proxy.logged("/one").await;
    assert_eq!((&line["reason"], &line["fault"]), (&"fault_reset".into(), &"reset".into()));

    let mut client = H2Raw::connect(proxy.public()).await;
    client.send(headers(1, true, &h2_raw::request("GET", "/two", &[]))).await;
    let frames = client.stream(1).await;
    assert!(frames.len() == 1 && frames[0].kind == kind::RST_STREAM, "{frames:?}");
    client.send(headers(3, true, &h2_raw::request("GET", "/status/204", &[]))).await;
    assert_eq!(client.status(3).await, 204, "its neighbours do not notice");
    assert_eq!(proxy.logged("/two").await["reason"], "fault_reset");
    assert_eq!(origin.seen().len(), 1);
    assert_eq!(proxy.metric("headworks_connections_ended_total", &[("reason", "fault_reset")]) as u64, 1);
}

#[tokio::test]
async fn a_slow_body_comes_whole_and_at_its_pace() {
    let origin = Origin::h2c();
    let proxy = Proxy::from_toml(&config(&origin.url(), "fault.slow_body = \"2000B/s\""));
    let began = Instant::now();
    let answer = get(proxy.public(), "/bytes/1000").await;
    // The wait behind the last part is nobody's.
    assert!(began.elapsed() >= Duration::from_millis(400), "{:?}", began.elapsed());
    assert_eq!((answer.body.len(), answer.header("content-length")), (1000, "1000"));
    let mut client = h2(proxy.public(), 1 << 16).await;
    let answer = client.send_request(request("GET", proxy.public(), "/trailers", empty())).await.unwrap();
    assert_eq!(Answer::of(answer).await.unwrap().trailers["x-checksum"], "abc");
    assert_eq!(proxy.logged("/trailers").await["fault"], "slow_body");
}

#[tokio::test]
async fn a_stall_stops_the_upstream_and_goes_on() {
    let flood = Flood::new();
    let fault = "stream.stall_timeout = \"500ms\"\nfault.stall = \"2s\"";
    let proxy = Proxy::from_toml(&config(&flood.url(), fault));
    let mut client = Raw::connect(proxy.public()).await;
    client.get("/flood").await;
    assert_eq!(client.head().await.0, 200);
    client.read_n(1).await;
    let stands = || flood.records().first().is_some_and(|record| record.silence() > Duration::from_millis(200));
    assert!(eventually(stands, SOON).await, "the upstream is read on");
    let taken = flood.taken()["/flood"];
    assert!(taken < 400_000, "{taken}");
    // Longer than a client may stall: it is not the client who does.
    client.read_n(2_000_000).await;
    assert_eq!(counted(&proxy, "stall") as u64, 1);
}

#[tokio::test]
async fn an_order_is_seen_and_ends_by_itself() {
    let origin = Origin::h1();
    let proxy = Proxy::from_toml(&config(&origin.url(), ""));
    let status = async || get(proxy.public(), "/head").await.status.as_u16();
    let faults = || proxy.page("/fault?format=json").1;
    assert_eq!(status().await, 200);
    assert!(!proxy.metrics().text().contains("headworks_faults_total"), "nothing is counted before the first fault");

    let (code, said) = proxy.ask_admin("POST", "/fault/app?abort=503&for=1s", "");
    assert!(code == 200 && said.contains("order"), "{code} {said}");
    assert_eq!(status().await, 503);
    assert!(faults().contains("\"route\":\"app\",\"share\":\"100%\""), "{}", faults());
    let stack = proxy.page("/stack").1;
    assert!(stack.contains("ordered on route app, for another") && stack.contains("abort  503"), "{stack}");
    assert!(eventually(|| !faults().contains("app"), SOON).await, "it does not end");
    assert_eq!(status().await, 200);

    proxy.ask_admin("POST", "/fault/app?abort=503&share=100%25&for=1h", "");
    assert_eq!(status().await, 503);
    assert_eq!(proxy.ask_admin("DELETE", "/fault/app", "").0, 200);
    assert_eq!(status().await, 200);
    for (path, code) in [("/fault/nowhere?abort=503", 404), ("/fault/app?abrot=503", 400), ("/fault/app", 400)] {
        assert_eq!(proxy.ask_admin("POST", path, "").0, code, "{path}");
    }
}

#[tokio::test]
async fn an_order_outlives_a_reload_and_the_configuration_follows_it() {
    let origin = Origin::h1();
    let proxy = Proxy::from_toml(&config(&origin.url(), "fault.abort = 502"));
    let status = async || get(proxy.public(), "/head").await.status.as_u16();
    proxy.ask_admin("POST", "/fault/app?abort=503&for=1h", "");
    proxy.reload(&config(&origin.url(), "fault.abort = 504")).await;
    assert_eq!(status().await, 503);
    proxy.ask_admin("DELETE", "/fault/app", "");
    assert_eq!(status().await, 504);
    proxy.reload(&config(&origin.url(), "")).await;
    assert_eq!(status().await, 200);
}
