//! The configuration in force, as a tree of every key with its value, for people who ask a running program.
//!
//! It is made from what is written and from the declared defaults, never from the values that were read: so what
//! `{ env = ... }` and `{ file = ... }` stand for cannot be in it, only where it comes from. Beside that are hidden: the
//! values of header fields, which carry keys more often than not; tokens; and every text that is also a secret.

use std::ops::Range;

use serde_json::{Map, Value};
use toml::de::DeValue;

use super::decode::{Decode, Node, entries};
use super::file::{Root, Route};
use super::section::{Kind, plain};
use super::{Config, Secrets};

/// What stands for a value that is not shown.
pub(super) const HIDDEN: &str = "(hidden)";

/// The whole tree. A key that is absent and has no default is null.
pub(super) fn of(root: Node<'_>, config: &Config) -> Value {
    let mut tree = Root::effective(root, &config.secrets);
    imply_listeners(&mut tree, config);
    imply_routes(&mut tree, config);
    tree
}

/// A value as it is written.
pub(super) fn written(node: Node<'_>, secrets: &Secrets) -> Value {
    match node.get_ref() {
        DeValue::String(text) if secrets.hides(text) => HIDDEN.into(),
        DeValue::String(text) => Value::from(&**text),
        DeValue::Boolean(value) => (*value).into(),
        DeValue::Integer(integer) => {
            i64::from_str_radix(integer.as_str(), integer.radix()).map_or_else(|_| integer.as_str().into(), Value::from)
        }
        DeValue::Float(float) => float.as_str().into(),
        DeValue::Datetime(time) => time.to_string().into(),
        DeValue::Array(items) => items.iter().map(|item| written(item, secrets)).collect(),
        DeValue::Table(_) => {
            let pairs = entries(node).unwrap_or_default().into_iter();
            Value::Object(pairs.map(|(key, value)| (key.get_ref().to_string(), written(value, secrets))).collect())
        }
    }
}

/// A value that is not shown, unless it only says where it comes from.
pub(super) fn hidden(node: Node<'_>, secrets: &Secrets) -> Value {
    match node.get_ref() {
        DeValue::String(_) | DeValue::Array(_) => HIDDEN.into(),
        _ => written(node, secrets),
    }
}

/// A text without what stands at these places, for a report that quotes its lines. Every other byte stays in its place.
pub(super) fn without(text: &str, places: &[Range<usize>]) -> String {
    let hides = |at: usize, c: char| c != '\n' && places.iter().any(|place| place.contains(&at));
    let stars = |at, c: char| if hides(at, c) { "*".repeat(c.len_utf8()) } else { c.to_string() };
    text.char_indices().map(|(at, c)| stars(at, c)).collect()
}

/// One key of a table: what is written, or else its default.
pub(super) fn key<T: Decode>(
    table: Node<'_>,
    key: &'static str,
    kind: Kind,
    secrets: &Secrets,
    out: &mut Map<String, Value>,
) {
    let key = plain(key);
    let written = entries(table).unwrap_or_default().into_iter().find(|(name, _)| name.get_ref() == key);
    let value = match (written, kind) {
        (Some((_, node)), _) => T::effective(node, secrets),
        (None, Kind::Default(text)) => {
            DeValue::parse(text).map_or(Value::Null, |default| T::effective(&default, secrets))
        }
        (None, Kind::Required | Kind::Optional) => Value::Null,
    };
    out.insert(key.into(), value);
}

/// The listener that is there when none is declared.
fn imply_listeners(tree: &mut Value, config: &Config) {
    let none = |value: &Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
    if let Some(server) = tree.get_mut("server").and_then(Value::as_object_mut)
        && server.get("listen").is_none_or(none)
        && server.get("listener").is_none_or(none)
    {
        let addresses = config.server.listeners.iter().map(|listener| listener.address.to_string());
        server.insert("listen".into(), addresses.collect());
    }
}

/// The route that is there when none is declared, and the names of those that have none.
fn imply_routes(tree: &mut Value, config: &Config) {
    let Some(routes) = tree.get_mut("route").and_then(Value::as_array_mut) else { return };
    if let ([], [implied]) = (routes.as_slice(), config.routes.as_slice())
        && let Ok(empty) = DeValue::parse("{}")
    {
        let mut route = Route::effective(&empty, &config.secrets);
        if let (Some(route), Some(upstream)) = (route.as_object_mut(), implied.upstream(&config.upstreams)) {
            route.insert("upstream".into(), (*upstream.name).into());
        }
        routes.push(route);
    }
    for (route, known) in routes.iter_mut().zip(&config.routes) {
        if let Some(name) = route.get_mut("name").filter(|name| name.is_null()) {
            *name = (*known.name).into();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::load::parse_with;
    use super::*;
    use serde_json::json;
    use std::path::Path;

    fn tree(text: &str) -> Value {
        let env = |name: &str| (name == "KEY").then(|| "s3cret".to_owned());
        parse_with(text, "x.toml", Path::new(""), &env).unwrap_or_else(|error| panic!("{error}")).effective
    }

    #[test]
    fn every_key_has_its_value() {
        let tree = tree("[upstream.app]\nendpoints = 'http://a:1'\nqueue.max = 7\n[stream]\nbuffer = '32KiB'\n");
        let queue = &tree["upstream"]["app"]["queue"];
        assert_eq!((&queue["max"], &queue["timeout"], &queue["by"]), (&json!(7), &json!("1s"), &Value::Null));
        assert_eq!(tree["upstream"]["app"]["endpoints"], json!([{ "url": "http://a:1", "weight": 1, "zone": null }]));
        assert_eq!(tree["stream"]["buffer"], "32KiB");
        assert_eq!(tree["server"]["timeout"]["header"], "10s");
        assert_eq!(tree["server"]["listen"], json!(["127.0.0.1:8080"]), "what nobody wrote is there too");
        assert_eq!((&tree["route"][0]["name"], &tree["route"][0]["upstream"]), (&json!("default"), &json!("app")));
        assert_eq!(tree["admin"], Value::Null);
        for key in super::super::keys() {
            let path = key.replace("upstream.NAME", "upstream.app");
            let found = path.split('.').try_fold(&tree, |at, key| {
                let at = at.as_array().and_then(|items| items.first()).unwrap_or(at);
                // Below what is absent there is nothing.
                if at.is_null() || at.as_array().is_some_and(Vec::is_empty) { Some(&Value::Null) } else { at.get(key) }
            });
            assert!(found.is_some(), "{key} is not in {tree:#}");
        }
    }

    #[test]
    fn a_report_does_not_repeat_what_is_private() {
        let text = "[[route]]\nrespond = {}\n[admin]\ntoken = 'hünter2'\nx = 1\n";
        let error = parse_with(text, "x.toml", Path::new(""), &|_| None).expect_err("two mistakes").to_string();
        assert!(error.contains("token = **********\n") && !error.contains("nter2"), "{error}");
        let text = "[[route]]\nrespond = {}\nheaders.request.set = { x-api-key = 'abc', y = 1, x-a = 'def' }\n";
        let error = parse_with(text, "x.toml", Path::new(""), &|_| None).expect_err("a mistake").to_string();
        assert!(error.contains("x-api-key = *****, y = 1, x-a = 'def'"), "{error}");
    }

    #[test]
    fn a_secret_shows_only_where_it_comes_from() {
        let tree = tree(
            "[upstream.app]\nendpoints = 'http://a:1'\n[admin]\ntoken = 'visible-but-secret'\n\
             [[route]]\nupstream = 'app'\nmatch.host = 's3cret'\nmatch.headers = { x-a = 'plain', x-b = true }\n\
             headers.request.set = { authorization = { env = 'KEY' }, cookie = 'plain' }\n",
        );
        let route = &tree["route"][0];
        let set = &route["headers"]["request"]["set"];
        assert_eq!(set, &json!({ "authorization": { "env": "KEY" }, "cookie": HIDDEN }));
        assert_eq!(route["match"]["headers"], json!({ "x-a": HIDDEN, "x-b": true }));
        assert_eq!(route["match"]["host"], HIDDEN, "a text that is also a secret");
        assert_eq!((&route["name"], &tree["admin"]["token"]), (&json!("route-1"), &json!(HIDDEN)));
        let text = tree.to_string();
        assert!(!text.contains("plain") && !text.contains("visible"), "{text}");
    }
}
