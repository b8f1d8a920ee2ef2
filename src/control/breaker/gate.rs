//! One breaker: closed, open for a time that grows, then half open for a few trials.

use std::time::Duration;

use tokio::time::Instant;

use super::Settings;

/// After each such time without opening again, one doubling of the open time is forgotten.
const CALM: Duration = Duration::from_secs(10);
/// Doublings that are remembered at most; no open time needs more.
const MOST_DOUBLINGS: u32 = 20;
/// What is taken off the open time at random, so that several proxies do not try at once.
const JITTER: f64 = 0.2;

/// See the module's text.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    phase: Phase,
    /// Since when it is in this phase.
    since: Instant,
    /// How often the open time has been doubled.
    doublings: u32,
    /// Tells the trials of one half-open phase from those of another.
    epoch: u32,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Closed,
    Open { until: Instant },
    HalfOpen(Round),
}

/// So many trials are let through and judged together; then twice as many, up to the last round.
#[derive(Clone, Copy, Debug)]
struct Round {
    size: u32,
    last: u32,
    out: u32,
    good: u32,
    bad: u32,
}

/// A request that a half-open breaker has let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trial(u32);

/// What a trial has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    Good,
    Bad,
    Nothing,
}

/// What a trial has led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// Other trials may follow.
    GoesOn,
    /// All is well again.
    Closes,
    /// It must open again.
    Fails,
}

impl Gate {
    pub(super) fn new(now: Instant) -> Self {
        Self { phase: Phase::Closed, since: now, doublings: 0, epoch: 0 }
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed)
    }

    pub(super) fn is_half_open(&self) -> bool {
        matches!(self.phase, Phase::HalfOpen(_))
    }

    /// When an open one is going to be tried; none when it is not open.
    pub(super) fn opens_until(&self) -> Option<Instant> {
        match self.phase {
            Phase::Open { until } => Some(until),
            _ => None,
        }
    }

    /// Since when it is as it is.
    pub(super) fn since(&self) -> Instant {
        self.since
    }

    /// How many trials there is room for; none unless it is half open.
    pub(super) fn room(&self) -> Option<usize> {
        match self.phase {
            Phase::HalfOpen(round) => {
                Some(usize::try_from(round.size.saturating_sub(round.out + round.good + round.bad)).unwrap_or(0))
            }
            _ => None,
        }
    }

    /// Opens it, for twice as long as the last time unless it was calm since. `luck` is from 0 to 1. The answer is for
    /// how long.
    pub(super) fn open(&mut self, settings: &Settings, now: Instant, luck: f64) -> Duration {
        if self.is_closed() {
            let calm = now.saturating_duration_since(self.since).as_secs() / CALM.as_secs();
            self.doublings = self.doublings.saturating_sub(u32::try_from(calm).unwrap_or(u32::MAX));
        }
        let factor = 1_u32.checked_shl(self.doublings).unwrap_or(u32::MAX);
        let open = settings.shortest.saturating_mul(factor).min(settings.longest).mul_f64(1.0 - JITTER * luck);
        self.doublings = (self.doublings + 1).min(MOST_DOUBLINGS);
        self.change(Phase::Open { until: now + open }, now);
        open
    }

    /// It is time for trials, the last round of which has `last` of them.
    pub(super) fn half_open(&mut self, last: u32, now: Instant) {
        self.epoch = self.epoch.wrapping_add(1);
        self.change(Phase::HalfOpen(Round { size: 1, last, out: 0, good: 0, bad: 0 }), now);
    }

    pub(super) fn close(&mut self, now: Instant) {
        self.change(Phase::Closed, now);
    }

    /// All is forgotten but which trials are its own.
    pub(super) fn reset(&mut self, now: Instant) {
        self.doublings = 0;
        self.close(now);
    }

    fn change(&mut self, phase: Phase, now: Instant) {
        (self.phase, self.since) = (phase, now);
    }

    /// A request goes through.
    pub(super) fn on_start(&mut self) -> Option<Trial> {
        let Phase::HalfOpen(round) = &mut self.phase else { return None };
        round.out += 1;
        Some(Trial(self.epoch))
    }

    /// A trial is over. Nothing changes by itself when it closes or fails.
    pub(super) fn on_end(&mut self, trial: Trial, shown: Shown) -> Then {
        let Phase::HalfOpen(round) = &mut self.phase else { return Then::GoesOn };
        if trial != Trial(self.epoch) {
            return Then::GoesOn;
        }
        round.out = round.out.saturating_sub(1);
        match shown {
            Shown::Good => round.good += 1,
            Shown::Bad => round.bad += 1,
            Shown::Nothing => {}
        }
        if round.bad * 2 > round.size {
            return Then::Fails;
        }
        if round.good + round.bad < round.size {
            return Then::GoesOn;
        }
        if round.size >= round.last {
            return Then::Closes;
        }
        // One that began in the round before counts in this one.
        *round = Round { size: round.size * 2, last: round.last, out: round.out, good: 0, bad: 0 };
        Then::GoesOn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn settings() -> Settings {
        Settings::default()
    }

    #[test]
    fn the_open_time_doubles_and_is_forgotten_in_calm() {
        let mut now = Instant::now();
        let mut gate = Gate::new(now);
        let mut times = Vec::new();
        for _ in 0..8 {
            let open = gate.open(&settings(), now, 0.0);
            times.push(open.as_secs());
            assert_eq!(gate.opens_until(), Some(now + open));
            now += open;
            gate.half_open(1, now);
        }
        assert_eq!(times, [1, 2, 4, 8, 16, 32, 60, 60]);
        gate.close(now);
        assert_eq!(gate.open(&settings(), now + CALM * 5, 0.0), 8 * SECOND);
        gate.close(now);
        assert_eq!(gate.open(&settings(), now + CALM * 60, 0.0), SECOND);
        gate.close(now);
        let jittered = gate.open(&settings(), now + CALM * 60, 1.0);
        assert_eq!(jittered, SECOND.mul_f64(0.8));
    }

    #[test]
    fn a_half_open_breaker_lets_one_through_until_it_is_known() {
        let now = Instant::now();
        let mut gate = Gate::new(now);
        assert_eq!((gate.room(), gate.on_start()), (None, None));
        gate.open(&settings(), now, 0.0);
        assert_eq!(gate.room(), None);
        gate.half_open(1, now);
        assert_eq!(gate.room(), Some(1));
        let trial = gate.on_start().expect("it is half open");
        assert_eq!(gate.room(), Some(0));
        assert_eq!(gate.on_end(trial, Shown::Nothing), Then::GoesOn);
        assert_eq!(gate.room(), Some(1), "nothing was shown, so another may try");
        let trial = gate.on_start().expect("it is half open");
        assert_eq!(gate.on_end(trial, Shown::Bad), Then::Fails);
        gate.open(&settings(), now, 0.0);
        assert_eq!(gate.on_end(trial, Shown::Good), Then::GoesOn, "too late");
        gate.half_open(1, now);
        let other = gate.on_start().expect("it is half open");
        assert_eq!(gate.on_end(trial, Shown::Good), Then::GoesOn, "of another time");
        assert_eq!(gate.on_end(other, Shown::Good), Then::Closes);
    }

    #[test]
    fn trials_double_and_half_of_a_round_may_fail() {
        let now = Instant::now();
        let mut gate = Gate::new(now);
        gate.half_open(4, now);
        for size in [1, 2, 4] {
            assert_eq!(gate.room(), Some(size));
            let trials: Vec<_> = (0..size).filter_map(|_| gate.on_start()).collect();
            assert_eq!(gate.room(), Some(0));
            let mut then = Then::GoesOn;
            for (at, trial) in trials.into_iter().enumerate() {
                then = gate.on_end(trial, if at < size / 2 { Shown::Bad } else { Shown::Good });
            }
            assert_eq!(then, if size == 4 { Then::Closes } else { Then::GoesOn });
        }
        gate.half_open(4, now);
        let first = gate.on_start().expect("it is half open");
        assert_eq!(gate.on_end(first, Shown::Good), Then::GoesOn);
        let both = [gate.on_start(), gate.on_start()].map(|trial| trial.expect("it is half open"));
        assert_eq!(both.map(|trial| gate.on_end(trial, Shown::Bad)), [Then::GoesOn, Then::Fails]);
    }
}
