//! The adaptive window in the real program: as much as the service can work on, found without being told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use http::StatusCode;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::support::{Flood, Origin, Proxy, Raw, Workers, empty, eventually, get, h2, load, request};

const SOON: Duration = Duration::from_secs(10);

fn config(url: &str, more: &str) -> String {
    format!(
        "[upstream.app]\nendpoints = [\"{url}\"]\n{more}\n[[route]]\nupstream = \"app\"\n[server]\n\
         listen = [\"127.0.0.1:0\"]\nmax_streams = 4000\n[admin]\nlisten = \"127.0.0.1:0\"\n"
    )
}

fn proxy(url: &str, more: &str) -> Proxy {
    Proxy::from_toml(&config(url, more))
}

#[tokio::test]
async fn twice_and_ten_times_the_capacity_cost_hardly_any_of_it() {
    let time = Duration::from_millis(50);
    for (times, workers) in [(2.0, 8), (10.0, 4)] {
        let origin = Workers::new(workers, time);
        let proxy = proxy(&origin.url(), "queue.timeout = \"250ms\"");
        let capacity = workers as f64 / time.as_secs_f64();
        let good = Arc::new(AtomicUsize::new(0));
        let measured = async {
            sleep(Duration::from_secs(2)).await;
            origin.most_inside();
            let (began, served, before) = (Instant::now(), origin.served(), good.load(SeqCst));
            sleep(Duration::from_secs(2)).await;
            let seconds = began.elapsed().as_secs_f64();
            let rate = |count: usize| count as f64 / seconds / capacity;
            (rate(origin.served() - served), rate(good.load(SeqCst) - before), origin.most_inside())
        };
        let (worked, arrived, inside) = tokio::select! {
            measured = measured => measured,
            () = load(&proxy, times * capacity, Arc::clone(&good)) => unreachable!("it goes on"),
        };
        // The service is as busy as it can be on this machine, nearly all of its work reaches a client, and it has no
        // queue worth the name.
        assert!(worked > 0.75, "{times}: {worked} of the capacity is used");
        assert!(arrived > 0.9 * worked, "{times}: {arrived} of {worked} reaches clients");
        assert!(inside <= 4 * workers, "{times}: {inside} inside for {workers} workers");
    }
}

#[tokio::test]
async fn what_the_service_can_work_on_is_not_held_back() {
    let origin = Workers::new(1000, Duration::from_millis(20));
    let proxy = proxy(&origin.url(), "");
    let sender = h2(proxy.public(), 1 << 16).await;
    let addr = proxy.public();
    let mut clients = JoinSet::new();
    for _ in 0..64 {
        let mut sender = sender.clone();
        clients.spawn(async move {
            loop {
                let answer = sender.send_request(request("GET", addr, "/", empty())).await.unwrap();
                assert_eq!(answer.status(), StatusCode::OK, "nobody is refused on the way up");
            }
        });
    }
    assert!(eventually(|| origin.most_inside() >= 60, SOON).await, "the window grows to what is asked of it");
    let credits = || proxy.metrics().get("headworks_endpoint_credits", &[("upstream", "app")]);
    assert!(credits() >= 60.0, "{}", credits());
    clients.abort_all();
}

#[tokio::test]
async fn readers_that_stall_do_not_use_the_window_up() {
    let origin = Flood::new();
    let proxy = proxy(&origin.url(), "limit.in_flight = { min = 2, max = 4, initial = 4 }\nqueue.timeout = \"5s\"");
    let mut stalled = Vec::new();
    for _ in 0..12 {
        let mut client = Raw::connect_small(proxy.public(), 4096).await;
        client.get("/flood").await;
        let (status, _) = timeout(SOON, client.head()).await.expect("a credit comes free");
        assert_eq!(status, 200);
        stalled.push(client);
    }
    let used = |class| proxy.metrics().get("headworks_credits_used", &[("upstream", "app"), ("class", class)]) as u64;
    assert!(used("unary") <= 4 && used("unary") + used("stream") == 12, "{} {}", used("unary"), used("stream"));
    drop(stalled);
    assert!(eventually(|| used("unary") + used("stream") == 0, SOON).await, "every credit comes back");
}

#[tokio::test]
async fn streams_have_credits_of_their_own() {
    let origin = Origin::h1();
    let proxy = proxy(&origin.url(), "limit.in_flight = { max = 2 }");
    let mut streams = Vec::new();
    for _ in 0..6 {
        let mut client = Raw::connect(proxy.public()).await;
        client.get("/sse/100/1000").await;
        assert_eq!(timeout(SOON, client.head()).await.expect("an answer").0, 200);
        streams.push(client);
    }
    assert_eq!(get(proxy.public(), "/").await.status, StatusCode::OK);
    let by = |by| proxy.metrics().get("headworks_endpoint_credits_set_by", &[("upstream", "app"), ("by", by)]);
    assert_eq!((by("window") as u64, by("fixed") as u64), (1, 0));
}

#[tokio::test]
async fn a_reload_keeps_what_was_learned() {
    let origin = Workers::new(1000, Duration::from_millis(20));
    let proxy = proxy(&origin.url(), "");
    let credits = || proxy.metrics().get("headworks_endpoint_credits", &[("upstream", "app")]) as u64;
    let sender = h2(proxy.public(), 1 << 16).await;
    let (addr, is_over) = (proxy.public(), Arc::new(AtomicBool::new(false)));
    let mut clients = JoinSet::new();
    for _ in 0..40 {
        let (mut sender, is_over) = (sender.clone(), Arc::clone(&is_over));
        clients.spawn(async move {
            while !is_over.load(SeqCst) {
                sender.send_request(request("GET", addr, "/", empty())).await.unwrap();
            }
        });
    }
    assert!(eventually(|| origin.most_inside() > 20, SOON).await);
    is_over.store(true, SeqCst);
    clients.join_all().await;
    let before = credits();
    assert!(before > 16, "{before}");
    proxy.reload(&config(&origin.url(), "limit.in_flight.max = 9999")).await;
    assert_eq!(credits(), before, "what is still within the bounds stays");
    proxy.reload(&config(&origin.url(), "limit.in_flight = 7")).await;
    assert_eq!(credits(), 7);
}
