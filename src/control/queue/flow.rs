//! What comes to a queue, and how fast those in front of it turn over.
//!
//! Credits come free at the rate of their number over the mean time that one is out (Little's law). Returns a second
//! would say the same under load, and after a quiet minute they would say that the service is slow.

use std::time::Duration;

use tokio::time::Instant;

/// Over which time arrivals and returns are counted.
const MEMORY: Duration = Duration::from_secs(1);
/// Over how many returns the mean goes.
const RETURNS: f64 = 100.0;
/// Returns before anything is said.
const ENOUGH: u32 = 16;
/// How much more must come than turns over.
const EXCESS: f64 = 1.02;
/// The part of requests that are quicker than [`Flow::quick`].
const QUICK: f64 = 0.25;
/// How far one return moves that time, as a part of it.
const STEP: f64 = 0.1;

/// See the module's text. One for each class of credits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flow {
    arrivals: Rate,
    served: Rate,
    returns: u32,
    /// Seconds that a credit is out.
    mean: f64,
    quick: f64,
}

impl Flow {
    pub(super) const fn new() -> Self {
        Self { arrivals: Rate::new(), served: Rate::new(), returns: 0, mean: 0.0, quick: 0.0 }
    }

    /// A request came, whether or not it had to wait.
    pub(super) fn on_arrival(&mut self, now: Instant) {
        self.arrivals.count(now);
    }

    /// A credit came back after `held`.
    pub(super) fn on_return(&mut self, held: Duration, now: Instant) {
        self.served.count(now);
        let held = held.as_secs_f64();
        self.returns = self.returns.saturating_add(1);
        self.mean += (held - self.mean) / f64::from(self.returns).min(RETURNS);
        self.quick = match self.returns {
            1 => held,
            // The steps down and up balance where a quarter is below.
            _ if held < self.quick => self.quick * (1.0 - STEP * (1.0 - QUICK)),
            _ => (self.quick * (1.0 + STEP * QUICK)).max(1e-6),
        };
    }

    /// Requests that come in a second.
    pub(super) fn demand(&self, now: Instant) -> f64 {
        self.arrivals.per_second(now)
    }

    /// Credits that came back in a second.
    pub(super) fn served(&self, now: Instant) -> f64 {
        self.served.per_second(now)
    }

    /// Whether more comes than turns over: by a hundredth or two, and by more than chance.
    pub(super) fn is_excessive(&self, credits: usize, now: Instant) -> bool {
        let demand = self.demand(now);
        // Of a count that is forgotten exponentially, the variance is half of it.
        let chance = 2.0 * (demand / 2.0).sqrt();
        self.drain(credits).is_some_and(|drain| demand > EXCESS * drain + chance)
    }

    /// How long a credit is out, on average; none while that is not known.
    pub(super) fn mean(&self) -> Option<Duration> {
        (self.returns >= ENOUGH).then(|| Duration::from_secs_f64(self.mean))
    }

    /// How long a quick request takes: one in four is quicker. Nothing while that is not known.
    pub(super) fn quick(&self) -> Duration {
        if self.returns < ENOUGH { Duration::ZERO } else { Duration::from_secs_f64(self.quick) }
    }

    /// Credits that come free in a second when all of `credits` are out; none while that is not known.
    pub(super) fn drain(&self, credits: usize) -> Option<f64> {
        (self.returns >= ENOUGH).then(|| float(credits) / self.mean.max(1e-6))
    }
}

/// A count that is forgotten exponentially.
#[derive(Clone, Copy, Debug)]
struct Rate {
    /// Decayed to `seen_at`.
    count: f64,
    seen_at: Option<Instant>,
}

impl Rate {
    const fn new() -> Self {
        Self { count: 0.0, seen_at: None }
    }

    fn count(&mut self, now: Instant) {
        // Below this the decay is less than half a percent and not worth its arithmetic.
        let is_fresh = self.seen_at.is_some_and(|at| now.saturating_duration_since(at) <= MEMORY / 200);
        if !is_fresh {
            self.count = self.per_second(now);
            self.seen_at = Some(now);
        }
        self.count += 1.0;
    }

    fn per_second(&self, now: Instant) -> f64 {
        let Some(seen_at) = self.seen_at else { return 0.0 };
        let elapsed = now.saturating_duration_since(seen_at);
        self.count * (-elapsed.as_secs_f64() / MEMORY.as_secs_f64()).exp()
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
pub(super) fn float(n: usize) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    #[test]
    fn nothing_is_said_before_enough_is_known() {
        let mut flow = Flow::new();
        for _ in 1..ENOUGH {
            flow.on_return(MILLI, Instant::now());
        }
        assert_eq!((flow.mean(), flow.drain(8), flow.quick()), (None, None, Duration::ZERO));
        flow.on_return(MILLI, Instant::now());
        assert!((flow.drain(8).unwrap() - 8000.0).abs() < 1.0);
    }

    #[test]
    fn a_quiet_minute_does_not_make_the_service_slow() {
        let (mut flow, began) = (Flow::new(), Instant::now());
        for n in 0..1000 {
            flow.on_arrival(began + MILLI * n);
            flow.on_return(20 * MILLI, began + MILLI * n);
        }
        let now = began + 1000 * MILLI;
        assert!((600.0..640.0).contains(&flow.demand(now)), "{}", flow.demand(now));
        let later = now + Duration::from_secs(60);
        assert!(flow.demand(later) < 1e-9);
        assert!((flow.drain(16).unwrap() - 800.0).abs() < 1.0);
    }

    #[test]
    fn a_quarter_is_quicker_than_what_is_called_quick() {
        let mut flow = Flow::new();
        // Every length from 1 to 100 ms comes equally often, in an order without a trend.
        for n in 0..10_000_u32 {
            flow.on_return(MILLI * (n * 37 % 100 + 1), Instant::now());
        }
        let quick = flow.quick().as_secs_f64() * 1e3;
        assert!((15.0..36.0).contains(&quick), "{quick}");
        let mean = flow.mean().unwrap().as_secs_f64() * 1e3;
        assert!((45.0..56.0).contains(&mean), "{mean}");
    }
}
