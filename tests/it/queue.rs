//! Who waits, who is next, and who is sent away, seen from both ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};

use crate::support::{Answer, Origin, Proxy, Raw, Workers, empty, eventually, h1, h2, request};

const SOON: Duration = Duration::from_secs(10);

fn config(url: &str, upstream: &str) -> String {
    format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\nmax_streams = 4000\n[admin]\nlisten = \"127.0.0.1:0\"\n\
         [upstream.app]\nendpoints = [\"{url}\"]\n{upstream}\n[[route]]\nupstream = \"app\"\n"
    )
}

fn depth(proxy: &Proxy) -> usize {
    proxy.metric("headworks_queue_depth", &[("upstream", "app")]) as usize
}

/// One credit, which `/gate?held` has, and those who wait behind it.
struct Line {
    origin: Origin,
    proxy: Proxy,
    _held: JoinHandle<Answer>,
}

impl Line {
    async fn new(queue: &str) -> Self {
        let origin = Origin::h1();
        let proxy = Proxy::from_toml(&config(&origin.url(), &format!("limit.in_flight = 1\n{queue}")));
        Self::behind(origin, proxy).await
    }

    async fn behind(origin: Origin, proxy: Proxy) -> Self {
        let held = send(&proxy, "/gate?held", &[]);
        assert!(eventually(|| origin.in_flight() == 1, SOON).await);
        Self { origin, proxy, _held: held }
    }

    fn send(&self, path: &str, fields: &[(&'static str, &str)]) -> JoinHandle<Answer> {
        send(&self.proxy, path, fields)
    }

    /// One more waits.
    async fn join(&self, path: &str, fields: &[(&'static str, &str)]) -> JoinHandle<Answer> {
        let before = depth(&self.proxy);
        let answer = self.send(path, fields);
        assert!(eventually(|| depth(&self.proxy) == before + 1, SOON).await, "{path} waits");
        answer
    }

    /// The order in which the service sees those who wait.
    async fn order(&self) -> Vec<String> {
        let waiting = depth(&self.proxy);
        for seen in 1..=waiting {
            self.origin.open_gate(1);
            assert!(eventually(|| self.origin.seen().len() == seen + 1, SOON).await);
        }
        self.origin.open_gate(1);
        self.origin.seen()[1..].iter().map(|seen| seen.uri.query().unwrap_or_default().to_owned()).collect()
    }
}

fn send(proxy: &Proxy, path: &str, fields: &[(&'static str, &str)]) -> JoinHandle<Answer> {
    let addr = proxy.public();
    let mut request = request("GET", addr, path, empty());
    for (name, value) in fields {
        request.headers_mut().append(*name, value.parse().unwrap());
    }
    tokio::spawn(async move { Answer::of(h1(addr).await.send_request(request).await.unwrap()).await.unwrap() })
}

async fn answer(answer: JoinHandle<Answer>) -> Answer {
    timeout(SOON, answer).await.expect("an answer").unwrap()
}

#[track_caller]
fn assert_refused(answer: &Answer, reason: &str) {
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.header("proxy-status").contains(&format!("\"{reason}\"")), "{answer:?}");
    assert_eq!(answer.header("content-type"), "application/problem+json");
    assert_eq!(answer.json()["reason"], reason);
}

#[tokio::test]
async fn each_order_is_seen_by_the_service() {
    let wait = |seconds: &'static str| [("x-request-timeout", seconds)];
    let long = "queue.timeout = \"30s\"";
    for (order, expected) in [("fifo", ["a", "b", "c"]), ("lifo", ["c", "b", "a"]), ("deadline", ["b", "c", "a"])] {
        let line = Line::new(&format!("{long}\nqueue.order = \"{order}\"")).await;
        let _a = line.join("/gate?a", &wait("20")).await;
        let _b = line.join("/gate?b", &wait("10")).await;
        let _c = line.join("/gate?c", &wait("15")).await;
        assert_eq!(line.order().await, expected, "{order}");
    }
    let line = Line::new(&format!("{long}\nqueue.order = \"fair\"\nqueue.by = \"header:x-key\"")).await;
    let mut waiting = Vec::new();
    for (path, key) in
        [("/gate?a", "hog"), ("/gate?b", "hog"), ("/gate?c", "hog"), ("/gate?d", "one"), ("/gate?e", "other")]
    {
        waiting.push(line.join(path, &[("x-key", key)]).await);
    }
    let order = line.order().await;
    let place = |of| order.iter().position(|seen| seen == of).unwrap();
    assert!(place("d") <= 2 && place("e") <= 2, "{order:?}");
    assert!(place("a") < place("b") && place("b") < place("c"), "{order:?}");
}

#[tokio::test]
async fn each_policy_sends_another_away() {
    let key = |key: &'static str| [("x-key", key)];
    for (policy, victim, reason, order) in [
        ("drop = \"reject_newest\"", 2, "queue_full", ["a", "b"]),
        ("drop = \"reject_oldest\"", 0, "queue_dropped", ["b", "c"]),
        ("drop = \"replace_same_key\", by = \"header:x-key\"", 1, "queue_replaced", ["a", "c"]),
    ] {
        let line = Line::new(&format!("queue = {{ max = 2, timeout = \"30s\", {policy} }}")).await;
        let a = line.join("/gate?a", &key("1")).await;
        let b = line.join("/gate?b", &key("2")).await;
        let c = line.send("/gate?c", &key("2"));
        let mut answers = [Some(a), Some(b), Some(c)];
        let refused = answer(answers[victim].take().unwrap()).await;
        assert_refused(&refused, reason);
        let again = if reason == "queue_replaced" { "false" } else { "true" };
        assert_eq!(refused.header("x-should-retry"), again);
        assert_eq!(refused.headers.contains_key("retry-after"), reason != "queue_replaced");
        assert!(eventually(|| depth(&line.proxy) == 2, SOON).await);
        assert_eq!(line.order().await, order, "{policy}");
        for waited in answers.into_iter().flatten() {
            line.origin.open_gate(1);
            assert_eq!(answer(waited).await.status, 200);
        }
    }
}

/// Three routes, each with a priority.
fn by_priority(url: &str, queue: &str) -> String {
    let route =
        |class| format!("[[route]]\nmatch.path = \"/gate/{class}\"\nupstream = \"app\"\npriority = \"{class}\"\n");
    let upstream = format!("limit.in_flight = 1\nqueue = {{ max = 3, timeout = \"30s\", {queue} }}");
    config(url, &upstream) + &["background", "critical", "protected"].map(route).concat()
}

#[tokio::test]
async fn priorities_say_who_is_next_and_who_goes() {
    let line = async |queue| {
        let origin = Origin::h1();
        let proxy = Proxy::from_toml(&by_priority(&origin.url(), queue));
        Line::behind(origin, proxy).await
    };
    let by_order = line("order = \"priority\"").await;
    let _a = by_order.join("/gate/background?a", &[]).await;
    let _b = by_order.join("/gate/background?b", &[]).await;
    let _c = by_order.join("/gate/critical?c", &[]).await;
    assert_eq!(by_order.order().await, ["c", "a", "b"]);

    let by_policy = line("drop = \"reject_lowest\"").await;
    let _a = by_policy.join("/gate?a", &[]).await;
    let low = by_policy.join("/gate/background?b", &[]).await;
    let _c = by_policy.join("/gate?c", &[]).await;
    let _d = by_policy.send("/gate/critical?d", &[]);
    assert_refused(&answer(low).await, "queue_dropped");
    let refused = answer(by_policy.send("/gate/background?e", &[])).await;
    assert_refused(&refused, "queue_full");
    assert!(eventually(|| depth(&by_policy.proxy) == 3, SOON).await);
    assert_eq!(by_policy.order().await, ["a", "c", "d"]);

    // A health check is served first and never dropped, in any order.
    let plain = line("order = \"fifo\"").await;
    let _a = plain.join("/gate?a", &[]).await;
    let _b = plain.join("/gate?b", &[]).await;
    let dropped = plain.join("/gate?c", &[]).await;
    let _d = plain.send("/gate/protected?d", &[]);
    assert_refused(&answer(dropped).await, "queue_dropped");
    assert!(eventually(|| depth(&plain.proxy) == 3, SOON).await);
    assert_eq!(plain.order().await, ["d", "a", "b"]);
}

#[tokio::test]
async fn a_weight_is_seen_in_what_is_served() {
    let origin = Workers::new(4, Duration::from_millis(5));
    let queue = "limit.in_flight = 5\nqueue = { timeout = \"30s\", order = \"fair\", by = \"header:x-key\", \
                 weights = { gold = 4 }, controlled_delay = false }";
    let proxy = Proxy::from_toml(&config(&origin.url(), queue));
    let sender = h2(proxy.public(), 1 << 16).await;
    let addr = proxy.public();
    let mut clients = JoinSet::new();
    let served = [Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0))];
    for (key, served) in ["gold", "plain"].into_iter().zip(&served) {
        for _ in 0..60 {
            let (mut sender, served) = (sender.clone(), Arc::clone(served));
            clients.spawn(async move {
                loop {
                    let mut request = request("GET", addr, "/", empty());
                    request.headers_mut().insert("x-key", key.parse().unwrap());
                    assert_eq!(sender.send_request(request).await.unwrap().status(), 200);
                    served.fetch_add(1, SeqCst);
                }
            });
        }
    }
    let count = || (served[0].load(SeqCst), served[1].load(SeqCst));
    assert!(eventually(|| count().1 >= 20, SOON).await);
    let before = count();
    assert!(eventually(|| count().1 >= before.1 + 100, SOON).await);
    let (gold, plain) = (count().0 - before.0, count().1 - before.1);
    let ratio = gold as f64 / plain as f64;
    assert!((2.5..6.0).contains(&ratio), "{gold} of the one, {plain} of the other");
    clients.abort_all();
}

#[tokio::test]
async fn heads_are_bounded_in_bytes() {
    let line = Line::new("queue = { max_bytes = \"8KiB\", timeout = \"30s\" }").await;
    let large = "x".repeat(5000);
    let _first = line.join("/gate?a", &[("x-large", &large)]).await;
    assert_refused(&answer(line.send("/gate?b", &[("x-large", &large)])).await, "queue_full");
    let _small = line.join("/gate?c", &[]).await;
    let bytes = line.proxy.metric("headworks_queue_bytes", &[("upstream", "app")]);
    assert!((5000.0..8192.0).contains(&bytes), "{bytes}");
    assert_eq!(line.order().await, ["a", "c"]);
    assert!(eventually(|| line.proxy.metric("headworks_queue_bytes", &[]) < 0.5, SOON).await);
}

#[tokio::test]
async fn a_deadline_that_cannot_be_met_is_refused_on_arrival() {
    let origin = Origin::h1();
    let proxy = Proxy::from_toml(&config(&origin.url(), "limit.in_flight = 1\nqueue.timeout = \"30s\""));
    // How long an answer takes becomes known.
    for _ in 0..20 {
        assert_eq!(answer(send(&proxy, "/delay/50", &[])).await.status, 200);
    }
    let seen = origin.seen().len();
    let line = Line::behind(origin, proxy).await;
    // There is nobody before it, but a credit comes free every 50 ms, and an answer takes as long.
    let refused = answer(line.send("/?late", &[("x-request-timeout", "80ms")])).await;
    assert_refused(&refused, "deadline_unmeetable");
    assert_eq!(refused.header("x-should-retry"), "true");
    let _waits = line.join("/gate?in-time", &[("x-request-timeout", "20")]).await;
    line.origin.open_gate(2);
    assert!(eventually(|| line.origin.seen().len() == seen + 2, SOON).await);
    assert!(!line.origin.seen().iter().any(|seen| seen.uri.query() == Some("late")), "the service never saw it");
}

#[tokio::test]
async fn a_refusal_names_a_time_of_its_own() {
    let line = Line::new("queue.max = 0").await;
    let mut waits = Vec::new();
    for _ in 0..8 {
        let refused = answer(line.send("/", &[])).await;
        assert_refused(&refused, "queue_full");
        let millis: u64 = refused.header("retry-after-ms").parse().unwrap();
        let seconds: u64 = refused.header("retry-after").parse().unwrap();
        // Rounded to either side, and never to nothing.
        assert!(seconds.abs_diff(millis / 1000) <= 1 && seconds >= 1, "{refused:?}");
        assert!(millis <= 36_000, "{millis}");
        assert_eq!(refused.header("x-should-retry"), "true");
        waits.push(millis);
    }
    // One credit is promised to each of them, one after the other.
    assert!(waits.windows(2).all(|pair| pair[0] != pair[1]) && waits[7] > waits[0] + 4_000, "{waits:?}");
}

#[tokio::test]
async fn clients_that_leave_free_their_places_at_once() {
    let line = Line::new("queue = { max = 100, timeout = \"30s\" }").await;
    let mut clients = Vec::new();
    for _ in 0..100 {
        let mut client = Raw::connect(line.proxy.public()).await;
        client.get("/gate").await;
        clients.push(client);
    }
    assert!(eventually(|| depth(&line.proxy) == 100, SOON).await);
    assert_refused(&answer(line.send("/", &[])).await, "queue_full");
    clients.into_iter().for_each(Raw::abort);
    assert!(eventually(|| depth(&line.proxy) == 0, SOON).await);
    let _next = line.join("/gate?next", &[]).await;
    assert_eq!(line.order().await, ["next"], "the service saw none of them");
}

#[tokio::test]
async fn while_the_queue_stands_waits_are_short() {
    let origin = Workers::new(8, Duration::from_millis(20));
    let proxy = Proxy::from_toml(&config(&origin.url(), "limit.in_flight = 10\nqueue.timeout = \"30s\""));
    let sender = h2(proxy.public(), 1 << 16).await;
    let addr = proxy.public();
    let (mut clients, mut waits) = (JoinSet::new(), Vec::new());
    let (began, mut sent, mut shed) = (Instant::now(), 0, 0);
    // Three times as much as the service can do, for as long as it takes to see it.
    while began.elapsed() < Duration::from_secs(4) {
        while f64::from(sent) < began.elapsed().as_secs_f64() * 1200.0 {
            sent += 1;
            let mut sender = sender.clone();
            clients.spawn(async move {
                let began = Instant::now();
                let answer = sender.send_request(request("GET", addr, "/", empty())).await.unwrap();
                let details = answer.headers().get("proxy-status").map(|it| it.to_str().unwrap().to_owned());
                (answer.status().as_u16(), details, began, began.elapsed())
            });
        }
        sleep(Duration::from_millis(2)).await;
        while let Some(Ok((status, details, asked, took))) = clients.try_join_next() {
            if status == 200 && asked.duration_since(began) > Duration::from_secs(2) {
                waits.push(took);
            }
            shed += usize::from(details.is_some_and(|details| details.contains("queue_shed")));
        }
    }
    assert!(shed > 100, "{shed} of {sent} were shed");
    waits.sort_unstable();
    // First come, first served, it would be two seconds and more.
    assert!(!waits.is_empty() && waits[waits.len() / 2] < Duration::from_secs(1), "{waits:?}");
    clients.abort_all();
    while clients.join_next().await.is_some() {}
    assert!(eventually(|| depth(&proxy) == 0, SOON).await);
}

#[tokio::test]
async fn a_hog_does_not_squeeze_a_small_flow() {
    let origin = Workers::new(4, Duration::from_millis(10));
    let queue = "limit.in_flight = 5\nqueue = { max = 64, timeout = \"5s\", order = \"fair\", by = \"header:x-key\" }";
    let proxy = Proxy::from_toml(&config(&origin.url(), queue));
    let sender = h2(proxy.public(), 1 << 16).await;
    let addr = proxy.public();
    let ask = move |key: &'static str| {
        let mut request = request("GET", addr, "/", empty());
        request.headers_mut().insert("x-key", key.parse().unwrap());
        request
    };
    let mut hogs = JoinSet::new();
    let hog = Arc::new(AtomicUsize::new(0));
    for _ in 0..300 {
        let (mut sender, hog) = (sender.clone(), Arc::clone(&hog));
        hogs.spawn(async move {
            loop {
                let answer = sender.send_request(ask("hog")).await.unwrap();
                if answer.status() == 200 {
                    hog.fetch_add(1, SeqCst);
                } else {
                    sleep(Duration::from_millis(20)).await;
                }
            }
        });
    }
    assert!(eventually(|| depth(&proxy) >= 60, SOON).await, "the hog has filled the queue");
    let (mut sender, mut refused) = (sender.clone(), 0);
    for _ in 0..100 {
        refused += usize::from(sender.send_request(ask("small")).await.unwrap().status() != 200);
    }
    assert!(refused <= 1, "{refused} of 100 were refused");
    assert!(hog.load(SeqCst) > 0);
    hogs.abort_all();
}

#[tokio::test]
async fn a_key_cannot_take_all_credits_of_a_partitioned_upstream() {
    let origin = Origin::h1();
    let queue = "limit.in_flight = 20\nqueue = { max = 50, timeout = \"30s\", partitions = 64, by = \"header:x-key\" }";
    let proxy = Proxy::from_toml(&config(&origin.url(), queue));
    let mut bad = Vec::new();
    for _ in 0..80 {
        bad.push(send(&proxy, "/gate", &[("x-key", "bad")]));
    }
    assert!(eventually(|| origin.in_flight() == 16 && depth(&proxy) == 40, SOON).await, "{}", origin.in_flight());
    for key in ["a", "b", "c", "d"] {
        assert_eq!(answer(send(&proxy, "/", &[("x-key", key)])).await.status, 200, "{key}");
    }
    assert_eq!((origin.in_flight(), depth(&proxy)), (16, 40));
    origin.open_gate(80);
    let mut served = 0;
    for bad in bad {
        served += usize::from(answer(bad).await.status == 200);
    }
    assert_eq!(served, 56, "those who had a credit or a place");
}

#[tokio::test]
async fn those_who_wait_for_streams_leave_places_to_others() {
    let line = Line::new("limit.streams = 1\nqueue = { max = 8, timeout = \"30s\" }").await;
    let stream = [("accept", "text/event-stream")];
    let _stream = line.send("/gate?stream", &stream);
    assert!(eventually(|| line.origin.in_flight() == 2, SOON).await);
    let mut waiting = Vec::new();
    for _ in 0..8 {
        waiting.push(line.join("/gate?stream", &stream).await);
    }
    assert_refused(&answer(line.send("/gate?stream", &stream)).await, "queue_full");
    let mine = line.send("/gate?mine", &[]);
    assert_refused(&answer(waiting.remove(7)).await, "queue_dropped");
    assert_eq!(depth(&line.proxy), 8);
    line.origin.open_gate(10);
    assert_eq!(answer(mine).await.status, 200);
}

#[tokio::test]
async fn a_reload_finds_the_same_who_wait() {
    let line = Line::new("queue.timeout = \"30s\"").await;
    let _a = line.join("/gate?a", &[]).await;
    let _b = line.join("/gate?b", &[]).await;
    let other = "limit.in_flight = 1\nqueue = { max = 2, timeout = \"30s\", order = \"lifo\" }";
    line.proxy.reload(&config(&line.origin.url(), other)).await;
    assert_refused(&answer(line.send("/gate?c", &[])).await, "queue_full");
    assert_eq!(line.order().await, ["b", "a"]);
}
