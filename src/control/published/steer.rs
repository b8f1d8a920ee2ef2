//! Makes credits of what an endpoint reports.
//!
//! - A number of credits that it wants is taken as it is. It never goes below one, since the next word comes with the
//!   next answer.
//! - The time that requests wait inside steers credits as Breakwater does (Cho et al., OSDI 2020), once in each mean
//!   latency: up by a twentieth while the wait is shorter than a fifth of the service's own time, down by as much as it is
//!   longer, by half at the most.
//! - A utilisation above 1 is by its definition too much, and credits go down in proportion. Below that it says nothing
//!   about credits: a processor that is busy is no processor that is late.
//! - An agent takes away what it says, all of it too.
//!
//! What comes with an answer speaks of its own class: requests and streams are steered apart, as their credits are.
//!
//! The least of them counts, for [`FRESH`] after the last report: an endpoint that falls silent must not stay at its last
//! word. Whatever is found here only lowers what the window allows: reports of 0 from a service that cannot tell leave the
//! window alone.

use std::time::Duration;

use tokio::time::Instant;

use super::agent::Advice;
use super::{LoadReport, whole};
use crate::control::ask::Class;

/// How long a report counts.
pub const FRESH: Duration = Duration::from_secs(10);

/// The wait inside that is aimed at, as a part of the service's own time.
const TARGET: f64 = 0.2;
/// That wait is never less: clocks and schedulers cannot tell.
const LEAST_TARGET: f64 = 0.001;
/// What a wait of twice the target takes away.
const GAIN: f64 = 0.2;
/// Nothing takes away more at once.
const DEEPEST_CUT: f64 = 0.5;
/// What a round without trouble adds.
const GROWTH: f64 = 0.05;
/// Credits that are not used are not multiplied: this part of them must have been out.
const USED: f64 = 0.75;
/// Bounds of a round: an endpoint that answers at once is not judged by a few answers, and one that takes minutes not in
/// hours.
const SHORTEST_ROUND: f64 = 0.005;
const LONGEST_ROUND: f64 = 1.0;
/// Weight of a sample in a mean of latencies.
const WEIGHT: f64 = 0.1;

/// What was to be seen when a report came.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// The class of the credit that its answer holds.
    pub class: Class,
    /// How long the answer took; none when the report came without one.
    pub latency: Option<Duration>,
    /// Credits of this class that are out.
    pub in_flight: usize,
    /// Credits of this class that there would be without reports.
    pub limit: usize,
    /// How long an uncrowded answer takes, if that has been measured.
    pub baseline: Option<Duration>,
}

/// How many credits reports leave, of each class; an absent one is not bounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caps {
    /// Of requests.
    pub unary: Option<usize>,
    /// Of streams.
    pub streams: Option<usize>,
}

/// See the module's text. One for each endpoint that reports.
#[derive(Clone, Copy, Debug, Default)]
pub struct Steer {
    unary: Lane,
    streams: Lane,
    agent: Option<(Advice, Instant)>,
}

/// What was said of one class.
#[derive(Clone, Copy, Debug, Default)]
struct Lane {
    wanted: Option<(usize, Instant)>,
    rule: Option<Rule>,
}

impl Lane {
    fn cap(&self, now: Instant) -> Option<usize> {
        let Self { wanted, rule } = self.fresh(now);
        wanted.map(|(credits, _)| credits).into_iter().chain(rule.map(|rule| whole(rule.credits))).min()
    }

    fn fresh(&self, now: Instant) -> Self {
        Self {
            wanted: self.wanted.filter(|(_, at)| is_fresh(*at, now)),
            rule: self.rule.filter(|rule| is_fresh(rule.last, now)),
        }
    }

    fn said_at(&self) -> impl Iterator<Item = Instant> {
        self.wanted.map(|(_, at)| at).into_iter().chain(self.rule.map(|rule| rule.last))
    }
}

impl Steer {
    /// A report has come. Ask [`Steer::caps`] afterwards.
    pub fn on_report(&mut self, report: &LoadReport, seen: Seen, now: Instant) {
        let lane = match seen.class {
            Class::Unary => &mut self.unary,
            Class::Stream => &mut self.streams,
        };
        if let Some(credit) = report.credit {
            lane.wanted = Some((credit.max(1), now));
        }
        if report.queue_delay.is_some() || report.utilization.is_some() {
            let rule = lane.fresh(now).rule.unwrap_or_else(|| Rule::new(seen, now));
            lane.rule = Some(rule.after(report, seen, now));
        }
    }

    /// An agent has answered, for both classes. Ask [`Steer::caps`] afterwards.
    pub fn on_advice(&mut self, advice: Advice, seen: Seen, now: Instant) {
        self.agent = Some((advice, now));
        self.on_report(&LoadReport { credit: None, ..advice.report }, seen, now);
    }

    /// There is no agent any more.
    pub fn forget_agent(&mut self) {
        self.agent = None;
    }

    /// What answers have brought is not to be believed any more.
    pub fn forget_reports(&mut self) {
        (self.unary, self.streams) = (Lane::default(), Lane::default());
    }

    /// How many credits there are at most, `otherwise` telling how many unary and stream ones there would be.
    #[must_use]
    pub fn caps(&self, otherwise: (usize, usize), now: Instant) -> Caps {
        let advice = self.agent.filter(|(_, at)| is_fresh(*at, now)).map(|(advice, _)| advice);
        let cap = |lane: Lane, otherwise: usize| {
            let advised = advice.and_then(|advice| advice.cap(otherwise));
            [lane.cap(now), advised].into_iter().flatten().min()
        };
        Caps { unary: cap(self.unary, otherwise.0), streams: cap(self.streams, otherwise.1) }
    }

    /// When something of it ends to count; none when nothing does.
    #[must_use]
    pub fn ends_at(&self) -> Option<Instant> {
        let agent = self.agent.map(|(_, at)| at);
        self.unary.said_at().chain(self.streams.said_at()).chain(agent).min().map(|at| at + FRESH)
    }

    /// Lets go of what does not count any more; whether nothing is left.
    pub fn expire(&mut self, now: Instant) -> bool {
        (self.unary, self.streams) = (self.unary.fresh(now), self.streams.fresh(now));
        self.agent = self.agent.filter(|(_, at)| is_fresh(*at, now));
        self.ends_at().is_none()
    }
}

fn is_fresh(at: Instant, now: Instant) -> bool {
    now.saturating_duration_since(at) < FRESH
}

/// Credits that follow reports of waiting or of utilisation, for one class. Times are seconds.
#[derive(Clone, Copy, Debug)]
struct Rule {
    credits: f64,
    last: Instant,
    round: Round,
    /// Means of the answers so far: from request to head, and that without the wait inside.
    latency: Option<f64>,
    own: Option<f64>,
}

/// What was reported since credits were set.
#[derive(Clone, Copy, Debug)]
struct Round {
    began: Instant,
    delay: Mean,
    utilization: Mean,
    /// Credits that were out at the most.
    peak: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    sum: f64,
    count: f64,
}

impl Mean {
    fn add(&mut self, value: f64) {
        self.sum += value;
        self.count += 1.0;
    }

    fn get(self) -> Option<f64> {
        (self.count > 0.0).then(|| self.sum / self.count)
    }
}

impl Round {
    fn new(now: Instant) -> Self {
        Self { began: now, delay: Mean::default(), utilization: Mean::default(), peak: 0 }
    }
}

impl Rule {
    fn new(seen: Seen, now: Instant) -> Self {
        Self { credits: float(seen.limit.max(1)), last: now, round: Round::new(now), latency: None, own: None }
    }

    fn after(mut self, report: &LoadReport, seen: Seen, now: Instant) -> Self {
        self.last = now;
        self.round.peak = self.round.peak.max(seen.in_flight);
        let delay = report.queue_delay.map(|delay| delay.as_secs_f64());
        if let Some(delay) = delay {
            self.round.delay.add(delay);
        }
        if let Some(utilization) = report.utilization {
            self.round.utilization.add(utilization);
        }
        if let Some(latency) = seen.latency.map(|latency| latency.as_secs_f64()) {
            self.latency = Some(towards(self.latency, latency));
            self.own = Some(towards(self.own, (latency - delay.unwrap_or(0.0)).max(0.0)));
        }
        let round = self.latency.unwrap_or(LONGEST_ROUND).clamp(SHORTEST_ROUND, LONGEST_ROUND);
        if now.saturating_duration_since(self.round.began).as_secs_f64() >= round {
            self.judge(seen);
            self.round = Round::new(now);
        }
        self
    }

    fn judge(&mut self, seen: Seen) {
        let own = seen.baseline.map(|baseline| baseline.as_secs_f64()).or(self.own).unwrap_or(0.0);
        let target = (TARGET * own).max(LEAST_TARGET);
        let late = self.round.delay.get().filter(|delay| *delay >= target);
        let late = late.map(|delay| 1.0 - GAIN * (delay - target) / target);
        let busy =
            self.round.utilization.get().filter(|utilization| *utilization > 1.0).map(|utilization| 1.0 / utilization);
        let peak = float(self.round.peak);
        if let Some(keep) = late.into_iter().chain(busy).reduce(f64::min) {
            // What is far from being used protects nobody.
            self.credits = (self.credits.min(2.0 * peak.max(1.0)) * keep.max(DEEPEST_CUT)).max(1.0);
        } else if peak >= USED * self.credits {
            self.credits += (GROWTH * self.credits).max(1.0);
        }
    }
}

fn towards(mean: Option<f64>, sample: f64) -> f64 {
    mean.map_or(sample, |mean| mean + WEIGHT * (sample - mean))
}

#[expect(clippy::cast_precision_loss, reason = "credits are far below 2^52")]
fn float(n: usize) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::published::agent;

    const L0: Duration = Duration::from_millis(20);

    fn seen(in_flight: usize) -> Seen {
        Seen { class: Class::Unary, latency: Some(L0), in_flight, limit: 40, baseline: Some(L0) }
    }

    fn waits(millis: u64) -> LoadReport {
        LoadReport { queue_delay: Some(Duration::from_millis(millis)), ..LoadReport::default() }
    }

    fn uses(utilization: f64) -> LoadReport {
        LoadReport { utilization: Some(utilization), ..LoadReport::default() }
    }

    fn wants(credit: usize) -> LoadReport {
        LoadReport { credit: Some(credit), ..LoadReport::default() }
    }

    fn unary(steer: &Steer, now: Instant) -> Option<usize> {
        steer.caps((40, 1024), now).unary
    }

    /// The same report `rounds` times, a mean latency apart.
    fn rounds(steer: &mut Steer, rounds: u32, report: LoadReport, in_flight: usize, from: Instant) -> Instant {
        let mut now = from;
        for _ in 0..rounds {
            now += L0;
            steer.on_report(&report, seen(in_flight), now);
        }
        now
    }

    #[test]
    fn an_explicit_credit_counts_at_once_and_for_as_long_as_it_is_fresh() {
        let (mut steer, now) = (Steer::default(), Instant::now());
        assert_eq!(steer.caps((40, 9), now), Caps::default());
        steer.on_report(&wants(12), seen(40), now);
        assert_eq!(steer.caps((40, 9), now), Caps { unary: Some(12), streams: None });
        steer.on_report(&wants(5), Seen { class: Class::Stream, ..seen(1) }, now);
        assert_eq!(steer.caps((40, 9), now), Caps { unary: Some(12), streams: Some(5) });
        steer.on_report(&wants(0), seen(40), now);
        assert_eq!(unary(&steer, now), Some(1), "the next word comes with the next answer");
        assert_eq!(steer.ends_at(), Some(now + FRESH));
        assert_eq!(unary(&steer, now + FRESH - L0), Some(1));
        assert_eq!(unary(&steer, now + FRESH), None);
        assert!(steer.expire(now + FRESH) && steer.ends_at().is_none());
    }

    #[test]
    fn a_wait_inside_lowers_credits_and_its_end_raises_them() {
        let (mut steer, now) = (Steer::default(), Instant::now());
        steer.on_report(&waits(100), seen(40), now);
        assert_eq!(unary(&steer, now), Some(40), "nothing is judged before a round is over");
        let now = rounds(&mut steer, 1, waits(100), 40, now);
        assert_eq!(unary(&steer, now), Some(20), "by half at the most");
        let now = rounds(&mut steer, 1, waits(8), 20, now);
        assert_eq!(unary(&steer, now), Some(16), "twice the target takes a fifth");
        let now = rounds(&mut steer, 2, waits(1), 16, now);
        assert_eq!(unary(&steer, now), Some(18), "one for each round");
        let now = rounds(&mut steer, 50, waits(1), 18, now);
        assert_eq!(unary(&steer, now), Some(24), "but not beyond what is used");
        let now = rounds(&mut steer, 50, waits(1000), 24, now);
        assert_eq!(unary(&steer, now), Some(1), "never to nothing");
    }

    #[test]
    fn a_utilisation_is_too_much_above_one_only() {
        let (mut steer, now) = (Steer::default(), Instant::now());
        let now = rounds(&mut steer, 3, uses(1.0), 4, now);
        assert_eq!(unary(&steer, now), Some(40));
        let now = rounds(&mut steer, 1, uses(1.25), 40, now);
        assert_eq!(unary(&steer, now), Some(32));
        let now = rounds(&mut steer, 1, uses(90.0), 32, now);
        assert_eq!(unary(&steer, now), Some(16));
    }

    #[test]
    fn streams_are_steered_by_what_streams_report() {
        let (mut steer, mut now) = (Steer::default(), Instant::now());
        let stream = Seen { class: Class::Stream, limit: 1024, ..seen(30) };
        for _ in 0..2 {
            steer.on_report(&waits(100), stream, now);
            now += L0;
        }
        assert_eq!(steer.caps((40, 1024), now), Caps { unary: None, streams: Some(30) });
    }

    #[test]
    fn without_a_baseline_the_time_of_the_service_is_what_is_left_of_the_latency() {
        let (mut steer, mut now) = (Steer::default(), Instant::now());
        // A second of work and a tenth of it waiting: half of what is aimed at.
        let latency = Some(Duration::from_millis(1100));
        for _ in 0..3 {
            steer.on_report(&waits(100), Seen { latency, baseline: None, ..seen(40) }, now);
            now += Duration::from_millis(1100);
        }
        assert!(unary(&steer, now) > Some(40));
    }

    #[test]
    fn an_agent_takes_away_and_is_forgotten_when_it_is_silent() {
        let (mut steer, now) = (Steer::default(), Instant::now());
        let mut advise = |text: &str, now| {
            steer.on_advice(agent::read(text).expect("an answer"), Seen { latency: None, ..seen(4) }, now);
            steer.caps((40, 1024), now)
        };
        assert_eq!(advise("50%", now), Caps { unary: Some(20), streams: Some(512) });
        assert_eq!(advise("30", now), Caps { unary: Some(30), streams: Some(30) });
        assert_eq!(advise("drain", now), Caps { unary: Some(0), streams: Some(0) });
        assert_eq!(advise("up", now), Caps::default());
        assert_eq!(advise("0", now), Caps { unary: Some(0), streams: Some(0) });
        steer.on_report(&wants(12), seen(4), now + FRESH / 2);
        assert_eq!(unary(&steer, now + FRESH / 2), Some(0), "the least counts");
        assert!(!steer.expire(now + FRESH));
        assert_eq!((unary(&steer, now + FRESH), steer.ends_at()), (Some(12), Some(now + FRESH * 3 / 2)));
        steer.forget_reports();
        assert!(steer.expire(now + FRESH));
    }

    #[test]
    fn what_was_learned_before_a_silence_does_not_count_after_it() {
        let (mut steer, now) = (Steer::default(), Instant::now());
        steer.on_report(&waits(100), seen(40), now);
        let now = rounds(&mut steer, 3, waits(100), 40, now);
        assert!(unary(&steer, now) < Some(40));
        steer.on_report(&waits(0), seen(0), now + FRESH);
        assert_eq!(unary(&steer, now + FRESH), Some(40));
    }
}
