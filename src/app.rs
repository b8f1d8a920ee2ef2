//! Builds the house from a configuration, serves until told to stop, drains. Owns everything.

use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use arc_swap::ArcSwap;

use crate::access_log::{AccessLog, Format};
use crate::admin::{self, Admin};
use crate::config::{self, Config, ListenAddress};
use crate::context::Connections;
use crate::explain;
use crate::live::Live;
use crate::metrics::Registry;
use crate::server::{self, Entry, Listeners, Prepared, Server};
use crate::snapshot::{Current, Snapshot};
use crate::stack::Shared;
use crate::tasks;

/// Everything is built and bound; nothing is served yet.
#[derive(Debug)]
pub struct App {
    config: Config,
    server: Arc<Server>,
    listeners: Listeners,
    prepared: Prepared,
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
        let live = Live::new(registry.clone(), access_log.clone());
        let plan = live.plan(&config).map_err(|(name, error)| StartError::new(format!("upstream {name}"), error))?;
        let shared = Shared {
            registry: registry.clone(),
            records: plan.records().clone(),
            upstreams: plan.upstreams(),
            limiters: plan.limiters().clone(),
        };
        let doors = server::doors(&config.server.listeners)
            .map_err(|(name, error)| StartError::new(format!("listener {name}"), error))?;
        live.commit(&config, plan);
        let current: Current = Arc::new(ArcSwap::from_pointee(Snapshot::new(&config, &shared, doors.clone(), 1)));
        let connections = Arc::new(Connections::default());
        let entry = Arc::new(Entry {
            current,
            connections: Arc::clone(&connections),
            tasks: tasks::Group::default(),
            shutdown: server::Shutdown::default(),
        });
        let server = Arc::new(Server::new(entry, config.server.max_connections, registry.clone()));
        let listeners = Listeners::new(Arc::clone(&server));
        let prepared = listeners
            .prepare(&doors)
            .map_err(|error| StartError::new(format!("cannot listen on {}", error.what), error.cause))?;
        let ready = Arc::new(AtomicBool::new(false));
        let admin =
            match &config.admin {
                None => None,
                Some(settings) => {
                    let desk = Desk { ready: Arc::clone(&ready), stack: explain::all(&config) };
                    let pages = Admin::new(registry, Arc::new(desk), connections);
                    let bound = admin::bind(settings.listen, pages).await;
                    Some(bound.map_err(|error| {
                        StartError::new(format!("cannot listen on {} (admin)", settings.listen), error)
                    })?)
                }
            };
        Ok(Self { config, server, listeners, prepared, admin, ready, access_log })
    }

    /// Where each listener is bound, by name; the admin port as `admin`.
    #[must_use]
    pub fn addresses(&self) -> Vec<(Arc<str>, ListenAddress)> {
        let mut addresses = self.prepared.addresses();
        addresses.extend(self.admin.iter().filter_map(|bound| Some(("admin".into(), bound.address().ok()?.into()))));
        addresses
    }

    /// Serves until `stop` completes, then drains: not ready, no new connections, grace for what is in flight. `hurry`,
    /// waited for only then, ends the grace.
    pub async fn run<H: Future<Output = ()>>(self, stop: impl Future<Output = ()>, hurry: impl FnOnce() -> H) {
        self.listeners.apply(self.prepared);
        if let Some(Ok(address)) = self.admin.as_ref().map(admin::Bound::address) {
            tracing::info!(listener = "admin", %address, "listening");
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
        drop((self.listeners, admin));
        if let Some(log) = self.access_log {
            log.close();
        }
        tracing::info!("stopped");
    }
}

/// What the operator can ask of the app.
struct Desk {
    ready: Arc<AtomicBool>,
    stack: String,
}

impl admin::Operator for Desk {
    fn is_ready(&self) -> bool {
        self.ready.load(Relaxed)
    }

    fn stack(&self) -> String {
        self.stack.clone()
    }
}
