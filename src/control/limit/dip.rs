//! When the limit is lowered for a moment, so that some requests start in a service that is not crowded.
//!
//! Under a load that never lets go nothing else shows what an uncrowded answer takes. A dip takes three tenths of the
//! credits for a few latencies: what waits inside the service is worked off meanwhile, so that hardly any throughput is
//! lost. There is none while the window is not full.

use super::float;

/// Between two dips, in uncrowded latencies.
const EVERY: f64 = 80.0;
const SHORTEST: f64 = 0.02;
const LONGEST: f64 = 10.0;
/// A dip ends after as many latencies, however few requests have started.
const GIVES_UP: f64 = 20.0;
/// It is held for this part of a latency after its last start, which would not be light if the others came at once.
const HOLD: f64 = 0.5;

#[derive(Debug)]
pub(super) struct Dips {
    /// The time of day when all moments were zero.
    unix: f64,
    current: Option<Dip>,
    due: f64,
}

#[derive(Debug)]
struct Dip {
    level: usize,
    /// Light starts that are still wanted.
    wanted: usize,
    since: f64,
    /// When the last of them came.
    satisfied: Option<f64>,
}

impl Dips {
    pub(super) fn new(unix: f64) -> Self {
        Self { unix, current: None, due: 0.0 }
    }

    /// The lowered limit, during a dip.
    pub(super) fn level(&self) -> Option<usize> {
        self.current.as_ref().map(|dip| dip.level)
    }

    pub(super) fn is_due(&self, now: f64) -> bool {
        self.current.is_none() && now >= self.due
    }

    pub(super) fn begin(&mut self, now: f64, level: usize, wanted: usize) {
        self.current = Some(Dip { level, wanted, since: now, satisfied: None });
    }

    /// A request started lightly.
    pub(super) fn on_light_start(&mut self, now: f64) {
        if let Some(dip) = &mut self.current {
            dip.wanted = dip.wanted.saturating_sub(1);
            if dip.wanted == 0 {
                dip.satisfied.get_or_insert(now);
            }
        }
    }

    /// Ends a dip that has seen enough, lasts too long, or that nobody is held back by.
    pub(super) fn on_change(&mut self, now: f64, in_flight: usize, waiting: usize, latency: f64) {
        let Some(dip) = &self.current else { return };
        let seen = dip.satisfied.is_some_and(|at| now - at >= HOLD * latency);
        let idle = waiting == 0 && float(in_flight) <= float(dip.level) * 0.5;
        if seen || idle || now - dip.since > GIVES_UP * latency {
            self.current = None;
            self.rest(now, latency);
        }
    }

    /// The next one may wait.
    pub(super) fn rest(&mut self, now: f64, latency: f64) {
        self.due = self.grid(now, (EVERY * latency).clamp(SHORTEST, LONGEST));
    }

    /// Something has changed: look within about this time.
    pub(super) fn hasten(&mut self, now: f64, within: f64) {
        self.due = self.due.min(self.grid(now, within));
    }

    /// Dips fall on a grid of the time of day, in powers of two seconds: proxies that estimate the latency a little
    /// differently still rest a shared service at the same moment.
    fn grid(&self, now: f64, period: f64) -> f64 {
        if period <= 0.0 {
            return now;
        }
        let period = period.log2().round().exp2();
        (((now + self.unix) / period).floor() + 1.0) * period - self.unix
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dip_ends_when_enough_have_started_and_a_moment_later() {
        let mut dips = Dips::new(0.0);
        assert!(dips.is_due(0.0));
        dips.begin(0.0, 7, 2);
        assert_eq!(dips.level(), Some(7));
        dips.on_light_start(0.1);
        dips.on_light_start(0.2);
        dips.on_change(0.24, 7, 5, 0.1);
        assert_eq!(dips.level(), Some(7));
        dips.on_change(0.26, 7, 5, 0.1);
        assert_eq!(dips.level(), None);
    }

    #[test]
    fn a_dip_ends_when_nobody_starts_or_nobody_waits() {
        for (now, in_flight, waiting) in [(2.1, 7, 5), (0.1, 3, 0)] {
            let mut dips = Dips::new(0.0);
            dips.begin(0.0, 7, 2);
            dips.on_change(0.1, 7, 5, 0.1);
            assert_eq!(dips.level(), Some(7));
            dips.on_change(now, in_flight, waiting, 0.1);
            assert_eq!(dips.level(), None, "{now} {in_flight} {waiting}");
        }
    }

    #[test]
    fn proxies_with_other_estimates_and_other_births_dip_together() {
        let mut one = Dips::new(1_000.5);
        let mut other = Dips::new(1_003.25);
        for (dips, now, latency) in [(&mut one, 10.0, 0.02), (&mut other, 7.5, 0.018)] {
            dips.begin(now, 7, 2);
            dips.on_change(now, 0, 0, latency);
        }
        assert!((one.due + 1_000.5 - 1_012.0).abs() < 1e-6, "{}", one.due);
        assert!((other.due + 1_003.25 - 1_012.0).abs() < 1e-6, "{}", other.due);
    }
}
