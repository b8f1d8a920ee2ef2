//! What an operator sees of a connection, and how it is ended from outside.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::Waker;
use std::time::Duration;

use tokio::time::Instant;

use super::Connection;
use crate::context::Memory;
use crate::context::connections::Place;
use crate::context::notes::{Count, Elapsed};
use crate::context::{Inner, RequestContext};
use crate::error::Reason;

/// The version of HTTP on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.0 or HTTP/1.1: one exchange after the other.
    Http1,
    /// HTTP/2: many at once.
    Http2,
}

impl Protocol {
    /// As it is written.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Http1 => "HTTP/1",
            Self::Http2 => "HTTP/2",
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Oversight {
    id: u64,
    place: Option<Place>,
    protocol: OnceLock<Protocol>,
    tls_version: OnceLock<&'static str>,
    /// The exchanges that have begun and not ended: as many as `active` says. Nobody waits for this lock but an
    /// operator, and whoever the operator makes wait.
    exchanges: Mutex<Vec<Weak<Inner>>>,
    /// The task that drives it.
    driver: OnceLock<Waker>,
    is_ended: AtomicBool,
    bytes_in: Count,
    bytes_out: Count,
    /// Since when the client takes nothing, counted from the opening.
    blocked_since: Elapsed,
}

impl Oversight {
    fn exchanges(&self) -> MutexGuard<'_, Vec<Weak<Inner>>> {
        self.exchanges.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    /// Its number among the connections of this process; 0 when it is on no list.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.oversight.id
    }

    pub(in crate::context) fn list(&mut self, id: u64, place: Place) {
        self.oversight.id = id;
        self.oversight.place = Some(place);
    }

    /// What its requests reserve from; none when it is on no list.
    pub(in crate::context) fn memory(&self) -> Option<&Memory> {
        self.oversight.place.as_ref().map(Place::memory)
    }

    /// The client's first bytes have said which protocol it is.
    pub fn speaks(&self, protocol: Protocol) {
        let _ = self.oversight.protocol.set(protocol);
    }

    /// The protocol; none before the client has said anything.
    #[must_use]
    pub fn protocol(&self) -> Option<Protocol> {
        self.oversight.protocol.get().copied()
    }

    /// The handshake has agreed on this version of TLS.
    pub fn note_tls(&self, version: &'static str) {
        let _ = self.oversight.tls_version.set(version);
    }

    /// The version of TLS; none without TLS and before the end of the handshake.
    #[must_use]
    pub fn tls_version(&self) -> Option<&'static str> {
        self.oversight.tls_version.get().copied()
    }

    /// Bytes were read from the client's socket.
    pub fn count_in(&self, bytes: usize) {
        self.oversight.bytes_in.add(bytes as u64);
    }

    /// Bytes were written to it.
    pub fn count_out(&self, bytes: usize) {
        self.oversight.bytes_out.add(bytes as u64);
    }

    /// Bytes read from the socket so far, those of TLS and of heads included.
    #[must_use]
    pub fn bytes_in(&self) -> u64 {
        self.oversight.bytes_in.get()
    }

    /// Bytes written to it.
    #[must_use]
    pub fn bytes_out(&self) -> u64 {
        self.oversight.bytes_out.get()
    }

    /// The client takes no more bytes.
    pub fn writes_block(&self, now: Instant) {
        self.oversight.blocked_since.set(now.saturating_duration_since(self.opened_at));
    }

    /// It takes bytes again.
    pub fn writes_flow(&self) {
        self.oversight.blocked_since.clear();
    }

    /// For how long the client has taken nothing; none while it does.
    #[must_use]
    pub fn blocked_for(&self) -> Option<Duration> {
        let since = self.oversight.blocked_since.get()?;
        Some(self.opened_at.elapsed().saturating_sub(since))
    }

    /// Tells which task drives the connection, so that it can be woken from outside. A task's waker is good for the
    /// whole of its life, so the first word stands.
    pub fn driven_by(&self, driver: &Waker) {
        self.oversight.driver.get_or_init(|| driver.clone());
    }

    /// Ends the connection at once: whoever drives it sees [`Connection::is_ended`].
    pub fn end(&self, reason: Reason) {
        self.mark_cut(reason);
        self.oversight.is_ended.store(true, Relaxed);
        self.wake();
    }

    /// Whether it must end at once.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.oversight.is_ended.load(Relaxed)
    }

    pub(in crate::context) fn wake(&self) {
        if let Some(driver) = self.oversight.driver.get() {
            driver.wake_by_ref();
        }
    }

    pub(in crate::context) fn enlist(&self, exchange: Weak<Inner>) {
        self.oversight.exchanges().push(exchange);
    }

    pub(in crate::context) fn strike(&self, exchange: *const Inner) {
        let mut exchanges = self.oversight.exchanges();
        if let Some(at) = exchanges.iter().position(|known| known.as_ptr() == exchange) {
            let struck = exchanges.swap_remove(at);
            drop(exchanges);
            drop(struck);
        }
    }

    /// The exchanges under way.
    #[must_use]
    pub fn exchanges(&self) -> Vec<RequestContext> {
        // The lock is free again before any of them can be dropped here, which takes it.
        self.oversight.exchanges().iter().filter_map(Weak::upgrade).map(RequestContext).collect()
    }
}
