use super::*;
use crate::config::HeaderMatch;
use http::{HeaderName, HeaderValue, Method, Request};

#[expect(clippy::unnecessary_wraps, reason = "as it stands in a Match")]
fn exact(host: &str) -> Option<HostPattern> {
    Some(HostPattern::Exact(host.into()))
}

#[expect(clippy::unnecessary_wraps, reason = "as it stands in a Match")]
fn suffix(host: &str) -> Option<HostPattern> {
    Some(HostPattern::Suffix(host.into()))
}

#[expect(clippy::unnecessary_wraps, reason = "as it stands in a Match")]
fn path(pattern: &str) -> Option<PathPattern> {
    Some(match pattern.strip_suffix("/*") {
        Some(prefix) => PathPattern::Prefix(prefix.into()),
        None => PathPattern::Exact(pattern.into()),
    })
}

fn parts(method: &str, uri: &str, headers: &[(&'static str, &'static str)]) -> Parts {
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).expect("a valid request").into_parts().0
}

#[test]
fn the_most_specific_wins_whatever_the_order() {
    let router = Router::new([
        (Match::default(), "anything"),
        (Match { path: path("/v1/*"), ..Match::default() }, "v1 anywhere"),
        (Match { host: suffix("example.com"), ..Match::default() }, "suffix"),
        (Match { host: suffix("eu.example.com"), ..Match::default() }, "longer suffix"),
        (Match { host: exact("api.example.com"), path: path("/v1/*"), ..Match::default() }, "prefix"),
        (Match { host: exact("api.example.com"), path: path("/v1/chat/*"), ..Match::default() }, "longer prefix"),
        (Match { host: exact("api.example.com"), path: path("/v1/chat"), ..Match::default() }, "exact path"),
    ]);
    let find = |uri: &str| router.find("main", &parts("GET", uri, &[])).copied();
    assert_eq!(find("http://api.example.com/v1/chat"), Some("exact path"));
    assert_eq!(find("http://api.example.com/v1/chat/x"), Some("longer prefix"));
    assert_eq!(find("http://api.example.com/v1"), Some("prefix"));
    assert_eq!(find("http://api.example.com/v1x"), Some("suffix"), "a prefix ends at a segment");
    assert_eq!(find("http://a.eu.example.com/"), Some("longer suffix"));
    assert_eq!(find("http://example.com/v1/"), Some("v1 anywhere"), "a suffix asks for a name before the dot");
    assert_eq!(find("/"), Some("anything"));
}

#[test]
fn hosts_are_compared_without_case_port_and_final_dot() {
    let router = Router::new([(Match { host: exact("api.example.com"), ..Match::default() }, ())]);
    for host in ["api.example.com", "API.Example.COM:8443", "api.example.com.", "api.example.com.:80"] {
        assert!(router.find("main", &parts("GET", "/", &[("host", host)])).is_some(), "{host}");
    }
    let router = Router::new([(Match { host: exact("[::1]"), ..Match::default() }, ())]);
    assert!(router.find("main", &parts("GET", "/", &[("host", "[::1]:80")])).is_some());
    assert!(router.find("main", &parts("GET", "/", &[("host", "[::1]")])).is_some());
}

#[test]
fn further_conditions_decide_and_the_file_order_breaks_ties() {
    let beta = HeaderMatch { name: HeaderName::from_static("x-beta"), value: Some(HeaderValue::from_static("1")) };
    let any = HeaderMatch { name: HeaderName::from_static("x-any"), value: None };
    let router = Router::new([
        (Match::default(), "first"),
        (Match::default(), "second"),
        (Match { methods: vec![Method::POST], ..Match::default() }, "post"),
        (Match { headers: vec![beta], ..Match::default() }, "beta"),
        (Match { headers: vec![any], ..Match::default() }, "any"),
        (Match { listener: Some("inner".into()), ..Match::default() }, "inner"),
    ]);
    let find = |listener, method, headers: &[_]| router.find(listener, &parts(method, "/", headers)).copied();
    assert_eq!(find("main", "GET", &[]), Some("first"));
    assert_eq!(find("main", "POST", &[]), Some("post"));
    assert_eq!(find("main", "POST", &[("x-beta", "1")]), Some("beta"));
    assert_eq!(find("main", "GET", &[("x-beta", "2")]), Some("first"));
    assert_eq!(find("main", "GET", &[("x-any", "")]), Some("any"));
    assert_eq!(find("inner", "GET", &[]), Some("inner"));
}

#[test]
fn nothing_matches_nothing() {
    let router = Router::new([(Match { host: exact("a"), ..Match::default() }, ())]);
    assert!(router.find("main", &parts("GET", "http://b/", &[])).is_none());
    assert!(Router::<()>::new([]).find("main", &parts("GET", "/", &[])).is_none());
}
