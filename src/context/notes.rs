//! What layers write down about an exchange for its record.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::{Method, StatusCode};

use super::{Done, TraceId};
use crate::body::kind::Kind;
use crate::error::Reason;

/// Facts that layers write down for the access log and the metrics. Each is written at most once per attempt.
#[derive(Debug, Default)]
pub struct Notes {
    /// The trace it belongs to.
    pub trace: OnceLock<TraceId>,
    /// Name of the route.
    pub route: OnceLock<Arc<str>>,
    /// Name of the upstream.
    pub upstream: OnceLock<Arc<str>>,
    /// Addresses of the endpoints that were asked.
    pub endpoint: Tried,
    /// Time in the waiting queue, over all attempts.
    pub queued: Elapsed,
    /// From the request's receipt to the upstream's response head.
    pub first_byte: Elapsed,
    /// How long the client may take nothing of the response; the connection's own time when never written.
    pub stall: Elapsed,
    /// What it asks for.
    pub asked: OnceLock<Asked>,
    /// Bytes of the request's body so far, or of the client's side of a tunnel; absent when there is none.
    pub received: OnceLock<Arc<AtomicU64>>,
    /// Bytes of the answer's body that were handed to the client so far.
    pub sent: Count,
    /// Since when nothing came from the upstream although the client waits, counted from the receipt.
    pub silent_since: Elapsed,
    /// Since when the client takes nothing, likewise; on HTTP/1 its connection knows it.
    pub blocked_since: Elapsed,
    /// What was done wrong to it on purpose.
    pub faults: Done,
    /// Why it would have been refused if that were not tried without consequences.
    pub would_refuse: OnceLock<Reason>,
    /// It would have waited for a credit, likewise.
    pub would_wait: OnceLock<()>,
    status: AtomicU16,
    kind: AtomicU8,
    reason: FirstReason,
}

impl Notes {
    /// Notes why the request ended as it did; the first word stands.
    pub fn set_reason(&self, reason: Reason) {
        self.reason.set(reason);
    }

    /// Why the request ended as it did; none when all went well.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        self.reason.get()
    }

    /// Bytes came from the client: for what has no body that counts them, a tunnel.
    pub fn receive(&self, bytes: usize) {
        self.received.get_or_init(Arc::default).fetch_add(bytes as u64, Relaxed);
    }

    /// Bytes that came from the client so far.
    #[must_use]
    pub fn bytes_in(&self) -> u64 {
        self.received.get().map_or(0, |received| received.load(Relaxed))
    }

    /// The head of the answer has this status.
    pub fn set_status(&self, status: StatusCode) {
        self.status.store(status.as_u16(), Relaxed);
    }

    /// The status of the answer; none before its head.
    #[must_use]
    pub fn status(&self) -> Option<StatusCode> {
        StatusCode::from_u16(self.status.load(Relaxed)).ok()
    }

    /// What kind of message it looks like, from its request at first and then from its answer.
    pub fn set_kind(&self, kind: Kind) {
        self.kind.store(kind as u8 + 1, Relaxed);
    }

    /// The kind; none before it was looked at.
    #[must_use]
    pub fn kind(&self) -> Option<Kind> {
        [Kind::Unary, Kind::Stream, Kind::Upgrade].into_iter().find(|kind| *kind as u8 + 1 == self.kind.load(Relaxed))
    }
}

/// The endpoints that were asked for one request, in their order: one for each attempt, so they are few.
#[derive(Debug, Default)]
pub struct Tried {
    endpoint: OnceLock<Arc<str>>,
    next: OnceLock<Box<Self>>,
    /// The place of the one whose answer was taken, from 1 on; 0: the last.
    taken: AtomicU8,
}

impl Tried {
    /// One more is asked.
    pub fn add(&self, endpoint: Arc<str>) {
        if let Err(endpoint) = self.endpoint.set(endpoint) {
            self.next.get_or_init(Box::default).add(endpoint);
        }
    }

    /// Of several that were asked at once, the answer of this one is taken.
    pub fn take(&self, place: usize) {
        self.taken.store(u8::try_from(place + 1).unwrap_or(0), Relaxed);
    }

    /// The one that answers, or was asked last.
    #[must_use]
    pub fn get(&self) -> Option<&Arc<str>> {
        match usize::from(self.taken.load(Relaxed)) {
            0 => self.iter().last(),
            place => self.iter().nth(place - 1),
        }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<str>> {
        let all = std::iter::successors(Some(self), |tried| tried.next.get().map(Box::as_ref));
        all.filter_map(|tried| tried.endpoint.get())
    }
}

/// What a request asks for. Copies, since the originals would keep the connection's whole read buffer alive.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Its method.
    pub method: Method,
    /// Its path without the query, which may hold secrets.
    pub path: Box<str>,
}

/// A number that one writes and others may read.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds `n`. There is one writer, so that no locked instruction is needed.
    pub fn add(&self, n: u64) {
        self.0.store(self.get().wrapping_add(n), Relaxed);
    }

    /// Its value.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A reason that may be given from any thread; the first one stands.
#[derive(Debug, Default)]
pub(super) struct FirstReason(AtomicU8);

impl FirstReason {
    pub(super) fn set(&self, reason: Reason) {
        let index = Reason::ALL.iter().position(|known| *known == reason).unwrap_or(0);
        let code = u8::try_from(index + 1).unwrap_or(u8::MAX);
        let _ = self.0.compare_exchange(0, code, Relaxed, Relaxed);
    }

    pub(super) fn get(&self) -> Option<Reason> {
        let code = usize::from(self.0.load(Relaxed));
        Reason::ALL.get(code.checked_sub(1)?).copied()
    }
}

/// A duration that may be written from any thread, in microseconds.
#[derive(Debug, Default)]
pub struct Elapsed(AtomicU64);

impl Elapsed {
    /// Writes it down.
    pub fn set(&self, elapsed: Duration) {
        let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX - 1);
        self.0.store(micros.saturating_add(1), Relaxed);
    }

    /// As if it had never been written.
    pub fn clear(&self) {
        self.0.store(0, Relaxed);
    }

    /// Adds to what was written down.
    pub fn add(&self, elapsed: Duration) {
        self.set(self.get().unwrap_or_default() + elapsed);
    }

    /// Reads it; none when never written.
    #[must_use]
    pub fn get(&self) -> Option<Duration> {
        self.0.load(Relaxed).checked_sub(1).map(Duration::from_micros)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_that_answers_is_the_last_unless_another_is_taken() {
        let tried = Tried::default();
        assert!(tried.get().is_none());
        for name in ["a", "b", "c"] {
            tried.add(name.into());
            assert_eq!(tried.get().map(|name| &**name), Some(name));
        }
        tried.take(1);
        assert_eq!(tried.get().map(|name| &**name), Some("b"));
        assert_eq!(tried.iter().map(|name| &**name).collect::<Vec<_>>(), ["a", "b", "c"]);
    }

    #[test]
    fn the_first_reason_stands() {
        let notes = Notes::default();
        assert_eq!(notes.reason(), None);
        notes.set_reason(Reason::QueueFull);
        notes.set_reason(Reason::ClientGone);
        assert_eq!(notes.reason(), Some(Reason::QueueFull));
    }
}
