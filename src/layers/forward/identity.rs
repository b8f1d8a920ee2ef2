//! Who the client is by its certificate: `Client-Cert` (RFC 9440), and the certificate's SHA-256 in
//! `X-Client-Cert-Fingerprint` for those who only compare.
//!
//! What a client says of itself there goes, also that of a trusted proxy: nobody knows whether that one removes what
//! its own clients say.

use http::{HeaderMap, HeaderName};

use crate::context::{Request, RequestContext};

static CLIENT_CERT: HeaderName = HeaderName::from_static("client-cert");
static CLIENT_CERT_CHAIN: HeaderName = HeaderName::from_static("client-cert-chain");
static FINGERPRINT: HeaderName = HeaderName::from_static("x-client-cert-fingerprint");

/// Whether the name is one of these, or would be one to a program that cannot tell `_` from `-` (CGI and its heirs).
pub(super) fn is_meant(name: &HeaderName) -> bool {
    let alike = |known: &HeaderName| {
        let (name, known) = (name.as_str().as_bytes(), known.as_str().as_bytes());
        name.len() == known.len() && name.iter().zip(known).all(|(a, b)| a == b || (*a == b'_' && *b == b'-'))
    };
    alike(&CLIENT_CERT) || alike(&CLIENT_CERT_CHAIN) || alike(&FINGERPRINT)
}

/// Takes off what the client says of itself.
pub(super) fn remove(headers: &mut HeaderMap) {
    let meant: Vec<HeaderName> = headers.keys().filter(|name| is_meant(name)).cloned().collect();
    for name in meant {
        headers.remove(name);
    }
}

/// Adds what the client has proved.
pub(super) fn add(request: &mut Request) {
    let Some(context) = request.extensions().get::<RequestContext>() else { return };
    let Some(cert) = context.connection().client_cert() else { return };
    let (field, fingerprint) = (cert.field().clone(), cert.fingerprint_field().clone());
    request.headers_mut().insert(&CLIENT_CERT, field);
    request.headers_mut().insert(&FINGERPRINT, fingerprint);
}
