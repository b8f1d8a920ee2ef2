//! A bucket of bytes that is refilled evenly and may be overdrawn, kept as one number.
//!
//! How large a body is stands fast when it has passed. So a bucket is asked whether it is in credit at all, and charged
//! as the bytes pass; what was overdrawn is debt that has to be refilled before it is in credit again. Over any time
//! `x` that begins and ends out of debt, no more than `burst + x · amount / period` bytes have passed.
//!
//! The number is the time at which the bucket is full again, as in [`gcra`](super::gcra).

use std::num::NonZeroU64;
use std::time::Duration;

use super::gcra::{CENTURY, Nanos, Room, nanos};

/// The rule of a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteBucket {
    amount: NonZeroU64,
    period: Nanos,
    burst: NonZeroU64,
}

impl ByteBucket {
    /// Refills `amount` bytes in each `period`, up to `burst`.
    #[must_use]
    pub fn new(amount: NonZeroU64, period: Duration, burst: NonZeroU64) -> Self {
        Self { amount, period: nanos(period.min(CENTURY)).max(1), burst }
    }

    /// Whether a bucket that is full at `full_at` has a byte beyond `reserve`; else how long until it has.
    pub fn ask(&self, full_at: Nanos, now: Nanos, reserve: u64) -> Result<(), Duration> {
        let most = self.time(self.burst.get().saturating_sub(reserve).saturating_sub(1));
        let missing = full_at.saturating_sub(now);
        if missing <= most { Ok(()) } else { Err(Duration::from_nanos(missing - most)) }
    }

    /// When it is full after `bytes` have passed. What came in between stays valid.
    #[must_use]
    pub fn charge(&self, full_at: Nanos, now: Nanos, bytes: u64) -> Nanos {
        let later = full_at.max(now).saturating_add(self.time(bytes));
        later.min(now.saturating_add(nanos(CENTURY)))
    }

    /// What is left, and the time until it is full.
    #[must_use]
    pub fn room(&self, full_at: Nanos, now: Nanos) -> Room {
        let missing = full_at.saturating_sub(now);
        let bytes = (u128::from(missing) * u128::from(self.amount.get())).div_ceil(u128::from(self.period));
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        Room { remaining: self.burst.get().saturating_sub(bytes), next: Duration::from_nanos(missing) }
    }

    /// The time in which so many bytes are refilled, rounded up: never a byte too early.
    fn time(&self, bytes: u64) -> Nanos {
        let time = (u128::from(bytes) * u128::from(self.period)).div_ceil(u128::from(self.amount.get()));
        u64::try_from(time).unwrap_or(u64::MAX).min(nanos(CENTURY))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bucket(amount: u64, seconds: u64, burst: u64) -> ByteBucket {
        let positive = |n| NonZeroU64::new(n).expect("positive");
        ByteBucket::new(positive(amount), Duration::from_secs(seconds), positive(burst))
    }

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn debt_is_kept_and_paid_by_time() {
        let bucket = bucket(1000, 1, 500);
        assert_eq!(bucket.ask(0, SECOND, 0), Ok(()));
        let full_at = bucket.charge(0, SECOND, 2500);
        assert_eq!(full_at, SECOND * 7 / 2);
        assert_eq!(bucket.room(full_at, SECOND), Room { remaining: 0, next: Duration::from_millis(2500) });
        // 2000 in debt, and one more byte for the credit.
        assert_eq!(bucket.ask(full_at, SECOND, 0), Err(Duration::from_millis(2001)));
        let later = SECOND + 2_001_000_000;
        assert_eq!((bucket.ask(full_at, later, 0), bucket.room(full_at, later).remaining), (Ok(()), 1));
        bucket.ask(full_at, later - 1, 0).expect_err("a nanosecond too early");
        assert_eq!(bucket.room(full_at, later + 10 * SECOND).remaining, 500);
    }

    #[test]
    fn a_reserve_is_left_to_others() {
        let bucket = bucket(1000, 1, 500);
        let full_at = bucket.charge(0, SECOND, 250);
        assert_eq!(bucket.ask(full_at, SECOND, 0), Ok(()));
        assert_eq!(bucket.ask(full_at, SECOND, 250), Err(Duration::from_millis(1)));
        assert_eq!(bucket.ask(0, SECOND, u64::MAX), Ok(()), "a full bucket is in credit for everybody");
    }

    #[test]
    fn extremes_do_no_harm() {
        let slow = bucket(1, 3600, u64::MAX);
        let full_at = slow.charge(0, SECOND, u64::MAX);
        assert_eq!(full_at, SECOND + nanos(CENTURY));
        assert_eq!(slow.charge(full_at, SECOND, u64::MAX), full_at);
        let fast = bucket(u64::MAX, 1, 1);
        assert_eq!(fast.ask(fast.charge(0, 5, 1), 5, 0), Err(Duration::from_nanos(1)));
        // A clock that another thread read earlier.
        slow.ask(full_at, 0, 0).expect_err("in debt");
    }

    proptest! {
        #[test]
        fn no_more_passes_than_burst_and_rate(
            amount in 1_u64..10_000,
            burst in 1_u64..10_000,
            steps in prop::collection::vec((0_u64..3_000_000_000, 1_u64..5_000), 1..60),
        ) {
            let bucket = bucket(amount, 1, burst);
            let (mut now, mut full_at, mut passed) = (0, 0, 0_u64);
            for (pause, bytes) in steps {
                now += pause;
                match bucket.ask(full_at, now, 0) {
                    Ok(()) => {
                        let before = passed;
                        passed += bytes;
                        full_at = bucket.charge(full_at, now, bytes);
                        // All but the last body, which was let in on a single byte of credit.
                        let refilled = u128::from(now) * u128::from(amount) / u128::from(SECOND);
                        prop_assert!(u128::from(before) < u128::from(burst) + refilled + 1);
                    }
                    Err(wait) => {
                        let then = now + nanos(wait);
                        prop_assert!(bucket.ask(full_at, then, 0).is_ok());
                        prop_assert!(bucket.ask(full_at, then - 1, 0).is_err());
                        prop_assert_eq!(bucket.room(full_at, now).remaining, 0);
                    }
                }
            }
        }
    }
}
