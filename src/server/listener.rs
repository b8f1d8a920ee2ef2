//! Binds and accepts. Once all places are taken each listener holds one accepted connection back and accepts no more:
//! what is too much waits in the kernel's backlog and not in memory.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use super::connection::{Limits, Session};
use super::entry::Entry;
use super::tls;
use crate::config;
use crate::context::Connection;
use crate::metrics::{Counter, Gauge, Registry};

/// How long to wait when the process is out of descriptors: some connection must end first.
const OUT_OF_DESCRIPTORS: Duration = Duration::from_millis(50);

/// A listener that is bound and not yet served.
pub struct Bound {
    name: Arc<str>,
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
}

/// Opens a listener, certificates first: a listener that cannot serve is not bound.
pub async fn bind(settings: &config::Listener) -> io::Result<Bound> {
    let tls = tls::acceptor(&settings.tls)?;
    let listener = TcpListener::bind(settings.address).await?;
    Ok(Bound { name: Arc::clone(&settings.name), listener, tls })
}

impl Bound {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Where it listens; tells the port that the system chose for port 0.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl fmt::Debug for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bound").field("name", &self.name).field("tls", &self.tls.is_some()).finish_non_exhaustive()
    }
}

/// What all listeners share.
#[derive(Debug)]
pub struct Server {
    entry: Arc<Entry>,
    limits: Limits,
    places: Arc<Semaphore>,
    registry: Registry,
}

impl Server {
    /// A server with room for `max_connections`.
    #[must_use]
    pub fn new(entry: Arc<Entry>, limits: Limits, max_connections: usize, registry: Registry) -> Self {
        let places = Arc::new(Semaphore::new(max_connections.min(Semaphore::MAX_PERMITS)));
        Self { entry, limits, places, registry }
    }

    /// Accepts until the drain begins.
    pub async fn serve(&self, bound: Bound) {
        let labels = [("listener", bound.name.as_ref())];
        let metrics = Metrics {
            open: self.registry.gauge("headworks_connections", "Client connections that are open.", &labels),
            accepted: self.registry.counter("headworks_connections_total", "Client connections accepted.", &labels),
        };
        loop {
            let next = async {
                let accepted = bound.listener.accept().await;
                // The semaphore is never closed, so this cannot fail.
                (accepted, Arc::clone(&self.places).acquire_owned().await.ok())
            };
            let (accepted, place) = tokio::select! {
                () = self.entry.shutdown.drain.cancelled() => return,
                next = next => next,
            };
            match accepted {
                Ok((socket, peer)) => {
                    let held = (place, metrics.accept());
                    let session = self.session(socket, peer, &bound, held);
                    self.entry.tasks.spawn(session.run(bound.tls.clone()));
                }
                Err(error) => self.pause(&bound, &error).await,
            }
        }
    }

    fn session(&self, socket: TcpStream, peer: SocketAddr, bound: &Bound, held: impl Send + Sync + 'static) -> Session {
        prepare(&socket, self.limits);
        let (stall, tls) = (self.limits.stall_timeout, bound.tls.is_some());
        let local = socket.local_addr().ok();
        let mut connection = Connection::new(Arc::clone(&bound.name), Some(peer), local, tls, stall);
        connection.trusted = self.entry.trusts(Some(peer.ip()));
        connection.hold(held);
        Session {
            entry: Arc::clone(&self.entry),
            limits: self.limits,
            connection: Arc::new(connection),
            socket: Arc::new(socket),
        }
    }

    /// One connection's failure is its own; a shortage is waited out, since accepting again at once would spin.
    async fn pause(&self, bound: &Bound, error: &io::Error) {
        use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
        if !matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted) {
            tracing::warn!(listener = %bound.name, %error, "cannot accept");
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

struct Metrics {
    open: Gauge,
    accepted: Counter,
}

impl Metrics {
    fn accept(&self) -> Open {
        self.accepted.inc();
        self.open.inc();
        Open(self.open.clone())
    }
}

struct Open(Gauge);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Socket options are wishes: where one is refused the connection still works.
fn prepare(socket: &TcpStream, limits: Limits) {
    let raw = SockRef::from(socket);
    let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(30)).with_interval(Duration::from_secs(10));
    drop(raw.set_tcp_nodelay(true));
    drop(raw.set_tcp_keepalive(&keepalive));
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        // Without it the kernel takes megabytes for a client that reads nothing, and a stall shows minutes late.
        drop(raw.set_tcp_notsent_lowat(u32::try_from(limits.buffer).unwrap_or(u32::MAX)));
        // Longer than any stall, since the kernel counts a closed window as well.
        drop(raw.set_tcp_user_timeout(Some((limits.longest_stall * 2).max(Duration::from_secs(60)))));
    }
}
