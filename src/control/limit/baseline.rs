//! How long an answer takes when the service is not crowded: the mean over the requests that started well below the
//! limit.
//!
//! A minimum would be the luck of one request, and a long average of everything would learn the crowd. A service that
//! really becomes slower or faster is believed when two light cohorts in a row say so: one may have met a bad moment.

use super::cohort::Verdict;

/// Starts that are remembered.
const MEMORY: f64 = 300.0;
/// Starts after which the baseline is trusted.
const SETTLED: f64 = 200.0;
/// Deviations of the mean that chance does not explain.
const DEVIATION: f64 = 3.0;
/// Within this the running mean follows by itself.
const NEAR: std::ops::RangeInclusive<f64> = 0.77..=1.3;
/// The baseline rises to at most this multiple of the best that was seen, which doubles every [`FORGETS`] seconds: while
/// the dips are shallow and the queue inside the service is long, what looks like a slow service may be that queue.
const RUNAWAY: f64 = 4.0;
const FORGETS: f64 = 30.0;
/// A best of fewer starts would be luck.
const ENOUGH: f64 = 16.0;

/// Clocks do not tell less, and nobody divides by nothing.
const SHORTEST: f64 = 1e-6;

/// What a light cohort has told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Finding {
    /// The first one: the baseline is known, roughly.
    First,
    /// As expected.
    Steady,
    /// Far from what was expected; another light cohort should say whether that was chance.
    Odd,
    /// The service has become slower (above 1) or faster by this factor.
    Moved(f64),
}

#[derive(Debug)]
pub(super) struct Baseline {
    mean: f64,
    /// The squared coefficient of variation.
    variation: f64,
    /// Starts that the mean rests on, up to [`MEMORY`].
    seen: f64,
    /// An odd cohort: its mean and count.
    suspect: Option<(f64, f64)>,
    best: Option<(f64, f64)>,
}

impl Baseline {
    pub(super) fn new() -> Self {
        Self { mean: 0.0, variation: 1.0, seen: 0.0, suspect: None, best: None }
    }

    /// None before the first cohort.
    pub(super) fn mean(&self) -> Option<f64> {
        (self.seen > 0.0).then_some(self.mean.max(SHORTEST))
    }

    /// Whether it rests on so much that chance has little part in it.
    pub(super) fn is_settled(&self) -> bool {
        self.seen >= SETTLED
    }

    pub(super) fn learn(&mut self, now: f64, cohort: &Verdict) -> Finding {
        let is_first = self.seen == 0.0;
        self.seen = (self.seen + cohort.count).min(MEMORY);
        if cohort.count >= ENOUGH && self.best_at(now).is_none_or(|best| cohort.mean < best) {
            self.best = Some((cohort.mean, now));
        }
        if is_first {
            self.mean = cohort.mean;
            return Finding::First;
        }
        let weight = (cohort.count / self.seen).min(1.0);
        let variation = cohort.variance / (cohort.mean * cohort.mean).max(f64::MIN_POSITIVE);
        self.variation = (self.variation + (variation - self.variation) * weight).clamp(0.02, 16.0);
        match self.suspect.take() {
            None if self.is_odd(cohort.mean, cohort.count) => {
                self.suspect = Some((cohort.mean, cohort.count));
                return Finding::Odd;
            }
            Some((mean, count)) => {
                let all = count + cohort.count;
                let pooled = (mean * count + cohort.mean * cohort.count) / all;
                if (mean > self.mean) == (cohort.mean > self.mean) && self.is_odd(pooled, all) {
                    return self.move_to(now, pooled, all);
                }
            }
            None => {}
        }
        self.mean += (cohort.mean - self.mean) * weight;
        Finding::Steady
    }

    fn move_to(&mut self, now: f64, mean: f64, count: f64) -> Finding {
        let highest = self.best_at(now).map_or(f64::INFINITY, |best| RUNAWAY * best).max(self.mean);
        let before = self.mean;
        self.mean = mean.min(highest);
        self.seen = count.min(MEMORY);
        Finding::Moved(mean / before)
    }

    fn best_at(&self, now: f64) -> Option<f64> {
        self.best.map(|(mean, at)| mean * ((now - at) / FORGETS).exp2())
    }

    fn is_odd(&self, mean: f64, count: f64) -> bool {
        let expected = self.variation.sqrt() * self.mean / count.sqrt();
        (mean - self.mean).abs() > DEVIATION * expected && !NEAR.contains(&(mean / self.mean))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::limit::cohort::Kind;

    fn cohort(mean: f64) -> Verdict {
        Verdict { kind: Kind::Light, opened: 0.0, count: 64.0, mean, variance: mean * mean }
    }

    fn learned() -> Baseline {
        let mut baseline = Baseline::new();
        assert_eq!(baseline.mean(), None);
        assert_eq!(baseline.learn(0.0, &cohort(1.0)), Finding::First);
        (0..9).for_each(|_| assert_eq!(baseline.learn(0.0, &cohort(1.0)), Finding::Steady));
        baseline
    }

    #[test]
    fn small_changes_are_followed() {
        let mut baseline = learned();
        (0..50).for_each(|_| assert_eq!(baseline.learn(0.0, &cohort(1.2)), Finding::Steady));
        assert!((baseline.mean().unwrap() - 1.2).abs() < 0.01);
    }

    #[test]
    fn one_odd_cohort_is_chance_and_two_are_not() {
        let mut baseline = learned();
        assert_eq!(baseline.learn(0.0, &cohort(2.0)), Finding::Odd);
        assert_eq!(baseline.learn(0.0, &cohort(1.0)), Finding::Steady);
        assert!((baseline.mean().unwrap() - 1.0).abs() < 0.01);
        for mean in [2.0, 0.5] {
            let mut baseline = learned();
            assert_eq!(baseline.learn(0.0, &cohort(mean)), Finding::Odd);
            assert_eq!(baseline.learn(0.0, &cohort(mean)), Finding::Moved(mean));
            assert_eq!(baseline.mean(), Some(mean));
        }
    }

    #[test]
    fn it_does_not_run_away() {
        let mut baseline = learned();
        for _ in 0..20 {
            baseline.learn(30.0, &cohort(100.0));
        }
        assert_eq!(baseline.mean(), Some(8.0));
    }
}
