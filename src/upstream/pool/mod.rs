//! The connections to one endpoint.
//!
//! | file | does |
//! |---|---|
//! | `mod.rs` | [`Pool`]: hands out connections, makes requests wait, closes what is idle |
//! | `state.rs` | what the pool's lock guards, and all its decisions: no IO, no tasks |
//! | `lease.rs` | [`Lease`]: a connection, or a stream of one, while a request has it |
//! | `open.rs` | opens one connection more and brings it to whoever waits |
//!
//! One rule holds the pool together: whatever changes the state does so through [`Pool::settle`], which matches
//! waiters with what is free and opens what is missing. Nothing that may end a connection is dropped under the lock,
//! as its end takes the lock.

mod lease;
mod open;
mod state;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_churn;
#[cfg(test)]
mod tests_http2;

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout};

use super::connect::{ConnectError, Connector};
use super::settings::Settings;
use crate::error::{ProxyError, Reason};
use crate::tasks;
pub(super) use lease::{Lease, Unanswered, UntilEnd, UpgradeGuard};
use open::Opening;
pub(super) use state::Wants;
use state::{Bounds, State};

/// Requests that may wait for a connection of one endpoint. Admission lets through fewer; this holds without it.
const MOST_WAITERS: usize = 4096;

/// What a waiter is brought.
type Delivery = Result<Lease, ConnectError>;

pub(super) struct Pool {
    connector: Connector,
    buffer: usize,
    connect: Duration,
    bounds: Bounds,
    state: Mutex<State>,
    counts: Counts,
}

/// What the pool counts besides its state.
#[derive(Default)]
struct Counts {
    in_flight: AtomicUsize,
    connects: AtomicU64,
    reuses: AtomicU64,
    cancelled: AtomicU64,
}

/// A look at one endpoint's connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Connections: being opened, in use, idle and closing.
    pub connections: usize,
    /// Those that carry no request.
    pub idle: usize,
    /// Requests on a connection, until their response body has ended.
    pub in_flight: usize,
    /// Open streams of h2 connections.
    pub streams: usize,
    /// Requests that wait for a connection.
    pub waiting: usize,
    /// Connections opened so far.
    pub connects: u64,
    /// Requests sent on a connection that had carried one before.
    pub reuses: u64,
    /// Requests given up before their response had ended. On HTTP/1.1 each has cost its connection.
    pub cancelled: u64,
}

impl Pool {
    pub(super) fn new(connector: Connector, settings: &Settings) -> Arc<Self> {
        let bounds = Bounds {
            // No request comes without a credit.
            connections: settings.pool.max_connections.map_or(usize::MAX, std::num::NonZeroUsize::get),
            idle: settings.pool.max_idle,
            idle_timeout: settings.pool.idle_timeout,
            streams: settings.pool.max_streams.get(),
        };
        let state = Mutex::new(State::new(connector.version(), &bounds));
        let (buffer, connect) = (settings.buffer, settings.timeout.connect);
        Arc::new(Self { connector, buffer, connect, bounds, state, counts: Counts::default() })
    }

    /// A connection to send one request on: an idle one, a stream's place on an open one, or else whatever comes free
    /// or gets opened first within the connect time. First come, first served.
    pub(super) async fn checkout(self: &Arc<Self>, wants: Wants) -> Result<Lease, ProxyError> {
        let mut dead = Vec::new();
        let ready = self.lock().take_unless_waited_for(wants, &self.bounds, &mut dead);
        drop(dead);
        if let Some(grant) = ready {
            return Ok(Lease::new(Arc::clone(self), grant));
        }
        let (deliver, delivery) = oneshot::channel();
        let id = self.settle(|state| state.enqueue(wants, deliver, MOST_WAITERS));
        let id = id.ok_or_else(|| ProxyError::new(Reason::PoolExhausted, "too many requests wait for a connection"))?;
        let mut waiting = Waiting { pool: self, id, delivery };
        if let Ok(delivery) = timeout(self.connect, &mut waiting).await {
            return delivery.map_err(ProxyError::from);
        }
        let (left, is_opening) = {
            let mut state = self.lock();
            (state.leave(id), state.is_opening())
        };
        match left {
            // No longer in line: what it waits for, or why that failed, is on its way this very moment.
            None => waiting.await.map_err(ProxyError::from),
            Some(_) if is_opening => Err(Reason::ConnectTimeout.into()),
            Some(_) => Err(Reason::PoolExhausted.into()),
        }
    }

    /// Closes what is idle: after several stale connections in a row the others are as old, and no better.
    pub(super) fn close_idle(self: &Arc<Self>) {
        let idle = self.lock().take_idle();
        drop(idle);
    }

    /// Keeps no idle connection any more, or does so again.
    pub(super) fn set_closing(self: &Arc<Self>, is_closing: bool) {
        self.settle(|state| state.is_closing = is_closing);
    }

    pub(super) fn stats(&self) -> PoolStats {
        let mut stats = self.lock().stats();
        stats.in_flight = self.counts.in_flight.load(Relaxed);
        stats.connects = self.counts.connects.load(Relaxed);
        stats.reuses = self.counts.reuses.load(Relaxed);
        stats.cancelled = self.counts.cancelled.load(Relaxed);
        stats
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, then does what follows from it.
    fn settle<T>(self: &Arc<Self>, change: impl FnOnce(&mut State) -> T) -> T {
        let mut dead = Vec::new();
        let mut grants = Vec::new();
        let mut state = self.lock();
        let result = change(&mut state);
        state.serve(&self.bounds, &mut grants, &mut dead);
        state.trim(&self.bounds, &mut dead);
        let missing = state.open_missing(&self.bounds);
        if state.needs_reaper() && tokio::runtime::Handle::try_current().is_ok() {
            state.reaper = Some(tasks::spawn(reap(Arc::downgrade(self))));
        }
        drop(state);
        drop(dead);
        for (deliver, grant) in grants {
            // A waiter that has just left gives the lease back by dropping it.
            let _ = deliver.send(Ok(Lease::new(Arc::clone(self), grant)));
        }
        missing.for_each(|http1| Opening::start(self, http1));
        result
    }

    /// Closes what has been idle for too long, and says when to look again: never, when nothing is idle.
    fn expire(&self) -> Option<Instant> {
        let mut dead = Vec::new();
        let mut state = self.lock();
        let next = state.expire(Instant::now(), &self.bounds, &mut dead);
        let reaper = if next.is_none() { state.reaper.take() } else { None };
        drop(state);
        drop((dead, reaper));
        next
    }
}

/// Closes idle connections in time. One task per pool, and only while something is idle.
async fn reap(pool: Weak<Pool>) {
    loop {
        let Some(next) = pool.upgrade().and_then(|pool| pool.expire()) else { return };
        sleep_until(next).await;
    }
}

/// A place in the line, given up when dropped.
struct Waiting<'a> {
    pool: &'a Arc<Pool>,
    id: u64,
    delivery: oneshot::Receiver<Delivery>,
}

impl Future for Waiting<'_> {
    type Output = Delivery;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Delivery> {
        // A waiter's sender is only ever dropped with the pool, which this request holds.
        let gone = |_| Err(ConnectError::new(Reason::Internal, std::io::Error::other("the pool forgot a waiter")));
        Pin::new(&mut self.delivery).poll(cx).map(|delivery| delivery.unwrap_or_else(gone))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let left = self.pool.lock().leave(self.id);
        drop(left);
    }
}

/// A connection's place under the cap, free again when the last who holds it lets go: its driver and its user.
pub(super) struct Slot(Weak<Pool>);

impl Slot {
    /// The connection has ended, or the peer allows another number of streams.
    pub(super) fn changed(&self) {
        if let Some(pool) = self.0.upgrade() {
            let ended = pool.settle(State::take_closed);
            drop(ended);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(pool) = self.0.upgrade() {
            pool.settle(State::slot_freed);
        }
    }
}
