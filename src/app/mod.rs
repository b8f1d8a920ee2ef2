//! Builds the house from a configuration, serves until told to stop, drains. Owns everything.
//!
//! | file | does |
//! |---|---|
//! | `mod.rs` | [`App`]: build, run, drain |
//! | `upgrade.rs` | hands the sockets over to another version of the program |
//! | `notify.rs` | tells systemd, or the program before this one, how it is |
//! | `desk.rs` `faults.rs` | what the operator can ask for on the admin port |

mod desk;
mod faults;
mod notify;
mod upgrade;

use std::collections::VecDeque;
use std::error::Error as StdError;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::access_log::{AccessLog, Format};
use crate::admin::{self, Admin};
use crate::config::{self, Config, ListenAddress};
use crate::context::Connections;
use crate::metrics::Registry;
use crate::reload::{Handle, House, Parts, SetLevel, Trigger};
use crate::server::overload::Delay;
use crate::server::{self, Cut, Entry, Grace, Inherited, Listeners, Listening, Prepared, Server};
use crate::snapshot::Current;
use crate::tasks;
use desk::Desk;
use notify::Notifier;
use upgrade::Program;

/// What an app is built from.
pub struct Setup {
    /// What to serve.
    pub config: Config,
    /// Where that was read; none when it came from the command line, and cannot be read again.
    pub source: Option<PathBuf>,
    /// Sockets that need not be bound.
    pub inherited: Inherited,
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
    /// Hand over to another process of the program, then drain.
    Upgrade,
}

/// Everything is built and bound; nothing is served yet.
#[derive(Debug)]
pub struct App {
    current: Current,
    server: Arc<Server>,
    listeners: Arc<Listeners>,
    prepared: Prepared,
    reload: Handle,
    delay: Delay,
    admin: Option<admin::Bound>,
    ready: Arc<AtomicBool>,
    access_log: Option<AccessLog>,
    inherited: Arc<Inherited>,
    notifier: Notifier,
    program: Option<Program>,
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
        let inherited = Arc::new(setup.inherited);
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
        let listeners = Arc::new(Listeners::new(Arc::clone(&server), Arc::clone(&inherited)));
        let prepared = listeners
            .prepare(&doors)
            .map_err(|error| StartError::new(format!("cannot listen on {}", error.what), error.cause))?;
        let (source, set_level) = (setup.source, setup.set_level);
        let delay = Delay::new(Arc::clone(&current), Arc::clone(house.strain()), &registry);
        let parts = Parts { source, house, server: Arc::clone(&server), listeners: Arc::clone(&listeners), set_level };
        let reload = Handle::new(parts, Arc::clone(&current), &registry);
        let ready = Arc::new(AtomicBool::new(false));
        let desk = Desk { ready: Arc::clone(&ready), current: Arc::clone(&current), reload: reload.clone() };
        let admin = match &config.admin {
            None => None,
            Some(settings) => {
                let pages = Admin::new(settings, registry, Arc::new(desk), connections);
                let bound = admin::bind(settings, &inherited, pages);
                let what = || format!("cannot listen on {} (admin)", settings.listen);
                Some(bound.map_err(|error| StartError::new(what(), error))?)
            }
        };
        // As it is written now: a relative path means another file after a change of folder.
        let program = Program::current().inspect_err(|error| tracing::warn!(%error, "cannot be upgraded")).ok();
        let notifier = Notifier::from_env();
        Ok(Self {
            current,
            server,
            listeners,
            prepared,
            reload,
            delay,
            admin,
            ready,
            access_log,
            inherited,
            notifier,
            program,
        })
    }

    /// Where each listener is bound, by name; the admin port as `admin`.
    #[must_use]
    pub fn addresses(&self) -> Vec<(Arc<str>, ListenAddress)> {
        let mut addresses = self.prepared.addresses();
        addresses.extend(self.admin.iter().filter_map(|bound| Some(("admin".into(), bound.address().ok()?))));
        addresses
    }

    /// Serves and follows `orders` until one says to stop, or another process has taken over; then drains: not ready, no
    /// new connections, grace for what is in flight. A further order to stop ends the grace.
    pub async fn run(mut self, mut orders: impl AsyncFnMut() -> Order) {
        self.listeners.apply(std::mem::take(&mut self.prepared));
        let admin = self.admin.take();
        if let Some(Ok(address)) = admin.as_ref().map(admin::Bound::address) {
            tracing::info!(listener = %"admin", %address, "listening");
        }
        self.inherited.close_rest();
        let admin_socket = admin.as_ref().map(admin::Bound::socket);
        let mut admin = admin.map(|bound| tasks::spawn(bound.serve()));
        let watch = tasks::spawn(self.reload.clone().watch());
        let _measured = tasks::spawn(self.delay.clone().measure());
        self.ready.store(true, Relaxed);
        self.notifier.ready();
        let heir = self.until_stop(&mut orders, admin_socket.as_deref()).await;
        drop(watch);
        self.ready.store(false, Relaxed);
        match heir {
            None => self.notifier.say("STOPPING=1"),
            Some(pid) => {
                tracing::info!(pid, "handed over");
                self.notifier.say(&format!("MAINPID={pid}"));
                // Operators ask the one that serves; and its files of sockets are the same.
                admin = None;
                self.listeners.keep_files();
                if let Some(socket) = &admin_socket {
                    socket.keep_file();
                }
            }
        }
        let delay = if heir.is_some() { Duration::ZERO } else { self.current.load().config.server.drain_delay };
        self.drain(delay, async { while orders().await != Order::Stop {} }).await;
        drop((self.listeners, admin));
        if let Some(log) = self.access_log {
            log.close();
        }
        tracing::info!("stopped");
    }

    /// Follows orders until one says to stop, or a process has taken over, which is then named. What is ordered while
    /// another is carried out waits for its turn; but not the end, since a reload may wait for a disk that is gone.
    async fn until_stop(&self, orders: &mut impl AsyncFnMut() -> Order, admin: Option<&Listening>) -> Option<u32> {
        let mut later = VecDeque::new();
        loop {
            let order = match later.pop_front() {
                Some(order) => order,
                None => orders().await,
            };
            if order == Order::Stop {
                return None;
            }
            let mut work = std::pin::pin!(self.carry_out(order, admin));
            let heir = loop {
                tokio::select! {
                    heir = &mut work => break heir,
                    further = orders() => match further {
                        Order::Stop => return None,
                        Order::Upgrade if order == Order::Upgrade => {}
                        further if later.contains(&further) => {}
                        further => later.push_back(further),
                    },
                }
            };
            if heir.is_some() {
                return heir;
            }
        }
    }

    /// Names the process that has taken over by it.
    async fn carry_out(&self, order: Order, admin: Option<&Listening>) -> Option<u32> {
        match order {
            Order::Stop => None,
            Order::Reload => {
                self.notifier.say("RELOADING=1");
                self.reload.reload(Trigger::Signal).await;
                self.notifier.say("READY=1");
                None
            }
            Order::Upgrade => {
                let upgrade = self.upgrade(admin).await;
                upgrade.inspect_err(|error| tracing::error!(%error, "no upgrade, this process goes on")).ok()
            }
        }
    }

    async fn upgrade(&self, admin: Option<&Listening>) -> Result<u32, Box<dyn StdError + Send + Sync>> {
        let program = self.program.clone().ok_or("the path of the program is not known")?;
        let mut sockets = self.listeners.duplicates()?;
        if let Some(admin) = admin {
            sockets.push(admin.handed("admin")?);
        }
        tracing::info!(sockets = sockets.len(), "starting the program that takes over");
        upgrade::hand_over(program, sockets, &self.notifier).await
    }

    async fn drain(&self, delay: Duration, hurry: impl Future<Output = ()>) {
        let mut hurry = std::pin::pin!(hurry);
        let grace = {
            let server = &self.current.load().config.server;
            Grace { requests: server.grace, streams: server.stream_grace }
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
        self.listeners.let_go();
        let cut = self.server.drain(grace, hurry).await;
        if cut != Cut::default() {
            let Cut { requests, streams } = cut;
            tracing::warn!(requests, streams, "requests and streams were cut before their end");
        }
    }
}
