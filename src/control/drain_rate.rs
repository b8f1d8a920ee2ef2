//! When a refused client should come back: its place in the line over the measured rate at which credits come free.
//!
//! The rate is an exponentially decayed count of returns. Before there is history, each credit is taken to last one
//! second; that assumption decays with the same time constant, so that an upstream whose streams last for minutes
//! soon says so.

use std::time::Duration;

use tokio::time::Instant;

const MEMORY: Duration = Duration::from_secs(10);
/// SDKs fall back to their own short back-off above a minute, and nobody waits that long for a place.
const LONGEST: f64 = 30.0;
/// Clients refused together must not return together.
const JITTER: f64 = 0.25;

/// Measures the rate at which credits come free.
#[derive(Debug)]
pub struct DrainRate {
    began: Instant,
    seen_at: Instant,
    /// Returns, decayed to `seen_at`.
    returns: f64,
    /// Returns a second that are taken for granted at the beginning.
    assumed: f64,
}

impl DrainRate {
    /// Begins with `credits` that are taken to last a second each.
    #[must_use]
    pub fn new(now: Instant, credits: usize) -> Self {
        Self { began: now, seen_at: now, returns: 0.0, assumed: to_float(credits) }
    }

    /// A credit came back.
    pub fn on_return(&mut self, now: Instant) {
        // Below this the decay is less than half a percent and not worth its arithmetic.
        if now.duration_since(self.seen_at) > MEMORY / 200 {
            self.returns = self.decayed(now);
            self.seen_at = now;
        }
        self.returns += 1.0;
    }

    /// Credits that come free in a second.
    #[must_use]
    pub fn per_second(&self, now: Instant) -> f64 {
        self.decayed(now) / MEMORY.as_secs_f64() + self.assumed * decay(now.duration_since(self.began))
    }

    /// When the one who would stand at `place` (1 is next) should come back. `luck` in 0..1 spreads the answers by
    /// a quarter to either side. Never less than a second.
    #[must_use]
    pub fn retry_after(&self, now: Instant, place: usize, luck: f64) -> Duration {
        let rate = self.per_second(now);
        let wait = if rate > 0.0 { (to_float(place) / rate).min(LONGEST) } else { LONGEST };
        Duration::from_secs_f64((wait * (1.0 - JITTER + 2.0 * JITTER * luck)).max(1.0))
    }

    fn decayed(&self, now: Instant) -> f64 {
        self.returns * decay(now.duration_since(self.seen_at))
    }
}

fn decay(elapsed: Duration) -> f64 {
    (-elapsed.as_secs_f64() / MEMORY.as_secs_f64()).exp()
}

#[expect(clippy::cast_precision_loss, reason = "places and credits are far below 2^52")]
fn to_float(n: usize) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steady(rate: u32, seconds: u32) -> (DrainRate, Instant) {
        let began = Instant::now();
        let mut drain = DrainRate::new(began, 1000);
        let gap = Duration::from_secs(1) / rate;
        let end = (0..rate * seconds).map(|n| began + gap * n).inspect(|at| drain.on_return(*at)).last();
        (drain, end.expect("at least one"))
    }

    #[test]
    fn a_steady_rate_is_found() {
        let (drain, now) = steady(20, 120);
        assert!((drain.per_second(now) - 20.0).abs() < 1.0, "{}", drain.per_second(now));
    }

    #[test]
    fn the_wait_is_the_place_over_the_rate_with_a_quarter_of_jitter() {
        let (drain, now) = steady(10, 120);
        let wait = |luck| drain.retry_after(now, 100, luck).as_secs_f64();
        assert!((wait(0.5) - 10.0).abs() < 0.6, "{}", wait(0.5));
        assert!((wait(0.0) - 7.5).abs() < 0.6 && (wait(1.0) - 12.5).abs() < 0.8);
    }

    #[test]
    fn a_fresh_start_is_hopeful_and_a_long_standstill_is_not() {
        let began = Instant::now();
        let drain = DrainRate::new(began, 8);
        assert_eq!(drain.retry_after(began, 8, 0.5).as_secs(), 1);
        let later = began + Duration::from_secs(300);
        assert_eq!(drain.retry_after(later, 8, 0.5).as_secs(), 30);
    }
}
