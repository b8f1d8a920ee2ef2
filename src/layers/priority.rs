//! Says how much a request matters, for all that must choose between requests: the queue, and what sheds.
//!
//! A route has a class. A field of the request may name another (`background`, `default`, `critical`; in the field
//! `priority`, the urgency of RFC 9218, where 0 to 2 are critical, 3 is the default, and 4 to 7 background): who is
//! trusted, by its address or by a key that it shows, may raise it so, and anybody may lower it. A trusted proxy is not
//! trusted here: it passes on what its own clients say. No field makes a request `protected`: only its route does, or
//! that it is a health check of gRPC. Anybody can write one of those, so only some of them in each second are.
//!
//! Refuses nothing. Stands above everything that may refuse by class.
//!
//! ```toml
//! [[route]]
//! priority = { class = "default", header = "x-priority", trusted = ["10.0.0.0/8"] }
//! ```

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

use crate::body::kind::is_grpc;
use crate::context::{Priority, Request, RequestContext};
use crate::control::gcra::{Gcra, nanos};

static URGENCY: HeaderName = HeaderName::from_static("priority");
/// A question of `grpc.health.v1`. To watch a service, which lasts, is a call like others.
const CHECK: &str = "/grpc.health.v1.Health/Check";
/// Checks of a route that are protected, at once and in each second: more than its balancers send, and too few to be in
/// anybody's way.
const CHECKS: NonZeroU32 = NonZeroU32::MIN.saturating_add(49);

/// How much the requests of a route matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Where nothing else is said.
    pub class: Priority,
    /// The field in which requests may name another class.
    pub header: Option<HeaderName>,
    /// Who may raise its class with it.
    pub trusted: Trusted,
}

/// Whose word on its own class is believed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trusted {
    /// Clients with an address in one of these, as it is seen through trusted proxies.
    pub nets: Vec<IpNet>,
    /// Clients on unix sockets.
    pub unix: bool,
    /// Requests that have one of these fields with its value.
    pub fields: Vec<(HeaderName, HeaderValue)>,
}

impl Trusted {
    fn contains(&self, client: Option<IpAddr>, headers: &HeaderMap) -> bool {
        let near = |client: IpAddr| {
            let client = client.to_canonical();
            self.nets.iter().any(|net| net.contains(&client))
        };
        let shows = |(name, key): &(HeaderName, HeaderValue)| {
            let mut values = headers.get_all(name).iter();
            // Of a key that comes twice, others may read the other one.
            values.next().is_some_and(|value| values.next().is_none() && value == key)
        };
        client.map_or(self.unix, near) || self.fields.iter().any(shows)
    }
}

/// See the module's text.
#[derive(Clone, Debug)]
pub struct PriorityLayer(Arc<Rule>);

#[derive(Debug)]
struct Rule {
    settings: Settings,
    checks: Checks,
}

impl PriorityLayer {
    /// A layer that goes by these settings.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self(Arc::new(Rule { settings, checks: Checks::new(Instant::now()) }))
    }
}

impl<S> Layer<S> for PriorityLayer {
    type Service = Prioritised<S>;

    fn layer(&self, inner: S) -> Prioritised<S> {
        Prioritised { inner, rule: Arc::clone(&self.0) }
    }
}

/// The service of [`PriorityLayer`].
#[derive(Clone, Debug)]
pub struct Prioritised<S> {
    inner: S,
    rule: Arc<Rule>,
}

impl<S: Service<Request>> Service<Request> for Prioritised<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> S::Future {
        if let Some(context) = request.extensions().get::<RequestContext>() {
            let priority = self.rule.of(&request, context);
            if priority != Priority::default() {
                context.set_priority(priority);
            }
        }
        self.inner.call(request)
    }
}

impl Rule {
    fn of(&self, request: &Request, context: &RequestContext) -> Priority {
        let is_check = request.uri().path() == CHECK && is_grpc(request.headers());
        if is_check && self.checks.take(context.received_at()) {
            return Priority::Protected;
        }
        self.settings.of(request.headers(), context.client())
    }
}

/// How many health checks are protected just now.
#[derive(Debug)]
struct Checks {
    rule: Gcra,
    began: Instant,
    /// In nanoseconds since it began.
    full_at: AtomicU64,
}

impl Checks {
    fn new(now: Instant) -> Self {
        Self { rule: Gcra::new(Duration::from_secs(1) / CHECKS.get(), CHECKS), began: now, full_at: AtomicU64::new(0) }
    }

    fn take(&self, now: Instant) -> bool {
        let now = nanos(now.saturating_duration_since(self.began));
        self.full_at.fetch_update(Relaxed, Relaxed, |full_at| self.rule.take(full_at, now).ok()).is_ok()
    }
}

impl Settings {
    fn of(&self, headers: &HeaderMap, client: Option<IpAddr>) -> Priority {
        match self.header.as_ref().and_then(|name| asked(headers, name)) {
            Some(asked) if asked <= self.class || self.trusted.contains(client, headers) => asked,
            _ => self.class,
        }
    }
}

/// The class that a request names; none when it names none, or one that no field may name.
fn asked(headers: &HeaderMap, name: &HeaderName) -> Option<Priority> {
    if *name == URGENCY {
        let lines = headers.get_all(name).iter();
        return lines.rev().find_map(|line| urgency(line.as_bytes()));
    }
    let mut values = headers.get_all(name).iter();
    let value = values.next().filter(|_| values.next().is_none())?;
    Priority::named(value.as_bytes().trim_ascii()).filter(|asked| *asked != Priority::Protected)
}

/// `u` in a line of the dictionary of RFC 9218; the last one stands, and what is out of range is not there.
fn urgency(line: &[u8]) -> Option<Priority> {
    let members = line.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    let value = members.rev().find_map(|member| member.strip_prefix(b"u="))?;
    match value.split(|byte| *byte == b';').next().map(<[u8]>::trim_ascii_end)? {
        b"0" | b"1" | b"2" => Some(Priority::Critical),
        b"3" => Some(Priority::Default),
        b"4" | b"5" | b"6" | b"7" => Some(Priority::Background),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::{Connection, RequestId};
    use std::time::SystemTime;

    fn client(address: Option<&str>) -> Option<IpAddr> {
        address.map(|address| address.parse().expect("an address"))
    }

    fn request(path: &str, fields: &[(&'static str, &'static str)]) -> Request {
        let mut request = Request::default();
        *request.uri_mut() = path.parse().expect("a path");
        for (name, value) in fields {
            request.headers_mut().append(*name, HeaderValue::from_static(value));
        }
        request
    }

    fn settings(class: Priority, header: &'static str) -> Settings {
        let trusted = Trusted {
            nets: vec!["10.0.0.0/8".parse().expect("a net")],
            unix: false,
            fields: vec![("x-key".parse().expect("a name"), HeaderValue::from_static("s3cret"))],
        };
        Settings { class, header: Some(HeaderName::from_static(header)), trusted }
    }

    const STRANGER: Option<&str> = Some("192.0.2.1");

    #[test]
    fn strangers_may_lower_their_class_and_not_raise_it() {
        let settings = settings(Priority::Default, "x-priority");
        let of = |peer, value| settings.of(request("/", &[("x-priority", value)]).headers(), client(peer));
        for (value, strangers, friends) in [
            ("background", Priority::Background, Priority::Background),
            (" Critical ", Priority::Default, Priority::Critical),
            ("protected", Priority::Default, Priority::Default),
            ("9", Priority::Default, Priority::Default),
        ] {
            assert_eq!((of(STRANGER, value), of(Some("10.1.2.3"), value)), (strangers, friends), "{value}");
            assert_eq!(of(Some("::ffff:10.1.2.3"), value), friends, "{value}");
            assert_eq!(of(None, value), strangers, "unix sockets are not named here");
        }
    }

    #[test]
    fn a_key_raises() {
        let settings = settings(Priority::Background, "x-priority");
        let wish = ("x-priority", "critical");
        let of = |fields: &[_]| settings.of(request("/", fields).headers(), client(STRANGER));
        assert_eq!(of(&[wish]), Priority::Background);
        assert_eq!(of(&[wish, ("x-key", "s3cret")]), Priority::Critical);
        assert_eq!(of(&[wish, ("x-key", "guess")]), Priority::Background);
        assert_eq!(of(&[wish, ("x-key", "s3cret"), ("x-key", "other")]), Priority::Background);
        assert_eq!(of(&[wish, ("x-priority", "critical"), ("x-key", "s3cret")]), Priority::Background);
    }

    #[test]
    fn urgency_is_read_as_rfc_9218_writes_it() {
        let settings = settings(Priority::Critical, "priority");
        for (value, expected) in [
            ("u=0", Priority::Critical),
            ("u=3, i", Priority::Default),
            ("i, u=5", Priority::Background),
            ("u=1,u=7;x=1", Priority::Background),
            ("u=8", Priority::Critical),
            ("u=", Priority::Critical),
            ("U=7", Priority::Critical),
            ("u=77", Priority::Critical),
            ("i", Priority::Critical),
        ] {
            let request = request("/", &[("priority", value)]);
            assert_eq!(settings.of(request.headers(), client(STRANGER)), expected, "{value}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn health_checks_of_grpc_are_protected_while_they_are_few() {
        let layer = PriorityLayer::new(Settings::default());
        let of = |path, content_type| {
            let connection = Arc::new(Connection::new("test".into(), None, None, false, Duration::ZERO));
            let context = RequestContext::new(RequestId::new(SystemTime::UNIX_EPOCH, 1), connection, None);
            layer.0.of(&request(path, &[("content-type", content_type)]), &context)
        };
        let check = || of(CHECK, "application/grpc");
        assert_eq!(of(CHECK, "text/plain"), Priority::Default);
        assert_eq!(of("/grpc.health.v1.Healthy/Check", "application/grpc"), Priority::Default);
        assert_eq!(of("/grpc.health.v1.Health/Watch", "application/grpc"), Priority::Default);
        let protected = |count: usize| (0..count).filter(|_| check() == Priority::Protected).count();
        assert_eq!(protected(1000), 50, "who sends more does not check");
        tokio::time::advance(Duration::from_millis(100)).await;
        assert_eq!(protected(1000), 5);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(protected(1000), 50);
    }
}
