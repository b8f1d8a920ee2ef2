//! What a trailer must not say: it comes too late to frame, route or authenticate a message (RFC 9110, section 6.5.1).

use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use http_body::Frame;

/// The frame, without forbidden fields if it holds trailers.
pub(super) fn clean(frame: Frame<Bytes>) -> Frame<Bytes> {
    match frame.into_trailers() {
        Ok(mut trailers) => {
            remove_forbidden(&mut trailers);
            Frame::trailers(trailers)
        }
        Err(frame) => frame,
    }
}

fn remove_forbidden(trailers: &mut HeaderMap) {
    let forbidden: Vec<HeaderName> = trailers.keys().filter(|name| is_forbidden(name.as_str())).cloned().collect();
    for name in forbidden {
        trailers.remove(name);
    }
}

fn is_forbidden(name: &str) -> bool {
    const NAMES: [&str; 25] = [
        "authorization",
        "cache-control",
        "connection",
        "content-encoding",
        "content-length",
        "content-range",
        "content-type",
        "content_length",
        "cookie",
        "expect",
        "forwarded",
        "host",
        "keep-alive",
        "max-forwards",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "range",
        "set-cookie",
        "te",
        "trailer",
        "transfer-encoding",
        "transfer_encoding",
        "upgrade",
        "via",
    ];
    // Many a program reads an underscore as a hyphen.
    let name = name.replace('_', "-");
    NAMES.contains(&&*name)
        || ["x-forwarded", "x-real-ip", "client-cert", "x-client-cert"].iter().any(|start| name.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn only_what_may_come_late_is_passed_on() {
        let mut trailers = HeaderMap::new();
        for name in
            ["content-length", "transfer_encoding", "x-forwarded-for", "set-cookie", "grpc-status", "x-checksum"]
        {
            trailers.insert(name, HeaderValue::from_static("1"));
        }
        let Ok(cleaned) = clean(Frame::trailers(trailers)).into_trailers() else { panic!("trailers") };
        let left: Vec<_> = cleaned.keys().map(HeaderName::as_str).collect();
        assert_eq!(left.len(), 2, "{left:?}");
        assert!(cleaned.contains_key("grpc-status") && cleaned.contains_key("x-checksum"));
        assert!(clean(Frame::data(Bytes::from_static(b"data"))).is_data());
    }
}
