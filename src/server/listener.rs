//! Accepts. Once all places are taken each listener holds one accepted connection back and accepts no more:
//! what is too much waits in the kernel's backlog and not in memory.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::arrivals::Arrivals;
use super::endings::Endings;
use super::entry::Entry;
use super::listeners::Bound;
use super::memory;
use super::places::Places;
use super::shutdown::Shutdown;
use crate::metrics::Registry;

/// How long to wait when the process is out of descriptors: some connection must end first.
const OUT_OF_DESCRIPTORS: Duration = Duration::from_millis(50);

/// What all listeners share.
#[derive(Debug)]
pub struct Server {
    entry: Arc<Entry>,
    places: Places,
    endings: Arc<Endings>,
    registry: Registry,
}

impl Server {
    /// A server with room for `max_connections`.
    #[must_use]
    pub fn new(entry: Arc<Entry>, max_connections: usize, registry: Registry) -> Self {
        let endings = Arc::new(Endings::new(&registry));
        Self { entry, places: Places::new(max_connections), endings, registry }
    }

    /// Sets how many connections there may be. Those above a lower number are left to end by themselves.
    pub fn set_max_connections(&self, max_connections: usize) {
        self.places.set_cap(max_connections);
    }

    /// Sets what all may hold together.
    pub fn set_memory(&self, bytes: Option<u64>) {
        self.entry.connections.memory().set_limit(bytes.unwrap_or_else(memory::auto));
    }

    pub(super) fn shutdown(&self) -> &Shutdown {
        &self.entry.shutdown
    }

    /// Accepts until the listener is closed or the drain begins.
    pub(super) async fn serve(&self, bound: Bound) {
        let arrivals =
            Arc::new(Arrivals::new(Arc::clone(&self.entry), bound, Arc::clone(&self.endings), &self.registry));
        let bound = arrivals.bound();
        loop {
            let next = async {
                let accepted = bound.socket.accept().await;
                let place = self.places.take().await;
                (accepted, place, self.entry.connections.memory().admit(arrivals.share()).await)
            };
            let (accepted, place, reserved) = tokio::select! {
                () = bound.shutdown.drain.cancelled() => return,
                next = next => next,
            };
            match accepted {
                Ok(socket) => arrivals.enter(socket, (place, reserved)),
                Err(error) => self.pause(bound, &error).await,
            }
        }
    }

    /// One connection's failure is its own; a shortage is waited out, since accepting again at once would spin.
    async fn pause(&self, bound: &Bound, error: &io::Error) {
        use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
        if !matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted) {
            tracing::warn!(listener = bound.name(), %error, "cannot accept");
            tokio::time::sleep(OUT_OF_DESCRIPTORS).await;
        }
    }

    /// Stops accepting, asks clients to go, waits for `grace` or until `hurry`, and cuts what is left. Returns how many
    /// connections, streams and tunnels were cut.
    pub async fn drain(&self, grace: Duration, hurry: impl Future<Output = ()>) -> usize {
        self.entry.shutdown.drain.cancel();
        let tasks = &self.entry.tasks;
        tokio::select! {
            () = tasks.ended() => return 0,
            () = tokio::time::sleep(grace) => {}
            () = hurry => {}
        }
        let left = tasks.len();
        self.entry.shutdown.cut.cancel();
        drop(tokio::time::timeout(Duration::from_secs(1), tasks.ended()).await);
        left
    }
}
