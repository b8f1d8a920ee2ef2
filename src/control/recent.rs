//! How long requests have taken of late: a quantile over half a minute to a minute, in a fixed few bytes.

use std::time::Duration;

use tokio::time::Instant;

/// How long each of the two halves is filled.
const HALF: Duration = Duration::from_secs(30);
/// Buckets to each doubling.
const STEPS: u32 = 4;
/// From a microsecond to more than an hour.
const BUCKETS: usize = 132;
/// Fewer say nothing about the slowest.
const FEWEST: u32 = 20;

type Counts = [u32; BUCKETS];

/// See the module's text.
#[derive(Clone, Debug)]
pub struct Recent {
    since: Instant,
    filling: Counts,
    full: Counts,
}

impl Recent {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { since: now, filling: [0; BUCKETS], full: [0; BUCKETS] }
    }

    /// A request took so long.
    pub fn observe(&mut self, latency: Duration, now: Instant) {
        self.turn(now);
        if let Some(count) = self.filling.get_mut(bucket(latency)) {
            *count = count.saturating_add(1);
        }
    }

    /// What so many percent did not exceed, by a quarter too long at most; none while there are too few.
    #[must_use]
    pub fn percentile(&mut self, percent: u32, now: Instant) -> Option<Duration> {
        self.turn(now);
        let counts = || self.filling.iter().zip(&self.full).map(|(one, other)| u64::from(*one) + u64::from(*other));
        let all: u64 = counts().sum();
        if all < u64::from(FEWEST) {
            return None;
        }
        let wanted = (all * u64::from(percent)).div_ceil(100);
        let mut below = 0;
        let found = counts().position(|count| {
            below += count;
            below >= wanted
        });
        found.map(upper)
    }

    fn turn(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed >= HALF {
            let last = std::mem::replace(&mut self.filling, [0; BUCKETS]);
            self.full = if elapsed < 2 * HALF { last } else { [0; BUCKETS] };
            self.since = now;
        }
    }
}

/// Four buckets to each doubling: the power of two, and the two bits below it.
fn bucket(latency: Duration) -> usize {
    let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).max(STEPS.into());
    let power = micros.ilog2();
    let step = (micros >> (power - 2)) & 3;
    usize::try_from(u64::from((power - 2) * STEPS) + step).unwrap_or(BUCKETS).min(BUCKETS - 1)
}

/// Where a bucket ends.
fn upper(bucket: usize) -> Duration {
    let bucket = u32::try_from(bucket).unwrap_or(0);
    Duration::from_micros((u64::from(STEPS + bucket % STEPS) + 1) << (bucket / STEPS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_slow_ones_are_found() {
        let now = Instant::now();
        let mut recent = Recent::new(now);
        (0..19).for_each(|_| recent.observe(Duration::from_millis(10), now));
        assert_eq!(recent.percentile(95, now), None, "too few");
        (0..76).for_each(|_| recent.observe(Duration::from_millis(10), now));
        (0..5).for_each(|_| recent.observe(Duration::from_secs(2), now));
        let slow = recent.percentile(96, now).expect("a hundred are enough");
        let usual = recent.percentile(95, now).expect("a hundred are enough");
        assert!(usual >= Duration::from_millis(10) && usual < Duration::from_millis(13), "{usual:?}");
        assert!(slow >= Duration::from_secs(2) && slow < Duration::from_millis(2500), "{slow:?}");
    }

    #[test]
    fn what_is_older_than_a_minute_is_forgotten() {
        let began = Instant::now();
        let mut recent = Recent::new(began);
        (0..50).for_each(|_| recent.observe(Duration::from_secs(1), began));
        assert!(recent.percentile(95, began + HALF).is_some());
        assert!(recent.percentile(95, began + 2 * HALF).is_none());
        (0..50).for_each(|_| recent.observe(Duration::from_secs(1), began + 2 * HALF));
        assert!(recent.percentile(95, began + 9 * HALF).is_none());
    }

    proptest! {
        #[test]
        fn a_bucket_ends_less_than_a_third_above_what_is_in_it(micros in 4_u64..4_000_000_000) {
            let end = u64::try_from(upper(bucket(Duration::from_micros(micros))).as_micros()).expect("small");
            prop_assert!(end > micros && end <= micros + micros / 4 + 1, "{micros} {end}");
        }
    }
}
