//! A histogram of durations: eight buckets a decade from 100 µs to an hour, of which the text form shows eighteen.
//!
//! Inside, two neighbouring bounds are at most a factor of 1.43 apart, so that a quantile is off by 20 % at most. The
//! text form keeps to the same few bounds for ever: dashboards add series of different ages.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Counts durations.
#[derive(Clone, Debug, Default)]
pub struct Histogram(Arc<Buckets>);

/// Inclusive upper bounds in microseconds; what is above the last is in a bucket of its own.
const BOUNDS: [u64; 62] = bounds();

/// The bounds of the text form: seconds as printed, and the same in microseconds. Each is one of [`BOUNDS`].
const PRINTED: [(&str, u64); 17] = [
    ("0.0005", 500),
    ("0.001", 1_000),
    ("0.0025", 2_500),
    ("0.005", 5_000),
    ("0.01", 10_000),
    ("0.025", 25_000),
    ("0.05", 50_000),
    ("0.1", 100_000),
    ("0.25", 250_000),
    ("0.5", 500_000),
    ("1", 1_000_000),
    ("2.5", 2_500_000),
    ("5", 5_000_000),
    ("10", 10_000_000),
    ("25", 25_000_000),
    ("100", 100_000_000),
    ("1000", 1_000_000_000),
];

const fn bounds() -> [u64; 62] {
    let steps = [100, 125, 160, 200, 250, 350, 500, 700];
    let mut bounds = [0; 62];
    let (mut index, mut decade) = (0, 1);
    while index < bounds.len() {
        #[expect(clippy::indexing_slicing, reason = "evaluated by the compiler, which would refuse a bad index")]
        {
            bounds[index] = steps[index % steps.len()] * decade;
        }
        index += 1;
        if index.is_multiple_of(steps.len()) {
            decade *= 10;
        }
    }
    bounds
}

#[derive(Debug)]
struct Buckets {
    /// One more than there are bounds.
    counts: [AtomicU64; BOUNDS.len() + 1],
    /// In microseconds: nanoseconds would overflow within weeks of ten thousand streams.
    sum: AtomicU64,
}

impl Default for Buckets {
    fn default() -> Self {
        Self { counts: std::array::from_fn(|_| AtomicU64::new(0)), sum: AtomicU64::new(0) }
    }
}

/// What the text form prints.
pub(super) struct Reading {
    /// Bound and the number of durations not above it, the last being all.
    pub(super) cumulative: Vec<(&'static str, u64)>,
    pub(super) sum: Duration,
    pub(super) count: u64,
}

impl Histogram {
    /// Counts one duration.
    pub fn observe(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.partition_point(|bound| *bound < micros);
        if let Some(count) = self.0.counts.get(bucket) {
            count.fetch_add(1, Relaxed);
            self.0.sum.fetch_add(micros, Relaxed);
        }
    }

    /// How many were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.counts.iter().map(|count| count.load(Relaxed)).sum()
    }

    /// The bound that `per_mille` of a thousand durations do not exceed; none when nothing was counted. What is above
    /// the last bound is told as that bound.
    #[must_use]
    pub fn quantile(&self, per_mille: u64) -> Option<Duration> {
        let counts: Vec<u64> = self.0.counts.iter().map(|count| count.load(Relaxed)).collect();
        let total: u64 = counts.iter().sum();
        let rank = total.saturating_mul(per_mille.min(1000)).div_ceil(1000).max(1);
        let mut seen = 0;
        let bucket = counts.iter().position(|count| {
            seen += count;
            seen >= rank
        })?;
        BOUNDS.get(bucket).or(BOUNDS.last()).copied().map(Duration::from_micros)
    }

    pub(super) fn read(&self) -> Reading {
        let counts: Vec<u64> = self.0.counts.iter().map(|count| count.load(Relaxed)).collect();
        // From the same counts as the buckets: a reader must never see a `_count` that differs from `+Inf`.
        let count = counts.iter().sum();
        let up_to = |limit: u64| -> u64 {
            BOUNDS.iter().zip(&counts).take_while(|(bound, _)| **bound <= limit).map(|(_, count)| count).sum()
        };
        let mut cumulative: Vec<_> = PRINTED.iter().map(|(text, micros)| (*text, up_to(*micros))).collect();
        cumulative.push(("+Inf", count));
        Reading { cumulative, sum: Duration::from_micros(self.0.sum.load(Relaxed)), count }
    }

    pub(super) fn is_orphan(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bounds_climb_by_small_steps_from_a_tenth_of_a_millisecond_to_an_hour() {
        for pair in BOUNDS.windows(2) {
            assert!(pair[0] < pair[1] && pair[1] * 100 <= pair[0] * 143, "{pair:?}");
        }
        assert_eq!((BOUNDS[0], BOUNDS[61]), (100, 3_500_000_000));
    }

    #[test]
    fn each_printed_bound_is_a_bound_and_prints_its_own_value() {
        for (text, micros) in PRINTED {
            assert!(BOUNDS.contains(&micros), "{text}");
            let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
            assert_eq!(format!("{whole}{fraction:0<6}").parse(), Ok(micros), "{text}");
        }
    }

    #[test]
    fn bounds_are_inclusive() {
        let histogram = Histogram::default();
        histogram.observe(Duration::from_millis(1));
        let reading = histogram.read();
        assert_eq!(reading.cumulative[0], ("0.0005", 0));
        assert_eq!(reading.cumulative[1], ("0.001", 1));
    }

    proptest! {
        #[test]
        fn a_quantile_is_near_the_truth(mut micros in proptest::collection::vec(100_u64..3_000_000_000, 1..200), q in 0_u64..=1000) {
            let histogram = Histogram::default();
            for each in &micros {
                histogram.observe(Duration::from_micros(*each));
            }
            micros.sort_unstable();
            let rank = (micros.len() * usize::try_from(q).expect("small")).div_ceil(1000).max(1);
            let truth = micros[rank - 1];
            let told = u64::try_from(histogram.quantile(q).expect("not empty").as_micros()).expect("small");
            prop_assert!(truth <= told && told * 100 <= truth * 143, "{truth} was told as {told}");
            prop_assert_eq!(histogram.read().count, micros.len() as u64);
        }
    }

    #[test]
    fn nothing_counted_has_no_quantile_and_the_longest_is_capped() {
        let histogram = Histogram::default();
        assert_eq!(histogram.quantile(500), None);
        histogram.observe(Duration::MAX);
        assert_eq!(histogram.quantile(500), Some(Duration::from_secs(3500)));
        assert_eq!(histogram.count(), 1);
    }
}
