//! The configuration: from TOML text to [`Config`], with every error at once.
//!
//! | file | does |
//! |---|---|
//! | `mod.rs` | [`Config`]: what the rest of the house reads; every default filled in, every name resolved |
//! | `load.rs` | the ways in: [`load()`], [`parse`], [`from_upstream`]; and [`schema`] |
//! | `file.rs` | **the shape of the file**: every table, key, type and default; a new key is one line here |
//! | `section.rs` | the macro behind `file.rs`: decoding, JSON Schema and list of keys from one declaration |
//! | `decode.rs` | what a decoder is; strings by `{ env = ... }` and `{ file = ... }` |
//! | `values.rs` `net.rs` `listen.rs` `web.rs` | the types of values: numbers and lists, addresses, what is about HTTP |
//! | `endpoint.rs` | endpoints in their two forms |
//! | `key.rs` | what is counted, queued or steered apart |
//! | `admin.rs` `breaker.rs` `faults.rs` | what is written about the admin port, breakers, and faults made on purpose |
//! | `agent.rs` | what is written about agents that know the credits of endpoints |
//! | `limiter.rs` | rates, and when they are raised |
//! | `store.rs` | where the shared store is |
//! | `retry.rs` | what is written about retries |
//! | `effective.rs` | every key with its value, secrets hidden |
//! | `units.rs` | durations, sizes and rates, read and printed |
//! | `priority.rs` | how much the requests of a route matter |
//! | `resolve/` | from the shape to [`Config`]: names, and what must fit together |
//! | `error.rs` `suggest.rs` | the report: all errors, each in its place, with what was probably meant |

mod admin;
mod agent;
mod breaker;
mod decode;
mod effective;
mod endpoint;
mod error;
mod faults;
mod file;
mod key;
mod limiter;
mod listen;
mod load;
mod net;
mod priority;
mod resolve;
mod retry;
mod section;
mod store;
mod suggest;
mod units;
mod values;
mod web;
mod weights;
mod window;

pub use self::admin::{OpenPage, Token};
pub use self::error::Error;
pub use self::faults::order as read_fault;
pub use self::listen::{ListenAddress, Peers};
pub use self::load::{from_upstream, keys, load, load_and_look, parse, schema};
pub use self::suggest::nearest;
pub use self::units::{
    duration as read_duration, factor as read_factor, rate as read_rate, show_duration, show_factor, show_rate,
    show_size, size as read_size,
};

use std::fmt;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, StatusCode};

use crate::body::UploadBounds;
use crate::layers::{deadline, fault, forward, headers, priority as classes, rate_limit, rewrite};
use crate::upstream;

/// A complete, checked configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `[server]`
    pub server: Server,
    /// `[log]`
    pub log: Log,
    /// `[store]`; absent, nothing is shared with other instances.
    pub store: Option<crate::store::Settings>,
    /// `[admin]`; absent, no admin port is opened.
    pub admin: Option<Admin>,
    /// `[upstream.NAME]`, in file order.
    pub upstreams: Vec<upstream::Settings>,
    /// `[[route]]`, in file order.
    pub routes: Vec<Route>,
    /// What is no error but probably not meant, each as `FILE:LINE:COLUMN: text`.
    pub warnings: Vec<String>,
    /// Which texts in here came from the environment or from files.
    pub secrets: Secrets,
    /// Every key with its value, as `effective.rs` makes it: secrets are not in it.
    pub effective: serde_json::Value,
    /// The files that it names: certificates, keys, authorities and secrets.
    pub files: Vec<PathBuf>,
}

/// The texts that came from the environment or from files. They are never printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secrets(Vec<Box<str>>);

impl Secrets {
    fn new(texts: Vec<String>) -> Self {
        Self(texts.into_iter().map(Into::into).collect())
    }

    /// Whether this text must not be shown. Hosts were read without regard to case, and paths to their last slash.
    #[must_use]
    pub fn hides(&self, text: &str) -> bool {
        let plain = |text: &str| text.trim_end_matches(['/', '*']).to_ascii_lowercase();
        !text.is_empty() && self.0.iter().any(|secret| plain(secret) == plain(text))
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets({})", self.0.len())
    }
}

/// `[server]`
#[derive(Clone, Debug, PartialEq)]
pub struct Server {
    /// At least one; the short form `listen` gives them the names `listen-1`, `listen-2`, ...
    pub listeners: Vec<Listener>,
    /// Worker threads; none: one per core.
    pub threads: Option<usize>,
    /// Peers whose `X-Forwarded-*` and `Forwarded` fields are believed and passed on.
    pub trusted_proxies: Peers,
    /// Client connections at most, over all listeners.
    pub max_connections: usize,
    /// Of these, for one client address (IPv6: one /64) that is not a trusted proxy.
    pub max_connections_per_client: usize,
    /// Time for the TLS handshake, for the first bytes, and for each request head.
    pub header_timeout: Duration,
    /// How long a connection may stay open without a request.
    pub idle_timeout: Duration,
    /// How long a connection may live, give or take a tenth.
    pub max_age: Option<Duration>,
    /// Requests on one client connection at most.
    pub max_requests: Option<u64>,
    /// Bytes that all connections and requests may hold together; none: half of what the process may use.
    pub memory: Option<u64>,
    /// When requests are turned away because the proxy itself has too much to do.
    pub overload: Overload,
    /// Requests that one client connection may cancel at once.
    pub cancel_budget: NonZeroU32,
    /// h2 streams on one client connection at most.
    pub max_streams: u32,
    /// Bytes of a request head at most.
    pub max_header_size: usize,
    /// Fields of a request head at most.
    pub max_headers: usize,
    /// At shutdown: time for requests in flight to end.
    pub grace: Duration,
    /// The same for streams and tunnels.
    pub stream_grace: Duration,
    /// At shutdown: time between being not ready and accepting nothing more.
    pub drain_delay: Duration,
    /// How often files are looked at for a change; none: never.
    pub watch: Option<Duration>,
    /// `[stream]`
    pub stream: Stream,
}

/// `server.overload`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overload {
    /// How late the proxy's own tasks may run all the time; none: as late as it comes.
    pub delay: Option<Duration>,
    /// The share of the memory budget, in millionths, beyond which background requests find no room.
    pub memory: Option<u32>,
}

/// `[stream]`: how much one stream may hold, and how long its reader may stall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    /// Bytes that one stream may hold in user memory, in one direction; also `TCP_NOTSENT_LOWAT`.
    pub buffer: usize,
    /// A client that takes nothing for this long is cut. Routes may set their own.
    pub stall_timeout: Duration,
    /// What the body of a request is held to. Routes may set their own.
    pub upload: UploadBounds,
}

/// `[[server.listener]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// For routes, logs and metrics.
    pub name: Arc<str>,
    /// Where to listen.
    pub address: ListenAddress,
    /// The permissions of a unix socket.
    pub mode: u32,
    /// Whether other processes may listen on the same port, and the system shares the clients out.
    pub reuse_port: bool,
    /// Peers that begin with a header of the PROXY protocol, and no others may come; empty: nobody sends one.
    pub proxy_protocol: Peers,
    /// Client connections at most; none: as many as the server may have.
    pub max_connections: Option<usize>,
    /// Certificate chains and keys (PEM files), chosen by SNI; the first serves clients that send none. Empty: plain.
    pub tls: Vec<Certificate>,
    /// Whose certificates clients show; none: they are not asked.
    pub client_auth: Option<ClientAuth>,
}

/// `client_auth`: certificates of clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientAuth {
    /// The authorities whose certificates are good, a PEM file.
    pub ca: PathBuf,
    /// Lists of those that are good no more, PEM files.
    pub crl: Vec<PathBuf>,
    /// Whether a client without a certificate is turned away.
    pub required: bool,
}

/// A certificate chain and its key, PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The chain, the server's own certificate first.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// Form of the access log on standard output.
    pub access: AccessLog,
    /// Filter of the event log on standard error, as `info` or `headworks=debug`.
    pub level: String,
}

/// Form of the access log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccessLog {
    /// None.
    Off,
    /// One JSON object a line.
    Json,
    /// One readable line.
    #[default]
    Text,
}

/// `[admin]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// Where to listen.
    pub listen: ListenAddress,
    /// The permissions of a unix socket.
    pub mode: u32,
    /// What must be shown; none only where no other machine can come.
    pub token: Option<Token>,
    /// Pages that need no token.
    pub open: Vec<OpenPage>,
}

/// `[[route]]`
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// For logs, metrics and `explain`; `route-1`, `route-2`, ... when absent.
    pub name: Arc<str>,
    /// What it matches; the default matches everything.
    pub matcher: Match,
    /// What is done with a match.
    pub action: Action,
    /// What is allowed beyond plain requests.
    pub forward: forward::Settings,
    /// How the path is rewritten before it is forwarded.
    pub rewrite: Option<rewrite::Settings>,
    /// Fields set, added and removed.
    pub headers: headers::Settings,
    /// What is done wrong on purpose.
    pub fault: Option<fault::Settings>,
    /// All must have room.
    pub rate_limits: Vec<rate_limit::Settings>,
    /// Overrides the upstream's.
    pub timeout: upstream::Timeouts,
    /// How much its requests matter.
    pub priority: classes::Settings,
    /// So many of a million requests must succeed, or a part is not tried.
    pub success_rate: Option<NonZeroU32>,
    /// What clients say of the time that they wait.
    pub deadline: deadline::Settings,
    /// Overrides the upstream's.
    pub retry: upstream::Retry,
    /// A client that takes nothing for this long is cut.
    pub stall_timeout: Duration,
    /// What the body of a request is held to.
    pub upload: UploadBounds,
    /// Whether a client that closes its sending half still waits for its answer.
    pub allow_half_close: bool,
    /// Whether answers say how much the upstream has to do.
    pub publish_pressure: bool,
}

impl Route {
    /// The upstream it forwards to.
    #[must_use]
    pub fn upstream<'a>(&self, upstreams: &'a [upstream::Settings]) -> Option<&'a upstream::Settings> {
        match self.action {
            Action::Forward(index) => upstreams.get(index),
            _ => None,
        }
    }
}

/// What a route matches. Every part that is set must match.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Match {
    /// Name of a listener.
    pub listener: Option<Arc<str>>,
    /// The request's host, without port.
    pub host: Option<HostPattern>,
    /// The request's path.
    pub path: Option<PathPattern>,
    /// Any of these; empty: every method.
    pub methods: Vec<Method>,
    /// All of these fields.
    pub headers: Vec<HeaderMatch>,
}

/// `api.example.com` or `*.example.com`, in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostPattern {
    /// This name.
    Exact(Box<str>),
    /// Any name that ends with `.` and this.
    Suffix(Box<str>),
}

/// `/path` or `/prefix/*`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathPattern {
    /// This path.
    Exact(Box<str>),
    /// `/prefix` itself and everything below `/prefix/`; held without the trailing slash, empty for `/*`.
    Prefix(Box<str>),
}

/// A field that must be there, with this value or with any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderMatch {
    /// Its name.
    pub name: HeaderName,
    /// Its value; none: any.
    pub value: Option<HeaderValue>,
}

/// What a route does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Forwards to an upstream, by its place in [`Config::upstreams`].
    Forward(usize),
    /// Answers by itself.
    Respond {
        /// The status.
        status: StatusCode,
        /// `Content-Type`, when there is a body.
        content_type: HeaderValue,
        /// The body.
        body: Arc<str>,
    },
    /// Sends the client elsewhere.
    Redirect {
        /// 301, 302, 303, 307 or 308.
        status: StatusCode,
        /// The target; `{host}`, `{path}` and `{query}` stand for the request's own.
        to: Arc<str>,
    },
}

#[cfg(test)]
mod tests;
