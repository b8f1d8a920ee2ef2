//! How much of what would fail anyway is not even tried: adaptive throttling of the SRE book ("Handling Overload").
//!
//! Of the requests of the last ten seconds, `(requests - successes / least) / (requests + 1)` are turned away, those
//! that were turned away counted among the requests. So nothing is while the share of successes is at least `least`,
//! and the more the further it falls; but a tenth is always tried, or nobody would see the end of it.

use std::time::Duration;

use tokio::time::Instant;

/// A second each.
const BUCKETS: usize = 10;
const BUCKET: Duration = Duration::from_secs(1);
/// At most so much is turned away.
const MOST: f64 = 0.9;

/// What became of the requests of the last ten seconds.
#[derive(Debug)]
pub struct SuccessRate {
    least: f64,
    began: Instant,
    /// Which second the last bucket is, counted from the beginning.
    second: u64,
    buckets: [Count; BUCKETS],
    total: Count,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    requests: u64,
    successes: u64,
}

impl SuccessRate {
    /// Nothing has happened yet. `least` is the share of successes, above 0, below which requests are turned away.
    #[must_use]
    pub fn new(least: f64, now: Instant) -> Self {
        Self { least, began: now, second: 0, buckets: [Count::default(); BUCKETS], total: Count::default() }
    }

    /// Whether this request is turned away, which then counts as a request without success. `luck` is from 0 to 1.
    pub fn refuses(&mut self, now: Instant, luck: f64) -> bool {
        self.roll(now);
        let refuses = luck < self.share();
        if refuses {
            self.add(false);
        }
        refuses
    }

    /// A request that was tried has ended, well or not.
    pub fn ended(&mut self, now: Instant, well: bool) {
        self.roll(now);
        self.add(well);
    }

    /// The share that is turned away.
    fn share(&self) -> f64 {
        let (requests, successes) = (to_float(self.total.requests), to_float(self.total.successes));
        ((requests - successes / self.least) / (requests + 1.0)).clamp(0.0, MOST)
    }

    fn add(&mut self, well: bool) {
        let at = usize::try_from(self.second % BUCKETS as u64).unwrap_or(0);
        for count in self.buckets.get_mut(at).into_iter().chain([&mut self.total]) {
            count.requests += 1;
            count.successes += u64::from(well);
        }
    }

    /// Forgets what is older than the window.
    fn roll(&mut self, now: Instant) {
        let second = now.duration_since(self.began).as_secs() / BUCKET.as_secs();
        let steps = usize::try_from(second.saturating_sub(self.second)).unwrap_or(BUCKETS).min(BUCKETS);
        for step in 0..steps {
            let at = (second - step as u64) % BUCKETS as u64;
            if let Some(count) = usize::try_from(at).ok().and_then(|at| self.buckets.get_mut(at)) {
                self.total.requests -= count.requests;
                self.total.successes -= count.successes;
                *count = Count::default();
            }
        }
        self.second = self.second.max(second);
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of ten seconds are far below 2^52")]
fn to_float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LEAST: f64 = 0.5;

    struct World {
        rate: SuccessRate,
        now: Instant,
        luck: u64,
    }

    impl World {
        fn new() -> Self {
            let now = Instant::now();
            Self { rate: SuccessRate::new(LEAST, now), now, luck: 1 }
        }

        /// A hundred requests a second of which so many in ten succeed; gives the share that was turned away.
        fn run(&mut self, seconds: u64, good_in_ten: u64) -> f64 {
            let (mut refused, count) = (0, seconds * 100);
            for n in 0..count {
                self.now += Duration::from_millis(10);
                self.luck = self.luck.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                if self.rate.refuses(self.now, to_float(self.luck >> 11) / 9_007_199_254_740_992.0) {
                    refused += 1;
                } else {
                    self.rate.ended(self.now, n % 10 < good_in_ten);
                }
            }
            to_float(refused) / to_float(count)
        }
    }

    #[test]
    fn nothing_is_turned_away_while_enough_succeeds() {
        let mut world = World::new();
        assert!(world.run(30, 10) <= 0.0);
        assert!(world.run(30, 6) < 0.01);
        assert!(World::new().rate.share() <= 0.0, "nor before anything is known");
    }

    #[test]
    fn of_what_fails_a_tenth_is_tried() {
        let mut world = World::new();
        world.run(15, 0);
        let share = world.run(10, 0);
        assert!((0.87..0.93).contains(&share), "{share}");
    }

    #[test]
    fn it_ends_soon_after_the_service_is_well() {
        let mut world = World::new();
        world.run(30, 0);
        world.run(25, 10);
        assert!(world.run(5, 10) < 0.02);
    }

    #[test]
    fn a_long_rest_forgets() {
        let mut world = World::new();
        world.run(10, 0);
        world.now += Duration::from_secs(3600);
        assert!(!world.rate.refuses(world.now, 0.0));
    }

    proptest! {
        #[test]
        fn the_total_is_the_sum(events in proptest::collection::vec((0_u64..4000, any::<bool>(), 0.0_f64..1.0), 0..200)) {
            let mut world = World::new();
            for (millis, well, luck) in events {
                world.now += Duration::from_millis(millis);
                if !world.rate.refuses(world.now, luck) {
                    world.rate.ended(world.now, well);
                }
                let sum = world.rate.buckets.iter().fold(Count::default(), |sum, count| Count {
                    requests: sum.requests + count.requests,
                    successes: sum.successes + count.successes,
                });
                prop_assert_eq!(sum, world.rate.total);
                prop_assert!(sum.successes <= sum.requests && (0.0..=MOST).contains(&world.rate.share()));
            }
        }
    }
}
