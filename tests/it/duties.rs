//! The duties of an intermediary that no other page tells of.

use http::{HeaderMap, HeaderValue};

use crate::support::{Answer, Origin, Proxy, Raw, channel, empty, h2, request};

fn proxy(upstream: &str, route: &str) -> Proxy {
    Proxy::from_toml(&format!(
        "[log]\naccess = \"json\"\n[upstream.app]\nendpoints = [\"{upstream}\"]\n[[route]]\nupstream = \"app\"\n{route}\n"
    ))
}

async fn ask(proxy: &Proxy, method: &str, fields: &str) -> (u16, HeaderMap) {
    let mut client = Raw::connect(proxy.public()).await;
    client.send(format!("{method} /head HTTP/1.1\r\nhost: a\r\n{fields}\r\n")).await;
    client.head().await
}

#[tokio::test]
async fn options_go_as_far_as_they_say() {
    let origin = Origin::h1();
    let proxy = proxy(&origin.url(), "");
    assert_eq!(ask(&proxy, "OPTIONS", "max-forwards: 2\r\n").await.0, 200);
    assert_eq!(origin.last().headers["max-forwards"], HeaderValue::from_static("1"));
    let (status, headers) = ask(&proxy, "OPTIONS", "max-forwards: 0\r\n").await;
    assert_eq!(status, 204);
    assert!(headers["allow"].to_str().unwrap().contains("OPTIONS"), "{headers:?}");
    assert_eq!(ask(&proxy, "OPTIONS", "max-forwards: many\r\n").await.0, 400);
    assert_eq!(ask(&proxy, "OPTIONS", "max-forwards: 1\r\nmax-forwards: 1\r\n").await.0, 400);
    assert_eq!(origin.seen().len(), 1, "the rest was answered here");
    let mut options = request("OPTIONS", proxy.public(), "/head", empty());
    options.headers_mut().insert("max-forwards", 0.into());
    let answer = Answer::of(h2(proxy.public(), 1 << 20).await.send_request(options).await.unwrap()).await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.body.len()), (204, 0));
}

#[tokio::test]
async fn trace_shows_nothing_unless_the_route_names_it() {
    let origin = Origin::h1();
    let secret = "headers.request.set.authorization = \"secret\"\n";
    let closed = proxy(&origin.url(), secret);
    for fields in ["", "max-forwards: 0\r\n", "max-forwards: 3\r\n"] {
        let (status, headers) = ask(&closed, "TRACE", fields).await;
        assert_eq!(status, 405);
        assert!(!headers["allow"].to_str().unwrap().contains("TRACE"), "{headers:?}");
    }
    assert_eq!(origin.seen().len(), 0);
    let open = proxy(&origin.url(), "match.methods = [\"TRACE\"]\n");
    assert_eq!(ask(&open, "TRACE", "max-forwards: 3\r\n").await.0, 200);
    assert_eq!(origin.last().headers["max-forwards"], HeaderValue::from_static("2"));
    assert_eq!(ask(&open, "TRACE", "max-forwards: 0\r\n").await.0, 405, "this hop mirrors nothing");
    assert_eq!(origin.seen().len(), 1);
}

#[tokio::test]
async fn a_client_cannot_strip_what_is_added_here() {
    let origin = Origin::h1();
    let proxy = proxy(&origin.url(), "headers.request.set = { x-tenant = \"one\" }\n");
    let fields = "connection: close, x-forwarded-for, x-forwarded-proto, forwarded, via, traceparent, x-tenant, host, \
                  content-length, authorization, x-mine\r\nauthorization: Bearer x\r\nx-mine: 1\r\nx_forwarded_for: 10.0.0.1\r\n\
                  x-real-ip: 10.0.0.1\r\nproxy-authorization: Basic eA==\r\nproxy-connection: close\r\nkeep-alive: timeout=5\r\n";
    assert_eq!(ask(&proxy, "GET", fields).await.0, 200);
    let seen = origin.last().headers;
    for name in ["x-forwarded-for", "x-forwarded-proto", "forwarded", "via", "traceparent", "x-tenant", "authorization"]
    {
        assert!(seen.contains_key(name), "{name} is gone: {seen:?}");
    }
    for name in ["x-mine", "x_forwarded_for", "x-real-ip", "proxy-authorization", "proxy-connection", "keep-alive"] {
        assert!(!seen.contains_key(name), "{name} came through: {seen:?}");
    }
    assert!(!seen.contains_key("connection"), "{seen:?}");
    assert_eq!(seen["x-forwarded-for"], HeaderValue::from_static("127.0.0.1"));
}

#[tokio::test]
async fn a_circle_is_left() {
    let origin = Origin::h1();
    let proxy = proxy(&origin.url(), "");
    let via = "via: 1.1 headworks\r\n".repeat(15);
    assert_eq!(ask(&proxy, "GET", &via).await.0, 200);
    let (status, headers) = ask(&proxy, "GET", &(via + "via: 1.0 other, 2 headworks\r\n")).await;
    assert_eq!(status, 508);
    assert!(headers["proxy-status"].to_str().unwrap().contains("loop_detected"), "{headers:?}");
}

#[tokio::test]
async fn a_trailer_says_nothing_that_a_head_has_to_say() {
    let origin = Origin::h2c();
    let proxy = proxy(&origin.url(), "");
    let (mut sender, body) = channel();
    let mut client = h2(proxy.public(), 1 << 16).await;
    let answer = client.send_request(request("POST", proxy.public(), "/echo", body));
    sender.send_data("body".into()).await.unwrap();
    let mut trailers = HeaderMap::new();
    for name in [
        "x-checksum",
        "content-length",
        "authorization",
        "x-forwarded-for",
        "x_forwarded_for",
        "client-cert",
        "x_client_cert_fingerprint",
        "set-cookie",
    ] {
        trailers.insert(name, "1".parse().unwrap());
    }
    sender.send_trailers(trailers).await.unwrap();
    drop(sender);
    let answer = Answer::of(answer.await.unwrap()).await.unwrap();
    assert_eq!(answer.text(), "body");
    let names: Vec<_> = answer.trailers.keys().map(ToString::to_string).collect();
    assert_eq!(names, ["x-checksum"]);
}
