//! What a service says of its load: heard in every form, hidden from the client, told on to a proxy in front.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use http_body::Frame;
use tokio::time::timeout;

use crate::support::{Answer, Origin, Proxy, Raw, Wire, Workers, empty, eventually, get, h2, load, request};

const SOON: Duration = Duration::from_secs(10);
/// A report in protobuf whose named metric `headworks_credit` is 9.
const BINARY: &str = "QhsKEGhlYWR3b3Jrc19jcmVkaXQRAAAAAAAAIkA=";
const OURS: [&str; 4] =
    ["endpoint-load-metrics", "endpoint-load-metrics-bin", "x-headworks-credit", "x-headworks-queue-delay-ms"];

fn config(url: &str, limit: &str, route: &str) -> String {
    format!(
        "[upstream.app]\nendpoints = [\"{url}\"]\nlimit.in_flight = 40\n{limit}\n[[route]]\nupstream = \"app\"\n{route}\n\
         [server]\nlisten = [\"127.0.0.1:0\"]\nmax_streams = 4000\n[admin]\nlisten = \"127.0.0.1:0\"\n[log]\naccess = \"off\"\n"
    )
}

fn credits(proxy: &Proxy) -> u64 {
    proxy.metric("headworks_endpoint_credits", &[("upstream", "app")]) as u64
}

fn set_by(proxy: &Proxy, by: &str) -> bool {
    proxy.metric("headworks_endpoint_credits_set_by", &[("upstream", "app"), ("by", by)]) > 0.5
}

fn reports(proxy: &Proxy, form: &str) -> (u64, u64) {
    let labels = [("upstream", "app"), ("form", form)];
    let count = |name| proxy.metric(name, &labels) as u64;
    (count("headworks_load_reports_total"), count("headworks_load_reports_unreadable_total"))
}

/// Every form in which nine credits are asked for, and its name in metrics.
fn nine() -> Vec<(&'static str, String, &'static str)> {
    let orca = |value: &str| format!("endpoint-load-metrics: {value}");
    vec![
        ("x-headworks-credit", "x-headworks-credit: 9".into(), "plain"),
        ("text", orca("TEXT cpu_utilization=0.3, named_metrics.headworks_credit=9"), "orca_text"),
        ("colons", orca("cpu_utilization:0.3,named_metrics.headworks_credit:9"), "orca_text"),
        ("json", orca("JSON {\"namedMetrics\": {\"headworks_credit\": 9}}"), "orca_json"),
        ("bin", orca(&format!("BIN {BINARY}")), "orca_binary"),
        ("grpc", format!("Endpoint-Load-Metrics-Bin: {}", BINARY.trim_end_matches('=')), "orca_binary"),
    ]
}

fn without_reports(fields: &HeaderMap) -> bool {
    OURS.iter().all(|name| !fields.contains_key(*name))
}

#[tokio::test]
async fn every_form_is_heard_in_a_head_and_the_client_does_not_see_it() {
    let origin = Wire::new().await;
    let proxy = Proxy::from_toml(&config(&origin.url(), "", ""));
    let mut client = Raw::connect(proxy.public()).await;
    let mut counted = BTreeMap::new();
    for (name, field, form) in nine() {
        for (field, credit) in [(field.as_str(), 9), ("x-headworks-credit: 30", 30)] {
            client.get("/").await;
            let (mut upstream, _) = origin.request().await;
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n{field}\r\n\r\nok");
            upstream.send(answer).await;
            let (status, head) = client.head().await;
            client.read_n(2).await;
            assert!(status == 200 && without_reports(&head), "{name}: {head:?}");
            assert_eq!((credits(&proxy), set_by(&proxy, "published")), (credit, true), "{name}");
        }
        *counted.entry(form).or_insert(0) += 1;
        *counted.entry("plain").or_insert(0) += 1;
    }
    for (form, count) in counted {
        assert_eq!(reports(&proxy, form), (count, 0), "{form}");
    }
    let (_, page) = proxy.page("/upstreams");
    assert!(page.contains("published") && page.contains("30"), "{page}");
}

#[tokio::test]
async fn every_form_is_heard_in_trailers_of_http1() {
    let origin = Wire::new().await;
    let proxy = Proxy::from_toml(&config(&origin.url(), "", ""));
    for (name, field, form) in nine() {
        let before = reports(&proxy, form);
        let mut client = Raw::connect(proxy.public()).await;
        client.send("GET / HTTP/1.1\r\nhost: test.local\r\nte: trailers\r\nconnection: te\r\n\r\n").await;
        let (mut upstream, _) = origin.request().await;
        let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-checksum, x-headworks-credit\r\n";
        upstream.send(format!("{head}connection: close\r\n\r\n2\r\nok\r\n0\r\nx-checksum: 7\r\n{field}\r\n\r\n")).await;
        client.head().await;
        let rest = client.until("\r\n\r\n").await.to_ascii_lowercase();
        assert!(rest.contains("x-checksum: 7"), "{name}: {rest}");
        assert!(OURS.iter().all(|ours| !rest.contains(ours)), "{name}: {rest}");
        assert_eq!((credits(&proxy), reports(&proxy, form)), (9, (before.0 + 1, before.1)), "{name}");
        // What the next form says must be seen.
        client.get("/").await;
        let (mut upstream, _) = origin.request().await;
        upstream.send("HTTP/1.1 204 No Content\r\nconnection: close\r\nx-headworks-credit: 20\r\n\r\n").await;
        client.head().await;
        assert_eq!(credits(&proxy), 20, "{name}");
    }
}

#[tokio::test]
async fn trailers_of_http2_are_heard_and_cleaned() {
    let field = |(_, field, form): (&str, String, &'static str)| {
        let (name, value) = field.split_once(": ").unwrap();
        let name: HeaderName = name.parse().unwrap();
        (name, HeaderValue::from_str(value).unwrap(), form)
    };
    let forms: Vec<_> = nine().into_iter().map(field).collect();
    let all = forms.clone();
    let origin = Origin::scripted_h2c(move |request, scene| {
        let (name, value, _) = all[request.uri().path()[1..].parse::<usize>().unwrap()].clone();
        let trailers = HeaderMap::from_iter([(name, value), ("x-checksum".parse().unwrap(), "7".parse().unwrap())]);
        let frames = [Frame::data(Bytes::from_static(b"ok")), Frame::trailers(trailers)];
        async move { scene.stream("text/plain", futures_util::stream::iter(frames.map(Ok))) }
    });
    let proxy = Proxy::from_toml(&config(&origin.url(), "", ""));
    let mut client = h2(proxy.public(), 1 << 16).await;
    for (number, (name, _, form)) in forms.into_iter().enumerate() {
        let before = reports(&proxy, form);
        let request = request("GET", proxy.public(), &format!("/{number}"), empty());
        let answer = Answer::of(client.send_request(request).await.unwrap()).await.unwrap();
        assert_eq!(answer.trailers.get("x-checksum").map(HeaderValue::as_bytes), Some(&b"7"[..]));
        assert!(without_reports(&answer.trailers), "{name}: {:?}", answer.trailers);
        assert_eq!((credits(&proxy), reports(&proxy, form)), (9, (before.0 + 1, before.1)), "{name}");
    }
}

#[tokio::test]
async fn a_report_that_cannot_be_read_changes_nothing_and_fails_nothing() {
    let long = format!("endpoint-load-metrics: TEXT named_metrics.{}=1", "x".repeat(5000));
    let wrong = [
        "endpoint-load-metrics: TEXT cpu_utilization=NaN",
        "endpoint-load-metrics: JSON {",
        "endpoint-load-metrics: BIN ####",
        "endpoint-load-metrics: \u{fffd}",
        "endpoint-load-metrics: eps=1\r\nendpoint-load-metrics: eps=1",
        "x-headworks-credit: many",
        "x-headworks-queue-delay-ms: -1",
        &long,
    ];
    let origin = Wire::new().await;
    let proxy = Proxy::from_toml(&config(&origin.url(), "", ""));
    for field in wrong {
        let mut client = Raw::connect(proxy.public()).await;
        client.get("/").await;
        let (mut upstream, _) = origin.request().await;
        upstream.send(format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n{field}\r\n\r\nok")).await;
        let (status, head) = client.head().await;
        assert!(status == 200 && without_reports(&head), "{field}: {head:?}");
    }
    let unreadable = proxy.metric("headworks_load_reports_unreadable_total", &[("upstream", "app")]);
    assert_eq!((unreadable as usize, credits(&proxy), set_by(&proxy, "fixed")), (wrong.len(), 40, true));
}

#[tokio::test]
async fn settings_say_who_hears_a_report() {
    let origin = Origin::scripted(|_, scene| async move {
        let mut response = scene.full(200, "text/plain", "ok");
        response.headers_mut().insert("x-headworks-credit", HeaderValue::from_static("9"));
        response
    });
    let proxy = Proxy::from_toml(&config(&origin.url(), "limit.pass_reports = true", ""));
    assert_eq!(get(proxy.public(), "/").await.header("x-headworks-credit"), "9");
    assert_eq!(credits(&proxy), 9);
    proxy.reload(&config(&origin.url(), "", "")).await;
    assert_eq!(credits(&proxy), 9, "what was said goes on to count");
    proxy.reload(&config(&origin.url(), "limit.published = false", "")).await;
    assert_eq!(credits(&proxy), 40);
    assert!(without_reports(&get(proxy.public(), "/").await.headers));
    assert_eq!((credits(&proxy), reports(&proxy, "plain")), (40, (2, 0)));
}

#[tokio::test]
async fn an_agent_sets_credits_for_as_long_as_it_answers() {
    let word = Arc::new(Mutex::new(("3", 200)));
    let said = Arc::clone(&word);
    let agent = Origin::scripted(move |request, scene| {
        let (word, status) = *said.lock().unwrap();
        let status = if request.uri().path().starts_with("/of/127.0.0.1:") { status } else { 404 };
        async move { scene.full(status, "text/plain", word) }
    });
    let origin = Origin::h1();
    let asks = |interval: &str| {
        let url = format!("{}/of/{{endpoint}}", agent.url());
        let agent =
            format!("limit.agent = {{ url = \"{url}\", interval = \"{interval}\" }}\nqueue.timeout = \"200ms\"");
        config(&origin.url(), &agent, "")
    };
    let proxy = Proxy::from_toml(&asks("100ms"));
    let says = async |word_of_agent: &'static str, status, expected| {
        *word.lock().unwrap() = (word_of_agent, status);
        let seen = eventually(|| credits(&proxy) == expected, SOON).await;
        assert!(seen, "{word_of_agent}: {} credits, not {expected}", credits(&proxy));
    };
    says("3", 200, 3).await;
    assert!(set_by(&proxy, "published"));
    says("75%\n", 200, 30).await;
    says("{\"state\": \"up\", \"credit\": 7}", 200, 7).await;
    says("drain", 200, 0).await;
    assert_eq!(get(proxy.public(), "/").await.status, StatusCode::SERVICE_UNAVAILABLE);
    says("up", 200, 40).await;
    assert_eq!(get(proxy.public(), "/").await.status, StatusCode::OK);
    says("5", 200, 5).await;
    // Its last word counts, whatever happens to it.
    *word.lock().unwrap() = ("9", 500);
    let failures = || proxy.metric("headworks_agent_failures_total", &[("upstream", "app")]) as u64;
    let before = failures();
    assert!(eventually(|| failures() > before + 2, SOON).await);
    assert_eq!(credits(&proxy), 5);
    *word.lock().unwrap() = ("nonsense", 200);
    let before = failures();
    assert!(eventually(|| failures() > before + 2, SOON).await);
    assert_eq!(credits(&proxy), 5);
    // A reload that leaves it alone leaves its task alone; another one ends it and what it said.
    let asked = agent.seen().len();
    proxy.reload(&asks("100ms").replace("200ms", "300ms")).await;
    assert!(eventually(|| agent.seen().len() > asked + 3, SOON).await);
    assert_eq!(credits(&proxy), 5);
    proxy.reload(&config(&origin.url(), "", "")).await;
    assert_eq!(credits(&proxy), 40);
    let asked = agent.seen().len();
    proxy.reload(&asks("5s")).await;
    says("11", 200, 11).await;
    assert!(agent.seen().len() <= asked + 3, "not more often than it was told");
}

#[tokio::test]
async fn an_agent_that_is_gone_changes_nothing() {
    let agent = Origin::scripted(|_, scene| async move { scene.full(200, "text/plain", "4") });
    let origin = Origin::h1();
    let url = agent.url();
    let text = format!("limit.agent = {{ url = \"{url}\", interval = \"100ms\" }}");
    let proxy = Proxy::from_toml(&config(&origin.url(), &text, ""));
    assert!(eventually(|| credits(&proxy) == 4, SOON).await);
    drop(agent);
    let failures = || proxy.metric("headworks_agent_failures_total", &[("upstream", "app")]) as u64;
    assert!(eventually(|| failures() > 2, SOON).await);
    assert_eq!((credits(&proxy), get(proxy.public(), "/").await.status), (4, StatusCode::OK));
}

#[tokio::test]
async fn pressure_is_told_to_whoever_asks_for_it_with_refusals_too() {
    let origin = Origin::h1();
    let more = "limit.in_flight = 1\nqueue = { max = 1, timeout = \"100ms\" }";
    let text = |route| config(&origin.url(), more, route).replace("limit.in_flight = 40\n", "");
    let proxy = Proxy::from_toml(&text(""));
    assert!(without_reports(&get(proxy.public(), "/").await.headers), "strangers are told nothing");
    proxy.reload(&text("publish_pressure = true")).await;
    let quiet = get(proxy.public(), "/").await;
    assert_eq!(quiet.header("x-headworks-credit"), "2");
    assert!(quiet.header("endpoint-load-metrics").contains("named_metrics.queue_delay_ms=0"), "{:?}", quiet.headers);
    let mut held = Raw::connect(proxy.public()).await;
    held.get("/hold").await;
    held.head().await;
    let refused = get(proxy.public(), "/").await;
    assert_eq!((refused.status, refused.header("x-headworks-credit")), (StatusCode::SERVICE_UNAVAILABLE, "2"));
    let load = refused.header("endpoint-load-metrics");
    let delay: f64 = load.split("queue_delay_ms=").nth(1).unwrap().parse().unwrap();
    assert!(load.starts_with("TEXT application_utilization=1, ") && delay >= 99.0, "{load}");
}

#[tokio::test]
async fn a_grpc_call_is_told_pressure_in_its_trailers() {
    let origin = Origin::scripted_h2c(|_, scene| async move {
        let trailers =
            ["grpc-status", "endpoint-load-metrics-bin"].map(|name| (name.parse().unwrap(), "0".parse().unwrap()));
        let frames = [Frame::data(Bytes::from_static(&[0; 5])), Frame::trailers(HeaderMap::from_iter(trailers))];
        scene.stream("application/grpc", futures_util::stream::iter(frames.map(Ok)))
    });
    let proxy = Proxy::from_toml(&config(&origin.url(), "", "publish_pressure = true"));
    let mut client = h2(proxy.public(), 1 << 16).await;
    let mut call = request("POST", proxy.public(), "/", empty());
    call.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    let answer = Answer::of(client.send_request(call).await.unwrap()).await.unwrap();
    assert_eq!(answer.header("x-headworks-credit"), "44");
    assert_eq!((answer.trailers.len(), answer.trailers["grpc-status"].as_bytes()), (2, &b"0"[..]));
    // `named_metrics.queue_delay_ms` is in it, not what the service has said.
    let said = answer.trailers["endpoint-load-metrics-bin"].to_str().unwrap();
    assert!(said.len() > 60 && !said.ends_with('='), "{said}");
}

/// How many are served of `rate` requests a second for `time`.
async fn served(proxy: &Proxy, rate: f64, time: Duration) -> usize {
    let served = Arc::default();
    let _ = timeout(time, load(proxy, rate, Arc::clone(&served))).await;
    served.load(SeqCst)
}

#[tokio::test]
async fn a_service_that_tells_how_long_requests_wait_inside_has_no_queue_worth_the_name() {
    let service = Workers::reporting(8, Duration::from_millis(50));
    let text = config(&service.url(), "queue.timeout = \"250ms\"", "").replace("in_flight = 40", "in_flight = 1000");
    let proxy = Proxy::from_toml(&text);
    served(&proxy, 320.0, Duration::from_secs(2)).await;
    service.most_inside();
    let served = served(&proxy, 320.0, Duration::from_secs(2)).await;
    let inside = service.most_inside();
    // Clients of the first load have left with their requests still inside; that is over within a moment.
    assert!(inside <= 40, "{inside} inside for 8 workers");
    assert!(served >= 200, "{served} of 320 that the service can do");
    assert!(set_by(&proxy, "published") && credits(&proxy) <= 24, "{} credits", credits(&proxy));
}

#[tokio::test]
async fn the_first_of_three_in_a_row_holds_back_for_the_service_behind_the_last() {
    let service = Workers::new(4, Duration::from_millis(50));
    let link = |url: &str, limit: usize| {
        let publish = format!("limit.in_flight = {limit}\nqueue.timeout = \"250ms\"");
        Proxy::from_toml(&config(url, &publish, "publish_pressure = true").replacen("limit.in_flight = 40\n", "", 1))
    };
    // Only the last one knows what the service can work on.
    let last = link(&service.url(), 4);
    let middle = link(&format!("h2c://{}", last.public()), 1000);
    let first = link(&format!("h2c://{}", middle.public()), 1000);
    served(&first, 240.0, Duration::from_secs(1)).await;
    let refused = |proxy: &Proxy| {
        let count = |reason| proxy.metric("headworks_requests_total", &[("reason", reason)]);
        count("queue_full") + count("queue_timeout") + count("queue_shed")
    };
    let before = [&first, &middle, &last].map(refused);
    let served = served(&first, 240.0, Duration::from_secs(2)).await;
    let after = [&first, &middle, &last].map(refused);
    let [at_first, at_middle, at_last] = [0, 1, 2].map(|at| after[at] - before[at]);
    assert!(at_first > 100.0, "{at_first} of about 320 are refused where they come in");
    assert!(at_middle + at_last < 0.05 * at_first, "{at_middle} and {at_last} are refused farther in");
    for proxy in [&first, &middle] {
        assert!(set_by(proxy, "published") && credits(proxy) <= 12, "{} credits", credits(proxy));
    }
    assert!(served >= 100, "{served} of 160 that the service can do");
}
