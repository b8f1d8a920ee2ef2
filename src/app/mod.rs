//! Builds the house from a configuration, serves until told to stop, drains. Owns everything.
//!
//! | file | does |
//! |---|---|
//! | `mod.rs` | [`App`]: build, run, drain |
//! | `desk.rs` | what the operator can ask for on the admin port |

mod desk;

use std::error::Error as StdError;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use arc_swap::ArcSwap;

use crate::access_log::{AccessLog, Format};
use crate::admin::{self, Admin};
use crate::config::{self, Config, ListenAddress};
use crate::context::Connections;
use crate::metrics::Registry;
use crate::reload::{Handle, House, Parts, SetLevel, Trigger};
use crate::server::{self, Cut, Entry, Grace, Listeners, Prepared, Server};
use crate::snapshot::Current;
use crate::tasks;
use desk::Desk;

/// What an app is built from.
pub struct Setup {
    /// What to serve.
    pub config: Config,
    /// Where that was read; none when it came from the command line, and cannot be read again.
    pub source: Option<PathBuf>,
    /// Sets the filter of the event log.
    pub set_level: SetLevel,
}

impl fmt::Debug for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Setup").field("source", &self.source).finish_non_exhaustive()
    }
}

/// What the process is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Drain, then end; the second time, end at once.
    Stop,
    /// Read the configuration anew.
    Reload,
}

/// Everything is built and bound; nothing is served yet.
#[derive(Debug)]
pub struct App {
    current: Current,
    server: Arc<Server>,
    listeners: Arc<Listeners>,
    prepared: Prepared,
    reload: Handle,
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
    pub fn build(setup: Setup) -> Result<Self, StartError> {
        let config = Arc::new(setup.config);
        let registry = Registry::new();
        let access_log = match config.log.access {
            config::AccessLog::Off => None,
            config::AccessLog::Json => Some(Format::Json),
            config::AccessLog::Text => Some(Format::Text),
        };
        let access_log = access_log.map(|format| AccessLog::to_stdout(format, &registry));
        let house = House::new(registry.clone(), access_log.clone());
        let built = house.build(&config).map_err(|error| StartError::new(error.what, error.cause))?;
        let doors = built.doors.clone();
        let current: Current = Arc::new(ArcSwap::from_pointee(house.furnish(&config, built, 1)));
        let connections = Arc::new(Connections::default());
        let entry = Arc::new(Entry {
            current: Arc::clone(&current),
            connections: Arc::clone(&connections),
            tasks: tasks::Group::default(),
            shutdown: server::Shutdown::default(),
        });
        let server = Arc::new(Server::new(entry, config.server.max_connections, registry.clone()));
        server.set_memory(config.server.memory);
        let listeners = Arc::new(Listeners::new(Arc::clone(&server)));
        let prepared = listeners
            .prepare(&doors)
            .map_err(|error| StartError::new(format!("cannot listen on {}", error.what), error.cause))?;
        let (source, set_level) = (setup.source, setup.set_level);
        let parts = Parts { source, house, server: Arc::clone(&server), listeners: Arc::clone(&listeners), set_level };
        let reload = Handle::new(parts, Arc::clone(&current), &registry);
        let ready = Arc::new(AtomicBool::new(false));
        let desk = Desk { ready: Arc::clone(&ready), current: Arc::clone(&current), reload: reload.clone() };
        let admin = match &config.admin {
            None => None,
            Some(settings) => {
                let pages = Admin::new(settings, registry, Arc::new(desk), connections);
                let bound = admin::bind(settings, pages);
                let what = || format!("cannot listen on {} (admin)", settings.listen);
                Some(bound.map_err(|error| StartError::new(what(), error))?)
            }
        };
        Ok(Self { current, server, listeners, prepared, reload, admin, ready, access_log })
    }

    /// Where each listener is bound, by name; the admin port as `admin`.
    #[must_use]
    pub fn addresses(&self) -> Vec<(Arc<str>, ListenAddress)> {
        let mut addresses = self.prepared.addresses();
        addresses.extend(self.admin.iter().filter_map(|bound| Some(("admin".into(), bound.address().ok()?))));
        addresses
    }

    /// Serves and follows `orders` until one says to stop, then drains: not ready, no new connections, grace for what is
    /// in flight. A second order to stop ends the grace.
    pub async fn run(mut self, mut orders: impl AsyncFnMut() -> Order) {
        self.listeners.apply(std::mem::take(&mut self.prepared));
        let admin = self.admin.take();
        if let Some(Ok(address)) = admin.as_ref().map(admin::Bound::address) {
            tracing::info!(listener = "admin", %address, "listening");
        }
        let admin = admin.map(|bound| tasks::spawn(bound.serve()));
        let watch = tasks::spawn(self.reload.clone().watch());
        self.ready.store(true, Relaxed);
        while orders().await == Order::Reload {
            self.reload.reload(Trigger::Signal).await;
        }
        drop(watch);
        self.ready.store(false, Relaxed);
        self.drain(async { while orders().await != Order::Stop {} }).await;
        drop((self.listeners, admin));
        if let Some(log) = self.access_log {
            log.close();
        }
        tracing::info!("stopped");
    }

    async fn drain(&self, hurry: impl Future<Output = ()>) {
        let mut hurry = std::pin::pin!(hurry);
        let (delay, grace) = {
            let server = &self.current.load().config.server;
            (server.drain_delay, Grace { requests: server.grace, streams: server.stream_grace })
        };
        tracing::info!(?delay, grace = ?grace.requests, stream_grace = ?grace.streams, "draining");
        let hurried = tokio::select! {
            () = tokio::time::sleep(delay) => false,
            () = &mut hurry => true,
        };
        let hurry = async {
            if !hurried {
                hurry.await;
            }
        };
        let cut = self.server.drain(grace, hurry).await;
        if cut != Cut::default() {
            let Cut { requests, streams } = cut;
            tracing::warn!(requests, streams, "requests and streams were cut at the end of the grace time");
        }
    }
}
