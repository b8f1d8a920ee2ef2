//! From an accepted socket to a session: who the client is, and whether it may come in.
//!
//! Behind a balancer the client's addresses stand in the header of the PROXY protocol, and everything that follows
//! goes by them: trust, limits, logs. A peer that must send one is believed; any other is closed without a word, since
//! nobody can tell whose connection it is.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Buf as _, BytesMut};
use tokio::time::timeout;

use super::clients::Clients;
use super::listeners::Bound;
use super::places::Place;
use super::proxy_protocol::{self, Header};
use crate::context::{Connection, Reserved};
use crate::metrics::{Counter, Gauge, Registry};
use crate::server::connection::Session;
use crate::server::connection::endings::Endings;
use crate::server::connection::handshake::{Failures, Handshake};
use crate::server::connection::socket::Socket;
use crate::server::entry::Entry;
use crate::snapshot::Snapshot;

/// One listener's clients as they come.
pub(super) struct Arrivals {
    entry: Arc<Entry>,
    bound: Bound,
    clients: Clients,
    open: Gauge,
    accepted: Counter,
    errors: Counter,
    refused: [Counter; Refusal::ALL.len()],
    endings: Arc<Endings>,
    handshakes: Arc<Failures>,
}

/// Why a connection is closed before anything of its client was served.
#[derive(Clone, Copy, Debug)]
pub(super) enum Refusal {
    /// It is not one of the peers that send the header of the PROXY protocol.
    Stranger,
    /// What it sent is no such header, or none came in time.
    NoHeader,
    /// Its client has as many connections as it may have.
    Crowd,
    /// There was no descriptor for it.
    NoDescriptor,
}

impl Refusal {
    const ALL: [Self; 4] = [Self::Stranger, Self::NoHeader, Self::Crowd, Self::NoDescriptor];

    const fn label(self) -> &'static str {
        match self {
            Self::Stranger => "proxy_protocol_stranger",
            Self::NoHeader => "proxy_protocol_malformed",
            Self::Crowd => "client_connections",
            Self::NoDescriptor => "no_descriptor",
        }
    }
}

/// What a connection takes of what there is for all.
pub(super) type Taken = ([Place; 2], Reserved);

/// What was found out about a socket before its session begins.
struct Arrival {
    socket: Socket,
    peer: Option<SocketAddr>,
    local: Option<SocketAddr>,
    /// What was read after the header.
    seen: BytesMut,
    taken: Taken,
    open: Open,
}

impl Arrivals {
    pub(super) fn new(
        entry: Arc<Entry>,
        bound: Bound,
        clients: Clients,
        endings: Arc<Endings>,
        registry: &Registry,
    ) -> Self {
        let listener = ("listener", bound.name());
        let help = "Client connections closed before anything was served.";
        let refused = Refusal::ALL.map(|refusal| {
            registry.counter("headworks_connections_refused_total", help, &[listener, ("reason", refusal.label())])
        });
        let open = registry.gauge("headworks_connections", "Client connections that are open.", &[listener]);
        let accepted = registry.counter("headworks_connections_total", "Client connections accepted.", &[listener]);
        let handshakes = Arc::new(Failures::new(bound.name(), registry));
        let help = "Failures to accept a client's connection.";
        let errors = registry.counter("headworks_accept_errors_total", help, &[listener]);
        Self { entry, bound, clients, open, accepted, errors, refused, endings, handshakes }
    }

    pub(super) fn bound(&self) -> &Bound {
        &self.bound
    }

    /// What one of its connections may hold.
    pub(super) fn share(&self) -> u64 {
        let snapshot = self.entry.current.load();
        let shares = snapshot.limits.shares;
        if self.door(&snapshot).tls.is_some() { shares.connection + shares.tls } else { shares.connection }
    }

    /// Lets a socket in, or closes it.
    pub(super) fn enter(self: &Arc<Self>, socket: Socket, taken: Taken) {
        self.accepted.inc();
        let open = Open::new(&self.open);
        let (peer, local) = (socket.peer(), socket.local());
        let arrival = Arrival { socket, peer, local, seen: BytesMut::new(), taken, open };
        let snapshot = self.entry.current.load();
        let headers = &self.door(&snapshot).settings.proxy_protocol;
        if headers.is_empty() {
            if let Some((session, handshake)) = self.session(arrival, &snapshot) {
                self.entry.tasks.spawn(session.run(handshake));
            }
        } else if headers.contain(peer.map(|peer| peer.ip())) {
            let arrivals = Arc::clone(self);
            self.entry.tasks.spawn(async move {
                let session = arrivals.enter_by_header(arrival).await;
                // Else the socket that it came by would be open for as long as it lives.
                drop(arrivals);
                if let Some((session, handshake)) = session {
                    session.run(handshake).await;
                }
            });
        } else {
            self.refuse(Refusal::Stranger, peer, "it is not in `proxy_protocol`");
        }
    }

    /// Reads who the client is. None when it may not come in.
    async fn enter_by_header(&self, mut arrival: Arrival) -> Option<(Session, Option<Handshake>)> {
        let patience = self.entry.current.load().limits.header_timeout;
        let reading = timeout(patience, read_header(&arrival.socket, &mut arrival.seen));
        let read = tokio::select! {
            read = reading => read.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
            () = self.bound.shutdown.drain.cancelled() => return None,
        };
        match read {
            Ok(Header { ends: Some(ends), .. }) => {
                (arrival.peer, arrival.local) = (Some(ends.source), Some(ends.destination));
            }
            Ok(Header { ends: None, .. }) => {}
            // Balancers look whether the port is open.
            Err(_) if arrival.seen.is_empty() => return None,
            Err(error) => {
                self.refuse(Refusal::NoHeader, arrival.peer, &error);
                return None;
            }
        }
        self.session(arrival, &self.entry.current.load())
    }

    /// A connection, and what it takes from the snapshot in force: its limits, and the certificates of its door. None
    /// when its client has enough of them.
    fn session(&self, arrival: Arrival, snapshot: &Snapshot) -> Option<(Session, Option<Handshake>)> {
        let Arrival { socket, peer, local, seen, taken, open } = arrival;
        let (limits, door) = (snapshot.limits, self.door(snapshot));
        let address = peer.map(|peer| peer.ip());
        let trusted = snapshot.trusts(address);
        // A trusted proxy comes for many, and who comes over a unix socket is on this machine.
        let counted = address.filter(|_| !trusted);
        let counted = counted.map(|address| self.clients.take(address, limits.max_connections_per_client));
        if let Some(None) = counted {
            self.refuse(Refusal::Crowd, peer, "its client has enough connections");
            return None;
        }
        let handshake = door.tls.clone().map(|acceptor| Handshake { acceptor, failures: Arc::clone(&self.handshakes) });
        socket.prepare(limits);
        let name = Arc::clone(&door.settings.name);
        let mut connection = Connection::new(name, peer, local, handshake.is_some(), limits.stall_timeout);
        connection.trusted = trusted;
        connection.hold((taken, open, counted));
        let session = Session {
            entry: Arc::clone(&self.entry),
            shutdown: self.bound.shutdown.clone(),
            limits,
            endings: Arc::clone(&self.endings),
            connection: self.entry.connections.open(connection),
            socket: Arc::new(socket),
            seen,
        };
        Some((session, handshake))
    }

    /// How many connections this listener may have.
    pub(super) fn max_connections(&self) -> usize {
        self.door(&self.entry.current.load()).settings.max_connections.unwrap_or(usize::MAX)
    }

    /// Accepting has failed.
    pub(super) fn count_error(&self) {
        self.errors.inc();
    }

    /// A client that cannot be served is about to be closed.
    pub(super) fn turn_away(&self, socket: &Socket) {
        self.refuse(Refusal::NoDescriptor, socket.peer(), "there is no descriptor");
    }

    fn door<'a>(&'a self, snapshot: &'a Snapshot) -> &'a crate::snapshot::Door {
        snapshot.door(self.bound.name()).unwrap_or(&self.bound.door)
    }

    fn refuse(&self, refusal: Refusal, peer: Option<SocketAddr>, why: impl fmt::Display) {
        if let Some(counter) = self.refused.get(refusal as usize) {
            counter.inc();
        }
        tracing::debug!(listener = self.bound.name(), ?peer, reason = refusal.label(), %why, "connection refused");
    }
}

/// Reads the header and takes it off `seen`, which keeps what came after it.
async fn read_header(socket: &Socket, seen: &mut BytesMut) -> io::Result<Header> {
    loop {
        if !seen.is_empty()
            && let Some(header) = proxy_protocol::parse(seen).map_err(io::Error::other)?
        {
            seen.advance(header.length);
            return Ok(header);
        }
        if socket.read_more(seen).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// A connection in the gauge of those that are open.
struct Open(Gauge);

impl Open {
    fn new(open: &Gauge) -> Self {
        open.inc();
        Self(open.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}
