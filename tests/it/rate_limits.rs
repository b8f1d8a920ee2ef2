//! Rate limits: what they count, and what they tell and charge.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::Request;

use crate::support::{Answer, Origin, Proxy, Raw, channel, empty, eventually, get, h1, h2, request};

const SOON: Duration = Duration::from_secs(5);

/// One route to the origin with this limit.
fn limited(origin: &Origin, limit: &str) -> String {
    format!(
        "[upstream.app]\nendpoints = [\"{}\"]\n[[route]]\nname = \"app\"\nupstream = \"app\"\nrate_limit = [{limit}]\n",
        origin.url()
    )
}

async fn ask(proxy: &Proxy, path: &str, fields: &[(&'static str, &str)]) -> u16 {
    ask_with(proxy, "GET", path, fields).await
}

async fn ask_with(proxy: &Proxy, method: &str, path: &str, fields: &[(&'static str, &str)]) -> u16 {
    let mut request = Request::builder().method(method).uri(path);
    if !fields.iter().any(|(name, _)| *name == "host") {
        request = request.header("host", "test.local");
    }
    let request = fields.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let answer = h1(proxy.public()).await.send_request(request.body(empty()).unwrap()).await.unwrap();
    Answer::of(answer).await.unwrap().status.as_u16()
}

/// With one request an hour for each key: `same` share one, and `other` has another.
async fn tells_apart(by: &str, same: &[(&str, &[(&'static str, &str)])], other: (&str, &[(&'static str, &str)])) {
    let route = format!("[[route]]\nrespond.status = 204\nrate_limit = {{ by = {by}, rate = \"1/hour\" }}\n");
    let proxy = Proxy::from_toml(&route);
    for (number, (path, fields)) in same.iter().enumerate() {
        let expected = if number == 0 { 204 } else { 429 };
        assert_eq!(ask(&proxy, path, fields).await, expected, "{by}: {path} {fields:?}");
    }
    assert_eq!(ask(&proxy, other.0, other.1).await, 204, "{by}: {other:?}");
}

#[tokio::test]
async fn every_form_of_a_key_tells_apart_what_it_should_and_nothing_else() {
    tells_apart(
        "\"header:authorization\"",
        &[("/", &[("authorization", "Bearer a")]), ("/x", &[("authorization", "bearer  a")])],
        ("/", &[("authorization", "Bearer b")]),
    )
    .await;
    tells_apart(
        "\"header:x-key\"",
        &[("/", &[]), ("/", &[("x-key", "a"), ("x-key", "b")]), ("/", &[("x-key", "a"), ("x-key", "junk")])],
        ("/", &[("x-key", "a")]),
    )
    .await;
    tells_apart(
        "\"cookie:sid\"",
        &[("/", &[("cookie", "sid=a")]), ("/", &[("cookie", "x=1; sid=a")]), ("/", &[("cookie", "sid=%61")])],
        ("/", &[("cookie", "sid=b")]),
    )
    .await;
    tells_apart("\"query:user\"", &[("/?user=a", &[]), ("/x?y=1&us%65r=%61", &[])], ("/?user=b", &[])).await;
    tells_apart(
        "\"host\"",
        &[("/", &[("host", "a.test")]), ("/", &[("host", "A.test:80")])],
        ("/", &[("host", "b.test")]),
    )
    .await;
    tells_apart("\"path\"", &[("/a?x", &[]), ("/%61", &[])], ("/b", &[])).await;
    let key = |value| [("x-key", value)];
    tells_apart("[\"header:x-key\", \"path\"]", &[("/a", &key("a")), ("/a", &key("a"))], ("/b", &key("a"))).await;
}

#[tokio::test]
async fn a_method_is_a_key_and_so_is_it_with_a_client() {
    let proxy = Proxy::from_toml(
        "[[route]]\nrespond.status = 204\nrate_limit = { by = [\"client\", \"method\"], rate = \"1/hour\" }\n",
    );
    let mut statuses = Vec::new();
    for method in ["GET", "POST", "GET", "POST"] {
        statuses.push(ask_with(&proxy, method, "/", &[]).await);
    }
    assert_eq!(statuses, [204, 204, 429, 429]);
}

#[tokio::test]
async fn bytes_of_answers_are_charged_on_both_versions_and_debt_refuses() {
    let origin = Origin::h1();
    let limit = "{ name = \"down\", by = \"header:x-key\", cost = \"response_bytes\", rate = \"100KiB/hour\" }";
    let proxy = Proxy::from_toml(&limited(&origin, limit));
    for (version, key) in [("h1", "a"), ("h2", "b")] {
        let ask = async |path: &str| {
            let mut request = request("GET", proxy.public(), path, empty());
            request.headers_mut().insert("x-key", key.parse().unwrap());
            let answer = if version == "h2" {
                h2(proxy.public(), 1 << 20).await.send_request(request).await.unwrap()
            } else {
                h1(proxy.public()).await.send_request(request).await.unwrap()
            };
            Answer::of(answer).await.unwrap()
        };
        let answer = ask("/bytes/40960").await;
        assert_eq!((answer.status.as_u16(), answer.body.len()), (200, 40960), "{version}");
        assert!(answer.header("ratelimit").starts_with("\"down\";r=102400;"), "{version}: {answer:?}");
        assert_eq!(answer.header("ratelimit-policy"), "\"down\";q=102400;w=3600;qu=\"content-bytes\"");
        let answer = ask("/bytes/102400").await;
        assert_eq!(answer.body.len(), 102_400, "{version}: what has begun is not held back");
        let left = answer.header("ratelimit").split(';').nth(1).unwrap().trim_start_matches("r=").parse::<u64>();
        assert!((61_440..61_600).contains(&left.unwrap()), "{version}: {answer:?}");
        let refused = ask("/bytes/1").await;
        assert_eq!(refused.status, 429, "{version}");
        // 40 KiB of debt are two fifths of an hour.
        let wait = refused.header("retry-after").parse::<u64>().unwrap();
        assert!((1400..=1585).contains(&wait), "{version}: {wait}");
    }
    assert_eq!(origin.seen().len(), 4);
}

#[tokio::test]
async fn an_answer_that_is_broken_off_is_charged_for_what_passed() {
    let origin = Origin::h1();
    let limit = "{ cost = \"response_bytes\", rate = \"64KiB/hour\" }";
    let proxy = Proxy::from_toml(&limited(&origin, limit));
    let mut client = Raw::connect(proxy.public()).await;
    client.get("/flood/4096").await;
    client.read_n(256 * 1024).await;
    client.abort();
    assert!(eventually(|| origin.in_flight() == 0, SOON).await);
    assert_eq!(get(proxy.public(), "/bytes/1").await.status, 429);
}

#[tokio::test]
async fn bytes_of_requests_are_charged_as_they_are_read() {
    let origin = Origin::h1();
    let limit = "{ by = \"header:x-key\", cost = \"request_bytes\", rate = \"1KiB/hour\" }";
    let proxy = Proxy::from_toml(&limited(&origin, limit));
    for key in ["h1", "h2"] {
        let post = async |bytes: usize| {
            let (mut sender, body) = channel();
            let mut request = request("POST", proxy.public(), "/discard", body);
            request.headers_mut().insert("x-key", key.parse().unwrap());
            tokio::spawn(async move { sender.send_data(Bytes::from(vec![0; bytes])).await });
            let answer = if key == "h2" {
                h2(proxy.public(), 1 << 20).await.send_request(request).await.unwrap()
            } else {
                h1(proxy.public()).await.send_request(request).await.unwrap()
            };
            Answer::of(answer).await.unwrap().status.as_u16()
        };
        assert_eq!([post(1000).await, post(1000).await, post(1).await], [200, 200, 429], "{key}");
    }
}

#[tokio::test]
async fn a_dry_run_is_counted_and_logged_and_refuses_nothing() {
    let proxy = Proxy::from_toml(
        "[log]\naccess = \"json\"\n[[route]]\nname = \"app\"\nrespond.status = 204\n\
         rate_limit = { name = \"tried\", by = \"all\", rate = \"1/hour\", dry_run = true }\n",
    );
    for path in ["/0", "/1", "/2"] {
        let answer = get(proxy.public(), path).await;
        assert_eq!(
            (answer.status.as_u16(), answer.header("ratelimit"), answer.header("ratelimit-policy")),
            (204, "", "")
        );
    }
    let count = |result| {
        proxy.metric("headworks_rate_limit_requests_total", &[("route", "app"), ("limit", "tried"), ("result", result)])
    };
    assert_eq!((count("allowed"), count("dry_run"), count("refused")), (1.0, 2.0, 0.0));
    assert_eq!(proxy.logged("/0").await["would_refuse"], serde_json::Value::Null);
    assert_eq!(proxy.logged("/1").await["would_refuse"], "rate_limited");
    let said = || proxy.log().lines().filter(|line| line.contains("would have refused")).count();
    assert!(eventually(|| said() == 1, SOON).await, "{}", proxy.log());
}

#[tokio::test]
async fn a_schedule_raises_the_rate_at_its_hours() {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let at = |hours: u64| format!("{:02}:{:02}", (now / 3600 + hours) % 24, now / 60 % 60);
    let route = |name: &str, from: u64, to: u64| {
        format!(
            "[[route]]\nname = \"{name}\"\nmatch.path = \"/{name}\"\nrespond.status = 204\nrate_limit = {{ by = \"all\", \
             rate = \"60/min\", surge = {{ from = \"{}\", to = \"{}\", factor = 2.5 }} }}\n",
            at(from),
            at(to)
        )
    };
    let proxy = Proxy::from_toml(&(route("raised", 23, 2) + &route("usual", 6, 9)));
    let policy = async |path| get(proxy.public(), path).await.header("ratelimit-policy").to_owned();
    assert_eq!(policy("/raised").await, "\"limit-1\";q=150;w=60");
    assert_eq!(policy("/usual").await, "\"limit-1\";q=60;w=60");
}

#[tokio::test]
async fn top_talkers_leave_room_for_the_others() {
    let proxy = Proxy::from_toml(
        "[[route]]\nname = \"app\"\nrespond.status = 204\nrate_limit = { by = \"all\", rate = \"1/hour\", burst = 40, \
         top_talkers = { by = \"header:x-key\", count = 2, share = \"10%\" } }\n",
    );
    let mut passed = 0;
    for _ in 0..40 {
        passed += u32::from(ask(&proxy, "/", &[("x-key", "hog")]).await == 204);
    }
    assert_eq!(passed, 24, "half of the burst, and a tenth that is its own");
    for other in 0..16 {
        assert_eq!(ask(&proxy, "/", &[("x-key", &format!("other {other}"))]).await, 204, "{other}");
    }
    assert_eq!(ask(&proxy, "/", &[("x-key", "one too many")]).await, 429);
}

#[tokio::test]
async fn buckets_outlive_a_reload_and_memory_stays_flat_under_strangers() {
    let limit = |rate: &str| {
        format!(
            "[log]\naccess = \"off\"\n[[route]]\nname = \"app\"\nrespond.status = 204\nrate_limit = {{ name = \"r\", by = \"query:k\", \
             rate = \"{rate}\", burst = 1, max_keys = 1000 }}\n"
        )
    };
    let proxy = Proxy::from_toml(&limit("1/hour"));
    let mut client = h1(proxy.public()).await;
    let mut ask = async |key: String| {
        let request = Request::get(format!("/?k={key}")).header("host", "test.local").body(empty()).unwrap();
        Answer::of(client.send_request(request).await.unwrap()).await.unwrap().status.as_u16()
    };
    for stranger in 0..3000 {
        assert_eq!(ask(stranger.to_string()).await, 204);
    }
    let keys = proxy.metric("headworks_rate_limit_keys", &[("limit", "r")]);
    assert!((700.0..=1000.0).contains(&keys), "{keys}");
    assert!(proxy.metric("headworks_rate_limit_evictions_total", &[("limit", "r")]) >= 2000.0);
    assert_eq!([ask("mine".into()).await, ask("mine".into()).await], [204, 429]);
    proxy.reload(&(limit("1/hour") + "headers.response.set = { x-new = \"1\" }\n")).await;
    assert_eq!(ask("mine".into()).await, 429, "the bucket is as empty as it was");
    proxy.reload(&limit("2/hour")).await;
    assert_eq!(ask("mine".into()).await, 204, "another rate is another limit");
}

#[tokio::test]
async fn an_operator_raises_a_rate_for_a_while() {
    let token = "0123456789abcdef-the-token";
    let proxy = Proxy::with_env(
        "[admin]\ntoken = { env = \"T\" }\n[[route]]\nname = \"app\"\nrespond.status = 204\n\
         rate_limit = { name = \"r\", by = \"all\", rate = \"6/hour\", burst = 1 }\n",
        &[("T", token)],
    );
    let shown = format!("authorization: Bearer {token}\r\n");
    let order = |method: &str, path: &str| proxy.ask_admin(method, path, &shown);
    let row = || {
        let (status, text) = order("GET", "/limits?format=json");
        assert_eq!(status, 200, "{text}");
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["limits"][0].clone()
    };
    let raise = "/surge/app/r?factor=100&for=1h&ramp=0s";
    assert_eq!(proxy.ask_admin("POST", raise, "").0, 401, "as every verb");
    assert_eq!(get(proxy.public(), "/").await.status, 204);
    let refused = get(proxy.public(), "/").await;
    assert_eq!(refused.status, 429);
    assert!((595..=660).contains(&refused.header("retry-after").parse::<u64>().unwrap()), "{refused:?}");
    assert_eq!((row()["rate_now"].as_str(), row()["stays_s"].as_u64()), (Some("6/h"), None));

    assert_eq!(order("POST", raise).0, 200);
    let refused = get(proxy.public(), "/").await;
    assert_eq!(refused.header("ratelimit-policy"), "\"r\";q=600;w=3600");
    assert!((1..=7).contains(&refused.header("retry-after").parse::<u64>().unwrap()), "ten minutes take six seconds");
    assert_eq!((row()["rate_now"].as_str(), row()["factor"].as_str()), (Some("600/h"), Some("100")));
    assert!(row()["stays_s"].as_u64().is_some_and(|seconds| (3500..3600).contains(&seconds)), "{}", row());

    assert_eq!(order("DELETE", "/surge/app/r").0, 200);
    assert_eq!(get(proxy.public(), "/").await.header("ratelimit-policy"), "\"r\";q=6;w=3600");
    assert_eq!(order("POST", "/surge/app/nothing?factor=2&for=1m").0, 404);
    assert_eq!(order("POST", "/surge/app/r?factor=2").0, 400);
    assert_eq!(order("POST", "/surge/app/r?factor=0.5&for=1m").0, 400);
    let counts = (row()["allowed"].as_u64(), row()["refused"].as_u64(), row()["keys"].as_u64());
    assert_eq!(counts, (Some(1), Some(3), Some(1)));
}

#[tokio::test]
async fn who_asks_most_is_shown_by_rank_and_without_secrets() {
    let proxy = Proxy::from_toml(
        "[[route]]\nname = \"app\"\nrespond.status = 204\nrate_limit = [\
         { name = \"keys\", by = \"all\", rate = \"1000/s\", top_talkers = { by = \"header:x-key\", count = 2 } },\
         { name = \"paths\", by = \"all\", rate = \"1000/s\", dry_run = true, top_talkers = { by = \"path\", count = 2 } }]\n",
    );
    for n in 0..20 {
        let (key, path) = if n % 4 == 0 { ("light", "/a") } else { ("hunter2", "/b") };
        assert_eq!(ask(&proxy, path, &[("x-key", key)]).await, 204);
    }
    let (_, text) = proxy.page("/talkers?format=json");
    let talkers = serde_json::from_str::<serde_json::Value>(&text).unwrap()["talkers"].clone();
    assert_eq!(
        (&talkers[0]["count"], &talkers[0]["share"], &talkers[1]["count"]),
        (&15.into(), &"75.0%".into(), &5.into())
    );
    assert!(
        talkers[0]["talker"].as_str().unwrap().starts_with("header:x-key=#") && !text.contains("hunter2"),
        "{text}"
    );
    assert_eq!((&talkers[2]["talker"], &talkers[2]["rank"]), (&"/b".into(), &1.into()));
    let share = |rank| {
        proxy.metric("headworks_rate_limit_talker_share", &[("route", "app"), ("limit", "keys"), ("rank", rank)])
    };
    assert_eq!((share("1"), share("2"), share("3")), (0.75, 0.25, 0.0));
    assert!(!proxy.metrics().text().contains("hunter2"));
}
