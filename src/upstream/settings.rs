//! What is set for one upstream. Built by `config`, read by everything in this folder.

use std::fmt;
use std::hash::Hasher as _;
use std::num::{NonZeroU32, NonZeroUsize};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::uri::{Authority, PathAndQuery};

use super::retry::Retry;
use crate::context::{Key, Steady};
use crate::control::health::Thresholds;
use crate::control::{breaker, choice, limit, queue};

/// One upstream: a named pool of endpoints that serve the same thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Its name in the configuration, in logs and in metrics.
    pub name: Arc<str>,
    /// At least one.
    pub endpoints: Vec<EndpointSettings>,
    /// Which version of HTTP is spoken.
    pub protocol: Protocol,
    /// What goes into `Host` and `:authority`.
    pub host: HostPolicy,
    /// The zone that the proxy is in.
    pub zone: Option<Arc<str>>,
    /// How an endpoint is chosen.
    pub balance: Balance,
    /// How much is let through to each endpoint.
    pub limit: Limit,
    /// What is made of reports of load.
    pub published: Published,
    /// How many wait in front of all endpoints, and how long.
    pub queue: Queue,
    /// When endpoints are left out, and for how long; none: never.
    pub breaker: Option<breaker::Settings>,
    /// How endpoints are asked whether they are well; none: they are not.
    pub health: Option<HealthCheck>,
    /// The clocks of a call.
    pub timeout: Timeouts,
    /// When a request is tried again.
    pub retry: Retry,
    /// Bounds of the connection pool, per endpoint.
    pub pool: Pool,
    /// TLS towards the endpoints that use it.
    pub tls: Tls,
    /// Bytes a stream may hold in user memory in one direction; sets hyper's buffers and the h2 stream window.
    pub buffer: usize,
}

/// Where an endpoint is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSettings {
    /// The address as written, without secrets: for logs and metrics.
    pub label: Arc<str>,
    /// How it is reached.
    pub address: Address,
    /// How many times the share of an endpoint with a weight of one it gets; not zero.
    pub weight: u32,
    /// The zone that it is in.
    pub zone: Option<Arc<str>>,
}

impl EndpointSettings {
    /// An endpoint like any other.
    #[must_use]
    pub fn new(label: impl Into<Arc<str>>, address: Address) -> Self {
        Self { label: label.into(), address, weight: 1, zone: None }
    }

    /// Whether it is the same endpoint, be it with another weight.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.label == other.label && self.address == other.address
    }

    /// What the choice among endpoints knows of it, for a proxy in `zone`. Without one, all are near.
    pub(super) fn member(&self, zone: Option<&str>) -> choice::Member {
        let mut hasher = Steady::default();
        match &self.address {
            Address::Tcp { authority, .. } => hasher.write(authority.as_str().to_ascii_lowercase().as_bytes()),
            Address::Unix(path) => hasher.write(path.as_os_str().as_encoded_bytes()),
        }
        let is_near = zone.is_none_or(|zone| self.zone.as_deref() == Some(zone));
        choice::Member { weight: self.weight, is_near, identity: hasher.finish() }
    }
}

/// How an endpoint is chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Balance {
    /// The way, and how new endpoints are spared.
    pub choice: choice::Settings,
    /// What goes to the same endpoint; nothing in particular when absent.
    pub by: Option<Key>,
}

/// How an endpoint is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `http://` (HTTP/1.1), `h2c://` (HTTP/2 by prior knowledge) or `https://`.
    Tcp {
        /// Host and port; the port is the scheme's default when absent.
        authority: Authority,
        /// Which of the three.
        scheme: Scheme,
    },
    /// `unix:/path/to/socket`
    Unix(PathBuf),
}

/// The scheme of a TCP endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Plain, HTTP/1.1 unless `protocol` says otherwise.
    Http,
    /// TLS; ALPN chooses the version unless `protocol` fixes it.
    Https,
    /// Plain HTTP/2 by prior knowledge.
    H2c,
}

/// Which version of HTTP an upstream is spoken to in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// By the endpoint's scheme, and by ALPN over TLS.
    #[default]
    Auto,
    /// HTTP/1.1 only.
    Http1,
    /// HTTP/2 only.
    Http2,
}

/// What an upstream sees as the request's host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HostPolicy {
    /// What the client asked for.
    #[default]
    Keep,
    /// The endpoint's own authority.
    Endpoint,
    /// A fixed one.
    Fixed(Authority),
}

/// Credits of each endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Requests in flight at once, each held until its response body has ended.
    pub in_flight: limit::Settings,
    /// Event streams, upgrades and gRPC streams, counted apart. None: they count as requests in flight.
    pub streams: Option<NonZeroUsize>,
    /// Whether nobody waits or is refused for want of credit, and those who would are only counted.
    pub dry_run: bool,
}

impl Limit {
    /// Streams of an endpoint whose window adapts when nothing else is set: they are not measured, so they are not
    /// among the requests in flight.
    pub const STREAMS: usize = 1024;

    /// Always as many requests in flight.
    #[must_use]
    pub fn fixed(in_flight: usize) -> Self {
        Self { in_flight: limit::Settings::Fixed(in_flight), streams: None, dry_run: false }
    }
}

impl Default for Limit {
    fn default() -> Self {
        Self {
            in_flight: limit::Settings::Adaptive(limit::Bounds::default()),
            streams: NonZeroUsize::new(Self::STREAMS),
            dry_run: false,
        }
    }
}

/// What is made of the endpoints' reports of their load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// Whether reports in answers lower credits.
    pub is_heard: bool,
    /// Whether clients see them.
    pub is_passed: bool,
    /// Who is asked beside.
    pub agent: Option<Agent>,
}

impl Default for Published {
    fn default() -> Self {
        Self { is_heard: true, is_passed: false, agent: None }
    }
}

/// Who is asked for the credits of endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// How often, give or take a tenth.
    pub interval: Duration,
    /// What is asked.
    pub polls: Vec<Poll>,
}

/// One question that is asked again and again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Poll {
    /// Who is asked.
    pub address: Address,
    /// For what.
    pub path: PathAndQuery,
    /// The endpoints that the answer is about.
    pub about: Vec<Address>,
}

/// Active checks of each endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// What is asked.
    pub kind: CheckKind,
    /// How often, give or take a tenth.
    pub interval: Duration,
    /// How long an endpoint may take to answer.
    pub timeout: Duration,
    /// How many checks prove something.
    pub thresholds: Thresholds,
}

/// What a health check asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckKind {
    /// For a path, by GET.
    Http {
        /// The path.
        path: PathAndQuery,
        /// The statuses that are good.
        expect: Vec<RangeInclusive<u16>>,
    },
    /// For a connection, with TLS where the endpoint uses it.
    Tcp,
    /// For a service, by grpc.health.v1.
    Grpc {
        /// Its name; empty for the server as a whole.
        service: Arc<str>,
    },
}

/// The waiting queue of an upstream, in front of all its endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Queue {
    /// Bounds, order and policies.
    pub rules: queue::Rules,
    /// Which requests count together, where that matters.
    pub by: Option<Key>,
    /// Values of the one field that `by` names, with their weights; all others weigh one.
    pub weights: Vec<(Arc<str>, NonZeroU32)>,
}

/// The clocks of a call. An absent one is off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// DNS, TCP and TLS together, and waiting for a free connection.
    pub connect: Duration,
    /// From the request's head sent to the response's head.
    pub first_byte: Option<Duration>,
    /// Longest silence within a response body.
    pub idle: Option<Duration>,
    /// The whole exchange, from receipt to the last byte.
    pub total: Option<Duration>,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            first_byte: Some(Duration::from_secs(60)),
            idle: Some(Duration::from_secs(120)),
            total: None,
        }
    }
}

/// Bounds of the connection pool of one endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Connections at most, in use and idle together; none: the endpoint's credits are the bound.
    pub max_connections: Option<NonZeroUsize>,
    /// Idle connections kept at most.
    pub max_idle: usize,
    /// An idle connection is closed after this time; keep it below the upstream's own keep-alive time.
    pub idle_timeout: Duration,
    /// h2 streams on one connection at most; the peer may allow fewer.
    pub max_streams: NonZeroUsize,
    /// The kernel's receive buffer for each connection; none: the kernel grows it.
    pub receive_buffer: Option<usize>,
}

impl Default for Pool {
    fn default() -> Self {
        let number = |n| NonZeroUsize::new(n).unwrap_or(NonZeroUsize::MIN);
        Self {
            max_connections: None,
            max_idle: 128,
            idle_timeout: Duration::from_secs(4),
            max_streams: number(100),
            receive_buffer: Some(64 * 1024),
        }
    }
}

/// TLS towards an upstream. The default trusts the system's roots and takes the server name from the address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// PEM file of the authorities to trust instead of the system's.
    pub ca: Option<PathBuf>,
    /// Certificate chain and key shown to the upstream, PEM files.
    pub client: Option<(PathBuf, PathBuf)>,
    /// The name to ask for and to verify, when it is not the address's host.
    pub server_name: Option<String>,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Http1 => "h1",
            Self::Http2 => "h2",
        })
    }
}

#[cfg(test)]
impl Settings {
    /// One plain endpoint and all defaults.
    pub(crate) fn for_tests() -> Self {
        Self {
            name: "test".into(),
            endpoints: vec![EndpointSettings::new(
                "http://127.0.0.1:1",
                Address::Tcp { authority: Authority::from_static("127.0.0.1:1"), scheme: Scheme::Http },
            )],
            protocol: Protocol::Auto,
            host: HostPolicy::Keep,
            zone: None,
            balance: Balance::default(),
            limit: Limit::default(),
            published: Published::default(),
            queue: Queue::default(),
            breaker: Some(breaker::Settings::default()),
            health: None,
            timeout: Timeouts::default(),
            retry: Retry::default(),
            pool: Pool::default(),
            tls: Tls::default(),
            buffer: 16 * 1024,
        }
    }
}
