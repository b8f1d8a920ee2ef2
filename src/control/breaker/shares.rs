//! How many of the requests of the last ten seconds went well: exact, second by second, since a mean that fades with
//! time hides a burst.

use tokio::time::Instant;

/// Seconds that are remembered.
const SECONDS: usize = 10;

/// Requests that went well and ill.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) good: u32,
    pub(super) bad: u32,
}

impl Counts {
    pub(super) fn all(self) -> u32 {
        self.good.saturating_add(self.bad)
    }

    /// Those that are not among `others`.
    pub(super) fn without(self, others: Self) -> Self {
        Self { good: self.good.saturating_sub(others.good), bad: self.bad.saturating_sub(others.bad) }
    }

    /// The share that went well; all of none.
    pub(super) fn success(self) -> f64 {
        if self.all() == 0 { 1.0 } else { f64::from(self.good) / f64::from(self.all()) }
    }

    /// How far that share may be off by chance: the largest standard deviation that it can have.
    pub(super) fn doubt(self) -> f64 {
        0.5 / f64::from(self.all().max(1)).sqrt()
    }
}

/// See the module's text.
#[derive(Clone, Debug)]
pub(super) struct Shares {
    seconds: [Counts; SECONDS],
    sum: Counts,
    began: Instant,
    /// The second that is being counted.
    current: u64,
}

impl Shares {
    pub(super) fn new(now: Instant) -> Self {
        Self { seconds: [Counts::default(); SECONDS], sum: Counts::default(), began: now, current: 0 }
    }

    pub(super) fn count(&mut self, is_good: bool, now: Instant) {
        let at = self.advance(now);
        if let Some(second) = self.seconds.get_mut(at) {
            for counts in [second, &mut self.sum] {
                let counter = if is_good { &mut counts.good } else { &mut counts.bad };
                *counter = counter.saturating_add(1);
            }
        }
    }

    /// Those of the last ten seconds.
    pub(super) fn counts(&mut self, now: Instant) -> Counts {
        self.advance(now);
        self.sum
    }

    pub(super) fn forget(&mut self) {
        (self.seconds, self.sum) = ([Counts::default(); SECONDS], Counts::default());
    }

    /// Leaves out what is too old; the answer is the place of the present second.
    fn advance(&mut self, now: Instant) -> usize {
        let second = now.saturating_duration_since(self.began).as_secs();
        let place = |second: u64| usize::try_from(second % SECONDS as u64).unwrap_or(0);
        let passed = second.saturating_sub(self.current).min(SECONDS as u64);
        for step in 1..=passed {
            if let Some(old) = self.seconds.get_mut(place(self.current + step)) {
                self.sum.good = self.sum.good.saturating_sub(old.good);
                self.sum.bad = self.sum.bad.saturating_sub(old.bad);
                *old = Counts::default();
            }
        }
        self.current = self.current.max(second);
        place(self.current)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    #[test]
    fn what_is_older_than_ten_seconds_is_forgotten() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut shares = Shares::new(began);
        shares.count(true, at(0));
        shares.count(false, at(9));
        assert_eq!(shares.counts(at(9)), Counts { good: 1, bad: 1 });
        assert_eq!(shares.counts(at(10)), Counts { good: 0, bad: 1 });
        assert_eq!(shares.counts(at(4000)), Counts::default());
        assert!((shares.counts(at(4000)).success() - 1.0).abs() < f64::EPSILON);
    }

    proptest! {
        #[test]
        fn the_sum_is_that_of_a_list(steps in proptest::collection::vec((any::<bool>(), 0_u64..4), 0..200)) {
            let began = Instant::now();
            let (mut shares, mut all, mut second) = (Shares::new(began), Vec::new(), 0);
            for (is_good, later) in steps {
                second += later;
                shares.count(is_good, began + Duration::from_secs(second));
                all.push((is_good, second));
                let recent: Vec<_> = all.iter().filter(|(_, at)| second - at < 10).collect();
                let good = recent.iter().filter(|(is_good, _)| *is_good).count();
                let counts = shares.counts(began + Duration::from_secs(second));
                prop_assert_eq!((counts.good as usize, counts.bad as usize), (good, recent.len() - good));
            }
        }
    }
}
