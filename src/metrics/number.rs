//! Counters and gauges.
//!
//! Each thread adds to its own cache line, so that adding costs the same however many workers there are. Reading sums
//! the shards: it is exact when nobody writes, and off by what is under way otherwise.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering::Relaxed};

/// A number that only grows.
#[derive(Clone, Debug, Default)]
pub struct Counter(Arc<Sharded>);

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.add(n.cast_signed());
    }

    /// The sum so far. Wraps past 2⁶⁴, as a reset does; whoever reads counters expects resets.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.sum().cast_unsigned()
    }

    pub(super) fn is_orphan(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

/// A number that goes up and down, or is set.
#[derive(Clone, Debug, Default)]
pub struct Gauge(Arc<Level>);

/// The value is `base` plus the shards. To set it moves `base` only, so that an addition that races with it is either
/// wholly before (and overwritten) or wholly after (and kept): pairs of `inc` and `dec` stay balanced.
#[derive(Debug, Default)]
struct Level {
    base: AtomicI64,
    moved: Sharded,
}

impl Gauge {
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Takes one away.
    pub fn dec(&self) {
        self.add(-1);
    }

    /// Adds `n`, which may be negative.
    pub fn add(&self, n: i64) {
        self.0.moved.add(n);
    }

    /// Makes it `value`; of two at once one stands.
    pub fn set(&self, value: i64) {
        self.0.base.store(value.wrapping_sub(self.0.moved.sum()), Relaxed);
    }

    /// Its value.
    #[must_use]
    pub fn get(&self) -> i64 {
        self.0.base.load(Relaxed).wrapping_add(self.0.moved.sum())
    }

    pub(super) fn is_orphan(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

/// Enough for the workers of a large machine to seldom share a line; a counter takes 1 KiB.
const SHARDS: usize = 16;

#[derive(Debug, Default)]
struct Sharded([Line; SHARDS]);

/// One cache line, so that no two threads write to the same one.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Line(AtomicI64);

impl Sharded {
    fn add(&self, n: i64) {
        if let Some(line) = self.0.get(shard()) {
            line.0.fetch_add(n, Relaxed);
        }
    }

    fn sum(&self) -> i64 {
        self.0.iter().fold(0, |sum, line| sum.wrapping_add(line.0.load(Relaxed)))
    }
}

/// The calling thread's shard: threads take turns.
fn shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static SHARD: usize = NEXT.fetch_add(1, Relaxed) % SHARDS);
    SHARD.with(|shard| *shard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn additions_of_many_threads_are_all_counted() {
        let (counter, gauge) = (Counter::default(), Gauge::default());
        std::thread::scope(|scope| {
            for _ in 0..2 * SHARDS {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        counter.inc();
                        gauge.inc();
                        gauge.add(2);
                        gauge.dec();
                    }
                });
            }
        });
        assert_eq!(counter.get(), 2 * SHARDS as u64 * 1000);
        assert_eq!(gauge.get(), counter.get().cast_signed() * 2);
    }

    #[test]
    fn a_gauge_that_is_set_keeps_what_is_added_later() {
        let gauge = Gauge::default();
        gauge.add(5);
        gauge.set(100);
        gauge.dec();
        assert_eq!(gauge.get(), 99);
    }

    #[test]
    fn a_counter_holds_large_numbers() {
        let counter = Counter::default();
        counter.add(u64::MAX - 1);
        counter.inc();
        assert_eq!(counter.get(), u64::MAX);
    }
}
