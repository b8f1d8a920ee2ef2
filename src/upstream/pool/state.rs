//! What the pool's lock guards. Every decision is made here, and none needs IO, a task or a clock.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use hyper::client::conn::{http1, http2};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Delivery, PoolStats, Slot};
use crate::body::Body;
use crate::tasks::Task;
use crate::upstream::connect::Version;
use crate::upstream::first_byte::{Clock, Uploads};
use crate::upstream::handshake::{Cut, StreamLimit};

pub(super) struct Bounds {
    pub(super) connections: usize,
    pub(super) idle: usize,
    pub(super) idle_timeout: Duration,
    pub(super) streams: usize,
}

/// An HTTP/1.1 connection that nobody else uses.
pub(super) struct Http1 {
    pub(super) sender: http1::SendRequest<Body>,
    pub(super) cut: Cut,
    pub(super) slot: Arc<Slot>,
    pub(super) clock: Clock,
    /// Whether it has carried a request before.
    pub(super) used: bool,
}

impl Http1 {
    /// Closes it now. Merely dropped, hyper would first write out what the peer may never take.
    pub(super) fn cut(self) {
        let _ = self.cut.send(());
    }
}

/// An h2 connection, shared by its streams.
pub(super) struct Http2 {
    pub(super) sender: http2::SendRequest<Body>,
    pub(super) limit: StreamLimit,
    pub(super) uploads: Uploads,
    /// Held for its drop.
    pub(super) _slot: Arc<Slot>,
}

/// What a request needs of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::upstream) struct Wants {
    /// It must speak HTTP/1.1.
    pub(in crate::upstream) http1: bool,
    /// There is a body to send, which needs room in the connection's window.
    pub(in crate::upstream) window: bool,
}

/// What a request is given.
pub(super) enum Grant {
    Http1(Http1),
    /// The place of one stream, already counted. `used` as in [`Http1`].
    Http2 {
        connection: Arc<Http2>,
        used: bool,
    },
}

/// What left the state and is to be dropped once the lock is released.
pub(super) enum Dead {
    Http1 { _connection: Http1 },
    Http2 { _connection: Arc<Http2> },
}

pub(super) struct State {
    /// Ready for a request, the youngest last.
    idle: Vec<(Http1, Instant)>,
    multiplexed: Vec<Multiplexed>,
    /// In order of arrival, which is the order of their ids.
    waiters: VecDeque<Waiter>,
    waiters_http1: usize,
    next_id: u64,
    /// Connections under the cap, from the first thought of one until its socket is closed.
    connections: usize,
    opening: usize,
    opening_http1: usize,
    /// How many requests the next connection is going to serve at once, as far as is known.
    expected: usize,
    pub(super) reaper: Option<Task>,
    /// Whether nothing may idle.
    pub(super) is_closing: bool,
}

struct Multiplexed {
    connection: Arc<Http2>,
    streams: usize,
    idle_since: Instant,
    used: bool,
}

struct Waiter {
    id: u64,
    wants: Wants,
    deliver: oneshot::Sender<Delivery>,
}

/// Connections to open, each with whether it must speak HTTP/1.1.
pub(super) struct Missing {
    any: usize,
    http1: usize,
}

impl Missing {
    pub(super) fn for_each(&self, mut open: impl FnMut(bool)) {
        (0..self.any).for_each(|_| open(false));
        (0..self.http1).for_each(|_| open(true));
    }
}

impl State {
    pub(super) fn new(version: Option<Version>, bounds: &Bounds) -> Self {
        Self {
            idle: Vec::new(),
            multiplexed: Vec::new(),
            waiters: VecDeque::new(),
            waiters_http1: 0,
            next_id: 0,
            connections: 0,
            opening: 0,
            opening_http1: 0,
            // Where TLS has the choice, h2 is hoped for; the first connection tells.
            expected: if version == Some(Version::Http1) { 1 } else { bounds.streams },
            reaper: None,
            is_closing: false,
        }
    }

    /// The warm path: something free, and nobody in line before.
    pub(super) fn take_unless_waited_for(
        &mut self,
        wants: Wants,
        bounds: &Bounds,
        dead: &mut Vec<Dead>,
    ) -> Option<Grant> {
        if self.waiters.is_empty() { self.take(wants, bounds, dead) } else { None }
    }

    fn take(&mut self, wants: Wants, bounds: &Bounds, dead: &mut Vec<Dead>) -> Option<Grant> {
        if !wants.http1 {
            let free = match self.place(wants, bounds) {
                // A shared window is better than none: at the cap no other connection can come.
                None if wants.window && self.connections >= bounds.connections && self.opening == 0 => {
                    self.place(Wants { window: false, ..wants }, bounds)
                }
                found => found,
            };
            if let Some(entry) = free.and_then(|at| self.multiplexed.get_mut(at)) {
                entry.streams += 1;
                let used = std::mem::replace(&mut entry.used, true);
                return Some(Grant::Http2 { connection: Arc::clone(&entry.connection), used });
            }
        }
        while let Some((connection, _)) = self.idle.pop() {
            if connection.sender.is_ready() {
                return Some(Grant::Http1(connection));
            }
            dead.push(Dead::Http1 { _connection: connection });
        }
        None
    }

    /// A connection that has a place for another stream and, for one that wants to upload, a window.
    fn place(&self, wants: Wants, bounds: &Bounds) -> Option<usize> {
        let fits =
            |entry: &Multiplexed| entry.has_place(bounds) && !(wants.window && entry.connection.uploads.stand_still());
        self.multiplexed.iter().position(fits)
    }

    /// Joins the line; none when it is full.
    pub(super) fn enqueue(&mut self, wants: Wants, deliver: oneshot::Sender<Delivery>, most: usize) -> Option<u64> {
        if self.waiters.len() >= most {
            return None;
        }
        let id = self.next_id;
        self.next_id += 1;
        self.waiters_http1 += usize::from(wants.http1);
        self.waiters.push_back(Waiter { id, wants, deliver });
        Some(id)
    }

    /// Leaves the line, when still in it.
    pub(super) fn leave(&mut self, id: u64) -> Option<oneshot::Sender<Delivery>> {
        let index = self.waiters.binary_search_by_key(&id, |waiter| waiter.id).ok()?;
        self.remove(index)
    }

    fn remove(&mut self, index: usize) -> Option<oneshot::Sender<Delivery>> {
        let waiter = self.waiters.remove(index)?;
        self.waiters_http1 -= usize::from(waiter.wants.http1);
        Some(waiter.deliver)
    }

    /// Gives what is free to those who wait, in their order. One that needs HTTP/1.1, or the window of
    /// a connection where an upload stands still, does not hold up the others.
    pub(super) fn serve(
        &mut self,
        bounds: &Bounds,
        grants: &mut Vec<(oneshot::Sender<Delivery>, Grant)>,
        dead: &mut Vec<Dead>,
    ) {
        let mut index = 0;
        while let Some(wants) = self.waiters.get(index).map(|waiter| waiter.wants) {
            let Some(grant) = self.take(wants, bounds, dead) else {
                if wants.http1 || wants.window && self.multiplexed.iter().any(|entry| entry.has_place(bounds)) {
                    index += 1;
                    continue;
                }
                return;
            };
            if let Some(deliver) = self.remove(index) {
                grants.push((deliver, grant));
            }
        }
    }

    /// Lets go of the oldest idle connections beyond the bound.
    pub(super) fn trim(&mut self, bounds: &Bounds, dead: &mut Vec<Dead>) {
        let most = if self.is_closing { 0 } else { bounds.idle };
        let excess = self.idle.len().saturating_sub(most);
        dead.extend(self.idle.drain(..excess).map(|(connection, _)| Dead::Http1 { _connection: connection }));
        if self.is_closing {
            let unused = self.multiplexed.extract_if(.., |entry| entry.streams == 0);
            dead.extend(unused.map(|entry| Dead::Http2 { _connection: entry.connection }));
        }
    }

    /// Counts in the connections that must be opened so that each waiter has one to hope for.
    pub(super) fn open_missing(&mut self, bounds: &Bounds) -> Missing {
        let mut missing = Missing { any: 0, http1: 0 };
        while self.connections < bounds.connections && self.opening_http1 < self.waiters_http1 {
            self.opening_http1 += 1;
            self.connections += 1;
            missing.http1 += 1;
        }
        while self.connections < bounds.connections && self.uncovered() > 0 {
            self.opening += 1;
            self.connections += 1;
            missing.any += 1;
        }
        missing
    }

    /// Waiters that no connection being opened is going to serve.
    fn uncovered(&self) -> usize {
        let demand = self.waiters.len() - self.waiters_http1;
        demand.saturating_sub(self.opening.saturating_mul(self.expected))
    }

    pub(super) fn is_opening(&self) -> bool {
        self.opening + self.opening_http1 > 0
    }

    fn opened(&mut self, http1: bool) {
        let count = if http1 { &mut self.opening_http1 } else { &mut self.opening };
        *count = count.saturating_sub(1);
    }

    pub(super) fn add_http1(&mut self, connection: Http1, asked: bool, now: Instant) {
        self.opened(asked);
        if !asked {
            self.expected = 1;
        }
        self.idle.push((connection, now));
    }

    pub(super) fn add_http2(&mut self, connection: Arc<Http2>, now: Instant, bounds: &Bounds) {
        self.opened(false);
        let entry = Multiplexed { connection, streams: 0, idle_since: now, used: false };
        self.expected = entry.most(bounds).max(1);
        self.multiplexed.push(entry);
    }

    /// No connection came: takes those out of the line who had only this one to hope for.
    pub(super) fn open_failed(&mut self, http1: bool) -> Vec<oneshot::Sender<Delivery>> {
        self.opened(http1);
        let mut count = if http1 {
            self.waiters_http1.saturating_sub(self.opening_http1).min(1)
        } else {
            self.uncovered().min(self.expected)
        };
        let mut failed = Vec::with_capacity(count);
        let mut index = 0;
        while let Some(waiter) = self.waiters.get(index).filter(|_| count > 0) {
            if waiter.wants.http1 == http1 {
                failed.extend(self.remove(index));
                count -= 1;
            } else {
                index += 1;
            }
        }
        failed
    }

    /// The connection being opened was given up, and nobody is to open another: empties the line.
    pub(super) fn abandon(&mut self, http1: bool) -> Vec<oneshot::Sender<Delivery>> {
        self.opened(http1);
        self.waiters_http1 = 0;
        self.waiters.drain(..).map(|waiter| waiter.deliver).collect()
    }

    pub(super) fn put(&mut self, connection: Http1, now: Instant) {
        self.idle.push((connection, now));
    }

    pub(super) fn stream_ended(&mut self, connection: &Arc<Http2>, now: Instant) {
        if let Some(entry) = self.multiplexed.iter_mut().find(|entry| Arc::ptr_eq(&entry.connection, connection)) {
            entry.streams = entry.streams.saturating_sub(1);
            entry.idle_since = now;
        }
    }

    pub(super) fn slot_freed(&mut self) {
        self.connections = self.connections.saturating_sub(1);
    }

    /// h2 connections that take no request any more; their open streams go on.
    pub(super) fn take_closed(&mut self) -> Vec<Dead> {
        let closed = self.multiplexed.extract_if(.., |entry| !entry.is_open());
        closed.map(|entry| Dead::Http2 { _connection: entry.connection }).collect()
    }

    pub(super) fn take_idle(&mut self) -> Vec<Dead> {
        self.idle.drain(..).map(|(connection, _)| Dead::Http1 { _connection: connection }).collect()
    }

    pub(super) fn needs_reaper(&self) -> bool {
        self.reaper.is_none() && (!self.idle.is_empty() || self.multiplexed.iter().any(|entry| entry.streams == 0))
    }

    /// Takes out what was idle for its time; returns when the next one is due.
    pub(super) fn expire(&mut self, now: Instant, bounds: &Bounds, dead: &mut Vec<Dead>) -> Option<Instant> {
        let expired = |since: Instant| since + bounds.idle_timeout <= now;
        let old = self.idle.iter().take_while(|(_, since)| expired(*since)).count();
        dead.extend(self.idle.drain(..old).map(|(connection, _)| Dead::Http1 { _connection: connection }));
        let old = self.multiplexed.extract_if(.., |entry| entry.streams == 0 && expired(entry.idle_since));
        dead.extend(old.map(|entry| Dead::Http2 { _connection: entry.connection }));
        let idle = self.idle.first().map(|(_, since)| *since);
        let unused = self.multiplexed.iter().filter(|entry| entry.streams == 0).map(|entry| entry.idle_since).min();
        idle.into_iter().chain(unused).min().map(|since| since + bounds.idle_timeout)
    }

    pub(super) fn stats(&self) -> PoolStats {
        PoolStats {
            connections: self.connections,
            idle: self.idle.len() + self.multiplexed.iter().filter(|entry| entry.streams == 0).count(),
            streams: self.multiplexed.iter().map(|entry| entry.streams).sum(),
            waiting: self.waiters.len(),
            ..PoolStats::default()
        }
    }
}

impl Multiplexed {
    fn most(&self, bounds: &Bounds) -> usize {
        self.connection.limit.load(Relaxed).min(bounds.streams)
    }

    fn has_place(&self, bounds: &Bounds) -> bool {
        self.streams < self.most(bounds) && self.is_open()
    }

    fn is_open(&self) -> bool {
        !self.connection.sender.is_closed()
    }
}
