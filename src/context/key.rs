//! What is counted, queued or steered apart.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::hash::{BuildHasher, Hasher};
use std::net::{IpAddr, Ipv6Addr};

use http::{HeaderName, header};

use super::{Request, RequestContext, asked_authority, plain_host, without_port};

/// What is counted apart: a part of the request, or several together; no part at all counts all requests together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Key(Box<[Part]>);

/// A part of a request that tells it from others.
///
/// Requests that do not have the part share one key with those that have it twice: otherwise a second one, which the
/// upstream may well ignore, would be a way around a limit. So would another spelling of the same: what upstreams
/// take for equal is made equal first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// The client's address; IPv6 by its /64. Clients without one (unix sockets) share one key.
    Client,
    /// The client's certificate, by its SHA-256.
    ClientCert,
    /// The value of a field; of `Authorization` with its scheme in lower case.
    Header(HeaderName),
    /// The value of a cookie, without quotes and escapes.
    Cookie(Box<str>),
    /// The value of a parameter of the query, without escapes.
    Query(Box<str>),
    /// The host that is asked for, without its port, in lower case.
    Host,
    /// The method.
    Method,
    /// The path, without the query and without escapes.
    Path,
}

impl Key {
    /// All of `parts` together.
    #[must_use]
    pub fn new(parts: impl Into<Box<[Part]>>) -> Self {
        Self(parts.into())
    }

    /// The parts; none when all requests are counted together.
    #[must_use]
    pub fn parts(&self) -> &[Part] {
        &self.0
    }

    /// A number for which every process says the same, so that proxies side by side send a key to the same endpoint; no
    /// secret. None where a part is missing.
    #[must_use]
    pub fn steady(&self, request: &Request) -> Option<u64> {
        let mut hasher = Steady::default();
        self.0.iter().all(|part| part.feed(request, &mut hasher)).then(|| hasher.finish())
    }

    /// A number that is equal for requests that count together. The seed is a secret: a client that knew it could
    /// choose a number, and meet another's. The values themselves are never kept, for they may be secrets too.
    pub fn hash(&self, request: &Request, seed: &impl BuildHasher) -> u64 {
        let mut hasher = seed.build_hasher();
        for part in &self.0 {
            part.feed(request, &mut hasher);
        }
        hasher.finish()
    }
}

impl Key {
    /// What the request's parts are called where people read it: what the access log tells anyway as it is, and
    /// values that may be secrets as a number, which another run calls otherwise.
    pub fn label(&self, request: &Request, seed: &impl BuildHasher) -> String {
        let mut label = String::new();
        for part in &self.0 {
            if !label.is_empty() {
                label.push(' ');
            }
            part.label(request, seed, &mut label);
        }
        label
    }

    /// What [`Key::hash`] makes its number of: for those who must agree with other processes. It may hold secrets.
    #[must_use]
    pub fn spelled(&self, request: &Request) -> Vec<u8> {
        let mut spelled = Spelled(Vec::new());
        for part in &self.0 {
            part.feed(request, &mut spelled);
        }
        spelled.0
    }
}

/// A hasher that forgets nothing.
struct Spelled(Vec<u8>);

impl Hasher for Spelled {
    fn write(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The same on every machine.
    fn write_usize(&mut self, number: usize) {
        self.write(&(number as u64).to_le_bytes());
    }

    fn finish(&self) -> u64 {
        0
    }
}

impl From<Part> for Key {
    fn from(part: Part) -> Self {
        Self(Box::new([part]))
    }
}

/// FNV-1a of 64 bits, as published: the hash of the standard library may change with its version.
#[derive(Debug)]
pub struct Steady(u64);

impl Default for Steady {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Steady {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// The same bytes on every machine.
    fn write_usize(&mut self, number: usize) {
        self.write(&(number as u64).to_le_bytes());
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl Part {
    /// Whether the request has the part.
    fn feed(&self, request: &Request, hasher: &mut impl Hasher) -> bool {
        let mut put = |value: Option<&[u8]>| {
            // The length keeps ("ab", "c") and ("a", "bc") apart.
            hasher.write_usize(value.map_or(usize::MAX, <[u8]>::len));
            hasher.write(value.unwrap_or_default());
            value.is_some()
        };
        match self {
            Self::Client => {
                let client = request.extensions().get::<RequestContext>().and_then(RequestContext::client);
                match client.map(|address| address.to_canonical()) {
                    Some(IpAddr::V4(address)) => put(Some(&address.octets())),
                    Some(IpAddr::V6(address)) => put(address.octets().get(..8)),
                    None => put(None),
                }
            }
            Self::ClientCert => {
                let context = request.extensions().get::<RequestContext>();
                let cert = context.and_then(|context| context.connection().client_cert());
                put(cert.map(|cert| cert.fingerprint().as_slice()))
            }
            Self::Header(name) => {
                let value = only(request.headers().get_all(name).iter().map(http::HeaderValue::as_bytes));
                match value {
                    Some(value) if name == header::AUTHORIZATION => put(Some(&credentials(value))),
                    value => put(value),
                }
            }
            Self::Cookie(name) => put(cookie(request, name).as_deref()),
            Self::Query(name) => put(parameter(request, name).as_deref()),
            Self::Host => {
                let host = without_port(asked_authority(request.uri(), request.headers()));
                put(Some(plain_host(host).as_bytes()))
            }
            Self::Method => put(Some(request.method().as_str().as_bytes())),
            Self::Path => put(Some(&unescaped(request.uri().path().as_bytes(), false))),
        }
    }
}

impl Part {
    fn label(&self, request: &Request, seed: &impl BuildHasher, out: &mut String) {
        let context = || request.extensions().get::<RequestContext>();
        // Writing to a string does not fail.
        let _ = match self {
            Self::Client => match context().and_then(RequestContext::client).map(|address| address.to_canonical()) {
                Some(IpAddr::V4(address)) => write!(out, "{address}"),
                Some(IpAddr::V6(address)) => {
                    write!(out, "{}/64", Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)))
                }
                None => write!(out, "unix"),
            },
            Self::Host => {
                write!(out, "{}", plain_host(without_port(asked_authority(request.uri(), request.headers()))))
            }
            Self::Method => write!(out, "{}", request.method()),
            Self::Path => write!(out, "{}", request.uri().path()),
            Self::ClientCert | Self::Header(_) | Self::Cookie(_) | Self::Query(_) => {
                let mut hasher = seed.build_hasher();
                self.feed(request, &mut hasher);
                write!(out, "{self}=#{:08x}", hasher.finish() >> 32)
            }
        };
    }
}

/// As the configuration writes it.
impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client => f.write_str("client"),
            Self::ClientCert => f.write_str("client_cert"),
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Cookie(name) => write!(f, "cookie:{name}"),
            Self::Query(name) => write!(f, "query:{name}"),
            Self::Host => f.write_str("host"),
            Self::Method => f.write_str("method"),
            Self::Path => f.write_str("path"),
        }
    }
}

/// The item of a list of one.
fn only<T>(mut items: impl Iterator<Item = T>) -> Option<T> {
    let first = items.next();
    first.filter(|_| items.next().is_none())
}

/// The scheme says the same in any case and before any number of spaces (RFC 9110, section 11.4).
fn credentials(value: &[u8]) -> Cow<'_, [u8]> {
    let end = value.iter().position(|byte| *byte == b' ').unwrap_or(value.len());
    let (scheme, rest) = value.split_at(end);
    let token = rest.trim_ascii_start();
    if rest.len() == token.len() + 1 && !scheme.iter().any(u8::is_ascii_uppercase) {
        return Cow::Borrowed(value);
    }
    let mut plain = scheme.to_ascii_lowercase();
    plain.push(b' ');
    plain.extend_from_slice(token);
    Cow::Owned(plain)
}

/// HTTP/2 may send each cookie in a line of its own (RFC 9113, section 8.2.3), so all lines are one list.
fn cookie<'a>(request: &'a Request, name: &str) -> Option<Cow<'a, [u8]>> {
    let lines = request.headers().get_all(header::COOKIE).iter();
    let pairs = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b';'));
    let values = pairs.filter_map(|pair| {
        let (key, value) = split(pair.trim_ascii());
        (key.trim_ascii_end() == name.as_bytes()).then(|| value.trim_ascii_start())
    });
    let value = only(values)?;
    let bare = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
    Some(unescaped(bare, false))
}

fn parameter<'a>(request: &'a Request, name: &str) -> Option<Cow<'a, [u8]>> {
    let pairs = request.uri().query()?.as_bytes().split(|byte| *byte == b'&').map(split);
    let values = pairs.filter(|(key, _)| *unescaped(key, true) == *name.as_bytes()).map(|(_, value)| value);
    only(values).map(|value| unescaped(value, true))
}

/// `name=value`; a name alone has an empty value.
fn split(pair: &[u8]) -> (&[u8], &[u8]) {
    let end = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
    let (name, rest) = pair.split_at(end);
    (name, rest.get(1..).unwrap_or_default())
}

/// With every `%xx` read, and in a query `+` as a space. What is escaped wrongly stays as it is.
fn unescaped(text: &[u8], is_query: bool) -> Cow<'_, [u8]> {
    let is_special = |byte: &u8| *byte == b'%' || is_query && *byte == b'+';
    if !text.iter().any(is_special) {
        return Cow::Borrowed(text);
    }
    let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [byte, tail @ ..] = rest {
        rest = tail;
        plain.push(match (byte, tail) {
            (b'%', [high, low, tail @ ..]) => match (digit(*high), digit(*low)) {
                (Some(high), Some(low)) => {
                    rest = tail;
                    high << 4 | low
                }
                _ => b'%',
            },
            (b'+', _) if is_query => b' ',
            (byte, _) => *byte,
        });
    }
    Cow::Owned(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::Body;
    use crate::context::{Connection, RequestId};
    use std::hash::RandomState;
    use std::sync::Arc;
    use std::time::{Duration, SystemTime};

    fn request(uri: &str, fields: &[(&'static str, &str)]) -> Request {
        let mut request = http::Request::builder().uri(uri);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(Body::empty()).unwrap()
    }

    fn from(client: Option<&str>) -> Request {
        let connection = Arc::new(Connection::new("public".into(), None, None, false, Duration::from_secs(1)));
        let client = client.map(|address| address.parse().unwrap());
        let mut request = request("/", &[]);
        request.extensions_mut().insert(RequestContext::new(RequestId::new(SystemTime::now(), 0), connection, client));
        request
    }

    /// Each of `same` is a group of requests with one key, and no two groups have the same.
    #[track_caller]
    fn groups(parts: &[Part], same: &[Vec<Request>]) {
        let (key, seed) = (Key::new(parts), RandomState::new());
        let hashes: Vec<Vec<u64>> =
            same.iter().map(|group| group.iter().map(|request| key.hash(request, &seed)).collect()).collect();
        for (number, group) in hashes.iter().enumerate() {
            assert!(group.iter().all(|hash| *hash == group[0]), "group {number} of {parts:?} differs: {group:?}");
            assert!(!hashes[..number].iter().any(|other| other[0] == group[0]), "group {number} of {parts:?}");
        }
    }

    #[test]
    fn clients_are_told_apart_by_address_and_by_network() {
        groups(
            &[Part::Client],
            &[
                vec![from(Some("192.0.2.1")), from(Some("::ffff:192.0.2.1"))],
                vec![from(Some("192.0.2.2"))],
                vec![from(Some("2001:db8:0:1::1")), from(Some("2001:db8:0:1:ffff::2"))],
                vec![from(Some("2001:db8:0:2::1"))],
                vec![from(None), request("/", &[])],
            ],
        );
    }

    #[test]
    fn every_process_says_the_same_of_a_key_that_is_there() {
        let key = Key::new([Part::Header(HeaderName::from_static("x-key")), Part::Path]);
        let of = |fields: &[(&'static str, &str)]| key.steady(&request("/a", fields));
        assert_eq!(of(&[("x-key", "b")]), Some(0xeb02_ed06_2853_5a64));
        assert_ne!(of(&[("x-key", "c")]), of(&[("x-key", "b")]));
        assert_eq!((of(&[]), of(&[("x-key", "b"), ("x-key", "b")])), (None, None));
    }

    #[test]
    fn a_field_that_is_doubled_counts_as_absent() {
        let with = |fields: &[(&'static str, &str)]| request("/", fields);
        groups(
            &[Part::Header(HeaderName::from_static("x-key"))],
            &[
                vec![with(&[("x-key", "a")]), with(&[("x-key", "a"), ("x-other", "b")])],
                vec![with(&[("x-key", "A")])],
                vec![with(&[("x-key", "")])],
                vec![with(&[]), with(&[("x-key", "a"), ("x-key", "junk")]), with(&[("x-key", "a"), ("x-key", "a")])],
            ],
        );
    }

    #[test]
    fn a_scheme_in_another_case_is_the_same_credential() {
        let with = |value: &str| request("/", &[("authorization", value)]);
        groups(
            &[Part::Header(header::AUTHORIZATION)],
            &[
                vec![with("Bearer abc"), with("bearer abc"), with("BEARER   abc")],
                vec![with("Bearer ABC")],
                vec![with("Basic abc")],
                vec![with("raw"), with("RAW")],
            ],
        );
    }

    #[test]
    fn a_cookie_is_found_on_any_line_and_once() {
        let with = |lines: &[&str]| {
            let fields: Vec<_> = lines.iter().map(|line| ("cookie", *line)).collect();
            request("/", &fields)
        };
        groups(
            &[Part::Cookie("sid".into())],
            &[
                vec![
                    with(&["sid=a=1"]),
                    with(&["x=1; sid=a=1; y=2"]),
                    with(&["x=1", "sid=a=1"]),
                    with(&["sid = \"%61=1\""]),
                ],
                vec![with(&["sid=b"])],
                vec![with(&["sid="]), with(&["sid"])],
                vec![
                    with(&[]),
                    with(&["SID=a"]),
                    with(&["sid=a; sid=a"]),
                    with(&["sid=a", "sid=b"]),
                    with(&["xsid=a"]),
                ],
            ],
        );
    }

    #[test]
    fn a_parameter_is_read_without_its_escapes_and_once() {
        let get = |uri: &str| request(uri, &[]);
        groups(
            &[Part::Query("user".into())],
            &[
                vec![get("/?user=a+b"), get("/x?y=1&user=a%20b"), get("/?us%65r=%61%20b")],
                vec![get("/?user=a%2Bb")],
                vec![get("/?user="), get("/?user&x=1")],
                vec![get("/"), get("/?users=a"), get("/?user=a&user=a"), get("/?user=a&%75ser=b"), get("/?x=user=a")],
                vec![get("/?user=%zz%4"), get("/?user=%zz%4&x")],
            ],
        );
    }

    #[test]
    fn host_method_and_path_are_told_apart() {
        let to = |host: &str| request("/", &[("host", host)]);
        groups(
            &[Part::Host],
            &[
                vec![to("a.example"), to("A.Example:8080"), to("a.example."), request("http://a.example/", &[])],
                vec![to("b.example")],
                vec![to("[::1]:80"), to("[::1]")],
            ],
        );
        let get = |uri: &str| request(uri, &[]);
        groups(&[Part::Path], &[vec![get("/a?x=1"), get("/a?x=2"), get("/%61")], vec![get("/b")]]);
        let mut post = request("/", &[]);
        *post.method_mut() = http::Method::POST;
        groups(&[Part::Method], &[vec![get("/"), get("/x")], vec![post]]);
    }

    #[test]
    fn a_combination_is_not_its_parts_written_together() {
        let of = |a: &str, b: &str| request("/", &[("x-a", a), ("x-b", b)]);
        let parts = ["x-a", "x-b"].map(|name| Part::Header(HeaderName::from_static(name)));
        groups(
            &parts,
            &[
                vec![of("ab", "c"), of("ab", "c")],
                vec![of("a", "bc")],
                vec![of("abc", "")],
                vec![of("", "abc")],
                vec![request("/", &[("x-a", "abc")])],
                vec![request("/", &[("x-b", "abc")])],
                vec![request("/", &[])],
            ],
        );
    }

    #[test]
    fn a_label_tells_no_secret() {
        let seed = RandomState::new();
        let label = |part: Part, request: &Request| Key::from(part).label(request, &seed);
        let mut secret = from(Some("2001:db8:0:1:2::3"));
        secret.headers_mut().insert(header::AUTHORIZATION, "Bearer hunter2".parse().unwrap());
        let told = label(Part::Header(header::AUTHORIZATION), &secret);
        assert!(told.starts_with("header:authorization=#") && !told.contains("hunter2"), "{told}");
        assert_eq!(label(Part::Client, &secret), "2001:db8:0:1::/64");
        assert_eq!(label(Part::Client, &from(None)), "unix");
        let several = Key::new([Part::Method, Part::Path]).label(&request("/a?token=x", &[]), &seed);
        assert_eq!(several, "GET /a");
    }

    #[test]
    fn nothing_tells_requests_apart_that_are_counted_together_and_seeds_differ() {
        groups(&[], &[vec![from(Some("192.0.2.1")), request("/x?y", &[("x-key", "a")]), from(None)]]);
        let (key, request) = (Key::from(Part::Path), request("/a", &[]));
        assert_ne!(key.hash(&request, &RandomState::new()), key.hash(&request, &RandomState::new()));
    }
}
