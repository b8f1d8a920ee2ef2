//! On whose behalf a request is forwarded: `X-Forwarded-For`, `-Proto`, `-Host` and `Forwarded` (RFC 7239).
//!
//! What a trusted proxy sent is added to; what anybody else sent is replaced.

use http::header::{FORWARDED, HOST};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::Found;
use crate::context::{Request, RequestContext};

static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Whether a field tells on whose behalf a request comes: `Forwarded`, `X-Real-IP`, and all that begin with
/// `X-Forwarded`.
pub(super) fn is_claim(name: &str) -> bool {
    let reads_as = |text: &[u8], pattern: &[u8]| {
        text.len() == pattern.len() && text.iter().zip(pattern).all(|(a, b)| a == b || (*a == b'_' && *b == b'-'))
    };
    match name.as_bytes() {
        [b'x', rest @ ..] => reads_as(rest.get(..10).unwrap_or_default(), b"-forwarded") || reads_as(rest, b"-real-ip"),
        name => name == b"forwarded",
    }
}

pub(super) fn add(request: &mut Request, found: Found) {
    let Some(context) = request.extensions().get::<RequestContext>().cloned() else { return };
    let connection = context.connection();
    let host = match request.uri().authority() {
        Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
        None => request.headers().get(HOST).cloned(),
    };
    let headers = request.headers_mut();
    let believed = found.forwarded && connection.trusted;
    if found.forwarded {
        // No proxy writes them with underscores, which many a program reads as hyphens.
        let lies = |name: &&HeaderName| is_claim(name.as_str()) && (!believed || name.as_str().contains('_'));
        let lies: Vec<HeaderName> = headers.keys().filter(lies).cloned().collect();
        for name in lies {
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
