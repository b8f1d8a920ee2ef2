//! The duties of an intermediary (RFC 9110, section 7.6): fields of one hop end here, and each hop says who it is.
//!
//! Requests: fields named in `Connection` and the hop-by-hop ones go; `X-Forwarded-For`, `-Proto`, `-Host` and
//! `Forwarded` (RFC 7239) are added to what a trusted proxy sent and replace what anybody else sent; `Via` is added.
//! `TE: trailers` is this hop's wish too, and an upgrade to WebSocket is asked for anew. Responses: the same fields
//! go, `Via` is added.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::header::{CONNECTION, FORWARDED, HOST, TE, TRANSFER_ENCODING, UPGRADE, VIA};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::context::{Request, RequestContext, Response};
use crate::error::ProxyError;

static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

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

/// See the module's text.
#[derive(Clone, Copy, Debug, Default)]
pub struct ForwardLayer;

impl<S> Layer<S> for ForwardLayer {
    type Service = Forward<S>;

    fn layer(&self, inner: S) -> Forward<S> {
        Forward { inner }
    }
}

/// The service of [`ForwardLayer`].
#[derive(Clone, Debug)]
pub struct Forward<S> {
    inner: S,
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
        let found = Found::of(request.headers());
        let upgrade = if found.upgrade { wanted_upgrade(&request) } else { None };
        let trailers = found.te && names(request.headers(), &TE, "trailers");
        found.remove_hop_by_hop(request.headers_mut());
        if let Some(protocol) = upgrade {
            request.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
            request.headers_mut().insert(UPGRADE, protocol);
        }
        if trailers {
            request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
        }
        add_forwarded(&mut request, found);
        let version = request.version();
        add_via(request.headers_mut(), version);
        Forwarding { inner: self.inner.call(request) }
    }
}

pin_project! {
    /// The future of [`Forward`].
    #[derive(Debug)]
    pub struct Forwarding<F> {
        #[pin]
        inner: F,
    }
}

impl<F: Future<Output = Result<Response, ProxyError>>> Future for Forwarding<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let mut response = ready!(self.project().inner.poll(cx))?;
        let found = Found::of(response.headers());
        let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let protocol = response.headers().get(UPGRADE).filter(|_| switched).cloned();
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
                _ => found.hop_by_hop |= HOP_BY_HOP.contains(name),
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

/// The protocol to switch to, when it is one that is passed on: WebSocket, asked for in HTTP/1.1.
fn wanted_upgrade(request: &Request) -> Option<HeaderValue> {
    let protocol = request.headers().get(UPGRADE)?;
    let asked = request.version() == Version::HTTP_11 && names(request.headers(), &CONNECTION, "upgrade");
    (asked && protocol.as_bytes().eq_ignore_ascii_case(b"websocket")).then(|| protocol.clone())
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

fn add_forwarded(request: &mut Request, found: Found) {
    let Some(context) = request.extensions().get::<RequestContext>().cloned() else { return };
    let connection = context.connection();
    let host = match request.uri().authority() {
        Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
        None => request.headers().get(HOST).cloned(),
    };
    let headers = request.headers_mut();
    let believed = found.forwarded && connection.trusted;
    if found.forwarded && !believed {
        for name in [&X_FORWARDED_FOR, &X_FORWARDED_HOST, &X_FORWARDED_PROTO, &FORWARDED] {
            headers.remove(name);
        }
    }
    let scheme = HeaderValue::from_static(connection.scheme());
    let element = forwarded(connection.forwarded(), host.as_ref());
    if believed {
        extend_list(headers, &FORWARDED, element);
        if let Some(peer) = connection.peer_field() {
            extend_list(headers, &X_FORWARDED_FOR, Some(peer.clone()));
        }
        headers.entry(&X_FORWARDED_PROTO).or_insert(scheme);
        if let Some(host) = host {
            headers.entry(&X_FORWARDED_HOST).or_insert(host);
        }
    } else {
        let mut insert = |name: &HeaderName, value: Option<HeaderValue>| {
            if let Some(value) = value {
                headers.insert(name.clone(), value);
            }
        };
        insert(&FORWARDED, element);
        insert(&X_FORWARDED_FOR, connection.peer_field().cloned());
        insert(&X_FORWARDED_PROTO, Some(scheme));
        insert(&X_FORWARDED_HOST, host);
    }
}

/// Adds a member to a list field. All go into one line: many a program reads one line only.
fn extend_list(headers: &mut HeaderMap, name: &HeaderName, member: Option<HeaderValue>) {
    let Some(member) = member else { return };
    let mut line = Vec::new();
    for value in headers.get_all(name) {
        line.extend_from_slice(value.as_bytes());
        line.extend_from_slice(b", ");
    }
    line.extend_from_slice(member.as_bytes());
    headers.insert(name, HeaderValue::from_maybe_shared(bytes::Bytes::from(line)).unwrap_or(member));
}

/// One element of `Forwarded`: `for=192.0.2.1;proto=https`, which is the connection's own, and the host.
fn forwarded(connection: &str, host: Option<&HeaderValue>) -> Option<HeaderValue> {
    let mut element = Vec::with_capacity(connection.len() + 64);
    element.extend_from_slice(connection.as_bytes());
    if let Some(host) = host {
        // A port's colon makes it a quoted string; a host has no character that would need a backslash.
        let quoted = !host.as_bytes().iter().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(byte));
        let quote: &[u8] = if quoted { b"\"" } else { b"" };
        for part in [b";host=".as_slice(), quote, host.as_bytes(), quote] {
            element.extend_from_slice(part);
        }
    }
    HeaderValue::from_maybe_shared(bytes::Bytes::from(element)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::{Connection, RequestId};
    use std::sync::Arc;
    use std::time::{Duration, SystemTime};

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
        let response = ForwardLayer.layer(echo).call(request).await.expect("a response");
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
    async fn only_websocket_is_upgraded_to() {
        let seen = upstream_sees(false, &[("connection", "Upgrade"), ("upgrade", "websocket")]).await;
        assert_eq!((all(&seen, "connection"), all(&seen, "upgrade")), (vec!["upgrade"], vec!["websocket"]));
        let seen = upstream_sees(false, &[("upgrade", "websocket")]).await;
        assert!(!seen.contains_key("upgrade"), "not asked for in Connection");
    }
}
