//! What is written about requests and responses: patterns, fields, methods, targets.

use std::sync::Arc;

use http::{HeaderName, HeaderValue, Method, header};
use serde_json::{Value, json};
use toml::de::DeValue;

use super::decode::{Context, Decode, Node, Scalar, entries, or_source, wrong_type};
use super::effective::hidden;
use super::error::{Problem, quote};
use super::values::{Located, not_a_word, words};
use super::{AccessLog, HostPattern, PathPattern, Secrets};
use crate::control::allowance::Field as TimeField;
use crate::control::queue::{DropPolicy, Order};

words!(Order, "\"fifo\", \"lifo\", \"priority\", \"deadline\" or \"fair\"", {
    "fifo" => Self::Fifo,
    "lifo" => Self::Lifo,
    "priority" => Self::Priority,
    "deadline" => Self::Deadline,
    "fair" => Self::Fair,
});

words!(DropPolicy, "\"reject_newest\", \"reject_oldest\", \"reject_lowest\" or \"replace_same_key\"", {
    "reject_newest" => Self::RejectNewest,
    "reject_oldest" => Self::RejectOldest,
    "reject_lowest" => Self::RejectLowest,
    "replace_same_key" => Self::ReplaceSameKey,
});

words!(AccessLog, "\"json\", \"text\" or \"off\"", { "json" => Self::Json, "text" => Self::Text, "off" => Self::Off });

/// Fields of one connection or of the message's framing: the proxy writes them, and an edit would break either.
const OF_THE_CONNECTION: [HeaderName; 9] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::HOST,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

words!(TimeField, "a field such as \"grpc-timeout\" or \"x-request-timeout\"", {
    "grpc-timeout" => Self::Grpc,
    "connect-timeout-ms" => Self::Connect,
    "x-request-timeout" => Self::XRequest,
    "request-timeout" => Self::Request,
    "x-envoy-expected-rq-timeout-ms" => Self::Envoy,
    "x-stainless-timeout" => Self::Stainless,
    "x-stainless-read-timeout" => Self::StainlessRead,
});

impl Scalar for HostPattern {
    const WHAT: &'static str = "a host name such as \"api.example.com\" or \"*.example.com\"";

    fn parse(text: &str) -> Result<Self, Problem> {
        let lower = text.to_ascii_lowercase();
        let (name, any) = match lower.strip_prefix("*.") {
            Some(rest) => (rest, true),
            None => (lower.as_str(), false),
        };
        let ip = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
        let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if ip.is_some_and(|ip| ip.parse::<std::net::Ipv6Addr>().is_ok()) && !any {
            return Ok(Self::Exact(name.into()));
        }
        if name.is_empty() || !name.bytes().all(fits) {
            let problem = Problem::new(format!("{} is no pattern of a host", quote(text)));
            return Err(problem.or_hint(|| {
                let port = name.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
                let hint = if port { "leave the port away" } else { "write \"api.example.com\" or \"*.example.com\"" };
                Some(hint.into())
            }));
        }
        Ok(if any { Self::Suffix(name.into()) } else { Self::Exact(name.into()) })
    }
}

impl Scalar for PathPattern {
    const WHAT: &'static str = "a path such as \"/health\" or \"/v1/*\"";

    fn parse(text: &str) -> Result<Self, Problem> {
        let (path, prefix) = match text.strip_suffix("/*") {
            Some(path) => (path, true),
            None => (text, false),
        };
        let wrong = |why: &str| Problem::new(format!("{} is no pattern of a path: {why}", quote(text)));
        if !text.starts_with('/') {
            return Err(wrong("it does not begin with `/`").hint(format!("write \"/{}\"", text.escape_debug())));
        }
        if path.contains('*') {
            return Err(wrong("`*` can only stand at the end, as `/*`"));
        }
        plain_path(path).map_err(wrong)?;
        Ok(if prefix { Self::Prefix(path.trim_end_matches('/').into()) } else { Self::Exact(path.into()) })
    }

    fn string() -> Value {
        json!({ "type": "string", "pattern": "^/[^*?#]*\\*?$" })
    }
}

/// A path without its trailing slash, for a rewrite.
#[derive(Clone, Debug)]
pub(super) struct Prefix(pub(super) Box<str>);

impl Scalar for Prefix {
    const WHAT: &'static str = "a path such as \"/api\"";

    fn parse(text: &str) -> Result<Self, Problem> {
        let wrong = |why: &str| Problem::new(format!("{} is no prefix of a path: {why}", quote(text)));
        if !text.starts_with('/') {
            return Err(wrong("it does not begin with `/`").hint(format!("write \"/{}\"", text.escape_debug())));
        }
        if text.contains('*') {
            return Err(wrong("it has a `*`").hint("a prefix is plain text; whole segments are compared"));
        }
        plain_path(text).map_err(wrong)?;
        Ok(Self(text.trim_end_matches('/').into()))
    }

    fn string() -> Value {
        json!({ "type": "string", "pattern": "^/[^*?#]*$" })
    }
}

fn plain_path(path: &str) -> Result<(), &'static str> {
    if path.contains(['?', '#']) {
        return Err("a query or fragment does not belong to it");
    }
    // What stands here is compared with, and written into, a request line.
    let fits = path.bytes().all(|byte| byte.is_ascii_graphic());
    if fits { Ok(()) } else { Err("spaces and other letters than ASCII are written with `%`") }
}

impl Scalar for Method {
    const WHAT: &'static str = "a method such as \"GET\"";

    fn parse(text: &str) -> Result<Self, Problem> {
        let known = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"];
        if text == "CONNECT" {
            return Err("CONNECT is never forwarded".into());
        }
        if known.iter().any(|known| known.eq_ignore_ascii_case(text)) && !known.contains(&text) {
            let problem = Problem::new(format!("{} is no method: methods are in capitals", quote(text)));
            return Err(problem.hint(format!("write \"{}\"", text.to_ascii_uppercase())));
        }
        Self::from_bytes(text.as_bytes()).map_err(|_| Problem::new(format!("{} is no method", quote(text))))
    }
}

/// A protocol that a connection may switch to, in lower case.
#[derive(Clone, Debug)]
pub(super) struct Switch(pub(super) Box<str>);

impl Scalar for Switch {
    const WHAT: &'static str = "a protocol such as \"websocket\"";

    fn parse(text: &str) -> Result<Self, Problem> {
        let lower = text.to_ascii_lowercase();
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!#$&+^`|'%/".contains(&byte);
        if lower == "*" {
            return Err(Problem::new("a switch to any protocol is never passed on").hint("name the protocols"));
        }
        // What follows such a switch is HTTP that nobody here reads: rules and limits would end at the first request.
        if ["h2c", "h2", "http", "tls"].contains(&lower.split('/').next().unwrap_or_default()) {
            return Err(Problem::new(format!("a switch to {} is never passed on", quote(text))));
        }
        if lower.is_empty() || !lower.bytes().all(fits) {
            return Err(Problem::new(format!("{} is no name of a protocol", quote(text))));
        }
        Ok(Self(lower.into()))
    }
}

/// The value of a field. One that came from the environment or a file, or that the field's name tells to be nobody's
/// business, is marked sensitive: it prints as such.
#[derive(Clone, Debug)]
pub(super) struct FieldValue(pub(super) HeaderValue);

impl Decode for FieldValue {
    fn decode(node: Node<'_>, cx: &mut Context<'_>) -> Option<Self> {
        let text = cx.text(node, "the text of a field", |_| None)?;
        let Ok(mut value) = HeaderValue::from_str(&text.value) else {
            let problem = Problem::new("a field's value cannot have line breaks and other control characters");
            cx.found.error(&text.at, problem);
            return None;
        };
        value.set_sensitive(text.from.is_some() || cx.is_private);
        Some(Self(value))
    }

    fn schema() -> Value {
        or_source(&json!({ "type": "string" }))
    }
}

/// A field's value that is asked for; `true` asks for any.
#[derive(Clone, Debug)]
pub(super) struct FieldTest(pub(super) Option<HeaderValue>);

impl Decode for FieldTest {
    fn decode(node: Node<'_>, cx: &mut Context<'_>) -> Option<Self> {
        match node.get_ref() {
            DeValue::Boolean(true) => Some(Self(None)),
            DeValue::Boolean(false) => {
                let problem = Problem::new("a route cannot ask for a field to be absent");
                cx.found.error(&node.span(), problem.hint("put the route for requests that have it first"));
                None
            }
            DeValue::String(_) | DeValue::Table(_) => FieldValue::decode(node, cx).map(|value| Self(Some(value.0))),
            other => {
                cx.found.error(&node.span(), wrong_type("the text of a field or `true`", other));
                None
            }
        }
    }

    fn schema() -> Value {
        json!({ "anyOf": [FieldValue::schema(), { "const": true }] })
    }
}

/// `{ name = VALUE }`, in the order of the file, each name once.
#[derive(Clone, Debug)]
pub(super) struct Fields<T>(pub(super) Vec<(Located<HeaderName>, T)>);

impl<T: Decode> Decode for Fields<T> {
    fn decode(node: Node<'_>, cx: &mut Context<'_>) -> Option<Self> {
        let Some(pairs) = entries(node) else {
            let problem = wrong_type("a table of fields", node.get_ref());
            cx.found.error(&node.span(), problem.hint("write `{ x-name = \"value\" }`"));
            return None;
        };
        let mut fields: Vec<(Located<HeaderName>, T)> = Vec::with_capacity(pairs.len());
        for (key, value) in pairs {
            let name = match HeaderName::parse(key.get_ref()) {
                Ok(name) if fields.iter().any(|(field, _)| field.value == name) => {
                    cx.found.error(&key.span(), format!("the field {} stands here twice", quote(name.as_str())));
                    continue;
                }
                Ok(name) => name,
                Err(problem) => {
                    cx.found.error(&key.span(), problem);
                    continue;
                }
            };
            cx.is_private = is_private(&name);
            if cx.is_private && value.get_ref().is_str() {
                cx.private.push(value.span());
            }
            let decoded = T::decode(value, cx);
            cx.is_private = false;
            if let Some(value) = decoded {
                fields.push((Located { value: name, at: key.span() }, value));
            }
        }
        Some(Self(fields))
    }

    fn effective(node: Node<'_>, secrets: &Secrets) -> Value {
        let pairs = entries(node).unwrap_or_default().into_iter();
        Value::Object(pairs.map(|(key, value)| (key.get_ref().to_string(), hidden(value, secrets))).collect())
    }

    fn schema() -> Value {
        json!({ "type": "object", "additionalProperties": T::schema() })
    }
}

/// Whether a field of this name is likely to carry what opens something.
fn is_private(name: &HeaderName) -> bool {
    let words = ["auth", "cookie", "key", "token", "secret", "passw", "credential", "session", "signature"];
    words.iter().any(|word| name.as_str().contains(word))
}

impl Scalar for HeaderName {
    const WHAT: &'static str = "the name of a field such as \"x-tenant\"";

    fn parse(text: &str) -> Result<Self, Problem> {
        Self::from_bytes(text.as_bytes()).map_err(|_| Problem::new(format!("{} is no name of a field", quote(text))))
    }
}

/// Why a field cannot be edited, if it cannot.
pub(super) fn not_editable(name: &HeaderName) -> Option<Problem> {
    if !OF_THE_CONNECTION.contains(name) {
        return None;
    }
    let problem =
        Problem::new(format!("the field {} belongs to the connection and cannot be edited", quote(name.as_str())));
    Some(if name == header::HOST { problem.hint("set `host` in the upstream") } else { problem })
}

/// Where a redirect leads, with `{host}`, `{path}` and `{query}`.
#[derive(Clone, Debug)]
pub(super) struct Target(pub(super) Arc<str>);

impl Scalar for Target {
    const WHAT: &'static str = "a target such as \"https://{host}{path}{query}\"";

    fn parse(text: &str) -> Result<Self, Problem> {
        let known = ["{host}", "{path}", "{query}"];
        let mut rest = text;
        while let Some((_, tail)) = rest.split_once(['{', '}']) {
            let at = rest.len() - tail.len() - 1;
            let tail = rest.get(at..).unwrap_or_default();
            let Some(word) = known.iter().find(|word| tail.starts_with(**word)) else {
                let end = tail.find('}').map_or(tail.len(), |end| end + 1);
                let word = tail.get(..end).unwrap_or_default();
                let problem = Problem::new(format!("a target cannot have {}", quote(word)));
                let problem = problem.did_you_mean(word, known);
                return Err(problem.or_hint(|| Some("it can have `{host}`, `{path}` and `{query}`".into())));
            };
            rest = tail.strip_prefix(word).unwrap_or_default();
        }
        let start = ["http://", "https://", "/", "{path}"];
        if !start.iter().any(|start| text.starts_with(start)) {
            let problem = Problem::new(format!("the target {} is neither a URL nor a path", quote(text)));
            return Err(problem.hint("it begins with `https://`, `http://` or `/`"));
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("a target has no spaces and no other letters than ASCII".into());
        }
        Ok(Self(text.into()))
    }
}

/// A filter of the event log.
#[derive(Clone, Debug)]
pub(super) struct Level(pub(super) String);

impl Scalar for Level {
    const WHAT: &'static str = "a level such as \"info\", or a filter such as \"warn,headworks=debug\"";

    fn parse(text: &str) -> Result<Self, Problem> {
        let levels = ["off", "error", "warn", "info", "debug", "trace"];
        // The filter's own grammar takes a mistyped level for the name of a module, and would log all of it.
        if text.chars().all(|c| c.is_ascii_alphabetic()) && !levels.contains(&text) {
            return Err(not_a_word(text, Self::WHAT, &levels));
        }
        match tracing_subscriber::EnvFilter::builder().parse(text) {
            Ok(_) => Ok(Self(text.into())),
            Err(error) => Err(Problem::new(format!("{} is no filter: {error}", quote(text)))),
        }
    }
}
