//! The admin port: its pages and verbs, who may use them, and that they are all explained.

use std::collections::BTreeSet;

use crate::support::Proxy;

const ROUTE: &str = "[[route]]\nname = \"fixed\"\nrespond.status = 204\n";

/// What the index lists, as `METHOD /path`.
fn listed(index: &str) -> BTreeSet<String> {
    let words = index.lines().map(|line| line.split_whitespace().take(2).collect::<Vec<_>>());
    words.filter(|words| words.len() == 2 && words[1].starts_with('/')).map(|words| words.join(" ")).collect()
}

#[test]
fn every_page_and_verb_is_explained_and_there() {
    let proxy = Proxy::from_toml(ROUTE);
    let listed = listed(&proxy.page("/").1);
    assert!(listed.len() > 5, "{listed:?}");
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/admin.md");
    let page = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let explained = page.lines().filter_map(|line| line.strip_prefix("### `")?.strip_suffix('`'));
    let explained: BTreeSet<_> = explained.map(str::to_owned).collect();
    assert_eq!(listed, explained, "the index and docs/admin.md differ");
    for row in &listed {
        let (method, path) = row.split_once(' ').unwrap();
        let (status, answer) = proxy.ask_admin(method, path, "");
        // A word in capitals names nothing, and what this program cannot do it says.
        assert!(status != 405 && (status != 404 || path.contains(char::is_uppercase)), "{row}: {status} {answer}");
    }
}

#[test]
fn a_page_of_another_site_cannot_use_the_admin_port() {
    let proxy = Proxy::from_toml(ROUTE);
    assert_eq!(proxy.page("/stack").0, 200);
    for fields in ["sec-fetch-site: cross-site\r\n", "origin: https://evil.example\r\n"] {
        for (method, path) in [("GET", "/stack"), ("POST", "/reload"), ("GET", "/metrics")] {
            assert_eq!(proxy.ask_admin(method, path, fields).0, 403, "{method} {path} {fields}");
        }
    }
    assert_eq!(proxy.ask_admin("POST", "/reload", "content-type: text/plain\r\n").0, 415);
    assert_eq!(proxy.ask_admin("POST", "/reload", "content-length: 1\r\n\r\nx").0, 413);
}
