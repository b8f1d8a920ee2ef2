//! Accepts. Once all places are taken each listener holds one accepted connection back and accepts no more:
//! what is too much waits in the kernel's backlog and not in memory.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout};

use super::arrivals::Arrivals;
use super::clients::Clients;
use super::listeners::Bound;
use super::places::{Place, Places};
use super::shortage::{Shortage, Trouble};
use crate::metrics::Registry;
use crate::server::connection::LAST_CALL;
use crate::server::connection::endings::Endings;
use crate::server::entry::Entry;
use crate::server::memory;
use crate::server::shutdown::Shutdown;

/// How often a listener that is full looks whether its cap has changed.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// After so long without a connection there is none that waits.
const QUEUE_IS_EMPTY: Duration = Duration::from_millis(10);

/// What all listeners share.
#[derive(Debug)]
pub struct Server {
    entry: Arc<Entry>,
    places: Places,
    clients: Clients,
    endings: Arc<Endings>,
    registry: Registry,
}

impl Server {
    /// A server with room for `max_connections`.
    #[must_use]
    pub fn new(entry: Arc<Entry>, max_connections: usize, registry: Registry) -> Self {
        let endings = Arc::new(Endings::new(&registry));
        Self { entry, places: Places::new(max_connections), clients: Clients::default(), endings, registry }
    }

    /// Sets how many connections there may be. Those above a lower number are left to end by themselves.
    pub fn set_max_connections(&self, max_connections: usize) {
        self.places.set_cap(max_connections);
    }

    /// Sets what all may hold together.
    pub fn set_memory(&self, bytes: Option<u64>) {
        self.entry.connections.memory().set_limit(bytes.unwrap_or_else(memory::auto));
    }

    pub(in crate::server) fn entry(&self) -> &Entry {
        &self.entry
    }

    pub(in crate::server) fn shutdown(&self) -> &Shutdown {
        &self.entry.shutdown
    }

    /// Accepts until the listener is closed or the drain begins, and then those who stand in the kernel's queue, for a
    /// moment: they have been let in already as far as they know, and would see a reset.
    pub(super) async fn serve(&self, bound: Bound) {
        let (entry, endings) = (Arc::clone(&self.entry), Arc::clone(&self.endings));
        let arrivals = Arc::new(Arrivals::new(entry, bound, self.clients.clone(), endings, &self.registry));
        let bound = arrivals.bound();
        let places = Places::new(arrivals.max_connections());
        let mut shortage = Shortage::new();
        let mut ends_at = None;
        loop {
            let next = async {
                let socket = bound.socket.accept().await?;
                let places = [own_place(&places, &arrivals).await, self.places.take().await];
                let reserved = self.entry.connections.memory().admit(arrivals.share()).await;
                Ok((socket, (places, reserved)))
            };
            let last = async {
                bound.shutdown.drain.cancelled().await;
                let end = *ends_at.get_or_insert_with(|| Instant::now() + LAST_CALL);
                sleep_until(end.min(Instant::now() + QUEUE_IS_EMPTY)).await;
            };
            let accepted: io::Result<_> = tokio::select! {
                next = next => next,
                () = last => return,
            };
            match accepted {
                Ok((socket, taken)) => {
                    shortage.is_over();
                    arrivals.enter(socket, taken);
                }
                Err(error) => tokio::select! {
                    () = bound.shutdown.drain.cancelled() => return,
                    () = wait_out(&arrivals, &mut shortage, &error) => {}
                },
            }
        }
    }
}

/// A place among those of the listener, whose number is the door's in force.
async fn own_place(places: &Places, arrivals: &Arrivals) -> Place {
    loop {
        places.set_cap(arrivals.max_connections());
        if let Ok(place) = timeout(LOOK_AGAIN, places.take()).await {
            return place;
        }
    }
}

/// One connection's failure is its own; a shortage is waited out, since accepting again at once would spin.
async fn wait_out(arrivals: &Arrivals, shortage: &mut Shortage, error: &io::Error) {
    arrivals.count_error();
    if Trouble::of(error) == Trouble::Connection {
        return;
    }
    let listener = arrivals.bound().name();
    if let Some(times) = shortage.speak(Instant::now()) {
        tracing::warn!(listener, %error, times, "cannot accept: clients wait, and some are turned away");
    }
    if shortage.gives_up() {
        tokio::select! {
            biased;
            accepted = arrivals.bound().socket.accept() => if let Ok(socket) = accepted { arrivals.turn_away(&socket) },
            () = std::future::ready(()) => {}
        }
        shortage.refill();
    }
    Shortage::pause().await;
}
