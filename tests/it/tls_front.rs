//! The front door over TLS: who may come, who they are known as, and how it is told when they may not.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::Resumption;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use rustls::{AlertDescription, ClientConfig, Error, HandshakeKind};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::support::{Answer, Certs, Origin, Proxy, Raw, empty, eventually, h2_tls, request, run};

const SOON: Duration = Duration::from_secs(5);

fn listener(certs: &Certs, name: &str, more: &str) -> String {
    format!(
        "[[server.listener]]\nname = \"{name}\"\naddress = \"127.0.0.1:0\"\n\
         tls = [{{ cert = \"{}\", key = \"{}\" }}]\n{more}\n",
        certs.name("server.pem"),
        certs.name("server.key")
    )
}

fn proxy(upstream: &str, server: &str) -> Proxy {
    Proxy::from_toml(&format!(
        "{server}\n[upstream.app]\nendpoints = [\"{upstream}\"]\n[[route]]\nupstream = \"app\"\n\
         rate_limit = [{{ by = \"client_cert\", rate = \"3/hour\" }}]\n"
    ))
}

async fn connect(addr: SocketAddr, config: &Arc<ClientConfig>) -> io::Result<Raw<TlsStream<TcpStream>>> {
    let stream = TcpStream::connect(addr).await?;
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::clone(config)).connect(name, stream).await.map(Raw::over)
}

/// What the upstream got of a request with these fields.
async fn seen(addr: SocketAddr, config: ClientConfig, fields: &str) -> (u16, serde_json::Value) {
    let mut client = connect(addr, &Arc::new(config)).await.expect("a connection");
    client.send(format!("GET /head HTTP/1.1\r\nhost: a\r\n{fields}\r\n")).await;
    let (status, head) = client.head().await;
    let body = client.read_n(head["content-length"].to_str().unwrap().parse().unwrap()).await;
    (status, serde_json::from_slice(&body).unwrap())
}

/// The alert that a client gets for its request.
async fn alert(addr: SocketAddr, config: ClientConfig) -> AlertDescription {
    let said = match connect(addr, &Arc::new(config)).await {
        Ok(mut client) => {
            // With TLS 1.3 the client is done before the server has seen its certificate.
            client.send("GET /head HTTP/1.1\r\nhost: a\r\n\r\n").await;
            client.read_to_end().await.expect_err("an alert")
        }
        Err(error) => error,
    };
    match said.get_ref().and_then(|cause| cause.downcast_ref::<Error>()) {
        Some(Error::AlertReceived(alert)) => *alert,
        other => panic!("{said}: {other:?}"),
    }
}

fn base64(bytes: &[u8]) -> String {
    let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bit = |at: usize| bytes.get(at / 8).map_or(0, |byte| byte >> (7 - at % 8) & 1);
    let letter = |at: usize| letters[(0..6).fold(0, |sum, next| sum << 1 | usize::from(bit(at + next)))] as char;
    let mut text: String = (0..bytes.len() * 8).step_by(6).map(letter).collect();
    text.extend(std::iter::repeat_n('=', (4 - text.len() % 4) % 4));
    text
}

#[tokio::test]
async fn a_client_is_known_by_its_certificate_and_not_by_its_word() {
    let (origin, certs) = (Origin::h1(), Certs::new());
    let auth = format!("client_auth = {{ ca = \"{}\" }}", certs.name("ca.pem"));
    let plain = "[[server.listener]]\nname = \"plain\"\naddress = \"127.0.0.1:0\"\n";
    let proxy = proxy(&origin.url(), &format!("{}{plain}", listener(&certs, "strict", &auth)));
    let forged = "client-cert: :Zm9yZ2Vk:\r\nClient_Cert: forged\r\nclient-cert-chain: forged\r\n\
                  x-client-cert-fingerprint: forged\r\nconnection: client-cert, x-client-cert-fingerprint\r\n";
    let (status, head) = seen(proxy.addr("strict"), certs.client_with("client", &[]), forged).await;
    assert_eq!(status, 200);
    let der = CertificateDer::from_pem_file(certs.path("client.pem")).unwrap();
    let text = head["headers"].to_string();
    assert!(text.contains(&format!("\":{}:\"", base64(&der))), "{text}");
    assert!(!text.contains("forged") && !text.contains("Zm9yZ2Vk"), "{text}");
    let fingerprint = text.split("x-client-cert-fingerprint").nth(1).expect("a fingerprint");
    assert!(fingerprint.chars().skip_while(|c| !c.is_ascii_hexdigit()).take(64).all(|c| c.is_ascii_hexdigit()));

    let mut client = Raw::connect(proxy.addr("plain")).await;
    client.send(format!("GET /head HTTP/1.1\r\nhost: a\r\n{forged}\r\n")).await;
    let (status, head) = client.head().await;
    let body = client.read_n(head["content-length"].to_str().unwrap().parse().unwrap()).await;
    let text = String::from_utf8(body).unwrap();
    assert!(status == 200 && !text.contains("client-cert") && !text.contains("forged"), "{text}");

    // HTTP/2 as well, and each certificate has a rate of its own.
    for (name, left) in [("client", 2), ("other", 3)] {
        for number in 0..=left {
            let mut client = h2_tls(proxy.addr("strict"), certs.client_with(name, &["h2"])).await;
            let request = request("GET", proxy.addr("strict"), "/h2", empty());
            let answer = Answer::of(client.send_request(request).await.unwrap()).await.unwrap();
            assert_eq!(answer.status, if number < left { 200 } else { 429 }, "{name} {number}");
        }
    }
}

#[tokio::test]
async fn who_may_not_come_is_told_why() {
    let (origin, certs, stranger) = (Origin::h1(), Certs::new(), Certs::new());
    let auth = |more: &str| format!("client_auth = {{ ca = \"{}\"{more} }}", certs.name("ca.pem"));
    let strict = auth(&format!(", crl = \"{}\"", certs.name("crl.pem")));
    let proxy = proxy(
        &origin.url(),
        &format!("{}{}", listener(&certs, "strict", &strict), listener(&certs, "open", &auth(", required = false"))),
    );
    let strange = |name: &str| {
        let mut config = certs.client(&[]);
        config.client_auth_cert_resolver = stranger.client_with(name, &[]).client_auth_cert_resolver;
        config
    };
    let strict = proxy.addr("strict");
    for _ in 0..10 {
        assert_eq!(alert(strict, certs.client(&[])).await, AlertDescription::CertificateRequired);
    }
    assert_eq!(alert(strict, certs.client_with("other", &[])).await, AlertDescription::CertificateRevoked);
    assert_eq!(alert(strict, certs.client_with("expired", &[])).await, AlertDescription::CertificateExpired);
    let unknown = alert(strict, strange("client")).await;
    assert!(matches!(unknown, AlertDescription::UnknownCA | AlertDescription::DecryptError), "{unknown:?}");
    assert_eq!(seen(strict, certs.client_with("client", &[]), "").await.0, 200);

    let open = proxy.addr("open");
    assert_eq!(seen(open, certs.client_with("other", &[]), "").await.0, 200, "no list, nothing is revoked");
    let (status, head) = seen(open, certs.client(&[]), "client-cert: forged\r\n").await;
    assert!(status == 200 && !head.to_string().contains("client-cert"), "{head}");
    alert(open, strange("client")).await;
    assert_eq!(origin.seen().len(), 3);

    let failed = |listener, reason| {
        proxy.metric("headworks_tls_handshake_failures_total", &[("listener", listener), ("reason", reason)]) as u64
    };
    assert_eq!((failed("strict", "no_certificate"), failed("strict", "bad_certificate")), (10, 3));
    assert_eq!(failed("open", "bad_certificate"), 1);
}

/// Whether a second connection resumes the session of the first.
async fn resumes(first: SocketAddr, second: SocketAddr, mut config: ClientConfig) -> bool {
    config.resumption = Resumption::in_memory_sessions(4);
    let config = Arc::new(config);
    let mut kinds = Vec::new();
    for addr in [first, second] {
        let mut client = connect(addr, &config).await.unwrap();
        client.get("/").await;
        assert!(client.head().await.0 < 500); // the tickets of TLS 1.3 come with the answer
        kinds.push(client.stream().get_ref().1.handshake_kind().unwrap());
    }
    assert_ne!(kinds[0], HandshakeKind::Resumed);
    kinds[1] == HandshakeKind::Resumed
}

#[tokio::test]
async fn tickets_are_good_everywhere_but_where_certificates_are_asked_for() {
    let (origin, certs) = (Origin::h1(), Certs::new());
    let auth = format!("client_auth = {{ ca = \"{}\", required = false }}", certs.name("ca.pem"));
    let server =
        format!("{}{}{}", listener(&certs, "a", ""), listener(&certs, "b", ""), listener(&certs, "strict", &auth));
    let proxy = Proxy::from_toml(&format!(
        "{server}\n[upstream.app]\nendpoints = [\"{}\"]\n[[route]]\nupstream = \"app\"\n",
        origin.url()
    ));
    let (a, b, strict) = (proxy.addr("a"), proxy.addr("b"), proxy.addr("strict"));
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let config = || {
            let provider = Arc::clone(certs.client(&[]).crypto_provider());
            let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[version]).unwrap();
            let mut roots = rustls::RootCertStore::empty();
            roots.add(CertificateDer::from_pem_file(certs.path("ca.pem")).unwrap()).unwrap();
            builder.with_root_certificates(roots).with_no_client_auth()
        };
        assert!(resumes(a, a, config()).await, "{version:?}");
        assert!(resumes(a, b, config()).await, "one set of keys for all doors: {version:?}");
        assert!(!resumes(strict, strict, config()).await, "{version:?}");
        assert!(!resumes(a, strict, config()).await, "{version:?}");
    }
}

#[tokio::test]
async fn handshakes_are_counted_by_how_they_fail() {
    let (origin, certs, stranger) = (Origin::h1(), Certs::new(), Certs::new());
    let server = format!("[server]\ntimeout.header = \"300ms\"\n{}", listener(&certs, "front", ""));
    let proxy = proxy(&origin.url(), &server);
    let addr = proxy.addr("front");

    let mut plain = Raw::connect(addr).await;
    plain.get("/").await;
    assert!(plain.read_to_end().await.is_ok_and(|said| !said.starts_with(b"HTTP")));
    assert!(connect(addr, &Arc::new(stranger.client(&[]))).await.is_err(), "not an authority of its own");
    assert!(connect(addr, &Arc::new(certs.client(&["smtp"]))).await.is_err(), "no protocol in common");
    let mut slow = Raw::connect(addr).await;
    slow.send([22, 3, 1]).await;
    slow.read_to_end().await.unwrap();
    drop(Raw::connect(addr).await);

    let failed = |reason| proxy.metric("headworks_tls_handshake_failures_total", &[("reason", reason)]);
    for reason in ["malformed", "refused_by_client", "incompatible", "timeout", "closed"] {
        assert!(eventually(|| (failed(reason) - 1.0).abs() < 0.1, SOON).await, "{reason}: {}", failed(reason));
    }
}

#[test]
fn certificates_that_cannot_work_are_found_before_the_start() {
    let certs = Certs::new();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x.toml");
    let check = |cert: &str, key: &str, more: &str| {
        let text = format!(
            "[[server.listener]]\nname = \"front\"\naddress = \"127.0.0.1:0\"\n\
             tls = [{{ cert = \"{}\", key = \"{}\" }}]\n{more}\n[[route]]\nrespond = {{}}\n",
            certs.name(cert),
            certs.name(key)
        );
        std::fs::write(&file, text).unwrap();
        let output = run(&["check", "--config", file.to_str().unwrap()]);
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(check("server.pem", "server.key", ""), (Some(0), String::new()));
    let (code, said) = check("server.pem", "client.key", "");
    assert!(code == Some(2) && said.contains("listener front") && said.contains("client.key"), "{said}");
    let (code, said) = check("expired.pem", "expired.key", "");
    assert!(code == Some(0) && said.contains("the listener front has expired"), "{said}");
    let (code, said) = check("server.pem", "server.key", "client_auth.ca = \"/nowhere.pem\"");
    assert!(code == Some(2) && said.contains("/nowhere.pem"), "{said}");
    let (code, said) = check("server.pem", "server.key", "client_auth.required = true");
    assert!(code == Some(2) && said.contains("`ca`"), "{said}");
}

#[test]
fn a_plain_listener_cannot_ask_for_certificates() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x.toml");
    let text = "[[server.listener]]\nname = \"x\"\naddress = \"127.0.0.1:0\"\nclient_auth.ca = \"ca.pem\"\n\
                [[route]]\nrespond = {}\n";
    std::fs::write(&file, text).unwrap();
    let said = String::from_utf8(run(&["check", "--config", file.to_str().unwrap()]).stderr).unwrap();
    assert!(said.contains("a listener without `tls` cannot ask for certificates"), "{said}");
}
