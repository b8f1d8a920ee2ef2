//! Which endpoint gets a request: by load, by turns, by key; near ones first, new ones bit by bit.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use http::StatusCode;
use tokio::task::JoinSet;

use crate::support::{Answer, Origin, Proxy, Workers, empty, eventually, get, h1, request, run};

const SOON: Duration = Duration::from_secs(10);

/// Each answers with its name, on `/gate` only once that is open.
fn pool(names: &'static [&'static str]) -> Vec<Origin> {
    let origin = |name: &'static str| {
        Origin::scripted(move |request, scene| async move {
            if request.uri().path() == "/gate" {
                scene.gate().await;
            }
            scene.full(200, "text/plain", name)
        })
    };
    names.iter().map(|name| origin(name)).collect()
}

/// `endpoints` are the elements of the list, as TOML.
fn config(endpoints: &[String], more: &str) -> String {
    let list = endpoints.join(", ");
    format!("[upstream.app]\nendpoints = [{list}]\n{more}\n[[route]]\nupstream = \"app\"\n")
}

fn short(origins: &[Origin]) -> Vec<String> {
    origins.iter().map(|origin| format!("\"{}\"", origin.url())).collect()
}

fn long(origin: &Origin, more: &str) -> String {
    format!("{{ url = \"{}\", {more} }}", origin.url())
}

fn seen(origins: &[Origin]) -> Vec<usize> {
    origins.iter().map(|origin| origin.seen().len()).collect()
}

/// One request after another; how many went to each.
async fn sends(proxy: &Proxy, origins: &[Origin], count: usize) -> Vec<usize> {
    let before = seen(origins);
    for _ in 0..count {
        assert_eq!(get(proxy.public(), "/").await.status, StatusCode::OK);
    }
    seen(origins).iter().zip(before).map(|(after, before)| after - before).collect()
}

/// One request with this session; the name of the endpoint.
async fn with(proxy: &Proxy, session: &str, path: &str) -> Answer {
    let mut asked = request("GET", proxy.public(), path, empty());
    asked.headers_mut().insert("x-session", session.parse().unwrap());
    let answer = h1(proxy.public()).await.send_request(asked).await.expect("an answer");
    Answer::of(answer).await.expect("a whole body")
}

/// The rows of `/upstreams`.
fn rows(proxy: &Proxy) -> Vec<serde_json::Value> {
    let (_, page) = proxy.page("/upstreams?format=json");
    let page: serde_json::Value = serde_json::from_str(&page).unwrap();
    page["endpoints"].as_array().unwrap().clone()
}

/// Keeps `clients` busy until a condition holds.
async fn busy(proxy: &Proxy, clients: usize, until: impl FnMut() -> bool) {
    let (addr, is_over) = (proxy.public(), Arc::new(AtomicBool::new(false)));
    let mut all = JoinSet::new();
    for _ in 0..clients {
        let is_over = Arc::clone(&is_over);
        all.spawn(async move {
            let mut sender = h1(addr).await;
            while !is_over.load(SeqCst) {
                let answer = sender.send_request(request("GET", addr, "/", empty())).await.unwrap();
                Answer::of(answer).await.unwrap();
            }
        });
    }
    let held = eventually(until, SOON).await;
    is_over.store(true, SeqCst);
    all.join_all().await;
    assert!(held, "not within {SOON:?}");
}

#[tokio::test]
async fn a_slower_endpoint_gets_less() {
    let origins: Vec<_> = [20, 20, 120].map(|time| Workers::new(64, Duration::from_millis(time))).into();
    let urls: Vec<_> = origins.iter().map(|origin| format!("\"{}\"", origin.url())).collect();
    let proxy = Proxy::from_toml(&config(&urls, ""));
    let served = || origins.iter().map(Workers::served).collect::<Vec<_>>();
    busy(&proxy, 12, || served()[0] > 20 && served()[2] > 1).await;
    let before = served();
    busy(&proxy, 12, || served()[0] > before[0] + 150).await;
    let [fast, as_fast, slow] = [0, 1, 2].map(|at| served()[at] - before[at]);
    assert!(3 * slow < fast && fast < 2 * as_fast && as_fast < 2 * fast, "{fast} {as_fast} {slow}");
    let latency = |at: usize| rows(&proxy)[at]["latency_ms"].as_f64().unwrap();
    assert!(latency(2) > 100.0 && latency(2) > 2.0 * latency(0), "{:?}", rows(&proxy));
    let metric = proxy.metric("headworks_endpoint_latency_seconds", &[("endpoint", &origins[2].url())]);
    assert!(metric > 0.1, "{metric}");
}

#[tokio::test]
async fn an_endpoint_that_fails_at_once_attracts_nobody() {
    let bad = Origin::scripted(|_, scene| async { scene.full(500, "text/plain", "bad") });
    let good = Workers::new(64, Duration::from_millis(5));
    let urls = [format!("\"{}\"", bad.url()), format!("\"{}\"", good.url())];
    let proxy = Proxy::from_toml(&config(&urls, ""));
    busy(&proxy, 4, || good.served() > 1000).await;
    // The first few did not know; one of 512 looks whether it has recovered.
    assert!(bad.seen().len() < 10, "{} of 1000", bad.seen().len());
}

#[tokio::test]
async fn turns_are_equal_or_follow_the_weights() {
    let origins = pool(&["a", "b", "c"]);
    let proxy = Proxy::from_toml(&config(&short(&origins), "balance.policy = \"round_robin\""));
    assert_eq!(sends(&proxy, &origins, 12).await, [4, 4, 4]);
    let endpoints = [long(&origins[0], "weight = 5"), long(&origins[1], "zone = \"x\""), short(&origins).remove(2)];
    let text = config(&endpoints, "balance.policy = \"weighted\"");
    proxy.reload(&text).await;
    assert_eq!(sends(&proxy, &origins, 21).await, [15, 3, 3]);
}

#[tokio::test]
async fn a_key_has_an_endpoint_and_moves_only_when_it_goes_or_is_full() {
    let origins = pool(&["a", "b", "c", "d"]);
    let hash = "balance = { policy = \"hash\", by = \"header:x-session\" }";
    let proxy = Proxy::from_toml(&config(&short(&origins), hash));
    let sessions: Vec<_> = (0..60).map(|session| format!("session-{session}")).collect();
    let mut homes = Vec::new();
    for session in &sessions {
        homes.push(with(&proxy, session, "/").await.text());
    }
    for name in ["a", "b", "c", "d"] {
        assert!(homes.iter().any(|home| home == name), "{name} has none of 60");
    }
    for (session, home) in sessions.iter().zip(&homes) {
        assert_eq!(with(&proxy, session, "/").await.text(), *home);
    }
    assert_eq!(sends(&proxy, &origins, 10).await.iter().sum::<usize>(), 10, "without a key, any endpoint will do");

    // Another process with the same endpoints agrees, in whatever order it has them.
    let mut reversed = short(&origins);
    reversed.reverse();
    let other = Proxy::from_toml(&config(&reversed, hash));
    for (session, home) in sessions.iter().zip(&homes) {
        assert_eq!(with(&other, session, "/").await.text(), *home);
    }

    let at = homes.iter().position(|home| home == "b").unwrap();
    let is_free = || rows(&proxy)[1]["credits_used"] == 0;
    proxy.reload(&config(&short(&origins), &format!("{hash}\nlimit.in_flight = 1"))).await;
    assert!(eventually(is_free, SOON).await);
    {
        let held = with(&proxy, &sessions[at], "/gate");
        tokio::pin!(held);
        tokio::select! {
            _ = &mut held => panic!("the gate is closed"),
            is_there = eventually(|| origins[1].in_flight() == 1, SOON) => assert!(is_there),
        }
        let spilled = with(&proxy, &sessions[at], "/").await;
        assert!(spilled.status == StatusCode::OK && spilled.text() != "b", "its endpoint is full");
        origins[1].open_gate(1);
        assert_eq!(held.await.text(), "b");
    }
    assert!(eventually(is_free, SOON).await);
    assert_eq!(with(&proxy, &sessions[at], "/").await.text(), "b");

    let mut fewer = short(&origins);
    fewer.remove(1);
    proxy.reload(&config(&fewer, hash)).await;
    for (session, home) in sessions.iter().zip(&homes) {
        let text = with(&proxy, session, "/").await.text();
        assert!(text == *home || home == "b", "{session} moved from {home} to {text}");
    }
}

#[tokio::test]
async fn those_in_the_same_zone_come_first_while_they_have_room() {
    let origins = pool(&["near", "far", "anywhere"]);
    let endpoints =
        [long(&origins[0], "zone = \"eu-1\""), long(&origins[1], "zone = \"eu-2\""), short(&origins).remove(2)];
    let turns = "balance.policy = \"round_robin\"\nlimit = { in_flight = 8, streams = 9 }\nqueue.max = 0";
    let text = config(&endpoints, turns) + "[server]\nlisten = [\"127.0.0.1:0\"]\nzone = { env = \"ZONE\" }\n";
    let proxy = Proxy::with_env(&text, &[("ZONE", "eu-1")]);
    assert_eq!(sends(&proxy, &origins, 20).await, [20, 0, 0]);
    let mut held = JoinSet::new();
    for _ in 0..8 {
        held.spawn(get(proxy.public(), "/gate"));
    }
    assert!(eventually(|| origins[0].in_flight() == 8, SOON).await);
    assert_eq!(sends(&proxy, &origins, 20).await, [0, 10, 10]);
    origins[0].open_gate(8);
    assert_eq!(held.join_all().await.len(), 8);
    // Its last answers took their time at the gate. After a drain that is forgotten.
    for (method, expected) in [("POST", [0, 10, 10]), ("DELETE", [20, 0, 0])] {
        assert_eq!(proxy.ask_admin(method, "/drain/app/0", "").0, 200);
        assert_eq!(sends(&proxy, &origins, 20).await, expected);
    }
    let elsewhere = Proxy::with_env(&text, &[("ZONE", "us-1")]);
    assert_eq!(sends(&elsewhere, &origins, 21).await, [7, 7, 7], "where nobody is near, all are alike");
}

#[tokio::test]
async fn a_zone_that_fails_is_passed_over() {
    let near = Origin::scripted(|_, scene| async { scene.full(500, "text/plain", "bad") });
    let far = Origin::h1();
    let text = config(&[long(&near, "zone = \"a\""), long(&far, "zone = \"b\"")], "")
        + "[server]\nlisten = [\"127.0.0.1:0\"]\nzone = \"a\"\n";
    let proxy = Proxy::from_toml(&text);
    assert_eq!(get(proxy.public(), "/delay/1").await.status, StatusCode::INTERNAL_SERVER_ERROR);
    for _ in 0..50 {
        assert_eq!(get(proxy.public(), "/delay/1").await.status, StatusCode::OK);
    }
    assert_eq!((near.seen().len(), far.seen().len()), (1, 50));
}

#[tokio::test]
async fn who_comes_or_comes_back_is_spared_at_first() {
    let origins = pool(&["a", "b", "c"]);
    let slowly = "balance = { policy = \"round_robin\", slow_start = \"10m\" }";
    let proxy = Proxy::from_toml(&config(&short(&origins)[..2], slowly));
    assert_eq!(sends(&proxy, &origins, 20).await, [10, 10, 0], "where all are new, none is spared");
    proxy.reload(&config(&short(&origins), slowly)).await;
    let [_, _, new] = sends(&proxy, &origins, 105).await[..] else { panic!() };
    assert!((3..=10).contains(&new), "{new}: a tenth of a share");
    for method in ["POST", "DELETE"] {
        assert_eq!(proxy.ask_admin(method, "/drain/app/0", "").0, 200);
    }
    let [back, other, _] = sends(&proxy, &origins, 120).await[..] else { panic!() };
    assert!(back < 20 && other > 90, "{back} {other}");
    proxy.reload(&config(&short(&origins), "balance = { policy = \"round_robin\", slow_start = \"off\" }")).await;
    assert_eq!(sends(&proxy, &origins, 30).await, [10, 10, 10]);
}

#[tokio::test]
async fn a_reload_keeps_what_is_known_of_endpoints_that_stay() {
    let origins = pool(&["a", "b"]);
    let proxy = Proxy::from_toml(&config(&short(&origins), ""));
    assert_eq!(sends(&proxy, &origins, 10).await.iter().sum::<usize>(), 10);
    let known = |at: usize| (rows(&proxy)[at]["requests"].clone(), rows(&proxy)[at]["latency_ms"].clone());
    let (before, connections) = (known(0), origins[0].connections());
    assert!(before.0.as_u64() > Some(0) && before.1.is_number(), "{before:?}");
    let other = [long(&origins[0], "weight = 7, zone = \"x\"")];
    proxy.reload(&config(&other, "balance.policy = \"weighted\"")).await;
    assert_eq!(known(0), before);
    assert_eq!(get(proxy.public(), "/").await.text(), "a");
    assert_eq!(origins[0].connections(), connections, "another weight is no reason to connect anew");
}

#[test]
fn what_cannot_be_meant_is_said_in_its_place() {
    let check = |endpoints: &[String], more: &str| {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.toml");
        std::fs::write(&file, config(endpoints, more)).unwrap();
        let output = run(&["check", "--config", file.to_str().unwrap()]);
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let plain = ["'http://a:1'".to_owned(), "'http://b:1'".to_owned()];
    for good in ["", "balance = { policy = 'hash', by = ['client', 'header:x-tenant'] }", "balance.slow_start = 'off'"]
    {
        assert_eq!(check(&plain, good).0, Some(0), "{good}: {}", check(&plain, good).1);
    }
    let weighed = ["{ url = 'http://a:1', weight = 2 }".to_owned()];
    for (endpoints, more, said) in [
        (&plain[..], "balance.policy = 'hash'", "\"hash\" needs a key"),
        (&plain[..], "balance.by = 'client'", "`by` is the key of the policy \"hash\""),
        (&plain[..], "balance = { policy = 'hash', by = 'all' }", "would send everything to one endpoint"),
        (&plain[..], "balance.policy = 'least-loaded'", "did you mean `least_loaded`?"),
        (&weighed[..], "balance.policy = 'round_robin'", "weights say nothing"),
        (&["{ url = 'http://a:1', wieght = 2 }".to_owned()], "", "did you mean `weight`?"),
        (&["{ weight = 2 }".to_owned()], "", "missing key `url`"),
        (&["{ urll = 'http://a:1' }".to_owned()], "", "did you mean `url`?"),
        (&["{ url = 'http://a:1', weight = 0 }".to_owned()], "", "expected a number from 1 to 1000"),
        (&["'http://a:1'".to_owned(), weighed[0].clone()], "", "stands here twice"),
    ] {
        let (code, report) = check(endpoints, more);
        assert!(code == Some(2) && report.contains(said), "{more}: {report}");
        assert!(report.contains("x.toml:2:") || report.contains("x.toml:3:"), "{report}");
    }
}
