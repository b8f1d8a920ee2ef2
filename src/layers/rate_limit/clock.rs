//! The time of a limit, which passes faster while it is raised.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::control::gcra::{Nanos, nanos};
use crate::control::surge::{Pace, Permille, Raise, USUAL, Window};

/// One reading of the clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    /// Since the limit was made.
    pub(super) real: Nanos,
    /// The limit's own time, in which its buckets are refilled.
    pub(super) paced: Nanos,
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Clock {
    start: Instant,
    /// Whether its time differs, or ever did, from everybody's. Without that nobody takes the lock.
    is_paced: AtomicBool,
    pace: Mutex<Pace>,
    wall: fn() -> Nanos,
}

impl Clock {
    /// It begins now. `wall` tells the time since 1970.
    pub(super) fn new(windows: &[Window], wall: fn() -> Nanos) -> Self {
        let pace = Mutex::new(Pace::new(windows, 0));
        Self { start: Instant::now(), is_paced: AtomicBool::new(!windows.is_empty()), pace, wall }
    }

    pub(super) fn read(&self, now: Instant) -> Now {
        let real = nanos(now.saturating_duration_since(self.start));
        let paced = if self.is_paced.load(Relaxed) { self.pace().at(real, self.wall) } else { real };
        Now { real, paced }
    }

    /// How long it takes until its own time has gone on by `ahead`.
    pub(super) fn wait(&self, now: Now, ahead: Duration) -> Duration {
        if !self.is_paced.load(Relaxed) {
            return ahead;
        }
        let then = self.pace().reaches(now.paced.saturating_add(nanos(ahead)));
        Duration::from_nanos(then.saturating_sub(now.real))
    }

    pub(super) fn factor(&self) -> Permille {
        if self.is_paced.load(Relaxed) { self.pace().factor() } else { USUAL }
    }

    pub(super) fn raise(&self, raise: Raise, now: Instant) {
        let mut pace = self.pace();
        let real = nanos(now.saturating_duration_since(self.start));
        pace.raise(raise, real, self.wall);
        self.is_paced.store(true, Relaxed);
    }

    /// Whether there was anything to let fall.
    pub(super) fn lower(&self, now: Instant) -> bool {
        self.is_paced.load(Relaxed) && {
            let real = nanos(now.saturating_duration_since(self.start));
            self.pace().lower(real, self.wall)
        }
    }

    /// How long a raise by hand stays, and until it has come down.
    pub(super) fn raised_for(&self, now: Now) -> Option<(Duration, Duration)> {
        let (top, end) = self.pace().raised_until(now.real)?;
        let left = |at: Nanos| Duration::from_nanos(at.saturating_sub(now.real));
        Some((left(top), left(end)))
    }

    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The wall clock, since 1970.
pub(super) fn wall() -> Nanos {
    nanos(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}
