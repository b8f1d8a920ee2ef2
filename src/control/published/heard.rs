//! What all endpoints of an upstream have reported, and the caps that come of it.

use std::time::Duration;

use tokio::time::Instant;

use super::LoadReport;
use super::agent::Advice;
use super::steer::{Seen, Steer};
use crate::control::ask::Class;
use crate::control::credits::Ledger;
use crate::control::windows::{SetBy, Windows};

/// See the module's text. Endpoints are named by the accounts of the ledger. Every call that may change a limit puts it
/// into the ledger: ask [`Ledger::grant`] afterwards.
#[derive(Debug, Default)]
pub struct Heard {
    all: Vec<Option<Steer>>,
    /// When the first of all reports ends to count.
    ends_at: Option<Instant>,
}

impl Heard {
    /// An endpoint has reported, in an answer that holds a credit of `class` and took so long.
    pub fn on_report<W>(
        &mut self,
        (ledger, windows): (&mut Ledger<W>, &mut Windows),
        (account, class): (usize, Class),
        report: &LoadReport,
        latency: Option<Duration>,
        now: Instant,
    ) {
        let Some(seen) = seen(ledger, windows, account, class) else { return };
        self.tell(account, |steer| steer.on_report(report, Seen { latency, ..seen }, now));
        self.settle(ledger, windows, account, now);
    }

    /// The agent of an endpoint has answered.
    pub fn on_advice<W>(
        &mut self,
        (ledger, windows): (&mut Ledger<W>, &mut Windows),
        account: usize,
        advice: Advice,
        now: Instant,
    ) {
        let Some(seen) = seen(ledger, windows, account, Class::Unary) else { return };
        self.tell(account, |steer| steer.on_advice(advice, seen, now));
        self.settle(ledger, windows, account, now);
    }

    /// Time has passed: lets go of what does not count any more. Whether a limit may have changed.
    pub fn expire<W>(&mut self, ledger: &mut Ledger<W>, windows: &mut Windows, now: Instant) -> bool {
        let is_due = self.ends_at.is_some_and(|at| at <= now);
        if is_due {
            self.settle_all(ledger, windows, now, |_| ());
        }
        is_due
    }

    /// Whether anything counts that time will end.
    #[must_use]
    pub fn is_timed(&self) -> bool {
        self.ends_at.is_some()
    }

    /// Other settings: lets go of what they do not want to hear.
    pub fn keep<W>(
        &mut self,
        (ledger, windows): (&mut Ledger<W>, &mut Windows),
        (reports, agents): (bool, bool),
        now: Instant,
    ) {
        self.settle_all(ledger, windows, now, |steer| {
            if !reports {
                steer.forget_reports();
            }
            if !agents {
                steer.forget_agent();
            }
        });
    }

    /// Forgets an account that is no more.
    pub fn remove(&mut self, account: usize) {
        if let Some(place) = self.all.get_mut(account) {
            *place = None;
        }
        self.look_ahead();
    }

    fn tell(&mut self, account: usize, tell: impl FnOnce(&mut Steer)) {
        if self.all.len() <= account {
            self.all.resize_with(account + 1, || None);
        }
        if let Some(place) = self.all.get_mut(account) {
            tell(place.get_or_insert_default());
        }
    }

    fn settle_all<W>(
        &mut self,
        ledger: &mut Ledger<W>,
        windows: &mut Windows,
        now: Instant,
        change: impl Fn(&mut Steer),
    ) {
        for account in 0..self.all.len() {
            if let Some(steer) = self.all.get_mut(account).and_then(Option::as_mut) {
                change(steer);
                self.settle(ledger, windows, account, now);
            }
        }
        self.look_ahead();
    }

    fn look_ahead(&mut self) {
        self.ends_at = self.all.iter().flatten().filter_map(Steer::ends_at).min();
    }

    fn settle<W>(&mut self, ledger: &mut Ledger<W>, windows: &mut Windows, account: usize, now: Instant) {
        let Some(place) = self.all.get_mut(account) else { return };
        let Some(steer) = place else { return };
        let is_silent = steer.expire(now);
        let caps = steer.caps(windows.uncapped(account).unwrap_or_default(), now);
        if is_silent {
            *place = None;
        }
        windows.cap_each(ledger, account, SetBy::Published, caps);
        self.look_ahead();
    }
}

fn seen<W>(ledger: &Ledger<W>, windows: &Windows, account: usize, class: Class) -> Option<Seen> {
    let (unary, streams) = windows.uncapped(account)?;
    // Without credits of their own, streams take unary ones.
    let (class, limit) = match class {
        Class::Stream if ledger.credits_of(account, class).is_some() => (class, streams),
        _ => (Class::Unary, unary),
    };
    let (in_flight, _) = ledger.credits_of(account, class)?;
    // Only of requests is it measured what one takes that is alone.
    let view = windows.view(account).filter(|_| class == Class::Unary);
    let baseline = view.and_then(|view| view.baseline);
    Some(Seen { class, latency: None, in_flight, limit, baseline })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::ask::Ask;
    use crate::control::credits::Answer;
    use crate::control::limit::{Bounds, Settings};
    use crate::control::published::agent;
    use crate::control::published::steer::FRESH;
    use proptest::prelude::*;

    struct Upstream {
        ledger: Ledger<()>,
        windows: Windows,
        heard: Heard,
        now: Instant,
    }

    fn upstream(settings: Settings, streams: Option<usize>) -> Upstream {
        let (mut ledger, mut windows, now) = (Ledger::new(2, 0, streams, 9), Windows::default(), Instant::now());
        for account in 0..2 {
            windows.set(&mut ledger, account, (settings, streams.unwrap_or(0)), now, Duration::ZERO);
        }
        Upstream { ledger, windows, heard: Heard::default(), now }
    }

    impl Upstream {
        fn wants(&mut self, account: usize, credit: usize) {
            let report = LoadReport { credit: Some(credit), ..LoadReport::default() };
            let books = (&mut self.ledger, &mut self.windows);
            self.heard.on_report(books, (account, Class::Unary), &report, None, self.now);
        }

        fn advise(&mut self, account: usize, text: &str) {
            let advice = agent::read(text).expect("an answer");
            self.heard.on_advice((&mut self.ledger, &mut self.windows), account, advice, self.now);
        }

        fn expire(&mut self) -> bool {
            self.heard.expire(&mut self.ledger, &mut self.windows, self.now)
        }

        fn limits(&self, account: usize) -> (Option<(usize, SetBy)>, Option<usize>) {
            let streams = self.ledger.credits_of(account, Class::Stream).map(|(_, limit)| limit);
            (self.windows.in_force(account), streams)
        }
    }

    #[test]
    fn a_report_caps_one_endpoint_until_it_is_stale() {
        let mut upstream = upstream(Settings::Adaptive(Bounds { min: 2, max: 40, initial: 40 }), Some(20));
        upstream.wants(0, 12);
        assert_eq!(upstream.limits(0), (Some((12, SetBy::Published)), Some(20)));
        assert_eq!(upstream.limits(1), (Some((40, SetBy::Window)), Some(20)));
        upstream.wants(0, 400);
        assert_eq!(upstream.limits(0), (Some((40, SetBy::Window)), Some(20)), "a cap only lowers");
        upstream.wants(0, 15);
        upstream.now += FRESH / 2;
        upstream.advise(1, "50%");
        assert_eq!(upstream.limits(1), (Some((20, SetBy::Published)), Some(10)));
        assert!(!upstream.expire());
        upstream.now += FRESH / 2;
        assert!(upstream.expire());
        assert_eq!(upstream.limits(0), (Some((40, SetBy::Window)), Some(20)));
        assert_eq!(upstream.limits(1), (Some((20, SetBy::Published)), Some(10)));
        upstream.now += FRESH / 2;
        assert!(upstream.expire() && !upstream.heard.is_timed());
        assert_eq!(upstream.limits(1), (Some((40, SetBy::Window)), Some(20)));
    }

    #[test]
    fn other_settings_end_what_they_do_not_hear() {
        let mut upstream = upstream(Settings::Fixed(40), None);
        upstream.wants(0, 12);
        upstream.advise(1, "drain");
        assert_eq!(upstream.limits(1), (Some((0, SetBy::Published)), None));
        let now = upstream.now;
        upstream.heard.keep((&mut upstream.ledger, &mut upstream.windows), (true, false), now);
        assert_eq!(
            (upstream.limits(0).0, upstream.limits(1).0),
            (Some((12, SetBy::Published)), Some((40, SetBy::Fixed)))
        );
        upstream.heard.keep((&mut upstream.ledger, &mut upstream.windows), (false, false), now);
        assert_eq!((upstream.limits(0).0, upstream.heard.is_timed()), (Some((40, SetBy::Fixed)), false));
        upstream.wants(0, 12);
        upstream.heard.remove(0);
        upstream.wants(7, 1);
        assert!(!upstream.heard.is_timed(), "there is no such account");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Report(usize, bool, LoadReport),
        Advice(usize, Advice),
        Acquire(bool),
        Release(usize),
        Pass(Duration),
    }

    fn step() -> impl Strategy<Value = Step> {
        let report = (prop::option::of(0..50_usize), prop::option::of(0..500_u64), prop::option::of(0.0..3.0));
        let report = report.prop_map(|(credit, delay, utilization)| LoadReport {
            credit,
            queue_delay: delay.map(Duration::from_millis),
            utilization,
            rps: None,
        });
        let advice = (any::<bool>(), prop::option::of(0.0..=1.0), prop::option::of(0..50_usize));
        let advice = advice.prop_map(|(is_closed, share, credit)| Advice {
            is_closed,
            share,
            report: LoadReport { credit, ..LoadReport::default() },
        });
        prop_oneof![
            (0..3_usize, any::<bool>(), report).prop_map(|(at, stream, report)| Step::Report(at, stream, report)),
            (0..3_usize, advice).prop_map(|(at, advice)| Step::Advice(at, advice)),
            any::<bool>().prop_map(Step::Acquire),
            any::<usize>().prop_map(Step::Release),
            (0..4000_u64).prop_map(|millis| Step::Pass(Duration::from_millis(millis))),
        ]
    }

    fn class(is_stream: bool) -> Class {
        if is_stream { Class::Stream } else { Class::Unary }
    }

    proptest! {
        /// Whatever is reported: no more than there would be otherwise, no credit beyond the limit of its moment, and all
        /// as before once nobody has said anything for long enough.
        #[test]
        fn reports_only_lower_and_pass(steps in prop::collection::vec(step(), 1..80)) {
            let mut upstream = upstream(Settings::Fixed(9), Some(5));
            let mut out = Vec::new();
            for step in steps {
                let Upstream { ledger, windows, heard, now } = &mut upstream;
                match step {
                    Step::Report(at, is_stream, report) => {
                        let latency = Some(Duration::from_millis(20));
                        heard.on_report((ledger, windows), (at, class(is_stream)), &report, latency, *now);
                    }
                    Step::Advice(at, advice) => heard.on_advice((ledger, windows), at, advice, *now),
                    Step::Acquire(is_stream) => {
                        let ask = Ask::new(class(is_stream), *now);
                        let before = [0, 1].map(|at| ledger.credits_of(at, ask.class).unwrap_or_default());
                        match ledger.acquire(&ask, || ()) {
                            Answer::Granted(slot) => {
                                let (used, limit) = before[slot.endpoint()];
                                prop_assert!(used < limit);
                                out.push(slot);
                            }
                            Answer::Queued(ticket) => prop_assert!(ledger.leave(ticket)),
                            Answer::Refused((), _) => {}
                        }
                    }
                    Step::Release(which) if !out.is_empty() => ledger.release(&out.swap_remove(which % out.len()), *now),
                    Step::Release(_) => {}
                    Step::Pass(time) => {
                        *now += time;
                        heard.expire(ledger, windows, *now);
                    }
                }
                for at in 0..2 {
                    prop_assert!(ledger.credits_of(at, Class::Unary).is_some_and(|(_, limit)| limit <= 9));
                    prop_assert!(ledger.credits_of(at, Class::Stream).is_some_and(|(_, limit)| limit <= 5));
                }
            }
            upstream.now += FRESH;
            upstream.expire();
            for slot in out {
                upstream.ledger.release(&slot, upstream.now);
            }
            for at in 0..2 {
                prop_assert_eq!(upstream.ledger.credits_of(at, Class::Unary), Some((0, 9)));
                prop_assert_eq!(upstream.ledger.credits_of(at, Class::Stream), Some((0, 5)));
            }
            prop_assert!(!upstream.heard.is_timed());
        }
    }
}
