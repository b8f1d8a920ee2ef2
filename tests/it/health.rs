//! Active health checks: what fails them gets no requests, and nobody but the endpoint and the operator sees them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body::Frame;
use http_body_util::BodyExt as _;

use crate::support::{Certs, Origin, Proxy, Switch, eventually, get};

const SOON: Duration = Duration::from_secs(10);
const FAST: &str = "interval = \"50ms\", healthy = 2, unhealthy = 2";

fn config(endpoints: &[String], health: &str) -> String {
    let endpoints: Vec<_> = endpoints.iter().map(|url| format!("\"{url}\"")).collect();
    format!(
        "[upstream.app]\nendpoints = [{}]\nbalance = {{ policy = \"round_robin\", slow_start = \"off\" }}\n\
         health = {{ {FAST}, {health} }}\n[[route]]\nupstream = \"app\"\n",
        endpoints.join(", ")
    )
}

fn checks(proxy: &Proxy, result: &str) -> usize {
    proxy.metric("headworks_endpoint_checks_total", &[("result", result)]) as usize
}

async fn is_down(proxy: &Proxy, endpoint: &str, is_down: bool) -> bool {
    let down = || proxy.metric("headworks_endpoint_down", &[("endpoint", endpoint)]) > 0.5;
    eventually(|| down() == is_down, SOON).await
}

#[tokio::test]
async fn one_that_says_it_is_ill_gets_no_requests_until_it_is_well() {
    let (well, ill) = (Switch::new(), Switch::new());
    let proxy = Proxy::from_toml(&config(&[well.url(), ill.url()], "path = \"/healthz?deep=1\""));
    ill.answer("/healthz", 503, "retry-after: 20\r\n");
    assert!(is_down(&proxy, &ill.url(), true).await, "{}", proxy.log());
    let before = ill.seen("/x");
    for _ in 0..20 {
        assert_eq!(get(proxy.public(), "/x").await.status, 200);
    }
    assert_eq!(ill.seen("/x"), before);
    assert!(well.seen("/x") >= 20 && well.seen("/healthz?deep=1") > 0);
    let by = [("endpoint", &*ill.url()), ("by", "check")];
    assert!(proxy.metric("headworks_endpoint_credits_set_by", &by) > 0.5);
    assert!(proxy.metric("headworks_endpoint_attempts_total", &[("verdict", "overloaded")]) < 0.5, "no request was");
    let rows = proxy.ask_admin("GET", "/upstreams?format=json", "").1;
    let rows: serde_json::Value = serde_json::from_str(&rows).unwrap();
    assert_eq!((&rows["endpoints"][0]["check"], &rows["endpoints"][1]["check"]), (&"up".into(), &"down".into()));
    ill.answer("/healthz", 302, "location: /elsewhere\r\n");
    assert!(is_down(&proxy, &ill.url(), false).await, "{}", proxy.log());
    assert!(eventually_asked(&proxy, || ill.seen("/x") > before).await, "{}", proxy.log());
    let requests = proxy.metric("headworks_requests_total", &[]) as usize;
    assert_eq!(requests, proxy.access_log().len(), "checks are no requests");
    assert!(proxy.access_log().iter().all(|line| !line.contains("healthz")));
}

/// Sends requests until something shows.
async fn eventually_asked(proxy: &Proxy, is_so: impl Fn() -> bool) -> bool {
    for _ in 0..1000 {
        get(proxy.public(), "/x").await;
        if is_so() {
            return true;
        }
    }
    false
}

#[tokio::test]
async fn a_check_by_tcp_wants_a_connection() {
    let (stays, killed) = (Switch::new(), Switch::new());
    let proxy = Proxy::from_toml(&config(&[stays.url(), killed.url()], "kind = \"tcp\""));
    killed.kill().await;
    assert!(is_down(&proxy, &killed.url(), true).await, "{}", proxy.log());
    assert!(proxy.log().contains("its health check fails"), "{}", proxy.log());
    for _ in 0..20 {
        assert_eq!(get(proxy.public(), "/x").await.status, 200, "no request has to find it out");
    }
    killed.start();
    assert!(is_down(&proxy, &killed.url(), false).await, "{}", proxy.log());
    assert!(eventually_asked(&proxy, || killed.seen("/x") > 0).await);
    assert_eq!(stays.seen("/") + killed.seen("/"), stays.seen("/x") + killed.seen("/x"), "nothing is asked");
}

#[tokio::test]
async fn a_check_by_grpc_asks_the_service() {
    let status = Arc::new(AtomicU8::new(1));
    let said = Arc::clone(&status);
    let origin = Origin::scripted_h2c(move |request, scene| {
        let said = said.load(SeqCst);
        async move {
            assert_eq!((request.uri().path(), request.method().as_str()), ("/grpc.health.v1.Health/Check", "POST"));
            let asked = request.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(&asked[..], b"\0\0\0\0\x05\x0a\x03a.B");
            let trailers = [(http::HeaderName::from_static("grpc-status"), "0".parse().unwrap())];
            let frames = vec![
                Ok(Frame::data(Bytes::from(vec![0, 0, 0, 0, 2, 8, said]))),
                Ok(Frame::trailers(trailers.into_iter().collect())),
            ];
            scene.stream("application/grpc", stream::iter(frames))
        }
    });
    let proxy = Proxy::from_toml(&config(&[origin.url()], "kind = \"grpc\", service = \"a.B\""));
    assert!(eventually(|| checks(&proxy, "passed") > 2, SOON).await, "{}", proxy.log());
    assert!(is_down(&proxy, &origin.url(), false).await);
    status.store(2, SeqCst);
    assert!(is_down(&proxy, &origin.url(), true).await, "{}", proxy.log());
    assert!(proxy.log().contains("not serving"), "{}", proxy.log());
    status.store(1, SeqCst);
    assert!(is_down(&proxy, &origin.url(), false).await, "{}", proxy.log());
}

#[tokio::test]
async fn a_check_goes_the_way_of_the_requests() {
    let certs = Certs::new();
    let folder = tempfile::tempdir().unwrap();
    let by_tls = Origin::tls(certs.server("server", &["h2", "http/1.1"], false));
    let by_file = Origin::unix(&folder.path().join("app.sock"));
    for (origin, tls) in [(&by_tls, format!("tls.ca = \"{}\"\n", certs.name("ca.pem"))), (&by_file, String::new())] {
        let text = config(&[origin.url()], "path = \"/head\"").replace("[[route]]", &format!("{tls}[[route]]"));
        let proxy = Proxy::from_toml(&text);
        assert!(eventually(|| checks(&proxy, "passed") > 2, SOON).await, "{}", proxy.log());
        let seen = origin.last();
        assert_eq!(
            (seen.uri.path(), &seen.headers["user-agent"]),
            ("/head", &"headworks (health check)".parse().unwrap())
        );
        assert_eq!(get(proxy.public(), "/head").await.status, 200);
        assert_eq!(checks(&proxy, "failed"), 0, "{}", proxy.log());
        assert!(eventually(|| origin.in_flight() == 0, SOON).await);
    }
}

#[tokio::test]
async fn checks_that_leave_nobody_are_ignored() {
    let service = Switch::new();
    service.answer("/healthz", 404, "");
    let proxy = Proxy::from_toml(&config(&[service.url()], "path = \"/healthz\""));
    assert!(is_down(&proxy, &service.url(), true).await, "{}", proxy.log());
    for _ in 0..10 {
        assert_eq!(get(proxy.public(), "/x").await.status, 200, "perhaps it is the check that is wrong");
    }
    service.hold(true);
    assert!(
        eventually(|| proxy.log().contains("a health check has failed") || checks(&proxy, "failed") > 3, SOON).await
    );
    service.hold(false);
}

#[tokio::test]
async fn a_reload_keeps_what_checks_have_found_and_their_end_lets_all_back() {
    let (well, ill) = (Switch::new(), Switch::new());
    ill.answer("/healthz", 500, "");
    let both = [well.url(), ill.url()];
    let proxy = Proxy::from_toml(&config(&both, "path = \"/healthz\""));
    assert!(is_down(&proxy, &ill.url(), true).await, "{}", proxy.log());
    let other = |text: String| text.replace("[[route]]", "queue.max = 7\n[[route]]");
    proxy.reload(&other(config(&both, "path = \"/healthz\""))).await;
    assert!(proxy.metric("headworks_endpoint_down", &[("endpoint", &ill.url())]) > 0.5);
    // Other checks begin with what the last ones found.
    proxy.reload(&config(&both, "path = \"/healthz\", timeout = \"900ms\"")).await;
    assert!(proxy.metric("headworks_endpoint_down", &[("endpoint", &ill.url())]) > 0.5);
    let before = ill.seen("/healthz");
    assert!(eventually(|| ill.seen("/healthz") > before + 2, SOON).await, "they go on");
    let plain: String = config(&both, "")
        .lines()
        .filter(|line| !line.starts_with("health"))
        .fold(String::new(), |text, line| text + line + "\n");
    proxy.reload(&plain).await;
    assert!(is_down(&proxy, &ill.url(), false).await);
    assert!(eventually_asked(&proxy, || ill.seen("/x") > 0).await);
    let after = ill.seen("/healthz");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(ill.seen("/healthz") <= after + 1, "nobody checks any more");
}
