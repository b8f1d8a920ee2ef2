//! The duties of an intermediary (RFC 9110, section 7.6): fields of one hop end here, and each hop says who it is.
//!
//! | file | does |
//! |---|---|
//! | `mod.rs` | the layer: fields named in `Connection` and the hop-by-hop ones go, in both directions; `Via` comes |
//! | `forwarded.rs` | `X-Forwarded-*` and `Forwarded`: added to a trusted proxy's, in place of anybody else's |
//! | `identity.rs` | who the client is by its certificate, and never by its own word |
//! | `last_hop.rs` | `Max-Forwards` of OPTIONS and TRACE |
//! | `upgrade.rs` | the switch of protocols that the route allows, asked for anew |
//! | `websocket.rs` | the handshake that a client of HTTP/2 does not make |
//!
//! `TE: trailers` is this hop's wish too. Refuses with `expectation_failed` (417) any expectation but `100-continue`, with
//! `method_refused` (405) a TRACE that the route does not name, with `loop_detected` (508) what came by too often, with `upgrade_refused` (501) what HTTP/2 asks for by extended CONNECT
//! and the route does not allow; over HTTP/1.1 such a wish is taken off, and the request is one like any other. Fails
//! with `upgrade_failed` (502) when the upstream switches to what was not asked for. Stands before the edits, which may
//! override what it adds.
//!
//! ```toml
//! [[route]]
//! upgrade = ["websocket"]
//! ```

mod forwarded;
mod identity;
mod last_hop;
mod upgrade;
mod websocket;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::header::{CONNECTION, EXPECT, TE, TRANSFER_ENCODING, UPGRADE, VIA};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};
use http_body::Body as _;
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use self::upgrade::Wanted;
use crate::context::{Request, Response};
use crate::error::{ProxyError, Reason};

/// Fields of one hop beside `Connection` itself and what it names.
static HOP_BY_HOP: [HeaderName; 8] = [
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("proxy-authenticate"),
    HeaderName::from_static("proxy-authorization"),
    HeaderName::from_static("http2-settings"),
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// A request that has passed this program so often runs in a circle.
const MOST_PASSES: usize = 16;

/// What is said to a client without asking the upstream.
type Early = Result<Response, ProxyError>;

/// What a route allows beyond plain requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Protocols that a client may switch to, in lower case. Never `h2c`.
    pub upgrade: Vec<Box<str>>,
    /// The methods that the route names; none: it serves any but TRACE.
    pub methods: Vec<Method>,
}

/// See the module's text.
#[derive(Clone, Debug, Default)]
pub struct ForwardLayer {
    settings: Arc<Settings>,
}

impl ForwardLayer {
    /// A layer for a route with these settings.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings: Arc::new(settings) }
    }
}

impl<S> Layer<S> for ForwardLayer {
    type Service = Forward<S>;

    fn layer(&self, inner: S) -> Forward<S> {
        Forward { inner, settings: Arc::clone(&self.settings) }
    }
}

/// The service of [`ForwardLayer`].
#[derive(Clone, Debug)]
pub struct Forward<S> {
    inner: S,
    settings: Arc<Settings>,
}

impl<S> Service<Request> for Forward<S>
where
    S: Service<Request, Response = Response, Error = ProxyError>,
{
    type Response = Response;
    type Error = ProxyError;
    type Future = Forwarding<S::Future>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request) -> Forwarding<S::Future> {
        match prepare(&mut request, &self.settings) {
            Ok(wanted) => Forwarding { inner: Some(self.inner.call(request)), early: None, wanted },
            Err(early) => Forwarding { inner: None, early: Some(early), wanted: None },
        }
    }
}

/// Makes a request of the next hop out of one of the last. Gives the switch of protocols that it asks for.
fn prepare(request: &mut Request, settings: &Settings) -> Result<Option<Box<Wanted>>, Box<Early>> {
    let found = Found::of(request.headers());
    last_hop::check(request, settings, found.max_forwards)?;
    let refuse = |error| Box::new(Err(error));
    if found.via && passes(request.headers()) >= MOST_PASSES {
        return Err(refuse(Reason::LoopDetected.into()));
    }
    if found.expect {
        expect(request).map_err(|reason| refuse(reason.into()))?;
    }
    let wanted = if found.upgrade { Wanted::of(request, &settings.upgrade).map_err(refuse)? } else { None };
    let trailers = found.te && names(request.headers(), &TE, "trailers");
    found.remove_hop_by_hop(request.headers_mut());
    if let Some(wanted) = &wanted {
        wanted.ask(request.headers_mut());
    }
    if trailers {
        request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
    }
    forwarded::add(request, found);
    if found.identity {
        identity::remove(request.headers_mut());
    }
    identity::add(request);
    let version = request.version();
    add_via(request.headers_mut(), version);
    Ok(wanted)
}

pin_project! {
    /// The future of [`Forward`].
    #[derive(Debug)]
    pub struct Forwarding<F> {
        // None: told early.
        #[pin]
        inner: Option<F>,
        early: Option<Box<Early>>,
        wanted: Option<Box<Wanted>>,
    }
}

impl<F: Future<Output = Result<Response, ProxyError>>> Future for Forwarding<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let Some(inner) = this.inner.as_pin_mut() else {
            return Poll::Ready(this.early.take().map_or(Err(Reason::Internal.into()), |early| *early));
        };
        let mut response = ready!(inner.poll(cx))?;
        let protocol = match this.wanted {
            Some(wanted) => wanted.check(&response)?,
            None => None,
        };
        let found = Found::of(response.headers());
        found.remove_hop_by_hop(response.headers_mut());
        if let Some(protocol) = protocol {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
            response.headers_mut().insert(UPGRADE, protocol);
        }
        let version = response.version();
        add_via(response.headers_mut(), version);
        // The version is a matter of one hop as well: hyper would speak the upstream's to the client.
        *response.version_mut() = Version::HTTP_11;
        Poll::Ready(Ok(response))
    }
}

/// Which fields of interest a head has: one pass over the names is cheaper than asking for each.
#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "a set of independent findings")]
struct Found {
    connection: bool,
    hop_by_hop: bool,
    te: bool,
    upgrade: bool,
    forwarded: bool,
    identity: bool,
    expect: bool,
    max_forwards: bool,
    via: bool,
}

impl Found {
    fn of(headers: &HeaderMap) -> Self {
        let mut found = Self::default();
        for name in headers.keys() {
            match name.as_str() {
                "connection" => found.connection = true,
                "te" => (found.te, found.hop_by_hop) = (true, true),
                "upgrade" => (found.upgrade, found.hop_by_hop) = (true, true),
                "expect" => found.expect = true,
                "max-forwards" => found.max_forwards = true,
                "via" => found.via = true,
                text if forwarded::is_claim(text) => found.forwarded = true,
                _ => {
                    found.hop_by_hop |= HOP_BY_HOP.contains(name);
                    found.identity |= identity::is_meant(name);
                }
            }
        }
        found
    }

    fn remove_hop_by_hop(self, headers: &mut HeaderMap) {
        if self.connection {
            let named: Vec<HeaderName> = tokens(headers, &CONNECTION)
                .filter_map(|token| HeaderName::try_from(token).ok())
                .filter(|name| !is_end_to_end(name.as_str()))
                .collect();
            for name in named {
                headers.remove(name);
            }
            headers.remove(CONNECTION);
        }
        if self.hop_by_hop {
            for name in &HOP_BY_HOP {
                headers.remove(name);
            }
        }
    }
}

/// What is never a matter of one hop, whoever says so: a client could strip what a proxy in front has added, or what
/// the two ends must read alike.
fn is_end_to_end(name: &str) -> bool {
    const NAMES: [&str; 14] = [
        "authorization",
        "cache-control",
        "content-encoding",
        "content-length",
        "content-type",
        "cookie",
        "expect",
        "host",
        "max-forwards",
        "set-cookie",
        "traceparent",
        "tracestate",
        "via",
        "www-authenticate",
    ];
    NAMES.contains(&name) || forwarded::is_claim(name)
}

/// Only the one expectation is passed on, where there is a body to wait for (RFC 9110, section 10.1.1).
fn expect(request: &mut Request) -> Result<(), Reason> {
    if request.version() == Version::HTTP_10 {
        request.headers_mut().remove(EXPECT);
        return Ok(());
    }
    if !tokens(request.headers(), &EXPECT).all(|token| token.eq_ignore_ascii_case("100-continue")) {
        return Err(Reason::ExpectationFailed);
    }
    if request.body().is_end_stream() {
        request.headers_mut().remove(EXPECT);
    } else {
        request.headers_mut().insert(EXPECT, HeaderValue::from_static("100-continue"));
    }
    Ok(())
}

/// How often a request came by here before.
fn passes(headers: &HeaderMap) -> usize {
    tokens(headers, &VIA).filter(|hop| hop.split_whitespace().nth(1) == Some("headworks")).count()
}

/// Whether a list field has this token, parameters aside.
fn names(headers: &HeaderMap, field: &HeaderName, token: &str) -> bool {
    tokens(headers, field).any(|found| found.split(';').next().unwrap_or(found).trim().eq_ignore_ascii_case(token))
}

fn tokens<'a>(headers: &'a HeaderMap, field: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(field)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').map(str::trim))
}

fn add_via(headers: &mut HeaderMap, version: Version) {
    let own = HeaderValue::from_static(match version {
        Version::HTTP_10 => "1.0 headworks",
        Version::HTTP_2 => "2 headworks",
        _ => "1.1 headworks",
    });
    headers.append(VIA, own);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::{Connection, RequestContext, RequestId};
    use http::header::HOST;
    use std::time::{Duration, SystemTime};

    fn settings() -> Settings {
        Settings { upgrade: vec!["websocket".into(), "x-lines".into()], methods: Vec::new() }
    }

    async fn upstream_sees(trusted: bool, fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let peer = "192.0.2.7:4711".parse().ok();
        let mut connection = Connection::new("test".into(), peer, None, true, Duration::from_secs(1));
        connection.trusted = trusted;
        let context = RequestContext::new(RequestId::new(SystemTime::UNIX_EPOCH, 0), Arc::new(connection), None);
        let mut request = Request::default();
        request.extensions_mut().insert(context);
        request.headers_mut().insert(HOST, HeaderValue::from_static("example.com:8443"));
        for (name, value) in fields {
            request.headers_mut().append(*name, HeaderValue::from_static(value));
        }
        let echo = tower::service_fn(|request: Request| async move {
            let mut response = Response::default();
            response.extensions_mut().insert(request.headers().clone());
            Ok::<_, ProxyError>(response)
        });
        let response = ForwardLayer::new(settings()).layer(echo).call(request).await.expect("a response");
        response.extensions().get::<HeaderMap>().expect("the echo").clone()
    }

    fn all<'a>(headers: &'a HeaderMap, name: &str) -> Vec<&'a str> {
        headers.get_all(name).iter().map(|value| value.to_str().expect("text")).collect()
    }

    #[tokio::test]
    async fn fields_of_one_hop_end_here() {
        let seen = upstream_sees(
            false,
            &[
                ("connection", "close, X-Private, host"),
                ("x-private", "1"),
                ("keep-alive", "timeout=5"),
                ("te", "gzip, trailers;q=0.5"),
                ("upgrade", "h2c"),
                ("proxy-authorization", "Basic eDp5"),
                ("x-public", "2"),
            ],
        )
        .await;
        for name in ["connection", "x-private", "keep-alive", "upgrade", "proxy-authorization"] {
            assert!(!seen.contains_key(name), "{name}");
        }
        assert_eq!(all(&seen, "te"), ["trailers"]);
        assert_eq!(all(&seen, "host"), ["example.com:8443"]);
        assert_eq!(all(&seen, "x-public"), ["2"]);
        assert_eq!(all(&seen, "via"), ["1.1 headworks"]);
    }

    #[tokio::test]
    async fn a_strangers_word_on_whom_it_forwards_for_is_replaced() {
        let claim = [("x-forwarded-for", "10.9.9.9"), ("x-forwarded-proto", "http"), ("forwarded", "for=10.9.9.9")];
        let seen = upstream_sees(false, &claim).await;
        assert_eq!(all(&seen, "x-forwarded-for"), ["192.0.2.7"]);
        assert_eq!(all(&seen, "x-forwarded-proto"), ["https"]);
        assert_eq!(all(&seen, "x-forwarded-host"), ["example.com:8443"]);
        assert_eq!(all(&seen, "forwarded"), ["for=192.0.2.7;proto=https;host=\"example.com:8443\""]);
        let seen = upstream_sees(true, &claim).await;
        assert_eq!(all(&seen, "x-forwarded-for"), ["10.9.9.9, 192.0.2.7"]);
        assert_eq!(all(&seen, "x-forwarded-proto"), ["http"]);
        assert_eq!(all(&seen, "forwarded"), ["for=10.9.9.9, for=192.0.2.7;proto=https;host=\"example.com:8443\""]);
    }

    #[tokio::test]
    async fn a_client_strips_nothing_that_others_added() {
        let naming =
            "x-forwarded-for, x-forwarded-proto, forwarded, x-real-ip, via, authorization, cookie, traceparent, host";
        let added = [
            ("connection", naming),
            ("x-forwarded-for", "10.9.9.9"),
            ("x-real-ip", "10.9.9.9"),
            ("via", "1.1 balancer"),
            ("authorization", "Bearer x"),
            ("traceparent", "00-1-2-01"),
        ];
        let seen = upstream_sees(true, &added).await;
        assert_eq!(all(&seen, "x-forwarded-for"), ["10.9.9.9, 192.0.2.7"]);
        assert_eq!(all(&seen, "x-real-ip"), ["10.9.9.9"]);
        assert_eq!(all(&seen, "via"), ["1.1 balancer", "1.1 headworks"]);
        assert!(seen.contains_key("authorization") && seen.contains_key("traceparent") && seen.contains_key("host"));
        let seen = upstream_sees(false, &added).await;
        assert_eq!(all(&seen, "x-forwarded-for"), ["192.0.2.7"]);
        assert!(!seen.contains_key("x-real-ip"), "a stranger's word");
    }

    #[tokio::test]
    async fn what_reads_like_our_fields_is_a_claim_as_well() {
        let claims = [
            ("x_forwarded_for", "10.9.9.9"),
            ("x-forwarded_host", "evil"),
            ("x-forwarded-user", "root"),
            ("x-forwarded-port", "1"),
            ("x_real_ip", "10.9.9.9"),
            ("x-forward", "kept"),
        ];
        let seen = upstream_sees(false, &claims).await;
        let left: Vec<_> = claims.iter().filter(|(name, _)| seen.contains_key(*name)).collect();
        assert_eq!(left, [&("x-forward", "kept")]);
        // A proxy that is believed writes its fields with hyphens; what it lets through otherwise is its client's.
        let seen = upstream_sees(true, &claims).await;
        let left: Vec<_> = claims.iter().filter(|(name, _)| seen.contains_key(*name)).map(|(name, _)| *name).collect();
        assert_eq!(left, ["x-forwarded-user", "x-forwarded-port", "x-forward"]);
    }

    #[tokio::test]
    async fn what_came_by_too_often_runs_in_a_circle() {
        let mut request = Request::default();
        for _ in 0..MOST_PASSES {
            assert!(prepare(&mut request, &settings()).is_ok());
        }
        let early = prepare(&mut request, &settings()).expect_err("a circle");
        assert!(matches!(*early, Err(error) if error.reason == Reason::LoopDetected));
    }

    #[tokio::test]
    async fn only_what_the_route_allows_is_upgraded_to() {
        let seen = upstream_sees(false, &[("connection", "Upgrade"), ("upgrade", "websocket")]).await;
        assert_eq!((all(&seen, "connection"), all(&seen, "upgrade")), (vec!["upgrade"], vec!["websocket"]));
        let seen = upstream_sees(false, &[("upgrade", "websocket")]).await;
        assert!(!seen.contains_key("upgrade"), "not asked for in Connection");
        let offers =
            [("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c, WebSocket"), ("upgrade", "x-lines, irc/6.9")];
        let seen = upstream_sees(false, &[&offers[..], &[("http2-settings", "AAMAAABkAAQAAP__")]].concat()).await;
        assert_eq!(all(&seen, "upgrade"), ["WebSocket, x-lines"]);
        assert!(!seen.contains_key("http2-settings"));
    }
}
