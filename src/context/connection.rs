//! The client's connection.

mod oversight;

use std::any::Any;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::HeaderValue;
use tokio::time::Instant;

use super::client_cert::ClientCert;
use super::notes::FirstReason;
use crate::error::Reason;
use oversight::Oversight;
pub use oversight::Protocol;

/// The client's connection, as far as layers may know it.
#[derive(Debug)]
pub struct Connection {
    /// Name of the listener that accepted it.
    pub listener: Arc<str>,
    /// The peer's socket address; none on unix sockets.
    pub peer: Option<SocketAddr>,
    /// The address it was accepted on.
    pub local: Option<SocketAddr>,
    /// Whether the hop to the client is encrypted.
    pub tls: bool,
    /// Whether the peer is a proxy whose word on its own client is believed.
    pub trusted: bool,
    peer_field: Option<HeaderValue>,
    forwarded: Box<str>,
    opened_at: Instant,
    /// Longest time the socket may refuse bytes, in milliseconds.
    stall_millis: AtomicU64,
    cut: FirstReason,
    /// Requests that have begun and not ended.
    active: AtomicUsize,
    /// Requests that have begun.
    requests: AtomicU64,
    /// When the last request ended, in milliseconds since `opened_at`.
    idle_since: AtomicU64,
    /// When the head under way began, likewise; 0: none is.
    head_since: AtomicU64,
    /// Whether it has become a tunnel.
    tunnel: AtomicBool,
    /// Whether a request that asked to switch protocols was answered otherwise, and nobody has asked for it yet.
    switch_refused: AtomicBool,
    /// Whether a part of a head is held back until the rest is there.
    holds_head: AtomicBool,
    /// Why a head under way is not waited for any more.
    head_end: FirstReason,
    /// Why the request that is the last is refused, and how many came before it.
    refused: FirstReason,
    refused_after: AtomicU64,
    /// Whether the end of an answer may be the end of the connection: HTTP/1.0 knows no other.
    close_delimited: AtomicBool,
    /// Whether the request under way outlives the client's sending half.
    half_close: AtomicBool,
    oversight: Oversight,
    client_cert: OnceLock<Box<ClientCert>>,
    held: Held,
}

/// Something that is only there to be dropped.
#[derive(Default)]
struct Held(Option<Box<dyn Any + Send + Sync>>);

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Held").field(&self.0.is_some()).finish()
    }
}

impl Connection {
    /// A connection that is cut when the client takes nothing for `stall`.
    #[must_use]
    pub fn new(
        listener: Arc<str>,
        peer: Option<SocketAddr>,
        local: Option<SocketAddr>,
        tls: bool,
        stall: Duration,
    ) -> Self {
        let address = peer.map(|peer| peer.ip().to_canonical());
        Self {
            listener,
            peer,
            local,
            tls,
            trusted: false,
            peer_field: address.and_then(|address| HeaderValue::try_from(address.to_string()).ok()),
            forwarded: forwarded_element(address, tls),
            opened_at: Instant::now(),
            stall_millis: AtomicU64::new(millis(stall)),
            cut: FirstReason::default(),
            active: AtomicUsize::new(0),
            requests: AtomicU64::new(0),
            idle_since: AtomicU64::new(0),
            head_since: AtomicU64::new(0),
            tunnel: AtomicBool::new(false),
            switch_refused: AtomicBool::new(false),
            holds_head: AtomicBool::new(false),
            head_end: FirstReason::default(),
            refused: FirstReason::default(),
            refused_after: AtomicU64::new(0),
            close_delimited: AtomicBool::new(false),
            half_close: AtomicBool::new(false),
            oversight: Oversight::default(),
            client_cert: OnceLock::new(),
            held: Held::default(),
        }
    }

    /// It becomes a tunnel: a side that is shut down is half of it, and the other half goes on.
    pub fn become_tunnel(&self) {
        self.tunnel.store(true, Relaxed);
    }

    /// Whether it has become a tunnel.
    #[must_use]
    pub fn is_tunnel(&self) -> bool {
        self.tunnel.load(Relaxed)
    }

    /// A request that asked to switch protocols has another answer: what follows it is the next request.
    pub fn refuse_switch(&self) {
        self.switch_refused.store(true, Relaxed);
    }

    /// Whether that was said of the last request that asked.
    #[must_use]
    pub fn has_refused_switch(&self) -> bool {
        self.switch_refused.load(Relaxed)
    }

    /// Before the next one asks.
    pub fn forget_refused_switch(&self) {
        self.switch_refused.store(false, Relaxed);
    }

    /// Says whether a part of a head is held back. Bytes alone do not tell: those of a TLS handshake are no head.
    pub fn hold_head(&self, holds: bool) {
        self.holds_head.store(holds, Relaxed);
    }

    /// Whether a part of a head is held back until the rest is there.
    #[must_use]
    pub fn holds_head(&self) -> bool {
        self.holds_head.load(Relaxed)
    }

    /// A head that is under way is not waited for any more: it is refused with `reason`.
    pub fn end_head(&self, reason: Reason) {
        self.head_end.set(reason);
    }

    /// Why heads are not waited for any more; none while they are.
    #[must_use]
    pub fn head_end(&self) -> Option<Reason> {
        self.head_end.get()
    }

    /// The request that comes after so many is refused, and is the last.
    pub fn refuse(&self, after: u64, reason: Reason) {
        self.refused_after.store(after, Relaxed);
        self.refused.set(reason);
    }

    /// Why the request that has just begun is refused; none when it is not.
    #[must_use]
    pub fn refused(&self) -> Option<Reason> {
        self.refused.get().filter(|_| self.refused_after.load(Relaxed) + 1 == self.requests())
    }

    /// The reason of the refusal that is to come, and how many requests come before it.
    #[cfg(test)]
    pub(crate) fn refuses(&self) -> Option<(u64, Reason)> {
        self.refused.get().map(|reason| (self.refused_after.load(Relaxed), reason))
    }

    /// A request came in HTTP/1.0, whose answer may end with the connection.
    pub fn expect_close(&self) {
        self.close_delimited.store(true, Relaxed);
    }

    /// Whether the request under way outlives the client's sending half. Only where one request is served at a time.
    pub fn allow_half_close(&self, is_allowed: bool) {
        self.half_close.store(is_allowed, Relaxed);
    }

    /// Whether a client that has closed its sending half still waits for its answer.
    #[must_use]
    pub fn allows_half_close(&self) -> bool {
        self.half_close.load(Relaxed)
    }

    /// Whether the client may take the end of the connection for the end of an answer.
    #[must_use]
    pub fn is_close_delimited(&self) -> bool {
        self.close_delimited.load(Relaxed)
    }

    /// Keeps `held` for as long as the connection lives: until its last request, and the tunnel that may come of it,
    /// has ended.
    pub fn hold(&mut self, held: impl Any + Send + Sync) {
        self.held = Held(Some(Box::new(held)));
    }

    /// The peer's address as a field value, made once.
    #[must_use]
    pub fn peer_field(&self) -> Option<&HeaderValue> {
        self.peer_field.as_ref()
    }

    /// The client has proved who it is. Known once the handshake is over, before the first request.
    pub fn identify(&self, cert: ClientCert) {
        drop(self.client_cert.set(Box::new(cert)));
    }

    /// The certificate that the client has proved to be its own.
    #[must_use]
    pub fn client_cert(&self) -> Option<&ClientCert> {
        self.client_cert.get().map(AsRef::as_ref)
    }

    /// `https` or `http`.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        if self.tls { "https" } else { "http" }
    }

    /// What this connection adds to each request's `Forwarded` element (RFC 7239), made once.
    #[must_use]
    pub fn forwarded(&self) -> &str {
        &self.forwarded
    }

    /// How long the socket may refuse bytes.
    #[must_use]
    pub fn stall_timeout(&self) -> Duration {
        Duration::from_millis(self.stall_millis.load(Relaxed))
    }

    /// Allows the socket to refuse bytes for `stall`, the time of a route that one of its requests has taken. With
    /// several requests at once the most patient route stands; each stream keeps its own time beside.
    pub fn allow_stall(&self, stall: Duration) {
        if self.active() > 1 {
            self.stall_millis.fetch_max(millis(stall), Relaxed);
        } else {
            self.stall_millis.store(millis(stall), Relaxed);
        }
    }

    /// Remembers why the connection is about to be cut, so that what breaks off with it is named so.
    pub fn mark_cut(&self, reason: Reason) {
        self.cut.set(reason);
    }

    /// Why the proxy cut the connection; none when it did not.
    #[must_use]
    pub fn cut(&self) -> Option<Reason> {
        self.cut.get()
    }

    /// Bytes came while no request was under way: a request head has begun.
    pub fn head_begins(&self) {
        let now = millis(self.opened_at.elapsed()).max(1);
        let _ = self.head_since.compare_exchange(0, now, Relaxed, Relaxed);
    }

    /// Since when a request head has been incomplete; none when none has begun.
    #[must_use]
    pub fn head_since(&self) -> Option<Instant> {
        match self.head_since.load(Relaxed) {
            0 => None,
            since => Some(self.opened_at + Duration::from_millis(since)),
        }
    }

    /// Requests that have begun and not ended.
    #[must_use]
    pub fn active(&self) -> usize {
        self.active.load(Acquire)
    }

    /// Requests that have begun so far.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.requests.load(Relaxed)
    }

    /// When it was accepted.
    #[must_use]
    pub fn opened_at(&self) -> Instant {
        self.opened_at
    }

    pub(super) fn request_begins(&self) {
        self.active.fetch_add(1, Relaxed);
        self.requests.fetch_add(1, Relaxed);
        self.head_since.store(0, Relaxed);
    }

    pub(super) fn request_ends(&self) {
        self.idle_since.store(millis(self.opened_at.elapsed()), Relaxed);
        // Whoever sees that none is active must see since when.
        self.active.fetch_sub(1, Release);
    }

    /// Since when no request is under way; the time of opening before the first.
    #[must_use]
    pub fn idle_since(&self) -> Instant {
        self.opened_at + Duration::from_millis(self.idle_since.load(Relaxed))
    }
}

fn forwarded_element(address: Option<IpAddr>, tls: bool) -> Box<str> {
    let scheme = if tls { "https" } else { "http" };
    match address {
        Some(IpAddr::V4(address)) => format!("for={address};proto={scheme}"),
        Some(IpAddr::V6(address)) => format!("for=\"[{address}]\";proto={scheme}"),
        None => format!("for=unknown;proto={scheme}"),
    }
    .into()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
