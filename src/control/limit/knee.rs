//! Steers the limit to the knee: as many requests as the service can work on at once, and a fifth more that wait inside
//! it, so that no worker is ever without one.
//!
//! Below the knee an answer takes as long as alone; above it, each further request only makes the others wait. So the
//! mean latency of requests that started at the full limit is compared with that of requests that started well below it
//! (the baseline), and the limit is set to where the ratio would be 1.2. The service's own speed falls out of the ratio:
//! a service that becomes slower keeps its limit.
//!
//! - The limit is raised only by requests that started *at* it. A limit that nobody needs does not grow.
//! - It doubles until the first ratio that is too high; after that it moves to where Little's law says, half of the way
//!   when that is near.
//! - After one cut it waits for a light cohort before the next: perhaps it is the service that became slower.

use super::baseline::{Baseline, Finding};
use super::cohort::{Cohorts, Kind, NONE, Verdict, clip_of};
use super::dip::Dips;
use super::{Bounds, Outcome, float, whole};

/// How much longer an answer may take at the limit.
const EXCESS: f64 = 0.2;
/// Up to which excess the limit goes on doubling: what little is known then would end that too soon.
const GROWS: f64 = 0.3;
/// From which ratio on one early cohort is enough to end it. Below, it may be the luck of a few slow ones, and another
/// cohort decides: a limit that stops doubling too soon takes many times as long to grow.
const SURELY: f64 = 2.0;
/// Requests beyond that, so that a small service is not starved by rounding.
const SLACK: f64 = 1.5;
/// The part of the limit up to which a start is light.
const LIGHT: f64 = 0.7;
/// Starts in the cohort that first tells the baseline.
const FIRST: usize = 16;
/// Starts in a cohort: from, to.
const COHORT: (usize, usize) = (64, 128);
/// Starts in a cohort while the limit doubles: a factor of two needs little evidence.
const EARLY: usize = 24;
/// Starts in a dip that nothing has called for.
const ROUTINE: usize = 16;
/// How soon a dip is due after an odd light cohort, and after a cut, in uncrowded latencies. Each dip costs throughput,
/// and what calls for one is chance more often than not.
const AFTER_ODD: f64 = 16.0;
const AFTER_CUT: f64 = 32.0;
/// How long a cut waits for a light cohort, in uncrowded latencies.
const DOUBT: f64 = 80.0;
/// A limit is known to work up to this factor above the last that did.
const TRUSTED: f64 = 1.15;

#[derive(Debug)]
pub(super) struct Knee {
    bounds: Bounds,
    size: f64,
    /// What the last cohorts have shown to work. A limit that is still growing may be far above it, and what is light
    /// beside that limit is none to the service.
    known: f64,
    is_doubling: bool,
    /// Whether a cohort has said that it should end.
    is_doubted: bool,
    baseline: Baseline,
    cohorts: Cohorts,
    dips: Dips,
    /// Since when a light cohort is waited for.
    asked: Option<f64>,
    /// Full cohorts in a row that met no queue at all.
    clean: u32,
    /// The size before the last great cut, and when that was.
    cut: Option<(f64, f64)>,
    /// When a request last started beyond the limit.
    exceeded: Option<f64>,
}

impl Knee {
    pub(super) fn new(bounds: Bounds, unix: f64) -> Self {
        let mut knee = Self {
            bounds,
            size: 0.0,
            known: 0.0,
            is_doubling: true,
            is_doubted: false,
            baseline: Baseline::new(),
            cohorts: Cohorts::default(),
            dips: Dips::new(unix),
            asked: None,
            clean: 0,
            cut: None,
            exceeded: None,
        };
        knee.size = knee.bounded(float(bounds.initial));
        knee.known = knee.size;
        knee
    }

    pub(super) fn set_bounds(&mut self, bounds: Bounds) {
        self.bounds = bounds;
        self.resize(self.size);
    }

    /// What was found, whether or not a dip is under way.
    pub(super) fn found(&self) -> usize {
        whole(self.size)
    }

    pub(super) fn limit(&self) -> usize {
        self.dips.level().unwrap_or_else(|| self.found())
    }

    pub(super) fn is_measuring(&self) -> bool {
        self.dips.level().is_some()
    }

    pub(super) fn baseline(&self) -> Option<f64> {
        self.baseline.mean()
    }

    /// A request starts although the limit is reached: nobody is held back. The queue that it makes in the service is not
    /// the limit's fault, so the limit may grow for a while, and does not shrink.
    pub(super) fn on_excess(&mut self, now: f64) {
        self.exceeded = Some(now);
    }

    /// A request starts; `in_flight` counts it. The answer is its cohort.
    pub(super) fn on_start(&mut self, now: f64, in_flight: usize) -> u32 {
        if self.baseline.mean().is_none() {
            let first = self.cohorts.is_empty() || self.cohorts.is_open();
            return if first { self.cohorts.join(now, Kind::Light, FIRST) } else { NONE };
        }
        if in_flight <= self.light() {
            self.dips.on_light_start(now);
            return self.cohorts.join(now, Kind::Light, self.least());
        }
        if !self.is_measuring() && in_flight >= self.found() {
            let size = self.found().clamp(self.least(), COHORT.1);
            return self.cohorts.join(now, Kind::Full { limit: self.size.floor() }, size);
        }
        NONE
    }

    /// An answer begins after `latency`.
    pub(super) fn on_head(&mut self, cohort: u32, latency: f64) {
        let clip = self.clip();
        self.cohorts.begin(cohort, latency, clip);
    }

    /// `head` is what was told to [`Knee::on_head`].
    pub(super) fn on_end(&mut self, now: f64, cohort: u32, head: Option<f64>, outcome: Outcome) {
        let clip = self.clip();
        if cohort != NONE {
            if let Some(head) = head {
                self.cohorts.unbegin(cohort, head, clip);
            }
            let normal = self.baseline.mean().unwrap_or(0.0);
            match outcome {
                Outcome::Answered(latency) => self.cohorts.answer(cohort, latency.as_secs_f64(), clip),
                // A fault that comes sooner than an answer says nothing about the load, and a later one does.
                Outcome::Failed(latency) if normal > 0.0 && latency.as_secs_f64() >= normal => {
                    self.cohorts.answer(cohort, latency.as_secs_f64(), clip);
                }
                Outcome::Overloaded { .. } => self.cohorts.refuse(cohort, clip),
                Outcome::Left(elapsed) => self.cohorts.leave(cohort, elapsed.as_secs_f64(), clip),
                Outcome::Failed(_) | Outcome::Unknown => self.cohorts.forget(cohort),
            }
        }
        self.judge(now);
    }

    pub(super) fn on_change(&mut self, now: f64, in_flight: usize, waiting: usize) {
        let Some(normal) = self.baseline.mean() else { return };
        self.judge(now);
        self.dips.on_change(now, in_flight, waiting, normal);
        if self.dips.is_due(now) && waiting > 0 && in_flight >= self.found() && self.found() >= 2 {
            let is_urgent = self.asked.is_some() || !self.baseline.is_settled();
            let least = if is_urgent { self.least() } else { ROUTINE };
            let wanted = self.found().clamp(least, COHORT.1);
            self.dips.begin(now, self.light(), wanted);
        }
    }

    fn clip(&self) -> f64 {
        self.baseline.mean().map_or(f64::INFINITY, clip_of)
    }

    fn least(&self) -> usize {
        if self.is_doubling && !self.is_doubted { EARLY } else { COHORT.0 }
    }

    fn light(&self) -> usize {
        let works = self.size.min(TRUSTED * self.known);
        whole((LIGHT * works).round()).min(self.found().saturating_sub(1)).max(1)
    }

    fn judge(&mut self, now: f64) {
        while let Some(verdict) = self.cohorts.next_verdict(now, self.clip()) {
            match verdict.kind {
                Kind::Light => self.judge_light(now, &verdict),
                Kind::Full { limit } => self.judge_full(now, &verdict, limit),
            }
        }
    }

    fn judge_light(&mut self, now: f64, cohort: &Verdict) {
        if self.asked.is_some_and(|asked| cohort.opened >= asked) {
            self.asked = None;
        }
        // What comes of itself need not be forced.
        if !self.is_measuring() && self.asked.is_none() && self.baseline.is_settled() {
            self.dips.rest(now, cohort.mean);
        }
        match self.baseline.learn(now, cohort) {
            Finding::Steady => {}
            Finding::First => self.ask(now, 0.0),
            Finding::Odd => self.ask(now, AFTER_ODD * self.baseline.mean().unwrap_or(0.0).min(cohort.mean)),
            Finding::Moved(factor) => {
                self.cohorts.drop_full();
                // The service became slower: what looked like a queue, and led to a cut, was none.
                if let (true, Some((size, at))) = (factor > 1.0, self.cut.take())
                    && now - at < 100.0 * cohort.mean
                {
                    self.known = self.known.max(0.8 * size);
                    self.resize(self.size.max(size));
                }
            }
        }
    }

    fn judge_full(&mut self, now: f64, cohort: &Verdict, limit: f64) {
        let Some(normal) = self.baseline.mean() else { return };
        let ratio = cohort.mean / normal;
        // The baseline is in doubt, so this may be no queue.
        if self.is_in_doubt(now, normal) && ratio > 1.0 + GROWS {
            return;
        }
        if self.is_doubling && !self.is_doubted && (1.0 + GROWS..SURELY).contains(&ratio) {
            self.is_doubted = true;
            return;
        }
        let before = self.size;
        let knee = limit / ratio * (1.0 + EXCESS);
        if self.is_doubling && ratio < 1.0 + GROWS {
            self.known = knee;
            self.is_doubted = false;
            self.resize(self.size * 2.0);
        } else {
            self.is_doubling = false;
            self.known += 0.3 * (knee - self.known);
            self.steer(now, normal, ratio, limit);
        }
        if self.size < 0.85 * before {
            if self.cut.is_none_or(|(_, at)| now - at > 100.0 * normal) {
                self.cut = Some((before, now));
            }
            self.ask(now, AFTER_CUT * normal);
        }
    }

    fn steer(&mut self, now: f64, normal: f64, ratio: f64, limit: f64) {
        // Twice no queue at all: the knee is far, and a fifth at a time would be slow.
        self.clean = if ratio < 1.0 + 0.4 * EXCESS { self.clean + 1 } else { 0 };
        let excess = if self.clean > 1 { 2.5 * EXCESS } else { EXCESS };
        let mut target = (limit / ratio * (1.0 + excess) + SLACK).max(limit * 0.5);
        if self.is_in_doubt(now, normal) {
            target = target.max(self.size);
        }
        let is_far = (target / self.size - 1.0).abs() > 0.25;
        let gain = if is_far { 0.7 } else { 0.5 };
        self.resize(self.size + gain * (target - self.size));
    }

    fn resize(&mut self, size: f64) {
        let before = self.found();
        self.size = self.bounded(size);
        if self.found() != before {
            self.cohorts.drop_full();
        }
    }

    fn bounded(&self, size: f64) -> f64 {
        size.min(float(self.bounds.max)).max(float(self.bounds.min)).max(1.0)
    }

    /// A light cohort is waited for, or more was let through than the limit allows. A light cohort that does not come
    /// cannot be waited for: a service that refuses everything has no uncrowded answers.
    fn is_in_doubt(&self, now: f64, normal: f64) -> bool {
        [self.asked, self.exceeded].into_iter().flatten().any(|since| now - since < DOUBT * normal)
    }

    /// A light cohort is wanted, all of whose members start from here on.
    fn ask(&mut self, now: f64, within: f64) {
        self.asked = Some(now);
        self.cohorts.close_light(now);
        self.dips.hasten(now, within);
    }
}

#[cfg(test)]
#[expect(clippy::cast_precision_loss, reason = "small counts")]
mod tests {
    use super::*;
    use std::collections::VecDeque;
    use std::time::Duration;

    fn knee() -> Knee {
        Knee::new(Bounds::default(), 0.0)
    }

    /// So many requests under a load that never lets go; `answer` tells how one ends, by what is in flight at its start.
    fn busy(knee: &mut Knee, now: &mut f64, requests: usize, answer: impl Fn(usize) -> (f64, Outcome)) {
        let mut inside: VecDeque<(f64, u32, Outcome)> = VecDeque::new();
        for _ in 0..requests {
            while inside.len() < knee.limit() {
                let in_flight = inside.len() + 1;
                let (took, outcome) = answer(in_flight);
                let id = knee.on_start(*now, in_flight);
                inside.push_back((*now + took, id, outcome));
                knee.on_change(*now, in_flight, 9);
            }
            if let Some((end, id, outcome)) = inside.pop_front() {
                *now = now.max(end);
                knee.on_end(*now, id, None, outcome);
                knee.on_change(*now, inside.len(), 9);
            }
        }
    }

    fn answered(took: f64) -> (f64, Outcome) {
        (took, Outcome::Answered(Duration::from_secs_f64(took)))
    }

    #[test]
    fn it_grows_while_answers_take_no_longer_and_stays_within_its_bounds() {
        let (mut knee, mut now) = (knee(), 0.0);
        busy(&mut knee, &mut now, 5_000, |_| answered(0.1));
        assert!(knee.found() > 200, "{}", knee.found());
        knee.set_bounds(Bounds { min: 2, max: 50, initial: 8 });
        assert_eq!(knee.found(), 50);
        busy(&mut knee, &mut now, 1_000, |_| answered(0.1));
        assert_eq!(knee.found(), 50);
    }

    #[test]
    fn it_settles_a_fifth_above_what_the_service_works_on_at_once() {
        let (mut knee, mut now) = (knee(), 0.0);
        busy(&mut knee, &mut now, 10_000, |count| answered(0.1 * (count as f64 / 20.0).max(1.0)));
        assert!((20..=30).contains(&knee.found()), "{}", knee.found());
        assert!((knee.baseline().unwrap() - 0.1).abs() < 0.02, "{:?}", knee.baseline());
    }

    #[test]
    fn beyond_the_limit_it_grows_while_that_costs_nothing_and_never_shrinks() {
        for (workers, least) in [(100.0, 40), (20.0, 0)] {
            let (mut knee, mut now) = (knee(), 0.0);
            // Alone at first, then 50 at once, whatever the limit.
            busy(&mut knee, &mut now, 40, |_| answered(0.1));
            let before = knee.found();
            let took = 0.1 * (50.0_f64 / workers).max(1.0);
            for _ in 0..5_000 {
                now += took / 50.0;
                if knee.limit() < 50 {
                    knee.on_excess(now);
                }
                let id = knee.on_start(now, 50);
                knee.on_end(now, id, None, answered(took).1);
                knee.on_change(now, 50, 0);
                assert!(knee.found() >= before, "{workers}: {before}, {}", knee.found());
            }
            assert!((least..=100).contains(&knee.found()), "{workers}: {before}, {}", knee.found());
        }
    }

    #[test]
    fn a_limit_that_nobody_needs_does_not_grow() {
        let mut knee = knee();
        for n in 0..1000 {
            let now = f64::from(n);
            let id = knee.on_start(now, 1);
            knee.on_change(now, 1, 0);
            knee.on_end(now + 0.1, id, None, Outcome::Answered(Duration::from_millis(100)));
            assert!(!knee.is_measuring());
        }
        assert_eq!(knee.found(), 8);
    }

    #[test]
    fn a_service_that_says_it_is_overloaded_gets_less() {
        let (mut knee, mut now) = (knee(), 0.0);
        busy(&mut knee, &mut now, 500, |_| answered(0.1));
        let before = knee.found();
        busy(&mut knee, &mut now, 20_000, |_| (0.1, Outcome::Overloaded { is_abandoned: false }));
        assert!(knee.found() * 2 <= before, "{} of {before}", knee.found());
    }
}
