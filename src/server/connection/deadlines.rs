//! When a connection has taken too long, by what is known of it and the time.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::frames::Frames;
use crate::context::Connection;
use crate::entropy;

/// The clocks of one connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadlines {
    /// For a head that has begun.
    pub(super) head: Duration,
    /// For the first request, where a client must speak before it is known to be one.
    pub(super) first: Option<Duration>,
    /// For a connection without a request.
    pub(super) idle: Duration,
    /// When it is old.
    pub(super) old_at: Option<Instant>,
}

/// What took too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overdue {
    /// A head that has begun and does not end.
    Head,
    /// The next request.
    Request,
    /// The connection has lived long enough.
    Age,
}

/// What is known of a connection.
#[derive(Clone, Copy, Debug)]
struct Facts {
    opened_at: Instant,
    /// Requests under way.
    active: usize,
    /// Requests so far.
    requests: u64,
    idle_since: Instant,
    /// Since when a head is incomplete.
    head_since: Option<Instant>,
}

impl Deadlines {
    /// Spreads an age by a tenth to either side, so that clients that came together do not come back together.
    pub(super) fn spread(age: Duration) -> Duration {
        age.mul_f64(0.9 + entropy::unit() / 5.0)
    }

    /// Ends when something is overdue.
    pub(super) async fn pass(self, connection: &Connection, frames: Option<&Frames>) -> Overdue {
        loop {
            let facts = Facts {
                opened_at: connection.opened_at(),
                active: connection.active(),
                requests: connection.requests(),
                idle_since: connection.idle_since(),
                // On HTTP/2 bytes come at any time, and only the frames tell whether a head has begun.
                head_since: frames.map_or_else(|| connection.head_since(), Frames::head_since),
            };
            match self.look(facts, Instant::now()) {
                Ok(next) => sleep_until(next).await,
                Err(overdue) => return overdue,
            }
        }
    }

    /// What is overdue, or when to look again. Facts change without a word, so a look comes twice in each clock's time.
    fn look(self, facts: Facts, now: Instant) -> Result<Instant, Overdue> {
        if self.old_at.is_some_and(|old_at| old_at <= now) {
            return Err(Overdue::Age);
        }
        let head_until = facts.head_since.and_then(|since| since.checked_add(self.head));
        let first_until = self.first.filter(|_| facts.requests == 0).map(|first| facts.opened_at + first);
        let idle_until = facts.idle_since + self.idle;
        let (until, overdue) = match (head_until, first_until) {
            (Some(head), _) => (Some(head), Overdue::Head),
            (None, _) if facts.active > 0 => (None, Overdue::Request),
            (None, Some(first)) => (Some(first.min(idle_until)), Overdue::Request),
            (None, None) => (Some(idle_until), Overdue::Request),
        };
        if until.is_some_and(|until| until <= now) {
            return Err(overdue);
        }
        let glance = now + (self.idle.min(self.head) / 2).max(Duration::from_millis(1));
        Ok([until, self.old_at].into_iter().flatten().fold(glance, Instant::min))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    const CLOCKS: Deadlines = Deadlines { head: secs(10), first: None, idle: secs(60), old_at: None };

    fn idle(opened_at: Instant) -> Facts {
        Facts { opened_at, active: 0, requests: 1, idle_since: opened_at, head_since: None }
    }

    #[test]
    fn without_a_request_it_idles_and_with_one_it_does_not() {
        let start = Instant::now();
        let facts = idle(start);
        assert_eq!(CLOCKS.look(facts, start), Ok(start + secs(5)), "half the shortest clock");
        assert_eq!(CLOCKS.look(facts, start + secs(58)), Ok(start + secs(60)));
        assert_eq!(CLOCKS.look(facts, start + secs(60)), Err(Overdue::Request));
        let busy = Facts { active: 1, ..facts };
        assert_eq!(CLOCKS.look(busy, start + secs(600)), Ok(start + secs(605)));
    }

    #[test]
    fn a_head_has_its_own_time_also_beside_requests() {
        let start = Instant::now();
        let facts = Facts { head_since: Some(start + secs(20)), ..idle(start) };
        assert_eq!(CLOCKS.look(facts, start + secs(29)), Ok(start + secs(30)));
        for active in [0, 3] {
            assert_eq!(CLOCKS.look(Facts { active, ..facts }, start + secs(30)), Err(Overdue::Head));
        }
    }

    #[test]
    fn the_first_request_must_come_sooner_than_the_next() {
        let start = Instant::now();
        let clocks = Deadlines { first: Some(secs(10)), ..CLOCKS };
        let facts = idle(start);
        assert_eq!(clocks.look(Facts { requests: 0, ..facts }, start + secs(10)), Err(Overdue::Request));
        assert!(clocks.look(facts, start + secs(10)).is_ok());
    }

    #[test]
    fn age_ends_the_busiest() {
        let start = Instant::now();
        let clocks = Deadlines { old_at: Some(start + secs(100)), ..CLOCKS };
        let busy = Facts { active: 9, ..idle(start) };
        assert_eq!(clocks.look(busy, start + secs(99)), Ok(start + secs(100)));
        assert_eq!(clocks.look(busy, start + secs(100)), Err(Overdue::Age));
        let spread = Deadlines::spread(secs(100));
        assert!((secs(90)..=secs(110)).contains(&spread), "{spread:?}");
    }
}
