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

use super::connection::Session;
use super::endings::Endings;
use super::entry::Entry;
use super::handshake::{Failures, Handshake};
use super::listeners::Bound;
use super::places::Place;
use super::proxy_protocol::{self, Header};
use super::socket::Socket;
use crate::context::{Connection, Reserved};
use crate::metrics::{Counter, Gauge, Registry};
use crate::snapshot::Snapshot;

/// One listener's clients as they come.
pub(super) struct Arrivals {
    entry: Arc<Entry>,
    bound: Bound,
    open: Gauge,
    accepted: Counter,
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
}

impl Refusal {
    const ALL: [Self; 2] = [Self::Stranger, Self::NoHeader];

    const fn label(self) -> &'static str {
        match self {
            Self::Stranger => "proxy_protocol_stranger",
            Self::NoHeader => "proxy_protocol_malformed",
        }
    }
}

/// What a connection takes of what there is for all.
pub(super) type Taken = (Place, Reserved);

/// What was found out about a socket before its session begins.
struct Arrival {
    socket: Socket,
    peer: Option<SocketAddr>,
    local: Option<SocketAddr>,
    /// What was read after the header.
    seen: BytesMut,
    held: (Taken, Open),
}

impl Arrivals {
    pub(super) fn new(entry: Arc<Entry>, bound: Bound, endings: Arc<Endings>, registry: &Registry) -> Self {
        let listener = ("listener", bound.name());
        let help = "Client connections closed before anything was served.";
        let refused = Refusal::ALL.map(|refusal| {
            registry.counter("headworks_connections_refused_total", help, &[listener, ("reason", refusal.label())])
        });
        let open = registry.gauge("headworks_connections", "Client connections that are open.", &[listener]);
        let accepted = registry.counter("headworks_connections_total", "Client connections accepted.", &[listener]);
        let handshakes = Arc::new(Failures::new(bound.name(), registry));
        Self { entry, bound, open, accepted, refused, endings, handshakes }
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
        let held = (taken, Open::new(&self.open));
        let (peer, local) = (socket.peer(), socket.local());
        let arrival = Arrival { socket, peer, local, seen: BytesMut::new(), held };
        let snapshot = self.entry.current.load();
        let headers = &self.door(&snapshot).settings.proxy_protocol;
        if headers.is_empty() {
            let (session, handshake) = self.session(arrival, &snapshot);
            self.entry.tasks.spawn(session.run(handshake));
        } else if headers.contain(peer.map(|peer| peer.ip())) {
            let arrivals = Arc::clone(self);
            self.entry.tasks.spawn(async move { arrivals.enter_by_header(arrival).await });
        } else {
            self.refuse(Refusal::Stranger, peer, "it is not in `proxy_protocol`");
        }
    }

    async fn enter_by_header(&self, mut arrival: Arrival) {
        let patience = self.entry.current.load().limits.header_timeout;
        let reading = timeout(patience, read_header(&arrival.socket, &mut arrival.seen));
        let read = tokio::select! {
            read = reading => read.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
            () = self.bound.shutdown.drain.cancelled() => return,
        };
        match read {
            Ok(Header { ends: Some(ends), .. }) => {
                (arrival.peer, arrival.local) = (Some(ends.source), Some(ends.destination));
            }
            Ok(Header { ends: None, .. }) => {}
            // Balancers look whether the port is open.
            Err(_) if arrival.seen.is_empty() => return,
            Err(error) => return self.refuse(Refusal::NoHeader, arrival.peer, &error),
        }
        let (session, handshake) = self.session(arrival, &self.entry.current.load());
        session.run(handshake).await;
    }

    /// A connection, and what it takes from the snapshot in force: its limits, and the certificates of its door.
    fn session(&self, arrival: Arrival, snapshot: &Snapshot) -> (Session, Option<Handshake>) {
        let Arrival { socket, peer, local, seen, held } = arrival;
        let (limits, door) = (snapshot.limits, self.door(snapshot));
        let handshake = door.tls.clone().map(|acceptor| Handshake { acceptor, failures: Arc::clone(&self.handshakes) });
        socket.prepare(limits);
        let name = Arc::clone(&door.settings.name);
        let mut connection = Connection::new(name, peer, local, handshake.is_some(), limits.stall_timeout);
        connection.trusted = snapshot.trusts(peer.map(|peer| peer.ip()));
        connection.hold(held);
        let session = Session {
            entry: Arc::clone(&self.entry),
            shutdown: self.bound.shutdown.clone(),
            limits,
            endings: Arc::clone(&self.endings),
            connection: self.entry.connections.open(connection),
            socket: Arc::new(socket),
            seen,
        };
        (session, handshake)
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
