//! The generic cell rate algorithm: a bucket of requests that is refilled evenly, kept as one number.
//!
//! The number is the time at which the bucket is full again. A request moves it forward by one step, and is refused
//! when that would be more than `burst` steps away. So over any time `x` a bucket gives at most `burst + x / step`
//! requests, to the nanosecond, and it does not matter how often it was asked in between.

use std::num::NonZeroU32;
use std::time::Duration;

/// A point in time, in nanoseconds since one that the owner of the buckets has chosen.
pub type Nanos = u64;

/// The rule of a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gcra {
    /// Time in which the bucket gets one request more.
    step: u64,
    burst: u32,
}

/// What a bucket has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// What may come at once: requests, or bytes.
    pub remaining: u64,
    /// Until one more; of a bucket of bytes, until it is full.
    pub next: Duration,
}

/// Nobody can tell a bucket that saves up for longer from this one, and the arithmetic would overflow.
pub(super) const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

impl Gcra {
    /// Refills one request each `step`, at least a nanosecond, up to `burst`.
    #[must_use]
    pub fn new(step: Duration, burst: NonZeroU32) -> Self {
        let step = nanos(step.min(CENTURY)).max(1);
        let most = u32::try_from(nanos(CENTURY) / step).unwrap_or(u32::MAX);
        Self { step, burst: burst.get().min(most) }
    }

    /// Takes one request from a bucket that is full at `full_at`, a full one when that has passed. Gives the time at
    /// which it is full afterwards, or else how long to wait until it has a request.
    pub fn take(&self, full_at: Nanos, now: Nanos) -> Result<Nanos, Duration> {
        self.take_beyond(full_at, now, 0)
    }

    /// The same for one that has to leave a reserve for others, which a full bucket always has one more than.
    pub fn take_beyond(&self, full_at: Nanos, now: Nanos, reserve: u32) -> Result<Nanos, Duration> {
        let later = full_at.max(now) + self.step;
        let allowed = now + u64::from(self.burst.saturating_sub(reserve).max(1)) * self.step;
        if later <= allowed { Ok(later) } else { Err(Duration::from_nanos(later - allowed)) }
    }

    /// Undoes a use. What came in between stays valid, since each use moves the time by its own step.
    #[must_use]
    pub fn give_back(&self, full_at: Nanos) -> Nanos {
        full_at.saturating_sub(self.step)
    }

    /// What is left of a bucket that is full at `full_at`.
    #[must_use]
    pub fn room(&self, full_at: Nanos, now: Nanos) -> Room {
        let missing = full_at.saturating_sub(now);
        let used = u32::try_from(missing.div_ceil(self.step)).unwrap_or(u32::MAX);
        // It gets its requests back at whole steps before it is full.
        let next = missing.checked_sub(1).map_or(0, |rest| rest % self.step + 1);
        Room { remaining: self.burst.saturating_sub(used).into(), next: Duration::from_nanos(next) }
    }
}

/// A duration as [`Nanos`]; the longest of 584 years.
#[must_use]
pub fn nanos(duration: Duration) -> Nanos {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rule(step: u64, burst: u32) -> Gcra {
        Gcra::new(Duration::from_nanos(step), NonZeroU32::new(burst).expect("positive"))
    }

    /// The definition, without the trick: one more is allowed when no stretch of time that ends with it has had more
    /// than the burst and what was refilled. Gives the longest wait that one of them demands.
    fn wait_by_definition(admitted: &[u64], now: u64, step: u64, burst: u32) -> u64 {
        let since = |(before, at): (usize, &u64)| {
            let count = (admitted.len() - before + 1) as u64;
            (count.saturating_sub(burst.into()) * step).saturating_sub(now - at)
        };
        admitted.iter().enumerate().map(since).max().unwrap_or(0)
    }

    proptest! {
        #[test]
        fn it_decides_as_the_definition_does(
            step in 1_u64..50,
            burst in 1_u32..6,
            pauses in prop::collection::vec(0_u64..60, 1..80),
        ) {
            let rule = rule(step, burst);
            let (mut now, mut full_at, mut admitted) = (0, 0, Vec::new());
            for pause in pauses {
                now += pause;
                let wait = wait_by_definition(&admitted, now, step, burst);
                let before = rule.room(full_at, now);
                prop_assert_eq!(before.remaining == 0, wait > 0);
                match rule.take(full_at, now) {
                    Ok(later) => {
                        prop_assert_eq!(wait, 0);
                        prop_assert_eq!(rule.room(later, now).remaining, before.remaining - 1);
                        admitted.push(now);
                        full_at = later;
                    }
                    Err(told) => {
                        prop_assert_eq!(told, Duration::from_nanos(wait));
                        prop_assert_eq!(before.next, told);
                        prop_assert!(rule.take(full_at, now + wait - 1).is_err());
                        prop_assert!(rule.take(full_at, now + wait).is_ok());
                    }
                }
            }
        }

        #[test]
        fn what_is_told_comes_true(step in 1_u64..50, burst in 1_u32..6, used in 1_u64..300, now in 0_u64..300) {
            let rule = rule(step, burst);
            let full_at = now + used.min(u64::from(burst) * step);
            let Room { remaining, next } = rule.room(full_at, now);
            let until = now + nanos(next);
            prop_assert_eq!(rule.room(full_at, until - 1).remaining, remaining);
            prop_assert_eq!(rule.room(full_at, until).remaining, remaining + 1);
        }

        #[test]
        fn a_use_that_is_given_back_has_not_been(step in 1_u64..50, burst in 2_u32..6, now in 0_u64..300) {
            let rule = rule(step, burst);
            let once = rule.take(0, now).expect("a full bucket");
            let twice = rule.take(once, now).expect("room for two");
            prop_assert_eq!(rule.give_back(twice), once);
            prop_assert_eq!(rule.room(rule.give_back(once), now), rule.room(0, now));
        }
    }

    #[test]
    fn a_reserve_is_left_to_others() {
        let rule = rule(10, 4);
        let once = rule.take_beyond(0, 100, 2).expect("a full bucket");
        let twice = rule.take_beyond(once, 100, 2).expect("three are left");
        assert_eq!(rule.take_beyond(twice, 100, 2), Err(Duration::from_nanos(10)));
        assert!(rule.take_beyond(twice, 110, 2).is_ok() && rule.take(twice, 100).is_ok());
        assert!(rule.take_beyond(0, 100, u32::MAX).is_ok(), "a full bucket is in credit for everybody");
    }

    #[test]
    fn extremes_do_no_harm() {
        let hour = Duration::from_secs(3600);
        assert_eq!(Gcra::new(hour, NonZeroU32::MAX).room(0, 0).remaining, 100 * 365 * 24);
        assert_eq!(Gcra::new(Duration::MAX, NonZeroU32::MAX).room(0, 0).remaining, 1);
        assert_eq!(Gcra::new(Duration::ZERO, NonZeroU32::MAX).room(0, 0).remaining, u64::from(u32::MAX));
        let late = nanos(CENTURY) * 3;
        let slow = Gcra::new(Duration::MAX, NonZeroU32::MIN);
        let full_at = slow.take(0, late).expect("a full bucket");
        assert_eq!(slow.take(full_at, late), Err(CENTURY));
        // A clock that another thread read earlier: the bucket is as it was, and nothing wraps.
        assert_eq!(slow.take(full_at, 0), Err(Duration::from_nanos(full_at)));
    }
}
