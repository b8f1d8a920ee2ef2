//! From text to [`Config`], and the texts of the errors. The errors are snapshots: read them as an operator would.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::decode::Decode;
use super::*;
use crate::context::{Key, Part};
use crate::control::health::Thresholds;
use crate::control::{breaker, limit};
use crate::upstream::{Address, CheckKind, HostPolicy, Limit, Pool, Protocol, Queue, Scheme, Timeouts, Tls};
use std::net::SocketAddr;
use std::num::NonZeroUsize;

const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8080);

const EXAMPLE: &str = include_str!("../../config.example.toml");

fn read(text: &str) -> Result<Config, Error> {
    let env = |name: &str| match name {
        "TOKEN" => Some("s3cret-token".to_owned()),
        "URL" => Some("http://user:hunter2@example.com".to_owned()),
        "BACKEND" => Some("http://10.9.8.7:80".to_owned()),
        _ => None,
    };
    load::parse_with(text, "x.toml", Path::new("/base"), &env)
}

fn good(text: &str) -> Config {
    read(text).unwrap()
}

/// The report about a text, whose first line end is for the test's looks.
fn wrong(text: &str) -> String {
    read(text.trim_start_matches('\n')).expect_err("the text is wrong").to_string()
}

/// The messages alone, of a text that ends with an upstream `a`, so that it is complete but for what is wrong.
fn complaints(text: &str) -> Vec<String> {
    let error = read(&format!("{text}\n[upstream.a]\nendpoints = \"http://a\"\n")).expect_err(text);
    error.to_string().lines().filter_map(|line| line.strip_prefix("error: ")).map(Into::into).collect()
}

const A: &str = "[upstream.a]\nendpoints = \"http://a\"\n";

#[test]
fn one_upstream_is_a_complete_configuration() {
    let config = good(A);
    assert_eq!(config.server.listeners.len(), 1);
    assert_eq!(config.server.listeners[0].address, LOCAL.into());
    assert_eq!(&*config.server.listeners[0].name, "listen-1");
    assert_eq!(config.admin, None);
    assert_eq!(config.warnings, Vec::<String>::new());
    let [route] = config.routes.as_slice() else { panic!("{:?}", config.routes) };
    assert_eq!((&*route.name, &route.action, &route.matcher), ("default", &Action::Forward(0), &Match::default()));
    assert_eq!(route.stall_timeout, config.server.stream.stall_timeout);
    let from_url = from_upstream("http://a", LOCAL).unwrap();
    let (upstreams, effective) = (from_url.upstreams.clone(), from_url.effective.clone());
    assert_eq!(from_url, Config { upstreams, effective, ..config.clone() });
    assert_eq!(&*from_url.upstreams[0].name, "default");
}

#[test]
fn a_limit_is_found_or_a_number() {
    let of = |limit: &str| good(&format!("{A}{limit}")).upstreams.remove(0).limit;
    let adaptive = |min, max, initial| limit::Settings::Adaptive(limit::Bounds { min, max, initial });
    assert_eq!(of("limit.in_flight = 'adaptive'"), Limit::default());
    assert_eq!(of("limit.in_flight = 7"), Limit::fixed(7));
    let found = of("limit.in_flight = { min = 3, max = 9, initial = 5, algorithm = 'knee' }");
    assert_eq!((found.in_flight, found.streams), (adaptive(3, 9, 5), Limit::default().streams));
    assert_eq!(of("limit = { in_flight = { max = 9 }, streams = 4 }").streams.map(NonZeroUsize::get), Some(4));
    let bad = |limit: &str| parse(&format!("{A}{limit}"), "x.toml", Path::new("")).expect_err(limit).to_string();
    assert!(bad("limit.in_flight = { min = 9, max = 3 }").contains("`max` is less than `min`"));
    assert!(bad("limit.in_flight = 'adaptiv'").contains("did you mean `adaptive`?"));
    assert!(bad("limit.in_flight = { algorithm = 'vegas' }").contains("no way to find a limit"));
    assert!(bad("limit.in_flight = true").contains("expected \"adaptive\", a number, or a table"));
}

#[test]
fn the_defaults_of_the_file_are_those_of_the_settings() {
    let config = good(A);
    let upstream = &config.upstreams[0];
    assert_eq!(upstream.limit, Limit::default());
    assert_eq!(upstream.queue, Queue::default());
    assert_eq!(upstream.timeout, Timeouts::default());
    assert_eq!(upstream.pool, Pool::default());
    assert_eq!(upstream.breaker, Some(breaker::Settings::default()));
    assert_eq!(upstream.tls, Tls::default());
    assert_eq!((upstream.protocol, &upstream.host), (Protocol::default(), &HostPolicy::default()));
    assert_eq!(upstream.buffer, 16 << 10);
    assert_eq!(config.log.access, AccessLog::default());
}

#[test]
fn a_breaker_is_off_or_has_its_bounds() {
    let breaker = |table: &str| good(&format!("{A}{table}")).upstreams[0].breaker;
    assert_eq!(breaker("breaker = \"off\""), None);
    let settings = breaker("breaker = { failures = 3, open = \"250ms..5s\", max_out = \"50%\" }").unwrap();
    assert_eq!((settings.failures, settings.max_out), (3, 50));
    assert_eq!((settings.shortest, settings.longest), (Duration::from_millis(250), Duration::from_secs(5)));
    assert_eq!(breaker("breaker.open = \"2s\"").unwrap().longest, Duration::from_secs(2));
    let bad =
        |value: &str| parse(&format!("{A}breaker.open = {value}"), "x.toml", Path::new("")).unwrap_err().to_string();
    assert!(bad("\"9s..1s\"").contains("it ends before it begins"));
    assert!(bad("\"0s..1s\"").contains("it cannot begin with zero"));
    assert!(bad("5").contains("two durations such as"));
}

#[test]
fn health_checks_are_of_three_kinds() {
    let health = |table: &str| good(&format!("{A}health = {{ {table} }}")).upstreams[0].health.clone().unwrap();
    let CheckKind::Http { path, expect } = health("path = \"/up?x=1\", expect = \"200-204, 404\"").kind else {
        panic!()
    };
    assert_eq!((path.as_str(), expect), ("/up?x=1", vec![200..=204, 404..=404]));
    assert_eq!(health("kind = \"tcp\"").kind, CheckKind::Tcp);
    assert_eq!(health("kind = \"grpc\", service = \"a.B\"").kind, CheckKind::Grpc { service: "a.B".into() });
    assert_eq!(health("").thresholds, Thresholds::default());
    let bad =
        |table: &str| parse(&format!("{A}health = {{ {table} }}"), "x.toml", Path::new("")).unwrap_err().to_string();
    assert!(bad("kind = \"grpd\"").contains("grpc"));
    assert!(bad("path = \"up\"").contains("is not a path"));
    for expect in ["", "99", "200-", "300-200", "200;204", "600"] {
        assert!(bad(&format!("expect = \"{expect}\"")).contains("are not statuses"), "{expect}");
    }
    assert!(bad("kind = \"grpc\" }\nprotocol = \"h1\"\ntimeout = { ").contains("needs HTTP/2"));
}

#[test]
fn a_bad_address_on_the_command_line_is_shown_in_its_place() {
    for url in ["", "ftp://a", "a:80\u{7f}\"\n", "http://a/path"] {
        from_upstream(url, LOCAL).expect_err(url);
    }
    insta::assert_snapshot!(from_upstream("localhost:3000", LOCAL).unwrap_err());
}

#[test]
fn everything_reaches_the_configuration() {
    let config = good(EXAMPLE);
    let names: Vec<_> = config.server.listeners.iter().map(|listener| &*listener.name).collect();
    assert_eq!(names, ["listen-1", "public"]);
    assert_eq!(config.upstreams.iter().map(|upstream| &*upstream.name).collect::<Vec<_>>(), ["app", "llm"]);
    assert_eq!(config.upstreams[0].endpoints[1].address, Address::Unix("/run/app.sock".into()));
    let Address::Tcp { authority, scheme } = &config.upstreams[1].endpoints[0].address else { panic!() };
    assert_eq!((authority.as_str(), *scheme), ("api.example.com", Scheme::Https));
    assert_eq!(config.upstreams[1].tls.server_name.as_deref(), Some("api.example.com"));

    let [health, moved, chat, app] = config.routes.as_slice() else { panic!() };
    assert!(matches!(&health.action, Action::Respond { status, body, .. } if *status == 200 && &**body == "ok"));
    assert_eq!(health.matcher.path, Some(PathPattern::Exact("/health".into())));
    assert_eq!(moved.matcher.host, Some(HostPattern::Suffix("example.org".into())));
    assert!(matches!(&moved.action, Action::Redirect { status, .. } if *status == 308));
    assert_eq!(chat.matcher.path, Some(PathPattern::Prefix("/llm".into())));
    assert_eq!(chat.matcher.methods, [Method::POST]);
    assert_eq!(chat.matcher.headers.len(), 2);
    assert_eq!(chat.matcher.headers[1].value, None);
    assert_eq!(chat.rewrite, Some(rewrite::Settings { strip: "/llm".into(), replace: "/v1".into() }));
    assert_eq!(chat.timeout.first_byte, Some(Duration::from_secs(120)));
    assert_eq!(chat.timeout.connect, Duration::from_secs(2));
    assert_eq!(chat.stall_timeout, Duration::from_secs(10));
    assert_eq!((chat.rate_limits[0].burst.get(), &chat.rate_limits[0].by), (10, &Key::from(Part::Client)));
    assert_eq!(app.action, Action::Forward(0));
    assert_eq!(app.headers.request.remove, ["x-internal"]);
    assert_eq!(app.headers.response.add.len(), 1);
}

#[test]
fn strings_come_from_the_environment_and_from_files_and_stay_hidden() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("body.txt"), "line\n\n").unwrap();
    let text = r#"
        [upstream.a]
        endpoints = { env = "BACKEND" }
        tls = { ca = "ca.pem" }
        [[route]]
        upstream = "a"
        headers.request.set = { authorization = { env = "TOKEN" }, x-b = "b" }
        [[route]]
        respond.body = { file = "body.txt" }
    "#;
    let env = |name: &str| Some(if name == "TOKEN" { "s3cret".into() } else { "https://10.9.8.7".into() });
    let config = load::parse_with(text, "x.toml", dir.path(), &env).unwrap();
    assert_eq!(&*config.upstreams[0].endpoints[0].label, "env:BACKEND");
    assert_eq!(config.upstreams[0].tls.ca, Some(dir.path().join("ca.pem")));
    let [(_, token), (_, plain)] = config.routes[0].headers.request.set.as_slice() else { panic!() };
    assert!(token == "s3cret" && token.is_sensitive() && !plain.is_sensitive());
    assert!(matches!(&config.routes[1].action, Action::Respond { body, .. } if &**body == "line\n"));
    assert!(config.secrets.hides("S3CRET") && !config.secrets.hides("b"));
    assert!(!format!("{config:?}").contains("s3cret"));
}

#[test]
fn a_secret_that_is_wrong_is_not_shown() {
    let report = wrong("[upstream.a]\nendpoints = { env = \"URL\" }\n[upstream.b]\nendpoints = { env = \"TOKEN\" }\n");
    assert!(!report.contains("hunter2") && !report.contains("s3cret"), "{report}");
    insta::assert_snapshot!(report);
}

#[test]
fn a_name_that_is_a_secret_is_not_shown() {
    let report = wrong(
        r#"
[upstream.token]
endpoints = "http://a"
[[server.listener]]
name = { env = "TOKEN" }
address = "127.0.0.1:0"
[[server.listener]]
name = { env = "TOKEN" }
address = "127.0.0.1:0"
[[route]]
match.listener = "x"
upstream = { env = "TOKEN" }
"#,
    );
    assert!(!report.contains("s3cret") && report.contains("(hidden)"), "{report}");
}

#[test]
fn what_follows_from_another_error_is_not_told() {
    for (text, expected) in [
        ("route = 3", 1),
        ("upstream = 3", 1),
        ("upstream.a = 3", 1),
        ("[upstream.a]\nendpoints = 3", 1),
        ("[upstream.a]\nendpoints = [3]\n[[route]]\nupstream = 'a'", 1),
        ("[upstream.a]\nendpoints = 'http://a'\n[[route]]\nupstream = 3", 1),
        ("[upstream.a]\nendpoints = 'https://a'\ntls = { cert = 3, key = 'k' }", 1),
        ("server.listen = 3\n[upstream.a]\nendpoints = 'http://a'", 1),
        ("server.grace = 3", 2),
        ("[upstream.a]\nendpoints = []\n[upstream.b]\nendpoints = 3", 3),
    ] {
        let error = read(text).expect_err(text);
        assert_eq!(error.count(), expected, "{error}");
    }
}

#[test]
fn what_a_secret_refers_to_must_be_there() {
    insta::assert_snapshot!(wrong(
        r#"
[upstream.a]
endpoints = [{ env = "NOWHERE" }, { file = "nowhere.txt" }, { envv = "X" }, { env = 3 }, {}]
"#
    ));
}

#[test]
fn unknown_keys_at_every_level() {
    insta::assert_snapshot!(wrong(
        r#"
sever.threads = 2
[server]
lisen = "127.0.0.1:80"
[server.timeout]
headers = "10s"
[upstream.a]
endpoints = "http://a"
breaker = { failures = 5 }
queue = { maxx = 3 }
[[route]]
upstream = "a"
match = { hosst = "a" }
headers.request.sett = {}
rate_limit = { rate = "1/s", brust = 2 }
"#
    ));
}

#[test]
fn several_errors_come_together_and_in_order() {
    insta::assert_snapshot!(wrong(
        r#"
[[route]]
upstream = "lm"
[server]
grace = 30
[upstream.llm]
endpoints = "http://a"
queue = { max = "many" }
"#
    ));
}

#[test]
fn wrong_types() {
    insta::assert_snapshot!(wrong(
        r#"
log = 3
route = { upstream = "a" }
[server]
threads = "four"
listen = 8080
max_header_size = true
max_connections = -1
timeout = "10s"
[upstream]
a = "http://a"
"#
    ));
}

#[test]
fn broken_references() {
    insta::assert_snapshot!(wrong(
        r#"
[[server.listener]]
name = "public"
address = "0.0.0.0:80"
[upstream.llm]
endpoints = "http://a"
[[route]]
match.listener = "pubic"
upstream = "lllm"
[[route]]
upstream = "other"
"#
    ));
}

#[test]
fn bad_durations() {
    insta::assert_snapshot!(wrong(
        r#"
[server]
grace = "30"
timeout = { header = "0s", idle = "1.5s" }
[upstream.a]
endpoints = "http://a"
timeout = { connect = "2 s", total = "0", idle = "of" }
"#
    ));
}

#[test]
fn text_that_is_no_toml() {
    insta::assert_snapshot!(wrong("[server]\nlisten = 127.0.0.1\n\n[log\nlevel = \"info\n"));
}

#[test]
fn nothing_to_do() {
    insta::assert_snapshot!(wrong(""));
    insta::assert_snapshot!(wrong("[upstream.a]\nendpoints = 'http://a'\n[upstream.b]\nendpoints = 'http://b'\n"));
    insta::assert_snapshot!(load(Path::new("/nowhere/x.toml")).unwrap_err());
}

#[test]
fn an_unused_upstream_is_only_a_warning() {
    let config =
        good("[upstream.a]\nendpoints = 'http://a'\n[upstream.b]\nendpoints = 'http://b'\n[[route]]\nupstream = 'b'\n");
    assert_eq!(config.warnings, ["x.toml:1:11: no route leads to the upstream `a`"]);
    assert_eq!(config.routes[0].action, Action::Forward(1));
}

#[test]
fn listeners_that_clash() {
    insta::assert_debug_snapshot!(complaints(
        r#"
        [server]
        listen = ["127.0.0.1:80", "127.0.0.1:0", "[::1]:0", "[::1]:80"]
        [[server.listener]]
        name = "listen-2"
        address = "127.0.0.1:80"
        [[server.listener]]
        name = "tls"
        address = "127.0.0.1:0"
        tls = { cert = "c" }
        [[server.listener]]
        address = ":8080"
        [admin]
        listen = "[::1]:80"
    "#
    ));
}

#[test]
fn endpoints_that_cannot_be() {
    insta::assert_debug_snapshot!(complaints(
        r#"
        [upstream.b]
        protocol = "h1"
        endpoints = [
            "h2c://a", "http://a/path", "http://u:p@a", "http://a:0", "http://a:99999", "http://", "htp://a", "unix:",
            "http://[::1", "https://b:443/", "https://b:443", "http://ü", "http://a b",
        ]
        [upstream.c]
        endpoints = []
        [upstream.d]
        endpoints = ["http://d", "unix:x"]
        tls = { server_name = "x" }
        [upstream."e f"]
        endpoints = "http://e"
    "#
    ));
    insta::assert_debug_snapshot!(complaints(
        r"
        [upstream.b]
        endpoints = []
    "
    ));
    insta::assert_debug_snapshot!(complaints(
        r#"
        [upstream.b]
        endpoints = ["https://b"]
        tls = { key = "x", server_name = "*.x" }
    "#
    ));
}

#[test]
fn routes_that_cannot_be() {
    insta::assert_debug_snapshot!(complaints(
        r#"
        [[route]]
        [[route]]
        name = "route-1"
        upstream = "a"
        respond = {}
        [[route]]
        match = { path = "v1", host = "a:80", methods = ["get", "G T", "CONNECT"], headers = { host = "x", a = false } }
        respond = { status = 204, body = "x" }
        [[route]]
        match.path = "/a*"
        redirect = { to = "https://{hots}", status = 304 }
        strip_prefix = "/x"
        timeout = { total = "1s" }
        [[route]]
        match.path = "/a/*/b"
        redirect = { to = "example.com" }
        [[route]]
        match.path = "/a?b"
        respond = { status = 100 }
        [[route]]
        upstream = "a"
        upgrade = ["WebSocket", "h2c", "HTTP/2.0", "*", "a b"]
        strip_prefix = "x"
        headers.request = { set = { Host = "x", X-A = "1", x-a = "2", x-n = "a\nb" }, remove = ["Content-Length", "a b"] }
        headers.response.add = { "transfer-encoding" = "x" }
        rate_limit = [
            { name = "l", rate = "0/s" }, { name = "l", rate = "1/s", burst = 0 }, { by = "header:" }, { by = "clent", rate = "5" },
        ]
    "#
    ));
}

#[test]
fn a_mistyped_level_is_not_taken_for_a_module() {
    assert_eq!(complaints("log.level = 'inf'").len(), 1);
    assert_eq!(complaints("log.level = 'a=b=c'").len(), 1);
    good(&format!("log.level = 'warn,headworks=debug'\n{A}"));
}

/// Every key with a value in a table, as its full path with `NAME` for the name of an upstream.
fn walk(path: &str, node: &Spanned<DeValue<'_>>, found: &mut BTreeMap<String, std::ops::Range<usize>>) {
    match node.get_ref() {
        DeValue::Table(table) => {
            for (key, value) in table {
                let key = if path == "upstream" { "NAME" } else { key.get_ref() };
                let path = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
                found.insert(path.clone(), value.span());
                walk(&path, value, found);
            }
        }
        DeValue::Array(items) => items.iter().for_each(|item| walk(path, item, found)),
        _ => {}
    }
}

#[test]
fn the_example_shows_every_key() {
    let all = EXAMPLE.lines().map(|line| match line.strip_prefix("# ") {
        Some(rest) if rest.split_once(" = ").is_some_and(|(key, _)| !key.contains([' ', '`'])) => rest,
        _ => line,
    });
    let all = all.collect::<Vec<_>>().join("\n");
    let table = DeTable::parse(&all).unwrap();
    let mut found = BTreeMap::new();
    walk("", &Spanned::new(0..0, DeValue::Table(table.into_inner())), &mut found);
    let missing: Vec<_> = keys().into_iter().filter(|key| !found.contains_key(key)).collect();
    assert!(missing.is_empty(), "config.example.toml does not show {missing:#?}");
}

/// What `schema` says that the default of a key is.
fn declared<'a>(schema: &'a serde_json::Value, path: &[&str]) -> Option<&'a serde_json::Value> {
    let Some((key, rest)) = path.split_first() else { return schema.get("default") };
    let down = schema.get("properties").and_then(|keys| keys.get(key)).or_else(|| schema.get("additionalProperties"));
    let inner = ["items", "anyOf"].iter().find_map(|word| schema.get(word));
    down.and_then(|down| declared(down, rest)).or_else(|| declared(inner?.get(0).or(inner)?, path))
}

#[test]
fn the_example_tells_the_true_defaults() {
    let schema = schema();
    let mut table = String::new();
    let mut checked = BTreeSet::new();
    for line in EXAMPLE.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.split(']').next()) {
            table = name.trim_start_matches('[').to_owned();
        }
        let Some((code, comment)) = line.split_once(" # ") else { continue };
        let Some((key, value)) = code.split_once(" = ") else { continue };
        let path =
            format!("{table}.{key}").replace("upstream.app", "upstream.NAME").replace("upstream.llm", "upstream.NAME");
        let default = declared(&schema, &path.split('.').collect::<Vec<_>>());
        if comment.trim_start().starts_with("default:") && !line.starts_with('#') {
            let value: serde_json::Value = serde_json::from_str(value.trim()).expect(line);
            // Its absence has this meaning, but the key itself has no default: a listener in the long form replaces it.
            if path != "server.listen" {
                assert_eq!(Some(&value), default, "{path}");
            }
            checked.insert(path);
        }
    }
    assert!(checked.len() > 30, "{checked:?}");
}

/// Fails at a key without description.
fn described(value: &serde_json::Value) {
    if let Some(keys) = value.get("properties").and_then(|keys| keys.as_object()) {
        for (key, value) in keys {
            assert!(value["description"].is_string() || key == "env" || key == "file", "{key}: {value}");
        }
    }
    for value in
        value.as_object().into_iter().flat_map(|map| map.values()).chain(value.as_array().into_iter().flatten())
    {
        described(value);
    }
}

#[test]
fn the_schema_describes_every_key() {
    let schema = schema();
    assert_eq!(schema["additionalProperties"], false);
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    insta::assert_snapshot!(serde_json::to_string_pretty(&schema["properties"]["log"]).unwrap());
    described(&schema);
}

#[test]
fn every_default_can_be_read() {
    let env = |_: &str| None;
    let mut cx = decode::Context::new(Path::new(""), &env);
    for (table, text) in
        [("server", "{}"), ("upstream", "{ a = { endpoints = 'http://a' } }"), ("route", "[{}]"), ("admin", "{}")]
    {
        let text = format!("{table} = {text}");
        let root = Spanned::new(0..0, DeValue::Table(DeTable::parse(&text).unwrap().into_inner()));
        assert!(file::Root::decode(&root, &mut cx).is_some(), "{table}");
    }
    let all = "[{ respond = {}, redirect = { to = '/' }, timeout = {}, rate_limit = { rate = '1/s' } }]";
    let text = format!("route = {all}");
    let root = Spanned::new(0..0, DeValue::Table(DeTable::parse(&text).unwrap().into_inner()));
    assert!(file::Root::decode(&root, &mut cx).is_some_and(|root| root.route.0.items.len() == 1));
    assert!(cx.found.is_empty(), "{:?}", cx.found);
}

fn piece() -> impl Strategy<Value = String> {
    let keys = keys().into_iter().map(|key| key.replace("NAME", "a")).collect::<Vec<_>>();
    let values =
        ["3", "-1", "\"x\"", "true", "[]", "{}", "[{}]", "\"1s\"", "{ env = \"TOKEN\" }", "'/a*'", "1979-05-27", "'ü'"];
    prop_oneof![
        (proptest::sample::select(keys), proptest::sample::select(values.to_vec()))
            .prop_map(|(key, value)| format!("{key} = {value}\n")),
        proptest::sample::select(EXAMPLE.lines().collect::<Vec<_>>()).prop_map(|line| format!("{line}\n")),
        ".{0,20}".prop_map(|text| format!("{text}\n")),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn no_text_panics(text: String) {
        if let Err(error) = read(&text) {
            prop_assert!(!error.render(true).is_empty());
        }
    }

    #[test]
    fn no_text_that_looks_like_a_configuration_panics(pieces in proptest::collection::vec(piece(), 0..12)) {
        if let Err(error) = read(&pieces.concat()) {
            prop_assert!(!error.render(true).is_empty() && !error.to_string().contains("s3cret"));
        }
    }
}

#[test]
fn a_listener_may_be_a_unix_socket() {
    let config = good(&format!(
        "{A}[server]\nlisten = [\"unix:a.sock\", \"127.0.0.1:0\"]\ntrusted_proxies = [\"unix\", \"::1\"]\n\
         [[server.listener]]\nname = \"x\"\naddress = \"unix:/run/x.sock\"\nmode = \"0600\"\n"
    ));
    let listeners: Vec<_> =
        config.server.listeners.iter().map(|listener| (listener.address.to_string(), listener.mode)).collect();
    assert_eq!(listeners[0].1, 0o660);
    assert!(listeners[0].0.starts_with("unix:") && listeners[0].0.ends_with("a.sock"), "{listeners:?}");
    assert_eq!(listeners[2], ("unix:/run/x.sock".to_owned(), 0o600));
    assert!(config.server.trusted_proxies.unix && config.server.trusted_proxies.nets.len() == 1);

    let listener = |keys: &str| complaints(&format!("[[server.listener]]\nname = \"x\"\n{keys}"));
    assert_eq!(listener("address = \"127.0.0.1:1\"\nmode = \"0600\""), ["only a unix socket has permissions"]);
    assert_eq!(listener("address = \"127.0.0.1:1\"\nproxy_protocol = []"), ["nobody could connect here"]);
    let wrong = listener("address = \"127.0.0.1:1\"\nproxy_protocol = \"10.0.0.0/33\"");
    assert_eq!(wrong, ["`10.0.0.0/33` is neither an IP address nor a network"]);
    assert_eq!(listener("address = \"unix:/a\"\nreuse_port = true"), ["a unix socket has no port to share"]);
    assert_eq!(listener("address = \"unix:\""), ["the path of the unix socket is missing"]);
    let long = "x".repeat(200);
    assert_eq!(listener(&format!("address = \"unix:/{long}\"")), ["the path of the unix socket is too long"]);
    assert_eq!(complaints("[server]\nlisten = [\"unix:/a\", \"unix:/a\"]"), ["this address is listened on twice"]);
}

#[test]
fn the_budget_has_room_for_one_request_or_nothing_would_be_served() {
    let said = wrong("[server]\nmemory = \"16MiB\"\n[stream]\nbuffer = \"4MiB\"\n[[route]]\nrespond = {}\n");
    assert!(said.contains("one request alone may hold 41056KiB") && said.contains("x.toml:2:10"), "{said}");
    good("[server]\nmemory = \"41056KiB\"\n[stream]\nbuffer = \"4MiB\"\n[[route]]\nrespond = {}\n");
}
