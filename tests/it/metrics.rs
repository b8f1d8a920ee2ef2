//! The admin port, and what can be seen from outside.

use std::collections::HashSet;
use std::time::Duration;

use crate::support::{Origin, Proxy, Raw, eventually, get};

fn proxy(origin: &Origin, access: &str) -> Proxy {
    Proxy::from_toml(&format!(
        "[log]\naccess = \"{access}\"\n[upstream.app]\nendpoints = [\"{}\"]\nlimit = {{ in_flight = 1 }}\n\
         queue = {{ max = 1, timeout = \"300ms\" }}\n[[route]]\nname = \"main\"\nupstream = \"app\"\n",
        origin.url()
    ))
}

#[tokio::test]
async fn the_admin_port_tells_life_readiness_and_the_stack() {
    let origin = Origin::h1();
    let proxy = proxy(&origin, "off");
    assert_eq!(proxy.page("/live").0, 200);
    assert_eq!(proxy.page("/ready").0, 200);
    let (status, stack) = proxy.page("/stack");
    assert_eq!(status, 200);
    let layers = ["main", "admission", "app"].map(|name| stack.find(name).unwrap_or_else(|| panic!("{name}: {stack}")));
    assert!(layers[0] < layers[1], "{stack}");
    assert_eq!(proxy.page("/no-such-page").0, 404);

    // A proxy that drains is alive but not ready.
    let mut client = Raw::connect(proxy.public()).await;
    client.get("/sse-gate").await;
    client.head().await;
    proxy.signal("TERM");
    assert!(eventually(|| proxy.page("/ready").0 == 503, Duration::from_secs(2)).await);
    assert_eq!(proxy.page("/live").0, 200);
    origin.open_gate(1);
    client.until("[DONE]").await;
}

#[tokio::test]
async fn the_metrics_are_well_formed_and_move() {
    let origin = Origin::h1();
    let proxy = proxy(&origin, "off");
    assert_eq!(get(proxy.public(), "/delay/1").await.status, 200);
    let mut held = Raw::connect(proxy.public()).await;
    held.get("/hold").await;
    held.head().await;
    assert_eq!(get(proxy.public(), "/delay/1").await.status, 503);

    let metrics = proxy.metrics();
    let mut names = HashSet::new();
    for (name, kind) in metrics.types() {
        assert!(name.starts_with("headworks_"), "{name}");
        assert!(names.insert(name.clone()), "{name} is declared twice");
        assert!(metrics.text().contains(&format!("# HELP {name} ")), "{name} has no help");
        assert_eq!(name.ends_with("_total"), kind == "counter", "{name} is a {kind}");
    }
    let in_flight = metrics.get("headworks_credits_used", &[("upstream", "app")]);
    assert!((in_flight - 1.0).abs() < 0.1, "one credit is in use, not {in_flight}:\n{}", metrics.text());
    let refused = metrics.get("headworks_requests_total", &[("route", "main"), ("reason", "queue_timeout")]);
    assert!((refused - 1.0).abs() < 0.1, "one was refused, not {refused}:\n{}", metrics.text());
    let requests = metrics.get("headworks_requests_total", &[("route", "main")]);
    assert!(requests >= 2.0, "{requests} requests:\n{}", metrics.text());
    drop(held);
    let back = || proxy.metric("headworks_credits_used", &[("upstream", "app")]) < 0.1;
    assert!(eventually(back, Duration::from_secs(1)).await);
}

#[tokio::test]
async fn the_access_log_says_what_happened() {
    let origin = Origin::h1();
    let proxy = proxy(&origin, "json");
    let answer = get(proxy.public(), "/delay/50?secret=1").await;
    assert_eq!(answer.status, 200);
    assert!(eventually(|| proxy.access_log().len() == 1, Duration::from_secs(2)).await);
    let line: serde_json::Value = serde_json::from_str(&proxy.access_log()[0]).expect("one JSON object a line");
    assert_eq!(
        (&line["status"], &line["method"], &line["route"]),
        (&200.into(), &"GET".into(), &"main".into()),
        "{line}"
    );
    assert_eq!(line["upstream"], "app", "{line}");
    let text = line.to_string();
    assert!(text.contains("/delay/50"), "{text}");
    assert!(line.as_object().unwrap().keys().any(|key| key.contains("id")), "no request id in {line}");

    // A client that leaves is in the log with its reason.
    let mut client = Raw::connect(proxy.public()).await;
    client.get("/hold").await;
    client.head().await;
    drop(client);
    assert!(eventually(|| proxy.access_log().len() == 2, Duration::from_secs(2)).await);
    assert!(proxy.access_log()[1].contains("client_gone"), "{}", proxy.access_log()[1]);

    // And so is one that was refused.
    let mut held = Raw::connect(proxy.public()).await;
    held.get("/hold").await;
    held.head().await;
    assert_eq!(get(proxy.public(), "/").await.status, 503);
    let refused = || proxy.access_log().iter().any(|line| line.contains("queue_timeout"));
    assert!(eventually(refused, Duration::from_secs(2)).await);
}

#[tokio::test]
async fn the_access_log_may_be_text_or_off() {
    let origin = Origin::h1();
    let text = proxy(&origin, "text");
    get(text.public(), "/delay/1").await;
    assert!(eventually(|| text.access_log().len() == 1, Duration::from_secs(2)).await);
    let line = text.access_log().remove(0);
    assert!(line.contains("/delay/1") && line.contains("200") && !line.starts_with('{'), "{line}");
    let off = proxy(&origin, "off");
    get(off.public(), "/delay/1").await;
    let counted = || off.metric("headworks_requests_total", &[]) > 0.5;
    assert!(eventually(counted, Duration::from_secs(2)).await);
    assert!(off.access_log().is_empty());
}
