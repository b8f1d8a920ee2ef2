use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::server::WebPkiClientVerifier;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::*;
use crate::body::Body;
use crate::context::Request;
use crate::upstream::testing::*;
use crate::upstream::{Client, Scheme, Settings as Upstream};

/// An authority and one certificate of it, for `service.test`, in files.
struct Authority {
    folder: TempDir,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority");
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(["service.test".to_owned()]).expect("parameters");
        let cert = params.signed_by(&key, &issuer).expect("a certificate");
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in [("ca.pem", issuer.pem()), ("cert.pem", cert.pem()), ("key.pem", key.serialize_pem())] {
            std::fs::write(folder.path().join(name), text).expect("a file");
        }
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn certs(&self) -> Vec<CertificateDer<'static>> {
        load_certs(&self.path("cert.pem")).expect("certificates")
    }

    /// A server that speaks `protocols`; with `clients` it asks for a certificate of this authority.
    fn server(&self, protocols: &[&[u8]], clients: bool) -> TlsAcceptor {
        let builder =
            ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().expect("versions");
        let builder = if clients {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_file(self.path("ca.pem")).expect("a file")).expect("an authority");
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
            builder.with_client_cert_verifier(verifier.build().expect("a verifier"))
        } else {
            builder.with_no_client_auth()
        };
        let key = load_key(&self.path("key.pem")).expect("a key");
        let mut config = builder.with_single_cert(self.certs(), key).expect("a certificate");
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }

    /// Settings that trust this authority and ask for its service.
    fn settings(&self, peer: &Peer) -> Upstream {
        let mut settings = peer.settings(Scheme::Https);
        settings.tls.ca = Some(self.path("ca.pem"));
        settings.tls.server_name = Some("service.test".to_owned());
        settings
    }
}

async fn accept(peer: &Peer, server: &TlsAcceptor) -> TlsStream<TcpStream> {
    soon(server.accept(peer.accept_stream().await)).await.expect("a handshake")
}

/// Answers one HTTP/1.1 request and keeps the connection.
async fn answer_http1(stream: TlsStream<TcpStream>) -> Line<TlsStream<TcpStream>> {
    let mut line = Line::new(stream);
    line.request().await.expect("a request");
    line.say(OK).await;
    line
}

/// The reason a GET fails for, and its text, while the peer does what `server` does.
async fn failure(settings: &Upstream, peer: &Peer, server: &TlsAcceptor) -> (Reason, String) {
    let client = client(settings);
    let (result, _) = tokio::join!(soon(client.ask(get("/"), None)), async {
        soon(server.accept(peer.accept_stream().await)).await.map(drop)
    });
    let error = result.expect_err("no answer");
    (error.reason, error.to_string())
}

#[tokio::test]
async fn http2_is_agreed_on_where_the_peer_speaks_it() {
    let (peer, authority) = (Peer::new().await, Authority::new());
    let (server, client) = (authority.server(&[H2, HTTP1], false), client(&authority.settings(&peer)));
    let (answers, _frames) =
        tokio::join!(async { tokio::join!(call(&client, get("/1")), call(&client, get("/2"))) }, async {
            let mut frames = Frames::new(accept(&peer, &server).await, 100).await;
            for _ in 0..2 {
                let stream = frames.request().await.expect("a request");
                frames.answer(stream).await;
            }
            frames
        });
    answers.0.expect("an answer");
    answers.1.expect("an answer");
    assert_eq!(client.stats().connects, 1);
}

#[tokio::test]
async fn http1_is_spoken_where_the_peer_speaks_no_other_and_a_burst_gets_its_connections() {
    for protocols in [&[HTTP1][..], &[]] {
        let (peer, authority) = (Peer::new().await, Authority::new());
        let (server, client) = (authority.server(protocols, false), client(&authority.settings(&peer)));
        let (answers, _lines) =
            tokio::join!(async { tokio::join!(call(&client, get("/1")), call(&client, get("/2"))) }, async {
                let first = accept(&peer, &server).await;
                // Held back, so that the second request needs a connection of its own.
                let second = accept(&peer, &server).await;
                (answer_http1(first).await, answer_http1(second).await)
            });
        answers.0.expect("an answer");
        answers.1.expect("an answer");
        assert_eq!(client.stats().connects, 2);
    }
}

#[tokio::test]
async fn an_upgrade_gets_http1_although_the_peer_speaks_both() {
    let (peer, authority) = (Peer::new().await, Authority::new());
    let (server, client) = (authority.server(&[H2, HTTP1], false), client(&authority.settings(&peer)));
    let (first, _frames) = tokio::join!(call(&client, get("/")), async {
        let mut frames = Frames::new(accept(&peer, &server).await, 100).await;
        let stream = frames.request().await.expect("a request");
        frames.answer(stream).await;
        frames
    });
    first.expect("an answer");
    let upgrade: Request = http::Request::get("/ws")
        .header("connection", "upgrade")
        .header("upgrade", "websocket")
        .body(Body::empty())
        .expect("a request");
    let (answer, _line) = tokio::join!(call(&client, upgrade), async {
        let stream = accept(&peer, &server).await;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(HTTP1));
        answer_http1(stream).await
    });
    assert_eq!(answer.expect("an answer"), "ok");
    assert_eq!((client.stats().connections, client.stats().idle), (2, 2));
}

#[tokio::test]
async fn a_peer_without_h2_is_refused_where_h2_is_fixed() {
    let (peer, authority) = (Peer::new().await, Authority::new());
    let mut settings = authority.settings(&peer);
    settings.protocol = Protocol::Http2;
    // A server that knows nothing of ALPN agrees to nothing.
    let (reason, text) = failure(&settings, &peer, &authority.server(&[], false)).await;
    assert_eq!((reason, text.as_str()), (Reason::TlsFailed, "tls_failed: the peer does not speak h2"));
}

#[tokio::test]
async fn a_certificate_of_another_name_or_authority_is_refused() {
    let (peer, authority) = (Peer::new().await, Authority::new());
    let server = authority.server(&[HTTP1], false);
    let mut settings = authority.settings(&peer);
    settings.tls.server_name = None;
    let (reason, text) = failure(&settings, &peer, &server).await;
    assert_eq!(reason, Reason::TlsFailed);
    assert!(text.contains("127.0.0.1"), "{text}");

    let other = Authority::new();
    let (reason, text) = failure(&other.settings(&peer), &peer, &server).await;
    assert_eq!(reason, Reason::TlsFailed, "{text}");
}

#[tokio::test]
async fn the_client_certificate_is_shown() {
    let (peer, authority) = (Peer::new().await, Authority::new());
    let server = authority.server(&[HTTP1], true);
    let mut settings = authority.settings(&peer);
    settings.tls.client = Some((authority.path("cert.pem"), authority.path("key.pem")));
    let client = client(&settings);
    let (answer, _line) = tokio::join!(call(&client, get("/")), async {
        let stream = accept(&peer, &server).await;
        let shown = stream.get_ref().1.peer_certificates().expect("a certificate").to_vec();
        assert_eq!(shown, authority.certs());
        answer_http1(stream).await
    });
    answer.expect("an answer");
}

#[tokio::test]
async fn a_peer_that_does_not_speak_tls_is_a_tls_failure_and_a_silent_one_a_slow_connect() {
    let (peer, authority) = (Peer::new().await, Authority::new());
    let mut settings = authority.settings(&peer);
    let plain = client(&settings);
    let (result, ()) = tokio::join!(soon(plain.ask(get("/"), None)), async {
        Line::new(peer.accept_stream().await).say("HTTP/1.1 400 Bad Request\r\n\r\n").await;
    });
    assert_eq!(result.expect_err("no answer").reason, Reason::TlsFailed);

    settings.timeout.connect = std::time::Duration::from_millis(100);
    let silent = client(&settings);
    let (result, stream) = tokio::join!(soon(silent.ask(get("/"), None)), peer.accept_stream());
    assert_eq!(result.expect_err("no answer").reason, Reason::ConnectTimeout);
    drop(stream);
}

#[tokio::test]
async fn files_and_names_that_cannot_be_used_are_named() {
    let (peer, authority) = (Peer::new().await, Authority::new());
    let refusal = |change: &dyn Fn(&mut Upstream)| {
        let mut settings = authority.settings(&peer);
        change(&mut settings);
        Client::new(&settings, &settings.endpoints[0]).expect_err("unusable").to_string()
    };
    let missing = refusal(&|settings| settings.tls.ca = Some("/nowhere/ca.pem".into()));
    assert!(missing.starts_with("cannot read the certificates in /nowhere/ca.pem: "), "{missing}");
    let (cert, ca) = (authority.path("cert.pem"), authority.path("ca.pem"));
    let no_key = refusal(&|settings| settings.tls.client = Some((cert.clone(), ca.clone())));
    assert!(no_key.starts_with("cannot read the private key in ") && no_key.contains("ca.pem"), "{no_key}");
    let mixed = refusal(&|settings| settings.tls.client = Some((ca.clone(), authority.path("key.pem"))));
    assert!(mixed.contains("ca.pem cannot be used: "), "{mixed}");
    let name = refusal(&|settings| settings.tls.server_name = Some("not a name".to_owned()));
    assert!(name.contains("`not a name`"), "{name}");
}

#[test]
fn the_systems_roots_are_enough_of_a_configuration() {
    if rustls_native_certs::load_native_certs().certs.is_empty() {
        return;
    }
    assert!(config(&Settings::default()).is_ok());
}
