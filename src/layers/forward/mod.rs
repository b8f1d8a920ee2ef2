//! The duties of an intermediary (RFC 9110, section 7.6): fields of one hop end here, and each hop says who it is.
//!
//! | file | does |
//! |---|---|
//! | `mod.rs` | the layer: fields named in `Connection` and the hop-by-hop ones go, in both directions; `Via` comes |
//! | `forwarded.rs` | `X-Forwarded-*` and `Forwarded`: added to a trusted proxy's, in place of anybody else's |
//! | `identity.rs` | who the client is by its certificate, and never by its own word |
//! | `upgrade.rs` | the switch of protocols that the route allows, asked for anew |
//! | `websocket.rs` | the handshake that a client of HTTP/2 does not make |
//!
//! `TE: trailers` is this hop's wish too. Refuses with `upgrade_refused` (501) what HTTP/2 asks for by extended CONNECT
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
mod upgrade;
mod websocket;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::header::{CONNECTION, HOST, TE, TRANSFER_ENCODING, UPGRADE, VIA};
use http::{HeaderMap, HeaderName, HeaderValue, Version};
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

/// What a route allows beyond plain requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Protocols that a client may switch to, in lower case. Never `h2c`.
    pub upgrade: Vec<Box<str>>,
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
            Ok(wanted) => Forwarding { inner: Some(self.inner.call(request)), refusal: None, wanted },
            Err(refusal) => Forwarding { inner: None, refusal: Some(refusal), wanted: None },
        }
    }
}

/// Makes a request of the next hop out of one of the last. Gives the switch of protocols that it asks for.
fn prepare(request: &mut Request, settings: &Settings) -> Result<Option<Box<Wanted>>, ProxyError> {
    let found = Found::of(request.headers());
    let wanted = if found.upgrade { Wanted::of(request, &settings.upgrade)? } else { None };
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
        // None: refused, for the reason in `refusal`.
        #[pin]
        inner: Option<F>,
        refusal: Option<ProxyError>,
        wanted: Option<Box<Wanted>>,
    }
}

impl<F: Future<Output = Result<Response, ProxyError>>> Future for Forwarding<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let Some(inner) = this.inner.as_pin_mut() else {
            return Poll::Ready(Err(this.refusal.take().unwrap_or(Reason::Internal.into())));
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
}

impl Found {
    fn of(headers: &HeaderMap) -> Self {
        let mut found = Self::default();
        for name in headers.keys() {
            match name.as_str() {
                "connection" => found.connection = true,
                "te" => (found.te, found.hop_by_hop) = (true, true),
                "upgrade" => (found.upgrade, found.hop_by_hop) = (true, true),
                "x-forwarded-for" | "x-forwarded-host" | "x-forwarded-proto" | "forwarded" => found.forwarded = true,
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
            // `Host`, the length of the body and our own trace are never a matter of one hop, whoever says so.
            let named: Vec<HeaderName> = tokens(headers, &CONNECTION)
                .filter_map(|token| HeaderName::try_from(token).ok())
                .filter(|name| name != HOST && name != http::header::CONTENT_LENGTH && name != "traceparent")
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
    use std::time::{Duration, SystemTime};

    fn settings() -> Settings {
        Settings { upgrade: vec!["websocket".into(), "x-lines".into()] }
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
