//! What can be asked of the admin port: one row for each method and path, and no other list of them.

use std::fmt::Write as _;

use http::Method;

use crate::config::OpenPage;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Index,
    Metrics,
    Live,
    Ready,
    Stack,
    Config,
    Upstreams,
    LastReload,
    Reload,
    Drains,
    Drain,
    Undrain,
    Connections,
    EndConnection,
    Streams,
    CancelStream,
    Faults,
    Fault,
    EndFault,
    Limits,
    Raise,
    Lower,
    Talkers,
}

impl Verb {
    /// The page that may be left open.
    pub(super) fn page(self) -> Option<OpenPage> {
        match self {
            Self::Live => Some(OpenPage::Live),
            Self::Ready => Some(OpenPage::Ready),
            Self::Metrics => Some(OpenPage::Metrics),
            _ => None,
        }
    }
}

/// A row of the index. A word in capitals stands for anything; the last one in a path also for several segments, so
/// that the address of an endpoint need not be escaped.
struct Row {
    verb: Verb,
    method: Method,
    path: &'static str,
    does: &'static str,
}

const fn row(verb: Verb, method: Method, path: &'static str, does: &'static str) -> Row {
    Row { verb, method, path, does }
}

const ROWS: &[Row] = &[
    row(Verb::Index, Method::GET, "/", "this list"),
    row(Verb::Metrics, Method::GET, "/metrics", "Prometheus metrics"),
    row(Verb::Live, Method::GET, "/live", "200 while the process answers"),
    row(Verb::Ready, Method::GET, "/ready", "200 while requests are taken, 503 otherwise"),
    row(Verb::Stack, Method::GET, "/stack", "the layers of every route"),
    row(Verb::Config, Method::GET, "/config", "every key with its value, secrets hidden"),
    row(Verb::Upstreams, Method::GET, "/upstreams", "credits, queue and connections of each endpoint"),
    row(Verb::Connections, Method::GET, "/connections", "the connections of clients"),
    row(Verb::EndConnection, Method::DELETE, "/connections/ID", "ends one at once"),
    row(Verb::Streams, Method::GET, "/streams", "the exchanges under way"),
    row(Verb::CancelStream, Method::DELETE, "/streams/ID", "cancels one"),
    row(Verb::LastReload, Method::GET, "/reload", "what came of the last reload"),
    row(Verb::Reload, Method::POST, "/reload", "reads the configuration anew"),
    row(Verb::Drains, Method::GET, "/drain", "the endpoints that are out of service"),
    row(Verb::Drain, Method::POST, "/drain/UPSTREAM/ENDPOINT", "takes an endpoint out of service"),
    row(Verb::Undrain, Method::DELETE, "/drain/UPSTREAM/ENDPOINT", "lets it back"),
    row(Verb::Limits, Method::GET, "/limits", "the rate limits, and what they have let through"),
    row(Verb::Raise, Method::POST, "/surge/ROUTE/LIMIT", "raises a rate for a while"),
    row(Verb::Lower, Method::DELETE, "/surge/ROUTE/LIMIT", "lets it come down"),
    row(Verb::Talkers, Method::GET, "/talkers", "who asks most, under limits with top talkers"),
    row(Verb::Faults, Method::GET, "/fault", "what is done wrong on purpose"),
    row(Verb::Fault, Method::POST, "/fault/ROUTE", "does wrong on a route for a while"),
    row(Verb::EndFault, Method::DELETE, "/fault/ROUTE", "ends that"),
];

/// The list of all that can be asked for.
pub(super) fn index() -> String {
    let mut out = "headworks admin\n\n".to_owned();
    for Row { method, path, does, .. } in ROWS {
        let method = method.as_str();
        let _ = writeln!(out, "{method:<7} {path:<25} {does}");
    }
    out.push_str("\nText; JSON with `Accept: application/json` or `?format=json`. docs/admin.md tells more.\n");
    out
}

/// Nothing is there, or not by this method.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unknown {
    Path,
    /// The methods that there are, as `Allow` lists them.
    Method(String),
}

/// What a method on a path asks for, and what stands in the path for its words in capitals, decoded. HEAD is GET
/// whose body is not sent.
pub(super) fn find(method: &Method, path: &str) -> Result<(Verb, Vec<String>), Unknown> {
    let method = if method == Method::HEAD { &Method::GET } else { method };
    let mut allowed: Vec<&str> = Vec::new();
    for row in ROWS {
        let Some(words) = words(row.path, path) else { continue };
        if row.method == *method {
            return Ok((row.verb, words));
        }
        allowed.push(row.method.as_str());
        if row.method == Method::GET {
            allowed.push("HEAD");
        }
    }
    if allowed.is_empty() { Err(Unknown::Path) } else { Err(Unknown::Method(allowed.join(", "))) }
}

/// The parts of `path` that stand for the pattern's words in capitals; none when it does not fit.
fn words(pattern: &str, path: &str) -> Option<Vec<String>> {
    let (mut pattern, mut path) = (pattern.strip_prefix('/')?, path.strip_prefix('/')?);
    let mut words = Vec::new();
    loop {
        let (expected, rest) = pattern.split_once('/').map_or((pattern, None), |(first, rest)| (first, Some(rest)));
        let is_word = expected.starts_with(|c: char| c.is_ascii_uppercase());
        let (found, left) = match path.split_once('/') {
            Some((found, left)) if rest.is_some() || !is_word => (found, Some(left)),
            _ => (path, None),
        };
        match (is_word, found) {
            (true, "") => return None,
            (true, found) => words.push(decoded(found)),
            (false, found) if found == expected => {}
            (false, _) => return None,
        }
        match (rest, left) {
            (Some(rest), Some(left)) => (pattern, path) = (rest, left),
            (None, None) => return Some(words),
            _ => return None,
        }
    }
}

/// A part of a path with its `%xx` read. What is no such thing stays as it is: it will name nothing.
pub(super) fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((plain, tail)) = rest.split_once('%') {
        bytes.extend_from_slice(plain.as_bytes());
        let byte = tail.get(..2).filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
        if let Some(byte) = byte.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            bytes.push(byte);
            rest = tail.get(2..).unwrap_or_default();
        } else {
            bytes.push(b'%');
            rest = tail;
        }
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(method: &Method, path: &str) -> (Verb, Vec<String>) {
        find(method, path).unwrap_or_else(|error| panic!("{method} {path}: {error:?}"))
    }

    #[test]
    fn every_row_is_found() {
        for row in ROWS {
            let (verb, words) = asked(&row.method, row.path);
            assert_eq!(verb, row.verb);
            assert_eq!(words.len(), row.path.split('/').filter(|part| part.starts_with(char::is_uppercase)).count());
            assert!(index().contains(row.path));
        }
        assert_eq!(asked(&Method::HEAD, "/metrics").0, Verb::Metrics);
    }

    #[test]
    fn an_endpoint_may_be_written_as_it_is() {
        let words = |path| asked(&Method::POST, path).1;
        assert_eq!(words("/drain/llm/http://10.0.0.1:8000"), ["llm", "http://10.0.0.1:8000"]);
        assert_eq!(words("/drain/llm/http%3A%2F%2F10.0.0.1:8000"), ["llm", "http://10.0.0.1:8000"]);
        assert_eq!(words("/drain/llm/unix:/run/app.sock"), ["llm", "unix:/run/app.sock"]);
        assert_eq!(words("/drain/llm/0"), ["llm", "0"]);
        assert_eq!(asked(&Method::DELETE, "/drain/llm/0").0, Verb::Undrain);
    }

    #[test]
    fn what_is_not_there_is_told_apart_from_what_is_not_allowed() {
        for path in ["", "/x", "/metrics/", "//metrics", "/drain/", "/drain/a", "/drain//0", "/drain/a/", "*"] {
            assert_eq!(find(&Method::GET, path), Err(Unknown::Path), "{path}");
        }
        assert_eq!(find(&Method::POST, "/metrics"), Err(Unknown::Method("GET, HEAD".into())));
        assert_eq!(find(&Method::DELETE, "/reload"), Err(Unknown::Method("GET, HEAD, POST".into())));
        assert_eq!(find(&Method::GET, "/drain/a/0"), Err(Unknown::Method("POST, DELETE".into())));
    }

    #[test]
    fn escapes_are_read() {
        for (text, read) in
            [("a%2Fb", "a/b"), ("%", "%"), ("%4", "%4"), ("%zz%41", "%zzA"), ("%ff", "\u{fffd}"), ("%é", "%é")]
        {
            assert_eq!(decoded(text), read, "{text}");
        }
    }
}
