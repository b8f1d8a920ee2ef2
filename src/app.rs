//! Builds the house from a configuration, serves until told to stop, drains. Owns everything.

use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::access_log::{AccessLog, Format};
use crate::admin::{self, Admin};
use crate::config::{self, Config};
use crate::error::Reason;
use crate::explain;
use crate::metrics::Registry;
use crate::router::Router;
use crate::server::{self, Bound, Entry, Limits, Server};
use crate::snapshot::{Current, Leaf, Snapshot};
use crate::stack::{self, Shared};
use crate::tasks;
use crate::upstream::Upstream;

/// Everything is built and bound; nothing is served yet.
#[derive(Debug)]
pub struct App {
    config: Config,
    server: Arc<Server>,
    listeners: Vec<Bound>,
    admin: Option<admin::Bound>,
    ready: Arc<AtomicBool>,
    access_log: Option<AccessLog>,
}

/// The proxy could not start.
#[derive(Debug)]
pub struct StartError {
    what: String,
    cause: Box<dyn StdError + Send + Sync>,
}

impl StartError {
    fn new(what: impl Into<String>, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self { what: what.into(), cause: cause.into() }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.cause)
    }
}

impl StdError for StartError {}

impl App {
    /// Builds all parts and binds all addresses.
    pub async fn build(config: Config) -> Result<Self, StartError> {
        let registry = Registry::new();
        let access_log = match config.log.access {
            config::AccessLog::Off => None,
            config::AccessLog::Json => Some(Format::Json),
            config::AccessLog::Text => Some(Format::Text),
        };
        let access_log = access_log.map(|format| AccessLog::to_stdout(format, &registry));
        let shared = shared(&config, &registry, access_log.clone())?;
        let current: Current = Arc::new(ArcSwap::from_pointee(snapshot(&config, &shared)));
        let entry = Arc::new(Entry {
            current,
            trusted_proxies: config.server.trusted_proxies.clone(),
            tasks: tasks::Group::default(),
            shutdown: server::Shutdown::default(),
        });
        let server = Server::new(entry, limits(&config), config.server.max_connections, registry.clone());
        let mut listeners = Vec::new();
        for listener in &config.server.listeners {
            let bound = server::bind(listener).await.map_err(|error| {
                StartError::new(format!("cannot listen on {} ({})", listener.address, listener.name), error)
            })?;
            listeners.push(bound);
        }
        let ready = Arc::new(AtomicBool::new(false));
        let admin =
            match &config.admin {
                None => None,
                Some(settings) => {
                    let stack = explain::all(&config);
                    let pages = Admin::new(registry, Arc::clone(&ready), Arc::new(move || stack.clone()));
                    let bound = admin::bind(settings.listen, pages).await;
                    Some(bound.map_err(|error| {
                        StartError::new(format!("cannot listen on {} (admin)", settings.listen), error)
                    })?)
                }
            };
        Ok(Self { config, server: Arc::new(server), listeners, admin, ready, access_log })
    }

    /// Where each listener is bound, by name; the admin port as `admin`.
    #[must_use]
    pub fn addresses(&self) -> Vec<(Arc<str>, std::net::SocketAddr)> {
        let listeners = self.listeners.iter().map(|bound| (Arc::clone(bound.name()), bound.address()));
        let admin = self.admin.iter().map(|bound| ("admin".into(), bound.address()));
        listeners.chain(admin).filter_map(|(name, address)| Some((name, address.ok()?))).collect()
    }

    /// Serves until `stop` completes, then drains: not ready, no new connections, grace for what is in flight. `hurry`,
    /// waited for only then, ends the grace.
    pub async fn run<H: Future<Output = ()>>(self, stop: impl Future<Output = ()>, hurry: impl FnOnce() -> H) {
        for (listener, address) in self.addresses() {
            tracing::info!(%listener, %address, "listening");
        }
        let mut serving = Vec::new();
        for bound in self.listeners {
            let server = Arc::clone(&self.server);
            serving.push(tasks::spawn(async move { server.serve(bound).await }));
        }
        let admin = self.admin.map(|bound| tasks::spawn(bound.serve()));
        self.ready.store(true, Relaxed);
        stop.await;
        self.ready.store(false, Relaxed);
        tracing::info!(grace = ?self.config.server.grace, "draining");
        let cut = self.server.drain(self.config.server.grace, hurry()).await;
        if cut > 0 {
            tracing::warn!(cut, "connections, streams and tunnels were cut at the end of the grace time");
        }
        drop((serving, admin));
        if let Some(log) = self.access_log {
            log.close();
        }
        tracing::info!("stopped");
    }
}

fn shared(config: &Config, registry: &Registry, access_log: Option<AccessLog>) -> Result<Shared, StartError> {
    let upstreams = config
        .upstreams
        .iter()
        .map(|settings| {
            let built = Upstream::new(settings.clone(), registry).map(Arc::new);
            built.map_err(|error| StartError::new(format!("upstream {}", settings.name), error))
        })
        .collect::<Result<_, _>>()?;
    Ok(Shared { registry: registry.clone(), access_log, upstreams })
}

fn snapshot(config: &Config, shared: &Shared) -> Snapshot {
    let stall_timeout = config.server.stream.stall_timeout;
    let leaf = |name: &Arc<str>, stall_timeout, idle, service| {
        Arc::new(Leaf { name: Arc::clone(name), stall_timeout, idle, service })
    };
    let refuse = |reason| leaf(&"-".into(), stall_timeout, None, stack::refuse(reason, shared));
    let routes = config.routes.iter().map(|route| {
        let service = stack::route(route, shared);
        (route.matcher.clone(), leaf(&route.name, route.stall_timeout, route.timeout.idle, service))
    });
    Snapshot {
        router: Router::new(routes),
        no_route: refuse(Reason::NoRoute),
        malformed: refuse(Reason::BadRequest),
        connect: refuse(Reason::MethodRefused),
    }
}

fn limits(config: &Config) -> Limits {
    let server = &config.server;
    let stalls = config.routes.iter().map(|route| route.stall_timeout);
    Limits {
        buffer: server.stream.buffer,
        header_timeout: server.header_timeout,
        idle_timeout: server.idle_timeout,
        max_streams: server.max_streams,
        max_header_size: server.max_header_size,
        stall_timeout: server.stream.stall_timeout,
        longest_stall: stalls.fold(server.stream.stall_timeout, Duration::max),
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
            let limits = limits(&config::parse(&format!("{route}{text}"), "x.toml", Path::new("")).unwrap());
            (limits.stall_timeout.as_secs(), limits.longest_stall.as_secs())
        };
        assert_eq!(stalls(""), (30, 30));
        assert_eq!(stalls("stream.stall_timeout = \"10m\"\n[stream]\nstall_timeout = \"1s\"\n"), (1, 600));
        assert_eq!(stalls("stream.stall_timeout = \"1s\"\n[stream]\nstall_timeout = \"10m\"\n"), (600, 600));
    }
}
