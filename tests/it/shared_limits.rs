//! Rate limits that two instances share through a real Redis server, which comes and goes.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::support::{Certs, Proxy, Raw, Redis, empty, eventually, get, h1, request};

const SOON: Duration = Duration::from_secs(10);

/// One route that answers by itself, with this limit.
fn config(store: &str, limit: &str) -> String {
    format!(
        "[store]\n{store}\n[[route]]\nname = \"app\"\nrespond.status = 200\n\
         rate_limit = [{{ name = \"r\", shared = true, {limit} }}]\n"
    )
}

fn at(redis: &Redis) -> String {
    format!("url = \"{}\"", redis.url())
}

fn is_up(proxy: &Proxy) -> bool {
    proxy.metric("headworks_store_up", &[]) as u64 == 1
}

/// Two instances that know of each other.
async fn pair(store: &str, limit: &str) -> [Proxy; 2] {
    let proxies = [(); 2].map(|()| Proxy::from_toml(&config(store, limit)));
    let both = || proxies.iter().all(|proxy| proxy.metric("headworks_store_instances", &[]) as u64 == 2);
    assert!(eventually(both, SOON).await, "they do not find each other:\n{}", proxies[0].log());
    proxies
}

/// Asks without a pause, on two connections, and counts what is let through. Nothing but 200 and 429 may come.
async fn flood(addr: SocketAddr, during: Duration) -> usize {
    let one = async || {
        let (mut client, end, mut allowed) = (h1(addr).await, Instant::now() + during, 0);
        while Instant::now() < end {
            client.ready().await.unwrap();
            let answer = client.send_request(request("GET", addr, "/", empty())).await.expect("an answer");
            let status = answer.status().as_u16();
            assert!(matches!(status, 200 | 429), "{status}");
            allowed += usize::from(status == 200);
            sleep(Duration::from_millis(2)).await;
        }
        allowed
    };
    let (one, two) = tokio::join!(one(), one());
    one + two
}

/// Floods both; what each has let through, and how long it took.
async fn flood_both(proxies: &[Proxy; 2], during: Duration) -> ([usize; 2], f64) {
    let began = Instant::now();
    let (one, two) = tokio::join!(flood(proxies[0].public(), during), flood(proxies[1].public(), during));
    ([one, two], began.elapsed().as_secs_f64())
}

const RATE: f64 = 200.0;
const BURST: f64 = 100.0;
const LIMIT: &str = "by = \"all\", rate = \"200/s\", burst = 100";

#[tokio::test]
async fn two_instances_admit_the_shared_rate_with_the_store_and_without_it() {
    let mut redis = Redis::start();
    let proxies = pair(&at(&redis), LIMIT).await;
    let ([one, two], seconds) = flood_both(&proxies, Duration::from_secs(3)).await;
    let (total, expected) = ((one + two) as f64, BURST + RATE * seconds);
    println!("with the store: {one} and {two}, {:.3} of the limit", total / expected);
    assert!((total / expected - 1.0).abs() <= 0.05, "{one} and {two} where {expected:.0} are right");
    assert!(one.min(two) * 4 > one.max(two), "one starves: {one} and {two}");
    for proxy in &proxies {
        let by = |by: &str| proxy.metric("headworks_rate_limit_shared_total", &[("by", by)]);
        assert!(by("lease") > by("share"), "{} by a lease, {} by the share", by("lease"), by("share"));
        let asks = proxy.metric("headworks_store_asks_total", &[("result", "answered")]);
        assert!(asks < by("lease") / 2.0, "{asks} asks for {} requests", by("lease"));
    }

    redis.kill();
    let ([one, two], seconds) = flood_both(&proxies, Duration::from_secs(2)).await;
    let total = (one + two) as f64;
    println!("without it: {one} and {two}, {:.3} of the rate", total / (RATE * seconds));
    assert!(total >= 0.9 * RATE * seconds, "{one} and {two} in {seconds:.2} s");
    assert!(total <= 1.05 * (BURST + RATE * seconds), "{one} and {two} in {seconds:.2} s");
    for proxy in &proxies {
        assert!(!is_up(proxy) && proxy.log().contains("the shared store is away"), "{}", proxy.log());
        assert_eq!(proxy.log().matches("store is away").count(), 1, "said once");
    }

    redis.restart();
    assert!(eventually(|| proxies.iter().all(is_up), SOON).await, "it is not asked again:\n{}", proxies[0].log());
    let ([one, two], seconds) = flood_both(&proxies, Duration::from_secs(2)).await;
    let total = (one + two) as f64;
    println!("with it again: {one} and {two}, {:.3} of the rate", total / (RATE * seconds));
    // What was let through without it is owed, up to a burst.
    assert!(total >= 0.9 * RATE * seconds, "{one} and {two} in {seconds:.2} s");
    assert!(total <= 1.05 * (BURST + RATE * seconds), "{one} and {two} in {seconds:.2} s");
}

#[tokio::test]
async fn a_store_that_hangs_holds_up_nobody() {
    let redis = Redis::start();
    let limit = "by = \"header:x\", rate = \"100/s\", burst = 100";
    let proxy = Proxy::from_toml(&config(&at(&redis), limit));
    assert!(eventually(|| is_up(&proxy), SOON).await);
    redis.signal("STOP");
    let mut client = h1(proxy.public()).await;
    let began = Instant::now();
    while is_up(&proxy) {
        client.ready().await.unwrap();
        let answer = client.send_request(request("GET", proxy.public(), "/", empty())).await.expect("an answer");
        assert!(matches!(answer.status().as_u16(), 200 | 429));
        assert!(began.elapsed() < SOON, "it is waited for");
    }
    redis.signal("CONT");
    assert!(eventually(|| is_up(&proxy), SOON).await, "{}", proxy.log());
}

/// The answer's status and its `Retry-After`.
async fn ask(proxy: &Proxy, key: &str) -> (u16, u64) {
    let mut client = Raw::connect(proxy.public()).await;
    client.send(format!("GET / HTTP/1.1\r\nhost: a\r\nauthorization: {key}\r\n\r\n")).await;
    let (status, headers) = client.head().await;
    let after = headers.get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
    (status, after.unwrap_or(0))
}

#[tokio::test]
async fn a_key_has_one_bucket_for_all_and_no_name_in_the_store() {
    let redis = Redis::start();
    let limit = "by = \"header:authorization\", rate = \"60/hour\", burst = 5";
    let proxies = pair(&format!("{}\nwait = \"5s\"", at(&redis)), limit).await;
    for number in 0..5 {
        assert_eq!(ask(&proxies[number % 2], "the-secret-key").await.0, 200, "{number}");
    }
    for proxy in &proxies {
        let (status, after) = ask(proxy, "the-secret-key").await;
        assert!(status == 429 && (50..=70).contains(&after), "{status} {after}");
        assert_eq!(ask(proxy, "another").await.0, 200);
    }
    let mut keys = redis.keys();
    keys.sort();
    assert_eq!((keys.len(), keys[0].as_str()), (3, "headworks:instances"), "{keys:?}");
    assert!(
        keys[1..].iter().all(|key| key.starts_with("headworks:limit:app:r:") && !key.contains("secret")),
        "{keys:?}"
    );
}

#[tokio::test]
async fn nothing_stays_behind() {
    let redis = Redis::start();
    let proxy = Proxy::from_toml(&config(&format!("{}\nprefix = \"mine\"", at(&redis)), LIMIT));
    assert!(eventually(|| is_up(&proxy), SOON).await);
    assert_eq!(get(proxy.public(), "/").await.status, 200);
    assert!(redis.keys().iter().all(|key| key.starts_with("mine:")));
    // The bucket goes when it would be full, and the list of instances with the last of them.
    drop(proxy);
    assert!(eventually(|| redis.keys().is_empty(), Duration::from_secs(15)).await, "{:?}", redis.keys());
}

#[tokio::test]
async fn a_reload_keeps_the_connection_and_what_is_leased() {
    let redis = Redis::start();
    let text = config(&format!("{}\nwait = \"5s\"", at(&redis)), "by = \"all\", rate = \"1/hour\", burst = 3");
    let proxy = Proxy::from_toml(&text);
    assert!(eventually(|| is_up(&proxy), SOON).await);
    let status = async || get(proxy.public(), "/").await.status.as_u16();
    assert_eq!(status().await, 200);
    proxy.reload(&format!("{text}\n[[route]]\nmatch.path = \"/more\"\nrespond.status = 204\n")).await;
    assert_eq!([status().await, status().await, status().await], [200, 200, 429]);
    assert_eq!(proxy.log().matches("the shared store is there").count(), 1);
    // Without a limit that is shared, nobody asks.
    proxy.reload(&text.replace("shared = true", "shared = false")).await;
    assert_eq!(status().await, 200);
    assert!(eventually(|| !is_up(&proxy), SOON).await);
}

#[tokio::test]
async fn the_store_is_reached_by_socket_by_password_and_over_tls() {
    let certs = Certs::new();
    let mut tls_port = 0;
    let redis = Redis::with(|port, _| {
        tls_port = port;
        let pairs = [
            ("--requirepass", "the-password".to_owned()),
            ("--tls-port", port.to_string()),
            ("--tls-cert-file", certs.name("server.pem")),
            ("--tls-key-file", certs.name("server.key")),
            ("--tls-ca-cert-file", certs.name("ca.pem")),
            ("--tls-auth-clients", "no".to_owned()),
        ];
        pairs.into_iter().flat_map(|(key, value)| [key.to_owned(), value]).collect()
    });
    let password = "password = { env = \"STORE_PASSWORD\" }";
    for store in [
        format!("url = \"unix:{}\"\n{password}", redis.socket().display()),
        format!("url = \"{}/1\"\n{password}\nusername = \"default\"", redis.url()),
        format!("url = \"rediss://localhost:{tls_port}\"\n{password}\nca = \"{}\"", certs.name("ca.pem")),
    ] {
        let proxy = Proxy::with_env(&config(&store, LIMIT), &[("STORE_PASSWORD", "the-password")]);
        assert!(eventually(|| is_up(&proxy), SOON).await, "{store}\n{}", proxy.log());
        assert!(!proxy.page("/config").1.contains("the-password"));
    }
    let store = format!("{}\npassword = \"another\"", at(&redis));
    let proxy = Proxy::from_toml(&config(&store, LIMIT));
    assert!(eventually(|| proxy.log().contains("WRONGPASS"), SOON).await, "{}", proxy.log());
    assert_eq!(get(proxy.public(), "/").await.status, 200, "it serves all the same");
}
