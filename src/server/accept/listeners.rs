//! The listeners that are open. A change of configuration opens what is wanted and closes what is not, and does not
//! touch the rest.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::bind::Listening;
use super::inherited::Inherited;
use super::listener::Server;
use crate::config::{self, ListenAddress};
use crate::server::shutdown::Shutdown;
use crate::snapshot::Door;

/// All listeners of the proxy.
#[derive(Debug)]
pub struct Listeners {
    server: Arc<Server>,
    inherited: Arc<Inherited>,
    open: Mutex<Vec<Open>>,
    /// Sockets of listeners that are closed, as long as their last clients are let in.
    closing: Mutex<Vec<(ListenAddress, Weak<Listening>)>>,
}

/// A listener that is served.
#[derive(Debug)]
struct Open {
    name: Arc<str>,
    /// As the configuration has it: port 0 is another one each time it is bound.
    address: ListenAddress,
    socket: Arc<Listening>,
    /// Its own part of the proxy's end.
    shutdown: Shutdown,
}

/// A socket that is bound and not yet served.
#[derive(Debug)]
pub(super) struct Bound {
    /// What it was opened with; the snapshot has what is in force, until the listener is closed.
    pub(super) door: Arc<Door>,
    pub(super) socket: Arc<Listening>,
    pub(super) shutdown: Shutdown,
}

impl Bound {
    pub(super) fn name(&self) -> &str {
        &self.door.settings.name
    }
}

/// What a configuration wants, all its sockets bound.
#[derive(Debug, Default)]
pub struct Prepared(Vec<Wanted>);

#[derive(Debug)]
struct Wanted {
    door: Arc<Door>,
    socket: Arc<Listening>,
}

/// A socket could not be bound.
#[derive(Debug)]
pub struct BindError {
    /// The address and the listener's name.
    pub what: String,
    /// Why not.
    pub cause: io::Error,
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot listen on {}: {}", self.what, self.cause)
    }
}

impl std::error::Error for BindError {}

impl Prepared {
    /// Where each listener is bound, by name; tells the port that the system chose for port 0.
    #[must_use]
    pub fn addresses(&self) -> Vec<(Arc<str>, ListenAddress)> {
        let address =
            |Wanted { door, socket }: &Wanted| Some((Arc::clone(&door.settings.name), socket.address().ok()?));
        self.0.iter().filter_map(address).collect()
    }
}

impl Listeners {
    /// None is open yet; those that are inherited need not be bound.
    #[must_use]
    pub fn new(server: Arc<Server>, inherited: Arc<Inherited>) -> Self {
        Self { server, inherited, open: Mutex::default(), closing: Mutex::default() }
    }

    /// Another descriptor of each socket, with the listener's name.
    pub fn duplicates(&self) -> io::Result<Vec<(String, OwnedFd)>> {
        self.lock().iter().map(|open| open.socket.handed(&open.name)).collect()
    }

    /// Leaves the files of unix sockets in place at the end: another process listens on them.
    pub fn keep_files(&self) {
        self.lock().iter().for_each(|open| open.socket.keep_file());
    }

    /// The proxy ends: leaves each socket to its accept loop alone, so that it is closed when the loop ends, and clients
    /// are refused rather than left waiting for nobody. A reload that is still under way opens no other.
    pub fn let_go(&self) {
        let mut open = self.lock();
        self.server.shutdown().drain.cancel();
        open.clear();
    }

    /// Binds what is wanted and not bound yet, which changes nothing for anybody. A listener that is only called
    /// otherwise keeps its socket.
    pub fn prepare(&self, wanted: &[Arc<Door>]) -> Result<Prepared, BindError> {
        let mut prepared = Vec::with_capacity(wanted.len());
        for door in wanted {
            let socket = match self.socket(&door.settings) {
                Some(socket) => socket,
                None => Arc::new(self.bind(&door.settings)?),
            };
            prepared.push(Wanted { door: Arc::clone(door), socket });
        }
        Ok(Prepared(prepared))
    }

    fn bind(&self, settings: &config::Listener) -> Result<Listening, BindError> {
        if let Some(inherited) = self.inherited.take(&settings.address, &settings.name) {
            inherited.adjust(settings);
            return Ok(inherited);
        }
        let what = || format!("{} ({})", settings.address, settings.name);
        Listening::open(settings).map_err(|cause| BindError { what: what(), cause })
    }

    fn socket(&self, wanted: &config::Listener) -> Option<Arc<Listening>> {
        let open = self.lock();
        let same = |known: &&Open| known.address == wanted.address;
        let found = open.iter().find(|known| same(known) && known.name == wanted.name);
        let found = found.or_else(|| open.iter().find(|known| same(known) && !wanted.address.is_any_port()));
        found.map(|known| Arc::clone(&known.socket)).or_else(|| self.closing(&wanted.address))
    }

    /// One that was closed a moment ago, and whose address could not be bound yet.
    fn closing(&self, wanted: &ListenAddress) -> Option<Arc<Listening>> {
        let closing = self.closing.lock().unwrap_or_else(PoisonError::into_inner);
        closing
            .iter()
            .filter(|(address, _)| address == wanted && !wanted.is_any_port())
            .find_map(|(_, at)| at.upgrade())
    }

    /// Serves what was prepared, and closes what is not among it: nothing more is accepted there, and whoever is
    /// connected is served to the end of its requests.
    pub fn apply(&self, prepared: Prepared) {
        let mut open = self.lock();
        if self.server.shutdown().drain.is_cancelled() {
            return;
        }
        let mut before = std::mem::take(&mut *open);
        for Wanted { door, socket } in prepared.0 {
            let config::Listener { name, address, .. } = door.settings.clone();
            let same = |known: &Open| known.name == name && Arc::ptr_eq(&known.socket, &socket);
            socket.adjust(&door.settings);
            if let Some(at) = before.iter().position(same) {
                open.push(before.swap_remove(at));
                continue;
            }
            if let Ok(address) = socket.address() {
                tracing::info!(listener = %name, %address, "listening");
            }
            let shutdown = self.server.shutdown().part();
            let bound = Bound { door, socket: Arc::clone(&socket), shutdown: shutdown.clone() };
            let server = Arc::clone(&self.server);
            self.server.entry().tasks.spawn(async move { server.serve(bound).await });
            open.push(Open { name, address, socket, shutdown });
        }
        let mut closing = self.closing.lock().unwrap_or_else(PoisonError::into_inner);
        closing.retain(|(_, socket)| socket.strong_count() > 0);
        for Open { name, shutdown, address, socket } in before {
            tracing::info!(listener = %name, "closed");
            closing.push((address, Arc::downgrade(&socket)));
            shutdown.drain.cancel();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
