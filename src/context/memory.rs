//! A budget of bytes over all that is buffered.
//!
//! Nobody counts bytes as they come and go. Each connection and each request reserves what it may hold at the most, and
//! gives it back when it ends; so the sum is a bound, and costs a request two additions. What is reserved is seldom
//! held: a reservation is a promise to stay below.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};

use tokio::sync::Notify;

/// See the module's text.
#[derive(Debug)]
pub struct Memory {
    limit: AtomicU64,
    reserved: AtomicU64,
    /// The part of it that connections reserved.
    connections: AtomicU64,
    /// Connections that wait for room.
    waiting: AtomicUsize,
    freed: Notify,
}

impl Default for Memory {
    /// Without a limit.
    fn default() -> Self {
        Self {
            limit: AtomicU64::new(u64::MAX),
            reserved: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            freed: Notify::new(),
        }
    }
}

/// What a connection reserved, until it is dropped.
#[derive(Debug)]
pub struct Reserved {
    memory: Arc<Memory>,
    bytes: u64,
}

impl Memory {
    /// Sets the limit. What is reserved beyond a lower one is left to end by itself.
    pub fn set_limit(&self, bytes: u64) {
        self.limit.store(bytes, Relaxed);
        self.freed.notify_waiters();
    }

    /// The limit.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.limit.load(Relaxed)
    }

    /// Bytes reserved.
    #[must_use]
    pub fn reserved(&self) -> u64 {
        self.reserved.load(Relaxed)
    }

    /// Whether more than so many millionths of the limit are reserved.
    pub(super) fn is_above(&self, millionths: u32) -> bool {
        u128::from(self.reserved()) * 1_000_000 > u128::from(self.limit()) * u128::from(millionths)
    }

    /// Reserves `bytes` for a request; false when there is no room.
    pub(super) fn reserve(&self, bytes: u64) -> bool {
        take(&self.reserved, bytes, self.limit())
    }

    pub(super) fn release(&self, bytes: u64) {
        self.reserved.fetch_sub(bytes, SeqCst);
        if self.waiting.load(SeqCst) > 0 {
            self.freed.notify_waiters();
        }
    }

    /// Waits until there is room for a connection that may hold `bytes`. Connections leave a quarter to requests.
    pub async fn admit(self: &Arc<Self>, bytes: u64) -> Reserved {
        if !self.try_admit(bytes) {
            self.waiting.fetch_add(1, SeqCst);
            let _waits = Waits(&self.waiting);
            loop {
                let mut freed = std::pin::pin!(self.freed.notified());
                // What is given back from here on is heard.
                freed.as_mut().enable();
                if self.try_admit(bytes) {
                    break;
                }
                freed.await;
            }
        }
        Reserved { memory: Arc::clone(self), bytes }
    }

    fn try_admit(&self, bytes: u64) -> bool {
        let share = self.limit() / 4 * 3;
        if !take(&self.connections, bytes, share) {
            return false;
        }
        let taken = self.reserve(bytes);
        if !taken {
            self.connections.fetch_sub(bytes, SeqCst);
        }
        taken
    }
}

/// Adds `bytes` to `sum`, unless that exceeds `most`. What does not fit is never in the sum, not even for a moment, in
/// which others would be turned away for its sake.
fn take(sum: &AtomicU64, bytes: u64, most: u64) -> bool {
    let fitting = |sum: u64| sum.checked_add(bytes).filter(|sum| *sum <= most);
    sum.fetch_update(SeqCst, SeqCst, fitting).is_ok()
}

struct Waits<'a>(&'a AtomicUsize);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.memory.connections.fetch_sub(self.bytes, SeqCst);
        self.memory.release(self.bytes);
    }
}

/// What each reserves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// A connection.
    pub connection: u64,
    /// What TLS adds to it.
    pub tls: u64,
    /// A request, until its answer has ended.
    pub request: u64,
    /// What the body of a request adds to it on HTTP/1.1.
    pub upload: u64,
    /// The same on HTTP/2, with the window of its stream.
    pub upload_h2: u64,
}

const KIB: u64 = 1 << 10;

impl Shares {
    /// By the bytes of `stream.buffer` and `server.max_header_size`.
    #[must_use]
    pub fn new(buffer: usize, header: usize) -> Self {
        let bytes = |size| u64::try_from(size).unwrap_or(u64::MAX / 16);
        let (buffer, header) = (bytes(buffer), bytes(header));
        let window = buffer.max(64 * KIB);
        Self {
            // Tasks, tables of HPACK and a frame; a head that is not whole, twice: as it came and as it was read.
            connection: 32 * KIB + 2 * buffer.max(header),
            // A record each way, and what was written and not sent.
            tls: 32 * KIB + buffer,
            // The tasks and the head; a buffer and a frame towards each side.
            request: 16 * KIB + header + 4 * buffer,
            // A frame, and what waits for the service.
            upload: 2 * buffer,
            // Also what was sent ahead of its turn.
            upload_h2: 2 * buffer + window,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    #[test]
    fn the_sum_never_exceeds_the_limit() {
        let memory = Memory::default();
        assert!(memory.reserve(u64::MAX / 2), "there is no limit yet");
        memory.release(u64::MAX / 2);
        memory.set_limit(100);
        assert_eq!((0..9).filter(|_| memory.reserve(30)).count(), 3);
        assert!(memory.reserve(10) && !memory.reserve(1));
        memory.release(30);
        assert!(memory.reserve(30));
        assert!(memory.is_above(999_999) && !memory.is_above(1_000_000));
        memory.set_limit(50);
        memory.release(60);
        assert!(!memory.reserve(20) && memory.reserve(10));
        assert_eq!((memory.reserved(), memory.limit()), (50, 50));
    }

    #[tokio::test]
    async fn connections_leave_room_for_requests_and_wait_for_each_other() {
        let memory = Arc::new(Memory::default());
        memory.set_limit(100);
        let first = memory.admit(70).now_or_never().expect("room");
        let mut second = Box::pin(memory.admit(20));
        assert!(second.as_mut().now_or_never().is_none(), "a quarter is for requests");
        assert!(memory.reserve(30));
        drop(first);
        let second = second.await;
        assert_eq!(memory.reserved(), 50);
        // Requests may fill all of it; then connections wait for them.
        assert!(memory.reserve(50));
        let mut third = Box::pin(memory.admit(10));
        assert!(third.as_mut().now_or_never().is_none());
        memory.release(50);
        drop((third.await, second));
        memory.release(30);
        assert_eq!((memory.reserved(), memory.connections.load(SeqCst)), (0, 0));
        assert_eq!(memory.waiting.load(SeqCst), 0);
    }

    #[tokio::test]
    async fn a_higher_limit_lets_in_who_waits() {
        let memory = Arc::new(Memory::default());
        memory.set_limit(0);
        let mut waits = Box::pin(memory.admit(10));
        assert!(waits.as_mut().now_or_never().is_none());
        memory.set_limit(100);
        drop(waits.await);
        let mut leaves = Box::pin(memory.admit(80));
        assert!(leaves.as_mut().now_or_never().is_none());
        drop(leaves);
        assert_eq!((memory.reserved(), memory.waiting.load(SeqCst)), (0, 0));
    }

    #[test]
    fn the_shares_are_those_of_the_manual() {
        let shares = Shares::new(16 << 10, 16 << 10);
        let kib = [shares.connection, shares.tls, shares.request, shares.upload, shares.upload_h2].map(|b| b / KIB);
        assert_eq!(kib, [64, 48, 96, 32, 96]);
    }
}
