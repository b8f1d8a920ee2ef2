//! Pools of endpoints, second by second.

use super::*;
use std::cell::RefCell;

const SECOND: Duration = Duration::from_secs(1);

/// Endpoints that take turns as far as their breakers let them, and the clock.
struct Pool {
    breakers: Breakers,
    count: usize,
    next: usize,
    now: Instant,
    dice: RefCell<u64>,
    events: Vec<(Instant, Event)>,
}

impl Pool {
    fn new(count: usize) -> Self {
        let now = Instant::now();
        let mut breakers = Breakers::new(Some(Settings::default()), now);
        (0..count).for_each(|account| breakers.add(account, now));
        Self { breakers, count, next: 0, now, dice: RefCell::new(7), events: Vec::new() }
    }

    /// From 0 to 1, the same in each run.
    fn luck(&self) -> f64 {
        let mut state = self.dice.borrow_mut();
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        f64::from(u32::try_from(*state >> 33).unwrap_or(0)) / f64::from(u32::MAX >> 1)
    }

    fn room(&self, account: usize, used: usize) -> bool {
        let used_of = Limits { unary: used, streams: 0 };
        let Left { breaker, check, rest } = self.breakers.left(account, used_of, self.now);
        [breaker, check, rest].into_iter().all(|caps| caps.unary.is_none_or(|cap| used < cap))
    }

    fn serving(&self) -> Vec<usize> {
        (0..self.count).filter(|account| self.room(*account, 0)).collect()
    }

    fn start(&mut self, used: usize) -> Option<(usize, Pass)> {
        self.breakers.look(self.now);
        let turn = (self.next..self.next + self.count).map(|at| at % self.count);
        let chosen = self.breakers.to_try().into_iter().chain(turn).find(|account| self.room(*account, used))?;
        self.next = chosen + 1;
        Some((chosen, self.breakers.on_start(chosen, Class::Unary, self.now)))
    }

    fn end(&mut self, account: usize, mut pass: Pass, verdict: Verdict) {
        let report = Report { verdict, latency: Duration::ZERO, rest: None };
        let luck = self.luck();
        self.breakers.on_report(account, &mut pass, &report, 1, self.now, || luck);
        let now = self.now;
        self.events.extend(self.breakers.take_events().into_iter().map(|event| (now, event)));
    }

    /// One request; which endpoint it went to.
    fn request(&mut self, verdict: impl Fn(usize, f64) -> Verdict) -> Option<usize> {
        let (account, pass) = self.start(0)?;
        let verdict = verdict(account, self.luck());
        self.end(account, pass, verdict);
        Some(account)
    }

    /// So many requests each second. How many went to each endpoint, and how many found none.
    fn run(&mut self, seconds: u32, rate: u32, verdict: impl Fn(usize, f64, Duration) -> Verdict) -> (Vec<u32>, u32) {
        let began = self.now;
        let (mut sent, mut refused) = (vec![0; self.count], 0);
        for _ in 0..seconds * rate {
            self.now += SECOND / rate;
            let passed = self.now - began;
            match self.request(|account, luck| verdict(account, luck, passed)) {
                Some(account) => sent[account] += 1,
                None => refused += 1,
            }
        }
        (sent, refused)
    }

    fn opened(&self) -> Vec<(Option<usize>, Cause)> {
        let opened = self.events.iter().filter_map(|(_, event)| match event {
            Event::Opened { account, cause, .. } => Some((*account, *cause)),
            _ => None,
        });
        opened.collect()
    }
}

fn failing(is_failing: bool, verdict: Verdict) -> Verdict {
    if is_failing { verdict } else { Verdict::Good }
}

#[test]
fn one_that_fails_fast_is_left_out() {
    let mut pool = Pool::new(20);
    let (sent, refused) = pool.run(60, 1000, |account, _, _| failing(account == 0, Verdict::ServerError));
    assert_eq!(refused, 0);
    assert!(sent[0] <= 30, "{} of 60,000 met an error", sent[0]);
    assert!(pool.opened().iter().all(|(account, _)| *account == Some(0)), "{:?}", pool.opened());
}

#[test]
fn an_error_that_all_make_opens_nothing() {
    for (errors, count) in [(0.3, 10), (0.6, 10), (0.8, 3), (0.3, 1), (0.8, 1)] {
        for verdict in [Verdict::ServerError, Verdict::Broken] {
            let mut pool = Pool::new(count);
            let (_, refused) = pool.run(60, 200, |_, luck, _| failing(luck < errors, verdict));
            assert_eq!(refused, 0);
            let out = pool.opened();
            // Where most fail, five in a row happen everywhere; then some are left out for a moment, and come back.
            assert!(errors > 0.5 || out.is_empty(), "{errors} {verdict:?} {out:?}");
            assert!(out.iter().all(|(account, _)| account.is_some()), "{errors} {verdict:?} {out:?}");
        }
    }
}

#[test]
fn overload_leaves_nobody_out() {
    let mut pool = Pool::new(4);
    let (_, refused) = pool.run(60, 200, |_, luck, _| failing(luck < 0.5, Verdict::Overloaded));
    let (_, gone) = pool.run(60, 200, |_, luck, _| failing(luck < 0.9, Verdict::Unknown));
    assert_eq!((refused, gone, pool.events.len()), (0, 0, 0));
}

#[test]
fn one_that_flaps_gets_few_trials() {
    for (ill, well) in [(1, 1), (2, 10), (7, 10), (10, 7), (10, 11), (20, 30), (60, 5)] {
        for verdict in [Verdict::ServerError, Verdict::Broken, Verdict::Unreachable] {
            let mut pool = Pool::new(4);
            let is_ill = move |passed: Duration| passed.as_secs() % (ill + well) < ill;
            pool.run(600, 100, |account, _, passed| failing(account == 0 && is_ill(passed), verdict));
            let trials: Vec<_> = pool
                .events
                .iter()
                .filter(|(_, event)| matches!(event, Event::HalfOpen { .. }))
                .map(|(at, _)| *at)
                .collect();
            let most = trials
                .iter()
                .map(|from| trials.iter().filter(|at| *at >= from && **at < *from + 60 * SECOND).count())
                .max();
            assert!(
                (1..=8).contains(&most.unwrap_or(0)),
                "{most:?} in a minute, {ill} s ill and {well} s well, {verdict:?}"
            );
        }
    }
}

#[test]
fn no_more_than_a_share_is_left_out_and_never_the_last_good_one() {
    let mut pool = Pool::new(10);
    let most = RefCell::new(0);
    for _ in 0..30 {
        pool.run(1, 500, |account, _, _| failing(account < 6, Verdict::Broken));
        let out = 10 - pool.serving().len();
        most.replace_with(|most| out.max(*most));
    }
    assert_eq!(most.take(), 3);
    let mut pair = Pool::new(2);
    pair.run(1, 100, |account, _, _| failing(account == 0, Verdict::Broken));
    assert_eq!(pair.serving(), [1]);
    pair.run(1, 30, |_, _, _| Verdict::Broken);
    assert!(pair.events.iter().any(|(_, event)| *event == Event::Panicked));
    assert_eq!(pair.serving(), [0, 1], "who is left is no better");
    pair.run(2, 100, |account, _, _| failing(account == 1, Verdict::Broken));
    assert_eq!(pair.serving(), [0], "one has shown that it is");
}

#[test]
fn where_no_connection_can_be_made_nothing_is_lost() {
    let mut pool = Pool::new(4);
    pool.run(1, 100, |account, _, _| failing(account > 0, Verdict::Unreachable));
    assert_eq!(pool.serving(), [0]);
    assert_eq!(pool.breakers.shut(pool.now), None);
    let (_, refused) = pool.run(1, 30, |_, _, _| Verdict::Unreachable);
    assert!(refused > 0);
    let wait = pool.breakers.shut(pool.now).expect("all are out");
    assert!(wait <= 2 * SECOND && !wait.is_zero(), "{wait:?}");
    pool.now += wait;
    let trial = pool.start(0).expect("one goes ahead");
    assert_eq!(pool.breakers.shut(pool.now), None, "the others wait for it");
    assert!(pool.start(0).is_none());
    pool.end(trial.0, trial.1, Verdict::Unknown);
    let trial = pool.start(0).expect("who left has shown nothing");
    pool.end(trial.0, trial.1, Verdict::Good);
    for round in [2, 4, 8, 16] {
        let all: Vec<_> = (0..round).map(|used| pool.start(used).expect("twice as many")).collect();
        assert!(pool.start(round).is_none_or(|(account, _)| account != trial.0));
        for (account, pass) in all {
            pool.end(account, pass, Verdict::Good);
        }
    }
    assert_eq!(pool.breakers.state(Some(trial.0), pool.now), State::Closed);
}

#[test]
fn an_upstream_that_answers_nothing_good_is_closed_as_a_whole() {
    for count in [1, 3] {
        let mut pool = Pool::new(count);
        let (sent, refused) = pool.run(1, 100, |_, luck, _| failing(luck < 0.95, Verdict::ServerError));
        assert!((50..90).contains(&sent.iter().sum::<u32>()) && refused > 0, "{sent:?}");
        assert_eq!(pool.breakers.shut(pool.now).map(|wait| wait <= SECOND), Some(true));
        pool.now += SECOND;
        for _ in 0..31 {
            pool.request(|_, _| Verdict::Good).expect("trials");
        }
        assert_eq!((pool.breakers.state(None, pool.now), pool.breakers.is_trying()), (State::Closed, false));
        assert_eq!(pool.run(1, 30, |_, _, _| Verdict::ServerError).1, 0, "what was before is forgotten");
    }
}

#[test]
fn a_health_check_counts_for_itself_and_is_ignored_once_it_leaves_nobody() {
    let mut pool = Pool::new(3);
    pool.breakers.set_down(0, true, pool.now);
    pool.breakers.set_down(1, true, pool.now);
    assert_eq!(pool.serving(), [2]);
    pool.breakers.set_down(2, true, pool.now);
    assert_eq!(pool.serving(), [0, 1, 2]);
    pool.run(1, 30, |_, _, _| Verdict::Unreachable);
    assert!(pool.breakers.shut(pool.now).is_some(), "the requests say the same");
    pool.breakers.set_down(1, false, pool.now);
    assert_eq!(pool.breakers.to_try(), Some(1), "tried at once");
    assert_eq!(pool.request(|_, _| Verdict::Good), Some(1));
}

#[test]
fn one_that_its_check_condemns_keeps_no_other_from_its_trial() {
    let mut pool = Pool::new(3);
    pool.run(1, 100, |account, _, _| failing(account < 2, Verdict::Unreachable));
    assert_eq!(pool.serving(), [2]);
    pool.breakers.set_down(0, true, pool.now);
    pool.now += 2 * SECOND;
    assert_eq!(pool.request(|_, _| Verdict::Good), Some(1), "the first has no credit to be tried with");
    pool.breakers.set_down(0, false, pool.now);
    assert_eq!(pool.breakers.to_try(), Some(0));
}

#[test]
fn the_next_trial_is_when_both_breakers_allow_one() {
    let mut pool = Pool::new(1);
    pool.run(1, 5, |_, _, _| Verdict::Unreachable);
    let own = pool.breakers.shut(pool.now).expect("it is left out");
    let settings = Settings { shortest: own / 4, ..Settings::default() };
    pool.breakers.open_pool(Cause::Share, &settings, pool.now, 0.0);
    assert_eq!(pool.breakers.shut(pool.now), Some(own), "the upstream's ends first, and its endpoint is still out");
    let settings = Settings { shortest: own * 4, ..settings };
    pool.breakers.open_pool(Cause::Share, &settings, pool.now, 0.0);
    assert!(pool.breakers.shut(pool.now) > Some(own));
}

#[test]
fn draining_ones_are_no_part_of_the_pool() {
    let mut pool = Pool::new(2);
    pool.breakers.set_draining(1, true);
    let reports = |pool: &mut Pool, verdict| {
        for _ in 0..10 {
            let pass = pool.breakers.on_start(0, Class::Unary, pool.now);
            pool.end(0, pass, verdict);
        }
    };
    reports(&mut pool, Verdict::Broken);
    assert!(pool.opened().is_empty(), "there is no other");
    reports(&mut pool, Verdict::Unreachable);
    assert!(pool.breakers.shut(pool.now).is_some());
    pool.breakers.set_draining(1, false);
    assert!(pool.breakers.shut(pool.now).is_none());
    pool.breakers.set_draining(0, true);
    pool.breakers.set_draining(1, true);
    assert!(pool.breakers.shut(pool.now).is_none(), "an operator drains them all");
}

#[test]
fn other_settings_begin_anew_and_the_same_do_not() {
    let mut pool = Pool::new(1);
    pool.run(1, 30, |_, _, _| Verdict::Unreachable);
    assert!(pool.breakers.shut(pool.now).is_some());
    pool.breakers.apply(Some(Settings::default()), pool.now);
    assert!(pool.breakers.shut(pool.now).is_some());
    pool.breakers.apply(Some(Settings { failures: 6, ..Settings::default() }), pool.now);
    assert!(pool.breakers.shut(pool.now).is_none());
    pool.breakers.apply(None, pool.now);
    assert_eq!(pool.run(1, 30, |_, _, _| Verdict::Unreachable).1, 0);
}
