//! The way to an upstream over TLS: whom it trusts, who it is, what it speaks.

use crate::support::{Answer, Certs, Origin, Proxy, empty, get, h2, request};

fn proxy(url: &str, tls: &str) -> Proxy {
    Proxy::from_toml(&format!(
        "[upstream.app]\nendpoints = [\"{url}\"]\ntls = {{ {tls} }}\n[[route]]\nupstream = \"app\"\n"
    ))
}

#[tokio::test]
async fn alpn_chooses_the_version() {
    let certs = Certs::new();
    let ca = format!("ca = \"{}\"", certs.name("ca.pem"));
    for (alpn, version) in [(&["h2", "http/1.1"][..], "HTTP/2.0"), (&["http/1.1"], "HTTP/1.1"), (&[], "HTTP/1.1")] {
        let origin = Origin::tls(certs.server("server", alpn, false));
        let proxy = proxy(&origin.url(), &ca);
        let answer = get(proxy.public(), "/head").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.json()["version"], version, "for {alpn:?}");
    }
}

#[tokio::test]
async fn a_fixed_protocol_is_the_only_one_offered() {
    let certs = Certs::new();
    let origin = Origin::tls(certs.server("server", &["h2", "http/1.1"], false));
    for (protocol, version) in [("h1", "HTTP/1.1"), ("h2", "HTTP/2.0")] {
        let proxy = Proxy::from_toml(&format!(
            "[upstream.app]\nendpoints = [\"{}\"]\nprotocol = \"{protocol}\"\ntls = {{ ca = \"{}\" }}\n\
             [[route]]\nupstream = \"app\"\n",
            origin.url(),
            certs.name("ca.pem")
        ));
        assert_eq!(get(proxy.public(), "/head").await.json()["version"], version);
    }
}

#[tokio::test]
async fn an_unknown_authority_is_not_trusted() {
    let certs = Certs::new();
    let origin = Origin::tls(certs.server("server", &["http/1.1"], false));
    let stranger = Certs::new();
    let proxy = proxy(&origin.url(), &format!("ca = \"{}\"", stranger.name("ca.pem")));
    let answer = get(proxy.public(), "/").await;
    assert_eq!(answer.status, 502, "{answer:?}");
    assert!(answer.header("proxy-status").contains("tls_failed"), "{answer:?}");
    assert!(origin.seen().is_empty());
}

#[tokio::test]
async fn another_server_name_is_asked_for_and_verified() {
    let certs = Certs::new();
    let ca = certs.name("ca.pem");
    let origin = Origin::tls(certs.server("other", &["http/1.1"], false));
    let wrong = proxy(&origin.url(), &format!("ca = \"{ca}\""));
    assert_eq!(get(wrong.public(), "/").await.status, 502, "the name is verified");
    let right = proxy(&origin.url(), &format!("ca = \"{ca}\", server_name = \"other.test\""));
    assert_eq!(get(right.public(), "/").await.status, 200);
}

#[tokio::test]
async fn a_client_certificate_is_shown() {
    let certs = Certs::new();
    let ca = certs.name("ca.pem");
    let origin = Origin::tls(certs.server("server", &["h2"], true));
    let without = proxy(&origin.url(), &format!("ca = \"{ca}\""));
    assert_eq!(get(without.public(), "/").await.status, 502);
    let shown =
        format!("ca = \"{ca}\", cert = \"{}\", key = \"{}\"", certs.name("client.pem"), certs.name("client.key"));
    let with = proxy(&origin.url(), &shown);
    let mut client = h2(with.public(), 1 << 16).await;
    let answer = client.send_request(request("GET", with.public(), "/head", empty())).await.unwrap();
    assert_eq!(Answer::of(answer).await.unwrap().status, 200);
}
