//! What is in force now, behind one pointer: a change of configuration is one swap. A request keeps the snapshot that
//! it began with; a connection keeps the limits and the certificates that it was accepted with.
//!
//! What must outlive a snapshot (credits, queues, buckets, pools) is only pointed to from here, and kept by
//! [`live`](crate::live).

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio_rustls::TlsAcceptor;

use crate::config::{self, Config, Peers};
use crate::context::Shares;
use crate::error::Reason;
use crate::layers::rate_limit::Limiter;
use crate::live::FaultsByRoute;
use crate::router::Router;
use crate::stack::{self, RouteService, Shared};
use crate::upstream::Upstream;

/// See the module's text.
#[derive(Debug)]
pub struct Snapshot {
    /// 1 at the start, and one more with each change.
    pub generation: u64,
    /// What it was made from.
    pub config: Arc<Config>,
    /// In the order of the configuration.
    pub upstreams: Vec<Arc<Upstream>>,
    /// What is done wrong on each route.
    pub faults: FaultsByRoute,
    /// The rate limits, in the order of the configuration.
    pub limiters: Vec<Arc<Limiter>>,
    /// All routes.
    pub router: Router<Arc<Leaf>>,
    /// What serves a request that no route matches.
    pub no_route: Arc<Leaf>,
    /// What serves a request that can be read in two ways.
    pub malformed: Arc<Leaf>,
    /// What serves a request for a tunnel to anywhere (CONNECT).
    pub connect: Arc<Leaf>,
    /// Peers whose word on their clients is believed.
    pub trusted_proxies: Peers,
    /// What every connection is held to.
    pub limits: Limits,
    /// One for each listener.
    pub doors: Vec<Arc<Door>>,
}

/// The place that everything reads its snapshot from.
pub type Current = Arc<ArcSwap<Snapshot>>;

impl Snapshot {
    /// What `config` says, with the state that `shared` keeps and the doors that were built for its listeners.
    #[must_use]
    pub fn new(config: &Arc<Config>, shared: &Shared, doors: Vec<Arc<Door>>, generation: u64) -> Self {
        let stall_timeout = config.server.stream.stall_timeout;
        let refuse = |reason| {
            let service = stack::refuse(reason, shared);
            Arc::new(Leaf { name: "-".into(), stall_timeout, idle: None, allow_half_close: false, service })
        };
        let routes = config.routes.iter().map(|route| {
            let leaf = Leaf {
                name: Arc::clone(&route.name),
                stall_timeout: route.stall_timeout,
                idle: route.timeout.idle,
                allow_half_close: route.allow_half_close,
                service: stack::route(route, shared),
            };
            (route.matcher.clone(), Arc::new(leaf))
        });
        let limiters = config.routes.iter().filter_map(|route| shared.limiters.get(&route.name)).flatten().cloned();
        Self {
            generation,
            config: Arc::clone(config),
            upstreams: shared.upstreams.clone(),
            faults: shared.faults.clone(),
            limiters: limiters.collect(),
            router: Router::new(routes),
            no_route: refuse(Reason::NoRoute),
            malformed: refuse(Reason::BadRequest),
            connect: refuse(Reason::MethodRefused),
            trusted_proxies: config.server.trusted_proxies.clone(),
            limits: Limits::new(config),
            doors,
        }
    }

    /// Whether a peer's `X-Forwarded-*` fields are believed.
    #[must_use]
    pub fn trusts(&self, peer: Option<IpAddr>) -> bool {
        self.trusted_proxies.contain(peer)
    }

    /// The door of the listener with this name.
    #[must_use]
    pub fn door(&self, listener: &str) -> Option<&Arc<Door>> {
        self.doors.iter().find(|door| *door.settings.name == *listener)
    }
}

/// What a listener holds a connection to. Taken from the snapshot in force for each connection that is accepted, so
/// that other certificates need no other socket.
pub struct Door {
    /// What the configuration says of the listener.
    pub settings: config::Listener,
    /// Its certificates; none when it is plain.
    pub tls: Option<TlsAcceptor>,
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// What every connection of the proxy is held to.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes a stream may hold in user memory in one direction.
    pub buffer: usize,
    /// For the handshake, the first bytes, and each request head.
    pub header_timeout: Duration,
    /// How long a connection may be without a request.
    pub idle_timeout: Duration,
    /// How long a connection may live, give or take a tenth.
    pub max_age: Option<Duration>,
    /// How many requests it may bring.
    pub max_requests: Option<u64>,
    /// What connections and requests reserve.
    pub shares: Shares,
    /// Cancelled requests that it may bring at once.
    pub cancel_budget: NonZeroU32,
    /// Connections at most of one client that is not a trusted proxy.
    pub max_connections_per_client: usize,
    /// h2 streams at most.
    pub max_streams: u32,
    /// Bytes of a request head at most.
    pub max_header_size: usize,
    /// Fields of a request head at most.
    pub max_headers: usize,
    /// Whether any route serves clients that have closed their sending half.
    pub half_close: bool,
    /// How long a client may take nothing, where no route says otherwise.
    pub stall_timeout: Duration,
    /// The longest that any route allows.
    pub longest_stall: Duration,
}

impl Limits {
    /// What `config` says, in one place.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let server = &config.server;
        let stalls = config.routes.iter().map(|route| route.stall_timeout);
        Self {
            buffer: server.stream.buffer,
            header_timeout: server.header_timeout,
            idle_timeout: server.idle_timeout,
            max_age: server.max_age,
            max_requests: server.max_requests,
            shares: Shares::new(server.stream.buffer, server.max_header_size),
            cancel_budget: server.cancel_budget,
            max_connections_per_client: server.max_connections_per_client,
            max_streams: server.max_streams,
            max_header_size: server.max_header_size,
            max_headers: server.max_headers,
            half_close: config.routes.iter().any(|route| route.allow_half_close),
            stall_timeout: server.stream.stall_timeout,
            longest_stall: stalls.fold(server.stream.stall_timeout, Duration::max),
        }
    }
}

/// A route as the front door sees it.
pub struct Leaf {
    /// Its name.
    pub name: Arc<str>,
    /// How long a client of this route may take nothing.
    pub stall_timeout: Duration,
    /// Longest silence in a tunnel.
    pub idle: Option<Duration>,
    /// Whether a client of HTTP/1.1 that has closed its sending half still waits for its answer.
    pub allow_half_close: bool,
    /// Its layers.
    pub service: RouteService,
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaf").field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn nothing_of_a_connection_is_less_patient_than_the_most_patient_route() {
        let stalls = |text: &str| {
            let route = "[[route]]\nrespond.status = 204\n";
            let limits = Limits::new(&config::parse(&format!("{route}{text}"), "x.toml", Path::new("")).unwrap());
            (limits.stall_timeout.as_secs(), limits.longest_stall.as_secs())
        };
        assert_eq!(stalls(""), (30, 30));
        assert_eq!(stalls("stream.stall_timeout = \"10m\"\n[stream]\nstall_timeout = \"1s\"\n"), (1, 600));
        assert_eq!(stalls("stream.stall_timeout = \"1s\"\n[stream]\nstall_timeout = \"10m\"\n"), (600, 600));
    }
}
