//! curl, as people have it, in each version of HTTP.

use std::process::Command;

use crate::support::{Certs, Origin, Proxy};

/// Runs curl; gives its output and, behind it, the version it spoke.
fn curl(args: &[&str]) -> (String, String) {
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--noproxy", "*", "--max-time", "20", "--write-out", "\n%{http_version}"])
        .args(args)
        .output()
        .expect("curl is installed");
    assert!(output.status.success(), "curl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let (body, version) = text.rsplit_once('\n').unwrap();
    (body.to_owned(), version.to_owned())
}

#[test]
fn plain_ports_serve_http_1_and_2() {
    let origin = Origin::h1();
    let proxy = Proxy::from_toml(&format!(
        "[upstream.app]\nendpoints = [\"{}\"]\n[[route]]\nupstream = \"app\"\n",
        origin.url()
    ));
    let url = proxy.url("/delay/1");
    assert_eq!(curl(&["--http1.1", &url]), ("ok".into(), "1.1".into()));
    assert_eq!(curl(&["--http2-prior-knowledge", &url]), ("ok".into(), "2".into()));
    assert_eq!(curl(&["--http1.0", &url]).0, "ok");
    let (events, _) = curl(&["--no-buffer", &proxy.url("/sse/3/10")]);
    assert_eq!(events, "data: 0\n\ndata: 1\n\ndata: 2\n\ndata: [DONE]\n\n");
    let posted = curl(&["--data-binary", "hello", &proxy.url("/discard")]);
    assert_eq!(posted.0, "5");
}

#[test]
fn tls_ports_serve_what_alpn_agrees_on() {
    let certs = Certs::new();
    let origin = Origin::h1();
    let proxy = Proxy::from_toml(&format!(
        "[[server.listener]]\nname = \"public\"\naddress = \"127.0.0.1:0\"\n\
         tls = [{{ cert = \"{}\", key = \"{}\" }}, {{ cert = \"{}\", key = \"{}\" }}]\n\
         [upstream.app]\nendpoints = [\"{}\"]\n[[route]]\nmatch = {{ listener = \"public\" }}\nupstream = \"app\"\n",
        certs.name("server.pem"),
        certs.name("server.key"),
        certs.name("other.pem"),
        certs.name("other.key"),
        origin.url()
    ));
    let port = proxy.addr("public").port();
    let ca = certs.name("ca.pem");
    let url = format!("https://localhost:{port}/head");
    let (body, version) = curl(&["--cacert", &ca, "--http2", "--ipv4", &url]);
    assert_eq!(version, "2", "{body}");
    let head: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(head["headers"]["x-forwarded-proto"][0], "https");
    assert_eq!(curl(&["--cacert", &ca, "--http1.1", "--ipv4", &url]).1, "1.1");
    // The second certificate is chosen by name.
    let resolve = format!("other.test:{port}:127.0.0.1");
    let other = format!("https://other.test:{port}/delay/1");
    assert_eq!(curl(&["--cacert", &ca, "--resolve", &resolve, &other]), ("ok".into(), "2".into()));
}

#[test]
fn a_refusal_is_a_whole_answer_for_curl_too() {
    let origin = Origin::h1();
    let proxy = Proxy::from_toml(&format!(
        "[upstream.app]\nendpoints = [\"{}\"]\n[[route]]\nupstream = \"app\"\n\
         rate_limit = [{{ name = \"all\", by = \"all\", rate = \"1/min\", burst = 1 }}]\n",
        origin.url()
    ));
    assert_eq!(curl(&[&proxy.url("/delay/1")]).0, "ok");
    let (answer, _) = curl(&["--include", &proxy.url("/delay/1")]);
    assert!(answer.contains("429"), "{answer}");
    assert!(answer.to_ascii_lowercase().contains("retry-after: "), "{answer}");
}
