//! Which requests can be read in one way only, whichever version of HTTP brought them. What has two readings could mean
//! one thing to the router here and another to the service behind it.

use std::net::Ipv6Addr;

use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, HeaderName, Method, Uri, Version};

use super::http1::{Bounds, has_plain_bytes};
use crate::context::ExtendedConnect;

/// Whether the request says once and well-formed what it is for (RFC 9112, section 3.2; RFC 9113, section 8.3.1), and
/// asks for a path that nobody has to resolve first.
pub(super) fn is_unambiguous(request: &Parts) -> bool {
    names_one_host(request)
        && is_plain_path(request.uri.path().as_bytes())
        && (request.version != Version::HTTP_2 || is_plain_h2(request))
}

fn names_one_host(request: &Parts) -> bool {
    let target = request.uri.authority().map(Authority::as_str);
    let mut hosts = request.headers.get_all(HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => match target {
            Some(target) => host.as_bytes().eq_ignore_ascii_case(target.as_bytes()),
            None => host.is_empty() || is_authority(host.as_bytes()),
        },
        (None, _) => request.version != Version::HTTP_11,
        (Some(_), Some(_)) => false,
    };
    host && target.is_none_or(|target| is_authority(target.as_bytes()))
}

/// A name or an address, and perhaps a port. Less than a URI may have: nobody's name needs an escape or a comma, but
/// some read a list of hosts, or another host, out of them.
fn is_authority(authority: &[u8]) -> bool {
    let (host, port) = match authority.iter().rposition(|byte| *byte == b':') {
        Some(at) if !authority.ends_with(b"]") => match authority.split_at(at) {
            (host, [_, port @ ..]) => (host, Some(port)),
            _ => return false,
        },
        _ => (authority, None),
    };
    let host = match host {
        [b'[', address @ .., b']'] => {
            std::str::from_utf8(address).is_ok_and(|address| address.parse::<Ipv6Addr>().is_ok())
        }
        name => {
            let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
            !name.is_empty() && name.iter().all(plain)
        }
    };
    // The digits are looked at first: a number may be parsed from "+80".
    let is_port = |port: &[u8]| {
        let digits = port.iter().all(u8::is_ascii_digit);
        digits && std::str::from_utf8(port).is_ok_and(|port| port.parse::<u16>().is_ok())
    };
    host && port.is_none_or(|port| !port.is_empty() && is_port(port))
}

/// Whether every part of the path means itself. Dot segments are resolved by some and not by others, and some take an
/// escaped slash, a backslash or a path parameter for the end of a segment; behind NUL some see nothing.
#[must_use]
pub fn is_plain_path(path: &[u8]) -> bool {
    // Nearly all paths.
    if !path.iter().any(|byte| matches!(byte, b'.' | b'%' | b'\\')) {
        return true;
    }
    let mut segment = Segment::default();
    let mut rest = path;
    while let [byte, next @ ..] = rest {
        rest = next;
        let byte = match (byte, next) {
            (b'%', [high, low, next @ ..]) => {
                let (Some(high), Some(low)) = (hex(*high), hex(*low)) else { return false };
                rest = next;
                high << 4 | low
            }
            (b'\\' | b'%', _) => return false,
            (byte, _) => *byte,
        };
        match byte {
            0 => return false,
            b'/' | b'\\' | b';' if segment.is_dots() => return false,
            b'/' | b'\\' => segment = Segment::default(),
            b'.' => segment.dots += 1,
            _ => segment.others = true,
        }
    }
    !segment.is_dots()
}

#[derive(Default)]
struct Segment {
    dots: usize,
    others: bool,
}

impl Segment {
    fn is_dots(&self) -> bool {
        !self.others && matches!(self.dots, 1 | 2)
    }
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// Whether the head of an h2 request is larger than allowed, as its receiver measures it (RFC 9113, section 6.5.2).
pub(super) fn is_too_large(uri: &Uri, headers: &HeaderMap, bounds: Bounds) -> bool {
    let path = uri.path_and_query().map_or(0, |path| path.as_str().len());
    let authority = uri.authority().map_or(0, |authority| authority.as_str().len());
    let fields = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32);
    headers.len() > bounds.fields || path + authority + fields.sum::<usize>() > bounds.bytes
}

/// What h2 lets through and must not: fields of a connection (RFC 9113, section 8.2.2), white space around values,
/// lengths that are more than one number, names that some take for a length or a coding, and a target that is none.
fn is_plain_h2(request: &Parts) -> bool {
    let headers = &request.headers;
    let padded = |value: &[u8]| matches!(value, [b' ' | b'\t', ..] | [.., b' ' | b'\t']);
    let path = request.uri.path();
    // What an extended CONNECT asks for stands among its fields here.
    let upgrade = request.extensions.get::<ExtendedConnect>().is_some();
    let plain = headers.iter().all(|(name, value)| {
        let value = value.as_bytes();
        !padded(value)
            && (upgrade && name == UPGRADE || !OF_A_CONNECTION.contains(name))
            && !matches!(name.as_str(), "content_length" | "transfer_encoding")
            && (name != TE || value.eq_ignore_ascii_case(b"trailers"))
    });
    plain
        && has_one_length(headers)
        && has_plain_bytes(path.as_bytes(), request.uri.query().unwrap_or_default().as_bytes())
        && (path.starts_with('/') || (path == "*" && request.method == Method::OPTIONS))
        && matches!(request.uri.scheme_str(), Some("http" | "https") | None)
        && (request.uri.authority().is_some() || headers.get(HOST).is_some_and(|host| !host.is_empty()))
}

static OF_A_CONNECTION: [HeaderName; 5] = [
    CONNECTION,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// None, or one plain number.
fn has_one_length(headers: &HeaderMap) -> bool {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter().map(http::HeaderValue::as_bytes);
    let first = lengths.next().is_none_or(|length| {
        let canonical = length.len() == 1 || (length.first() != Some(&b'0') && length.len() <= 18);
        canonical && !length.is_empty() && length.iter().all(u8::is_ascii_digit)
    });
    first && lengths.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(version: Version, target: &str, headers: &[(&str, &str)]) -> Parts {
        let request = http::Request::get(target).version(version);
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        request.body(()).expect("a request").into_parts().0
    }

    #[test]
    fn a_host_is_named_once_and_plainly() {
        for host in ["a", "a.b-c_d.", "a:80", "127.0.0.1:8080", "[::1]", "[::1]:80", "~a", ""] {
            assert!(is_unambiguous(&parts(Version::HTTP_11, "/", &[("host", host)])), "{host:?}");
        }
        for host in [
            "a b",
            "a,b",
            "a/b",
            "a?b",
            "a#b",
            "u@a",
            "a:80:80",
            "a:",
            "a:x",
            "a:65536",
            "a:+80",
            ":80",
            "[::1",
            "::1",
            "a%62",
            "[::1]x",
            "[a]",
            "[::1%25eth0]",
            "a\\b",
            "a\tb",
            "[]",
            "a;b",
        ] {
            assert!(!is_unambiguous(&parts(Version::HTTP_11, "/", &[("host", host)])), "{host:?}");
        }
        assert!(!is_unambiguous(&parts(Version::HTTP_11, "/", &[])));
        assert!(is_unambiguous(&parts(Version::HTTP_10, "/", &[])));
        assert!(!is_unambiguous(&parts(Version::HTTP_11, "/", &[("host", "a"), ("host", "a")])));
        assert!(is_unambiguous(&parts(Version::HTTP_11, "http://a:80/", &[("host", "A:80")])));
        for host in ["b", "a:80", ""] {
            assert!(!is_unambiguous(&parts(Version::HTTP_11, "http://a/", &[("host", host)])), "{host:?}");
        }
        assert!(!is_unambiguous(&parts(Version::HTTP_11, "http://a:x/", &[("host", "a:x")])));
    }

    #[test]
    fn a_path_means_itself() {
        let plain = |path: &str| is_unambiguous(&parts(Version::HTTP_11, path, &[("host", "a")]));
        for path in [
            "/",
            "//",
            "/a.b",
            "/a..",
            "/..a",
            "/...",
            "/.well-known/x",
            "/a%2Fb",
            "/a%5cb",
            "/%61",
            "/a?..",
            "/a?/../b",
            "/a;b",
            "/a?%",
            "/a%20b",
            "/%252e%252e/",
        ] {
            assert!(plain(path), "{path:?}");
        }
        for path in [
            "/.",
            "/..",
            "/../",
            "/a/./b",
            "/a/../b",
            "/%2e",
            "/%2E./a",
            "/.%2e/",
            "/a/%2e%2e",
            "/..%2fa",
            "/a%2f..",
            "/a%2f..%2fb",
            "/a%5c..%5cb",
            "/..%5ca",
            "/..;/a",
            "/.;a=b/c",
            "/a\\b",
            "/\\..",
            "/a%00",
            "/%",
            "/a%2",
            "/a%zz",
            "/a%+1",
        ] {
            assert!(!plain(path), "{path:?}");
        }
    }

    #[test]
    fn h2_brings_nothing_of_a_connection() {
        let plain = |target: &str, fields: &[(&str, &str)]| is_unambiguous(&parts(Version::HTTP_2, target, fields));
        assert!(plain("http://a/", &[("te", "trailers"), ("content-length", "10"), ("x", ""), ("host", "a")]));
        assert!(plain("/", &[("host", "a")]));
        for fields in [
            [("connection", "close")],
            [("transfer-encoding", "chunked")],
            [("upgrade", "websocket")],
            [("keep-alive", "1")],
            [("proxy-connection", "close")],
            [("te", "gzip")],
            [("te", "trailers, gzip")],
            [("x", " a")],
            [("x", "a\t")],
            [("content-length", "01")],
            [("content-length", "")],
            [("content_length", "5")],
            [("transfer_encoding", "chunked")],
            [("host", "b")],
        ] {
            assert!(!plain("http://a/", &fields), "{fields:?}");
        }
        assert!(!plain("http://a/", &[("content-length", "1"), ("content-length", "1")]));
        assert!(!plain("/", &[]), "for nobody");
        assert!(!plain("/", &[("host", "")]));
        assert!(!plain("ftp://a/", &[]));
        assert!(!plain("*", &[("host", "a")]), "for OPTIONS only");
        assert!(!plain("http://a/\u{e9}", &[]), "no byte of a URI");
    }

    #[test]
    fn an_h2_head_is_bounded() {
        let bounds = Bounds { bytes: 100, fields: 2 };
        let large = |fields: &[(&str, &str)]| {
            let parts = parts(Version::HTTP_2, "http://a/", fields);
            is_too_large(&parts.uri, &parts.headers, bounds)
        };
        assert!(!large(&[("a", "b"), ("c", "d")]));
        assert!(large(&[("a", "b"), ("c", "d"), ("e", "f")]));
        assert!(!large(&[("a", &"b".repeat(65))]));
        assert!(large(&[("a", &"b".repeat(66))]));
    }
}
