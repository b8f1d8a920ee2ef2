//! What is turned away, and what is not, while not everything can be served: by what a request matters.

use std::time::Duration;

use tokio::time::Instant;

use crate::support::h2_raw::{H2Raw, headers, request as head};
use crate::support::{Answer, Origin, Proxy, empty, eventually, h1, h2, request};

const SOON: Duration = Duration::from_secs(5);
const CHECK: &str = "/grpc.health.v1.Health/Check";

async fn ask(proxy: &Proxy, path: &str, fields: &[(&'static str, &str)]) -> Answer {
    let mut request = request("GET", proxy.public(), path, empty());
    for (name, value) in fields {
        request.headers_mut().append(*name, value.parse().unwrap());
    }
    Answer::of(h1(proxy.public()).await.send_request(request).await.unwrap()).await.unwrap()
}

fn reason(answer: &Answer) -> &str {
    answer.header("proxy-status").split("details=").nth(1).unwrap_or_default().trim_matches('"')
}

/// A proxy with so little memory that a few hundred requests fill it.
fn small(origin: &Origin, server: &str, route: &str) -> Proxy {
    Proxy::from_toml(&format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\nmemory = \"32MiB\"\nmax_streams = 1000\n{server}\n[upstream.app]\nendpoints = [\"{}\"]\n\
         limit.in_flight = 10000\n[[route]]\nname = \"app\"\nupstream = \"app\"\n{route}\n",
        origin.url()
    ))
}

/// Begins requests that are never answered until so many of a hundred bytes are reserved.
async fn fill(proxy: &Proxy, client: &mut H2Raw, stream: &mut u32, percent: f64) {
    let used = || proxy.metric("headworks_memory_reserved_bytes", &[]) / f64::from(32 << 20) * 100.0;
    let start = Instant::now();
    while used() < percent {
        let before = used();
        client.send(headers(*stream, true, &head("GET", "/hang", &[("x-priority", "critical")]))).await;
        *stream += 2;
        assert!(eventually(|| used() > before, SOON).await && start.elapsed() < 4 * SOON);
    }
}

#[tokio::test]
async fn the_last_of_the_memory_is_for_what_matters_most() {
    let origin = Origin::h2c();
    let proxy = small(&origin, "", "priority = { header = \"x-priority\", trusted = [\"127.0.0.1\"] }");
    let (mut client, mut stream) = (H2Raw::connect(proxy.public()).await, 1);
    let health = [("content-type", "application/grpc"), ("te", "trailers")];
    for (percent, passes) in [(50.0, [true, true, true]), (80.0, [false, true, true]), (95.8, [false, false, true])] {
        fill(&proxy, &mut client, &mut stream, percent).await;
        for (priority, passes) in ["background", "default", "critical"].into_iter().zip(passes) {
            let answer = ask(&proxy, "/", &[("x-priority", priority)]).await;
            assert_eq!(answer.status == 200, passes, "{priority} at {percent} %: {answer:?}");
            if !passes {
                assert_eq!((answer.status.as_u16(), reason(&answer)), (503, "memory_exhausted"), "{answer:?}");
                assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1, "{answer:?}");
            }
        }
        let check = ask_h2(&proxy, CHECK, &health).await;
        assert_eq!((check.status.as_u16(), check.header("grpc-status")), (200, ""), "at {percent} %: {check:?}");
    }
}

async fn ask_h2(proxy: &Proxy, path: &str, fields: &[(&'static str, &str)]) -> Answer {
    let mut request = request("POST", proxy.public(), path, empty());
    for (name, value) in fields {
        request.headers_mut().append(*name, value.parse().unwrap());
    }
    Answer::of(h2(proxy.public(), 1 << 16).await.send_request(request).await.unwrap()).await.unwrap()
}

#[tokio::test]
async fn who_sends_many_health_checks_is_not_checking() {
    let origin = Origin::h2c();
    let proxy = small(&origin, "overload.memory = \"0.1%\"", "priority = \"background\"");
    let (client, began) = (h2(proxy.public(), 1 << 16).await, Instant::now());
    let checks = (0..300).map(|_| {
        let (mut client, mut check) = (client.clone(), request("POST", proxy.public(), CHECK, empty()));
        check.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        async move { Answer::of(client.send_request(check).await.unwrap()).await.unwrap() }
    });
    let answers = checks.collect::<tokio::task::JoinSet<_>>().join_all().await;
    let passed = answers.iter().filter(|answer| answer.header("grpc-status").is_empty()).count();
    let most = 51.0 + 50.0 * began.elapsed().as_secs_f64();
    assert!(passed >= 50 && (passed as f64) < most, "{passed} passed, of {most} at the most");
}

#[tokio::test]
async fn nobody_raises_its_class_who_is_not_trusted() {
    let origin = Origin::h2c();
    let route =
        "priority = { class = \"background\", header = \"x-priority\", trusted_fields = { x-key = \"s3cret\" } }";
    // Any memory at all is too much for the background.
    let proxy = small(&origin, "overload.memory = \"0.1%\"", route);
    for (fields, passes) in [
        (vec![], false),
        (vec![("x-priority", "critical")], false),
        (vec![("x-priority", "critical"), ("x-key", "guess")], false),
        (vec![("x-priority", "critical"), ("x-key", "s3cret")], true),
        (vec![("x-priority", "default"), ("x-key", "s3cret")], true),
        (vec![("x-key", "s3cret")], false),
    ] {
        let answer = ask(&proxy, "/", &fields).await;
        assert_eq!(answer.status == 200, passes, "{fields:?}: {answer:?}");
    }
    // By where they come from, and by the urgency that browsers send.
    let route = "priority = { class = \"background\", header = \"priority\", trusted = [\"127.0.0.0/8\"] }";
    let proxy = small(&origin, "overload.memory = \"0.1%\"", route);
    for (urgency, passes) in [("u=0, i", true), ("u=3", true), ("u=5", false), ("i", false)] {
        assert_eq!(ask(&proxy, "/", &[("priority", urgency)]).await.status == 200, passes, "{urgency}");
    }
    // What a trusted proxy passes on is its client's word.
    let proxy = small(&origin, "trusted_proxies = [\"127.0.0.1\"]\noverload.memory = \"0.1%\"", route);
    for (client, passes) in [("192.0.2.1", false), ("127.0.0.2", true)] {
        let answer = ask(&proxy, "/", &[("priority", "u=0"), ("x-forwarded-for", client)]).await;
        assert_eq!(answer.status == 200, passes, "{client}: {answer:?}");
    }
    // Anybody may lower it.
    let proxy = small(&origin, "overload.memory = \"0.1%\"", "priority.header = \"x-priority\"");
    assert_eq!(ask(&proxy, "/", &[]).await.status, 200);
    assert_eq!(ask(&proxy, "/", &[("x-priority", "background")]).await.status, 503);
    // A route that is protected always is.
    let proxy = small(&origin, "overload.memory = \"0.1%\"", "priority = \"protected\"");
    assert_eq!(ask(&proxy, "/", &[]).await.status, 200);
}

#[tokio::test]
async fn a_proxy_with_little_to_do_says_so_and_turns_nobody_away() {
    let origin = Origin::h1();
    let proxy = small(&origin, "", "priority = \"background\"");
    let delays = || proxy.metric("headworks_scheduling_delay_seconds_count", &[]);
    assert!(eventually(|| delays() > 12.5, SOON).await, "{} delays were measured", delays());
    assert_eq!(ask(&proxy, "/", &[]).await.status, 200);
    assert!(proxy.metric("headworks_shed_percent", &[]) < 0.5);
}

#[tokio::test]
async fn what_fails_is_not_tried_again_and_again() {
    let origin = Origin::h1();
    let config = |least: &str| {
        format!(
            "[upstream.app]\nendpoints = [\"{}\"]\nbreaker = \"off\"\n[[route]]\nname = \"app\"\nupstream = \"app\"\n\
             shed.success_rate = \"{least}\"\n[[route]]\nname = \"checks\"\nmatch.path = \"/status/*\"\n\
             match.headers = {{ x-check = true }}\nupstream = \"app\"\npriority = \"protected\"\n\
             shed.success_rate = \"{least}\"\n",
            origin.url()
        )
    };
    let proxy = Proxy::from_toml(&config("50%"));
    let mut refused = 0;
    for _ in 0..200 {
        let answer = ask(&proxy, "/status/500", &[]).await;
        if answer.status == 503 {
            assert_eq!(reason(&answer), "low_success_rate", "{answer:?}");
            assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1, "{answer:?}");
            refused += 1;
        }
    }
    assert!(refused > 100 && origin.seen().len() == 200 - refused, "{refused} of 200 were not tried");
    // What is protected is tried, however often it fails.
    for _ in 0..50 {
        assert_eq!(ask(&proxy, "/status/500", &[("x-check", "1")]).await.status, 500);
    }
    // It outlives a reload, and goes when it is switched off.
    proxy.reload(&config("50%").replace("[[route]]\nname = \"app\"", "queue.max = 7\n[[route]]\nname = \"app\"")).await;
    let mut refused = 0;
    for _ in 0..20 {
        refused += u32::from(ask(&proxy, "/status/500", &[]).await.status == 503);
    }
    assert!(refused > 5, "{refused} of 20 were not tried");
    proxy.reload(&config("off")).await;
    for _ in 0..20 {
        assert_eq!(ask(&proxy, "/status/500", &[]).await.status, 500);
    }
}

#[tokio::test]
async fn a_service_that_is_well_again_is_tried_again() {
    let origin = Origin::h1();
    let proxy = Proxy::from_toml(&format!(
        "[upstream.app]\nendpoints = [\"{}\"]\nbreaker = \"off\"\n[[route]]\nupstream = \"app\"\nshed.success_rate = \"50%\"\n",
        origin.url()
    ));
    for _ in 0..50 {
        ask(&proxy, "/status/500", &[]).await;
    }
    let mut good = 0;
    let end = Instant::now() + 4 * SOON;
    // As many in a row as no luck explains.
    while good < 20 && Instant::now() < end {
        good = if ask(&proxy, "/status/204", &[]).await.status == 204 { good + 1 } else { 0 };
    }
    assert_eq!(good, 20, "it is still not tried");
}
