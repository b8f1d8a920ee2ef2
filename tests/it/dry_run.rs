//! Admission without consequences: all go ahead, and who would have been held back is told.

use std::time::Duration;

use tokio::task::JoinSet;

use crate::support::{Origin, Proxy, eventually, get};

const SOON: Duration = Duration::from_secs(5);

fn config(origin: &Origin, dry_run: bool) -> String {
    format!(
        "[log]\naccess = \"json\"\n[upstream.app]\nendpoints = [\"{}\"]\n\
         limit = {{ in_flight = 1, dry_run = {dry_run} }}\nqueue = {{ max = 2, timeout = \"300ms\" }}\n\
         [[route]]\nupstream = \"app\"\n",
        origin.url()
    )
}

fn used(proxy: &Proxy) -> f64 {
    proxy.metric("headworks_credits_used", &[("upstream", "app"), ("class", "unary")])
}

#[tokio::test]
async fn slow_requests_beyond_the_limit_are_served_at_once_and_told() {
    let origin = Origin::h1();
    let proxy = Proxy::from_toml(&config(&origin, true));
    let mut pending = JoinSet::new();
    for (n, path) in ["/gate?0", "/gate?1", "/gate?2", "/gate?3", "/gate?4"].into_iter().enumerate() {
        pending.spawn(get(proxy.public(), path));
        assert!(eventually(|| origin.in_flight() == n + 1, SOON).await, "{n} did not go ahead");
    }
    assert_eq!(used(&proxy).to_bits(), 5.0_f64.to_bits());
    origin.open_gate(5);
    for answer in pending.join_all().await {
        assert_eq!(answer.status, 200);
    }
    assert!(eventually(|| used(&proxy) == 0.0, SOON).await);

    let count = |would, reason| {
        let labels = [("upstream", "app"), ("would", would), ("reason", reason)];
        proxy.metric("headworks_admission_dry_run_total", &labels)
    };
    let counts = [count("wait", "none"), count("refuse", "queue_full"), count("refuse", "deadline_unmeetable")];
    assert_eq!(counts.map(|count| count as u64), [2, 2, 0]);
    let lines =
        || proxy.access_log().into_iter().filter(|line| line.contains("\"path\":\"/gate\"")).collect::<Vec<_>>();
    assert!(eventually(|| lines().len() == 5, SOON).await, "{:?}", lines());
    let told = |what: &str| lines().iter().filter(|line| line.contains(what)).count();
    assert_eq!((told("\"would_wait\":true"), told("\"would_refuse\":\"queue_full\"")), (2, 2));
    let said = || proxy.log().lines().filter(|line| line.contains("would have held requests back")).count();
    assert!(eventually(|| said() == 1, SOON).await, "{}", proxy.log());
}

#[tokio::test]
async fn it_ends_by_a_reload_and_does_not_hide_a_drain() {
    let origin = Origin::h1();
    let proxy = Proxy::from_toml(&config(&origin, true));
    let mut pending = JoinSet::new();
    for _ in 0..2 {
        pending.spawn(get(proxy.public(), "/gate"));
    }
    assert!(eventually(|| origin.in_flight() == 2, SOON).await);
    proxy.reload(&config(&origin, false)).await;
    assert!(get(proxy.public(), "/").await.header("proxy-status").contains("queue_timeout"));
    proxy.reload(&config(&origin, true)).await;
    assert_eq!(get(proxy.public(), "/").await.status, 200);
    assert_eq!(proxy.ask_admin("POST", "/drain/app/0", "").0, 200);
    assert!(get(proxy.public(), "/").await.header("proxy-status").contains("no_endpoint"));
    origin.open_gate(2);
    for answer in pending.join_all().await {
        assert_eq!(answer.status, 200);
    }
    assert!(eventually(|| used(&proxy) == 0.0, SOON).await);
}
