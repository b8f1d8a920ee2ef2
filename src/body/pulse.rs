//! When bytes last passed in one direction, told to the clock of the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

/// See the module's text. Clones share it.
#[derive(Clone, Debug)]
pub struct Pulse(Arc<Beats>);

#[derive(Debug)]
struct Beats {
    began: Instant,
    last_millis: AtomicU64,
    is_over: AtomicBool,
}

impl Default for Pulse {
    /// Begins now.
    fn default() -> Self {
        let (last_millis, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
        Self(Arc::new(Beats { began: Instant::now(), last_millis, is_over }))
    }
}

impl Pulse {
    /// Bytes have passed.
    pub fn beat(&self) {
        let elapsed = self.0.began.elapsed().as_millis();
        self.0.last_millis.store(u64::try_from(elapsed).unwrap_or(u64::MAX), Relaxed);
    }

    /// No more will.
    pub fn stop(&self) {
        self.0.is_over.store(true, Relaxed);
    }

    /// Whether no more bytes will pass.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.0.is_over.load(Relaxed)
    }

    /// How long after its beginning bytes last passed.
    #[must_use]
    pub fn age_at_last(&self) -> Duration {
        Duration::from_millis(self.0.last_millis.load(Relaxed))
    }

    /// When bytes last passed; at first, when it began.
    #[must_use]
    pub fn last(&self) -> Instant {
        self.0.began + self.age_at_last()
    }
}
