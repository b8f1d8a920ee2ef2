//! What a request and an answer look like on the other side.

use std::time::Duration;

use http::HeaderMap;
use serde_json::Value;

use crate::support::{Answer, Origin, Proxy, Raw, channel, empty, eventually, get, h2, request};

fn proxy(origin: &Origin, upstream: &str, route: &str) -> Proxy {
    Proxy::from_toml(&format!(
        "[upstream.app]\nendpoints = [\"{}\"]\n{upstream}\n[[route]]\nupstream = \"app\"\n{route}\n",
        origin.url()
    ))
}

/// Sends this head and gives the head that the origin saw, as JSON.
async fn through(proxy: &Proxy, head: &str) -> Value {
    let mut client = Raw::connect(proxy.public()).await;
    client.send(head.replace('\n', "\r\n")).await;
    let (status, headers) = client.head().await;
    assert_eq!(status, 200);
    let length = headers["content-length"].to_str().unwrap().parse().unwrap();
    serde_json::from_slice(&client.read_n(length).await).unwrap()
}

fn field<'a>(head: &'a Value, name: &str) -> Option<&'a str> {
    head["headers"][name][0].as_str()
}

#[tokio::test]
async fn fields_of_one_hop_stay_there() {
    for origin in [Origin::h1(), Origin::h2c()] {
        let proxy = proxy(&origin, "", "");
        let head = through(
            &proxy,
            "GET /head?a=1&b=%20 HTTP/1.1\nhost: test.local\nconnection: keep-alive, x-secret\nx-secret: 1\n\
             keep-alive: timeout=5\nproxy-authorization: basic eA==\nproxy-connection: keep-alive\nte: trailers, deflate\n\
             x-kept: yes\n\n",
        )
        .await;
        for name in ["connection", "x-secret", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"] {
            assert_eq!(field(&head, name), None, "{name} passed: {head}");
        }
        assert!(matches!(field(&head, "te"), None | Some("trailers")), "{head}");
        assert_eq!(field(&head, "x-kept"), Some("yes"));
        assert_eq!(head["path"], "/head?a=1&b=%20", "the target is forwarded as it was");
    }
}

#[tokio::test]
async fn the_upstream_learns_who_asked() {
    let origin = Origin::h1();
    let proxy = proxy(&origin, "", "");
    let head = through(
        &proxy,
        "GET /head HTTP/1.1\nhost: test.local:99\nx-forwarded-for: 6.6.6.6\nx-forwarded-proto: https\n\
         forwarded: for=6.6.6.6\n\n",
    )
    .await;
    // The peer is no trusted proxy: what it claims is replaced, not extended.
    assert_eq!(field(&head, "x-forwarded-for"), Some("127.0.0.1"), "{head}");
    assert_eq!(field(&head, "x-forwarded-proto"), Some("http"));
    assert_eq!(field(&head, "x-forwarded-host"), Some("test.local:99"));
    let forwarded = field(&head, "forwarded").expect("Forwarded").to_ascii_lowercase();
    assert!(forwarded.contains("for=127.0.0.1") && forwarded.contains("proto=http"), "{forwarded}");
    assert!(!forwarded.contains("6.6.6.6"), "{forwarded}");
    assert!(field(&head, "via").expect("Via").starts_with("1.1 "), "{head}");
    assert_eq!(field(&head, "host"), Some("test.local:99"), "the host is kept");
}

#[tokio::test]
async fn a_trusted_proxy_is_believed() {
    let origin = Origin::h1();
    let proxy = Proxy::from_toml(&format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\ntrusted_proxies = [\"127.0.0.0/8\"]\n\
         [upstream.app]\nendpoints = [\"{}\"]\n[[route]]\nupstream = \"app\"\n",
        origin.url()
    ));
    let head =
        through(&proxy, "GET /head HTTP/1.1\nhost: a\nx-forwarded-for: 6.6.6.6\nx-forwarded-proto: https\n\n").await;
    let chain = field(&head, "x-forwarded-for").unwrap();
    assert!(chain.starts_with("6.6.6.6") && chain.contains("127.0.0.1"), "{chain}");
    assert_eq!(field(&head, "x-forwarded-proto"), Some("https"));
}

#[tokio::test]
async fn the_client_behind_trusted_proxies_is_the_first_that_is_not_one() {
    let origin = Origin::h1();
    let proxy = Proxy::from_toml(&format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\ntrusted_proxies = [\"127.0.0.0/8\", \"10.0.0.0/8\"]\n\
         [log]\naccess = \"json\"\n[upstream.app]\nendpoints = [\"{}\"]\n[[route]]\nupstream = \"app\"\n",
        origin.url()
    ));
    let cases: [(&[&[u8]], &str); 14] = [
        (&[b"6.6.6.6"], "6.6.6.6"),
        (&[b"6.6.6.6, 10.0.0.1"], "6.6.6.6"),
        // What anybody may have written stands left of the last that is no proxy of ours.
        (&[b"6.6.6.6, 7.7.7.7, 10.0.0.1"], "7.7.7.7"),
        // Lines are one list: the last is the nearest.
        (&[b"6.6.6.6", b"7.7.7.7"], "7.7.7.7"),
        (&[b"6.6.6.6", b"7.7.7.7, 10.0.0.1", b"10.0.0.2"], "7.7.7.7"),
        (&[b"6.6.6.6", b"10.0.0.1, 10.0.0.2"], "6.6.6.6"),
        // What cannot be read ends the search.
        (&[b"6.6.6.6", b"\xff"], "127.0.0.1"),
        (&[b"6.6.6.6", b"\xff, 10.0.0.1"], "10.0.0.1"),
        (&[b"6.6.6.6, \xff, 7.7.7.7"], "7.7.7.7"),
        (&[b"6.6.6.6, nobody"], "127.0.0.1"),
        (&[b"6.6.6.6:4711"], "6.6.6.6"),
        (&[b"6.6.6.6, 10.0.0.1:80"], "6.6.6.6"),
        (&[b"[2001:db8::1]:443"], "2001:db8::1"),
        (&[b"[2001:db8::1]"], "2001:db8::1"),
    ];
    for (at, (lines, client)) in cases.iter().enumerate() {
        let path = format!("/{at}");
        let mut head = format!("GET {path} HTTP/1.1\r\nhost: a\r\n").into_bytes();
        for line in *lines {
            head.extend_from_slice(&[b"x-forwarded-for: ", *line, b"\r\n"].concat());
        }
        let mut raw = Raw::connect(proxy.public()).await;
        raw.send([&head[..], b"\r\n"].concat()).await;
        assert_eq!(raw.head().await.0, 200);
        let line = proxy.logged(&path).await;
        assert_eq!(line["client"], *client, "{line}");
        // The upstream gets one line of what came, and whom it came from.
        let seen = origin.last().headers;
        let all: Vec<&[u8]> = seen.get_all("x-forwarded-for").iter().map(http::HeaderValue::as_bytes).collect();
        assert_eq!(all, [[lines.join(&b", "[..]).as_slice(), b", 127.0.0.1"].concat()]);
    }
}

#[tokio::test]
async fn clients_behind_one_proxy_are_limited_one_by_one() {
    let origin = Origin::h1();
    let proxy = Proxy::from_toml(&format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\ntrusted_proxies = [\"127.0.0.0/8\"]\n\
         [upstream.app]\nendpoints = [\"{}\"]\n[[route]]\nupstream = \"app\"\n\
         rate_limit = [{{ by = \"client\", rate = \"1/hour\", burst = 1 }}]\n",
        origin.url()
    ));
    let mut raw = Raw::connect(proxy.public()).await;
    for (client, status) in [("6.6.6.6:1", 204), ("6.6.6.6:2", 429), ("1.1.1.1, 6.6.6.6", 429), ("1.1.1.1", 204)] {
        raw.send(format!("GET /status/204 HTTP/1.1\r\nhost: a\r\nx-forwarded-for: {client}\r\n\r\n")).await;
        let (got, headers) = raw.head().await;
        assert_eq!(got, status, "{client}");
        if let Some(length) = headers.get("content-length") {
            raw.read_n(length.to_str().unwrap().parse().unwrap()).await;
        }
    }
    assert_eq!(origin.seen().len(), 2);
}

#[tokio::test]
async fn the_host_is_kept_or_replaced() {
    let origin = Origin::h1();
    let endpoint = origin.addr().to_string();
    for (setting, host) in
        [("", "test.local"), ("host = \"endpoint\"", &endpoint), ("host = \"fixed.test\"", "fixed.test")]
    {
        let proxy = proxy(&origin, setting, "");
        let head = through(&proxy, "GET /head HTTP/1.1\nhost: test.local\n\n").await;
        assert_eq!(field(&head, "host"), Some(host), "with {setting:?}");
    }
}

#[tokio::test]
async fn a_trace_is_passed_on_or_begun() {
    let origin = Origin::h1();
    let proxy = proxy(&origin, "", "");
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let head = through(&proxy, &format!("GET /head HTTP/1.1\nhost: a\ntraceparent: {parent}\n\n")).await;
    let passed = field(&head, "traceparent").expect("traceparent");
    assert_eq!(&passed[..36], &parent[..36], "the trace goes on: {passed}");
    let head = through(&proxy, "GET /head HTTP/1.1\nhost: a\n\n").await;
    let begun = field(&head, "traceparent").expect("a trace is begun");
    assert!(begun.len() == 55 && begun.starts_with("00-"), "{begun}");
}

#[tokio::test]
async fn a_trace_is_not_lost_by_naming_it_in_connection() {
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    for origin in [Origin::h1(), Origin::h2c()] {
        let proxy = proxy(&origin, "", "");
        for named in ["traceparent", "TraceParent, x-secret", "close, traceparent"] {
            let ask = format!("GET /head HTTP/1.1\nhost: a\nconnection: {named}\nx-secret: 1\n");
            let head = through(&proxy, &format!("{ask}traceparent: {parent}\n\n")).await;
            let passed = field(&head, "traceparent").unwrap_or_else(|| panic!("no trace with {named}: {head}"));
            assert_eq!(&passed[..36], &parent[..36], "the trace goes on");
            assert_ne!(passed, parent, "under a span of ours");
            assert_eq!(head["headers"]["traceparent"].as_array().map(Vec::len), Some(1));
            assert_eq!(field(&head, "x-secret").is_none(), named.contains("secret"), "what else is named goes");
            let head = through(&proxy, &format!("{ask}\n")).await;
            assert_eq!(field(&head, "traceparent").map(str::len), Some(55), "a trace is begun: {head}");
        }
    }
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    for origin in [Origin::h1(), Origin::h2c()] {
        let proxy = proxy(&origin, "", "");
        // h1 client: it has to say that it takes trailers.
        let mut client = Raw::connect(proxy.public()).await;
        client.send("GET /trailers HTTP/1.1\r\nhost: a\r\nte: trailers\r\nconnection: te\r\n\r\n").await;
        assert_eq!(client.head().await.0, 200);
        let body = client.until("\r\n\r\n").await;
        assert!(body.to_ascii_lowercase().contains("0\r\nx-checksum: abc\r\n"), "{body:?}");

        // h2 client, and its own trailers come back from the echo.
        let mut client = h2(proxy.public(), 1 << 16).await;
        let (mut sender, payload) = channel();
        let mut post = request("POST", proxy.public(), "/echo", payload);
        post.headers_mut().insert("trailer", "x-checksum".parse().unwrap());
        post.headers_mut().insert("te", "trailers".parse().unwrap());
        let answer = client.send_request(post);
        sender.send_data("body".into()).await.unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("x-checksum", "123".parse().unwrap());
        sender.send_trailers(trailers).await.unwrap();
        drop(sender);
        let answer = Answer::of(answer.await.unwrap()).await.unwrap();
        assert_eq!(answer.text(), "body");
        assert_eq!(answer.trailers.get("x-checksum").map(|value| value.to_str().unwrap()), Some("123"), "{origin:?}");
    }
}

#[tokio::test]
async fn a_length_stays_a_length_and_head_has_no_body() {
    for origin in [Origin::h1(), Origin::h2c()] {
        let proxy = proxy(&origin, "", "");
        let answer = get(proxy.public(), "/bytes/1234").await;
        assert_eq!((answer.header("content-length"), answer.body.len()), ("1234", 1234));
        let mut client = h2(proxy.public(), 1 << 16).await;
        let answer = client.send_request(request("HEAD", proxy.public(), "/bytes/1234", empty())).await.unwrap();
        let answer = Answer::of(answer).await.unwrap();
        assert_eq!((answer.header("content-length"), answer.body.len()), ("1234", 0));
        // A refusal to modify and an empty answer leave the connection usable.
        let mut raw = Raw::connect(proxy.public()).await;
        for status in [204, 304, 200] {
            raw.get(&format!("/status/{status}")).await;
            assert_eq!(raw.head().await.0, status);
        }
    }
}

#[tokio::test]
async fn a_prefix_is_stripped_or_replaced() {
    let origin = Origin::h1();
    let proxy = Proxy::from_toml(&format!(
        "[upstream.app]\nendpoints = [\"{}\"]\n\
         [[route]]\nmatch = {{ path = \"/strip/*\" }}\nupstream = \"app\"\nstrip_prefix = \"/strip\"\n\
         [[route]]\nmatch = {{ path = \"/old/*\" }}\nupstream = \"app\"\nstrip_prefix = \"/old\"\nreplace_prefix = \"/new/base\"\n",
        origin.url()
    ));
    for (asked, seen) in [
        ("/strip/a/b?q=1", "/a/b?q=1"),
        ("/strip", "/"),
        ("/strip?q=1", "/?q=1"),
        ("/old/a", "/new/base/a"),
        ("/old", "/new/base"),
    ] {
        get(proxy.public(), asked).await;
        let path = origin.last().uri.path_and_query().map(ToString::to_string);
        assert_eq!(path.as_deref(), Some(seen), "for {asked}");
    }
    // Only whole segments: this is another path, and nothing is served there.
    assert_eq!(get(proxy.public(), "/stripped").await.status, 404);
}

#[tokio::test]
async fn fields_are_set_added_and_removed() {
    let origin = Origin::h1();
    let proxy = proxy(
        &origin,
        "",
        "headers = { request = { set = { x-tenant = \"a\" }, add = { x-more = \"2\" }, remove = [\"cookie\"] }, \
         response = { set = { x-served-by = \"headworks\" }, remove = [\"content-type\"] } }",
    );
    let mut client = h2(proxy.public(), 1 << 16).await;
    let mut ask = request("GET", proxy.public(), "/head", empty());
    for (name, value) in [("cookie", "c=1"), ("x-tenant", "forged"), ("x-more", "1")] {
        ask.headers_mut().insert(name, value.parse().unwrap());
    }
    let answer = Answer::of(client.send_request(ask).await.unwrap()).await.unwrap();
    let seen = answer.json();
    assert_eq!(field(&seen, "cookie"), None);
    assert_eq!(seen["headers"]["x-tenant"], serde_json::json!(["a"]));
    assert_eq!(seen["headers"]["x-more"], serde_json::json!(["1", "2"]));
    assert_eq!(answer.header("x-served-by"), "headworks");
    assert!(!answer.headers.contains_key("content-type"));
}

#[tokio::test]
async fn a_route_may_answer_by_itself_or_send_elsewhere() {
    let origin = Origin::h1();
    let proxy = Proxy::from_toml(&format!(
        "[upstream.app]\nendpoints = [\"{}\"]\n\
         [[route]]\nmatch = {{ path = \"/robots.txt\" }}\nrespond = {{ status = 200, body = \"User-agent: *\\n\" }}\n\
         [[route]]\nmatch = {{ path = \"/go/*\" }}\nredirect = {{ status = 308, to = \"https://new.test{{path}}\" }}\n\
         [[route]]\nmatch = {{ path = \"/api/*\" }}\nupstream = \"app\"\n",
        origin.url()
    ));
    let answer = get(proxy.public(), "/robots.txt").await;
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "User-agent: *\n"));
    let answer = get(proxy.public(), "/go/there").await;
    assert_eq!((answer.status.as_u16(), answer.header("location")), (308, "https://new.test/go/there"));
    let answer = get(proxy.public(), "/elsewhere").await;
    assert_eq!(answer.status, 404);
    assert!(answer.header("proxy-status").contains("no_route"), "{answer:?}");
    assert_eq!(origin.seen().len(), 0);
}

#[tokio::test]
async fn the_most_specific_route_wins() {
    let route = |matcher: &str, name: &str| {
        format!("[[route]]\nmatch = {{ {matcher} }}\nrespond = {{ status = 200, body = \"{name}\" }}\n")
    };
    let proxy = Proxy::from_toml(
        &[
            route("path = \"/*\"", "all"),
            route("host = \"*.example.com\"", "suffix"),
            route("host = \"api.example.com\"", "host"),
            route("host = \"api.example.com\", path = \"/v1/*\"", "prefix"),
            route("host = \"api.example.com\", path = \"/v1/exact\"", "exact"),
            route("host = \"api.example.com\", path = \"/v1/exact\", methods = [\"DELETE\"]", "method"),
            route("host = \"api.example.com\", path = \"/v1/exact\", headers = { x-canary = \"1\" }", "header"),
        ]
        .concat(),
    );
    for (method, host, path, extra, wins) in [
        ("GET", "other.test", "/v1/exact", "", "all"),
        ("GET", "www.example.com", "/v1/exact", "", "suffix"),
        ("GET", "API.example.com:8080", "/x", "", "host"),
        ("GET", "api.example.com", "/v1/x", "", "prefix"),
        ("GET", "api.example.com", "/v1/exact", "", "exact"),
        ("DELETE", "api.example.com", "/v1/exact", "", "method"),
        ("GET", "api.example.com", "/v1/exact", "x-canary: 1\r\n", "header"),
    ] {
        let mut client = Raw::connect(proxy.public()).await;
        client.send(format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\n{extra}\r\n")).await;
        client.head().await;
        assert_eq!(client.until(wins).await, wins, "{method} {host}{path}");
    }
}

#[tokio::test]
async fn unix_sockets_are_upstreams_too() {
    let dir = tempfile::tempdir().unwrap();
    let origin = Origin::unix(&dir.path().join("app.sock"));
    let proxy = proxy(&origin, "", "");
    assert_eq!(get(proxy.public(), "/delay/1").await.text(), "ok");
}

#[tokio::test]
async fn connections_are_used_again_and_a_stale_one_is_not_noticed() {
    let origin = Origin::h1();
    let proxy = proxy(&origin, "", "");
    for _ in 0..20 {
        assert_eq!(get(proxy.public(), "/").await.status, 200);
    }
    assert_eq!(origin.connections(), 1, "one after the other needs one connection");

    // An upstream that closes after each answer without saying so.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut part = [0; 4096];
            let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut part).await;
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, answer).await;
        }
    });
    let proxy = Proxy::from_toml(&format!("[upstream.app]\nendpoints = [\"{url}\"]\n[[route]]\nupstream = \"app\"\n"));
    for _ in 0..20 {
        let answer = get(proxy.public(), "/").await;
        assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "ok"));
    }
}

#[tokio::test]
async fn what_is_ambiguous_is_refused() {
    let origin = Origin::h1();
    let proxy = proxy(&origin, "", "");
    for request in [
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        "GET / HTTP/1.1\r\nhost : a\r\n\r\n",
    ] {
        let mut client = Raw::connect(proxy.public()).await;
        client.send(request).await;
        let (status, _) = client.head().await;
        assert_eq!(status, 400, "{request:?}");
    }
    assert!(origin.seen().is_empty(), "{:?}", origin.seen());
}

#[tokio::test]
async fn a_host_that_is_named_in_two_ways_is_refused() {
    for origin in [Origin::h1(), Origin::h2c()] {
        let proxy = proxy(&origin, "", "");
        for request in [
            "GET http://user@real.example/ HTTP/1.1\r\nhost: real.example\r\n\r\n",
            "GET http://user:pass@real.example/ HTTP/1.1\r\nhost: user:pass@real.example\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: user@real.example\r\n\r\n",
            "GET http://real.example/head HTTP/1.1\r\nhost: other.test\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n\
             5\r\nhello\r\n0\r\n\r\n",
        ] {
            let mut client = Raw::connect(proxy.public()).await;
            client.send(request).await;
            let (status, headers) = client.head().await;
            assert_eq!(status, 400, "{request:?}");
            assert!(headers["proxy-status"].to_str().unwrap().contains("bad_request"), "{headers:?}");
        }
        for (authority, host) in [("real.example", "other.test"), ("user@real.example", "real.example")] {
            let mut client = h2(proxy.public(), 1 << 16).await;
            let ask = http::Request::get(format!("http://{authority}/")).header("host", host).body(empty()).unwrap();
            let answer = Answer::of(client.send_request(ask).await.unwrap()).await.unwrap();
            assert_eq!(answer.status, 400, "{authority} and {host}: {answer:?}");
            assert!(answer.header("proxy-status").contains("bad_request"), "{answer:?}");
        }
        assert_eq!((origin.connections(), origin.seen().len()), (0, 0), "{:?}", origin.seen());
        // The same host in both places is one host.
        let mut client = h2(proxy.public(), 1 << 16).await;
        let ask = http::Request::get("http://real.example/head").header("host", "Real.Example").body(empty()).unwrap();
        let answer = Answer::of(client.send_request(ask).await.unwrap()).await.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

#[tokio::test]
async fn the_host_of_an_absolute_target_is_the_host_everywhere() {
    for origin in [Origin::h1(), Origin::h2c()] {
        let proxy = Proxy::from_toml(&format!(
            "[log]\naccess = \"json\"\n[upstream.app]\nendpoints = [\"{}\"]\n\
             [[route]]\nname = \"real\"\nmatch = {{ host = \"real.example\", path = \"/head\" }}\nupstream = \"app\"\n\
             [[route]]\nname = \"go\"\nmatch = {{ path = \"/go\" }}\n\
             redirect = {{ status = 308, to = \"https://{{host}}{{path}}\" }}\n\
             [[route]]\nname = \"other\"\nmatch = {{ host = \"other.test\" }}\n\
             respond = {{ status = 403, body = \"the wrong one\" }}\n",
            origin.url()
        ));
        let head = through(&proxy, "GET http://real.example/head HTTP/1.1\nhost: Real.Example\n\n").await;
        let forwarded = field(&head, "forwarded").unwrap_or_default();
        assert_eq!(field(&head, "x-forwarded-host"), Some("real.example"), "{head}");
        assert!(forwarded.contains("host=real.example") && !head.to_string().contains("Real.Example"), "{head}");
        assert_eq!(head["path"], "/head");
        let seen = origin.last();
        let host = seen.uri.authority().map(ToString::to_string);
        let host = host.or_else(|| seen.headers.get("host").map(|host| host.to_str().unwrap().to_owned()));
        assert_eq!(host.as_deref(), Some("real.example"), "{seen:?}");
        let line = proxy.logged("/head").await;
        assert_eq!((&line["route"], &line["host"]), (&"real".into(), &"real.example".into()), "{line}");

        let mut client = Raw::connect(proxy.public()).await;
        client.send("GET http://real.example:81/go HTTP/1.1\r\nhost: REAL.example:81\r\n\r\n").await;
        let (status, headers) = client.head().await;
        assert_eq!((status, headers["location"].to_str().unwrap()), (308, "https://real.example/go"));
        assert_eq!(origin.seen().len(), 1);
    }
}

#[tokio::test]
async fn a_get_may_have_a_body() {
    for origin in [Origin::h1(), Origin::h2c()] {
        let proxy = proxy(&origin, "", "");
        let mut client = Raw::connect(proxy.public()).await;
        for _ in 0..2 {
            client.send("GET /discard HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n").await;
            client.send("5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n").await;
            assert_eq!(client.head().await.0, 200);
            assert_eq!(client.read_n(2).await, b"11");
        }
        let (mut sender, payload) = channel();
        let mut client = h2(proxy.public(), 1 << 16).await;
        let answer = client.send_request(request("GET", proxy.public(), "/discard", payload));
        for _ in 0..5 {
            sender.send_data("part".into()).await.unwrap();
        }
        drop(sender);
        let answer = Answer::of(answer.await.unwrap()).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "20"));
        let seen = origin.seen();
        assert_eq!(seen.len(), 3);
        assert!(seen.iter().all(|seen| !seen.headers.contains_key("content-length")), "{seen:?}");
        // And one without a body is given none.
        assert_eq!(get(proxy.public(), "/discard").await.text(), "0");
        assert!(!origin.last().headers.contains_key("transfer-encoding"), "{:?}", origin.last());
    }
}

#[tokio::test]
async fn cookies_that_came_apart_arrive_as_one_line() {
    for (origin, protocol) in [(Origin::h1(), 1), (Origin::h2c(), 2)] {
        let proxy = proxy(&origin, "", "");
        let mut client = h2(proxy.public(), 1 << 16).await;
        let mut ask = request("GET", proxy.public(), "/head", empty());
        for cookie in ["a=1", "b=2; c=3", "d=4"] {
            ask.headers_mut().append("cookie", cookie.parse().unwrap());
        }
        let seen = Answer::of(client.send_request(ask).await.unwrap()).await.unwrap().json();
        let lines: Vec<&str> =
            seen["headers"]["cookie"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
        assert_eq!(lines.join("; "), "a=1; b=2; c=3; d=4", "{seen}");
        assert!(protocol == 2 || lines.len() == 1, "{lines:?}");
    }
}

#[tokio::test]
async fn a_head_has_a_length_and_no_body() {
    for origin in [Origin::h1(), Origin::h2c()] {
        let proxy = Proxy::from_toml(&format!(
            "[log]\naccess = \"json\"\n[upstream.app]\nendpoints = [\"{}\"]\nlimit = {{ in_flight = 1 }}\n\
             queue = {{ max = 0, timeout = \"1s\" }}\n[[route]]\nmatch = {{ path = \"/app/*\" }}\nupstream = \"app\"\n\
             strip_prefix = \"/app\"\n[[route]]\nmatch = {{ path = \"/own\" }}\n\
             respond = {{ status = 200, body = \"hello\" }}\n",
            origin.url()
        ));
        let mut client = h2(proxy.public(), 1 << 16).await;
        let mut raw = Raw::connect(proxy.public()).await;
        let mut ask = async |path: &str, status: u16| {
            let ask = request("HEAD", proxy.public(), path, empty());
            let answer = Answer::of(client.send_request(ask).await.unwrap()).await.expect("a whole answer");
            assert_eq!((answer.status.as_u16(), answer.body.len()), (status, 0), "{path}: {answer:?}");
            let length: usize = answer.header("content-length").parse().expect("a length");
            // On HTTP/1.1 what is not announced would be taken for the next answer.
            raw.send(format!("HEAD {path} HTTP/1.1\r\nhost: a\r\n\r\n")).await;
            let (also, headers) = raw.head().await;
            assert_eq!(also, status, "{path}: {headers:?}");
            assert_eq!(headers["content-length"].to_str().unwrap().parse(), Ok(length), "{path}");
            (length, proxy.logged(path).await["reason"].clone())
        };
        assert_eq!(ask("/app/bytes/1234", 200).await, (1234, Value::Null));
        assert_eq!(ask("/own", 200).await, (5, Value::Null));
        let (length, reason) = ask("/nowhere", 404).await;
        assert!(length > 0 && reason == "no_route", "{length} {reason}");
        assert_eq!(origin.seen().len(), 2, "one each");

        let mut holder = Raw::connect(proxy.public()).await;
        holder.get("/app/sse-gate").await;
        holder.head().await;
        let (length, reason) = ask("/app/bytes/12", 503).await;
        assert!(length > 0 && reason == "queue_full", "{length} {reason}");
        assert_eq!(origin.seen().len(), 3, "the holder's");
        // The credits of the first two are back.
        origin.open_gate(1);
        holder.until("[DONE]").await;
        assert!(eventually(|| origin.in_flight() == 0, Duration::from_secs(5)).await);
    }
}

#[tokio::test]
async fn an_early_refusal_reaches_a_client_that_still_uploads() {
    let proxy = Proxy::from_toml("[[route]]\nrespond = { status = 403, body = \"no\" }\n");
    for _ in 0..20 {
        let mut client = Raw::connect(proxy.public()).await;
        client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n").await;
        client.send(vec![b'x'; 1_000_000]).await;
        assert_eq!(client.head().await.0, 403);
        assert_eq!(client.read_n(2).await, b"no");
    }
}

#[tokio::test]
async fn a_body_is_awaited_only_when_it_may_be_sent() {
    let origin = Origin::h1();
    let proxy = proxy(&origin, "limit = { in_flight = 1 }\nqueue = { max = 4, timeout = \"30s\" }", "");
    let mut holder = Raw::connect(proxy.public()).await;
    holder.get("/sse-gate").await;
    holder.head().await;
    let mut client = Raw::connect(proxy.public()).await;
    client.send("POST /discard HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\nexpect: 100-continue\r\n\r\n").await;
    let waiting = || proxy.metric("headworks_queue_depth", &[("upstream", "app")]) > 0.5;
    assert!(eventually(waiting, Duration::from_secs(5)).await);
    origin.open_gate(1);
    assert_eq!(client.head().await.0, 100, "admitted: now the body may come");
    client.send("body").await;
    assert_eq!(client.head().await.0, 200);
    assert_eq!(client.read_n(1).await, b"4");
}
