//! The admin port: its pages and verbs, who may use them, and that they are all explained.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

use crate::support::{Proxy, run};

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

const TOKEN: &str = "0123456789abcdef-the-token";

#[test]
fn an_admin_port_for_other_machines_needs_its_token() {
    let admin = format!("{ROUTE}[admin]\nlisten = \"0.0.0.0:0\"\ntoken = {{ env = \"ADMIN_TOKEN\" }}\n");
    let proxy = Proxy::with_env(&format!("{admin}open = [\"/live\", \"/metrics\"]\n"), &[("ADMIN_TOKEN", TOKEN)]);
    let status = |method, path, fields: &str| proxy.ask_admin(method, path, fields).0;
    let shown = format!("authorization: Bearer {TOKEN}\r\n");
    for (method, path) in [("GET", "/stack"), ("GET", "/ready"), ("GET", "/streams"), ("POST", "/reload"), ("GET", "/")]
    {
        assert_eq!(status(method, path, ""), 401, "{path}");
        assert_eq!(status(method, path, "authorization: Bearer 0123456789abcdef-the-tokem\r\n"), 401, "{path}");
        assert_ne!(status(method, path, &shown), 401, "{path}");
    }
    assert_eq!((status("GET", "/live", ""), status("GET", "/metrics", "")), (200, 200));
    assert!(!proxy.log().contains(TOKEN));
}

#[test]
fn without_a_token_it_is_for_this_machine_only() {
    let check = |admin: &str| {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.toml");
        std::fs::write(&file, format!("{ROUTE}[admin]\n{admin}\n")).unwrap();
        let output = run(&["check", "--config", file.to_str().unwrap()]);
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for open in ["listen = \"0.0.0.0:9901\"", "listen = \"10.0.0.1:9901\"", "listen = \"[::]:9901\""] {
        let (code, report) = check(open);
        assert_eq!(code, Some(2), "{open}");
        assert!(report.contains("without a token") && report.contains("set `token"), "{report}");
    }
    for safe in ["", "listen = \"[::1]:9901\"", "listen = \"unix:/run/x.sock\"", "listen = \"127.0.0.2:9901\""] {
        assert_eq!(check(safe).0, Some(0), "{safe}: {}", check(safe).1);
    }
    let (code, report) = check("listen = \"0.0.0.0:9901\"\ntoken = \"hunter2\"");
    assert_eq!(code, Some(2));
    assert!(report.contains("this is no token"), "{report}");
    assert_eq!(check("mode = \"0660\"").0, Some(2));
    assert_eq!(check("open = [\"/stack\"]").0, Some(2));
}

#[test]
fn it_can_listen_on_a_unix_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    let config = format!("{ROUTE}[admin]\nlisten = \"unix:{}\"\nopen = []\ntoken = \"{TOKEN}\"\n", path.display());
    let proxy = Proxy::from_toml(&config);
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let ask = |fields: &str| {
        let mut stream = UnixStream::connect(&path).unwrap();
        write!(stream, "GET /live HTTP/1.1\r\nhost: headworks\r\nconnection: close\r\n{fields}\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    assert!(ask("").starts_with("HTTP/1.1 401 "));
    assert!(ask(&format!("authorization: Bearer {TOKEN}\r\n")).starts_with("HTTP/1.1 200 "));

    let file = dir.path().join("headworks.toml");
    std::fs::write(&file, &config).unwrap();
    let health = |args: &[&str]| run(&[&["health"], args].concat()).status.code();
    assert_eq!(health(&["--config", file.to_str().unwrap()]), Some(0));
    assert_eq!(health(&["--admin", &format!("unix:{}", path.display())]), Some(1), "it shows no token");
    drop(proxy);
    assert_eq!(health(&["--config", file.to_str().unwrap()]), Some(1));
}

#[test]
fn who_holds_on_to_the_places_locks_nobody_out() {
    let proxy = Proxy::from_toml(ROUTE);
    let mut held: Vec<_> = (0..200).map(|_| TcpStream::connect(proxy.admin()).unwrap()).collect();
    for stream in &mut held {
        // The oldest may have lost its place already.
        let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\n");
    }
    assert_eq!(proxy.page("/ready").0, 200);
}
